//! How a ballot's configuration is matched, and how older ones become garbage: this node as a
//! candidate or leader.

use super::*;
use crate::quorum::place_of;

impl Matching {
    /// About to ask for `ballot`; who `leads` already does so in a lower one.
    pub(super) fn new(ballot: Ballot, leads: Ballot, configuration: Configuration) -> Self {
        Self {
            ballot,
            leads,
            bytes: configuration.to_bytes(),
            configuration,
            answered: Voters::default(),
            found: Vec::new(),
            garbage: Ballot::NONE,
            before: Ballot::NONE,
            again: Again::default(),
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

    /// Which matchmakers it asks.
    pub(super) const fn generation(&self) -> u32 {
        self.configuration.matchmakers.generation
    }

    /// Whether any two that are told so share a matchmaker.
    fn is_complete(&self) -> bool {
        let matchmakers = &self.configuration.matchmakers;
        matchmakers.is_majority(self.answered.count())
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
    /// When the matchmakers are to be asked again, or for the first time.
    pub(super) fn matching_due_ns(&self, lead: &Lead) -> u64 {
        let resend_ns = self.config.leader.resend_ns;
        let generation = self.register.newest.matchmakers.generation;
        let asked = lead.matching.as_ref().or(lead.next.as_ref());
        if asked.is_some_and(|asked| asked.generation() != generation) {
            return 0;
        }
        let asked = asked.map(|matching| matching.again);
        // A voter that begins anew may take back what made it safe.
        let collecting = lead.collecting.map(|one| one.again);
        let collecting = collecting.filter(|again| again.is_sent() && lead.is_safe_alone());
        asked
            .into_iter()
            .chain(collecting)
            .map(|again| again.due_ns(resend_ns))
            .min()
            .unwrap_or(u64::MAX)
            .min(self.succession_due_ns(lead))
    }

    pub(super) fn ask_matchmakers<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
    ) {
        let generation = self.register.newest.matchmakers.generation;
        let Some(lead) = &mut self.lead else { return };
        let is_candidate = lead.matching.is_some();
        let Some(matching) = lead.matching.as_mut().or(lead.next.as_mut()) else {
            return;
        };
        if matching.generation() != generation {
            // What the former ones have matched, the others may not know: it takes a higher ballot.
            return self.begin_anew(turn);
        }
        if turn.now_ns < matching.again.due_ns(self.config.leader.resend_ns) {
            return;
        }
        let is_again = matching.again.is_sent();
        matching.again.sent(turn.now_ns);
        if !is_candidate && matching.is_complete() {
            // It could not be written down.
            return self.switch(turn);
        }
        let header = Header {
            epoch: matching.configuration.membership.epoch,
            slot: Slot(generation.into()),
            ballot: matching.ballot,
            vote_ballot: matching.leads,
            watermark: self.config.incarnation.0.into(),
            ..Header::new(Kind::Match, self.config.group, self.config.node)
        };
        let (bytes, answered) = (matching.bytes.clone(), matching.answered);
        let matchmakers = matching.configuration.matchmakers.members.clone();
        if is_again && is_candidate {
            // Those that it asks may be gone because others have taken over.
            self.ask_configuration(turn);
        }
        self.ask_each(turn, &matchmakers, answered, &header, &bytes);
    }

    /// Asks those of `whom` that have not answered, this node itself among them.
    pub(super) fn ask_each<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        whom: &[Member],
        answered: Voters,
        request: &Header,
        value: &[u8],
    ) {
        let (node, life) = (self.config.node, self.config.incarnation);
        let mut asks_own = false;
        let request = Header {
            length: value.len() as u16,
            ..*request
        };
        for (place, member) in whom.iter().enumerate() {
            if answered.has(place) {
                continue;
            }
            let incarnation = member.incarnation;
            let request = Header {
                incarnation,
                ..request
            };
            match member.is_life(node, life) {
                true => asks_own = true,
                false => turn.io.send(member.address, &request, value),
            }
        }
        if asks_own && let Some((configuration, rest)) = Configuration::read(value) {
            let answer = self.answer_as_matchmaker(turn.io, &request, &configuration, rest);
            if let Some((reply, value)) = answer {
                self.answered_by_matchmaker(turn, &reply, &value);
            }
        }
    }

    /// A matchmaker has answered, or one that is to be.
    pub(super) fn answered_by_matchmaker<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        reply: &Header,
        value: &[u8],
    ) {
        let Some(lead) = &self.lead else { return };
        let is = |ballot: Option<Ballot>| ballot == Some(reply.ballot);
        let asked = lead.matching.as_ref().or(lead.next.as_ref());
        let asks = is(asked.map(|matching| matching.ballot));
        let succeeds = is(lead.succession.as_ref().map(|one| one.ballot));
        let collects = is(lead.collecting.map(|_| lead.leader.ballot()));
        match reply.kind {
            Kind::Matched if asks => self.matched(turn, reply, value),
            Kind::Collected if collects => self.collected(reply),
            Kind::Stopped | Kind::HandedOver | Kind::Appointed if succeeds => {
                self.succession_answered(turn, reply, value);
            }
            // Somebody had others follow, and has not finished.
            Kind::Stopped if (asks || collects) && lead.succession.is_none() => {
                self.begin_succession(turn);
            }
            Kind::Unmatched if asks || succeeds || collects => {
                self.unmatched(turn, reply, value);
            }
            _ => {}
        }
    }

    /// A matchmaker has written it down.
    fn matched<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        reply: &Header,
        value: &[u8],
    ) {
        let generation = self.register.newest.matchmakers.generation;
        let Some(lead) = &mut self.lead else { return };
        let Some(matching) = lead.matching.as_mut().or(lead.next.as_mut()) else {
            return;
        };
        let place = place_of(&matching.configuration.matchmakers.members, reply);
        let (Some(place), Some(configurations)) = (place, Configuration::read_all(value)) else {
            return;
        };
        if matching.generation() != generation {
            return;
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

    /// Another ballot or configuration is ahead of what this node has asked for.
    fn unmatched<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        reply: &Header,
        value: &[u8],
    ) {
        self.election.round = self.election.round.max(reply.vote_ballot.round());
        let was_next = self.lead.as_ref().is_some_and(|lead| lead.next.is_some());
        let was_candidate = self
            .lead
            .as_ref()
            .is_some_and(|lead| lead.matching.is_some());
        let newest = Configuration::read(value).map(|(newest, _)| newest);
        if newest.is_some_and(|newest| self.adopt(turn, newest)) {
            // A leader goes on, where only the matchmakers are others.
            let begins = was_candidate || was_next && self.lead.is_none();
            if begins && self.is_voter() {
                self.campaign(turn);
            }
            return;
        }
        self.succession_refused(turn, reply);
        let Some(lead) = &mut self.lead else { return };
        let asked = lead.matching.as_ref().or(lead.next.as_ref());
        let is_asked = asked.is_some_and(|matching| matching.ballot == reply.ballot);
        let is_candidate = lead.matching.is_some();
        if is_asked && is_candidate && reply.vote_ballot >= reply.ballot {
            self.step_down(turn);
        } else if is_asked && !is_candidate && reply.vote_ballot > lead.leader.ballot() {
            // Another one was about to lead: who does, only phase 1 tells. And some may have written
            // down what was asked for, so that this ballot makes nothing else.
            self.begin_anew(turn);
        }
    }

    /// Gives up its ballot for a higher one, if it may vote.
    pub(super) fn begin_anew<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
    ) {
        self.step_down(turn);
        if self.is_voter() {
            self.campaign(turn);
        }
    }

    /// A majority of the matchmakers has written the ballot's configuration down: whatever was
    /// chosen before is in the ones that they told.
    fn begin_phase1<M: Memory, J: Journal, I: Io>(&mut self, turn: &mut Turn<'_, M, J, I>) {
        let Some(lead) = &mut self.lead else { return };
        let Some(mut matching) = lead.matching.take() else {
            return;
        };
        // What one matchmaker calls garbage others may still tell the next candidate of.
        let own = matching.configuration.version;
        let has_others = matching.found.iter().any(|one| one.version != own);
        // It may have been found where a leader died that others have gone past without it, and they
        // may have made another one that is newer by its version: it has to become this leader's.
        lead.renews = has_others && matching.before > own && !mutated(Mutation::FoundIsSettled);
        let earlier = matching.earlier();
        let mut electorate = Electorate::of(matching.configuration.membership);
        let asks = !mutated(Mutation::EarlierQuorumNotAsked);
        if asks && !earlier.iter().all(|one| electorate.add(&one.membership)) {
            return self.step_down(turn);
        }
        lead.collecting = has_others.then(Collecting::default);
        self.sit(electorate);
    }

    /// Makes `electorate` the leader's.
    pub(super) fn sit(&mut self, electorate: Electorate) {
        let Some(lead) = &mut self.lead else { return };
        let (node, incarnation) = (self.config.node, self.config.incarnation);
        let own = |member: &Member| member.is_life(node, incarnation);
        lead.place = electorate.members().position(own);
        let before = core::mem::replace(&mut lead.electorate, electorate);
        let members = &lead.electorate.membership.members;
        let known = |member: &Member| {
            let same = |other: &Member| other.is_life(member.node, member.incarnation);
            let place = before.membership.members.iter().position(same)?;
            lead.progress.get(place).copied()
        };
        let progress = members
            .iter()
            .map(|member| known(member).unwrap_or_default());
        lead.progress = progress.collect();
        lead.tried = Voters::default();
        lead.tell_ns = 0;
    }

    /// Has older configurations forgotten once nothing depends on them.
    pub(super) fn collect_garbage<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
    ) {
        let resend_ns = self.config.leader.resend_ns;
        let newest = &self.register.newest;
        let Some(lead) = &mut self.lead else { return };
        let is_safe = lead.is_safe_alone();
        let Some(collecting) = &mut lead.collecting else {
            return;
        };
        if collecting.generation != newest.matchmakers.generation {
            *collecting = Collecting {
                upto: collecting.upto,
                generation: newest.matchmakers.generation,
                ..Collecting::default()
            };
        }
        if !is_safe || turn.now_ns < collecting.again.due_ns(resend_ns) {
            return;
        }
        if lead.renews {
            let same = newest.membership.clone();
            return self.change(turn, same);
        }
        collecting.again.sent(turn.now_ns);
        let header = Header {
            epoch: newest.membership.epoch,
            slot: Slot(collecting.generation.into()),
            ballot: lead.leader.ballot(),
            watermark: newest.version.0,
            ..Header::new(Kind::Garbage, self.config.group, self.config.node)
        };
        let (answered, value) = (collecting.answered, newest.to_bytes());
        let matchmakers = newest.matchmakers.members.clone();
        self.ask_each(turn, &matchmakers, answered, &header, &value);
    }

    /// A matchmaker has forgotten them.
    fn collected(&mut self, reply: &Header) {
        let Some(lead) = &mut self.lead else { return };
        let matchmakers = &self.register.newest.matchmakers;
        let place = place_of(&matchmakers.members, reply);
        let (Some(place), Some(collecting)) = (place, &mut lead.collecting) else {
            return;
        };
        if u64::from(collecting.generation) != reply.slot.0 {
            return;
        }
        collecting.answered.add(place);
        if matchmakers.is_majority(collecting.answered.count()) {
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
        Matching::new(ballot, Ballot::NONE, configuration(9, &[1, 2, 4]))
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
