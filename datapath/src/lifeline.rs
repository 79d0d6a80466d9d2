//! Notices that a process on another host has died.

use crate::{Error, clock};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect, getsockopt, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeSpec;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How long a connection may take before it is tried again, in nanoseconds.
const CONNECT_NS: u64 = 1_000_000_000;
/// Between two tries at first, and at most: it doubles.
const AGAIN_NS: u64 = 1_000_000;
const MAX_AGAIN_NS: u64 = 100_000_000;
/// A connection that ends sooner than this was none to a node: something in between took it.
const LEAST_UP_NS: u64 = 1_000_000_000;
/// Most connections of others. Whoever opens more ends the oldest, whose owner opens another.
const MAX_GUESTS: usize = 256;
/// Refusals that nobody has looked at yet.
const MAX_REFUSALS: usize = 64;
/// Idle time after which the kernel asks whether the other end knows the connection, between two
/// questions, and how many: a host that lost power knows none when it is back.
const KEEP_ALIVE_S: (u32, u32, u32) = (5, 1, 3);

/// Connections to other nodes that carry nothing and end when the process at the other end does.
///
/// Every node listens on the TCP port with its UDP port's number and connects to every other. When
/// a process ends, in whatever way, its kernel closes its sockets, so a connection to it ends within
/// one trip; a new one is then refused (RFC 9293, section 3.5.2). Only such a refusal is told, and
/// only of an address that had taken a connection before: what a firewall refuses or cuts says
/// nothing. A host that lost power, or is cut off, and a process that was stopped refuse nothing.
pub struct Lifelines {
    shared: Arc<Shared>,
    refusals: Receiver<(u64, SocketAddr)>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    peers: Mutex<Vec<SocketAddr>>,
    changed: EventFd,
    is_over: AtomicBool,
}

impl Lifelines {
    /// Listens on `local`. `wake` is called when there is a refusal to look at.
    ///
    /// # Errors
    /// The address is in use, or the system has no descriptor or thread left.
    pub fn start(local: SocketAddr, wake: impl Fn() + Send + 'static) -> Result<Self, Error> {
        let listens = TcpListener::bind(local).and_then(|listener| {
            listener.set_nonblocking(true)?;
            Ok(listener)
        });
        let listener = listens
            .map_err(|error| Error::system(format!("listen on TCP {local} for others"), error))?;
        let changed = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|error| Error::system("make an event", error))?;
        let shared = Arc::new(Shared {
            peers: Mutex::default(),
            changed,
            is_over: AtomicBool::new(false),
        });
        let (tell, refusals) = sync_channel(MAX_REFUSALS);
        let mut watch = Watch {
            shared: Arc::clone(&shared),
            listener,
            lines: Vec::new(),
            guests: VecDeque::new(),
            deaf_until_ns: 0,
            tell,
            wake: Box::new(wake),
        };
        let thread = thread::Builder::new()
            .name("lifelines".into())
            .spawn(move || watch.run())
            .map_err(|error| Error::system("start a thread for lifelines", error))?;
        Ok(Self {
            shared,
            refusals,
            thread: Some(thread),
        })
    }

    /// Watches the processes at these addresses from now on, and no others.
    pub fn watch(&self, peers: Vec<SocketAddr>) {
        *self.shared.peers() = peers;
        self.shared.changed();
    }

    /// An address where a process listened and none does any more, and when that was asked, in
    /// nanoseconds of the monotonic clock. It is told again now and then as long as that is so.
    pub fn refused(&self) -> Option<(u64, SocketAddr)> {
        self.refusals.try_recv().ok()
    }
}

impl Drop for Lifelines {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Release);
        self.shared.changed();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn peers(&self) -> std::sync::MutexGuard<'_, Vec<SocketAddr>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        // A full counter is as readable as a fresh one.
        let _ = self.changed.write(1);
    }
}

/// The connection to one peer.
struct Line {
    peer: SocketAddr,
    state: State,
    /// It has taken a connection.
    was_up: bool,
    again_ns: u64,
}

enum State {
    Down { due_ns: u64 },
    Connecting { socket: OwnedFd, asked_ns: u64 },
    Up { stream: TcpStream, since_ns: u64 },
}

impl Line {
    const fn new(peer: SocketAddr) -> Self {
        Self {
            peer,
            state: State::Down { due_ns: 0 },
            was_up: false,
            again_ns: AGAIN_NS,
        }
    }

    /// When something is to be done whatever the other end does.
    const fn due_ns(&self) -> u64 {
        match self.state {
            State::Down { due_ns } => due_ns,
            State::Connecting { asked_ns, .. } => asked_ns + CONNECT_NS,
            State::Up { .. } => u64::MAX,
        }
    }

    fn poll_fd(&self) -> Option<PollFd<'_>> {
        match &self.state {
            State::Down { .. } => None,
            State::Connecting { socket, .. } => {
                Some(PollFd::new(socket.as_fd(), PollFlags::POLLOUT))
            }
            State::Up { stream, .. } => Some(PollFd::new(stream.as_fd(), PollFlags::POLLIN)),
        }
    }

    /// Tries again later.
    fn wait(&mut self, now_ns: u64) {
        self.state = State::Down {
            due_ns: now_ns + self.again_ns,
        };
        self.again_ns = (self.again_ns * 2).min(MAX_AGAIN_NS);
    }

    /// Does what is due. Returns when it asked, if it was refused what it had been given before.
    fn step(&mut self, now_ns: u64) -> Option<u64> {
        let state = std::mem::replace(&mut self.state, State::Down { due_ns: now_ns });
        let (asked_ns, answer) = match state {
            State::Up { stream, since_ns } => {
                if is_open(&stream) {
                    self.state = State::Up { stream, since_ns };
                    return None;
                }
                if now_ns < since_ns + LEAST_UP_NS {
                    self.wait(now_ns);
                    return None;
                }
                self.again_ns = AGAIN_NS;
                (now_ns, open(self.peer))
            }
            State::Down { due_ns } if now_ns < due_ns => {
                self.state = State::Down { due_ns };
                return None;
            }
            State::Down { .. } => (now_ns, open(self.peer)),
            State::Connecting { socket, asked_ns } => {
                let answer = match getsockopt(&socket, sockopt::SocketError) {
                    Ok(0) if !is_connected(&socket) && now_ns < asked_ns + CONNECT_NS => {
                        self.state = State::Connecting { socket, asked_ns };
                        return None;
                    }
                    Ok(0) if is_connected(&socket) => Ok((socket, true)),
                    Ok(0) => Err(ErrorKind::TimedOut.into()),
                    Ok(code) => Err(io::Error::from_raw_os_error(code)),
                    Err(error) => Err(error.into()),
                };
                (asked_ns, answer)
            }
        };
        match answer {
            Ok((socket, true)) => {
                self.was_up = true;
                self.state = State::Up {
                    stream: TcpStream::from(socket),
                    since_ns: now_ns,
                };
                None
            }
            Ok((socket, false)) => {
                self.state = State::Connecting { socket, asked_ns };
                None
            }
            Err(error) => {
                self.wait(now_ns);
                let is_refused = error.kind() == ErrorKind::ConnectionRefused;
                (is_refused && self.was_up).then_some(asked_ns)
            }
        }
    }
}

/// Begins a connection, and says whether it is there already.
fn open(peer: SocketAddr) -> io::Result<(OwnedFd, bool)> {
    let family = match peer {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(family, SockType::Stream, flags, None)?;
    let (idle_s, interval_s, count) = KEEP_ALIVE_S;
    setsockopt(&socket, sockopt::KeepAlive, &true)?;
    setsockopt(&socket, sockopt::TcpKeepIdle, &idle_s)?;
    setsockopt(&socket, sockopt::TcpKeepInterval, &interval_s)?;
    setsockopt(&socket, sockopt::TcpKeepCount, &count)?;
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(peer)) {
        Ok(()) => Ok((socket, true)),
        Err(nix::Error::EINPROGRESS) => Ok((socket, false)),
        Err(error) => Err(error.into()),
    }
}

fn is_connected(socket: &OwnedFd) -> bool {
    nix::sys::socket::getpeername::<SockaddrStorage>(socket.as_raw_fd()).is_ok()
}

/// Nobody sends anything, so that what can be read is the end.
fn is_open(stream: &TcpStream) -> bool {
    let mut stream = stream;
    let read = stream.read(&mut [0]);
    read.is_err_and(|error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted))
}

/// What the thread does.
struct Watch {
    shared: Arc<Shared>,
    listener: TcpListener,
    lines: Vec<Line>,
    /// Connections of others, the oldest first.
    guests: VecDeque<TcpStream>,
    /// No others are taken before, for want of descriptors.
    deaf_until_ns: u64,
    tell: SyncSender<(u64, SocketAddr)>,
    wake: Box<dyn Fn() + Send>,
}

impl Watch {
    fn run(&mut self) {
        while !self.shared.is_over.load(Ordering::Acquire) {
            let _ = self.shared.changed.read();
            self.take_peers();
            let now_ns = clock::monotonic_ns();
            self.admit(now_ns);
            for line in &mut self.lines {
                if let Some(asked_ns) = line.step(now_ns)
                    && self.tell.try_send((asked_ns, line.peer)).is_ok()
                {
                    (self.wake)();
                }
            }
            self.sleep();
        }
    }

    fn take_peers(&mut self) {
        let peers = self.shared.peers();
        self.lines.retain(|line| peers.contains(&line.peer));
        for peer in peers.iter() {
            if self.lines.iter().all(|line| line.peer != *peer) {
                self.lines.push(Line::new(*peer));
            }
        }
    }

    fn admit(&mut self, now_ns: u64) {
        self.guests.retain(is_open);
        for _ in 0..MAX_GUESTS {
            match self.listener.accept() {
                Ok((guest, _)) if guest.set_nonblocking(true).is_ok() => {
                    self.guests.push_back(guest);
                    if self.guests.len() > MAX_GUESTS {
                        self.guests.pop_front();
                    }
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.deaf_until_ns = now_ns + MAX_AGAIN_NS;
                    return;
                }
            }
        }
    }

    fn sleep(&self) {
        let now_ns = clock::monotonic_ns();
        let is_deaf = now_ns < self.deaf_until_ns;
        let hears_ns = is_deaf.then_some(self.deaf_until_ns);
        let due_ns = self.lines.iter().map(Line::due_ns).chain(hears_ns).min();
        let at_most = due_ns
            .filter(|due_ns| *due_ns != u64::MAX)
            .map(|due_ns| Duration::from_nanos(due_ns.saturating_sub(now_ns)));
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = vec![readable(self.shared.changed.as_fd())];
        if !is_deaf {
            fds.push(readable(self.listener.as_fd()));
        }
        fds.extend(self.guests.iter().map(|guest| readable(guest.as_fd())));
        fds.extend(self.lines.iter().filter_map(Line::poll_fd));
        // What it says is looked at one by one.
        let _ = ppoll(&mut fds, at_most.map(TimeSpec::from), None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Longer than any machine takes.
    const PATIENCE: Duration = Duration::from_secs(30);

    fn start(local: &str) -> (Lifelines, Receiver<()>) {
        let (wake, woken) = sync_channel(MAX_REFUSALS);
        let wake = move || {
            let _ = wake.try_send(());
        };
        let lifelines = Lifelines::start(local.parse().unwrap(), wake).unwrap();
        (lifelines, woken)
    }

    #[test]
    fn a_process_that_dies_is_told_of_until_another_listens_there() {
        for local in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(mut process) = TcpListener::bind(local) else {
                eprintln!("skipped: this machine has no {local}");
                continue;
            };
            let peer = process.local_addr().unwrap();
            let (lifelines, woken) = start(local);
            lifelines.watch(vec![peer]);
            for _ in 0..2 {
                let taken = process.accept().unwrap();
                // What was told of the one before.
                while lifelines.refused().is_some() {}
                while woken.try_recv().is_ok() {}
                let before_ns = clock::monotonic_ns();
                drop((process, taken));
                for _ in 0..3 {
                    woken.recv_timeout(PATIENCE).unwrap();
                    let (asked_ns, refused) = lifelines.refused().unwrap();
                    assert!(asked_ns >= before_ns && refused == peer);
                }
                process = TcpListener::bind(peer).unwrap();
            }
        }
    }

    #[test]
    fn where_nobody_ever_listened_nobody_has_died() {
        let (lifelines, woken) = start("127.0.0.1:0");
        let closed = TcpListener::bind("127.0.0.1:0").unwrap();
        let nobody = closed.local_addr().unwrap();
        drop(closed);
        let process = TcpListener::bind("127.0.0.1:0").unwrap();
        lifelines.watch(vec![nobody, process.local_addr().unwrap()]);
        let taken = process.accept().unwrap();
        drop((process, taken));
        woken.recv_timeout(PATIENCE).unwrap();
        let (_, refused) = lifelines.refused().unwrap();
        assert_ne!(refused, nobody);
    }

    #[test]
    fn a_connection_that_is_cut_is_opened_again_and_nothing_told() {
        let (lifelines, woken) = start("127.0.0.1:0");
        let process = TcpListener::bind("127.0.0.1:0").unwrap();
        lifelines.watch(vec![process.local_addr().unwrap()]);
        for _ in 0..3 {
            drop(process.accept().unwrap());
        }
        assert!(woken.try_recv().is_err() && lifelines.refused().is_none());
    }

    #[test]
    fn nobody_keeps_others_away_by_many_connections() {
        let local: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let port = TcpListener::bind(local).unwrap().local_addr().unwrap();
        let (_lifelines, _) = start(&port.to_string());
        let mut streams = Vec::new();
        for _ in 0..2 * MAX_GUESTS {
            streams.push(TcpStream::connect(port).unwrap());
        }
        let last = streams.pop().unwrap();
        // The first has been ended, the last is kept.
        let first = &mut streams[0];
        assert_eq!(first.read(&mut [0]).unwrap_or(0), 0);
        last.set_nonblocking(true).unwrap();
        assert!(is_open(&last));
    }
}
