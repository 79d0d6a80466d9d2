//! What happened, in lines that a person can read.

use super::network::Packet;
use super::world::place_name;
use consensus::wire::{Header, Kind, Parsed, parse};
use std::cell::Cell;
use std::io::{self, Write as _};

/// Prints, or does not.
#[derive(Debug)]
pub(super) struct Trace {
    is_told: Cell<bool>,
}

impl Trace {
    pub(super) const fn new(is_told: bool) -> Self {
        Self {
            is_told: Cell::new(is_told),
        }
    }

    /// Tells that `who` does what `what` says.
    pub(super) fn tell(&self, now_ns: u64, who: &str, what: impl FnOnce() -> String) {
        if self.is_told.get() {
            let (ms, ns) = (now_ns / 1_000_000, now_ns % 1_000_000);
            let told = writeln!(io::stdout(), "{ms:>8}.{ns:06} ms  {who:<7} {}", what());
            // Whoever reads has had enough.
            self.is_told.set(told.is_ok());
        }
    }

    /// Tells of a packet that arrives.
    pub(super) fn arrival(&self, now_ns: u64, packet: &Packet, nodes: usize) {
        if !self.is_told.get() {
            return;
        }
        let name = |place: usize| {
            if place < nodes {
                place_name(place).to_owned()
            } else {
                format!("c{}", place - nodes + 1)
            }
        };
        let from = name(packet.from);
        self.tell(now_ns, &name(packet.to), || {
            match parse(&packet.bytes, usize::from(u16::MAX)) {
                Parsed::Ours(header, value) => {
                    format!("<- {from:<3} {}", describe(&header, value.len()))
                }
                Parsed::NotOurs => format!("<- {from:<3} something that is not ours"),
                Parsed::Malformed(why) => format!("<- {from:<3} malformed: {}", why.name()),
            }
        });
    }
}

/// A packet in words.
fn describe(header: &Header, bytes: usize) -> String {
    let Header {
        group,
        slot,
        ballot,
        vote_ballot,
        watermark,
        ..
    } = header;
    let kind = header.kind;
    let group = group.0;
    match kind {
        Kind::Prepare | Kind::PreVote | Kind::PreVoteGranted | Kind::Ack => {
            format!("{kind:?} g{group} ballot {ballot}")
        }
        Kind::Promise => {
            format!("Promise g{group} ballot {ballot} highest {slot} trim {watermark}")
        }
        Kind::Fetch | Kind::Accepted | Kind::Empty => {
            format!("{kind:?} g{group} slot {slot} ballot {ballot}")
        }
        Kind::Vote => format!(
            "Vote g{group} slot {slot} ballot {ballot}: voted in {vote_ballot}, {bytes} bytes"
        ),
        Kind::Accept => format!("Accept g{group} slot {slot} ballot {ballot}, {bytes} bytes"),
        Kind::Outside => format!("Outside g{group} slot {slot} trim {watermark}"),
        Kind::Decide => format!(
            "Decide g{group} ballot {ballot} slots {} to {slot} trim {watermark}",
            vote_ballot.0
        ),
        Kind::Nack => format!("Nack g{group} slot {slot} ballot {ballot}: promised {vote_ballot}"),
        Kind::Learn => format!("Learn g{group} slot {slot} voted in {vote_ballot}, {bytes} bytes"),
        Kind::CatchUp => format!("CatchUp g{group} slots {slot} to {watermark}"),
        Kind::Progress => format!("Progress g{group} up to {watermark}"),
        Kind::SnapshotChunk | Kind::SnapshotRequest => {
            format!("{kind:?} g{group} slot {slot} offset {watermark}, {bytes} bytes")
        }
        Kind::Redirect | Kind::Transfer => format!("{kind:?} g{group} to node {}", vote_ballot.0),
        Kind::Request | Kind::Response => {
            format!(
                "{kind:?} g{group} session {slot} first {}, {bytes} bytes",
                ballot.0
            )
        }
        Kind::Match | Kind::Matched | Kind::Unmatched => {
            format!(
                "{kind:?} g{group} ballot {ballot} after {vote_ballot}, matchmakers {slot}, {bytes} \
                 bytes"
            )
        }
        Kind::Stop
        | Kind::Stopped
        | Kind::HandOver
        | Kind::HandedOver
        | Kind::Appoint
        | Kind::Appointed => {
            format!("{kind:?} g{group} ballot {ballot}, matchmakers {slot}, {bytes} bytes")
        }
        Kind::Garbage | Kind::Collected => {
            format!(
                "{kind:?} g{group} below version {}, matchmakers {slot}",
                consensus::Ballot(*watermark)
            )
        }
        Kind::Configuration | Kind::Reconfigure | Kind::Reconfigured => {
            format!("{kind:?} g{group} version {vote_ballot}, {watermark}, {bytes} bytes")
        }
        Kind::Pulse => format!("Pulse: leads {slot} groups, digest {watermark:016x}"),
        Kind::Index => format!(
            "Index g{group} up to {slot}, versions {} to {vote_ballot}",
            consensus::Ballot(*watermark)
        ),
        Kind::Hello | Kind::Read | Kind::Inspect | Kind::Report | Kind::ReadIndex => {
            format!("{kind:?} g{group}, {bytes} bytes")
        }
    }
}
