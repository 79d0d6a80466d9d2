//! How a replica helps those that lag.

use super::*;

impl<S: StateMachine> Replica<S> {
    /// Where a member that asks to be taught is reached. What it asks for is a thousand times as
    /// long as the question, so it goes to no address that a packet could name.
    pub(super) fn pupil(&self, request: &Header) -> Option<SocketAddr> {
        let member = self.register.newest.membership.member(request.sender)?;
        (member.node != self.config.node).then_some(member.address)
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
        let last = Slot(
            request
                .watermark
                .min(first.0.saturating_add(LEARN_SLOTS - 1)),
        );
        if first > self.applied.slot() || first == Slot::NONE {
            return;
        }
        if self.applied.kept(first).is_none() {
            return self.send_snapshot_from(turn, to, first);
        }
        let mut slot = first;
        while slot <= last
            && let Some((ballot, value)) = self.applied.kept(slot)
        {
            let header = Header {
                slot,
                vote_ballot: ballot,
                length: value.len() as u16,
                ..Header::new(Kind::Learn, self.config.group, self.config.node)
            };
            turn.io.send(to, &header, value);
            slot = slot.next();
        }
    }

    pub(super) fn send_snapshot_from<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        to: SocketAddr,
        first: Slot,
    ) {
        match turn.io.read_snapshot(self.config.group, 0, &mut []) {
            // The snapshot must reach what is still kept, or the learner could not go on from it.
            Some((slot, _, _)) if slot >= first && self.applied.kept(slot.next()).is_some() => {
                self.send_snapshot(turn, to, 0);
            }
            Some((slot, _, _)) if slot == self.applied.slot() => self.send_snapshot(turn, to, 0),
            _ => self.snapshot_wanted = true,
        }
    }

    pub(super) fn send_snapshot<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        to: SocketAddr,
        offset: u64,
    ) {
        let mut piece = [0; CHUNK_BYTES];
        let mut offset = offset;
        for _ in 0..SNAPSHOT_CHUNKS {
            let read = turn.io.read_snapshot(self.config.group, offset, &mut piece);
            let Some((slot, total, bytes)) = read else {
                return;
            };
            if offset >= total || bytes == 0 {
                return;
            }
            let header = Header {
                slot,
                watermark: offset,
                vote_ballot: Ballot(total),
                length: bytes as u16,
                ..Header::new(Kind::SnapshotChunk, self.config.group, self.config.node)
            };
            turn.io
                .send(to, &header, piece.get(..bytes).unwrap_or_default());
            offset += bytes as u64;
        }
    }
}
