//! One write in flight through io_uring.
#![allow(unsafe_code)]

use io_uring::{IoUring, opcode, types};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// A ring that carries one write at a time.
pub(super) struct Ring {
    /// Gone once an entry was queued that the kernel did not take.
    ring: Option<IoUring>,
}

impl Ring {
    /// Fails with ENOSYS or EPERM where the kernel or a sandbox forbids io_uring.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            ring: Some(IoUring::new(2)?),
        })
    }

    /// Writes some of `bytes` at `offset` and waits until that part is on stable storage
    /// (RWF_DSYNC, Linux 4.7); returns its length.
    pub(super) fn write_durably(
        &mut self,
        file: &File,
        offset: u64,
        bytes: &[u8],
    ) -> io::Result<usize> {
        let length = u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let Some(ring) = self.ring.as_mut() else {
            return Err(io::Error::other("io_uring refused an earlier write"));
        };
        let write = opcode::Write::new(types::Fd(file.as_raw_fd()), bytes.as_ptr(), length)
            .offset(offset)
            .rw_flags(libc::RWF_DSYNC)
            .build();
        // SAFETY: `bytes` and `file` are borrowed until this function returns, and it returns only
        // when the completion has been seen, or after dropping the ring with an entry that the
        // kernel never took.
        unsafe { ring.submission().push(&write) }
            .map_err(|_| io::Error::other("io_uring submission queue is full"))?;
        loop {
            let waited = ring.submit_and_wait(1);
            if let Some(completion) = ring.completion().next() {
                return usize::try_from(completion.result())
                    .map_err(|_| io::Error::from_raw_os_error(-completion.result()));
            }
            // An entry that the kernel took owns the buffer until it completes: whatever the error
            // is, waiting is the only way out.
            if let Err(error) = waited
                && error.kind() != io::ErrorKind::Interrupted
                && !ring.submission().is_empty()
            {
                self.ring = None;
                return Err(error);
            }
        }
    }
}
