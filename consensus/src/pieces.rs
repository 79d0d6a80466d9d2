//! Packets that are reached a piece at a time.
//!
//! The verifier of BPF follows one kind of bounds check: a pointer that is a fixed number of bytes
//! further, compared with the packet's end. So what runs there asks for pieces of a length known to
//! the compiler; a slice gives them as well.

/// Bytes of which pieces of a fixed length can be seen.
pub trait Pieces {
    /// How many bytes there are.
    fn length(&self) -> usize;
    /// The `N` bytes from `at` on, or `None` if there are fewer.
    fn piece<const N: usize>(&self, at: usize) -> Option<&[u8; N]>;
}

/// Bytes of which pieces of a fixed length can be written.
pub trait PiecesMut {
    /// The `N` bytes from `at` on, or `None` if there are fewer.
    fn piece_mut<const N: usize>(&mut self, at: usize) -> Option<&mut [u8; N]>;
}

impl Pieces for [u8] {
    #[inline(always)]
    fn length(&self) -> usize {
        self.len()
    }

    #[inline(always)]
    fn piece<const N: usize>(&self, at: usize) -> Option<&[u8; N]> {
        self.get(at..)?.first_chunk()
    }
}

impl PiecesMut for [u8] {
    #[inline(always)]
    fn piece_mut<const N: usize>(&mut self, at: usize) -> Option<&mut [u8; N]> {
        self.get_mut(at..)?.first_chunk_mut()
    }
}
