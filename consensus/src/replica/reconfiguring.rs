//! How a leader changes the members while it leads, and how the others learn of it.

use super::*;

/// What came of a wish to change the members.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Reconfigured {
    /// The configuration is the one in the answer, and no other one is needed any more.
    Settled = 0,
    /// A change is under way: it is not in force yet, or an older configuration is still needed.
    UnderWay = 1,
    /// The wish begins with another configuration than the one in force.
    Stale = 2,
    /// Nobody could lead by it: the quorums need not meet, or a node is named twice.
    Unsound = 3,
    /// A new acceptor is no learner yet, or has not caught up.
    Behind = 4,
    /// The leader is not among the members: it has to be a learner at least until another leads.
    WithoutLeader = 5,
}

impl Reconfigured {
    /// Every one, by its code.
    pub const ALL: [Self; 6] = [
        Self::Settled,
        Self::UnderWay,
        Self::Stale,
        Self::Unsound,
        Self::Behind,
        Self::WithoutLeader,
    ];

    /// The one with this code.
    pub fn from_code(code: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|one| *one as u64 == code)
    }

    /// A stable name for reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Settled => "settled",
            Self::UnderWay => "under_way",
            Self::Stale => "stale",
            Self::Unsound => "unsound",
            Self::Behind => "behind",
            Self::WithoutLeader => "without_leader",
        }
    }
}

/// A packet that tells a configuration.
fn describe(config: &Config, configuration: &Configuration) -> (Header, Vec<u8>) {
    let bytes = configuration.to_bytes();
    let header = Header {
        incarnation: config.incarnation,
        epoch: configuration.membership.epoch,
        vote_ballot: configuration.version,
        length: bytes.len() as u16,
        ..Header::new(Kind::Configuration, config.group, config.node)
    };
    (header, bytes)
}

impl<S: StateMachine> Replica<S> {
    /// Somebody wants other members, or to know which there are.
    pub(super) fn asked_to_reconfigure<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        from: SocketAddr,
        header: &Header,
        value: &[u8],
    ) {
        let leads = self.lead.as_ref().is_some_and(|lead| lead.leader.leads());
        if !leads {
            return self.redirect(turn, from, header);
        }
        let answer = if value.is_empty() {
            self.progress_of_change()
        } else {
            self.reconfigure(turn, header.vote_ballot, value)
        };
        let configuration = self.register.newest.to_bytes();
        let reply = Header {
            incarnation: self.config.incarnation,
            epoch: self.register.newest.membership.epoch,
            watermark: answer as u64,
            vote_ballot: self.register.newest.version,
            length: configuration.len() as u16,
            nonce: header.nonce,
            ..Header::new(Kind::Reconfigured, self.config.group, self.config.node)
        };
        turn.io.send(from, &reply, &configuration);
    }

    fn progress_of_change(&self) -> Reconfigured {
        let busy = |lead: &Lead| {
            lead.next.is_some() || lead.collecting.is_some() || lead.succession.is_some()
        };
        match self.wants_other_matchmakers() || self.lead.as_ref().is_some_and(busy) {
            true => Reconfigured::UnderWay,
            false => Reconfigured::Settled,
        }
    }

    /// Begins to lead by the members in `wish`, which was made for the configuration `version`.
    fn reconfigure<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        version: Ballot,
        wish: &[u8],
    ) -> Reconfigured {
        let newest = &self.register.newest;
        if version != newest.version {
            return Reconfigured::Stale;
        }
        let Some((wish, _)) = Configuration::read(wish) else {
            return Reconfigured::Unsound;
        };
        let wanted = Membership {
            epoch: newest.membership.epoch,
            ..wish.membership
        };
        // One change after the other: what a candidate has to ask stays little.
        let state = self.progress_of_change();
        if state != Reconfigured::Settled || wanted == newest.membership {
            return state;
        }
        let Some(lead) = &mut self.lead else {
            return Reconfigured::UnderWay;
        };
        let (node, incarnation) = (self.config.node, self.config.incarnation);
        let is_member = |member: &Member| member.is_life(node, incarnation);
        if !wanted.members.iter().any(is_member) {
            return Reconfigured::WithoutLeader;
        }
        let trim = lead.leader.trim();
        let may_vote = |member: &Member| {
            let same = |other: &Member| other.is_life(member.node, member.incarnation);
            let place = newest.membership.members.iter().position(same)?;
            let before = newest.membership.members.get(place)?;
            let there = lead.progress.get(place)?;
            let heard_ns = there.heard_ns.max(turn.local.seen_ns(member.node));
            let is_here = turn.now_ns.saturating_sub(heard_ns) < LAGGARD_NS;
            // What lies above the trim is in the acceptors' rings: whoever has the rest can lead.
            let has_caught_up = is_here && there.applied.next() >= trim;
            let may = before.role == member.role
                || member.role == MemberRole::Learner
                || has_caught_up
                || mutated(Mutation::LearnerPromotedEarly);
            may.then_some(())
        };
        let mut acceptors = wanted
            .members
            .iter()
            .filter(|one| one.role != MemberRole::Learner);
        if !acceptors.all(|member| may_vote(member).is_some()) {
            return Reconfigured::Behind;
        }
        self.change(turn, wanted);
        Reconfigured::UnderWay
    }

    /// Makes a configuration of these members, unless one is on its way.
    pub(super) fn change<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        wanted: Membership,
    ) {
        if self.lead.as_ref().is_none_or(|lead| lead.next.is_some()) {
            return;
        }
        let Some(ballot) = self.draw_ballot(turn) else {
            return;
        };
        let Some(lead) = &mut self.lead else { return };
        let (newest, leads) = (&self.register.newest, lead.leader.ballot());
        debug_assert!(leads > newest.version);
        let configuration = Configuration {
            version: leads,
            membership: Membership {
                epoch: crate::Epoch(newest.membership.epoch.0 + 1),
                ..wanted
            },
            matchmakers: newest.matchmakers.clone(),
        };
        lead.next = Some(Matching::new(ballot, leads, configuration));
        self.ask_matchmakers(turn);
    }

    /// The matchmakers have written the leader's next ballot and configuration down.
    ///
    /// A lease that this leader holds ends with its ballot: acceptors keep it and promise nobody else
    /// meanwhile, which is no harm, but nothing is read under it that the new configuration has not
    /// granted.
    pub(super) fn switch<M: Memory, J: Journal, I: Io>(&mut self, turn: &mut Turn<'_, M, J, I>) {
        let Some(next) = self.lead.as_mut().and_then(|lead| lead.next.take()) else {
            return;
        };
        let before = core::mem::replace(&mut self.register.newest, next.configuration.clone());
        if !self.keep_register(turn.io) {
            // It is matched, so it may be used any time: the next repetition tries again.
            self.register.newest = before;
            if let Some(lead) = &mut self.lead {
                lead.next = Some(next);
            }
            return;
        }
        self.take_place();
        let Some(lead) = &mut self.lead else { return };
        if !next.follows(lead.leader.ballot()) {
            // Another ballot came in between: what it may have chosen, only phase 1 tells.
            return self.begin_anew(turn);
        }
        let mut electorate = Electorate::of(next.configuration.membership);
        // They are told, but nobody counts them; for whom there is no room asks by itself.
        let _ = electorate.add(&before.membership);
        // The others apply what the old ballot decided without asking for it.
        lead.leader.hurry();
        self.send_orders(turn, Leader::announce);
        if let Some(record) = self.decided_record()
            && !turn.local.record(&record, &[])
        {
            self.miss_record(turn.local);
        }
        let Some(lead) = &mut self.lead else { return };
        lead.leader.succeed(next.ballot);
        lead.renews = false;
        lead.collecting = Some(Collecting {
            upto: lead.leader.proposed(),
            ..Collecting::default()
        });
        self.sit(electorate);
        self.tell_configuration(turn);
        // New acceptors take no vote before they know the trim.
        self.send_orders(turn, Leader::announce);
    }

    /// Tells those who are not known to know it.
    pub(super) fn tell_configuration<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
    ) {
        let (has_changed, knowledge) = (self.register.has_changed(), self.knowledge());
        let Some(lead) = &mut self.lead else { return };
        let newest = &self.register.newest;
        if !has_changed {
            lead.tell_ns = u64::MAX;
            return;
        }
        if turn.now_ns < lead.tell_ns {
            return;
        }
        lead.tell_ns = u64::MAX;
        let (header, bytes) = describe(&self.config, newest);
        for (place, member) in lead.electorate.members().enumerate() {
            let told = lead.progress.get(place);
            let knows = told.is_some_and(|told| told.knows == knowledge);
            if !knows && member.node != self.config.node {
                lead.tell_ns = turn.now_ns + self.config.leader.heartbeat_ns;
                turn.io.send(member.address, &header, &bytes);
            }
        }
    }

    /// Tells everybody what this node knows: whoever knows better answers.
    pub(super) fn ask_configuration<M: Memory, J: Journal, I: Io>(
        &self,
        turn: &mut Turn<'_, M, J, I>,
    ) {
        let newest = &self.register.newest;
        if newest.membership.members.is_empty() {
            return;
        }
        let (header, bytes) = describe(&self.config, newest);
        let matchmakers = &newest.matchmakers.members;
        for member in newest.membership.members.iter().chain(matchmakers) {
            if member.node != self.config.node {
                turn.io.send(member.address, &header, &bytes);
            }
        }
    }

    /// Somebody knows this configuration.
    pub(super) fn told_configuration<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        from: SocketAddr,
        value: &[u8],
    ) {
        let Some((configuration, _)) = Configuration::read(value) else {
            return;
        };
        let told = (configuration.version, configuration.matchmakers.generation);
        self.adopt(turn, configuration);
        // What it has written down for others may never come into force; candidates are told of it.
        let newest = &self.register.newest;
        if told.0 < newest.version || told.1 < newest.matchmakers.generation {
            let (header, bytes) = describe(&self.config, newest);
            turn.io.send(from, &header, &bytes);
        }
    }

    /// Tells those who were matchmakers who is.
    pub(super) fn tell_former<M: Memory, J: Journal, I: Io>(
        &self,
        turn: &mut Turn<'_, M, J, I>,
        former: &Matchmakers,
    ) {
        let (header, bytes) = describe(&self.config, &self.register.newest);
        for member in &former.members {
            if member.node != self.config.node {
                turn.io.send(member.address, &header, &bytes);
            }
        }
    }

    /// Goes by `configuration` from here on, if its members or its matchmakers are newer. False if
    /// neither are, or if it cannot be written down now.
    pub(super) fn adopt<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        configuration: Configuration,
    ) -> bool {
        let newest = &self.register.newest;
        let has_members = configuration.version > newest.version;
        if !has_members && configuration.matchmakers.generation <= newest.matchmakers.generation {
            return false;
        }
        let before = self.register.clone();
        self.register.know(&configuration.matchmakers);
        if has_members {
            (
                self.register.newest.version,
                self.register.newest.membership,
            ) = (configuration.version, configuration.membership);
        }
        if !self.keep_register(turn.io) {
            self.register = before;
            return false;
        }
        if !has_members {
            return true;
        }
        if self.lead.is_some() {
            self.step_down(turn);
        }
        self.election.pre_vote = None;
        self.take_place();
        true
    }

    /// A leader that votes no more lets one lead that does: each of those that may in turn, and it
    /// serves for as long as an attempt takes before it tries the next one.
    pub(super) fn leave<M: Memory, J: Journal, I: Io>(&mut self, turn: &mut Turn<'_, M, J, I>) {
        let window = self.config.window;
        let is_voter = self.is_voter();
        let Some(lead) = &mut self.lead else { return };
        let is_early = turn.now_ns < lead.leave_ns;
        if is_voter || is_early || !lead.leader.leads() || lead.transfer.is_some() {
            return;
        }
        let voters = lead.electorate.membership.voters();
        let places = lead.progress.iter().enumerate();
        let furthest = places
            .filter(|(place, there)| {
                let is_here = turn.now_ns.saturating_sub(there.heard_ns) < LAGGARD_NS;
                let has_it = there.applied.0 + window / 4 >= lead.leader.decided().0;
                voters.has(*place) && is_here && has_it
            })
            .max_by_key(|(place, there)| (!lead.tried.has(*place), there.applied));
        let Some((place, _)) = furthest else { return };
        let Some(member) = lead.electorate.membership.members.get(place) else {
            return;
        };
        let target = member.node;
        if lead.tried.has(place) {
            // All of them: from the beginning.
            lead.tried = Voters::default();
        }
        lead.tried.add(place);
        lead.hand_to(target, turn.now_ns, self.config.lease_ns);
        let until_ns = lead
            .transfer
            .map_or(turn.now_ns, |transfer| transfer.until_ns);
        lead.leave_ns = until_ns + (until_ns - turn.now_ns);
    }
}
