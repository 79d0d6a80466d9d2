//! What a replica does for the leader that it is: sends, counts, applies, trims.

use super::*;
use crate::quorum::place_of;

impl<S: StateMachine> Replica<S> {
    /// A reply of the member at `place`, this node's own acceptor included.
    pub fn answered<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        place: usize,
        reply: &Header,
        value: &[u8],
    ) {
        let Some(lead) = &mut self.lead else { return };
        let Lead {
            leader, electorate, ..
        } = lead;
        let heard = match reply.kind {
            Kind::Promise => leader.promised(place, reply, electorate),
            Kind::Vote | Kind::Empty => leader.fetched(place, reply, value),
            Kind::Outside if leader.leads() => {
                let trim = Slot(reply.watermark);
                if trim > leader.decided().next() {
                    Heard::Behind(trim)
                } else {
                    Heard::Fine
                }
            }
            Kind::Outside => leader.fetched(place, reply, value),
            Kind::Accepted => {
                leader.accepted(place, reply);
                Heard::Fine
            }
            Kind::Ack => {
                leader.acknowledged(place, reply, electorate);
                Heard::Fine
            }
            Kind::Nack if mutated(Mutation::NackCounted) => {
                leader.accepted(place, reply);
                Heard::Fine
            }
            Kind::Nack => leader.refused(turn.now_ns, reply),
            _ => Heard::Fine,
        };
        match heard {
            Heard::Fine => {}
            Heard::Superseded(promised) => {
                // A sealed acceptor has promised the maximum; it says nothing about rounds.
                if promised != Ballot::SEALED {
                    self.election.round = self.election.round.max(promised.round());
                }
                self.step_down(turn);
            }
            Heard::Behind(trim) => {
                // `from` is constant within a ballot: what has to be learned now lies above it.
                let spent = leader.has_proposed();
                self.catch_up.want(turn.now_ns, trim.previous(), 0);
                if spent {
                    self.step_down(turn);
                }
            }
        }
    }

    pub(super) fn progressed<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        header: &Header,
    ) {
        let Some(place) = place_of(&self.register.newest.membership.members, header) else {
            return;
        };
        let known = self.knowledge();
        let Some(lead) = &mut self.lead else {
            return self.disclaim(turn, header);
        };
        if let Some(progress) = lead.progress.get_mut(place) {
            let (version, generation) = known;
            if header.vote_ballot < version || header.epoch.0 < generation {
                lead.tell_ns = lead
                    .tell_ns
                    .min(turn.now_ns + self.config.leader.heartbeat_ns);
            }
            *progress = Progress {
                applied: Slot(header.watermark),
                trim: header.slot,
                knows: (header.vote_ballot, header.epoch.0),
                follows: header.ballot,
                heard_ns: turn.now_ns,
            };
        }
        if header.nonce != 0 {
            let stalled_ns = u64::from(header.nonce) * 1_000;
            self.election.was_alive(turn.now_ns, stalled_ns);
        }
    }

    /// Raises the trim: past slots that f + 1 replicas could restore, and, while the window allows,
    /// that every replica heard of lately has applied.
    pub(super) fn trim<M: Memory, J: Journal, I: Io>(&mut self, turn: &mut Turn<'_, M, J, I>) {
        let (recoverable, trimmed) = (self.recoverable, self.trimmed);
        let knows = self.knowledge();
        let Some(lead) = &mut self.lead else { return };
        if let Some(own) = lead.place.and_then(|place| lead.progress.get_mut(place)) {
            *own = Progress {
                applied: recoverable,
                trim: trimmed,
                knows,
                follows: lead.leader.ballot(),
                heard_ns: turn.now_ns,
            };
        }
        let voters = lead.electorate.membership.voters();
        let enough = if mutated(Mutation::TrimPastReplicas) {
            1
        } else {
            voters.count() / 2 + 1
        };
        let places = || lead.progress.iter().enumerate();
        let counted = places().filter(|(place, _)| voters.has(*place));
        let mut slots: Vec<u64> = counted.map(|(_, other)| other.applied.0).collect();
        slots.sort_unstable();
        let Some(safe) = slots.len().checked_sub(enough).and_then(|at| slots.get(at)) else {
            return;
        };
        let trim = lead.leader.trim();
        let members = &lead.electorate.membership.members;
        let is = |place: usize, role| members.get(place).is_some_and(|one| one.role == role);
        let live = places()
            // Witnesses apply nothing.
            .filter(|(place, _)| !is(*place, MemberRole::Witness))
            // Learners that have caught up shall not fall behind again.
            .filter(|(place, other)| voters.has(*place) || other.applied.next() >= trim)
            .filter(|(_, other)| turn.now_ns.saturating_sub(other.heard_ns) < LAGGARD_NS)
            .map(|(_, other)| other.applied.0)
            .min();
        let used = lead.leader.decided().0.saturating_sub(lead.leader.trim().0);
        let limit = if used > self.config.window / 2 {
            *safe
        } else {
            live.unwrap_or(*safe)
        };
        // Who is about to vote has what lies below the trim, and must not fall behind it.
        let next = lead.next.as_ref().map(|next| &next.configuration);
        let is_about_to_vote = |place: usize| {
            let member = members
                .get(place)
                .filter(|one| one.role == MemberRole::Learner);
            let in_next = member.zip(next);
            let in_next = in_next.and_then(|(one, next)| next.member(one.node, one.incarnation));
            in_next.is_some_and(|one| one.role == MemberRole::Voter)
        };
        let joining = places().filter(|(place, _)| is_about_to_vote(*place));
        let joining = joining.map(|(_, other)| other.applied.0).min();
        let limit = limit.min(*safe).min(joining.unwrap_or(u64::MAX));
        lead.leader.raise_trim(Slot(limit).next());
    }

    /// Whether nothing is to be said in this group: everybody who lives follows this leader, has
    /// what it decided and keeps no more than it has to. The node's own pulse tells that it lives.
    pub(super) fn may_rest<M: Memory, J: Journal>(&self, now_ns: u64, local: &Local<M, J>) -> bool {
        let Some(lead) = &self.lead else { return false };
        let leader = &lead.leader;
        let is_busy = lead.matching.is_some()
            || lead.next.is_some()
            || lead.collecting.is_some()
            || lead.succession.is_some()
            || lead.transfer.is_some()
            || !lead.reads.is_empty()
            || !self.is_voter();
        if self.config.election.pulse_ns == 0 || is_busy || !leader.is_told() {
            return false;
        }
        let knowledge = self.knowledge();
        let rests = |(place, member): (usize, &Member)| {
            if member.node == self.config.node {
                return true;
            }
            let there = lead.progress.get(place).copied().unwrap_or_default();
            let heard_ns = there.heard_ns.max(local.seen_ns(member.node));
            let has_all = there.applied >= leader.decided() || member.role == MemberRole::Witness;
            now_ns.saturating_sub(heard_ns) >= LAGGARD_NS
                || has_all
                    && there.follows == leader.ballot()
                    && there.knows == knowledge
                    && there.trim >= leader.trim()
        };
        lead.electorate.members().enumerate().all(rests)
    }

    pub(super) fn drive<M: Memory, J: Journal, I: Io>(&mut self, turn: &mut Turn<'_, M, J, I>) {
        self.tell_configuration(turn);
        self.ask_matchmakers(turn);
        self.replace_matchmakers(turn);
        self.stamp_for_machine(turn);
        // Own votes may complete a round at once (a single member, or the last vote missing), which
        // may give the next batch its turn: each pass decides something or is the last.
        loop {
            self.send_orders(turn, Leader::send);
            let decided = self.apply_decided(turn);
            if self.own_replies.is_empty() && !decided {
                break;
            }
        }
        self.serve_reads();
        self.trim(turn);
        self.collect_garbage(turn);
        self.leave(turn);
        self.hand_over(turn);
        if let Some(lead) = &mut self.lead {
            lead.driven_ns = turn.now_ns;
            let campaigning_ns = turn.now_ns.saturating_sub(lead.since_ns);
            if lead.leader.leads() {
                if lead.since_ns != u64::MAX {
                    lead.since_ns = u64::MAX;
                    self.tally.elected += 1;
                }
            } else if campaigning_ns > self.config.election.campaign_ns {
                // A candidate that has to catch up first may take longer, while it gets on.
                let pulled = self.catch_up.pulling().map_or(0, |(_, here)| here);
                let learned = (self.applied.slot(), pulled);
                if learned == lead.learned {
                    self.step_down(turn);
                } else {
                    (lead.learned, lead.since_ns) = (learned, turn.now_ns);
                }
            }
        }
        if let Some(lead) = &self.lead
            && lead.leader.leads()
            && !lead.hands_over()
            && !lead.is_early(self.applied.slot())
        {
            let ballot = lead.leader.ballot();
            self.tell_inquirers(turn, ballot);
        }
    }

    pub(super) fn send_orders<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        what: Sending,
    ) {
        let Self {
            config,
            lead,
            own_replies,
            ..
        } = self;
        let Some(lead) = lead else { return };
        if lead.matching.is_some() {
            // No acceptor hears of a ballot whose configuration is not written down.
            return;
        }
        let Lead {
            leader,
            electorate,
            place,
            ..
        } = lead;
        let Turn {
            now_ns, local, io, ..
        } = turn;
        let own_members = electorate.membership.members.len();
        what(leader, *now_ns, electorate, &mut |order| {
            let mut own = false;
            // The earlier configurations are asked what they chose; they choose no more.
            let asks_all = matches!(order.header.kind, Kind::Prepare | Kind::Fetch);
            for (index, member) in electorate.members().enumerate() {
                let wanted = match order.to {
                    To::All => true,
                    To::AllBut(voters) => !voters.has(index),
                    To::Only(voters) => voters.has(index),
                };
                if !wanted || index >= own_members && !asks_all {
                    continue;
                }
                if Some(index) == *place {
                    own = true;
                    continue;
                }
                let header = Header {
                    sender: config.node,
                    incarnation: member.incarnation,
                    epoch: electorate.membership.epoch,
                    length: order.value.len() as u16,
                    ..order.header
                };
                io.send(member.address, &header, order.value);
            }
            if own {
                let header = Header {
                    sender: config.node,
                    epoch: electorate.membership.epoch,
                    length: order.value.len() as u16,
                    ..order.header
                };
                if let Some((reply, value)) = local.step(*now_ns, Asker::Own, &header, order.value)
                {
                    own_replies.push((reply, Vec::from(value)));
                }
            }
        });
        let mut replies = core::mem::take(&mut self.own_replies);
        for (reply, value) in replies.drain(..) {
            if let Some(place) = self.lead.as_ref().and_then(|lead| lead.place) {
                self.answered(turn, place, &reply, &value);
            }
        }
        self.own_replies = replies;
    }

    /// Applies the values that a quorum has chosen. True if there was one.
    pub(super) fn apply_decided<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
    ) -> bool {
        let mut any = false;
        while let Some(lead) = &mut self.lead {
            let ballot = lead.leader.ballot();
            let decided = lead.leader.next_decided(&lead.electorate);
            let Some((value, voters)) = decided else {
                break;
            };
            any = true;
            let slot = lead.leader.decided();
            debug_assert_eq!(slot, self.applied.slot().next());
            // The others may have chosen it without this node's acceptor.
            let missing = turn.local.durability() != Durability::Volatile
                && lead.place.is_none_or(|place| !voters.has(place))
                // Another engine's votes are in no record.
                && (turn.local.is_shared()
                    || turn
                        .local
                        .vote(self.config.group, slot)
                        .is_none_or(|(own, _)| own < ballot));
            let record = Header {
                slot,
                vote_ballot: ballot,
                length: value.len() as u16,
                ..Header::new(Kind::Learn, self.config.group, self.config.node)
            };
            let missed = missing && !turn.local.record(&record, &value);
            self.apply(ballot, value);
            if missed {
                self.miss_record(turn.local);
            }
        }
        if any {
            self.advanced(turn);
        }
        any
    }
}
