//! The acceptor run over many frames on end, by the kernel's clock.

use super::{
    ACCEPTOR, Frames, Loaded, MAX_FRAME_BYTES, Mapping, Settings, Verdict, XdpError, map, missing,
    program,
};
use aya::maps::{Array, ProgramArray};
use aya::programs::TestRunOptions;
use consensus::region::Region;
use consensus::sync::Ordering;
use std::time::Duration;

pub(super) const FRAMES: &str = "FRAMES";
const TAKEN: &str = "TAKEN";
const TIMED: &str = "TIMED";
const BOUNCE: &str = "bounce";
const REPEAT_ACCEPTOR: &str = "repeat_acceptor";
const REPEAT_BOUNCE: &str = "repeat_bounce";

/// What the kernel times.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Timed {
    /// Each frame put into the packet, then the acceptor.
    Acceptor,
    /// Each frame put into the packet, then sent back as it is.
    Refill,
    /// The same packet sent back again and again: a program that does nothing.
    Bounce,
}

/// What came of a repeated run.
#[derive(Clone, Debug)]
pub struct Ran {
    /// Time of one repeat, on average; the kernel gives whole nanoseconds, rounded down.
    pub each: Duration,
    /// How the last repeat ended.
    pub last: Verdict,
    /// How many frames were put into the packet.
    pub taken: u64,
}

/// A program and room for the frames that it is to be shown.
///
/// The kernel's repeated run (`BPF_PROG_TEST_RUN` with `repeat`) shows a program the packet that
/// its last run has left. So a second program puts the next of these frames there and goes on with
/// the acceptor by a tail call.
#[derive(Debug)]
pub struct Repeater {
    loaded: Loaded,
    /// All frames, each beginning with a word.
    frames: Mapping,
    frame_bytes: usize,
    first: Vec<u8>,
    count: u32,
}

impl Repeater {
    /// Loads the programs of `object` over a blank region, with room for `repeats` frames of
    /// `frame_bytes` bytes each. Needs what [`Loaded::load`] needs.
    ///
    /// # Errors
    /// As [`Loaded::load`].
    pub fn load(
        object: &[u8],
        settings: &Settings,
        repeats: u32,
        frame_bytes: u32,
    ) -> Result<Self, XdpError> {
        let mut loaded = Loaded::load_with_frames(
            object,
            settings,
            Frames {
                count: repeats,
                bytes: frame_bytes,
            },
        )?;
        for name in [BOUNCE, REPEAT_ACCEPTOR, REPEAT_BOUNCE] {
            program(&mut loaded.ebpf, name)?
                .load()
                .map_err(XdpError::Verify)?;
        }
        for (index, name) in (0..).zip([ACCEPTOR, BOUNCE]) {
            let fd = program(&mut loaded.ebpf, name)?.fd();
            let fd = fd.and_then(|fd| Ok(fd.try_clone()?));
            let fd = fd.map_err(XdpError::Run)?;
            let named = |source| XdpError::Map {
                name: TIMED,
                source,
            };
            let jumps = loaded.ebpf.map_mut(TIMED).ok_or_else(|| missing(TIMED))?;
            let mut timed = ProgramArray::try_from(jumps).map_err(named)?;
            timed.set(index, &fd, 0).map_err(named)?;
        }
        let frame_bytes = frame_bytes as usize;
        let bytes = repeats as usize * frame_bytes.next_multiple_of(size_of::<u64>());
        let frames = Mapping::of_map(map(&loaded.ebpf, FRAMES)?, bytes).map_err(XdpError::Mmap)?;
        Ok(Self {
            loaded,
            frames,
            frame_bytes,
            first: Vec::new(),
            count: 0,
        })
    }

    /// The region that the acceptor steps.
    pub const fn region(&self) -> &Region<Mapping> {
        self.loaded.region()
    }

    /// The acceptor.
    pub const fn loaded(&mut self) -> &mut Loaded {
        &mut self.loaded
    }

    /// Says which frames are shown next, in this order. Each is as long as was said when the
    /// programs were loaded, and there are at most as many.
    pub fn fill(&mut self, frames: &[Vec<u8>]) {
        let stride = self.frame_bytes.div_ceil(size_of::<u64>());
        let room = self.frames.as_ref().chunks_exact(stride);
        assert!(frames.len() <= room.len(), "there is room for the frames");
        for (frame, words) in frames.iter().zip(room) {
            assert_eq!(
                frame.len(),
                self.frame_bytes,
                "the programs know the length"
            );
            for (word, bytes) in words.iter().zip(frame.chunks(size_of::<u64>())) {
                let mut padded = [0; size_of::<u64>()];
                padded[..bytes.len()].copy_from_slice(bytes);
                word.store(u64::from_ne_bytes(padded), Ordering::Release);
            }
        }
        self.first = frames.first().cloned().unwrap_or_default();
        self.count = frames.len() as u32;
    }

    /// Shows the frames, each once.
    ///
    /// # Errors
    /// The kernel does not run the programs.
    pub fn run(&mut self, timed: Timed) -> Result<Ran, XdpError> {
        self.set_taken(0)?;
        let mut out = vec![0; MAX_FRAME_BYTES];
        let mut options = TestRunOptions::new();
        options.data_in = Some(&self.first);
        options.data_out = Some(&mut out);
        options.repeat = self.count;
        let name = match timed {
            Timed::Acceptor => REPEAT_ACCEPTOR,
            Timed::Refill => REPEAT_BOUNCE,
            Timed::Bounce => BOUNCE,
        };
        let ended = self.loaded.test_run(name, options)?;
        out.truncate(ended.data_size_out as usize);
        Ok(Ran {
            each: ended.duration,
            last: Verdict::new(ended.return_value, out),
            taken: self.taken()?,
        })
    }

    fn taken(&self) -> Result<u64, XdpError> {
        let named = |source| XdpError::Map {
            name: TAKEN,
            source,
        };
        let map = self.loaded.ebpf.map(TAKEN).ok_or_else(|| missing(TAKEN))?;
        let taken = Array::<_, u64>::try_from(map).map_err(named)?;
        taken.get(&0, 0).map_err(named)
    }

    fn set_taken(&mut self, count: u64) -> Result<(), XdpError> {
        let named = |source| XdpError::Map {
            name: TAKEN,
            source,
        };
        let map = self.loaded.ebpf.map_mut(TAKEN);
        let map = map.ok_or_else(|| missing(TAKEN))?;
        let mut taken = Array::<_, u64>::try_from(map).map_err(named)?;
        taken.set(0, count, 0).map_err(named)
    }
}
