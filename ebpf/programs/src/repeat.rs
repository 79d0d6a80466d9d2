//! How `nearwire bench step` has the acceptor run often on end: the kernel's repeated test run
//! gives a program the packet that its last run has left, so another frame is put there first.

use crate::packet::{Packet, unknown};
use crate::region::{BPF_F_MMAPABLE, Maps, Record};
use aya_ebpf::Global;
use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_TX};
use aya_ebpf::helpers::generated::bpf_xdp_adjust_tail;
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::{Array, ProgramArray};
use aya_ebpf::programs::XdpContext;
use consensus::memory::Memory as _;
use consensus::pieces::{Pieces as _, PiecesMut as _};

const WORD: usize = size_of::<u64>();

/// Length of every frame in bytes, set by the loader.
#[unsafe(no_mangle)]
static FRAME_BYTES: Global<u32> = Global::new(WORD as u32);

/// The frames in the order of the repeats; the loader says how many, and how long each is. They
/// stand close together, or to read them would cost more than the step.
#[map]
static FRAMES: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);
/// How many of them were put into the packet.
#[map]
static TAKEN: Array<u64> = Array::with_max_entries(1, 0);
/// What is timed: at 0 the acceptor, at 1 [`bounce`].
#[map]
static TIMED: ProgramArray = ProgramArray::with_max_entries(2, 0);

/// Runs the acceptor on the next frame.
#[xdp]
pub fn repeat_acceptor(context: XdpContext) -> u32 {
    repeat(&context, 0)
}

/// Runs [`bounce`] on the next frame.
#[xdp]
pub fn repeat_bounce(context: XdpContext) -> u32 {
    repeat(&context, 1)
}

/// Sends everything back as it is.
#[xdp]
pub fn bounce(_: XdpContext) -> u32 {
    XDP_TX
}

/// A tail call and no copy of the acceptor: what is timed is the program that is attached to
/// interfaces. The index is a constant, so the kernel makes a jump of it.
#[inline(always)]
fn repeat(context: &XdpContext, timed: u32) -> u32 {
    if refill(context).is_some() {
        // SAFETY: nothing here waits to be dropped.
        unsafe { TIMED.tail_call(context, timed) };
    }
    XDP_ABORTED
}

/// Puts the next frame into the packet.
#[inline(always)]
fn refill(context: &XdpContext) -> Option<()> {
    let taken = TAKEN.get_ptr_mut(0)?;
    // SAFETY: only one test run at a time uses these maps.
    let frame = FRAMES.get_ptr(unsafe { *taken } as u32)?;
    let bytes = FRAME_BYTES.load() as usize;
    let change = bytes as i32 - unknown(Packet::of(context).length() as u64) as i32;
    // Called even where nothing changes, so that this costs the same whatever the program left.
    // SAFETY: the context is this program's; no pointer into the packet is older.
    if unsafe { bpf_xdp_adjust_tail(context.ctx, change) } != 0 {
        return None;
    }
    let mut packet = Packet::of(context);
    for index in 0..bytes / WORD {
        copy(frame, &mut packet, index * WORD)?;
    }
    // The last word overlaps the one before. A frame has headers, so it is longer than a word.
    copy(frame, &mut packet, bytes.checked_sub(WORD)?)?;
    // A read-modify-write lets the stores above reach the cache first: a load that covers parts of
    // two of them would wait for that, and no driver's buffer is still being written.
    Maps.fetch_add(Record(taken), 0, 1);
    Some(())
}

/// By words and not by a helper: that copies bytes, and whoever then loads them waits until all are
/// copied.
#[inline(always)]
fn copy(frame: *const u64, packet: &mut Packet, at: usize) -> Option<()> {
    let place = packet.piece_mut::<WORD>(at)?;
    // SAFETY: a frame ends before the map's value does, which the verifier checks.
    *place = unsafe { *frame.cast::<u8>().add(at).cast::<[u8; WORD]>() };
    Some(())
}
