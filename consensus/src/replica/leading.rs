//! What a replica does for the leader that it is: sends, counts, applies, trims.

use super::*;

impl<S: StateMachine> Replica<S> {
    /// A reply of the member at `place`, this node's own acceptor included.
    pub fn answered<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        place: usize,
        reply: &Header,
        value: &[u8],
    ) {
        let membership = &self.config.membership;
        let Some(lead) = &mut self.lead else { return };
        let leader = &mut lead.leader;
        let heard = match reply.kind {
            Kind::Promise => leader.promised(place, reply, membership),
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
                leader.acknowledged(place, reply, membership);
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
        let Some(place) = self.config.membership.voter(header) else {
            return;
        };
        let Some(lead) = &mut self.lead else {
            return self.disclaim(turn, header);
        };
        if let Some(progress) = lead.progress.get_mut(place) {
            *progress = Progress {
                applied: Slot(header.watermark),
                heard_ns: turn.now_ns,
            };
        }
        if header.slot != Slot::NONE {
            self.election.was_alive(turn.now_ns, header.slot.0);
        }
    }

    /// Raises the trim: past slots that f + 1 replicas could restore, and, while the window allows,
    /// that every replica heard of lately has applied.
    pub(super) fn trim<M: Memory, J: Journal, I: Io>(&mut self, turn: &mut Turn<'_, M, J, I>) {
        let recoverable = self.recoverable;
        let place = self.place;
        let Some(lead) = &mut self.lead else { return };
        if let Some(own) = lead.progress.get_mut(place) {
            *own = Progress {
                applied: recoverable,
                heard_ns: turn.now_ns,
            };
        }
        let enough = if mutated(Mutation::TrimPastReplicas) {
            1
        } else {
            lead.progress.len() / 2 + 1
        };
        let mut slots: Vec<u64> = lead.progress.iter().map(|other| other.applied.0).collect();
        slots.sort_unstable();
        let Some(safe) = slots.len().checked_sub(enough).and_then(|at| slots.get(at)) else {
            return;
        };
        let live = lead
            .progress
            .iter()
            .filter(|other| turn.now_ns.saturating_sub(other.heard_ns) < LAGGARD_NS)
            .map(|other| other.applied.0)
            .min();
        let used = lead.leader.decided().0.saturating_sub(lead.leader.trim().0);
        let limit = if used > self.config.window / 2 {
            *safe
        } else {
            live.unwrap_or(*safe)
        };
        lead.leader.raise_trim(Slot(limit.min(*safe)).next());
    }

    pub(super) fn drive<M: Memory, J: Journal, I: Io>(&mut self, turn: &mut Turn<'_, M, J, I>) {
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
                let pulled = self.catch_up.pulling().map_or(0, |(_, bytes, _)| bytes);
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
            && lead.transfer.is_none()
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
            place,
            ..
        } = self;
        let Some(lead) = lead else { return };
        let Turn {
            now_ns, local, io, ..
        } = turn;
        let membership = &config.membership;
        what(&mut lead.leader, *now_ns, membership, &mut |order| {
            let mut own = false;
            for (index, member) in membership.members.iter().enumerate() {
                let wanted = match order.to {
                    To::All => true,
                    To::AllBut(voters) => !voters.has(index),
                    To::Only(voters) => voters.has(index),
                };
                if !wanted {
                    continue;
                }
                if index == *place {
                    own = true;
                    continue;
                }
                let header = Header {
                    sender: config.node,
                    incarnation: member.incarnation,
                    epoch: membership.epoch,
                    length: order.value.len() as u16,
                    ..order.header
                };
                io.send(member.address, &header, order.value);
            }
            if own {
                let header = Header {
                    sender: config.node,
                    epoch: membership.epoch,
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
            self.answered(turn, self.place, &reply, &value);
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
            let decided = lead.leader.next_decided(&self.config.membership);
            let Some((value, voters)) = decided else {
                break;
            };
            any = true;
            let slot = lead.leader.decided();
            debug_assert_eq!(slot, self.applied.slot().next());
            // The others may have chosen it without this node's acceptor.
            let missing = turn.local.durability() != Durability::Volatile
                && !voters.has(self.place)
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
