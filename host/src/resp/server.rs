//! The thread that speaks to all clients.

use super::cluster::{Cluster, Leaders};
use super::connection::{Connection, Turn};
use super::parser::Limits;
use super::session::Context;
use super::tls::Stream;
use super::users::Users;
use crate::front::{FrontEnd, Wake};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};
use rustls::ServerConfig;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const WAKER: Token = Token(0);
const FIRST_LISTENER: usize = 1;
/// One for plain connections and one for TLS.
const MAX_LISTENERS: usize = 2;
const FIRST_CONNECTION: usize = FIRST_LISTENER + MAX_LISTENERS;
const EVENTS_PER_TURN: usize = 1024;
/// Connections taken from one listener before those that there are have their turn.
const ACCEPTS_PER_TURN: usize = 64;
/// How often at the most it is looked for strangers within the time that one has.
const LOOKS_FOR_STRANGERS: u32 = 8;
/// How long accepting rests when the process has no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A bulk string up to this length is read even if no command may be so long: the client is then
/// told the limit and keeps its connection.
const MIN_BULK_LIMIT: usize = 1024 * 1024;

/// A listener.
#[derive(Clone, Debug)]
pub struct Listen {
    /// Where; port 0 takes a free one.
    pub address: SocketAddr,
    /// How it speaks TLS, if it does.
    pub tls: Option<Arc<ServerConfig>>,
}

/// How the server listens.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where, at most two.
    pub listen: Vec<Listen>,
    /// Most connections at once; one more is told so and closed.
    pub max_connections: usize,
    /// Longest body of a command or query in bytes.
    pub max_command_bytes: usize,
    /// How long a client may take to say who it is or, where nobody has to, to ask for anything.
    pub patience: Duration,
    /// How long a stop waits for the answers to what has been asked.
    pub grace: Duration,
    /// Who may do what.
    pub users: Users,
    /// What it is a part of.
    pub cluster: Cluster,
}

impl Options {
    /// The usual bounds, listening at `address` without TLS.
    pub fn new(address: SocketAddr, max_command_bytes: usize) -> Self {
        let grace = Duration::from_secs(2);
        Self {
            listen: vec![Listen { address, tls: None }],
            max_connections: 10_000,
            max_command_bytes,
            patience: Duration::from_secs(30),
            grace,
            users: Users::default(),
            cluster: Cluster {
                name: 0,
                own: 1,
                members: Vec::new(),
                leaders: Leaders::new(1),
            },
        }
    }
}

/// The server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Somebody else listens there.
    #[error(
        "listen for Redis clients at {listen}: the port is in use; \
         choose another, or find who has it with `ss -ltnp sport = :{}`", listen.port()
    )]
    PortInUse {
        /// Where it should have listened.
        listen: SocketAddr,
    },
    /// The address is not one of this machine.
    #[error(
        "listen for Redis clients at {listen}: this machine has no such address; \
         `ip address` shows those it has"
    )]
    NoSuchAddress {
        /// Where it should have listened.
        listen: SocketAddr,
    },
    /// Listening failed otherwise.
    #[error("listen for Redis clients at {listen}")]
    Listen {
        /// Where it should have listened.
        listen: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The thread or its poll could not be made.
    #[error("start the thread for Redis clients")]
    Start(#[source] io::Error),
}

/// A server that listens but does not answer yet: its waker goes into [`crate::front::attach`].
#[derive(Debug)]
pub struct Server {
    options: Options,
    local: Vec<SocketAddr>,
    listeners: Vec<TcpListener>,
    poll: Poll,
    waker: Arc<Waker>,
}

/// A running server; dropping it stops it.
#[derive(Debug)]
pub struct Handle {
    local: Vec<SocketAddr>,
    stop: Arc<AtomicBool>,
    waker: Arc<Waker>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens.
    ///
    /// # Errors
    /// The address is taken or not ours, or there are no file descriptors.
    pub fn bind(options: Options) -> Result<Self, ServerError> {
        assert!(options.listen.len() <= MAX_LISTENERS, "a token for each");
        let poll = Poll::new().map_err(ServerError::Start)?;
        let waker = Waker::new(poll.registry(), WAKER).map_err(ServerError::Start)?;
        let (mut local, mut listeners) = (Vec::new(), Vec::new());
        for (at, Listen { address, .. }) in options.listen.iter().enumerate() {
            let listen = *address;
            let mut listener = TcpListener::bind(listen).map_err(|source| match source.kind() {
                io::ErrorKind::AddrInUse => ServerError::PortInUse { listen },
                io::ErrorKind::AddrNotAvailable => ServerError::NoSuchAddress { listen },
                _ => ServerError::Listen { listen, source },
            })?;
            let bound = listener.local_addr();
            local.push(bound.map_err(|source| ServerError::Listen { listen, source })?);
            let token = Token(FIRST_LISTENER + at);
            poll.registry()
                .register(&mut listener, token, Interest::READABLE)
                .map_err(ServerError::Start)?;
            listeners.push(listener);
        }
        Ok(Self {
            options,
            local,
            listeners,
            poll,
            waker: Arc::new(waker),
        })
    }

    /// Where it listens, the ports resolved, in the order of the options.
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.local
    }

    /// What wakes the server's thread when there are completions.
    pub fn waker(&self) -> Wake {
        let waker = Arc::clone(&self.waker);
        // The event counter behind it cannot overflow within one turn, nor can it be closed.
        Arc::new(move || drop(waker.wake()))
    }

    /// Starts answering. `info` makes the text of INFO.
    ///
    /// # Errors
    /// The thread cannot be made.
    pub fn spawn(
        self,
        front: FrontEnd,
        info: Arc<dyn Fn() -> String + Send + Sync>,
    ) -> Result<Handle, ServerError> {
        let stop = Arc::new(AtomicBool::new(false));
        let (local, waker) = (self.local.clone(), Arc::clone(&self.waker));
        let turns = Loop::new(self, front, info, Arc::clone(&stop));
        let thread = std::thread::Builder::new()
            .name("resp".to_owned())
            .spawn(|| turns.run())
            .map_err(ServerError::Start)?;
        Ok(Handle {
            local,
            stop,
            waker,
            thread: Some(thread),
        })
    }
}

impl Handle {
    /// Where it listens, the ports resolved, in the order of the options.
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.local
    }

    /// Stops accepting and reading, waits for the answers to what has been asked (at most the
    /// grace of the options) and ends the thread.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let woken = self.waker.wake();
        debug_assert!(woken.is_ok(), "an event counter can be written");
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            debug_assert!(
                ended.is_ok() || std::thread::panicking(),
                "the thread does not panic"
            );
        }
    }
}

struct Loop {
    options: Options,
    limits: Limits,
    listeners: Vec<TcpListener>,
    /// After so long there may be connections to accept.
    accept_after: Option<Duration>,
    poll: Poll,
    front: FrontEnd,
    info: Arc<dyn Fn() -> String + Send + Sync>,
    stop: Arc<AtomicBool>,
    /// A place is free only when nothing of its last connection is in flight, so that no completion
    /// reaches a stranger.
    connections: Vec<Option<Connection>>,
    free: Vec<u32>,
    next_id: u64,
    due: Due,
    stalled: Due,
    /// Until then no stranger has had its time.
    strangers_until: Option<Instant>,
}

/// Connections, each once.
#[derive(Default)]
struct Due {
    places: Vec<u32>,
    marked: Vec<bool>,
}

impl Due {
    fn push(&mut self, place: u32) {
        let at = place as usize;
        if self.marked.len() <= at {
            self.marked.resize(at + 1, false);
        }
        if !std::mem::replace(&mut self.marked[at], true) {
            self.places.push(place);
        }
    }

    /// The places, which are due no longer; `spare` becomes the new list.
    fn take(&mut self, mut spare: Vec<u32>) -> Vec<u32> {
        spare.clear();
        for place in &self.places {
            self.marked[*place as usize] = false;
        }
        std::mem::replace(&mut self.places, spare)
    }
}

impl Loop {
    fn new(
        server: Server,
        front: FrontEnd,
        info: Arc<dyn Fn() -> String + Send + Sync>,
        stop: Arc<AtomicBool>,
    ) -> Self {
        let bulk_bytes = server.options.max_command_bytes.max(MIN_BULK_LIMIT);
        Self {
            options: server.options,
            limits: Limits {
                bulk_bytes,
                request_bytes: 4 * bulk_bytes,
                is_stranger: false,
            },
            listeners: server.listeners,
            accept_after: None,
            poll: server.poll,
            front,
            info,
            stop,
            connections: Vec::new(),
            free: Vec::new(),
            next_id: 1,
            due: Due::default(),
            stalled: Due::default(),
            strangers_until: None,
        }
    }

    fn run(mut self) {
        let mut events = Events::with_capacity(EVENTS_PER_TURN);
        let mut turns = Vec::new();
        let mut deadline: Option<Instant> = None;
        loop {
            if let Err(error) = self.poll.poll(&mut events, self.timeout(deadline))
                && error.kind() != io::ErrorKind::Interrupted
            {
                tracing::error!(%error, "poll for Redis clients");
                return;
            }
            for event in &events {
                match event.token() {
                    WAKER => {}
                    Token(token) if token < FIRST_CONNECTION => {
                        self.accept_after = Some(Duration::ZERO);
                    }
                    Token(token) => {
                        let place = token - FIRST_CONNECTION;
                        if let Some(Some(connection)) = self.connections.get_mut(place) {
                            connection.ready(event);
                            self.due.push(place as u32);
                        }
                    }
                }
            }
            if deadline.is_none() && self.stop.load(Ordering::Acquire) {
                deadline = Some(Instant::now() + self.options.grace);
                self.end_all();
            }
            if deadline.is_none() && self.accept_after.take().is_some() {
                self.accept();
            }
            self.part_with_strangers();
            self.complete();
            turns = self.due.take(turns);
            for place in &turns {
                self.turn(*place);
            }
            self.front.flush();
            let open = self.connections.len() - self.free.len();
            if deadline.is_some_and(|deadline| open == 0 || Instant::now() >= deadline) {
                return;
            }
        }
    }

    fn timeout(&self, deadline: Option<Instant>) -> Option<Duration> {
        if !self.due.places.is_empty() {
            return Some(Duration::ZERO);
        }
        let until = |at: Instant| at.saturating_duration_since(Instant::now());
        let strangers = self.strangers_until.map(until);
        let next = deadline.map_or(self.accept_after, |deadline| Some(until(deadline)));
        next.into_iter().chain(strangers).min()
    }

    /// Strangers cost a descriptor each, which the journal may need.
    fn part_with_strangers(&mut self) {
        let now = Instant::now();
        if self.strangers_until.is_none_or(|until| now < until) {
            return;
        }
        let patience = self.options.patience;
        let mut oldest: Option<Instant> = None;
        for (place, connection) in self.connections.iter_mut().enumerate() {
            let stranger = connection.as_mut().filter(|one| one.is_stranger);
            let Some(stranger) = stranger else { continue };
            if now.duration_since(stranger.since) >= patience {
                stranger.give_up();
                self.due.push(place as u32);
            } else {
                oldest = Some(oldest.map_or(stranger.since, |oldest| oldest.min(stranger.since)));
            }
        }
        // Where they keep coming one look serves for several.
        self.strangers_until =
            oldest.map(|since| (since + patience).max(now + patience / LOOKS_FOR_STRANGERS));
    }

    fn end_all(&mut self) {
        for listener in &mut self.listeners {
            let gone = self.poll.registry().deregister(listener);
            debug_assert!(gone.is_ok(), "the listener was registered");
        }
        for (place, connection) in self.connections.iter_mut().enumerate() {
            if let Some(connection) = connection {
                connection.ending = true;
                self.due.push(place as u32);
            }
        }
    }

    fn accept(&mut self) {
        for at in 0..self.listeners.len() {
            self.accept_at(at);
        }
    }

    fn accept_at(&mut self, at: usize) {
        for _ in 0..ACCEPTS_PER_TURN {
            match self.listeners[at].accept() {
                Ok((stream, peer)) => self.admit(at, stream, peer),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return,
                    // These are about the one connection that did not come to be.
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
                    _ => {
                        tracing::warn!(%error, "accept a Redis client");
                        self.accept_after.get_or_insert(ACCEPT_PAUSE);
                        return;
                    }
                },
            }
        }
        self.accept_after = Some(Duration::ZERO);
    }

    fn admit(&mut self, listener: usize, mut stream: TcpStream, peer: SocketAddr) {
        let tls = self.options.listen[listener].tls.as_ref();
        if self.connections.len() - self.free.len() >= self.options.max_connections {
            if tls.is_some() {
                return;
            }
            // A client that does not take these few bytes at once learns it from the close.
            let _ = stream.write(b"-ERR max number of clients reached\r\n");
            return;
        }
        let place = self.free.pop().unwrap_or_else(|| {
            self.connections.push(None);
            self.connections.len() as u32 - 1
        });
        let token = Token(place as usize + FIRST_CONNECTION);
        let interest = Interest::READABLE | Interest::WRITABLE;
        let ready = stream
            .set_nodelay(true)
            .and_then(|()| self.poll.registry().register(&mut stream, token, interest));
        if ready.is_err() {
            self.free.push(place);
            return;
        }
        let stream = match Stream::new(stream, tls) {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "begin TLS with a Redis client");
                self.free.push(place);
                return;
            }
        };
        let connection =
            Connection::new(stream, peer, self.next_id, self.limits, &self.options.users);
        self.next_id += 1;
        let until = connection.since + self.options.patience;
        self.strangers_until.get_or_insert(until);
        self.connections[place as usize] = Some(connection);
        self.due.push(place);
    }

    fn complete(&mut self) {
        let info = Arc::clone(&self.info);
        let context = Context {
            info: &*info,
            max_command_bytes: self.options.max_command_bytes,
            users: &self.options.users,
            cluster: &self.options.cluster,
        };
        let mut any = false;
        while let Some(completion) = self.front.poll_completion() {
            any = true;
            let place = (completion.token >> 32) as u32;
            let connection = self
                .connections
                .get_mut(place as usize)
                .and_then(Option::as_mut);
            if let Some(connection) = connection {
                connection.complete(completion.token as u32, completion.result, &context);
                self.due.push(place);
            }
        }
        let detached = self.front.is_detached();
        if detached {
            for (place, connection) in self.connections.iter_mut().enumerate() {
                if let Some(connection) = connection {
                    connection.abandon(&context);
                    self.due.push(place as u32);
                }
            }
        }
        if any || detached {
            for place in self.stalled.take(Vec::new()) {
                self.due.push(place);
            }
        }
    }

    fn turn(&mut self, place: u32) {
        let Some(Some(connection)) = self.connections.get_mut(place as usize) else {
            return;
        };
        let context = Context {
            info: &*self.info,
            max_command_bytes: self.options.max_command_bytes,
            users: &self.options.users,
            cluster: &self.options.cluster,
        };
        match connection.turn(place, &mut self.front, &context) {
            Turn::Idle => {}
            Turn::Again => self.due.push(place),
            // Nothing will come back from a worker that is gone.
            Turn::Stalled if self.front.is_detached() => {
                connection.abandon(&context);
                self.due.push(place);
            }
            Turn::Stalled => self.stalled.push(place),
            Turn::Over => {
                let gone = self.poll.registry().deregister(connection.socket_mut());
                debug_assert!(gone.is_ok(), "the connection was registered");
                self.connections[place as usize] = None;
                self.free.push(place);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn many_who_connect_at_once_leave_those_that_there_are_their_turn() {
        let server = Server::bind(Options::new((Ipv4Addr::LOCALHOST, 0).into(), 1024)).unwrap();
        let address = server.local_addrs()[0];
        let (front, _end) = crate::front::attach(16, 1, Arc::new(|| {}), server.waker());
        let mut turns = Loop::new(server, front, Arc::new(String::new), Arc::default());
        let connect = |_| std::net::TcpStream::connect(address).unwrap();
        let clients: Vec<_> = (0..=2 * ACCEPTS_PER_TURN).map(connect).collect();
        for taken in [
            ACCEPTS_PER_TURN,
            2 * ACCEPTS_PER_TURN,
            2 * ACCEPTS_PER_TURN + 1,
        ] {
            turns.accept();
            assert_eq!(turns.connections.len(), taken);
            let is_last = taken == clients.len();
            assert_eq!(turns.accept_after.take().is_none(), is_last);
        }
    }
}
