//! Proposers that are the shipped leader, acceptors that are the shipped step, and a network that
//! loses, repeats, delays and reorders.
//!
//! What was sent stays in the network for good: a packet that is never delivered is lost, one that
//! is delivered again is repeated. Requests reach any acceptor, any number of times.

use crate::memory::Words;
use crate::packet::{EPOCH, GROUP, Packet, VALUE_LENGTH, ballot};
use nearwire_consensus::acceptor::Acceptor;
use nearwire_consensus::leader::{Heard, Leader, LeaderTiming, Order};
use nearwire_consensus::quorum::{Electorate, Member, MemberRole, Membership, Quorums};
use nearwire_consensus::region::Layout;
use nearwire_consensus::simulation::{Mutation, mutate};
use nearwire_consensus::wire::{Header, Kind};
use nearwire_consensus::{Incarnation, NodeId, Slot};
use stateright::{Model, Property};
use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;

pub(crate) const ACCEPTORS: usize = 3;

/// Nothing is ever too early to be sent again.
const TIMING: LeaderTiming = LeaderTiming {
    heartbeat_ns: 0,
    decide_ns: 0,
    resend_ns: 0,
};

/// A world: who may do what.
#[derive(Clone)]
pub(crate) struct World {
    /// The rounds that each proposer may use, in this order.
    pub(crate) rounds: [&'static [u8]; 2],
    /// Slots up to which each proposer has values of its own.
    pub(crate) fills: [u8; 2],
    /// Slots that an acceptor keeps.
    pub(crate) window: u64,
    /// One acceptor may lose its memory.
    pub(crate) loses_memory: bool,
    /// When exactly so many slots are decided, the first proposer may raise the trim past them and
    /// tell.
    pub(crate) trims: Option<u8>,
    /// An acceptor answers each Prepare at most once.
    pub(crate) promises_once: bool,
    /// Leaders hear replies one by one and act when they like, not as late as makes a difference.
    pub(crate) one_by_one: bool,
    /// Each step is run with either body published.
    pub(crate) both_bodies: bool,
    /// Who votes.
    pub(crate) electorate: Electorate,
    /// The defect under which everything happens.
    pub(crate) mutation: Option<Mutation>,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Node {
    pub(crate) memory: Words,
    /// Whether its memory is not the one that the membership names.
    pub(crate) reborn: bool,
    /// What it sent, and in which life.
    pub(crate) replies: BTreeSet<(bool, Packet)>,
    /// What it voted in the life that counts: slot, round, value.
    pub(crate) votes: BTreeSet<(u8, u8, u8)>,
    /// Whether a promise was taken back.
    pub(crate) went_back: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Proposer {
    /// How many of its rounds it has used.
    pub(crate) used: usize,
    pub(crate) leader: Option<Arc<Leader>>,
    /// Its own values are proposed, or wait in the leader.
    pub(crate) pushed: bool,
    /// Values of the slots that it applied, from the first on.
    pub(crate) applied: Vec<u8>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct State {
    pub(crate) nodes: [Arc<Node>; ACCEPTORS],
    pub(crate) proposers: [Proposer; 2],
    pub(crate) requests: Arc<BTreeSet<Packet>>,
    /// One memory was lost; and had something been chosen then?
    pub(crate) lost: Option<bool>,
    /// What the acceptors were called in the beginning.
    pub(crate) names: Names,
}

/// What the acceptors are called in a story. It tells no states apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Names(pub(crate) [usize; ACCEPTORS]);

impl PartialEq for Names {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Names {}

impl Hash for Names {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

/// A reply under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Letter {
    pub(crate) from: usize,
    pub(crate) reborn: bool,
    pub(crate) reply: Packet,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Action {
    /// Proposer begins its next ballot.
    Campaign(usize),
    /// Acceptor takes a request.
    Request(usize, Packet),
    /// Acceptors' replies reach the leader of their ballot.
    Hear(usize, Vec<Letter>),
    /// A leader sends what is due.
    Turn(usize),
    /// Proposer learns its next slot from the other.
    Learn(usize),
    /// A leader raises the trim past all that it applied, and tells what it decided.
    Trim(usize),
    /// Acceptor comes back with blank memory.
    Lose(usize),
}

fn acceptor(index: usize, reborn: bool, window: u64) -> Acceptor {
    Acceptor {
        node: NodeId(11 + index as u16),
        incarnation: Incarnation(1 + index as u32 + if reborn { 100 } else { 0 }),
        layout: Layout::new(1, window, crate::VALUE_BYTES).expect("valid layout"),
    }
}

pub(crate) fn electorate() -> Electorate {
    let member = |index| {
        let acceptor = acceptor(index, false, 2);
        Member {
            node: acceptor.node,
            incarnation: acceptor.incarnation,
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            priority: 0,
            role: MemberRole::Voter,
        }
    };
    Electorate::of(Membership {
        epoch: EPOCH,
        members: (0..ACCEPTORS).map(member).collect(),
        quorums: Quorums::majority(ACCEPTORS).expect("three members"),
    })
}

const PERMUTATIONS: [[usize; ACCEPTORS]; 6] = [
    [0, 1, 2],
    [1, 0, 2],
    [0, 2, 1],
    [1, 2, 0],
    [2, 0, 1],
    [2, 1, 0],
];

/// Keeps the replies of a kind in the network.
fn keep(node: &mut Arc<Node>, is_kept: impl Fn(bool, &Packet) -> bool) {
    if !node
        .replies
        .iter()
        .all(|(reborn, reply)| is_kept(*reborn, reply))
    {
        let replies = &mut Arc::make_mut(node).replies;
        replies.retain(|(reborn, reply)| is_kept(*reborn, reply));
    }
}

/// Every choice of `counts` replies, at most one from each acceptor.
fn choose(letters: &[Letter], counts: RangeInclusive<usize>, mut use_it: impl FnMut(Vec<Letter>)) {
    fn extend(
        letters: &[Letter],
        chosen: &mut Vec<Letter>,
        counts: &RangeInclusive<usize>,
        use_it: &mut impl FnMut(Vec<Letter>),
    ) {
        if counts.contains(&chosen.len()) {
            use_it(chosen.clone());
        }
        for (index, letter) in letters.iter().enumerate() {
            // Letters are in the order of the acceptors.
            if chosen.last().is_none_or(|last| last.from < letter.from) {
                chosen.push(*letter);
                extend(&letters[index + 1..], chosen, counts, use_it);
                chosen.pop();
            }
        }
    }
    extend(letters, &mut Vec::new(), &counts, &mut use_it);
}

/// Which proposer a round belongs to.
fn proposer_of(round: u8) -> usize {
    usize::from(crate::packet::owner(round).0) - 1
}

impl State {
    /// The values chosen in a slot: those that a phase-2 quorum voted for in one ballot.
    pub(crate) fn chosen(&self, slot: u8) -> BTreeSet<u8> {
        let votes = self.nodes.iter().flat_map(|node| &node.votes);
        let chosen = votes.filter(|vote| {
            let voters = self.nodes.iter().filter(|node| node.votes.contains(vote));
            vote.0 == slot && voters.count() > ACCEPTORS / 2
        });
        chosen.map(|vote| vote.2).collect()
    }

    /// A step of a story, with the names of the beginning.
    pub(crate) fn tell(&self, action: &Action) -> String {
        let name = |index: &usize| char::from(b'X' + self.names.0[*index] as u8);
        let proposer = |at: &usize| char::from(b'P' + *at as u8);
        match action {
            Action::Campaign(at) => format!("{} begins its next ballot", proposer(at)),
            Action::Turn(at) => format!("{} sends what is due", proposer(at)),
            Action::Learn(at) => format!("{} learns a slot from the other", proposer(at)),
            Action::Trim(at) => format!("{} raises the trim", proposer(at)),
            Action::Lose(index) => format!("{} loses its memory", name(index)),
            Action::Request(index, request) => format!("{} takes {request:?}", name(index)),
            Action::Hear(at, letters) => {
                let told = letters.iter().map(|letter| {
                    let reborn = if letter.reborn { "'s new memory" } else { "" };
                    format!("{:?} from {}{reborn}", letter.reply, name(&letter.from))
                });
                let told: Vec<_> = told.collect();
                format!("{} hears {}", proposer(at), told.join(", "))
            }
        }
    }

    fn leader(&self, round: u8) -> Option<&Leader> {
        let leader = self.proposers[proposer_of(round)].leader.as_deref()?;
        (leader.ballot() == ballot(round)).then_some(leader)
    }

    /// The representative of all states that differ only in which acceptor is which.
    fn representative(mut self) -> Self {
        let mut order = [0, 1, 2];
        order.sort_by(|a, b| self.nodes[*a].cmp(&self.nodes[*b]));
        // Acceptors that are alike differ at most in what the leaders have heard of them.
        let alike = |a: usize, b: usize| self.nodes[order[a]] == self.nodes[order[b]];
        let orders: &[[usize; ACCEPTORS]] = match (alike(0, 1), alike(1, 2)) {
            (false, false) => &PERMUTATIONS[..1],
            (true, false) => &PERMUTATIONS[..2],
            (false, true) => &[PERMUTATIONS[0], PERMUTATIONS[2]],
            (true, true) => &PERMUTATIONS,
        };
        if orders.len() == 1 && order == [0, 1, 2] {
            return self;
        }
        let candidates = orders.iter().map(|among| {
            let order = among.map(|at| order[at]);
            let mut places = [0; ACCEPTORS];
            for (to, from) in order.iter().enumerate() {
                places[*from] = to;
            }
            let leaders = self.proposers.each_ref().map(|proposer| {
                let mut leader = proposer.leader.clone();
                if let Some(leader) = &mut leader {
                    Arc::make_mut(leader).move_members(&places);
                }
                leader
            });
            let mut hash = DefaultHasher::new();
            leaders.hash(&mut hash);
            (hash.finish(), order, leaders)
        });
        if let Some((_, order, leaders)) = candidates.min_by_key(|(hash, ..)| *hash) {
            self.nodes = order.map(|from| self.nodes[from].clone());
            self.names = Names(order.map(|from| self.names.0[from]));
            for (proposer, leader) in self.proposers.iter_mut().zip(leaders) {
                proposer.leader = leader;
            }
        }
        self
    }

    /// Proposer gives its ballot up; nobody hears what is answered to it.
    fn step_down(&mut self, proposer: usize) {
        if let Some(leader) = self.proposers[proposer].leader.take() {
            self.proposers[proposer].pushed = false;
            for node in &mut self.nodes {
                keep(node, |_, reply| ballot(reply.round) != leader.ballot());
            }
        }
    }
}

/// What a leader makes of a reply.
enum Effect {
    /// It ignores it.
    None,
    /// It is another leader now.
    Moved(Arc<Leader>),
    /// It gives its ballot up.
    StepsDown,
}

impl World {
    /// What a leader makes of a reply, which is passed on as the replica does it.
    fn hear(&self, leader: &Leader, place: usize, reply: &Packet) -> Effect {
        let header = reply.header();
        let mut after = leader.clone();
        let heard = match reply.kind {
            Kind::Promise => after.promised(place, &header, &self.electorate),
            Kind::Outside if after.leads() => {
                let trim = Slot(header.watermark);
                if trim > after.decided().next() {
                    Heard::Behind(trim)
                } else {
                    Heard::Fine
                }
            }
            Kind::Vote | Kind::Empty | Kind::Outside => {
                after.fetched(place, &header, &reply.bytes())
            }
            Kind::Accepted => {
                after.accepted(place, &header);
                Heard::Fine
            }
            Kind::Nack => after.refused(0, &header),
            other => panic!("an acceptor answered {other:?}"),
        };
        after.forget_times();
        match heard {
            Heard::Superseded(_) => Effect::StepsDown,
            Heard::Behind(_) if after.has_proposed() => Effect::StepsDown,
            Heard::Fine | Heard::Behind(_) if after == *leader => Effect::None,
            Heard::Fine | Heard::Behind(_) => Effect::Moved(Arc::new(after)),
        }
    }

    /// Whether a leader ignores this reply now and for ever, so that it need not be kept.
    fn is_settled(
        &self,
        leader: &Leader,
        requests: &BTreeSet<Packet>,
        place: usize,
        reply: &Packet,
    ) -> bool {
        let may_count_later = match reply.kind {
            // A member counts once; but where slots are trimmed phase 1 may begin again.
            Kind::Promise => self.trims.is_some() && !leader.leads(),
            // A vote may come before the promise that makes it count, but not after its slot is
            // proposed.
            Kind::Vote | Kind::Empty => !requests.iter().any(|request| {
                (request.kind, request.round, request.slot)
                    == (Kind::Accept, reply.round, reply.slot)
            }),
            Kind::Outside => !leader.leads(),
            _ => false,
        };
        !may_count_later && matches!(self.hear(leader, place, reply), Effect::None)
    }

    /// The place of an acceptor, if the membership counts what it says in this life.
    fn place(&self, acceptor: &Acceptor, reply: &Packet) -> Option<usize> {
        self.electorate.voter(&Header {
            sender: acceptor.node,
            incarnation: acceptor.incarnation,
            ..reply.header()
        })
    }

    fn acceptor(&self, index: usize, reborn: bool) -> Acceptor {
        acceptor(index, reborn, self.window)
    }

    /// Acceptor takes a request. `None` if nothing comes of it that anybody could notice.
    fn request(&self, before: &State, index: usize, request: &Packet) -> Option<State> {
        let node = &before.nodes[index];
        let acceptor = self.acceptor(index, node.reborn);
        let mut memory = node.memory;
        if self.promises_once
            && request.kind == Kind::Prepare
            && (memory.promised, node.reborn) == (request.round, false)
        {
            return None;
        }
        let step = memory.step(&acceptor, request, self.both_bodies);
        // Nobody counts the replies of a foreign life, so nobody ever notices what it holds.
        let place = self.place(&acceptor, request)?;
        let mut steps_down = false;
        let mut news = step.map(|(header, value)| Packet::new(&header, value));
        news = news.filter(|reply| match before.leader(reply.round) {
            // A leader hears a refusal at once or never. If it heard it later, it would have done
            // nothing meanwhile that a leader whose packets are lost does not do.
            Some(leader) if reply.kind == Kind::Nack => {
                steps_down = matches!(self.hear(leader, place, reply), Effect::StepsDown);
                false
            }
            Some(leader) => !self.is_settled(leader, &before.requests, place, reply),
            None => false,
        });
        let voted = step.filter(|(header, _)| header.kind == Kind::Accepted && !node.reborn);
        let votes = voted.map(|_| {
            let mut votes = node.votes.clone();
            let vote = memory.ring.iter().find(|vote| vote.slot == request.slot);
            votes.insert((
                request.slot,
                request.round,
                vote.map_or(u8::MAX, |vote| vote.value),
            ));
            votes
        });
        let is_new = news.is_some_and(|reply| !node.replies.contains(&(node.reborn, reply)));
        let has_voted = votes.as_ref().is_some_and(|votes| *votes != node.votes);
        if memory == node.memory && !is_new && !has_voted && !steps_down {
            return None;
        }
        let mut after = before.clone();
        let node = Arc::make_mut(&mut after.nodes[index]);
        node.went_back |= memory.promised < node.memory.promised;
        node.memory = memory;
        node.replies.extend(news.map(|reply| (node.reborn, reply)));
        if let Some(votes) = votes {
            node.votes = votes;
        }
        if steps_down {
            after.step_down(proposer_of(request.round));
        }
        Some(after)
    }

    /// Replies reach the leader of their ballot. `None` if that makes no difference.
    fn hear_all(&self, before: &State, at: usize, letters: &[Letter]) -> Option<State> {
        let mut leader = before.proposers[at].leader.clone()?;
        let mut after = before.clone();
        for letter in letters {
            let acceptor = self.acceptor(letter.from, letter.reborn);
            let place = self.place(&acceptor, &letter.reply)?;
            match self.hear(&leader, place, &letter.reply) {
                Effect::None => {}
                Effect::Moved(moved) => leader = moved,
                Effect::StepsDown => {
                    after.step_down(at);
                    return Some(after);
                }
            }
        }
        let was_preparing = before.proposers[at].leader.as_ref()?.is_preparing();
        let is_preparing = leader.is_preparing();
        after.proposers[at].leader = Some(leader);
        if self.one_by_one {
            self.sweep(&mut after, at);
            return Some(after);
        }
        self.turn(&mut after, at);
        // A promise after the quorum's stands in for one of them; all else that a leader keeps for
        // itself it may as well have heard later.
        let makes_a_difference = after.requests != before.requests
            || after.proposers[at].applied != before.proposers[at].applied
            || is_preparing != was_preparing
            || !was_preparing
                && letters
                    .iter()
                    .any(|letter| letter.reply.kind == Kind::Promise);
        makes_a_difference.then_some(after)
    }

    /// Which replies a leader may hear next.
    fn letters(&self, state: &State, at: usize, actions: &mut Vec<Action>) {
        let Some(leader) = &state.proposers[at].leader else {
            return;
        };
        let mut letters = Vec::new();
        for (from, node) in state.nodes.iter().enumerate() {
            for (reborn, reply) in &node.replies {
                if ballot(reply.round) == leader.ballot() {
                    letters.push(Letter {
                        from,
                        reborn: *reborn,
                        reply: *reply,
                    });
                }
            }
        }
        if self.one_by_one {
            let alone = letters.iter().map(|letter| Action::Hear(at, vec![*letter]));
            actions.extend(alone);
            return;
        }
        let quorum = self.electorate.membership.quorums.phase1();
        let promises = letters
            .iter()
            .filter(|letter| letter.reply.kind == Kind::Promise);
        let promises: Vec<_> = promises.copied().collect();
        let count = if leader.is_preparing() { quorum } else { 1 };
        choose(&promises, count..=count, |some| {
            actions.push(Action::Hear(at, some));
        });
        for slot in self.slots() {
            let about = |kinds: &[Kind]| -> Vec<Letter> {
                let mut about = letters.clone();
                about.retain(|letter| {
                    letter.reply.slot == slot && kinds.contains(&letter.reply.kind)
                });
                about
            };
            if !leader.leads() && !leader.is_preparing() {
                let votes = about(&[Kind::Vote, Kind::Empty, Kind::Outside]);
                choose(&votes, 1..=ACCEPTORS, |some| {
                    actions.push(Action::Hear(at, some));
                });
            }
            if slot == leader.decided().next().0 as u8 {
                let accepted = about(&[Kind::Accepted]);
                if !accepted.is_empty() {
                    actions.push(Action::Hear(at, accepted));
                }
            }
            if leader.leads() {
                for letter in about(&[Kind::Outside]) {
                    actions.push(Action::Hear(at, vec![letter]));
                }
            }
        }
    }

    /// A leader sends what is due, applies what is decided, proposes its own values.
    fn turn(&self, state: &mut State, at: usize) {
        let State {
            proposers,
            requests,
            ..
        } = state;
        let Proposer {
            leader: Some(leader),
            pushed,
            applied,
            ..
        } = &mut proposers[at]
        else {
            return;
        };
        let leader = Arc::make_mut(leader);
        let mut out = |order: Order<'_>| {
            let value = order.value.first().copied().unwrap_or(0);
            let request = Packet::new(&order.header, value);
            if !requests.contains(&request) {
                Arc::make_mut(requests).insert(request);
            }
        };
        loop {
            leader.send(1, &self.electorate, &mut out);
            let mut again = false;
            while let Some((value, _)) = leader.next_decided(&self.electorate) {
                applied.push(value.first().copied().unwrap_or(0));
                again = true;
            }
            // Clients are served once everything inherited is applied.
            if leader.leads() && !*pushed && leader.decided() >= leader.inherited() {
                *pushed = true;
                again = true;
                let round = leader.ballot().round() as u8;
                for slot in leader.decided().0 as u8 + 1..=self.fills[at] {
                    let value = [round << 4 | slot; VALUE_LENGTH];
                    leader.push(VALUE_LENGTH, |open| open.extend_from_slice(&value));
                }
            }
            leader.forget_times();
            if !again {
                break;
            }
        }
        self.sweep(state, at);
    }

    /// Forgets the replies that a leader will never look at.
    fn sweep(&self, state: &mut State, at: usize) {
        let Some(leader) = &state.proposers[at].leader else {
            return;
        };
        let (leader, requests) = (leader.clone(), state.requests.clone());
        for (index, node) in state.nodes.iter_mut().enumerate() {
            keep(node, |reborn, reply| {
                let place = self.place(&self.acceptor(index, reborn), reply);
                ballot(reply.round) != leader.ballot()
                    || place.is_some_and(|place| !self.is_settled(&leader, &requests, place, reply))
            });
        }
    }

    fn campaign(&self, before: &State, at: usize) -> State {
        let mut state = before.clone();
        state.step_down(at);
        let proposer = &mut state.proposers[at];
        let round = self.rounds[at][proposer.used];
        proposer.used += 1;
        proposer.leader = Some(Arc::new(Leader::new(
            ballot(round),
            GROUP,
            self.window,
            VALUE_LENGTH,
            TIMING,
            0,
            Slot(proposer.applied.len() as u64),
        )));
        self.turn(&mut state, at);
        state
    }

    /// Proposer learns its next slot from the other.
    fn learn(&self, before: &State, at: usize) -> State {
        let mut state = before.clone();
        let proposer = &mut state.proposers[at];
        let slot = proposer.applied.len();
        proposer
            .applied
            .push(before.proposers[1 - at].applied[slot]);
        if let Some(leader) = &mut proposer.leader {
            let leader = Arc::make_mut(leader);
            // What it still lacks it learns by and by.
            leader.caught_up(Slot(slot as u64 + 1), &self.electorate);
            leader.forget_times();
            if !self.one_by_one {
                self.turn(&mut state, at);
            }
        }
        state
    }

    fn lose(&self, before: &State, index: usize) -> State {
        let mut state = before.clone();
        state.lost = Some(self.slots().any(|slot| !state.chosen(slot).is_empty()));
        let node = Arc::make_mut(&mut state.nodes[index]);
        node.memory = Words::blank();
        node.reborn = true;
        state
    }
}

impl Model for World {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let node = Node {
            memory: Words::blank(),
            reborn: false,
            replies: BTreeSet::new(),
            votes: BTreeSet::new(),
            went_back: false,
        };
        let proposer = Proposer {
            used: 0,
            leader: None,
            pushed: false,
            applied: Vec::new(),
        };
        vec![State {
            nodes: std::array::from_fn(|_| Arc::new(node.clone())),
            proposers: std::array::from_fn(|_| proposer.clone()),
            requests: Arc::default(),
            lost: None,
            names: Names([0, 1, 2]),
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (index, proposer) in state.proposers.iter().enumerate() {
            if proposer.used < self.rounds[index].len() {
                actions.push(Action::Campaign(index));
            }
            let other = &state.proposers[1 - index];
            let is_open = proposer.leader.as_deref().is_none_or(Leader::is_preparing);
            if is_open && proposer.applied.len() < other.applied.len() {
                actions.push(Action::Learn(index));
            }
            let Some(leader) = &proposer.leader else {
                continue;
            };
            self.letters(state, index, actions);
            if self.one_by_one {
                actions.push(Action::Turn(index));
            }
            let decided = leader.decided();
            if index == 0
                && self.trims.map(|slot| Slot(slot.into())) == Some(decided)
                && leader.has_proposed()
                && leader.trim() <= decided
            {
                actions.push(Action::Trim(index));
            }
        }
        for (index, node) in state.nodes.iter().enumerate() {
            for request in state.requests.iter() {
                actions.push(Action::Request(index, *request));
            }
            if self.loses_memory && state.lost.is_none() && node.memory != Words::blank() {
                actions.push(Action::Lose(index));
            }
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        if self.mutation.is_some() {
            mutate(self.mutation);
        }
        let after = match action {
            Action::Request(index, request) => self.request(before, index, &request)?,
            Action::Hear(at, letters) => self.hear_all(before, at, &letters)?,
            Action::Campaign(at) => self.campaign(before, at),
            Action::Learn(at) => self.learn(before, at),
            Action::Lose(index) => self.lose(before, index),
            Action::Turn(at) => {
                let mut state = before.clone();
                self.turn(&mut state, at);
                state
            }
            Action::Trim(at) => {
                let mut state = before.clone();
                if let Some(leader) = &mut state.proposers[at].leader {
                    let leader = Arc::make_mut(leader);
                    leader.raise_trim(leader.decided().next());
                    leader.announce(1, &self.electorate, &mut |order| {
                        Arc::make_mut(&mut state.requests).insert(Packet::new(&order.header, 0));
                    });
                }
                self.turn(&mut state, at);
                state
            }
        };
        let after = after.representative();
        (after != *before).then_some(after)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always("agreement", |world: &World, state: &State| {
                world.slots().all(|slot| state.chosen(slot).len() < 2)
            }),
            Property::always("validity", |world: &World, state: &State| {
                world.slots().all(|slot| {
                    let valid = |value: &u8| *value == 0 || value & 15 == slot;
                    state.chosen(slot).iter().all(valid)
                })
            }),
            Property::always("what is applied was chosen", |_, state: &State| {
                state.proposers.iter().all(|proposer| {
                    let mut applied = (1..).zip(&proposer.applied);
                    applied.all(|(slot, value)| state.chosen(slot).contains(value))
                })
            }),
            Property::always("promises never go back", |_, state: &State| {
                state.nodes.iter().all(|node| !node.went_back)
            }),
            Property::always("no vote above the promise", |_, state: &State| {
                state.nodes.iter().all(|node| {
                    let mut votes = node.memory.ring.iter();
                    votes.all(|vote| vote.round <= node.memory.promised)
                })
            }),
            Property::always("what a follower applies was chosen", |_, state: &State| {
                state.nodes.iter().all(|node| {
                    let decided = &node.memory.decided;
                    let mut applied = node.memory.ring.iter().filter(|vote| {
                        (decided.from..=decided.upto).contains(&vote.slot)
                            && vote.slot > 0
                            && vote.round >= decided.round
                    });
                    applied.all(|vote| state.chosen(vote.slot).contains(&vote.value))
                })
            }),
            Property::sometimes("a value is chosen", |world: &World, state: &State| {
                world.slots().any(|slot| !state.chosen(slot).is_empty())
            }),
            Property::sometimes("a later leader adopts a vote", |_, state: &State| {
                let mut requests = state.requests.iter();
                requests.any(|request| request.value != 0 && request.value >> 4 < request.round)
            }),
            Property::sometimes("a leader is refused", |_, state: &State| {
                let mut proposers = state.proposers.iter();
                proposers.any(|proposer| proposer.used > 0 && proposer.leader.is_none())
            }),
        ];
        if self.loses_memory {
            properties.push(Property::sometimes(
                "a value is chosen after a memory was lost",
                |world: &World, state: &State| {
                    let mut slots = world.slots();
                    state.lost == Some(false) && slots.any(|slot| !state.chosen(slot).is_empty())
                },
            ));
        }
        if self.trims.is_some() {
            properties.push(Property::sometimes(
                "a slot is trimmed",
                |_, state: &State| state.nodes.iter().any(|node| node.memory.trim > 1),
            ));
        }
        if u64::from(self.fills[0]) > self.window {
            properties.push(Property::sometimes(
                "a ring entry is used again",
                |world: &World, state: &State| {
                    let mut votes = state.nodes.iter().flat_map(|node| node.memory.ring);
                    votes.any(|vote| u64::from(vote.slot) > world.window)
                },
            ));
        }
        properties
    }
}

impl World {
    fn slots(&self) -> impl Iterator<Item = u8> + use<> {
        1..=self.fills[0].max(self.fills[1])
    }
}
