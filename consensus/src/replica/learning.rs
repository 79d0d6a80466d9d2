//! How a replica learns what is chosen, and says how far it has come.

use super::*;

impl<S: StateMachine> Replica<S> {
    /// Applies what the region says is chosen and this node voted for.
    pub(super) fn learn<M: Memory, J: Journal, I: Io>(&mut self, turn: &mut Turn<'_, M, J, I>) {
        if self.lead.is_some() || self.member_role() == Some(MemberRole::Witness) {
            return;
        }
        let Some(view) = turn.local.view(self.config.group) else {
            return;
        };
        let decided = view.decided;
        while self.applied.slot() < decided.upto {
            let slot = self.applied.slot().next();
            // A local vote with a ballot below the decided record's may be for another value.
            let mut value = self.applied.buffer();
            let ballot = match turn.local.vote(self.config.group, slot) {
                Some((ballot, bytes))
                    if slot >= decided.from
                        && (ballot >= decided.ballot || mutated(Mutation::LowerVoteApplied)) =>
                {
                    value.extend_from_slice(bytes);
                    ballot
                }
                _ => break,
            };
            let lesson = Header {
                slot,
                vote_ballot: ballot,
                length: value.len() as u16,
                ..Header::new(Kind::Learn, self.config.group, self.config.node)
            };
            if turn.local.is_shared()
                && !mutated(Mutation::KernelVoteNotJournalled)
                && !turn.local.record(&lesson, &value)
            {
                // The engine that took the vote journals nothing. Not journalled, so not learned.
                break;
            }
            self.apply(ballot, value);
        }
        self.advanced(turn);
        if self.applied.slot() < decided.upto {
            self.catch_up
                .want(turn.now_ns, decided.upto, GAP_PATIENCE_NS);
        }
    }

    pub(super) fn apply(&mut self, ballot: Ballot, value: Vec<u8>) {
        let Self {
            applied,
            responses,
            lead,
            tally,
            ..
        } = self;
        applied.apply(ballot, value, |to, outcome| {
            tally.entries += 1;
            let Some(lead) = lead else { return };
            match to {
                Recipient::Session(id) => {
                    if let Some(route) = lead.routes.get(&id.0) {
                        responses.add(*route, id, &outcome);
                    }
                }
                Recipient::Opener(nonce) => {
                    if let Some(route) = lead.openers.remove(&nonce) {
                        responses.add(route, SessionId(0), &outcome);
                    }
                }
            }
        });
    }

    pub(super) fn advanced<M: Memory, J: Journal, I: Io>(&mut self, turn: &mut Turn<'_, M, J, I>) {
        self.catch_up.applied(turn.now_ns, self.applied.slot());
        self.note_journalled(turn.local);
        let slot = self.applied.slot();
        if let Some(lead) = &mut self.lead
            && !lead.leader.leads()
            && let Heard::Behind(trim) = lead.leader.caught_up(slot, &lead.electorate)
        {
            self.catch_up.want(turn.now_ns, trim.previous(), 0);
        }
    }

    /// Tells the leader how far this replica could restore itself, so that it may trim.
    pub(super) fn report_progress<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
    ) {
        if self.lead.is_some() || turn.now_ns < self.report_due_ns(turn.local) {
            return;
        }
        let Some(leader) = self.leader(turn.now_ns, turn.local) else {
            return;
        };
        let Some(member) = self.register.newest.membership.member(leader) else {
            return;
        };
        let address = member.address;
        self.reported = self.to_report(turn.local);
        self.reported_ns = turn.now_ns;
        self.is_spoken_to = false;
        let report = self.progress_report(turn.local);
        self.stall.1 = self.stall.1.saturating_sub(1);
        turn.io.send(address, &report, &[]);
    }

    pub(super) fn progress_report<M: Memory, J: Journal>(&self, local: &Local<M, J>) -> Header {
        let (stalled_us, left) = self.stall;
        let Reported {
            recoverable,
            trimmed,
            knows,
            follows,
        } = self.to_report(local);
        Header {
            incarnation: local.acceptor().incarnation,
            epoch: crate::Epoch(knows.1),
            slot: trimmed,
            ballot: follows,
            vote_ballot: knows.0,
            nonce: if left > 0 { stalled_us } else { 0 },
            watermark: recoverable.0,
            ..Header::new(Kind::Progress, self.config.group, self.config.node)
        }
    }

    fn to_report<M: Memory, J: Journal>(&self, local: &Local<M, J>) -> Reported {
        let view = local.view(self.config.group);
        Reported {
            recoverable: self.recoverable,
            trimmed: self.trimmed,
            knows: self.knowledge(),
            follows: view.map_or(Ballot::NONE, |view| view.decided.ballot),
        }
    }

    pub(super) fn report_due_ns<M: Memory, J: Journal>(&self, local: &Local<M, J>) -> u64 {
        let (before, now) = (self.reported, self.to_report(local));
        // The smallest windows have no sixteenth, and without news nothing is due at once.
        if now.recoverable.0 >= before.recoverable.0 + (self.config.window / 16).max(1) {
            return 0;
        }
        let heartbeat_ns = self.config.leader.heartbeat_ns;
        // A new leader knows nothing yet, and trims for those it has heard of lately.
        let has_news = now.recoverable > before.recoverable
            || now.trimmed > before.trimmed
            || now.knows != before.knows
            || now.follows != before.follows;
        // A leader that rests has what it wants to know. Of one in the kernel's hands no packet
        // tells.
        let is_awaited = self.is_spoken_to || local.is_shared();
        match (has_news, is_awaited) {
            (true, _) => self.reported_ns + heartbeat_ns,
            (false, true) => self.reported_ns + REPORT_BEATS * heartbeat_ns,
            (false, false) => u64::MAX,
        }
    }

    /// Reports to `node` whatever was reported before.
    pub(crate) fn report_to<M: Memory, J: Journal, I: Io>(
        &self,
        node: NodeId,
        local: &Local<M, J>,
        io: &mut I,
    ) {
        if let Some(member) = self.register.newest.membership.member(node) {
            io.send(member.address, &self.progress_report(local), &[]);
        }
    }

    /// Whether state may be taken over from others. A ballot that has its promises proposes from
    /// the slot after the last one applied, and what it decides is applied in that order.
    pub(super) fn learns(&self) -> bool {
        let lead = self.lead.as_ref();
        lead.is_none_or(|lead| lead.leader.is_preparing()) || mutated(Mutation::LearnsWhileFetching)
    }

    pub(super) fn learned<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        header: &Header,
        value: &[u8],
    ) {
        let next = self.applied.slot().next();
        if !self.learns() || header.slot < next || !self.knows(header.sender) {
            return;
        }
        if header.slot > next && !mutated(Mutation::LessonSkipsSlot) {
            return self
                .catch_up
                .keep_early(header.slot, header.vote_ballot, value);
        }
        let mut buffer = self.applied.buffer();
        buffer.extend_from_slice(value);
        let mut learned = Some((header.vote_ballot, buffer));
        while let Some((ballot, value)) = learned {
            let slot = self.applied.slot().next();
            let length = value.len() as u16;
            let record = Header {
                slot,
                vote_ballot: ballot,
                length,
                ..*header
            };
            if !mutated(Mutation::LessonNotJournalled) && !turn.local.record(&record, &value) {
                // Not journalled, so not learned: it is asked for again.
                break;
            }
            self.tally.learned += 1;
            self.tally.learned_bytes += value.len() as u64;
            self.apply(ballot, value);
            learned = self.catch_up.take_early(slot.next());
        }
        self.advanced(turn);
    }

    pub(super) fn snapshot_piece<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        from: SocketAddr,
        header: &Header,
        value: &[u8],
    ) {
        if !self.learns() || !self.knows(header.sender) {
            return;
        }
        let applied = self.applied.slot();
        let group = self.config.group;
        let request = self.catch_up.chunk(
            turn.now_ns,
            self.config.node,
            applied,
            header,
            value,
            |id, offset, piece, crc| turn.io.keep_piece(group, id, offset, piece, crc),
        );
        if let Some(request) = request {
            turn.io.send(from, &request, &[]);
        }
    }

    /// Takes over the state that the host has made of a snapshot that was received, which is on this
    /// node's disk; `None` if it was damaged. Returns the state that is no longer needed.
    pub fn take_over<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        id: SnapshotId,
        state: Option<Applied<S>>,
    ) -> Option<Applied<S>> {
        self.catch_up.restored(turn.now_ns, state.is_some());
        let state = state?;
        if !self.learns() || state.slot() <= self.applied.slot() {
            return Some(state);
        }
        self.tally.snapshots += 1;
        self.tally.snapshot_bytes += id.bytes;
        let former = self.applied.give_way_to(state);
        self.snapshot_saved(self.applied.slot());
        self.advanced(turn);
        Some(former)
    }

    pub(super) fn note_journalled<M: Memory, J: Journal>(&mut self, local: &Local<M, J>) {
        let Some((appended, flushed)) = local.journalled(self.config.group) else {
            return;
        };
        let applied = self.restorable(local);
        let trim = local
            .view(self.config.group)
            .map_or(Slot::NONE, |view| view.trim);
        if let Some((number, slot, trim)) = self.journalling
            && number <= flushed
        {
            self.flushed(slot, trim);
        }
        let has_news = self.recoverable < applied || self.trimmed < trim;
        if self.journalling.is_none() && has_news {
            self.journalling = Some((appended, applied, trim));
            if appended <= flushed && self.unsaved.is_none() {
                self.flushed(applied, trim);
            }
        }
    }

    fn flushed(&mut self, slot: Slot, trim: Slot) {
        if self.unsaved.is_none() {
            self.recoverable = slot;
        }
        self.trimmed = trim;
        self.journalling = None;
    }

    /// Asks one of those that may know what this node has to learn.
    pub(super) fn ask_to_be_taught<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
    ) {
        // A candidate may have to learn from those that its configuration replaces.
        let electorate = self.lead.as_ref().map(|lead| lead.electorate.members());
        let members: Vec<Member> = match electorate {
            Some(members) => members.copied().collect(),
            None => self.register.newest.membership.members.clone(),
        };
        let leader = self.leader(turn.now_ns, turn.local);
        let request = self.catch_up.poll(
            turn.now_ns,
            self.config.group,
            self.applied.slot(),
            leader,
            self.config.node,
            &members,
        );
        if let Some((source, header)) = request
            && let Some(member) = members.iter().find(|member| member.node == source)
        {
            turn.io.send(member.address, &header, &[]);
        }
    }

    /// How far the records of this node, once they are flushed, would bring it. A leader applies
    /// what a quorum has accepted; until its own acceptor has taken the Decide, no record says that
    /// it was chosen.
    pub(super) fn restorable<M: Memory, J: Journal>(&self, local: &Local<M, J>) -> Slot {
        let applied = self.applied.slot();
        let Some(lead) = &self.lead else {
            return applied;
        };
        if local.durability() == Durability::Volatile {
            return applied;
        }
        match local.view(self.config.group) {
            Some(view) if view.decided.ballot == lead.leader.ballot() => {
                applied.min(view.decided.upto)
            }
            _ => self.recoverable,
        }
    }

    /// What was applied is not all in the journal: only a snapshot makes up for that.
    pub(super) fn miss_record<M: Memory, J: Journal>(&mut self, local: &Local<M, J>) {
        if local.durability() != Durability::Volatile {
            self.unsaved = Some(self.applied.slot());
            self.snapshot_wanted = true;
        }
    }
}
