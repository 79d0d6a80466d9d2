//! Load on anything that speaks RESP over TCP, and the floor of it: an echo that reads requests and
//! answers with a value, and does nothing else.
//!
//! Both are one thread round an edge-triggered epoll, as the front of a replica is. On each connection
//! so many requests are under way; what is answered together is followed by as many in one write.

use crate::Error;
use crate::load::{Sample, Sent, is_set, latencies};
use crate::process::Subject;
use crate::rounds::Turn;
use crate::run::{Spent, load_from};
use crate::site::Place;
use datapath::{Wait, clock};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

const LISTENER: Token = Token(0);
const WAKER: Token = Token(1);
const FIRST: usize = 2;
/// What one read takes at the most; no request or reply here is longer.
const BUFFER_BYTES: usize = 128 * 1024;
/// How long answers are waited for when the measured time is over.
const PATIENCE_NS: u64 = 2_000_000_000;
/// Between two reports of progress, and the longest sleep.
const PROGRESS: Duration = Duration::from_millis(100);

/// Writes the request of this number.
pub type Request<'a> = &'a mut (dyn FnMut(u64, &mut Vec<u8>) + Send);

/// Who is asked, and for how long.
#[derive(Clone, Debug)]
pub struct Plan<'a> {
    /// Where the connections go, in turn.
    pub targets: &'a [SocketAddr],
    /// Connections.
    pub connections: usize,
    /// Requests under way on each.
    pub pipeline: usize,
    /// How the client waits.
    pub wait: Wait,
    /// Time before anything is recorded.
    pub warmup: Duration,
    /// Time in which it is.
    pub measure: Duration,
    /// Set by somebody who wants the run to end.
    pub interrupt: Option<&'static AtomicBool>,
}

/// Appends a request of these words.
pub fn append_request(words: &[&[u8]], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        append_bulk(word, out);
    }
}

fn append_bulk(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("${}\r\n", bytes.len()).as_bytes());
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

/// A line's number behind its first byte, and the line's length with its end.
fn number(bytes: &[u8]) -> Option<(i64, usize)> {
    let end = bytes.iter().position(|byte| *byte == b'\r')?;
    let text = std::str::from_utf8(bytes.get(1..end)?).ok()?;
    (bytes.len() > end + 1).then_some((text.parse().ok()?, end + 2))
}

/// The length of the first whole request.
fn request_bytes(bytes: &[u8]) -> Option<usize> {
    let (words, mut at) = number(bytes)?;
    for _ in 0..words {
        let (length, head) = number(bytes.get(at..)?)?;
        at += head + usize::try_from(length).ok()? + 2;
    }
    (at <= bytes.len()).then_some(at)
}

/// The length of the first whole reply, and whether it says that the request was carried out and
/// found something.
fn reply_bytes(bytes: &[u8]) -> Option<(usize, bool)> {
    if bytes.first() == Some(&b'$') {
        let (length, head) = number(bytes)?;
        let Ok(length) = usize::try_from(length) else {
            return Some((head, false));
        };
        let whole = head + length + 2;
        return (whole <= bytes.len()).then_some((whole, true));
    }
    let end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
    Some((end + 2, matches!(bytes.first(), Some(b'+' | b':'))))
}

struct Connection {
    stream: TcpStream,
    input: Vec<u8>,
    filled: usize,
    /// When each request under way was sent, the oldest first.
    sent_ns: VecDeque<u64>,
}

impl Connection {
    fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            input: vec![0; BUFFER_BYTES],
            filled: 0,
            sent_ns: VecDeque::new(),
        }
    }

    /// Reads once. False if there is nothing more for now.
    fn read(&mut self) -> io::Result<bool> {
        let room = &mut self.input[self.filled..];
        let bytes = room.len();
        match self.stream.read(room) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                self.filled += read;
                Ok(read == bytes)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn consume(&mut self, bytes: usize) {
        self.input.copy_within(bytes..self.filled, 0);
        self.filled -= bytes;
    }
}

/// Loads `plan.targets` from `client`, and counts the CPU time that `servers` spend on it. `report`
/// hears now and then which part is over, and how many requests were carried out.
///
/// # Errors
/// A server is not there or goes, or the client's place cannot be entered.
pub fn measure(
    client: &Place,
    plan: &Plan<'_>,
    servers: &[Subject],
    request: Request<'_>,
    report: &mut (dyn FnMut(f64, u64) + Send),
) -> Result<Turn, Error> {
    load_from(client, move || {
        let system = |source| Error::Redis {
            targets: plan.targets.to_vec(),
            source,
        };
        let mut spent = Spent::default();
        let sample = load(plan, request, &mut spent, servers, report).map_err(system)?;
        if is_set(plan.interrupt) {
            return Err(Error::Interrupted);
        }
        Ok(spent.turn(sample))
    })
}

fn load(
    plan: &Plan<'_>,
    request: Request<'_>,
    spent: &mut Spent,
    servers: &[Subject],
    report: &mut dyn FnMut(f64, u64),
) -> io::Result<Sample> {
    let mut poll = Poll::new()?;
    let mut connections = Vec::new();
    for number in 0..plan.connections {
        let target = plan.targets[number % plan.targets.len()];
        let stream = std::net::TcpStream::connect(target)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream);
        let token = Token(FIRST + number);
        poll.registry()
            .register(&mut stream, token, Interest::READABLE)?;
        connections.push(Connection::new(stream));
    }
    let mut sample = Sample {
        latencies: latencies(),
        completed: 0,
        measured: plan.measure,
        lost: 0,
        sent: Sent::default(),
    };
    let nanoseconds = |time: Duration| time.as_nanos() as u64;
    let start = clock::monotonic_ns();
    let begin = start + nanoseconds(plan.warmup);
    let end = begin + nanoseconds(plan.measure);
    let (mut begun, mut ended, mut done, mut report_ns) = (false, false, 0, 0);
    let mut out = Vec::new();
    let mut send = |connection: &mut Connection, first: u64, count: usize| -> io::Result<()> {
        out.clear();
        for number in first..first + count as u64 {
            request(number, &mut out);
        }
        let now = clock::monotonic_ns();
        connection.sent_ns.extend(std::iter::repeat_n(now, count));
        // No more is under way than a socket's buffer takes.
        connection.stream.write_all(&out)
    };
    let mut number = 0;
    for connection in &mut connections {
        send(connection, number, plan.pipeline)?;
        number += plan.pipeline as u64;
    }
    let timeout = match plan.wait {
        Wait::Blocking => PROGRESS,
        Wait::Polling => Duration::ZERO,
    };
    let mut events = Events::with_capacity(1024);
    loop {
        match poll.poll(&mut events, Some(timeout)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            Ok(()) | Err(_) => {}
        }
        for event in &events {
            let connection = &mut connections[event.token().0 - FIRST];
            while connection.read()? {}
            let now = clock::monotonic_ns();
            let (mut at, mut answered) = (0, 0);
            while let Some((bytes, carried_out)) =
                reply_bytes(&connection.input[at..connection.filled])
                && let Some(sent_ns) = connection.sent_ns.pop_front()
            {
                at += bytes;
                answered += 1;
                done += u64::from(carried_out);
                sample.completed += u64::from(carried_out && (begin..end).contains(&now));
                if !(begin..end).contains(&sent_ns) {
                    continue;
                }
                if carried_out {
                    let latency = (now - sent_ns).max(1);
                    sample.latencies.saturating_record(latency);
                } else {
                    sample.lost += 1;
                }
            }
            connection.consume(at);
            if now < end && answered > 0 {
                send(connection, number, answered)?;
                number += answered as u64;
            }
        }
        let now = clock::monotonic_ns();
        if !begun && now >= begin {
            begun = true;
            spent.begins(servers);
        }
        if !ended && now >= end {
            ended = true;
            spent.ends(servers);
        }
        if now >= report_ns {
            report_ns = now + nanoseconds(PROGRESS);
            report(((now - start) as f64 / (end - start) as f64).min(1.0), done);
        }
        let waiting = || connections.iter().flat_map(|one| &one.sent_ns);
        let is_over = now >= end && (waiting().count() == 0 || now >= end + PATIENCE_NS);
        if is_over || is_set(plan.interrupt) {
            let measured = |sent_ns: &&u64| (begin..end).contains(*sent_ns);
            sample.lost += waiting().filter(measured).count() as u64;
            sample.sent = Sent {
                datagrams: number,
                requests: number,
            };
            return Ok(sample);
        }
    }
}

/// Answers each request with the same value, on a thread of its own. Dropping it stops it.
pub struct RespEcho {
    address: SocketAddr,
    thread: Subject,
    stop: Arc<AtomicBool>,
    waker: Arc<Waker>,
    handle: Option<JoinHandle<io::Result<()>>>,
}

impl RespEcho {
    /// Starts in `place` and answers with `value_bytes` bytes.
    ///
    /// # Errors
    /// The place cannot be entered, or no port is left.
    pub fn start(place: &Place, value_bytes: usize) -> Result<Self, Error> {
        let place = place.clone();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (ready, started) = mpsc::sync_channel(1);
        let serve = move || -> io::Result<()> {
            let entered = place.enter().map_err(Error::from);
            let bound = entered.and_then(|()| {
                bind(SocketAddr::new(place.ip, 0)).map_err(|source| Error::Redis {
                    targets: vec![SocketAddr::new(place.ip, 0)],
                    source,
                })
            });
            let (poll, listener, waker) = match bound {
                Ok(bound) => bound,
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return Ok(());
                }
            };
            let _ = ready.send(Ok((
                listener.local_addr()?,
                Subject::this_thread(),
                Arc::clone(&waker),
            )));
            echo(poll, &listener, value_bytes, &stopped)
        };
        let thread = thread::Builder::new().name("echo".into()).spawn(serve);
        let handle = thread.map_err(|source| Error::Thread {
            name: "echo",
            source,
        })?;
        let (address, thread, waker) = started
            .recv()
            .map_err(|_| Error::Ended { name: "echo" })??;
        Ok(Self {
            address,
            thread,
            stop,
            waker,
            handle: Some(handle),
        })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The thread whose CPU time is the floor's.
    pub const fn thread(&self) -> Subject {
        self.thread
    }
}

impl Drop for RespEcho {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.waker.wake();
        if let Some(handle) = self.handle.take() {
            let _ = handle.join();
        }
    }
}

fn bind(listen: SocketAddr) -> io::Result<(Poll, TcpListener, Arc<Waker>)> {
    let poll = Poll::new()?;
    let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
    let mut listener = TcpListener::bind(listen)?;
    poll.registry()
        .register(&mut listener, LISTENER, Interest::READABLE)?;
    Ok((poll, listener, waker))
}

fn echo(
    mut poll: Poll,
    listener: &TcpListener,
    value_bytes: usize,
    stop: &AtomicBool,
) -> io::Result<()> {
    let mut answer = Vec::new();
    append_bulk(&vec![b'x'; value_bytes], &mut answer);
    let mut connections: Vec<Option<Connection>> = Vec::new();
    let mut events = Events::with_capacity(1024);
    let mut out = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            Ok(()) | Err(_) => {}
        }
        for event in &events {
            match event.token() {
                WAKER => {}
                LISTENER => {
                    while let Ok((mut stream, _)) = listener.accept() {
                        stream.set_nodelay(true)?;
                        let token = Token(FIRST + connections.len());
                        poll.registry()
                            .register(&mut stream, token, Interest::READABLE)?;
                        connections.push(Some(Connection::new(stream)));
                    }
                }
                Token(token) => {
                    let place = &mut connections[token - FIRST];
                    let Some(connection) = place else { continue };
                    out.clear();
                    let is_open = loop {
                        let Ok(again) = connection.read() else {
                            break false;
                        };
                        let mut at = 0;
                        while let Some(bytes) =
                            request_bytes(&connection.input[at..connection.filled])
                        {
                            at += bytes;
                            out.extend_from_slice(&answer);
                        }
                        connection.consume(at);
                        if !again {
                            break true;
                        }
                    };
                    if !is_open || connection.stream.write_all(&out).is_err() {
                        *place = None;
                    }
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::site::{Site, Where};

    #[test]
    fn a_request_or_reply_that_is_not_whole_has_no_length() {
        let mut request = Vec::new();
        append_request(&[b"SET", b"key", b"value\r\n"], &mut request);
        let whole = request.len();
        request.extend_from_slice(b"*1\r\n");
        assert_eq!(request_bytes(&request), Some(whole));
        assert!((0..whole).all(|bytes| request_bytes(&request[..bytes]).is_none()));
        for (reply, is_good) in [
            (&b"+OK\r\n"[..], true),
            (b":12\r\n", true),
            (b"$3\r\na\r\n\r\n", true),
            (b"$-1\r\n", false),
            (b"_\r\n", false),
            (b"-ERR no\r\n", false),
        ] {
            let more = [reply, b"+OK\r\n"].concat();
            assert_eq!(reply_bytes(&more), Some((reply.len(), is_good)));
            assert!((0..reply.len()).all(|bytes| reply_bytes(&reply[..bytes]).is_none()));
        }
    }

    #[test]
    fn the_echo_answers_every_request_of_every_connection() {
        let site = Site::open(Where::Loopback, 1, None).expect("loopback needs nothing");
        let server = RespEcho::start(&site.replicas()[0], 64).expect("an echo");
        let plan = Plan {
            targets: &[server.address()],
            connections: 3,
            pipeline: 2,
            wait: Wait::Blocking,
            warmup: Duration::from_millis(10),
            measure: Duration::from_millis(100),
            interrupt: None,
        };
        let mut asked = [0; 2];
        let mut request = |number: u64, out: &mut Vec<u8>| {
            asked[(number % 2) as usize] += 1;
            append_request(&[b"GET", b"key"], out);
        };
        let turn = measure(
            site.client(),
            &plan,
            &[server.thread()],
            &mut request,
            &mut |_, _| {},
        );
        let turn = turn.expect("measured");
        assert!(turn.sample.completed > 0);
        assert_eq!(turn.sample.lost, 0);
        assert_eq!(turn.sample.sent.requests, asked[0] + asked[1]);
        assert!(turn.cpu_us_per_op.is_some_and(|us| us > 0.0));
    }
}
