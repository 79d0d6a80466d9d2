//! How a replica that does not lead answers queries by itself.
//!
//! Paxos Quorum Reads (Charapko, Ailijiang, Demirbas 2019, "Linearizable Quorum Reads in Paxos"): it
//! asks a phase-1 quorum how far the log may be chosen, and answers once it has applied that much.
//! Departing from the paper, a majority of the matchmakers says whether that quorum is still the one
//! to ask.

use super::clients::answer_queries;
use super::*;
use crate::quorum::place_of;
use crate::random::Random;

/// Who has not answered is asked again after this long, in nanoseconds.
const ASK_AGAIN_NS: u64 = 5_000_000;
/// A query that could not be answered for so long is the leader's, in nanoseconds: a vote that was
/// never chosen may lie above everything that is.
const PATIENCE_NS: u64 = 20_000_000;

/// Queries that a replica answers by itself, and the round in which it asks for them.
#[derive(Debug)]
pub(super) struct Reading {
    queries: VecDeque<Waiting>,
    nonce: u32,
    /// The newest round that began.
    number: u64,
    round: Option<Round>,
}

#[derive(Debug)]
struct Waiting {
    read: Read,
    asked_ns: u64,
    /// What has to be applied, once a round says so that began after the query came.
    need: Option<Slot>,
}

/// One round of questions.
#[derive(Debug, Default)]
struct Round {
    /// The configuration whose members are asked.
    version: Ballot,
    /// Of the matchmakers that are asked.
    generation: u32,
    members: Voters,
    matchmakers: Voters,
    bound: Slot,
    sent_ns: u64,
}

impl Reading {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            queries: VecDeque::new(),
            // An answer that was meant for an earlier life of the process is none for this one.
            nonce: Random::new(seed ^ 0x7265_6164_696e_6700).next() as u32,
            number: 0,
            round: None,
        }
    }

    pub(super) fn due_ns(&self) -> u64 {
        let again = self
            .round
            .as_ref()
            .map(|round| round.sent_ns + ASK_AGAIN_NS);
        let oldest = self.queries.front();
        let patience = oldest.map(|query| query.asked_ns + PATIENCE_NS);
        again.into_iter().chain(patience).min().unwrap_or(u64::MAX)
    }
}

impl<S: StateMachine> Replica<S> {
    pub(super) fn reads_by_quorum(&self) -> bool {
        let role = self.member_role();
        let applies = role.is_some_and(|role| role != MemberRole::Witness);
        self.config.quorum_reads && applies && self.lead.is_none()
    }

    pub(super) fn query_follower(
        &mut self,
        now_ns: u64,
        route: Route,
        session: SessionId,
        value: &[u8],
    ) {
        let reading = &mut self.reading;
        if reading.queries.len() >= MAX_READS {
            self.tally.deferred += 1;
            return;
        }
        // A round under way was sent before this moment: only the next one counts.
        let barrier = match mutated(Mutation::ReadOfOldRound) {
            true => reading.number,
            false => reading.number + 1,
        };
        reading.queries.push_back(Waiting {
            read: Read {
                route,
                session,
                barrier,
                body: Vec::from(value),
            },
            asked_ns: now_ns,
            need: None,
        });
    }

    /// The last slot that may be chosen as far as this node's acceptor knows. Accept raises the
    /// highest slot before it votes; whoever was sent the trim instead of the slots knows that. `None`
    /// while somebody is at the record, or if the votes are elsewhere.
    fn index<M: Memory, J: Journal>(&self, local: &Local<M, J>) -> Option<Slot> {
        let view = local.view(self.config.group)?;
        let slots = [
            view.highest,
            view.trim.previous(),
            view.decided.upto,
            self.applied.slot(),
        ];
        slots
            .into_iter()
            .max()
            .filter(|_| view.promised != Ballot::SEALED)
    }

    /// What this node knows, for whoever reads.
    fn index_header<M: Memory, J: Journal>(&self, local: &Local<M, J>) -> Option<Header> {
        let matchmaker = &self.register.matchmaker;
        let configurations = match matchmaker.is_stopped() {
            // Others may remember a newer one by now.
            true => &[],
            false => matchmaker.configurations(),
        };
        let (oldest, newest) = (configurations.first(), configurations.last());
        Some(Header {
            incarnation: self.config.incarnation,
            slot: self.index(local)?,
            ballot: Ballot(u64::from(matchmaker.generation())),
            vote_ballot: newest.map_or(Ballot::NONE, |one| one.version),
            watermark: oldest.map_or(u64::MAX, |one| one.version.0),
            ..Header::new(Kind::Index, self.config.group, self.config.node)
        })
    }

    pub(super) fn asked_index<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        from: SocketAddr,
        header: &Header,
    ) {
        // Another life of this node may have voted.
        if header.incarnation != self.config.incarnation {
            return;
        }
        if let Some(index) = self.index_header(turn.local) {
            let reply = Header {
                epoch: header.epoch,
                nonce: header.nonce,
                ..index
            };
            turn.io.send(from, &reply, &[]);
        }
    }

    pub(super) fn heard_index(&mut self, reply: &Header) {
        if reply.nonce != self.reading.nonce {
            return;
        }
        let newest = &self.register.newest;
        let Some(round) = &mut self.reading.round else {
            return;
        };
        if let Some(place) = place_of(&newest.membership.members, reply) {
            round.members.add(place);
            round.bound = round.bound.max(reply.slot);
        }
        // One that remembers an older configuration has not been told that it is garbage.
        let remembers = (reply.vote_ballot, Ballot(reply.watermark));
        let matchmakers = &newest.matchmakers;
        if remembers == (round.version, round.version)
            && reply.ballot == Ballot(u64::from(matchmakers.generation))
            && let Some(place) = place_of(&matchmakers.members, reply)
        {
            round.matchmakers.add(place);
        }
    }

    /// Asks for the queries that wait, answers those that it can, and leaves to the leader those
    /// that it could not for too long.
    pub(super) fn read_by_quorum<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
    ) {
        if self.reading.queries.is_empty() {
            self.reading.round = None;
            return;
        }
        let patience_ns = match self.reads_by_quorum() {
            true => PATIENCE_NS,
            false => 0,
        };
        self.conclude_round();
        self.answer_readers();
        self.give_up_readers(turn, patience_ns);
        let newest = &self.register.newest;
        let (version, generation) = (newest.version, newest.matchmakers.generation);
        let reading = &mut self.reading;
        // The answers of another configuration's members are worth nothing.
        let is_of = |round: &Round| (round.version, round.generation) == (version, generation);
        let round = reading.round.take_if(|round| is_of(round));
        let waits = |query: &Waiting| query.need.is_none();
        if patience_ns == 0 || !reading.queries.iter().any(waits) {
            reading.round = None;
            return;
        }
        reading.round = match round {
            Some(round) => Some(round),
            None => {
                reading.number += 1;
                reading.nonce = reading.nonce.wrapping_add(1);
                Some(Round {
                    version,
                    generation,
                    ..Round::default()
                })
            }
        };
        self.ask_round(turn);
        self.conclude_round();
        self.answer_readers();
    }

    fn ask_round<M: Memory, J: Journal, I: Io>(&mut self, turn: &mut Turn<'_, M, J, I>) {
        let nonce = self.reading.nonce;
        let Some(round) = &mut self.reading.round else {
            return;
        };
        if round.sent_ns != 0 && turn.now_ns < round.sent_ns + ASK_AGAIN_NS {
            return;
        }
        round.sent_ns = turn.now_ns.max(1);
        let Configuration {
            membership,
            matchmakers,
            ..
        } = &self.register.newest;
        let is_own = |member: &Member| member.node == self.config.node;
        let is_member = |other: &Member| {
            let mut members = membership.members.iter();
            members.any(|one| one.is_life(other.node, other.incarnation))
        };
        let elsewhere = matchmakers.members.iter();
        let elsewhere = elsewhere.filter(|other| !is_member(other));
        for member in membership.members.iter().chain(elsewhere) {
            if is_own(member) {
                continue;
            }
            let header = Header {
                incarnation: member.incarnation,
                epoch: membership.epoch,
                nonce,
                ..Header::new(Kind::ReadIndex, self.config.group, self.config.node)
            };
            turn.io.send(member.address, &header, &[]);
        }
        if let Some(own) = self.index_header(turn.local) {
            self.heard_index(&Header { nonce, ..own });
        }
    }

    /// Takes note of what must be applied once enough have answered.
    fn conclude_round(&mut self) {
        let newest = &self.register.newest;
        let reading = &mut self.reading;
        let is_complete = |round: &Round| {
            let short = usize::from(mutated(Mutation::ReadQuorumShort));
            let membership = &newest.membership;
            let answered = round.members.among(membership.acceptors()) + short;
            let is_in_force = newest.matchmakers.is_majority(round.matchmakers.count())
                || mutated(Mutation::ReadConfigurationUnchecked);
            (round.version, round.generation) == (newest.version, newest.matchmakers.generation)
                && answered >= membership.quorums.phase1()
                && is_in_force
        };
        let Some(round) = reading.round.take_if(|round| is_complete(round)) else {
            return;
        };
        let bound = match mutated(Mutation::ReadUnapplied) {
            true => Slot::NONE,
            false => round.bound,
        };
        for query in &mut reading.queries {
            if query.read.barrier <= reading.number {
                query.need = Some(query.need.map_or(bound, |need| need.min(bound)));
            }
        }
    }

    fn answer_readers(&mut self) {
        let Self {
            applied,
            responses,
            reading,
            tally,
            ..
        } = self;
        reading.queries.retain(|query| {
            let is_due = query.need.is_some_and(|need| need <= applied.slot());
            if is_due {
                answer_queries(applied, responses, tally, &query.read);
            }
            !is_due
        });
    }

    fn give_up_readers<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        patience_ns: u64,
    ) {
        let leader = self.leader(turn.now_ns, turn.local);
        let now_ns = turn.now_ns;
        let is_over = |query: &mut Waiting| query.asked_ns + patience_ns <= now_ns;
        while let Some(query) = self.reading.queries.pop_front_if(is_over) {
            let Read { route, session, .. } = query.read;
            self.name_leader(turn, route, session, leader.unwrap_or(NodeId::NONE));
        }
    }
}
