//! The sans-IO client: one session of commands that are applied exactly once and in order.
//!
//! Datagrams and time go in, datagrams and events come out. A driver sends whatever
//! [`Client::poll_transmit`] gives, passes whatever arrives to [`Client::handle_datagram`], calls
//! [`Client::handle_timeout`] when [`Client::poll_timeout`] is due, and collects replies from
//! [`Client::poll_event`]. Times are nanoseconds of any clock that never falls.
//!
//! Exactly once needs both sides. The client numbers the commands of its session 1, 2, 3, … and
//! repeats one under its own number until it is answered; the replicas apply a session's numbers
//! strictly in turn and answer a repetition from memory. When the session itself is lost, what was
//! under way ends as [`Failure::OutcomeUnknown`]: asked again under another session it could be
//! applied twice, and only the application knows whether that matters.

mod lane;
mod pace;
#[cfg(test)]
mod tests;

use crate::envelope::{self, Entry, EntryKind, Outcome, SESSION_WINDOW, Status};
use crate::random::Random;
use crate::wire::{Flags, Header, Kind, MAX_VALUE_BYTES};
use crate::{Ballot, Epoch, GroupId, NodeId, Sequence, SessionId};
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv6Addr, SocketAddr};
use lane::{Lane, Packed, Reply};
use pace::Pace;

/// Queries are numbered from here on, so that no answer to a query passes for a command's. Read as
/// a ballot, a number below twice this is one that the wire accepts.
const FIRST_QUERY: u64 = 1 << 62;
/// Mean wait in nanoseconds when nobody knows the leader.
const LEADERLESS_WAIT_NS: u64 = 10_000_000;
/// For so long queries go to the leader when their reader could not answer one, in nanoseconds.
const NO_READER_NS: u64 = 10_000_000;
/// How many redirects in a row are followed at once; then the client waits, since two replicas may
/// each believe that the other leads.
const MAX_HOPS: u32 = 3;
/// Length in bytes of the address in a Redirect: IPv6 or IPv4-mapped address, port.
pub const ADDRESS_BYTES: usize = 18;

/// What a client needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// The replicas and where they take requests. The first is asked first.
    pub members: Vec<(NodeId, SocketAddr)>,
    /// The log to write to.
    pub group: GroupId,
    /// The membership that the client believes in.
    pub epoch: Epoch,
    /// Longest value of a Request in bytes, at most what the replicas' regions take.
    pub max_value: usize,
    /// How many commands (and as many queries) may be unanswered, at most
    /// [`SESSION_WINDOW`].
    pub max_in_flight: usize,
    /// Randomness. Two clients of a cluster must not have the same.
    pub seed: u64,
}

/// A client cannot be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConfigError {
    /// There is nobody to ask.
    #[error("configure client: no members")]
    NoMembers,
    /// A Request must carry at least one empty command, and a region takes no more than the
    /// maximum.
    #[error("configure client: a value of {0} bytes is not within 32..={MAX_VALUE_BYTES}")]
    MaxValue(usize),
    /// A session keeps no more replies than its window.
    #[error("configure client: {0} requests in flight are not within 1..={SESSION_WINDOW}")]
    MaxInFlight(usize),
}

/// Why something was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SubmitError {
    /// As many requests as allowed are unanswered or their events uncollected.
    #[error("submit: the client's window is full")]
    Full,
    /// The body does not fit the value of a Request.
    #[error("submit: the body is longer than a request carries")]
    TooLarge,
}

/// Why a request has no reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Failure {
    /// The session was lost while the command was under way: it was applied once or not at all.
    #[error("the session was lost: the command was applied once or not at all")]
    OutcomeUnknown,
    /// Not applied: the replicas take no request of this length.
    #[error("not applied: longer than the replicas take")]
    TooLarge,
    /// Applied once, but the reply is no longer kept.
    #[error("applied once, but its reply is no longer kept")]
    ReplyForgotten,
    /// Not applied: the cluster has as many sessions as it takes.
    #[error("not applied: too many sessions are open")]
    TooManySessions,
}

/// A request ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// What the caller gave with the request.
    pub token: u64,
    /// The state machine's reply.
    pub result: Result<Vec<u8>, Failure>,
}

/// A packet to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Datagram<'a> {
    /// Where to.
    pub to: SocketAddr,
    /// Complete but for the tag.
    pub header: Header,
    /// What follows the header.
    pub value: &'a [u8],
}

/// What the client did so far.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counters {
    /// Datagrams handed out.
    pub datagrams: u64,
    /// Commands and queries in them.
    pub requests: u64,
    /// How many of these were repetitions.
    pub repeated: u64,
    /// Redirects that were followed.
    pub redirects: u64,
    /// Times that nothing was answered for too long.
    pub timeouts: u64,
    /// Sessions opened.
    pub sessions: u64,
}

#[derive(Debug)]
enum Session {
    /// Opened when the first command needs it.
    Closed,
    Opening {
        nonce: u64,
        /// The Open is to be sent.
        due: bool,
        deadline_ns: Option<u64>,
    },
    Open(SessionId),
}

/// A moment after which news counts: what answers an older datagram was seen to already.
#[derive(Clone, Copy, Debug)]
struct Mark {
    nonce: u32,
    at_ns: u64,
}

/// One session against a cluster, and queries beside it. See the module's text.
#[derive(Debug)]
pub struct Client {
    config: Config,
    session: Session,
    commands: Lane,
    queries: Lane,
    /// Never longer than the windows of both lanes.
    events: VecDeque<Event>,
    target: SocketAddr,
    /// The member that is asked next when the target does not answer follows this one.
    member: usize,
    hops: u32,
    held_until_ns: Option<u64>,
    /// Who is asked queries, whoever leads, but for the time in which it is passed over.
    reader: Option<SocketAddr>,
    no_reader_until_ns: u64,
    /// Members that are still to be asked who leads, from this place on.
    inquiry: Option<usize>,
    turned: Mark,
    rewound: Mark,
    nonce: u32,
    random: Random,
    pace: Pace,
    counters: Counters,
    buffer: Vec<u8>,
}

impl Client {
    /// A client that has not said anything yet.
    ///
    /// # Errors
    /// Names what is wrong with the configuration.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        let Some(&(_, target)) = config.members.first() else {
            return Err(ConfigError::NoMembers);
        };
        if !(Entry::encoded_bytes(8)..=MAX_VALUE_BYTES).contains(&config.max_value) {
            return Err(ConfigError::MaxValue(config.max_value));
        }
        if config.max_in_flight == 0 || config.max_in_flight as u64 > SESSION_WINDOW {
            return Err(ConfigError::MaxInFlight(config.max_in_flight));
        }
        let mut random = Random::new(config.seed);
        // A client that takes over another's address must not take its answers for its own.
        let first_query = FIRST_QUERY | (random.next() >> 3);
        let nonce = random.next() as u32;
        let mark = Mark { nonce, at_ns: 0 };
        Ok(Self {
            session: Session::Closed,
            commands: Lane::new(EntryKind::Command, 1),
            queries: Lane::new(EntryKind::Query, first_query),
            events: VecDeque::new(),
            target,
            member: 0,
            hops: 0,
            held_until_ns: None,
            reader: None,
            no_reader_until_ns: 0,
            inquiry: None,
            turned: mark,
            rewound: mark,
            nonce,
            random,
            pace: Pace::default(),
            counters: Counters::default(),
            buffer: Vec::with_capacity(config.max_value),
            config,
        })
    }

    /// Has a replica that reads by quorum answer queries, whoever leads. What it cannot answer, the
    /// leader does.
    #[must_use]
    pub fn reading_from(self, reader: SocketAddr) -> Self {
        Self {
            reader: Some(reader),
            ..self
        }
    }

    /// Takes a command. Its event carries `token`; events of commands come in the order of
    /// submission.
    ///
    /// # Errors
    /// The command was not taken and will not be sent.
    pub fn submit_command(&mut self, token: u64, body: &[u8]) -> Result<(), SubmitError> {
        self.admit(self.commands.len(), body)?;
        self.commands.push(token, body);
        Ok(())
    }

    /// Takes a query, which changes nothing, needs no session and is answered out of turn.
    ///
    /// # Errors
    /// The query was not taken and will not be sent.
    pub fn submit_query(&mut self, token: u64, body: &[u8]) -> Result<(), SubmitError> {
        self.admit(self.queries.len(), body)?;
        self.queries.push(token, body);
        Ok(())
    }

    fn admit(&self, waiting: usize, body: &[u8]) -> Result<(), SubmitError> {
        if body.len() > usize::from(u16::MAX)
            || Entry::encoded_bytes(body.len()) > self.config.max_value
        {
            Err(SubmitError::TooLarge)
        } else if waiting + self.events.len() >= self.config.max_in_flight {
            Err(SubmitError::Full)
        } else {
            Ok(())
        }
    }

    /// The next packet to send at `now_ns`, if any. Takes as many requests along as are waiting
    /// right now and fit; none is delayed for company.
    pub fn poll_transmit(&mut self, now_ns: u64) -> Option<Datagram<'_>> {
        if let Some(to) = self.next_to_ask() {
            self.counters.datagrams += 1;
            self.buffer.clear();
            let none = SessionId(0);
            let header = self.request(none, Flags::default(), Sequence(0), Sequence(0));
            return Some(Datagram {
                to,
                header,
                value: &[],
            });
        }
        let is_held = self.held_until_ns.is_some_and(|until| now_ns < until);
        let for_leader = match is_held {
            true => None,
            false => {
                self.held_until_ns = None;
                self.pack_open(now_ns)
                    .or_else(|| self.pack_commands(now_ns))
            }
        };
        let (to, header) = match for_leader {
            Some(header) => (self.target, header),
            None => {
                let reader = self.reader_at(now_ns);
                let to = reader.or((!is_held).then_some(self.target))?;
                (to, self.pack_queries(now_ns)?)
            }
        };
        self.counters.datagrams += 1;
        Some(Datagram {
            to,
            header,
            value: &self.buffer,
        })
    }

    /// Who answers queries whoever leads, unless it could not lately.
    fn reader_at(&self, now_ns: u64) -> Option<SocketAddr> {
        self.reader.filter(|_| now_ns >= self.no_reader_until_ns)
    }

    /// The next member but the silent one to ask who leads: an empty Request.
    fn next_to_ask(&mut self) -> Option<SocketAddr> {
        let from = self.inquiry.take()?;
        let members = self.config.members.iter().enumerate().skip(from);
        let (at, &(_, address)) = { members }.find(|(_, (_, at))| *at != self.target)?;
        self.inquiry = Some(at + 1);
        Some(address)
    }

    fn pack_open(&mut self, now_ns: u64) -> Option<Header> {
        if matches!(self.session, Session::Closed) && self.commands.has_unsent() {
            let nonce = self.random.next();
            self.session = Session::Opening {
                nonce,
                due: true,
                deadline_ns: None,
            };
        }
        let Session::Opening {
            nonce,
            due: due @ true,
            deadline_ns,
        } = &mut self.session
        else {
            return None;
        };
        *due = false;
        *deadline_ns = Some(now_ns + self.pace.wait_ns());
        let entry = Entry {
            kind: EntryKind::Open,
            session: SessionId(*nonce),
            sequence: Sequence(0),
            behind: 0,
            body: &[],
        };
        self.buffer.clear();
        entry.append(&mut self.buffer);
        Some(self.request(SessionId(0), Flags::default(), Sequence(0), Sequence(0)))
    }

    fn pack_commands(&mut self, now_ns: u64) -> Option<Header> {
        let limit = self.config.max_value;
        let Session::Open(id) = self.session else {
            return None;
        };
        let packed = self.commands.pack(now_ns, id, limit, &mut self.buffer)?;
        self.commands
            .deadline_ns
            .get_or_insert(now_ns + self.pace.wait_ns());
        Some(self.request_packed(id, Flags::default(), &packed))
    }

    fn pack_queries(&mut self, now_ns: u64) -> Option<Header> {
        let limit = self.config.max_value;
        // A query names no session: it must not end with one.
        let none = SessionId(0);
        let packed = self.queries.pack(now_ns, none, limit, &mut self.buffer)?;
        self.queries
            .deadline_ns
            .get_or_insert(now_ns + self.pace.wait_ns());
        Some(self.request_packed(none, Flags::QUERY, &packed))
    }

    fn request_packed(&mut self, session: SessionId, flags: Flags, packed: &Packed) -> Header {
        self.counters.requests += packed.entries;
        self.counters.repeated += packed.resent;
        self.request(session, flags, packed.first, packed.lowest)
    }

    fn request(
        &mut self,
        session: SessionId,
        flags: Flags,
        first: Sequence,
        lowest: Sequence,
    ) -> Header {
        let nonce = self.nonce;
        self.nonce = nonce.wrapping_add(1);
        Header {
            epoch: self.config.epoch,
            slot: crate::Slot(session.0),
            ballot: Ballot(first.0),
            watermark: lowest.0,
            // The configuration bounds the buffer to MAX_VALUE_BYTES.
            length: self.buffer.len() as u16,
            flags,
            nonce,
            ..Header::new(Kind::Request, self.config.group, NodeId::NONE)
        }
    }

    /// Takes a parsed packet that arrived at `now_ns`. What is not for this client is ignored.
    pub fn handle_datagram(
        &mut self,
        now_ns: u64,
        from: SocketAddr,
        header: &Header,
        value: &[u8],
    ) {
        if header.group != self.config.group {
            return;
        }
        match header.kind {
            Kind::Response => self.handle_response(now_ns, from, header, value),
            Kind::Redirect => self.handle_redirect(now_ns, from, header, value),
            _ => {}
        }
    }

    fn handle_response(&mut self, now_ns: u64, from: SocketAddr, header: &Header, value: &[u8]) {
        let mut answered = false;
        for outcome in envelope::outcomes(value).map_while(Result::ok) {
            answered |=
                if outcome.sequence.0 >= FIRST_QUERY && self.queries.awaits(outcome.sequence) {
                    self.handle_query_outcome(now_ns, &outcome)
                } else {
                    match self.session {
                        Session::Closed => false,
                        Session::Opening { nonce, .. } => self.handle_opening(nonce, &outcome),
                        Session::Open(id) if id == header.session() => {
                            self.handle_command_outcome(now_ns, header.nonce, &outcome)
                        }
                        Session::Open(_) => false,
                    }
                };
        }
        if answered {
            // Whoever answers leads, but for a reader. An answer in time needs no turn: its sender is
            // the target or was, before a redirect that knew better.
            if from == self.target || self.reader != Some(from) {
                if self.pace.timeouts > 0 && from != self.target {
                    self.turn(now_ns, from);
                }
                self.pace.timeouts = 0;
                self.hops = 0;
                self.held_until_ns = None;
            }
            self.settle(now_ns);
        }
    }

    fn handle_query_outcome(&mut self, now_ns: u64, outcome: &Outcome<'_>) -> bool {
        let result = match outcome.status {
            Status::Done => Ok(outcome.body.to_vec()),
            Status::TooLarge => Err(Failure::TooLarge),
            Status::OutOfOrder
            | Status::UnknownSession
            | Status::Opened
            | Status::TooManySessions
            | Status::ReplyForgotten => return false,
        };
        let Some((token, round_trip)) = self.queries.give(now_ns, outcome.sequence) else {
            return false;
        };
        self.events.push_back(Event { token, result });
        self.measure(round_trip);
        true
    }

    fn handle_opening(&mut self, nonce: u64, outcome: &Outcome<'_>) -> bool {
        if outcome.sequence.0 != nonce {
            return false;
        }
        match (
            outcome.status,
            <[u8; 8]>::try_from(outcome.body).map(u64::from_be_bytes),
        ) {
            (Status::Opened, Ok(id @ 1..)) => {
                self.session = Session::Open(SessionId(id));
                self.counters.sessions += 1;
                true
            }
            (Status::TooManySessions, _) => {
                self.session = Session::Closed;
                let events = &mut self.events;
                self.commands
                    .refuse_unsent(Failure::TooManySessions, deliver_to(events));
                true
            }
            _ => false,
        }
    }

    fn handle_command_outcome(&mut self, now_ns: u64, nonce: u32, outcome: &Outcome<'_>) -> bool {
        let reply = match outcome.status {
            Status::Done => Ok(outcome.body.to_vec()),
            Status::ReplyForgotten => Err(Failure::ReplyForgotten),
            Status::TooLarge => Err(Failure::TooLarge),
            Status::OutOfOrder => {
                // One gap makes every datagram behind it arrive out of order; only those that were
                // sent after the last repetition tell of another gap.
                if self.is_news(self.rewound, nonce, now_ns)
                    && self.commands.rewind_to(outcome.sequence)
                {
                    self.rewound = Mark {
                        nonce: self.nonce,
                        at_ns: now_ns,
                    };
                }
                return false;
            }
            Status::UnknownSession => {
                let lost = self.commands.awaits(outcome.sequence);
                if lost {
                    self.lose_session();
                }
                return lost;
            }
            Status::Opened | Status::TooManySessions => return false,
        };
        if !self.commands.awaits(outcome.sequence) {
            return false;
        }
        let round_trip = self.commands.hold(now_ns, outcome.sequence, reply);
        self.measure(round_trip);
        if outcome.status == Status::TooLarge {
            // The session will never take this number, so nothing behind it can be applied; and to
            // use the number again would race with packets that still carry the old use.
            self.lose_session();
        }
        true
    }

    fn lose_session(&mut self) {
        self.session = Session::Closed;
        let events = &mut self.events;
        self.commands
            .restart(1, Failure::OutcomeUnknown, deliver_to(events));
    }

    fn measure(&mut self, round_trip_ns: Option<u64>) {
        if let Some(round_trip_ns) = round_trip_ns {
            self.pace.measure(round_trip_ns);
        }
    }

    fn settle(&mut self, now_ns: u64) {
        let wait = self.pace.wait_ns();
        for lane in [&mut self.commands, &mut self.queries] {
            if lane.settle(deliver_to(&mut self.events)) {
                lane.deadline_ns = lane.is_under_way().then_some(now_ns + wait);
                lane.timeouts = 0;
            }
        }
    }

    fn handle_redirect(&mut self, now_ns: u64, from: SocketAddr, header: &Header, value: &[u8]) {
        if self.reader_at(now_ns) == Some(from) && self.queries.is_under_way() {
            self.pass_reader_over(now_ns);
        }
        if !self.is_news(self.turned, header.nonce, now_ns) {
            return;
        }
        let leader = self.leader_address(header.vote_ballot.0, value);
        if from != self.target && leader.is_none_or(|leader| leader == self.target) {
            // Another member has not noticed yet that the one asked is silent: it tells later. Or it
            // knows what the one asked did not know yet.
            if leader == Some(self.target) {
                self.held_until_ns = None;
            }
            return;
        }
        if from == self.target && leader == Some(from) {
            // It was not ready for what it was sent, and is now.
            self.held_until_ns = None;
            self.turn(now_ns, from);
            return self.repeat_everything();
        }
        self.counters.redirects += 1;
        self.held_until_ns = None;
        match leader.filter(|&leader| leader != self.target && self.hops < MAX_HOPS) {
            Some(leader) => {
                self.hops += 1;
                self.turn(now_ns, leader);
            }
            None => {
                self.hops = 0;
                self.turn_to_next_member(now_ns);
                let jitter = self.random.below(LEADERLESS_WAIT_NS / 2);
                self.held_until_ns = Some(now_ns + LEADERLESS_WAIT_NS * 3 / 4 + jitter);
            }
        }
        self.repeat_everything();
    }

    fn leader_address(&self, node: u64, value: &[u8]) -> Option<SocketAddr> {
        let member = self
            .config
            .members
            .iter()
            .find(|(id, _)| u64::from(id.0) == node);
        match node {
            0 => None,
            _ => decode_address(value).or(member.map(|&(_, address)| address)),
        }
    }

    /// Whether the answer to datagram `nonce` says something that `mark` did not know: the
    /// datagram was sent after it, or a round trip has passed.
    fn is_news(&self, mark: Mark, nonce: u32, now_ns: u64) -> bool {
        let sent_since = self.nonce.wrapping_sub(mark.nonce);
        nonce.wrapping_sub(mark.nonce) < sent_since
            || now_ns >= mark.at_ns.saturating_add(self.pace.round_trip_ns())
    }

    fn turn(&mut self, now_ns: u64, to: SocketAddr) {
        self.target = to;
        self.turned = Mark {
            nonce: self.nonce,
            at_ns: now_ns,
        };
        let members = &self.config.members;
        self.member = members
            .iter()
            .position(|&(_, at)| at == to)
            .unwrap_or(self.member);
    }

    fn turn_to_next_member(&mut self, now_ns: u64) {
        self.member = (self.member + 1) % self.config.members.len();
        if let Some(&(_, address)) = self.config.members.get(self.member) {
            self.turn(now_ns, address);
        }
    }

    fn repeat_everything(&mut self) {
        self.commands.rewind();
        self.queries.rewind();
        self.repeat_open();
    }

    /// Gives what is under way another wait.
    fn put_off(&mut self, now_ns: u64) {
        let due_ns = now_ns + self.pace.wait_ns();
        for lane in [&mut self.commands, &mut self.queries] {
            lane.deadline_ns = lane.deadline_ns.map(|_| due_ns);
        }
        if let Session::Opening { deadline_ns, .. } = &mut self.session {
            *deadline_ns = deadline_ns.map(|_| due_ns);
        }
    }

    fn repeat_open(&mut self) {
        if let Session::Opening {
            due, deadline_ns, ..
        } = &mut self.session
        {
            (*due, *deadline_ns) = (true, None);
        }
    }

    /// When [`Client::handle_timeout`] is to be called, unless something else happens before.
    pub fn poll_timeout(&self) -> Option<u64> {
        let opening_ns = match self.session {
            Session::Opening { deadline_ns, .. } => deadline_ns,
            Session::Closed | Session::Open(_) => None,
        };
        [
            self.held_until_ns,
            opening_ns,
            self.commands.deadline_ns,
            self.queries.deadline_ns,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Asks the other members who leads, which those tell that do not know yet as soon as they do,
    /// and from the second time on again for what was not answered in time; from the third on
    /// every other time somebody else, since the silent one may be dead. What comes after a request
    /// may be answered all the time while that one is lost, so its own time-outs count as well.
    pub fn handle_timeout(&mut self, now_ns: u64) {
        let due = |at: Option<u64>| at.is_some_and(|at| at <= now_ns);
        if due(self.held_until_ns) {
            self.held_until_ns = None;
        }
        let opening =
            matches!(self.session, Session::Opening { deadline_ns, .. } if due(deadline_ns));
        let (commands, queries) = (
            due(self.commands.deadline_ns),
            due(self.queries.deadline_ns),
        );
        if !(opening || commands || queries) {
            return;
        }
        if queries && self.reader_at(now_ns).is_some() {
            self.pass_reader_over(now_ns);
        }
        self.counters.timeouts += 1;
        self.pace.timeouts = self.pace.timeouts.saturating_add(1);
        self.inquiry = Some(0);
        self.hops = 0;
        for (lane, is_due) in [(&mut self.commands, commands), (&mut self.queries, queries)] {
            lane.timeouts = lane.timeouts.saturating_add(u32::from(is_due));
        }
        let of_front = self.commands.timeouts.max(self.queries.timeouts);
        match self.pace.timeouts {
            1 if of_front <= 1 => self.put_off(now_ns),
            others => {
                if others > 1 && !others.is_multiple_of(2) {
                    self.turn_to_next_member(now_ns);
                }
                self.repeat_everything();
            }
        }
    }

    /// Has the leader answer queries for a while.
    fn pass_reader_over(&mut self, now_ns: u64) {
        self.no_reader_until_ns = now_ns + NO_READER_NS;
        self.queries.rewind();
    }

    /// The next request that ended.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// How many requests have not ended yet.
    pub fn unanswered(&self) -> usize {
        self.commands.len() + self.queries.len()
    }

    /// Whom the client takes for the leader.
    pub fn target(&self) -> SocketAddr {
        self.target
    }

    /// The open session, if there is one.
    pub fn session(&self) -> Option<SessionId> {
        match self.session {
            Session::Open(id) => Some(id),
            Session::Closed | Session::Opening { .. } => None,
        }
    }

    /// What the client did so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }
}

fn deliver_to(events: &mut VecDeque<Event>) -> impl FnMut(u64, Reply) {
    |token, result| events.push_back(Event { token, result })
}

/// The address in a Redirect's value, or `None` if it holds no usable one.
pub fn decode_address(value: &[u8]) -> Option<SocketAddr> {
    let bytes: &[u8; ADDRESS_BYTES] = value.try_into().ok()?;
    let (ip, port) = bytes.split_first_chunk::<16>()?;
    let ip = Ipv6Addr::from(*ip);
    let port = u16::from_be_bytes(port.try_into().ok()?);
    let ip = ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4);
    (port != 0 && !ip.is_unspecified()).then(|| SocketAddr::new(ip, port))
}

/// The value of a Redirect that names `address`.
pub fn encode_address(address: SocketAddr) -> [u8; ADDRESS_BYTES] {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let mut bytes = [0; ADDRESS_BYTES];
    let (front, back) = bytes.split_at_mut(16);
    front.copy_from_slice(&ip.octets());
    back.copy_from_slice(&address.port().to_be_bytes());
    bytes
}
