//! How a replica helps those that lag: a few packets in each turn and no more than the operator
//! allows, so that votes do not wait behind lessons.

use super::*;

/// Who is taught at once at the most; others ask again, or somebody else.
const MAX_PUPILS: usize = 8;
/// Packets of lessons that leave in one turn of a node at the most: a vote waits behind no more.
const TURN_PACKETS: usize = 8;
/// Unused time in which packets could have been sent and still may, in nanoseconds.
const BURST_NS: u64 = 1_000_000;
/// Values behind a snapshot are kept for so long after somebody has last asked for it, in
/// nanoseconds: in this time it is made a state of.
const TEACHING_NS: u64 = 10_000_000_000;

/// What of lessons may leave a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Lessons {
    /// Packets in this turn.
    packets: usize,
    /// When the next one may.
    free_ns: u64,
}

impl Lessons {
    /// The same in a new turn.
    pub(crate) fn begin_turn(&mut self, now_ns: u64) {
        let earliest_ns = now_ns.saturating_sub(BURST_NS);
        self.free_ns = self.free_ns.max(earliest_ns);
        self.packets = TURN_PACKETS;
    }

    /// Whether one may leave now.
    pub(crate) const fn are_free(&self, now_ns: u64) -> bool {
        self.packets > 0 && self.free_ns <= now_ns
    }
}

#[derive(Clone, Copy, Debug)]
enum Lesson {
    /// From the first slot to the last.
    Slots(Slot, Slot),
    /// Of this snapshot, from the first offset up to the second.
    Snapshot((Slot, u32), u64, u64),
}

impl Lesson {
    /// Goes on with `next`, if that begins where this ends.
    fn extend(&mut self, next: Self) -> bool {
        match (self, next) {
            (Self::Slots(_, last), Self::Slots(first, end)) if last.next() == first => *last = end,
            (Self::Snapshot(id, _, end), Self::Snapshot(other, from, to))
                if (*id, *end) == (other, from) =>
            {
                *end = to;
            }
            _ => return false,
        }
        true
    }
}

#[derive(Debug)]
struct Pupil {
    node: NodeId,
    to: SocketAddr,
    lesson: Lesson,
}

/// Who is being taught.
#[derive(Debug, Default)]
pub(super) struct Teaching {
    pupils: VecDeque<Pupil>,
    /// When the next packet may leave, as far as this group knows.
    free_ns: u64,
    /// Until when values behind a snapshot are kept, if they are.
    until_ns: Option<u64>,
}

impl Teaching {
    /// When there is something to send.
    pub(super) fn due_ns(&self) -> u64 {
        let lessons = match self.pupils.is_empty() {
            true => u64::MAX,
            false => self.free_ns,
        };
        lessons.min(self.until_ns.unwrap_or(u64::MAX))
    }

    /// Whether somebody has asked for a snapshot lately.
    pub(super) const fn is_awaited(&self) -> bool {
        self.until_ns.is_some()
    }
}

impl<S: StateMachine> Replica<S> {
    /// Where a member that asks to be taught is reached. What it asks for is a thousand times as
    /// long as the question, so it goes to no address that a packet could name.
    fn pupil(&self, request: &Header) -> Option<SocketAddr> {
        let member = self.register.newest.membership.member(request.sender)?;
        (member.node != self.config.node).then_some(member.address)
    }

    fn take_pupil(&mut self, node: NodeId, to: SocketAddr, lesson: Lesson) {
        let pupils = &mut self.teaching.pupils;
        if let Some(pupil) = pupils.iter_mut().find(|pupil| pupil.node == node) {
            if !pupil.lesson.extend(lesson) {
                pupil.lesson = lesson;
            }
        } else if pupils.len() < MAX_PUPILS {
            pupils.push_back(Pupil { node, to, lesson });
        }
    }

    pub(super) fn asked_to_teach<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        request: &Header,
    ) {
        let Some(to) = self.pupil(request) else {
            return;
        };
        let first = request.slot;
        if first > self.applied.slot() || first == Slot::NONE {
            return;
        }
        if self.applied.kept(first).is_none() {
            return self.offer_snapshot(turn, request.sender, to, first);
        }
        let last = request.watermark.min(first.0 + (LEARN_SLOTS - 1));
        let lesson = Lesson::Slots(first, Slot(last));
        self.take_pupil(request.sender, to, lesson);
    }

    pub(super) fn asked_for_snapshot<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        request: &Header,
    ) {
        let Some(to) = self.pupil(request) else {
            return;
        };
        let id = (request.slot, request.ballot.0 as u32);
        let from = request.watermark;
        let longest = SNAPSHOT_CHUNKS * self.config.pace.chunk_bytes as u64;
        let bytes = request.vote_ballot.0.min(longest);
        let read = turn
            .io
            .read_snapshot(self.config.group, Some(id), 0, &mut []);
        if read.is_none() || !self.leads_on(id.0) {
            // The newest one, from its beginning on, says that this one is gone.
            return self.offer_snapshot(turn, request.sender, to, id.0.next());
        }
        self.keep_behind(turn.now_ns, id.0);
        if bytes == 0 {
            return;
        }
        let lesson = Lesson::Snapshot(id, from, from.saturating_add(bytes));
        self.take_pupil(request.sender, to, lesson);
    }

    /// Whether whoever has everything up to `slot` can be taught the rest.
    fn leads_on(&self, slot: Slot) -> bool {
        slot == self.applied.slot() || self.applied.kept(slot.next()).is_some()
    }

    fn keep_behind(&mut self, now_ns: u64, slot: Slot) {
        self.teaching.until_ns = Some(now_ns + TEACHING_NS);
        self.applied.keep_from(slot.next());
    }

    /// Sends the beginning of the newest snapshot if it says something of `first`, else has one
    /// made: the asker asks again.
    fn offer_snapshot<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        node: NodeId,
        to: SocketAddr,
        first: Slot,
    ) {
        let newest = turn.io.read_snapshot(self.config.group, None, 0, &mut []);
        match newest {
            Some(Piece { id, .. }) if id.slot >= first && self.leads_on(id.slot) => {
                self.keep_behind(turn.now_ns, id.slot);
                let bytes = FIRST_CHUNKS * self.config.pace.chunk_bytes as u64;
                let lesson = Lesson::Snapshot((id.slot, id.crc), 0, bytes);
                self.take_pupil(node, to, lesson);
            }
            _ => {
                self.teaching.until_ns = Some(turn.now_ns + TEACHING_NS);
                self.snapshot_wanted = true;
                // Without a slot: one is being made.
                let wait = Header::new(Kind::SnapshotChunk, self.config.group, self.config.node);
                turn.io.send(to, &wait, &[]);
            }
        }
    }

    /// A tool asks for a snapshot that reaches at least a slot, or for a piece of one. The answer is
    /// no longer than the question, so it may go to whoever asks.
    pub(super) fn asked_by_tool<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        from: SocketAddr,
        request: &Header,
        room: usize,
    ) {
        let group = self.config.group;
        let mut buffer = [0; CHUNK_BYTES];
        let out = buffer.get_mut(..room.min(CHUNK_BYTES)).unwrap_or_default();
        let asks_for_piece = request.kind == Kind::SnapshotRequest;
        let of = asks_for_piece.then_some((request.slot, request.ballot.0 as u32));
        let offset = if asks_for_piece { request.watermark } else { 0 };
        let answer = Header {
            nonce: request.nonce,
            ..Header::new(Kind::SnapshotChunk, group, self.config.node)
        };
        match turn.io.read_snapshot(group, of, offset, out) {
            Some(Piece { id, bytes, .. }) if asks_for_piece || id.slot >= request.slot => {
                let header = Header {
                    slot: id.slot,
                    ballot: Ballot(u64::from(id.crc)),
                    watermark: offset,
                    vote_ballot: Ballot(id.bytes),
                    length: bytes as u16,
                    ..answer
                };
                let piece = buffer.get(..bytes).unwrap_or_default();
                turn.io.send(from, &header, piece);
            }
            _ if asks_for_piece || self.applied.slot() < request.slot => {}
            _ => {
                self.snapshot_wanted = true;
                turn.io.send(from, &answer, &[]);
            }
        }
    }

    /// Sends what may be sent in this turn, a packet to each pupil in turn.
    pub(super) fn teach<M: Memory, J: Journal, I: Io>(&mut self, turn: &mut Turn<'_, M, J, I>) {
        if self
            .teaching
            .until_ns
            .is_some_and(|until| turn.now_ns >= until)
        {
            self.teaching.until_ns = None;
            self.applied.keep_from(Slot(u64::MAX));
        }
        while turn.lessons.are_free(turn.now_ns) {
            let Some(mut pupil) = self.teaching.pupils.pop_front() else {
                break;
            };
            let sent = match &mut pupil.lesson {
                Lesson::Slots(next, last) => {
                    let sent = self.teach_slot(turn, pupil.to, *next);
                    *next = next.next();
                    sent.filter(|_| *next <= *last).ok_or(sent)
                }
                Lesson::Snapshot(id, offset, end) => {
                    let sent = self.teach_piece(turn, pupil.to, *id, *offset, *end);
                    *offset += sent.unwrap_or(0);
                    sent.filter(|_| *offset < *end).ok_or(sent)
                }
            };
            turn.lessons.packets -= 1;
            if sent.is_ok() {
                self.teaching.pupils.push_back(pupil);
            }
            let (Ok(bytes) | Err(Some(bytes))) = sent else {
                continue;
            };
            let cost_ns = (bytes + HEADER_BYTES as u64).saturating_mul(1_000_000_000);
            turn.lessons.free_ns += cost_ns
                .checked_div(self.config.pace.bytes_per_s)
                .unwrap_or(0);
        }
        self.teaching.free_ns = turn.lessons.free_ns;
    }

    /// Returns how many bytes of a value have left.
    fn teach_slot<M: Memory, J: Journal, I: Io>(
        &self,
        turn: &mut Turn<'_, M, J, I>,
        to: SocketAddr,
        slot: Slot,
    ) -> Option<u64> {
        let (ballot, value) = self.applied.kept(slot)?;
        let header = Header {
            slot,
            vote_ballot: ballot,
            length: value.len() as u16,
            ..Header::new(Kind::Learn, self.config.group, self.config.node)
        };
        turn.io.send(to, &header, value);
        Some(value.len() as u64)
    }

    /// Returns how many bytes of a snapshot have left; `None` if there are no more.
    fn teach_piece<M: Memory, J: Journal, I: Io>(
        &self,
        turn: &mut Turn<'_, M, J, I>,
        to: SocketAddr,
        id: (Slot, u32),
        offset: u64,
        end: u64,
    ) -> Option<u64> {
        let mut buffer = [0; CHUNK_BYTES];
        let wanted = (end - offset).min(self.config.pace.chunk_bytes as u64) as usize;
        let out = buffer.get_mut(..wanted)?;
        let read = turn
            .io
            .read_snapshot(self.config.group, Some(id), offset, out);
        let Piece { id, bytes, crc } = read?;
        // An empty snapshot is a piece, too.
        if bytes == 0 && offset > 0 {
            return None;
        }
        let header = Header {
            slot: id.slot,
            ballot: Ballot(u64::from(id.crc)),
            watermark: offset,
            vote_ballot: Ballot(id.bytes),
            length: bytes as u16,
            nonce: crc,
            ..Header::new(Kind::SnapshotChunk, self.config.group, self.config.node)
        };
        turn.io
            .send(to, &header, buffer.get(..bytes).unwrap_or_default());
        (bytes > 0).then_some(bytes as u64)
    }
}
