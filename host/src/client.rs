//! The client library: commands that are applied exactly once, from an ordinary blocking thread.
//!
//! A [`Client`] is one session of a cluster. It needs no thread of its own: its socket is served
//! while a call waits. It finds the leader, follows it when it moves, and repeats what was lost;
//! see [`consensus::client`] for what that promises.
//!
//! ```no_run
//! use consensus::NodeId;
//! use nearwire::client::{Client, Options};
//! use nearwire::kv;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let members = [
//!     (NodeId(1), "127.0.0.1:4747".parse()?),
//!     (NodeId(2), "127.0.0.1:4748".parse()?),
//!     (NodeId(3), "127.0.0.1:4749".parse()?),
//! ];
//! let mut client = Client::connect(&members, Options::default())?;
//!
//! let (_, body) = kv::encode(&[b"SET", b"greeting", b"hello"])?;
//! assert_eq!(client.execute(&body)?, b"+OK\r\n");
//!
//! // Or several at once: replies to commands come in the order of submission.
//! let (_, body) = kv::encode(&[b"INCR", b"visits"])?;
//! for token in 0..16 {
//!     client.submit(token, &body)?;
//! }
//! for _ in 0..16 {
//!     let done = client.poll()?;
//!     println!("{}: {:?}", done.token, done.result?);
//! }
//! # Ok(())
//! # }
//! ```

use consensus::auth::{self, Keys};
use consensus::client::{self as core, ConfigError, Event, SubmitError};
use consensus::wire::{self, MTU_VALUE_BYTES, Parsed};
use consensus::{Epoch, GroupId, NodeId};
use datapath::{Datapath, Received, Transmit, Udp, Wait, clock};
use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

pub use consensus::client::{Counters, Failure};

/// Longest value of a datagram in bytes.
const MAX_DATAGRAM_VALUE: usize = 65_535;
/// Tokens from here on are the client's own, for [`Client::execute`] and [`Client::query`].
const FIRST_OWN_TOKEN: u64 = 1 << 63;

/// What a client may be told.
#[derive(Clone, Debug)]
pub struct Options {
    /// The cluster's keys: requests carry the tag of the one that signs, and replies without the tag
    /// of either are dropped.
    pub keys: Option<Keys>,
    /// How long a call waits for a reply.
    pub timeout: Duration,
    /// The log to write to.
    pub group: GroupId,
    /// Longest value of a request in bytes, at most what the replicas' regions take.
    pub max_value: usize,
    /// How many commands (and as many queries) may be unanswered, 1 to 4,096.
    pub max_in_flight: usize,
    /// How a call waits for packets.
    pub wait: Wait,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            keys: None,
            timeout: Duration::from_secs(5),
            group: GroupId(0),
            max_value: MTU_VALUE_BYTES / 8 * 8,
            max_in_flight: 64,
            wait: Wait::Blocking,
        }
    }
}

/// A request has no reply.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The description of the cluster makes no client.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is no randomness, and two clients must not have the same.
    #[error("seed the client: {0}")]
    Seed(getrandom::Error),
    /// The socket cannot be opened or went away.
    #[error(transparent)]
    Datapath(#[from] datapath::Error),
    /// The request was not taken and will not be sent.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// Nobody answered in time. A command goes on being repeated while the client is used, so it
    /// may still be applied, once.
    #[error(
        "no reply within {} ms from {}{}",
        after.as_millis(),
        addresses(asked),
        refused_note(*refused)
    )]
    TimedOut {
        /// How long it was waited for.
        after: Duration,
        /// The members.
        asked: Vec<SocketAddr>,
        /// Packets that came but did not carry the key's tag, or were malformed.
        refused: u64,
    },
    /// It ended without a reply.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// Nothing was submitted that [`Client::poll`] could wait for.
    #[error("poll: nothing is unanswered")]
    Idle,
}

impl ClientError {
    /// What mends it, where that can be said.
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::TimedOut { refused: 1.., .. } => {
                Some("the cluster has another key: give its key file")
            }
            Self::TimedOut { refused: 0, .. } => Some(
                "see `nearwire status`: a majority must run, and if the cluster has a key its \
                 clients need it",
            ),
            Self::Submit(SubmitError::TooLarge) | Self::Failed(Failure::TooLarge) => {
                Some("send less at once, or make the region with a larger value_bytes")
            }
            Self::Failed(Failure::OutcomeUnknown | Failure::ReplyForgotten) => {
                Some("read back what the command was to change before sending it again")
            }
            Self::Failed(Failure::TooManySessions) => Some("end other clients, or wait a while"),
            Self::Submit(SubmitError::Full) => Some("collect replies before submitting more"),
            Self::Config(_) | Self::Seed(_) | Self::Datapath(_) | Self::Idle => None,
        }
    }
}

fn addresses(asked: &[SocketAddr]) -> String {
    let asked: Vec<_> = asked.iter().map(ToString::to_string).collect();
    asked.join(", ")
}

fn refused_note(refused: u64) -> String {
    match refused {
        0 => String::new(),
        _ => format!("; {refused} packets came that do not carry the key's tag"),
    }
}

/// A submitted request ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Completion {
    /// What was given with the request.
    pub token: u64,
    /// The state machine's reply.
    pub result: Result<Vec<u8>, Failure>,
}

/// One session with a cluster, over UDP from a port of its own. See the module's text.
pub struct Client {
    session: core::Client,
    socket: Udp,
    options: Options,
    members: Vec<SocketAddr>,
    /// Ended but not collected; never longer than the windows of commands and queries.
    done: VecDeque<Completion>,
    next_own_token: u64,
    refused: u64,
}

impl Client {
    /// A client of the cluster with these members. Nothing is sent before the first request.
    /// A member's number may be [`NodeId::NONE`] if only its address is known.
    ///
    /// # Errors
    /// There are no members, an option is out of range, or there is no socket left.
    pub fn connect(
        members: &[(NodeId, SocketAddr)],
        options: Options,
    ) -> Result<Self, ClientError> {
        let session = core::Client::new(core::Config {
            members: members.to_vec(),
            group: options.group,
            epoch: Epoch(0),
            max_value: options.max_value,
            max_in_flight: options.max_in_flight,
            seed: getrandom::u64().map_err(ClientError::Seed)?,
        })?;
        let members: Vec<_> = members.iter().map(|&(_, address)| address).collect();
        Ok(Self {
            session,
            socket: Udp::bind(any_port(&members), options.wait)?,
            options,
            members,
            done: VecDeque::new(),
            next_own_token: FIRST_OWN_TOKEN,
            refused: 0,
        })
    }

    /// Has the state machine apply `command` and returns its reply.
    ///
    /// # Errors
    /// Not taken, not answered in time, or ended without a reply; the error says whether the
    /// command may have been applied.
    pub fn execute(&mut self, command: &[u8]) -> Result<Vec<u8>, ClientError> {
        let token = self.own_token();
        self.session.submit_command(token, command)?;
        self.reply_to(token)
    }

    /// Has the state machine answer `query`, which changes nothing. It sees every command that was
    /// answered before, whoever sent it.
    ///
    /// # Errors
    /// Not taken, not answered in time, or ended without a reply.
    pub fn query(&mut self, query: &[u8]) -> Result<Vec<u8>, ClientError> {
        let token = self.own_token();
        self.session.submit_query(token, query)?;
        self.reply_to(token)
    }

    /// Sends a command without waiting for its reply, which [`poll`](Self::poll) returns with
    /// `token`. Commands are applied and answered in the order of submission.
    ///
    /// # Errors
    /// It was not taken: too many are unanswered or uncollected, or it is too long.
    ///
    /// # Panics
    /// `token` is 2^63 or more.
    pub fn submit(&mut self, token: u64, command: &[u8]) -> Result<(), ClientError> {
        self.admit(token)?;
        self.session.submit_command(token, command)?;
        self.transmit()
    }

    /// Sends a query without waiting for its reply. Queries are answered in any order.
    ///
    /// # Errors
    /// As for [`submit`](Self::submit).
    ///
    /// # Panics
    /// As for [`submit`](Self::submit).
    pub fn submit_query(&mut self, token: u64, query: &[u8]) -> Result<(), ClientError> {
        self.admit(token)?;
        self.session.submit_query(token, query)?;
        self.transmit()
    }

    /// Waits for the next submitted request to end.
    ///
    /// # Errors
    /// None ended in time, or none is under way.
    pub fn poll(&mut self) -> Result<Completion, ClientError> {
        let deadline_ns = self.deadline_ns();
        loop {
            if let Some(done) = self.done.pop_front() {
                return Ok(done);
            }
            if self.session.unanswered() == 0 {
                return Err(ClientError::Idle);
            }
            self.turn(deadline_ns, |_| false)?;
        }
    }

    /// The next submitted request that has ended, without waiting.
    ///
    /// # Errors
    /// The socket went away.
    pub fn try_poll(&mut self) -> Result<Option<Completion>, ClientError> {
        if self.done.is_empty() {
            self.transmit()?;
            self.receive(|_| false)?;
        }
        Ok(self.done.pop_front())
    }

    /// How many requests have not ended yet.
    pub fn unanswered(&self) -> usize {
        self.session.unanswered()
    }

    /// Whom the client takes for the leader.
    pub fn leader(&self) -> SocketAddr {
        self.session.target()
    }

    /// The address that the client sends from.
    pub fn local_addr(&self) -> SocketAddr {
        self.socket.local_addr()
    }

    /// What the client did so far.
    pub fn counters(&self) -> Counters {
        self.session.counters()
    }

    fn admit(&self, token: u64) -> Result<(), ClientError> {
        assert!(token < FIRST_OWN_TOKEN, "tokens are below 2^63");
        if self.done.len() >= self.options.max_in_flight {
            return Err(SubmitError::Full.into());
        }
        Ok(())
    }

    fn own_token(&mut self) -> u64 {
        self.next_own_token += 1;
        self.next_own_token
    }

    fn deadline_ns(&self) -> u64 {
        let timeout_ns = u64::try_from(self.options.timeout.as_nanos()).unwrap_or(u64::MAX);
        clock::monotonic_ns().saturating_add(timeout_ns)
    }

    fn reply_to(&mut self, token: u64) -> Result<Vec<u8>, ClientError> {
        let deadline_ns = self.deadline_ns();
        let mut reply = None;
        loop {
            self.turn(deadline_ns, |event| {
                let awaited = event.token == token;
                if awaited {
                    reply = Some(event.result.clone());
                }
                awaited
            })?;
            if let Some(result) = reply {
                return Ok(result?);
            }
        }
    }

    /// Sends what is due, then waits for packets or a timer, and takes what came.
    fn turn(
        &mut self,
        deadline_ns: u64,
        taken: impl FnMut(&Event) -> bool,
    ) -> Result<(), ClientError> {
        self.transmit()?;
        let now_ns = clock::monotonic_ns();
        if now_ns >= deadline_ns {
            return Err(ClientError::TimedOut {
                after: self.options.timeout,
                asked: self.members.clone(),
                refused: self.refused,
            });
        }
        let until_ns = self
            .session
            .poll_timeout()
            .unwrap_or(u64::MAX)
            .min(deadline_ns);
        let at_most = Duration::from_nanos(until_ns.saturating_sub(now_ns));
        self.socket.wait(at_most)?;
        self.receive(taken)
    }

    fn transmit(&mut self) -> Result<(), ClientError> {
        let now_ns = clock::monotonic_ns();
        let (_, out) = self.socket.halves();
        while let Some(datagram) = self.session.poll_transmit(now_ns) {
            let mut header = datagram.header;
            if let Some(keys) = self.options.keys {
                header.tag = auth::tag(keys.signs, &header, datagram.value);
            }
            // What the queue refuses is repeated after a timeout.
            out.send(datagram.to, &header.to_bytes(), datagram.value);
        }
        Ok(self.socket.flush()?)
    }

    fn receive(&mut self, mut taken: impl FnMut(&Event) -> bool) -> Result<(), ClientError> {
        let count = self.socket.receive()?;
        let now_ns = clock::monotonic_ns();
        let (inbox, _) = self.socket.halves();
        for index in 0..count {
            let (from, datagram) = inbox.packet(index);
            match wire::parse(datagram, MAX_DATAGRAM_VALUE) {
                Parsed::Ours(header, value)
                    if self
                        .options
                        .keys
                        .is_none_or(|keys| keys.is_authentic(&header, value)) =>
                {
                    self.session.handle_datagram(now_ns, from, &header, value);
                }
                Parsed::Ours(..) | Parsed::Malformed(_) => self.refused += 1,
                Parsed::NotOurs => {}
            }
        }
        if self
            .session
            .poll_timeout()
            .is_some_and(|at_ns| at_ns <= now_ns)
        {
            self.session.handle_timeout(now_ns);
        }
        while let Some(event) = self.session.poll_event() {
            // Replies that an earlier call of `execute` no longer waits for are nobody's.
            if !taken(&event) && event.token < FIRST_OWN_TOKEN {
                self.done.push_back(Completion {
                    token: event.token,
                    result: event.result,
                });
            }
        }
        Ok(())
    }
}

/// A port of our own choice, of the members' family, and out of reach of other machines if the
/// cluster is on this one.
pub(crate) fn any_port(members: &[SocketAddr]) -> SocketAddr {
    let all = |is: fn(&SocketAddr) -> bool| members.iter().all(is);
    let loopback = all(|address| address.ip().is_loopback());
    let ip: IpAddr = match (all(SocketAddr::is_ipv4), all(SocketAddr::is_ipv6), loopback) {
        (true, _, true) => Ipv4Addr::LOCALHOST.into(),
        (true, _, false) => Ipv4Addr::UNSPECIFIED.into(),
        (false, true, true) => Ipv6Addr::LOCALHOST.into(),
        (false, ..) => Ipv6Addr::UNSPECIFIED.into(),
    };
    SocketAddr::new(ip, 0)
}
