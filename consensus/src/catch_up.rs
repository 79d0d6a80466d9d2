//! How a replica that lags learns what was chosen: slot by slot from one that still keeps the
//! values, or by a snapshot and then slot by slot. Everything is pulled, so that a slow receiver is
//! never flooded; how much is asked for at once grows as long as nothing is lost.

use crate::quorum::{Member, MemberRole};
use crate::simulation::{Mutation, mutated};
use crate::state_machine::SnapshotId;
use crate::wire::{Header, Kind};
use crate::{Ballot, GroupId, NodeId, Slot};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// Slots asked for at once at the most.
pub const LEARN_SLOTS: u64 = 1024;
/// Snapshot pieces asked for at once at the most.
pub const SNAPSHOT_CHUNKS: u64 = 256;
/// Bytes of a snapshot piece.
pub const CHUNK_BYTES: usize = 1376;
/// Longest snapshot that is taken over the network, in bytes.
pub const MAX_SNAPSHOT_BYTES: u64 = 16 << 30;
/// Slots and pieces that are asked for at first, and after a loss. Whoever lacks no more slots than
/// that asks the leader first, which knows them for certain; otherwise the leader is asked last.
const FIRST_SLOTS: u64 = 64;
pub(crate) const FIRST_CHUNKS: u64 = 32;
/// Bytes of values that are kept at the most although those in front of them are missing.
const EARLY_BYTES: usize = 4 << 20;
/// How long a source may be silent before it is asked again, in nanoseconds.
const PATIENCE_NS: u64 = 20_000_000;
/// A source that was silent so often in a row is given up for another.
const SILENCES: u32 = 2;
/// So often in a row a source may answer that its snapshot is still being made.
const MAX_WAITS: u32 = 1000;
/// After a snapshot that could not be taken over, the next is asked for so much later, in
/// nanoseconds.
const RECOVERY_NS: u64 = 1_000_000_000;

/// How lessons are sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pace {
    /// Bytes of a snapshot piece, at most [`CHUNK_BYTES`]. All members have the same.
    pub chunk_bytes: usize,
    /// Bytes that leave in a second at the most, headers included; zero is no limit.
    pub bytes_per_s: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            chunk_bytes: CHUNK_BYTES,
            bytes_per_s: 0,
        }
    }
}

/// A snapshot on its way.
#[derive(Debug)]
struct Pull {
    source: NodeId,
    id: SnapshotId,
    /// Bytes that are here, from the beginning on.
    here: u64,
    /// Pieces that came before those in front of them, with their checksums.
    early: BTreeMap<u64, (u32, Vec<u8>)>,
    /// The offset at which the requests under way end.
    asked: u64,
    /// Bytes under way at the most.
    window: u64,
    /// Its source is silent: whoever answers next is the source.
    is_given_up: bool,
}

/// What a replica still has to learn.
#[derive(Debug)]
pub struct CatchUp {
    chunk_bytes: u64,
    wanted: Slot,
    /// The last slot of the requests under way.
    asked: Slot,
    /// Slots under way at the most.
    window: u64,
    due_ns: u64,
    /// When what is under way counts as lost.
    silent_ns: u64,
    /// Silences in a row of the present source.
    silences: u32,
    /// How often in a row it has answered that its snapshot is being made.
    waits: u32,
    /// The last slot that was here when that was last looked at.
    applied: Slot,
    /// Which source of those that there are.
    turn: usize,
    pull: Option<Pull>,
    /// All of this snapshot is here, from this source, and the host makes a state of it.
    restoring: Option<(NodeId, SnapshotId)>,
    /// Values that came before those in front of them.
    early: BTreeMap<Slot, (Ballot, Vec<u8>)>,
    early_bytes: usize,
}

impl CatchUp {
    /// Nothing to learn. Snapshots are asked for in pieces of `chunk_bytes`.
    pub const fn new(chunk_bytes: usize) -> Self {
        Self {
            chunk_bytes: chunk_bytes as u64,
            wanted: Slot::NONE,
            asked: Slot::NONE,
            window: FIRST_SLOTS,
            due_ns: u64::MAX,
            silent_ns: u64::MAX,
            silences: 0,
            waits: 0,
            applied: Slot::NONE,
            turn: 0,
            pull: None,
            restoring: None,
            early: BTreeMap::new(),
            early_bytes: 0,
        }
    }

    /// Everything up to `slot` is known to be chosen; ask for it after `delay_ns` unless it comes
    /// by itself.
    pub fn want(&mut self, now_ns: u64, slot: Slot, delay_ns: u64) {
        if slot > self.wanted {
            if self.wanted == Slot::NONE || self.due_ns == u64::MAX {
                self.due_ns = now_ns + delay_ns;
            }
            self.wanted = slot;
        }
    }

    /// The highest slot wanted.
    pub const fn wanted(&self) -> Slot {
        self.wanted
    }

    /// The snapshot that is on its way, and how many of its bytes are here.
    pub fn pulling(&self) -> Option<(SnapshotId, u64)> {
        self.pull.as_ref().map(|pull| (pull.id, pull.here))
    }

    /// Slots up to `applied` are here now.
    pub fn applied(&mut self, now_ns: u64, applied: Slot) {
        if self
            .pull
            .as_ref()
            .is_some_and(|pull| pull.id.slot <= applied)
        {
            self.pull = None;
        }
        if applied >= self.wanted {
            *self = Self {
                restoring: self.restoring,
                ..Self::new(self.chunk_bytes as usize)
            };
        } else if applied > self.applied && self.asked > Slot::NONE && self.restoring.is_none() {
            self.silences = 0;
            self.waits = 0;
            self.silent_ns = now_ns + PATIENCE_NS;
            // The next request leaves before the answers to the last one end.
            let left = self.asked.0.saturating_sub(applied.0);
            self.due_ns = if left <= self.window / 2 && self.asked < self.wanted {
                now_ns
            } else {
                self.silent_ns
            };
        }
        self.applied = applied;
    }

    /// Whether [`CatchUp::poll`] has a request.
    pub fn is_due(&self, now_ns: u64, applied: Slot) -> bool {
        self.wanted > applied && now_ns >= self.due_ns
    }

    /// The request that is due, and whom of `members` it goes to.
    pub fn poll(
        &mut self,
        now_ns: u64,
        group: GroupId,
        applied: Slot,
        leader: Option<NodeId>,
        own: NodeId,
        members: &[Member],
    ) -> Option<(NodeId, Header)> {
        if !self.is_due(now_ns, applied) {
            return None;
        }
        if let Some((source, id)) = self.restoring {
            // The source keeps what lies behind it for those who ask for nothing more, too.
            self.due_ns = now_ns + RECOVERY_NS;
            return Some((source, id.request(group, own, id.bytes, id.bytes)));
        }
        let is_lost = now_ns >= self.silent_ns;
        self.silent_ns = now_ns + PATIENCE_NS;
        self.due_ns = self.silent_ns;
        if is_lost {
            self.silences += 1;
            self.window = FIRST_SLOTS;
        }
        let is_given_up = self.silences >= SILENCES;
        if let Some(pull) = &mut self.pull
            && !is_given_up
        {
            pull.window = FIRST_CHUNKS * self.chunk_bytes;
            return Some((pull.source, pull.again(group, own)));
        }
        if is_given_up {
            self.silences = 0;
            self.waits = 0;
            self.turn += 1;
            if let Some(pull) = &mut self.pull {
                pull.is_given_up = true;
            }
        }
        let gap = self.wanted.0 - applied.0;
        let source = source(
            members,
            leader.filter(|leader| *leader != own),
            own,
            gap,
            self.turn,
        )?;
        let first = match is_lost || self.pull.is_some() {
            true => applied,
            false => applied.max(self.asked),
        };
        if !is_lost && self.asked > Slot::NONE {
            self.window = (2 * self.window).min(LEARN_SLOTS);
        }
        self.asked = Slot(self.wanted.0.min(first.0 + self.window));
        let header = Header {
            slot: first.next(),
            watermark: self.asked.0,
            ..Header::new(Kind::CatchUp, group, own)
        };
        Some((source, header))
    }

    /// Keeps a value that came before its turn.
    pub fn keep_early(&mut self, slot: Slot, ballot: Ballot, value: &[u8]) {
        let has_room = self.early.len() < LEARN_SLOTS as usize
            && self.early_bytes + value.len() <= EARLY_BYTES;
        if slot <= self.wanted && has_room && !self.early.contains_key(&slot) {
            self.early_bytes += value.len();
            self.early.insert(slot, (ballot, Vec::from(value)));
        }
    }

    /// The value of `slot`, if it came before its turn.
    pub fn take_early(&mut self, slot: Slot) -> Option<(Ballot, Vec<u8>)> {
        while let Some(first) = self.early.first_entry()
            && *first.key() <= slot
        {
            let (key, (ballot, value)) = first.remove_entry();
            self.early_bytes -= value.len();
            if key == slot {
                return Some((ballot, value));
            }
        }
        None
    }

    /// Takes a piece of a snapshot. `keep` writes a piece down: it returns how many bytes of this
    /// snapshot, from the beginning on, are here then, and `None` if it can write nothing. Returns
    /// the request for more that is to go to the sender.
    pub fn chunk(
        &mut self,
        now_ns: u64,
        own: NodeId,
        applied: Slot,
        header: &Header,
        piece: &[u8],
        mut keep: impl FnMut(SnapshotId, u64, &[u8], u32) -> Option<u64>,
    ) -> Option<Header> {
        let id = SnapshotId {
            slot: header.slot,
            bytes: header.vote_ballot.0,
            crc: header.ballot.0 as u32,
        };
        let is_older =
            id.slot <= applied && id.slot != Slot::NONE && !mutated(Mutation::OlderSnapshotTaken);
        if is_older || id.bytes > MAX_SNAPSHOT_BYTES || self.wanted <= applied {
            return None;
        }
        if self.restoring.is_some() {
            return None;
        }
        if id.slot == Slot::NONE {
            self.told_to_wait(now_ns);
            return None;
        }
        let offset = header.watermark;
        let is_other = |pull: &Pull| pull.id != id;
        if self.pull.as_ref().is_none_or(is_other) {
            // The source has another one by now, or another source has answered.
            let is_late = |pull: &Pull| pull.source != header.sender && !pull.is_given_up;
            if offset > 0 || self.pull.as_ref().is_some_and(is_late) {
                return None;
            }
            let Some(here) = keep(id, 0, &[], 0) else {
                self.failed(now_ns);
                return None;
            };
            let window = FIRST_CHUNKS * self.chunk_bytes;
            self.asked = Slot::NONE;
            self.pull = Some(Pull {
                source: header.sender,
                id,
                here,
                early: BTreeMap::new(),
                // What was sent unasked for is the beginning.
                asked: if here == 0 {
                    window.min(id.bytes)
                } else {
                    here
                },
                window,
                is_given_up: false,
            });
        }
        let pull = self.pull.as_mut()?;
        if pull.source != header.sender && offset == 0 {
            (pull.source, pull.asked) = (header.sender, pull.here);
        }
        if offset > pull.here {
            let has_room = (pull.early.len() as u64) < 2 * SNAPSHOT_CHUNKS;
            if has_room && offset < pull.asked {
                let piece = || (header.nonce, Vec::from(piece));
                pull.early.entry(offset).or_insert_with(piece);
            }
            return None;
        }
        let before = pull.here;
        let mut here = match offset == before && !piece.is_empty() {
            true => keep(id, offset, piece, header.nonce),
            false => Some(before),
        };
        while let Some(kept) = here
            && let Some(first) = pull.early.first_entry()
            && *first.key() <= kept
        {
            let (offset, (crc, piece)) = first.remove_entry();
            if offset == kept {
                here = keep(id, offset, &piece, crc);
            }
        }
        let Some(here) = here else {
            self.failed(now_ns);
            return None;
        };
        pull.here = here;
        if here == before && offset > 0 {
            return None;
        }
        pull.is_given_up = false;
        self.silences = 0;
        self.waits = 0;
        self.silent_ns = now_ns + PATIENCE_NS;
        self.due_ns = self.silent_ns;
        if pull.here >= id.bytes {
            self.restoring = Some((pull.source, id));
            self.pull = None;
            self.due_ns = now_ns + RECOVERY_NS;
            return None;
        }
        pull.more(header.group, own, self.chunk_bytes)
    }

    /// The source has a snapshot made: to ask somebody else would have two of them made.
    const fn told_to_wait(&mut self, now_ns: u64) {
        if self.pull.is_none() && self.waits < MAX_WAITS {
            self.waits += 1;
            self.silences = 0;
            self.asked = Slot::NONE;
            self.silent_ns = now_ns + PATIENCE_NS;
            self.due_ns = self.silent_ns;
        }
    }

    /// The host has made a state of a snapshot, or could not.
    pub fn restored(&mut self, now_ns: u64, is_whole: bool) {
        self.restoring = None;
        self.asked = Slot::NONE;
        self.silent_ns = u64::MAX;
        self.due_ns = now_ns;
        if !is_whole {
            self.failed(now_ns);
        }
    }

    /// A snapshot cannot be written down here, or was damaged.
    fn failed(&mut self, now_ns: u64) {
        self.pull = None;
        self.asked = Slot::NONE;
        self.turn += 1;
        self.silences = 0;
        self.silent_ns = u64::MAX;
        self.due_ns = now_ns + RECOVERY_NS;
    }

    /// When [`CatchUp::poll`] should be called, in nanoseconds.
    pub const fn next_timer_ns(&self) -> u64 {
        if self.wanted.0 == 0 {
            u64::MAX
        } else {
            self.due_ns
        }
    }
}

impl SnapshotId {
    /// The request for the bytes from one offset up to another.
    fn request(&self, group: GroupId, own: NodeId, from: u64, to: u64) -> Header {
        Header {
            slot: self.slot,
            ballot: Ballot(u64::from(self.crc)),
            watermark: from,
            vote_ballot: Ballot(to - from),
            ..Header::new(Kind::SnapshotRequest, group, own)
        }
    }
}

impl Pull {
    /// The request for what was lost.
    fn again(&mut self, group: GroupId, own: NodeId) -> Header {
        let end = match self.early.first_key_value() {
            Some((offset, _)) => *offset,
            None => {
                self.asked = self.id.bytes.min(self.here + self.window);
                self.asked
            }
        };
        self.id.request(group, own, self.here, end)
    }

    /// The next request, before the answers to the last one end.
    fn more(&mut self, group: GroupId, own: NodeId, chunk_bytes: u64) -> Option<Header> {
        let left = self.asked.saturating_sub(self.here);
        if left > self.window / 2 || self.asked >= self.id.bytes {
            return None;
        }
        self.window = (2 * self.window).min(SNAPSHOT_CHUNKS * chunk_bytes);
        let from = self.asked.max(self.here);
        self.asked = self.id.bytes.min(self.here + self.window);
        Some(self.id.request(group, own, from, self.asked))
    }
}

/// Whom to ask. Witnesses have nothing to teach.
fn source(
    members: &[Member],
    leader: Option<NodeId>,
    own: NodeId,
    gap: u64,
    turn: usize,
) -> Option<NodeId> {
    let teaches = |one: &&Member| one.node != own && one.role != MemberRole::Witness;
    let leads = |one: &&Member| Some(one.node) == leader;
    let leader_first = gap <= FIRST_SLOTS;
    let (leading, following): (Vec<&Member>, Vec<&Member>) =
        members.iter().filter(teaches).partition(leads);
    let (first, last) = match leader_first {
        true => (leading, following),
        false => (following, leading),
    };
    let at = turn.checked_rem(first.len() + last.len())?;
    first.iter().chain(&last).nth(at).map(|one| one.node)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: NodeId = NodeId(1);
    const GROUP: GroupId = GroupId(0);
    const PIECE: u64 = 10;

    fn members() -> Vec<Member> {
        let member = |node: u16| Member {
            node: NodeId(node),
            incarnation: crate::Incarnation(u32::from(node)),
            address: ([10, 0, 0, node as u8], 4747).into(),
            priority: 0,
            role: MemberRole::Voter,
        };
        (1..=3).map(member).collect()
    }

    /// A learner, and what its host has of a snapshot.
    struct Learner {
        catch_up: CatchUp,
        part: Option<(SnapshotId, u64)>,
        now_ns: u64,
    }

    const fn id(slot: u64, bytes: u64) -> SnapshotId {
        SnapshotId {
            slot: Slot(slot),
            bytes,
            crc: 7,
        }
    }

    impl Learner {
        fn new(wanted: u64) -> Self {
            let mut catch_up = CatchUp::new(PIECE as usize);
            catch_up.want(0, Slot(wanted), 0);
            Self {
                catch_up,
                part: None,
                now_ns: 0,
            }
        }

        fn poll(&mut self) -> (u16, Header) {
            let leader = Some(NodeId(3));
            let request = self
                .catch_up
                .poll(self.now_ns, GROUP, Slot(5), leader, OWN, &members());
            let (source, header) = request.expect("it is due");
            (source.0, header)
        }

        fn silence(&mut self) -> (u16, Header) {
            self.now_ns += PATIENCE_NS;
            self.poll()
        }

        fn piece(&mut self, source: u16, id: SnapshotId, offset: u64) -> Option<Header> {
            let header = Header {
                slot: id.slot,
                vote_ballot: Ballot(id.bytes),
                ballot: Ballot(u64::from(id.crc)),
                watermark: offset,
                ..Header::new(Kind::SnapshotChunk, GROUP, NodeId(source))
            };
            let piece = [0; PIECE as usize];
            let part = &mut self.part;
            let keep = |id: SnapshotId, offset: u64, piece: &[u8], _| {
                let here = part.filter(|(of, _)| *of == id).map_or(0, |(_, here)| here);
                assert!(piece.is_empty() || offset == here, "in order");
                *part = Some((id, here + piece.len() as u64));
                Some(here + piece.len() as u64)
            };
            self.catch_up
                .chunk(self.now_ns, OWN, Slot(5), &header, &piece, keep)
        }

        fn here(&self) -> u64 {
            self.part.map_or(0, |(_, here)| here)
        }
    }

    #[test]
    fn a_snapshot_of_what_is_applied_is_not_taken() {
        let mut learner = Learner::new(9);
        learner.piece(2, id(5, PIECE), 0);
        assert_eq!(learner.part, None);
        learner.piece(2, id(6, PIECE), 0);
        assert_eq!(learner.here(), PIECE);
        assert!(learner.catch_up.restoring.is_some());
        learner.now_ns = RECOVERY_NS;
        let (source, request) = learner.poll();
        assert_eq!(
            (source, request.watermark, request.vote_ballot.0),
            (2, PIECE, 0)
        );
    }

    #[test]
    fn a_short_gap_is_the_leaders_and_a_long_one_the_others() {
        assert_eq!(Learner::new(5 + FIRST_SLOTS).poll().0, 3);
        let mut learner = Learner::new(6 + FIRST_SLOTS);
        let sources = [(); 5].map(|()| {
            let source = learner.poll().0;
            learner.now_ns += PATIENCE_NS;
            source
        });
        assert_eq!(sources, [2, 2, 3, 3, 2], "another after two silences");
    }

    #[test]
    fn slots_are_asked_for_ahead_and_more_of_them_each_time() {
        let mut learner = Learner::new(10_000);
        let leader = Some(NodeId(3));
        let (mut applied, mut asked) = (Slot(5), Vec::new());
        for _ in 0..8 {
            let request = learner
                .catch_up
                .poll(0, GROUP, applied, leader, OWN, &members());
            let (_, header) = request.expect("half of what was asked for is here");
            asked.push((header.slot.0, header.watermark));
            applied = Slot(learner.catch_up.asked.0 - learner.catch_up.window / 2);
            learner.catch_up.applied(0, applied);
        }
        for (before, after) in asked.iter().zip(&asked[1..]) {
            assert_eq!(before.1 + 1, after.0, "nothing twice, nothing left out");
        }
        let (first, last) = asked[7];
        assert!(last - first + 1 >= LEARN_SLOTS / 2, "{asked:?}");
        // Nothing more comes.
        let request = learner
            .catch_up
            .poll(PATIENCE_NS, GROUP, applied, leader, OWN, &members());
        let (_, header) = request.expect("it is lost");
        assert_eq!(header.slot, applied.next());
        assert_eq!(header.watermark, applied.0 + FIRST_SLOTS);
    }

    #[test]
    fn a_snapshot_comes_in_growing_bursts_and_a_lost_piece_alone_is_asked_for_again() {
        let id = id(9, 10_000);
        let mut learner = Learner::new(9);
        learner.poll();
        let mut asked = FIRST_CHUNKS * PIECE;
        let mut longest = 0;
        let lost = 3_000;
        for offset in (0..10_000).step_by(PIECE as usize) {
            if offset == lost {
                continue;
            }
            assert!(offset < asked, "nothing comes unasked for");
            if let Some(request) = learner.piece(2, id, offset) {
                assert_eq!(request.watermark, asked, "nothing twice");
                asked += request.vote_ballot.0;
                longest = longest.max(request.vote_ballot.0);
            }
            if offset > lost && offset + PIECE == asked {
                break;
            }
        }
        assert!(longest > FIRST_CHUNKS * PIECE, "{longest}");
        assert_eq!(learner.here(), lost);
        let (source, request) = learner.silence();
        assert_eq!(
            (source, request.watermark, request.vote_ballot.0),
            (2, lost, PIECE)
        );
        let request = learner.piece(2, id, lost).expect("it goes on");
        assert_eq!((learner.here(), request.watermark), (asked, asked));
    }

    #[test]
    fn another_source_of_the_same_snapshot_goes_on_where_the_first_one_fell_silent() {
        let same = id(9, 1_000);
        let mut learner = Learner::new(100);
        learner.poll();
        for offset in [0, 10, 20] {
            learner.piece(2, same, offset);
        }
        assert_eq!(learner.silence().1.kind, Kind::SnapshotRequest);
        let (source, request) = learner.silence();
        assert_eq!((source, request.kind), (3, Kind::CatchUp));
        let request = learner.piece(3, same, 0).expect("it asks for the rest");
        assert_eq!((request.watermark, learner.here()), (30, 30));
        learner.piece(3, same, 30);
        assert_eq!(learner.here(), 40);
    }

    #[test]
    fn another_source_has_another_snapshot_when_the_first_one_is_gone_for_good() {
        let mut learner = Learner::new(100);
        learner.poll();
        learner.piece(2, id(20, 1_000), 0);
        assert_eq!(learner.silence().1.kind, Kind::SnapshotRequest);
        learner.piece(3, id(9, 1_000), 0);
        assert_eq!(
            learner.part,
            Some((id(20, 1_000), 10)),
            "it may only be slow"
        );
        let (source, request) = learner.silence();
        assert_eq!((source, request.kind), (3, Kind::CatchUp));
        learner.piece(3, id(9, 1_000), 0);
        assert_eq!(learner.part, Some((id(9, 1_000), 10)));
    }

    #[test]
    fn a_newer_snapshot_takes_the_place_of_one_that_its_source_has_no_more() {
        let mut learner = Learner::new(100);
        learner.poll();
        learner.piece(2, id(9, 1_000), 0);
        learner.piece(3, id(20, 1_000), 0);
        assert_eq!(
            learner.part,
            Some((id(9, 1_000), 10)),
            "nobody asked for it"
        );
        learner.piece(2, id(20, 1_000), 10);
        assert_eq!(learner.part, Some((id(9, 1_000), 10)), "not its beginning");
        learner.piece(2, id(20, 1_000), 0);
        assert_eq!(learner.part, Some((id(20, 1_000), 10)));
    }

    #[test]
    fn what_an_earlier_life_received_is_not_asked_for_again() {
        let id = id(9, 1_000);
        let mut learner = Learner::new(100);
        learner.part = Some((id, 500));
        learner.poll();
        let request = learner.piece(2, id, 0).expect("it asks for the rest");
        assert_eq!(request.watermark, 500);
    }

    #[test]
    fn a_snapshot_that_cannot_be_kept_is_asked_for_later_and_elsewhere() {
        let mut learner = Learner::new(100);
        learner.poll();
        let header = Header {
            slot: Slot(9),
            vote_ballot: Ballot(50),
            ..Header::new(Kind::SnapshotChunk, GROUP, NodeId(2))
        };
        let full = |_: SnapshotId, _: u64, _: &[u8], _: u32| None;
        let request = learner
            .catch_up
            .chunk(0, OWN, Slot(5), &header, b"0123456789", full);
        assert!(request.is_none());
        assert!(!learner.catch_up.is_due(RECOVERY_NS - 1, Slot(5)));
        learner.now_ns = RECOVERY_NS;
        assert_eq!(learner.poll().0, 3);
    }
}
