//! How a replica comes to lead, and hands leadership on.

use super::*;
use crate::quorum::place_of;

impl<S: StateMachine> Replica<S> {
    pub(super) fn asked_pre_vote<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        from: SocketAddr,
        request: &Header,
    ) {
        let Some(view) = turn.local.view(self.config.group) else {
            return;
        };
        if self
            .register
            .newest
            .membership
            .place(request.sender)
            .is_none()
        {
            return;
        }
        // One heartbeat serves all groups: a node that leads another one is heard of although it
        // asks here because it has ceased to lead.
        let decided = view.decided.ballot;
        if decided.node() == request.sender && request.ballot > decided {
            self.election.ceased = decided;
        }
        if let Some(lead) = &mut self.lead
            && lead.leader.leads()
        {
            // Nobody answers heartbeats, so a leader that was superseded, and that nobody writes
            // to, would go on for ever. Whoever asks may have promised more than this leader's
            // ballot.
            lead.leader.ask_barrier();
            // It may have begun anew, with less than it had.
            let place = self.register.newest.membership.place(request.sender);
            if let Some(there) = place.and_then(|place| lead.progress.get_mut(place)) {
                *there = Progress::default();
                lead.tell_ns = lead.tell_ns.min(turn.now_ns);
            }
            return;
        }
        let heard_ns = self.leader_seen_ns(turn.local);
        if request.ballot <= view.promised || !self.election.is_silent(turn.now_ns, heard_ns) {
            return;
        }
        let reply = Header {
            kind: Kind::PreVoteGranted,
            sender: self.config.node,
            incarnation: turn.local.acceptor().incarnation,
            epoch: self.register.newest.membership.epoch,
            length: 0,
            ..*request
        };
        turn.io.send(from, &reply, &[]);
    }

    pub(super) fn pre_vote_granted<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        reply: &Header,
    ) {
        let membership = &self.register.newest.membership;
        // It promises nothing: which configuration the other one knows, the matchmakers find out.
        let Some(place) = place_of(&membership.members, reply) else {
            return;
        };
        let Some(pre_vote) = &mut self.election.pre_vote else {
            return;
        };
        if reply.nonce != pre_vote.nonce || reply.ballot != pre_vote.ballot {
            return;
        }
        pre_vote.voters.add(place);
        if membership.has_phase1(pre_vote.voters) {
            self.campaign(turn);
        }
    }

    pub(super) fn ask_pre_vote<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
    ) {
        let request = self.pre_vote_request(turn.local);
        let mut voters = Voters::default();
        if let Some(place) = self.place {
            voters.add(place);
        }
        let until_ns = turn.now_ns + self.election.pre_vote_ns(self.leader_seen_ns(turn.local));
        self.election.pre_vote = Some(PreVote {
            ballot: request.ballot,
            voters,
            nonce: request.nonce,
            until_ns,
        });
        if self.register.newest.membership.has_phase1(voters) {
            return self.campaign(turn);
        }
        for member in self.register.newest.membership.others(self.config.node) {
            turn.io.send(member.address, &request, &[]);
        }
    }

    fn pre_vote_request<M: Memory, J: Journal>(&mut self, local: &Local<M, J>) -> Header {
        // Nobody grants what lies below a promise, and of a leader that died before this process
        // began only the region may know.
        let promised = local.view(self.config.group).map(|view| view.promised);
        let known = promised.map_or(0, Ballot::round).max(self.election.round);
        Header {
            ballot: Ballot::new(known + 1, self.config.node),
            nonce: self.election.nonce(),
            epoch: self.register.newest.membership.epoch,
            ..Header::new(Kind::PreVote, self.config.group, self.config.node)
        }
    }

    /// Somebody takes this node for the leader, which it is not: a pre-vote that no grant is counted
    /// for tells so. Without it two nodes that lead other groups could each follow the other here.
    pub(super) fn disclaim<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        report: &Header,
    ) {
        let request = self.pre_vote_request(turn.local);
        if let Some(member) = self.register.newest.membership.member(report.sender) {
            turn.io.send(member.address, &request, &[]);
        }
    }

    /// A ballot above all that this node knows, which no life of it has used. `None` if that cannot
    /// be written down now.
    pub(super) fn draw_ballot<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
    ) -> Option<Ballot> {
        let promised = turn.local.view(self.config.group).map(|view| view.promised);
        let own = self.lead.as_ref().map(|lead| lead.leader.ballot());
        let known = promised.into_iter().chain(own).map(Ballot::round);
        let round = known.fold(self.election.round, u64::max) + 1;
        if round > Ballot::MAX_ROUND
            || !mutated(Mutation::BallotReused) && !turn.io.reserve_rounds(round)
        {
            return None;
        }
        self.election.round = round;
        Some(Ballot::new(round, self.config.node))
    }

    pub(super) fn campaign<M: Memory, J: Journal, I: Io>(&mut self, turn: &mut Turn<'_, M, J, I>) {
        self.election.pre_vote = None;
        let Some(ballot) = self.draw_ballot(turn) else {
            return self.election.wait(turn.now_ns);
        };
        self.tally.campaigns += 1;
        let configuration = self.register.newest.clone();
        let electorate = Electorate::of(configuration.membership.clone());
        let leader = Leader::new(
            ballot,
            self.config.group,
            self.config.window,
            self.config.value_bytes,
            self.config.leader,
            self.config.lease_ns,
            self.applied.slot(),
        );
        self.lead = Some(Lead {
            leader,
            progress: vec![Progress::default(); configuration.membership.members.len()],
            matching: Some(Matching::new(ballot, Ballot::NONE, configuration)),
            next: None,
            electorate,
            place: self.place,
            collecting: None,
            renews: false,
            succession: None,
            succeed_ns: 0,
            tell_ns: 0,
            tried: Voters::default(),
            leave_ns: 0,
            since_ns: turn.now_ns,
            led_ns: turn.now_ns,
            driven_ns: turn.now_ns,
            learned: (self.applied.slot(), 0),
            admitted: BTreeMap::new(),
            routes: BTreeMap::new(),
            openers: BTreeMap::new(),
            reads: VecDeque::new(),
            clock_ms: 0,
            transfer: None,
        });
    }

    pub(super) fn asked_to_transfer<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        from: SocketAddr,
        header: &Header,
    ) {
        if header.flags.has(Flags::NOW) {
            self.called = Some(Call {
                leader: header.sender,
                slot: header.slot,
                until_ns: turn.now_ns + self.config.leader.heartbeat_ns * CALL_BEATS,
            });
            return;
        }
        let target = NodeId(header.vote_ballot.0 as u16);
        let member = self.register.newest.membership.member(target);
        let known = member.is_some_and(|member| member.role == MemberRole::Voter);
        match &mut self.lead {
            Some(lead) if lead.leader.leads() && known => {
                if target != self.config.node {
                    lead.hand_to(target, turn.now_ns, self.config.lease_ns);
                }
                let ack = Header {
                    kind: Kind::Ack,
                    sender: self.config.node,
                    incarnation: turn.local.acceptor().incarnation,
                    length: 0,
                    ..*header
                };
                turn.io.send(from, &ack, &[]);
            }
            _ => self.redirect(turn, from, header),
        }
    }

    /// Hands over to a member that comes before this node in this group and has all that this leader
    /// has. True if it does so from here on.
    pub(crate) fn make_way<M: Memory, J: Journal>(
        &mut self,
        now_ns: u64,
        local: &Local<M, J>,
    ) -> bool {
        let (group, node) = (self.config.group, self.config.node);
        let settle_ns = SETTLE_TIMEOUTS * self.config.election.timeout_ns;
        let Some(lead) = &mut self.lead else {
            return false;
        };
        let is_busy = lead.matching.is_some() || lead.next.is_some() || lead.collecting.is_some();
        if !lead.leader.leads()
            || is_busy
            || lead.transfer.is_some()
            || now_ns.saturating_sub(lead.led_ns) < settle_ns
        {
            return false;
        }
        let membership = &lead.electorate.membership;
        let Some(own) = membership.member(node) else {
            return false;
        };
        let own = precedence(membership, group, own);
        let ready = |(place, member): (usize, &Member)| {
            let there = lead.progress.get(place)?;
            let heard_ns = local.seen_ns(member.node);
            let is_ready = member.role == MemberRole::Voter
                && there.follows == lead.leader.ballot()
                && there.applied.0 + self.config.window / 4 >= lead.leader.decided().0
                && now_ns.saturating_sub(heard_ns) < self.config.election.timeout_ns;
            is_ready.then(|| (precedence(membership, group, member), member.node))
        };
        let best = membership
            .members
            .iter()
            .enumerate()
            .filter_map(ready)
            .max();
        let Some((_, target)) = best.filter(|(claim, _)| *claim > own) else {
            return false;
        };
        // If it fails, the others have their turns first.
        lead.led_ns = now_ns;
        lead.hand_to(target, now_ns, self.config.lease_ns);
        true
    }

    /// The leader is `node`, which has to speak in this very group from now on to be heard of.
    pub(crate) fn doubt(&mut self, now_ns: u64, node: NodeId) {
        if self.doubted != node && self.lead.is_none() {
            self.election.wait(now_ns);
        }
        self.doubted = node;
    }

    /// It is enough again to hear of `node` at all.
    pub(crate) fn trust(&mut self, node: NodeId) {
        if self.doubted == node {
            self.doubted = NodeId::NONE;
        }
    }

    /// Nothing was heard of the leader's node for so long, and then it was.
    pub(crate) fn leader_was_late(&mut self, now_ns: u64, late_ns: u64) {
        if self.lead.is_none() {
            self.election.was_alive(now_ns, late_ns);
        }
    }

    /// Goes on with a leadership transfer: once the successor has applied nearly everything, nothing
    /// more is proposed, and once all of that is decided, it is told to campaign.
    pub(super) fn hand_over<M: Memory, J: Journal, I: Io>(&mut self, turn: &mut Turn<'_, M, J, I>) {
        let Some(lead) = &mut self.lead else { return };
        let Some(transfer) = &mut lead.transfer else {
            return;
        };
        if turn.now_ns >= transfer.until_ns {
            lead.transfer = None;
            return;
        }
        let target = transfer.target;
        let place = self.register.newest.membership.place(target);
        let there = place.and_then(|place| lead.progress.get(place));
        let decided = lead.leader.decided();
        // What it reports is a heartbeat old.
        let near = self.config.window / 8;
        transfer.has_stopped |= there.is_some_and(|there| there.applied.0 + near >= decided.0);
        if !transfer.has_stopped || !lead.leader.is_idle() || turn.now_ns < transfer.ask_ns {
            return;
        }
        lead.leader.hurry();
        transfer.ask_ns = turn.now_ns + self.config.leader.heartbeat_ns;
        if let Some(member) = self.register.newest.membership.member(target) {
            let header = Header {
                ballot: lead.leader.ballot(),
                vote_ballot: Ballot(u64::from(target.0)),
                slot: decided,
                flags: Flags::NOW,
                ..Header::new(Kind::Transfer, self.config.group, self.config.node)
            };
            turn.io.send(member.address, &header, &[]);
        }
    }

    /// Takes over from the leader that asked for it, once this node has applied all that it decided.
    pub(super) fn heed<M: Memory, J: Journal, I: Io>(&mut self, turn: &mut Turn<'_, M, J, I>) {
        let Some(call) = self.called else { return };
        self.learn(turn);
        let follows = self.leader(turn.now_ns, turn.local) == Some(call.leader);
        if !follows || self.lead.is_some() || !self.is_voter() || turn.now_ns >= call.until_ns {
            self.called = None;
        } else if self.applied.slot() >= call.slot {
            self.called = None;
            self.campaign(turn);
        }
    }

    pub(super) fn watch<M: Memory, J: Journal, I: Io>(&mut self, turn: &mut Turn<'_, M, J, I>) {
        match &self.election.pre_vote {
            Some(pre_vote) if turn.now_ns < pre_vote.until_ns => {}
            Some(_) => {
                self.election.wait(turn.now_ns);
                // Those that it asked may no longer vote, or not know yet that it does.
                self.ask_configuration(turn);
            }
            // Others campaign first.
            None if !turn.may_campaign => self.election.looked(turn.now_ns),
            None => {
                let seen_ns = self.leader_seen_ns(turn.local);
                if !self.election.is_due(turn.now_ns, seen_ns) {
                    return;
                }
                if !self.is_voter() {
                    // Whoever made it a voter may have died before this node heard of it.
                    self.election.wait(turn.now_ns);
                    return self.ask_configuration(turn);
                }
                self.ask_pre_vote(turn);
                if self.lead.is_some() {
                    self.drive(turn);
                }
            }
        }
    }

    /// A host, asked at `asked_ns`, says that no process listens at `address` any more.
    pub fn refused<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        asked_ns: u64,
        address: SocketAddr,
    ) {
        let leader = self.followed(turn.local);
        let leader = leader.and_then(|node| self.register.newest.membership.member(node));
        if self.lead.is_none() && leader.is_some_and(|leader| leader.address == address) {
            self.election.gone(asked_ns);
        }
    }

    pub(super) fn election_due_ns<M: Memory, J: Journal>(&self, local: &Local<M, J>) -> u64 {
        let seen_ns = self.leader_seen_ns(local);
        self.election.due_ns(seen_ns)
    }

    /// Whether who decided last may still lead: nobody leads with a ballot below the one promised,
    /// and what this node has decided itself, here before or in another group now, says nothing of a
    /// leader to follow.
    pub(super) fn may_be_led(&self, view: &GroupView) -> bool {
        let ballot = view.decided.ballot;
        ballot >= view.promised
            && ballot != self.election.ceased
            && ballot.node() != self.config.node
    }

    /// Who may lead this group, by what this node's acceptor has seen.
    fn followed<M: Memory, J: Journal>(&self, local: &Local<M, J>) -> Option<NodeId> {
        let view = local.view(self.config.group)?;
        self.may_be_led(&view).then(|| view.decided.ballot.node())
    }

    /// When the leader of this group was last heard of, if it may still lead.
    fn leader_seen_ns<M: Memory, J: Journal>(&self, local: &Local<M, J>) -> u64 {
        let view = local.view(self.config.group);
        view.map_or(0, |view| self.seen_ns(local, &view))
    }

    fn seen_ns<M: Memory, J: Journal>(&self, local: &Local<M, J>, view: &GroupView) -> u64 {
        if !self.may_be_led(view) {
            0
        } else if self.doubted == view.decided.ballot.node() {
            self.spoken_ns
        } else {
            local.seen_ns(view.decided.ballot.node())
        }
    }

    /// Notes what the region tells of candidates and leaders: another engine may have answered them,
    /// and then no packet came here.
    pub(super) fn observe<M: Memory, J: Journal, I: Io>(&mut self, turn: &mut Turn<'_, M, J, I>) {
        let Some(view) = turn.local.view(self.config.group) else {
            return;
        };
        let seen_ns = self.seen_ns(turn.local, &view);
        let before = self.observed.replace(Observed {
            promised: view.promised,
            seen_ns,
        });
        self.check_superseded(turn);
        // What an earlier life left is no news.
        let Some(before) = before else { return };
        if view.promised > before.promised && self.lead.is_none() {
            self.election.wait(turn.now_ns);
        }
        if seen_ns > before.seen_ns {
            self.led(turn, view.decided.ballot);
        }
    }

    /// The leader of `ballot` was heard of.
    pub(super) fn led<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        ballot: Ballot,
    ) {
        let seen_ns = turn.local.seen_ns(ballot.node());
        self.election.led(turn.now_ns, ballot, seen_ns);
        if self.lead.is_none() {
            self.tell_inquirers(turn, ballot);
        }
    }

    pub(super) fn check_superseded<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
    ) {
        let Some(lead) = &self.lead else { return };
        let promised = turn.local.view(self.config.group).map(|view| view.promised);
        if promised.is_some_and(|promised| promised > lead.leader.ballot()) {
            if lead.leader.leads() {
                // The others took a stalled host for a dead one. They may be as wrong again.
                // One that rested had no reason to be driven.
                let stalled_ns = match lead.leader.rests() {
                    true => 0,
                    false => turn.now_ns.saturating_sub(lead.driven_ns),
                };
                self.election.was_alive(turn.now_ns, stalled_ns);
                let stalled_us = u32::try_from(stalled_ns / 1_000).unwrap_or(u32::MAX);
                self.stall = (stalled_us, STALL_REPORTS);
            }
            self.step_down(turn);
        }
    }

    /// What this node has decided as the leader.
    pub(super) fn decided_record(&self) -> Option<Header> {
        let leader = &self.lead.as_ref()?.leader;
        (leader.decided() >= leader.from()).then(|| Header {
            slot: leader.decided(),
            ballot: leader.ballot(),
            vote_ballot: Ballot(leader.from().0),
            watermark: leader.trim().0,
            epoch: self.register.newest.membership.epoch,
            ..Header::new(Kind::Decide, self.config.group, self.config.node)
        })
    }

    pub(super) fn step_down<M: Memory, J: Journal, I: Io>(&mut self, turn: &mut Turn<'_, M, J, I>) {
        // What was decided last may never have been announced, and the next leader's Decide begins
        // above it.
        if let Some(record) = self.decided_record()
            && !turn.local.record(&record, &[])
        {
            self.miss_record(turn.local);
        }
        self.lead = None;
        self.own_replies.clear();
        self.election.wait(turn.now_ns);
    }
}
