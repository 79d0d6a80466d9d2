//! How others follow the matchmakers: those who vote, whenever the members have changed (Whittaker et
//! al. 2021, section 6).
//!
//! A leader begins it once nothing depends on an earlier configuration. Whoever finds a matchmaker
//! that was stopped, and needs it, finishes what another one has begun.

use super::*;
use crate::matchmaker::MAX_HANDED_OVER;
use crate::quorum::place_of;

impl<S: StateMachine> Replica<S> {
    /// Whether this node leads, and those who vote are not the matchmakers.
    pub(super) fn wants_other_matchmakers(&self) -> bool {
        let newest = &self.register.newest;
        self.lead.as_ref().is_some_and(|lead| lead.leader.leads())
            && self.register.has_changed()
            && !newest.matchmakers.are_those_of(&newest.membership)
    }

    /// When something is due, if anything is.
    pub(super) fn succession_due_ns(&self, lead: &Lead) -> u64 {
        let resend_ns = self.config.leader.resend_ns;
        match &lead.succession {
            Some(one) => one.again.due_ns(resend_ns),
            None if self.is_free(lead) && self.wants_other_matchmakers() => lead.succeed_ns,
            None => u64::MAX,
        }
    }

    /// Whether no other change is under way.
    const fn is_free(&self, lead: &Lead) -> bool {
        lead.next.is_none() && lead.collecting.is_none()
    }

    /// Does what is due for it.
    pub(super) fn replace_matchmakers<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
    ) {
        let known = self.register.newest.matchmakers.generation;
        let Some(lead) = &mut self.lead else { return };
        lead.succession.take_if(|one| one.from.generation < known);
        let Some(lead) = &self.lead else { return };
        if turn.now_ns < self.succession_due_ns(lead) {
            return;
        }
        match lead.succession {
            Some(_) => self.ask_about_succession(turn),
            None => self.begin_succession(turn),
        }
    }

    /// Has others follow the matchmakers, or finishes that.
    pub(super) fn begin_succession<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
    ) {
        let again_ns = turn.now_ns + self.config.leader.heartbeat_ns;
        let ballot = self.draw_ballot(turn);
        let from = self.register.newest.matchmakers.clone();
        let Some(lead) = &mut self.lead else { return };
        lead.succeed_ns = again_ns;
        let Some(ballot) = ballot else { return };
        lead.succession = Some(Succession {
            ballot,
            from,
            stage: Stage::Stopping,
            book: Book::default(),
            accepted: Ballot::NONE,
            next: Matchmakers::NONE,
            answered: Voters::default(),
            again: Again::default(),
        });
        self.ask_about_succession(turn);
    }

    fn ask_about_succession<M: Memory, J: Journal, I: Io>(&mut self, turn: &mut Turn<'_, M, J, I>) {
        let mut value = self.register.newest.to_bytes();
        let Some(one) = self.lead.as_mut().and_then(|lead| lead.succession.as_mut()) else {
            return;
        };
        one.again.sent(turn.now_ns);
        if one.stage == Stage::Appointing && one.from.is_majority(one.answered.count()) {
            // It could not be written down.
            return self.succeed(turn);
        }
        let (kind, whom) = match one.stage {
            Stage::Stopping => (Kind::Stop, &one.from),
            Stage::HandingOver => (Kind::HandOver, &one.next),
            Stage::Appointing => (Kind::Appoint, &one.from),
        };
        match one.stage {
            Stage::Stopping => {}
            Stage::HandingOver => one.book.append(&mut value),
            Stage::Appointing => one.next.append(&mut value),
        }
        let header = Header {
            slot: Slot(whom.generation.into()),
            ballot: one.ballot,
            watermark: self.config.incarnation.0.into(),
            ..Header::new(kind, self.config.group, self.config.node)
        };
        let (whom, answered) = (whom.members.clone(), one.answered);
        self.ask_each(turn, &whom, answered, &header, &value);
    }

    /// A matchmaker, or one that is to be, has answered.
    pub(super) fn succession_answered<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        reply: &Header,
        value: &[u8],
    ) {
        let known = self.register.newest.clone();
        let Some(one) = self.lead.as_mut().and_then(|lead| lead.succession.as_mut()) else {
            return;
        };
        if one.from.generation != known.matchmakers.generation {
            return;
        }
        let whom = match (one.stage, reply.kind) {
            (Stage::Stopping, Kind::Stopped) | (Stage::Appointing, Kind::Appointed) => &one.from,
            (Stage::HandingOver, Kind::HandedOver) => &one.next,
            _ => return,
        };
        let Some(place) = place_of(&whom.members, reply).filter(|at| !one.answered.has(*at)) else {
            return;
        };
        let is_majority = whom.is_majority(one.answered.count() + 1);
        if one.stage == Stage::Stopping && !one.take_down(reply, value) {
            return;
        }
        one.answered.add(place);
        if !is_majority {
            return;
        }
        match one.stage {
            Stage::Stopping => {
                if one.book.configurations().len() > MAX_HANDED_OVER {
                    return;
                }
                one.choose(&known);
            }
            Stage::HandingOver => one.enter(Stage::Appointing),
            Stage::Appointing => return self.succeed(turn),
        }
        self.ask_about_succession(turn);
    }

    /// Another ballot of the decree is ahead, or it is over.
    pub(super) fn succession_refused<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        reply: &Header,
    ) {
        let Some(lead) = &mut self.lead else { return };
        let is_refused =
            |one: &mut Succession| one.ballot == reply.ballot && one.ballot <= reply.vote_ballot;
        if lead.succession.take_if(is_refused).is_none() {
            return;
        }
        lead.succeed_ns = turn.now_ns + self.config.leader.heartbeat_ns;
        if lead.matching.is_some() {
            self.step_down(turn);
        }
    }

    /// A majority of the old ones has accepted the next ones.
    fn succeed<M: Memory, J: Journal, I: Io>(&mut self, turn: &mut Turn<'_, M, J, I>) {
        let Some(lead) = &self.lead else { return };
        let Some(one) = &lead.succession else { return };
        let next = one.next.clone();
        if !self.know_matchmakers(turn.io, &next) {
            // The next repetition tries again.
            return;
        }
        let Some(lead) = &mut self.lead else { return };
        let Some(one) = lead.succession.take() else {
            return;
        };
        if lead.matching.is_some() {
            self.campaign(turn);
        } else {
            // It is over when a majority of the next ones knows.
            lead.collecting.get_or_insert_default();
            lead.tell_ns = 0;
        }
        self.tell_former(turn, &one.from);
    }
}

impl Succession {
    fn enter(&mut self, stage: Stage) {
        self.stage = stage;
        self.answered = Voters::default();
        self.again = Again::default();
    }

    /// A stopped matchmaker tells what it knows. False if that cannot be read.
    fn take_down(&mut self, reply: &Header, value: &[u8]) -> bool {
        let told = Matchmakers::read(value)
            .and_then(|(next, rest)| Book::read(rest).map(|(book, _)| (next, book)));
        let Some((next, book)) = told else {
            return false;
        };
        self.book.merge(book);
        if reply.vote_ballot > self.accepted {
            (self.accepted, self.next) = (reply.vote_ballot, next);
        }
        true
    }

    /// A majority has told: nothing is matched any more that is not in the book. Whom one of them has
    /// accepted may be chosen already.
    fn choose(&mut self, known: &Configuration) {
        if self.accepted == Ballot::NONE || mutated(Mutation::AppointmentOverlooked) {
            let told = self.book.configurations().last();
            let newest = told.filter(|one| one.version > known.version);
            self.next = self.from.succeeded_by(&newest.unwrap_or(known).membership);
        }
        self.enter(match mutated(Mutation::NotHandedOver) {
            true => Stage::Appointing,
            false => Stage::HandingOver,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::configuration::testing::configuration;

    const BALLOT: Ballot = Ballot::new(9, NodeId(1));

    fn succession() -> Succession {
        Succession {
            ballot: BALLOT,
            from: configuration(3, &[1, 2, 3]).matchmakers,
            stage: Stage::Stopping,
            book: Book::default(),
            accepted: Ballot::NONE,
            next: Matchmakers::NONE,
            answered: Voters::default(),
            again: Again::default(),
        }
    }

    /// What a stopped matchmaker says that has accepted these nodes in a round, if any, and has
    /// written `known` down.
    fn stopped(accepted: Option<(u64, [u16; 2])>, known: &Configuration) -> (Header, Vec<u8>) {
        let next = accepted.map(|(_, nodes)| configuration(0, &nodes).matchmakers);
        let mut value = Vec::new();
        next.unwrap_or_default().append(&mut value);
        let matchmaker = crate::matchmaker::Matchmaker::new(known);
        matchmaker.book().append(&mut value);
        let ballot = accepted.map(|(round, _)| Ballot::new(round, NodeId(2)));
        let header = Header {
            vote_ballot: ballot.unwrap_or(Ballot::NONE),
            ..Header::new(Kind::Stopped, GroupId(0), NodeId(2))
        };
        (header, value)
    }

    fn nodes(set: &Matchmakers) -> Vec<u16> {
        set.members.iter().map(|member| member.node.0).collect()
    }

    #[test]
    fn whom_one_has_accepted_is_appointed() {
        let known = configuration(3, &[1, 2, 4]);
        let mut one = succession();
        for accepted in [(5, [5, 6]), (7, [7, 8]), (6, [6, 7])] {
            let (header, value) = stopped(Some(accepted), &known);
            assert!(one.take_down(&header, &value));
        }
        one.choose(&known);
        assert_eq!(nodes(&one.next), [7, 8], "of the highest ballot");
        assert_eq!(one.stage, Stage::HandingOver);
    }

    #[test]
    fn who_votes_by_the_newest_configuration_follows() {
        let (known, newer) = (configuration(3, &[1, 2, 4]), configuration(4, &[1, 4, 5]));
        let mut one = succession();
        let (header, value) = stopped(None, &newer);
        assert!(one.take_down(&header, &value));
        assert!(!one.take_down(&header, &value[1..]), "that is no book");
        one.choose(&known);
        assert_eq!((nodes(&one.next), one.next.generation), (vec![1, 4, 5], 2));
        let mut one = succession();
        let (header, value) = stopped(None, &configuration(2, &[1, 2, 3]));
        assert!(one.take_down(&header, &value));
        one.choose(&known);
        assert_eq!(nodes(&one.next), [1, 2, 4]);
    }
}
