//! How a ballot's configuration is matched, and how older ones become garbage: this node as a
//! candidate or leader, and as a matchmaker.

use super::*;
use crate::quorum::place_of;

impl Matching {
    /// About to ask.
    pub(super) fn new(ballot: Ballot, configuration: Configuration, now_ns: u64) -> Self {
        Self {
            ballot,
            bytes: configuration.to_bytes(),
            configuration,
            answered: Voters::default(),
            found: Vec::new(),
            garbage: Ballot::NONE,
            before: Ballot::NONE,
            since_ns: now_ns,
            sent_ns: 0,
            tries: 0,
        }
    }

    /// The matchmaker at `place` has written it down.
    fn note(&mut self, place: usize, reply: &Header, configurations: Vec<Configuration>) {
        self.answered.add(place);
        self.before = self.before.max(reply.vote_ballot);
        self.garbage = self.garbage.max(Ballot(reply.watermark));
        for one in configurations {
            if self.found.iter().all(|other| other.version != one.version) {
                self.found.push(one);
            }
        }
    }

    /// Whether nobody can have chosen anything since the phase 1 of `ballot`, an earlier one of the
    /// same node, but that ballot itself.
    pub(super) fn follows(&self, ballot: Ballot) -> bool {
        self.before <= ballot || mutated(Mutation::BypassUnchecked)
    }

    /// Whether any two that are told so share a matchmaker.
    fn is_complete(&self) -> bool {
        self.answered.count() > self.configuration.matchmakers.len() / 2
    }

    /// The other configurations in which something may be chosen still.
    fn earlier(&mut self) -> Vec<Configuration> {
        let mut found = core::mem::take(&mut self.found);
        let own = self.configuration.version;
        found.retain(|one| one.version >= self.garbage && one.version != own);
        found
    }
}

impl<S: StateMachine> Replica<S> {
    fn is_matchmaker(&self) -> bool {
        let own = (self.config.node, self.config.incarnation);
        let mut matchmakers = self.register.newest.matchmakers.iter();
        matchmakers.any(|member| (member.node, member.incarnation) == own)
    }

    /// Writes the register down. What is used before that would be forgotten by the next life.
    pub(super) fn keep_register<I: Io>(&self, io: &mut I) -> bool {
        mutated(Mutation::MatchmakerForgets)
            || io.keep_register(self.config.group, &self.register.to_bytes())
    }

    // As a matchmaker.

    pub(super) fn asked_to_match<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        from: SocketAddr,
        header: &Header,
        value: &[u8],
    ) {
        let Some((configuration, _)) = Configuration::read(value) else {
            return;
        };
        // Another life of this node may have been a matchmaker; this one remembers nothing of it.
        if header.incarnation != self.config.incarnation {
            return;
        }
        self.election.round = self.election.round.max(header.ballot.round());
        let asker = Incarnation(header.watermark as u32);
        let answer = self.match_ballot(turn.io, header.ballot, asker, &configuration);
        if let Some((reply, value)) = answer {
            let reply = Header {
                nonce: header.nonce,
                ..reply
            };
            turn.io.send(from, &reply, &value);
        }
    }

    fn match_ballot<I: Io>(
        &mut self,
        io: &mut I,
        ballot: Ballot,
        asker: Incarnation,
        configuration: &Configuration,
    ) -> Option<(Header, Vec<u8>)> {
        if !self.is_matchmaker() {
            return None;
        }
        let kept = self.register.matchmaker.clone();
        let mut value = Vec::new();
        let mut reply = Header {
            incarnation: self.config.incarnation,
            ballot,
            ..Header::new(Kind::Matched, self.config.group, self.config.node)
        };
        match self
            .register
            .matchmaker
            .handle_match(ballot, asker, configuration)
        {
            Match::Matched {
                before,
                garbage,
                configurations,
            } => {
                (reply.vote_ballot, reply.watermark) = (before, garbage.0);
                for one in configurations {
                    one.append(&mut value);
                }
            }
            Match::Refused { highest, newest } => {
                (reply.kind, reply.vote_ballot) = (Kind::Unmatched, highest);
                if let Some(newest) = newest.filter(|one| one.version > configuration.version) {
                    newest.append(&mut value);
                }
            }
            Match::Full => return None,
        }
        reply.length = value.len() as u16;
        if self.register.matchmaker != kept && !self.keep_register(io) {
            self.register.matchmaker = kept;
            return None;
        }
        Some((reply, value))
    }

    pub(super) fn asked_to_collect<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        from: SocketAddr,
        header: &Header,
    ) {
        if header.incarnation == self.config.incarnation
            && self.collect(turn.io, Ballot(header.watermark))
        {
            let reply = Header {
                kind: Kind::Collected,
                sender: self.config.node,
                length: 0,
                ..*header
            };
            turn.io.send(from, &reply, &[]);
        }
    }

    fn collect<I: Io>(&mut self, io: &mut I, version: Ballot) -> bool {
        if !self.is_matchmaker() {
            return false;
        }
        let kept = self.register.matchmaker.clone();
        self.register.matchmaker.collect(version);
        if self.register.matchmaker != kept && !self.keep_register(io) {
            self.register.matchmaker = kept;
            return false;
        }
        true
    }

    // As a candidate or leader.

    /// When the matchmakers are to be asked again, or for the first time.
    pub(super) fn matching_due_ns(&self, lead: &Lead) -> u64 {
        let resend_ns = self.config.leader.resend_ns;
        let asked = lead.matching.as_ref().or(lead.next.as_ref());
        let asked = asked.map(|matching| (matching.sent_ns, matching.tries));
        let collecting = lead.collecting.filter(|one| one.sent_ns != 0);
        let collecting = collecting.map(|one| (one.sent_ns, one.tries));
        let due = |(sent_ns, tries): (u64, u32)| match sent_ns {
            0 => 0,
            _ => sent_ns + (resend_ns << tries.min(5)),
        };
        asked
            .into_iter()
            .chain(collecting)
            .map(due)
            .min()
            .unwrap_or(u64::MAX)
    }

    pub(super) fn ask_matchmakers<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
    ) {
        let Some(lead) = &mut self.lead else { return };
        let stale = |next: &Matching| turn.now_ns.saturating_sub(next.since_ns) > TRANSFER_NS;
        if lead.next.as_ref().is_some_and(stale) {
            lead.next = None;
        }
        let Some(matching) = lead.matching.as_mut().or(lead.next.as_mut()) else {
            return;
        };
        let resend_ns = self.config.leader.resend_ns << matching.tries.min(5);
        if matching.sent_ns != 0 && turn.now_ns < matching.sent_ns + resend_ns {
            return;
        }
        matching.tries += u32::from(matching.sent_ns != 0);
        matching.sent_ns = turn.now_ns.max(1);
        let own = (self.config.node, self.config.incarnation);
        let header = Header {
            epoch: matching.configuration.membership.epoch,
            ballot: matching.ballot,
            watermark: self.config.incarnation.0.into(),
            length: matching.bytes.len() as u16,
            ..Header::new(Kind::Match, self.config.group, self.config.node)
        };
        let mut asks_own = false;
        for (place, member) in matching.configuration.matchmakers.iter().enumerate() {
            if (member.node, member.incarnation) == own {
                asks_own = true;
            } else if !matching.answered.has(place) {
                let incarnation = member.incarnation;
                let header = Header {
                    incarnation,
                    ..header
                };
                turn.io.send(member.address, &header, &matching.bytes);
            }
        }
        if asks_own {
            let (ballot, configuration) = (matching.ballot, matching.configuration.clone());
            let own = self.config.incarnation;
            if let Some((reply, value)) = self.match_ballot(turn.io, ballot, own, &configuration) {
                self.matched(turn, &reply, &value);
            }
        }
    }

    /// A matchmaker has answered.
    pub(super) fn matched<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        reply: &Header,
        value: &[u8],
    ) {
        let Some(lead) = &mut self.lead else { return };
        let mut asked = lead.matching.as_mut().or(lead.next.as_mut());
        let Some(matching) = asked.take_if(|matching| matching.ballot == reply.ballot) else {
            return;
        };
        let place = place_of(&matching.configuration.matchmakers, reply);
        let (Some(place), Some(configurations)) = (place, Configuration::read_all(value)) else {
            return;
        };
        if reply.kind == Kind::Unmatched {
            return self.unmatched(turn, reply, configurations);
        }
        matching.note(place, reply, configurations);
        if !matching.is_complete() {
            return;
        }
        if lead.matching.is_some() {
            self.begin_phase1(turn);
        } else {
            self.switch(turn);
        }
    }

    /// Another ballot or configuration is ahead of this candidate's.
    fn unmatched<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        reply: &Header,
        configurations: Vec<Configuration>,
    ) {
        self.election.round = self.election.round.max(reply.vote_ballot.round());
        let newest = configurations.into_iter().max_by_key(|one| one.version);
        if newest.is_some_and(|newest| self.adopt(turn, newest)) {
            if self.is_voter() {
                self.campaign(turn);
            }
            return;
        }
        let Some(lead) = &mut self.lead else { return };
        if reply.vote_ballot < reply.ballot {
            return;
        }
        if lead.matching.is_some() {
            self.step_down(turn);
        } else {
            lead.next = None;
        }
    }

    /// A majority of the matchmakers has written the ballot's configuration down: whatever was
    /// chosen before is in the ones that they told.
    fn begin_phase1<M: Memory, J: Journal, I: Io>(&mut self, turn: &mut Turn<'_, M, J, I>) {
        let Some(lead) = &mut self.lead else { return };
        let Some(mut matching) = lead.matching.take() else {
            return;
        };
        let earlier = matching.earlier();
        let mut electorate = Electorate::of(matching.configuration.membership);
        let asks = !mutated(Mutation::EarlierQuorumNotAsked);
        if asks && !earlier.iter().all(|one| electorate.add(&one.membership)) {
            return self.step_down(turn);
        }
        lead.collecting = (!earlier.is_empty()).then(Collecting::default);
        self.sit(electorate);
    }

    /// Makes `electorate` the leader's.
    pub(super) fn sit(&mut self, electorate: Electorate) {
        let Some(lead) = &mut self.lead else { return };
        let own = |member: &Member| {
            (member.node, member.incarnation) == (self.config.node, self.config.incarnation)
        };
        lead.place = electorate.members().position(own);
        let before = core::mem::replace(&mut lead.electorate, electorate);
        let members = &lead.electorate.membership.members;
        let known = |member: &Member| {
            let same = |other: &Member| {
                (other.node, other.incarnation) == (member.node, member.incarnation)
            };
            let place = before.membership.members.iter().position(same)?;
            lead.progress.get(place).copied()
        };
        let progress = members
            .iter()
            .map(|member| known(member).unwrap_or_default());
        lead.progress = progress.collect();
        lead.tell_ns = 0;
    }

    /// Has older configurations forgotten once nothing depends on them.
    pub(super) fn collect_garbage<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
    ) {
        let resend_ns = self.config.leader.resend_ns;
        let Some(lead) = &mut self.lead else { return };
        let is_safe = lead.is_safe_alone();
        let Some(collecting) = &mut lead.collecting else {
            return;
        };
        let due_ns = collecting.sent_ns + (resend_ns << collecting.tries.min(5));
        if !is_safe || collecting.sent_ns != 0 && turn.now_ns < due_ns {
            return;
        }
        collecting.tries += u32::from(collecting.sent_ns != 0);
        collecting.sent_ns = turn.now_ns.max(1);
        let answered = collecting.answered;
        let own = (self.config.node, self.config.incarnation);
        let version = self.register.newest.version;
        let header = Header {
            epoch: self.register.newest.membership.epoch,
            ballot: lead.leader.ballot(),
            watermark: version.0,
            ..Header::new(Kind::Garbage, self.config.group, self.config.node)
        };
        let mut asks_own = false;
        for (place, member) in self.register.newest.matchmakers.iter().enumerate() {
            if (member.node, member.incarnation) == own {
                asks_own = true;
            } else if !answered.has(place) {
                let incarnation = member.incarnation;
                let header = Header {
                    incarnation,
                    ..header
                };
                turn.io.send(member.address, &header, &[]);
            }
        }
        if asks_own && self.collect(turn.io, version) {
            let incarnation = self.config.incarnation;
            self.collected(&Header {
                incarnation,
                ..header
            });
        }
    }

    /// A matchmaker has forgotten them.
    pub(super) fn collected(&mut self, reply: &Header) {
        let Some(lead) = &mut self.lead else { return };
        let matchmakers = &self.register.newest.matchmakers;
        let (Some(place), Some(collecting)) = (place_of(matchmakers, reply), &mut lead.collecting)
        else {
            return;
        };
        if reply.ballot != lead.leader.ballot() {
            return;
        }
        collecting.answered.add(place);
        if collecting.answered.count() > matchmakers.len() / 2 {
            lead.collecting = None;
            lead.electorate.forget_earlier();
        }
    }
}

impl Lead {
    /// Whether this ballot's configuration holds everything that was ever chosen, so that nobody
    /// needs an older one.
    ///
    /// What may have been chosen by an older one above the first slot of the ballot must be chosen
    /// again in it. What lies below must be out of the reach of whoever comes next: its acceptors
    /// know a trim above it, durably and a phase-2 quorum of them, so that a candidate that lags
    /// learns it instead of finding nothing; and replicas enough to survive f failures can teach.
    fn is_safe_alone(&self) -> bool {
        let Some(collecting) = self.collecting else {
            return false;
        };
        if !self.leader.leads() {
            return false;
        }
        if mutated(Mutation::GarbageEarly) {
            return true;
        }
        let membership = &self.electorate.membership;
        let first = self.leader.from();
        let mut trimmed = Voters::default();
        for (place, member) in self.progress.iter().enumerate() {
            if member.trim >= first || mutated(Mutation::GarbageUntrimmed) {
                trimmed.add(place);
            }
        }
        let voters = membership.voters();
        let places = self.progress.iter().enumerate();
        let level =
            places.filter(|(place, member)| voters.has(*place) && member.applied.next() >= first);
        self.leader.decided() >= collecting.upto.max(self.leader.inherited())
            && self.electorate.has_phase2(trimmed, 0)
            && level.count() > voters.count() / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::configuration::testing::configuration;

    fn matching() -> Matching {
        let ballot = Ballot::new(9, NodeId(1));
        Matching::new(ballot, configuration(9, &[1, 2, 4]), 0)
    }

    fn matched(before: Ballot, garbage: u64) -> Header {
        Header {
            vote_ballot: before,
            watermark: Ballot::new(garbage, NodeId(1)).0,
            ..Header::new(Kind::Matched, GroupId(0), NodeId(2))
        }
    }

    #[test]
    fn a_leader_goes_on_without_phase_1_if_no_ballot_came_in_between() {
        let own = Ballot::new(7, NodeId(1));
        let mut matching = matching();
        matching.note(0, &matched(own, 0), Vec::new());
        assert!(!matching.is_complete(), "one of three");
        matching.note(1, &matched(Ballot::new(5, NodeId(2)), 0), Vec::new());
        assert!(matching.is_complete() && matching.follows(own));
        matching.note(2, &matched(Ballot::new(8, NodeId(3)), 0), Vec::new());
        assert!(!matching.follows(own), "ballot 8 may have chosen something");
    }

    #[test]
    fn what_one_matchmaker_calls_garbage_nobody_asks() {
        let mut matching = matching();
        let known = [configuration(2, &[1, 2, 3]), configuration(6, &[1, 2, 5])];
        matching.note(0, &matched(Ballot::NONE, 0), known.to_vec());
        matching.note(
            1,
            &matched(Ballot::NONE, 6),
            [configuration(9, &[1, 2, 4])].to_vec(),
        );
        let earlier: Vec<_> = matching
            .earlier()
            .iter()
            .map(|one| one.version.round())
            .collect();
        assert_eq!(earlier, [6]);
    }
}
