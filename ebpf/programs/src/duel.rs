//! Leaders that duel: each run of the program is one leader's next request, the acceptor's answer,
//! and a judgement of it.
//!
//! Each processor is a leader of its own. All rise above each other's ballots and ask for the same
//! few slots. What any of them was told must hold for all that is asked later: they keep it in the
//! page of the region's header, where user space sees it, too. The answers are read from the frame
//! that would be sent. Only objects that tests load have this program, in the acceptor's place.

#[path = "../../../tests/xdp_twin/duel.rs"]
#[allow(dead_code, reason = "the test that watches uses the rest")]
#[allow(unreachable_pub, reason = "a module of several crates")]
mod words;

use crate::packet::{Datagram, Packet, unknown};
use crate::region::{Maps, Record};
use crate::{GROUP_COUNT, Outcome, VALUE_BYTES, WINDOW, count, serve};
use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP};
use aya_ebpf::helpers::generated::{bpf_get_smp_processor_id, bpf_xdp_adjust_tail};
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::PerCpuArray;
use aya_ebpf::programs::XdpContext;
use consensus::acceptor::Drop;
use consensus::frame::{Addresses, Mac, Path, Sum};
use consensus::memory::{Memory as _, Payload as _};
use consensus::pieces::Pieces as _;
use consensus::region::{entry, group};
use consensus::tally::Count;
use consensus::wire::{DEFAULT_PORT, Flags, HEADER_BYTES, Headed, Header, Kind, header};
use consensus::{Ballot, Epoch, GroupId, NodeId, Slot};
use core::net::Ipv4Addr;
use words::Flaw;

/// Where a request's header begins: no VLAN, IPv4.
const AT: usize = 42;
/// Tries of a bounded loop that others may disturb.
const TRIES: usize = 8;

const PATH: Path = Path {
    source_mac: Mac([2, 0, 0, 0, 0, 1]),
    destination_mac: Mac([2, 0, 0, 0, 0, 2]),
    vlan: None,
    addresses: Addresses::V4 {
        source: Ipv4Addr::new(10, 0, 0, 1),
        destination: Ipv4Addr::new(10, 0, 0, 2),
    },
    source_port: 40_000,
    destination_port: DEFAULT_PORT,
};

/// What a processor asks, and what was known before it asked.
#[repr(C)]
struct Leader {
    random: u64,
    node: u64,
    kind: u64,
    group: u64,
    /// Number of the slot's ring entry.
    entry: u64,
    slot: u64,
    ballot: u64,
    promised: u64,
    highest: u64,
    newest: u64,
    trim: u64,
}

/// A leader's ballot in a group.
#[repr(C)]
struct Campaign {
    ballot: u64,
    /// The ballot that was last promised to it, and the highest slot that it was told.
    prepared: u64,
    highest: u64,
}

/// What a leader was answered when it last fetched from a ring entry: no vote is zero.
#[repr(C)]
struct Fetched {
    slot: u64,
    ballot: u64,
    newest: u64,
}

#[map]
static LEADER: PerCpuArray<Leader> = PerCpuArray::with_max_entries(1, 0);
#[map]
static CAMPAIGN: PerCpuArray<Campaign> = PerCpuArray::with_max_entries(words::GROUPS as u32, 0);
#[map]
static FETCHED: PerCpuArray<Fetched> = PerCpuArray::with_max_entries(words::ENTRIES as u32, 0);

#[xdp]
pub fn acceptor(context: XdpContext) -> u32 {
    let Some(leader) = LEADER.get_ptr_mut(0) else {
        return XDP_ABORTED;
    };
    // SAFETY: this processor's alone, as long as the program runs.
    let leader = unsafe { &mut *leader };
    if ask(&context, leader).is_none() {
        flaw(leader, Flaw::Unexpected, 0, 0);
        return XDP_ABORTED;
    }
    let what = answer(&context);
    if what == Count::Answered.index() {
        judge(&context, leader);
        return XDP_DROP;
    }
    tally(leader, words::TALLY_WORDS - 1);
    let is_taken = what == Count::Taken.index() && leader.kind == Kind::Decide as u64;
    if what != Count::Step(Drop::Busy).index() && !is_taken {
        flaw(leader, Flaw::Unexpected, 1, what as u64);
    }
    XDP_DROP
}

/// What the acceptor does in its own program; here it has a stack frame of its own, since all of them
/// together are limited. The place of what came of it among the counters.
#[inline(never)]
fn answer(context: &XdpContext) -> usize {
    let what = match serve(context) {
        Outcome::Answered => Count::Answered,
        Outcome::Silence(what) => what,
        Outcome::NoRoom => Count::NoRoom,
        Outcome::NotOurs => return Count::COUNT,
    };
    count(what);
    what.index()
}

/// Writes the leader's next request over the packet.
#[inline(never)]
fn ask(context: &XdpContext, leader: &mut Leader) -> Option<()> {
    if leader.random == 0 {
        // SAFETY: the helper takes nothing.
        leader.node = 1 + u64::from(unsafe { bpf_get_smp_processor_id() } & 7);
        leader.random = leader.node.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    let mut random = leader.random;
    random ^= random << 13;
    random ^= random >> 7;
    random ^= random << 17;
    leader.random = random;

    // What a Decide may have trimmed makes room, which is used at once.
    let makes_room = leader.kind == Kind::Decide as u64;
    let number = if makes_room { leader.group } else { random };
    let number = number & (u64::from(GROUP_COUNT.load()) - 1) & (words::GROUPS as u64 - 1);
    let window = WINDOW.load();
    let record = Maps.group(GroupId(number as u16))?;
    // SAFETY: this processor's alone.
    let campaign = unsafe { &mut *CAMPAIGN.get_ptr_mut(number as u32)? };
    leader.group = number;
    leader.promised = note(words::PROMISED + number as usize);
    leader.trim = Maps.load(record, group::TRIM);
    let kind = match random >> 8 & 63 {
        0 | 1 => Kind::Prepare,
        2..=15 => Kind::Fetch,
        16..=19 => Kind::Decide,
        20 => Kind::Read,
        _ => Kind::Accept,
    };
    if campaign.ballot == 0 || random >> 16 & 7 == 0 {
        campaign.ballot = (leader.promised >> 16) + 1 << 16 | leader.node;
    }
    // A leader's requests come in on more than one queue.
    let is_anothers = leader.promised != 0 && random >> 56 & 3 == 0;
    if !makes_room {
        leader.ballot = if is_anothers {
            leader.promised
        } else {
            campaign.ballot
        };
    }
    let within = random >> 20 & (window - 1);
    leader.slot = leader.trim
        + match random >> 32 & 63 {
            0 => window + within,
            _ => within,
        };
    // Often first, the slot in which nobody below this ballot can have voted.
    let is_new = campaign.prepared == leader.ballot && random >> 52 & 3 == 0;
    let kind = if makes_room {
        leader.slot = leader.trim + window - 1;
        Kind::Accept
    } else if is_new {
        leader.slot = campaign.highest + 1;
        Kind::Fetch
    } else {
        kind
    };
    leader.kind = kind as u64;
    leader.entry = number * window + (leader.slot & (window - 1));
    leader.newest = note(words::NEWEST + leader.entry as usize);
    leader.highest = note(words::HIGHEST + number as usize);

    stretch(context)?;
    // Written as an answer is, which turns its headers round.
    let mut frame = Packet::of(context);
    PATH.reversed()?
        .write_headers(&mut frame, HEADER_BYTES, Sum::default())?;
    let mut datagram = Datagram::new(context, false);
    let mut request = Header {
        epoch: Epoch(1),
        slot: Slot(leader.slot),
        ballot: Ballot(leader.ballot),
        nonce: random as u32,
        ..Header::new(kind, GroupId(number as u16), NodeId(leader.ballot as u16))
    };
    match kind {
        Kind::Accept => {
            let key = words::key(leader.slot, leader.ballot, random >> 40);
            let seed = words::seed(number, key);
            let length = unknown(words::length(seed, VALUE_BYTES.load()));
            request.length = length as u16;
            let word = |index| words::word(seed, key, length, index);
            for index in 0..(length / 8).min(VALUE_BYTES.load() / 8) {
                datagram.put(index as usize, 8, word(index))?;
            }
            if length % 8 != 0 {
                let last = length / 8;
                datagram.put(last as usize, (length % 8) as usize, word(last))?;
            }
        }
        Kind::Decide => {
            request.vote_ballot = Ballot(leader.trim);
            request.watermark = leader.trim + (random >> 40 & 1);
            request.flags = if random >> 41 & 1 == 0 {
                Flags::ACK_WANTED
            } else {
                Flags(0)
            };
        }
        Kind::Read => request.ballot = Ballot::NONE,
        _ => {}
    }
    datagram.write(&request)?;
    if matches!(kind, Kind::Fetch | Kind::Read) {
        // Room for the vote, behind the packet.
        stretch(context)?;
    }
    Some(())
}

/// Makes the packet as long as the longest request or answer.
#[inline(always)]
fn stretch(context: &XdpContext) -> Option<()> {
    let longest = (AT + HEADER_BYTES) as i32 + VALUE_BYTES.load() as i32;
    let change = longest - Packet::of(context).length() as i32;
    // SAFETY: the context is this program's; pointers into the packet are not used again.
    let refused = change != 0 && unsafe { bpf_xdp_adjust_tail(context.ctx, change) } != 0;
    (!refused).then_some(())
}

/// Compares an answer with what was known before its request, and learns from it.
#[inline(never)]
fn judge(context: &XdpContext, leader: &Leader) {
    let frame = Packet::of(context);
    let end = unknown(frame.length() as u64) as usize;
    let Headed::Ours(answer) = header(&frame, AT..end, VALUE_BYTES.load() as usize) else {
        return flaw(leader, Flaw::Unexpected, 2, 0);
    };
    tally(leader, answer.kind as usize & (words::TALLY_WORDS - 1));
    let asked = leader.kind;
    let is_fetch = asked == Kind::Fetch as u64;
    let is_fitting = match answer.kind {
        Kind::Promise => asked == Kind::Prepare as u64,
        Kind::Accepted => asked == Kind::Accept as u64,
        Kind::Ack => asked == Kind::Decide as u64,
        Kind::Vote | Kind::Empty => is_fetch || asked == Kind::Read as u64,
        Kind::Outside => asked != Kind::Prepare as u64 && asked != Kind::Decide as u64,
        Kind::Nack => asked != Kind::Read as u64,
        _ => false,
    };
    if !is_fitting {
        return flaw(leader, Flaw::Unexpected, 3, answer.kind as u64);
    }
    match answer.kind {
        Kind::Promise => promised(leader, answer.slot.0, answer.watermark),
        Kind::Accepted => accepted(leader),
        Kind::Ack => served(leader),
        Kind::Vote => {
            let Some(key) = shown(context, leader, &answer) else {
                return flaw(leader, Flaw::Torn, answer.vote_ballot.0, 0);
            };
            if is_fetch {
                fetched(leader, key);
            }
            saw(leader, leader.newest, key);
            let promise = if is_fetch {
                leader.ballot
            } else {
                answer.ballot.0
            };
            if answer.vote_ballot.0 > promise {
                flaw(
                    leader,
                    Flaw::VoteAbovePromise,
                    answer.vote_ballot.0,
                    promise,
                );
            }
            if !is_fetch && promise < leader.promised {
                flaw(leader, Flaw::PromiseWentBack, promise, leader.promised);
            }
        }
        Kind::Empty => {
            if is_fetch {
                fetched(leader, 0);
            }
            if leader.newest >> 40 >= leader.slot {
                flaw(leader, Flaw::VoteLost, leader.newest, 0);
            }
        }
        Kind::Outside => {
            let (slot, trim) = (leader.slot, answer.watermark);
            let is_outside = slot < trim || slot - trim >= WINDOW.load();
            if !is_outside || trim < leader.trim {
                flaw(leader, Flaw::TrimWentBack, trim, leader.trim);
            }
        }
        Kind::Nack => {
            let promise = answer.vote_ballot.0;
            if promise == leader.ballot || promise < leader.ballot && !is_fetch {
                flaw(leader, Flaw::Unexpected, 4, promise);
            }
            // A vote's ballot stands in for the promise where it refuses.
            if promise < leader.promised && asked != Kind::Accept as u64 {
                flaw(leader, Flaw::PromiseWentBack, promise, leader.promised);
            }
        }
        _ => {}
    }
}

/// The leader's ballot was served.
#[inline(always)]
fn served(leader: &Leader) {
    if leader.ballot < leader.promised {
        flaw(
            leader,
            Flaw::PromiseWentBack,
            leader.ballot,
            leader.promised,
        );
    }
    raise(words::PROMISED + leader.group as usize, leader.ballot);
}

#[inline(always)]
fn promised(leader: &Leader, highest: u64, trim: u64) {
    served(leader);
    if highest < leader.highest {
        flaw(leader, Flaw::HighestForgotten, highest, leader.highest);
    }
    if trim < leader.trim {
        flaw(leader, Flaw::TrimWentBack, trim, leader.trim);
    }
    if let Some(campaign) = CAMPAIGN.get_ptr_mut(leader.group as u32) {
        // SAFETY: this processor's alone.
        let campaign = unsafe { &mut *campaign };
        campaign.prepared = leader.ballot;
        campaign.highest = highest;
    }
}

/// Whoever was told of a vote finds it in the region, or one that replaced it.
#[inline(always)]
fn accepted(leader: &Leader) {
    served(leader);
    raise(words::HIGHEST + leader.group as usize, leader.slot);
    let newest = note(words::NEWEST + leader.entry as usize & 255);
    let Some(key) = look(leader) else {
        return;
    };
    if key | words::VARIANTS < words::key(leader.slot, leader.ballot, 0) {
        flaw(leader, Flaw::VoteLost, key, leader.ballot);
    }
    saw(leader, newest, key);
}

/// A Fetch was answered, with a vote or with none.
#[inline(always)]
fn fetched(leader: &Leader, key: u64) {
    served(leader);
    let mine = words::key(leader.slot, leader.ballot, 0);
    let is_older = key | words::VARIANTS < mine;
    if let Some(campaign) = CAMPAIGN.get_ptr_mut(leader.group as u32) {
        // SAFETY: this processor's alone.
        let campaign = unsafe { &*campaign };
        // Nobody below this ballot may have voted in a slot of which the promise did not tell.
        let is_untold = campaign.prepared == leader.ballot && leader.slot > campaign.highest;
        if is_untold && key != 0 && is_older {
            flaw(leader, Flaw::LateVote, key, campaign.highest);
        }
    }
    if let Some(before) = FETCHED.get_ptr_mut(leader.entry as u32) {
        // SAFETY: this processor's alone.
        let before = unsafe { &mut *before };
        let is_again = before.slot == leader.slot && before.ballot == leader.ballot;
        if is_again && is_older && before.newest != key {
            flaw(leader, Flaw::LateVote, key, before.newest);
        }
        before.slot = leader.slot;
        before.ballot = leader.ballot;
        before.newest = key;
    }
}

/// Compares a vote of the leader's ring entry with one that was known before.
#[inline(always)]
fn saw(leader: &Leader, newest: u64, key: u64) {
    if key < newest {
        let is_same = key | words::VARIANTS == newest | words::VARIANTS;
        let kind = if is_same {
            Flaw::TwoValues
        } else {
            Flaw::VoteLost
        };
        flaw(leader, kind, key, newest);
    } else if key != newest && key | words::VARIANTS == newest | words::VARIANTS {
        flaw(leader, Flaw::TwoValues, key, newest);
    }
    if let Some(record) = Maps.group(GroupId(leader.group as u16)) {
        let trim = Maps.load(record, group::TRIM);
        if key >> 40 >= trim + WINDOW.load() {
            flaw(leader, Flaw::KeptSlotOverwritten, key, trim);
        }
    }
    raise(words::NEWEST + leader.entry as usize, key);
}

/// The vote that a frame shows, if its value is one that was proposed.
#[inline(always)]
fn shown(context: &XdpContext, leader: &Leader, answer: &Header) -> Option<u64> {
    // With zeros behind the value, so that each word is a whole one.
    stretch(context)?;
    let datagram = Datagram::new(context, false);
    let word = |index: u64| datagram.word(index as usize, 8);
    let key = words::key(leader.slot, answer.vote_ballot.0, word(0)?);
    is_proposed(leader.group, key, answer.length.into(), word)?.then_some(key)
}

/// Reads the leader's ring entry without its lock, as user space does.
#[inline(always)]
fn look(leader: &Leader) -> Option<u64> {
    let value_bytes = VALUE_BYTES.load();
    let body_words = entry::VALUE + value_bytes as usize / 8;
    let at = Maps.entry(leader.entry)?;
    for _ in 0..TRIES {
        let sequence = Maps.load(at, entry::LOCK);
        // Each body by an offset that the verifier knows.
        let found = if sequence & 2 == 0 {
            body(leader, at, entry::BODIES)
        } else {
            body(leader, at, entry::BODIES + body_words)
        };
        if Maps.load(at, entry::LOCK) | 1 == sequence | 1 {
            if found.is_none() {
                flaw(leader, Flaw::Torn, sequence, 0);
            }
            return found;
        }
    }
    None
}

#[inline(always)]
fn body(leader: &Leader, at: Record, body: usize) -> Option<u64> {
    let slot = Maps.load(at, body + entry::SLOT);
    let ballot = Maps.load(at, body + entry::BALLOT);
    let length = Maps.load(at, body + entry::LENGTH);
    let key = words::key(slot, ballot, Maps.load(at, body + entry::VALUE));
    let word = |index: u64| Some(Maps.load(at, body + entry::VALUE + index as usize));
    is_proposed(leader.group, key, length, word)?.then_some(key)
}

#[inline(always)]
fn is_proposed(
    group: u64,
    key: u64,
    length: u64,
    word: impl Fn(u64) -> Option<u64>,
) -> Option<bool> {
    let seed = words::seed(group, key);
    let mut differs = length ^ words::length(seed, VALUE_BYTES.load());
    // As many as there might be: the verifier then follows one way.
    for index in 0..VALUE_BYTES.load() / 8 {
        if index * 8 < length {
            differs |= word(index)? ^ words::word(seed, key, length, index);
        }
    }
    Some(differs == 0)
}

#[inline(always)]
fn note(word: usize) -> u64 {
    Maps.header().map_or(0, |page| {
        Maps.load(page, unknown(word as u64) as usize & 511)
    })
}

/// Raises a note. One that is not raised in so many tries makes a check weaker, and none wrong.
#[inline(never)]
fn raise(word: usize, to: u64) {
    let Some(page) = Maps.header() else {
        return;
    };
    let word = unknown(word as u64) as usize & 511;
    let mut current = Maps.load(page, word);
    for _ in 0..TRIES {
        if current >= to {
            return;
        }
        match Maps.compare_exchange(page, word, current, to) {
            Ok(_) => return,
            Err(found) => current = found,
        }
    }
}

#[inline(always)]
fn tally(leader: &Leader, what: usize) {
    if let Some(page) = Maps.header() {
        let processor = leader.node as usize - 1 & words::PROCESSORS - 1;
        let word = words::TALLY + processor * words::TALLY_WORDS + what;
        Maps.fetch_add(page, unknown(word as u64) as usize & 511, 1);
    }
}

#[inline(never)]
fn flaw(leader: &Leader, what: Flaw, found: u64, known: u64) {
    let Some(page) = Maps.header() else {
        return;
    };
    let counter = unknown((words::FLAWS + what as usize) as u64) as usize & 511;
    Maps.fetch_add(page, counter, 1);
    let number = what as u64 + 1;
    if Maps.compare_exchange(page, words::FIRST, 0, number).is_ok() {
        let details = [
            leader.kind,
            leader.group,
            leader.slot,
            leader.ballot,
            found,
            known,
        ];
        for (index, detail) in details.into_iter().enumerate() {
            Maps.store(page, words::FIRST + 1 + index, detail);
        }
    }
}
