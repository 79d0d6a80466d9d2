//! The server on loopback, with a worker that executes on a machine of its own and no log.

use super::*;
use crate::front::{Access, Completion, Failure, FrontEnd, Lease, Wake, WorkerEnd, attach};
use crate::kv::Kv;
use consensus::GroupId;
use consensus::state_machine::StateMachine;
use proptest::prelude::*;
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

const LIMIT: usize = 1400;
const TIMEOUT: Duration = Duration::from_secs(20);

/// How the worker of a test behaves.
#[derive(Clone, Copy, Default)]
struct Manners {
    capacity: usize,
    /// Queries are answered only after this many polls that found nothing, as far behind commands
    /// as the contract allows.
    late_queries: usize,
    failure: Option<Failure>,
    /// Nothing is ever answered.
    deaf: bool,
}

struct Rig {
    handle: Option<Handle>,
    worker: Option<JoinHandle<()>>,
    clock: Arc<AtomicU64>,
    as_queries: Arc<AtomicUsize>,
}

impl Rig {
    fn new(manners: Manners) -> Self {
        Self::with(
            Options::new((Ipv4Addr::LOCALHOST, 0).into(), LIMIT),
            manners,
        )
    }

    fn with(options: Options, manners: Manners) -> Self {
        let server = Server::bind(options).expect("binds");
        let clock = Arc::new(AtomicU64::new(1000));
        let as_queries = Arc::new(AtomicUsize::new(0));
        let (time, queries) = (Arc::clone(&clock), Arc::clone(&as_queries));
        let (sender, receiver) = std::sync::mpsc::channel::<WorkerEnd>();
        let worker = thread::spawn(move || {
            let mut end = receiver.recv().expect("is sent");
            work(&mut end, manners, &time, &queries);
        });
        let worker_thread = worker.thread().clone();
        let wake_worker = Arc::new(move || worker_thread.unpark());
        let capacity = if manners.capacity == 0 {
            4096
        } else {
            manners.capacity
        };
        let (front, end) = attach(capacity, 1, wake_worker, server.waker());
        sender.send(end).expect("the worker listens");
        let info = Arc::new(|| "# Server\r\nredis_version:7.0.0\r\n".to_owned());
        let handle = server.spawn(front, info).expect("starts");
        Self {
            handle: Some(handle),
            worker: Some(worker),
            clock,
            as_queries,
        }
    }

    fn connect(&self) -> TcpStream {
        let handle = self.handle.as_ref().expect("runs");
        let stream = TcpStream::connect(handle.local_addrs()[0]).expect("connects");
        stream.set_read_timeout(Some(TIMEOUT)).expect("sets");
        stream.set_write_timeout(Some(TIMEOUT)).expect("sets");
        stream
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        drop(self.handle.take());
        let ended = self.worker.take().map(JoinHandle::join);
        assert!(thread::panicking() || ended.is_some_and(|ended| ended.is_ok()));
    }
}

fn work(end: &mut WorkerEnd, manners: Manners, clock: &AtomicU64, as_queries: &AtomicUsize) {
    let mut kv = Kv::new();
    let mut queries = VecDeque::new();
    let mut idle = 0;
    while !end.is_detached() {
        let now = clock.load(Ordering::Relaxed);
        let mut busy = false;
        while let Some(submission) = end.poll_submission() {
            if manners.deaf {
                continue;
            }
            busy = true;
            if submission.access == Access::Query {
                as_queries.fetch_add(1, Ordering::Relaxed);
                queries.push_back(submission);
                continue;
            }
            let mut reply = Vec::new();
            kv.apply(now, &submission.body, &mut reply);
            let result = manners.failure.map_or(Ok(reply), Err);
            end.complete(Completion {
                token: submission.token,
                result,
            });
        }
        idle = if busy { 0 } else { idle + 1 };
        if idle >= manners.late_queries {
            for query in queries.drain(..) {
                let mut reply = Vec::new();
                kv.query(now, &query.body, &mut reply);
                let result = manners.failure.map_or(Ok(reply), Err);
                end.complete(Completion {
                    token: query.token,
                    result,
                });
            }
        }
        end.flush();
        if !busy {
            let nap = if queries.is_empty() { 10_000 } else { 10 };
            thread::park_timeout(Duration::from_micros(nap));
        }
    }
}

fn array(words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        reply::bulk(&mut bytes, word);
    }
    bytes
}

fn line(text: &str) -> Vec<u8> {
    array(&text.split(' ').map(str::as_bytes).collect::<Vec<_>>())
}

/// Sends `requests` and reads as many bytes as `expected` has.
fn exchange(stream: &mut TcpStream, requests: &[u8], expected: &[u8]) {
    let mut writer = stream.try_clone().expect("clones");
    let requests = requests.to_vec();
    let writing = thread::spawn(move || writer.write_all(&requests).expect("writes"));
    let mut got = vec![0; expected.len()];
    let read = stream.read_exact(&mut got);
    writing.join().expect("writes");
    assert!(
        read.is_ok(),
        "{read:?}, expected {}",
        expected.escape_ascii()
    );
    if got != expected {
        let at = got
            .iter()
            .zip(expected)
            .position(|(a, b)| a != b)
            .unwrap_or(0);
        let near = |bytes: &[u8]| {
            bytes[at.saturating_sub(40)..(at + 40).min(bytes.len())]
                .escape_ascii()
                .to_string()
        };
        panic!(
            "at byte {at}: got {}, expected {}",
            near(&got),
            near(expected)
        );
    }
}

fn read_to_end(mut stream: TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A reset after the last reply is as good as a close.
    let _ = stream.read_to_end(&mut bytes);
    bytes
}

/// Each line is sent, and answered with what stands behind the arrow (spaces are line ends, a
/// tilde is a space, a caret is nothing).
fn script(stream: &mut TcpStream, text: &str) {
    for each in text.lines().map(str::trim).filter(|each| !each.is_empty()) {
        let (request, expected) = each.split_once(" -> ").expect("an arrow");
        let expected = format!("{expected} ")
            .replace(' ', "\r\n")
            .replace('~', " ")
            .replace('^', "");
        exchange(stream, &line(request), expected.as_bytes());
    }
}

#[test]
fn a_connection_speaks_resp2_until_it_says_hello() {
    let rig = Rig::new(Manners::default());
    let mut stream = rig.connect();
    script(
        &mut stream,
        "PING -> +PONG
         PING hi -> $2 hi
         ECHO hi -> $2 hi
         SET k v -> +OK
         MGET k none -> *2 $1 v $-1
         GET none -> $-1
         CLIENT GETNAME -> $-1
         CLIENT SETNAME me -> +OK
         CLIENT GETNAME -> $2 me
         CONFIG GET save -> *2 $4 save $0 ^
         SELECT 0 -> +OK
         SELECT 1 -> -ERR~DB~index~is~out~of~range
         HELLO 4 -> -NOPROTO~unsupported~protocol~version
         CLIENT SETINFO lib-name test -> +OK
         INFO -> $31 #~Server redis_version:7.0.0 ^",
    );
    let hello = format!(
        "%7\r\n$6\r\nserver\r\n$8\r\nnearwire\r\n$7\r\nversion\r\n${}\r\n{}\r\n$5\r\nproto\r\n\
         :3\r\n$2\r\nid\r\n:1\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\nmaster\r\n\
         $7\r\nmodules\r\n*0\r\n",
        env!("CARGO_PKG_VERSION").len(),
        env!("CARGO_PKG_VERSION"),
    );
    let requests = [
        line("GET none"),
        line("HELLO 3"),
        line("GET none"),
        line("RESET"),
    ]
    .concat();
    let expected = ["$-1\r\n", &hello, "_\r\n", "+RESET\r\n", "$-1\r\n"].concat();
    exchange(
        &mut stream,
        &[requests, line("GET none")].concat(),
        expected.as_bytes(),
    );
}

#[test]
fn a_transaction_mixes_local_and_machine_parts_in_order() {
    let rig = Rig::new(Manners::default());
    let mut stream = rig.connect();
    script(
        &mut stream,
        "EXEC -> -ERR~EXEC~without~MULTI
         DISCARD -> -ERR~DISCARD~without~MULTI
         MULTI -> +OK
         MULTI -> -ERR~MULTI~calls~can~not~be~nested
         WATCH k -> -ERR~WATCH~inside~MULTI~is~not~allowed
         PING -> +QUEUED
         INCR n -> +QUEUED
         ECHO hi -> +QUEUED
         GET none -> +QUEUED
         SET k v BAD -> +QUEUED
         EXEC -> *5 +PONG :1 $2 hi $-1 -ERR~syntax~error
         MULTI -> +OK
         INCR n -> +QUEUED
         NONSENSE -> -ERR~unknown~command~'NONSENSE',~with~args~beginning~with:~
         EXEC -> -EXECABORT~Transaction~discarded~because~of~previous~errors.
         GET n -> $1 1
         MULTI -> +OK
         INCR n -> +QUEUED
         DISCARD -> +OK
         GET n -> $1 1
         MULTI -> +OK
         EXEC -> *0
         MULTI -> +OK
         PING -> +QUEUED
         EXEC -> *1 +PONG
         MULTI -> +OK
         SET n 5 -> +QUEUED
         RESET -> +RESET
         GET n -> $1 1",
    );
}

#[test]
fn what_is_too_large_is_told_the_limit_and_the_connection_lives() {
    let rig = Rig::new(Manners::default());
    let mut stream = rig.connect();
    for bytes in [LIMIT, 100_000, 1024 * 1024] {
        let value = vec![b'x'; bytes];
        let body = 1 + 2 + if bytes < 16384 { 2 } else { 3 } + bytes;
        let expected = format!(
            "-ERR value too large: {body} bytes, this cluster's limit is {LIMIT}\r\n+PONG\r\n"
        );
        let requests = [array(&[b"SET", b"k", &value]), line("PING")].concat();
        exchange(&mut stream, &requests, expected.as_bytes());
    }
    exchange(&mut stream, &line("MULTI"), b"+OK\r\n");
    let value = vec![b'x'; LIMIT / 2];
    let set = array(&[b"SET", b"k", &value]);
    exchange(&mut stream, &set, b"+QUEUED\r\n");
    exchange(
        &mut stream,
        &set,
        b"-ERR transaction too large: 1418 bytes, this cluster's limit",
    );
    exchange(&mut stream, &line("EXEC"), b" is 1400\r\n-EXECABORT ");
}

#[test]
fn a_protocol_error_is_answered_after_what_was_asked_before_and_closes() {
    let rig = Rig::new(Manners {
        late_queries: 3,
        ..Manners::default()
    });
    let mut stream = rig.connect();
    stream
        .write_all(&[line("SET k v"), line("GET k"), b"*x\r\n".to_vec()].concat())
        .expect("sends");
    assert_eq!(
        read_to_end(stream).escape_ascii().to_string(),
        b"+OK\r\n$1\r\nv\r\n-ERR Protocol error: invalid multibulk length\r\n"
            .escape_ascii()
            .to_string()
    );
}

#[test]
fn a_client_that_stops_sending_still_gets_its_answers() {
    let rig = Rig::new(Manners {
        late_queries: 50,
        ..Manners::default()
    });
    let mut stream = rig.connect();
    stream
        .write_all(b"get k\r\nincr n\r\nget n\r\n")
        .expect("sends");
    stream.shutdown(Shutdown::Write).expect("shuts");
    assert_eq!(read_to_end(stream), b"$-1\r\n:1\r\n$1\r\n1\r\n");
    let mut stream = rig.connect();
    stream
        .write_all(b"ping\r\nquit\r\nping\r\n")
        .expect("sends");
    assert_eq!(read_to_end(stream), b"+PONG\r\n+OK\r\n");
}

#[test]
fn failures_are_errors_that_a_client_knows() {
    let cases = [
        (Failure::NoLeader, "-CLUSTERDOWN no leader; try again\r\n"),
        (
            Failure::TooLarge { limit: 9 },
            "-ERR value too large: this cluster's limit is 9 bytes\r\n",
        ),
        (
            Failure::Overloaded,
            "-TRYAGAIN overloaded: the command was not applied\r\n",
        ),
        (
            Failure::OutcomeUnknown,
            "-ERR outcome unknown: the command may or may not have",
        ),
    ];
    for (failure, text) in cases {
        let rig = Rig::new(Manners {
            failure: Some(failure),
            ..Manners::default()
        });
        exchange(&mut rig.connect(), &line("SET k v"), text.as_bytes());
        exchange(&mut rig.connect(), &line("GET k"), text.as_bytes());
    }
}

#[test]
fn a_worker_that_is_gone_leaves_answers_and_not_silence() {
    let server = Server::bind(Options::new((Ipv4Addr::LOCALHOST, 0).into(), LIMIT)).expect("binds");
    let (front, end) = attach(1, 1, Arc::new(|| ()), server.waker());
    let handle = server.spawn(front, Arc::new(String::new)).expect("starts");
    let mut stream = TcpStream::connect(handle.local_addrs()[0]).expect("connects");
    stream.set_read_timeout(Some(TIMEOUT)).expect("sets");
    stream
        .write_all(&[line("INCR a"), line("INCR b")].concat())
        .expect("sends");
    thread::sleep(Duration::from_millis(20));
    drop(end);
    exchange(
        &mut stream,
        &line("PING"),
        b"-ERR outcome unknown: the command may or may not have been applied\r\n\
          -CLUSTERDOWN this node is stopping: the command was not applied\r\n+PONG\r\n",
    );
    exchange(
        &mut stream,
        &line("GET a"),
        b"-CLUSTERDOWN this node is stopping",
    );
}

#[test]
fn a_port_in_use_names_the_remedy() {
    let rig = Rig::new(Manners::default());
    let taken = rig.handle.as_ref().expect("runs").local_addrs()[0];
    let error = Server::bind(Options::new(taken, LIMIT))
        .expect_err("is taken")
        .to_string();
    assert!(
        error.contains("the port is in use") && error.contains("ss -ltnp"),
        "{error}"
    );
}

#[test]
fn one_connection_too_many_is_told_so() {
    let mut options = Options::new((Ipv4Addr::LOCALHOST, 0).into(), LIMIT);
    options.max_connections = 2;
    let rig = Rig::with(options, Manners::default());
    let mut first = rig.connect();
    let mut second = rig.connect();
    exchange(&mut first, b"PING\r\n", b"+PONG\r\n");
    exchange(&mut second, b"PING\r\n", b"+PONG\r\n");
    assert_eq!(
        read_to_end(rig.connect()),
        b"-ERR max number of clients reached\r\n"
    );
    drop(first);
    let answered = (0..1000).any(|_| {
        thread::sleep(Duration::from_millis(2));
        let mut third = rig.connect();
        let mut reply = [0; 5];
        let sent = third.write_all(b"PING\r\n");
        sent.and_then(|()| third.read_exact(&mut reply)).is_ok() && &reply == b"+PONG"
    });
    assert!(answered, "the place of a closed connection is free again");
}

#[test]
fn who_asks_for_nothing_or_does_not_say_who_it_is_makes_room() {
    let user = User {
        name: "default".into(),
        password_sha256: PasswordHash::of(b"pw"),
        may: May::Write,
    };
    for (users, known, answer) in [
        (vec![], &b"PING\r\n"[..], &b"+PONG\r\n"[..]),
        (vec![user], b"AUTH pw\r\n", b"+OK\r\n"),
    ] {
        let has_users = !users.is_empty();
        let options = Options {
            users: users.into(),
            patience: Duration::from_millis(100),
            ..Options::new((Ipv4Addr::LOCALHOST, 0).into(), LIMIT)
        };
        let rig = Rig::with(options, Manners::default());
        // On a busy machine it may take several until one asks in time.
        let mut client = (0..100)
            .find_map(|_| {
                let mut client = rig.connect();
                let mut reply = vec![0; answer.len()];
                let asked = client.write_all(known);
                let asked = asked.and_then(|()| client.read_exact(&mut reply));
                (asked.is_ok() && reply == answer).then_some(client)
            })
            .expect("who asks is answered");
        // Half a request is none, and what a stranger is told is no reason to stay.
        let half: &[u8] = b"*2\r\n$3\r\nGET\r\n";
        let whole: &[u8] = if has_users { b"PING\r\n" } else { b"" };
        for said in [half, whole] {
            let mut stranger = rig.connect();
            // It may be gone already.
            let _ = stranger.write_all(said);
            let parted = stranger.read_to_end(&mut Vec::new());
            assert!(
                !parted.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock),
                "{said:?} keeps its place"
            );
        }
        // Nor is who was known once a stranger again.
        exchange(&mut client, b"RESET\r\n", b"+RESET\r\n");
        let stranger = rig.connect();
        assert!(stranger.peek(&mut [0]).is_ok_and(|bytes| bytes == 0));
        exchange(&mut client, known, answer);
    }
}

#[test]
fn a_stop_answers_what_was_asked_and_waits_no_longer_than_its_grace() {
    let mut options = Options::new((Ipv4Addr::LOCALHOST, 0).into(), LIMIT);
    options.grace = Duration::from_millis(50);
    let mut rig = Rig::with(
        options,
        Manners {
            deaf: true,
            ..Manners::default()
        },
    );
    let mut stream = rig.connect();
    exchange(&mut stream, b"PING\r\nGET k\r\n", b"+PONG\r\n");
    rig.handle.take().expect("runs").stop();
    assert_eq!(read_to_end(stream), b"");
}

#[test]
fn a_client_that_does_not_read_is_not_read_either() {
    let rig = Rig::new(Manners::default());
    let mut stream = rig.connect();
    stream
        .set_write_timeout(Some(Duration::from_millis(300)))
        .expect("sets");
    let value = "v".repeat(1000);
    exchange(&mut stream, &line(&format!("SET k {value}")), b"+OK\r\n");
    let gets = line("GET k").repeat(1000);
    let mut sent = 0;
    // Replies are fifty times as long as requests: the bounds and the sockets' buffers fill up.
    let refused = (0..10_000).any(|_| match stream.write(&gets[sent % gets.len()..]) {
        Ok(bytes) => {
            sent += bytes;
            false
        }
        Err(_) => true,
    });
    assert!(
        refused,
        "the server took {sent} bytes of requests from a client that reads nothing"
    );
    exchange(&mut rig.connect(), &line("PING"), b"+PONG\r\n");
    let mut reply = Vec::new();
    reply::bulk(&mut reply, value.as_bytes());
    let whole = sent / line("GET k").len();
    exchange(&mut stream, &[], &reply.repeat(whole));
}

#[test]
fn keys_expire_for_clients_as_the_logs_clock_moves() {
    let rig = Rig::new(Manners::default());
    let mut stream = rig.connect();
    script(&mut stream, "SET k v PX 100 -> +OK\nPTTL k -> :100");
    rig.clock.store(1100, Ordering::Relaxed);
    script(&mut stream, "GET k -> $-1\nPTTL k -> :-2");
}

#[derive(Debug, Clone)]
enum Step {
    Set(u8, u8),
    Get(u8),
    Incr(u8),
    Del(u8),
    Ping,
    Unknown,
    Transaction(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0u8..5;
    prop_oneof![
        (key.clone(), any::<u8>()).prop_map(|(key, value)| Step::Set(key, value)),
        key.clone().prop_map(Step::Get),
        key.clone().prop_map(Step::Get),
        key.clone().prop_map(Step::Incr),
        key.clone().prop_map(Step::Del),
        Just(Step::Ping),
        Just(Step::Unknown),
        key.prop_map(Step::Transaction),
    ]
}

/// The requests of a pipeline and what a single machine would answer, one after the other.
fn pipeline(steps: impl Iterator<Item = Step>) -> (Vec<u8>, Vec<u8>) {
    let (mut requests, mut replies) = (Vec::new(), String::new());
    let mut keys = BTreeMap::<u8, i64>::new();
    let bulk = |value: Option<i64>| match value {
        Some(value) => format!("${}\r\n{value}\r\n", value.to_string().len()),
        None => "$-1\r\n".to_owned(),
    };
    for step in steps {
        match step {
            Step::Set(key, value) => {
                requests.extend(line(&format!("SET {key} {value}")));
                keys.insert(key, value.into());
                replies += "+OK\r\n";
            }
            Step::Get(key) => {
                requests.extend(line(&format!("GET {key}")));
                replies += &bulk(keys.get(&key).copied());
            }
            Step::Incr(key) => {
                requests.extend(line(&format!("INCR {key}")));
                let value = keys.entry(key).or_default();
                *value += 1;
                replies += &format!(":{value}\r\n");
            }
            Step::Del(key) => {
                requests.extend(line(&format!("DEL {key}")));
                replies += &format!(":{}\r\n", u8::from(keys.remove(&key).is_some()));
            }
            Step::Ping => {
                requests.extend(b"ping\r\n");
                replies += "+PONG\r\n";
            }
            Step::Unknown => {
                requests.extend(line("what"));
                replies += "-ERR unknown command 'what', with args beginning with: \r\n";
            }
            Step::Transaction(key) => {
                for each in [
                    "MULTI",
                    &format!("INCR {key}"),
                    &format!("GET {key}"),
                    "EXEC",
                ] {
                    requests.extend(line(each));
                }
                let value = keys.entry(key).or_default();
                *value += 1;
                replies += "+OK\r\n+QUEUED\r\n+QUEUED\r\n";
                replies += &format!("*2\r\n:{value}\r\n{}", bulk(Some(*value)));
            }
        }
    }
    (requests, replies.into_bytes())
}

#[test]
fn a_pipeline_of_ten_thousand_mixed_commands_keeps_its_order() {
    for manners in [
        Manners::default(),
        Manners {
            capacity: 7,
            late_queries: 2,
            ..Manners::default()
        },
    ] {
        let rig = Rig::new(manners);
        let kinds: [fn(u8) -> Step; 6] = [
            Step::Get,
            Step::Incr,
            |key| Step::Set(key, key * 3),
            Step::Get,
            |_| Step::Ping,
            Step::Del,
        ];
        // A fixed mix in which no two neighbourhoods are alike.
        let steps = (0..10_000usize).map(|n| kinds[(n * n / 7 + n / 3) % 6]((n / 5 % 4) as u8));
        let (requests, expected) = pipeline(steps);
        exchange(&mut rig.connect(), &requests, &expected);
        assert!(
            rig.as_queries.load(Ordering::Relaxed) > 0,
            "some reads went round the log"
        );
    }
}

/// A front whose worker does nothing, and which reads `kv` while it holds a lease.
fn leased(kv: &Kv, wake_front: Wake) -> (FrontEnd, WorkerEnd, Arc<AtomicUsize>) {
    let wakes = Arc::new(AtomicUsize::new(0));
    let woken = Arc::clone(&wakes);
    let wake = Arc::new(move || _ = woken.fetch_add(1, Ordering::Relaxed));
    let (front, end) = attach(8, 2, wake, wake_front);
    let reader = kv.reader();
    let read = Box::new(move |_, query: &[u8], reply: &mut Vec<u8>| {
        reader.query(query, reply);
    });
    (front.reading(read), end, wakes)
}

#[test]
fn a_query_is_answered_by_the_front_only_while_the_lease_runs() {
    let get = |key: &[u8]| {
        let arguments = [key].into_iter().collect();
        let op = crate::kv::Op::Get;
        crate::kv::Call { op, arguments }.to_body()
    };
    let mut kv = Kv::new();
    let (mut front, mut end, wakes) = leased(&kv, Arc::new(|| {}));
    const GROUP: GroupId = GroupId(1);
    assert_eq!(
        front.answer(GROUP, &get(b"key")),
        None,
        "there is no lease yet"
    );
    let now_ns = datapath::clock::monotonic_ns();
    let later_ns = now_ns + 3_600_000_000_000;
    let lend = |until_ns, renew_ns| Lease { until_ns, renew_ns };
    end.lend(GROUP, lend(later_ns, later_ns));
    assert_eq!(front.answer(GROUP, &get(b"key")), Some(&b"_\r\n"[..]));
    assert_eq!(front.answer(GroupId(0), &get(b"key")), None, "another's");
    let set = crate::kv::Call {
        op: crate::kv::Op::Set,
        arguments: [&b"key"[..], b"value"].into_iter().collect(),
    };
    kv.apply(1, &set.to_body(), &mut Vec::new());
    let value = Some(&b"$5\r\nvalue\r\n"[..]);
    assert_eq!(front.answer(GROUP, &get(b"key")), value);
    // Another machine takes its place, as when a snapshot is taken over: that one is read then.
    let mut next = Kv::new();
    next.succeed(&mut kv);
    assert_eq!(front.answer(GROUP, &get(b"key")), Some(&b"_\r\n"[..]));
    next.apply(1, &set.to_body(), &mut Vec::new());
    assert_eq!(front.answer(GROUP, &get(b"key")), value);
    front.flush();
    let wanted = |end: &mut WorkerEnd| {
        let mut groups = Vec::new();
        end.wanted_leases(|group| groups.push(group));
        groups
    };
    assert!(wanted(&mut end).is_empty() && wakes.load(Ordering::Relaxed) == 0);

    // It is asked for the next one once, however many queries there are.
    end.lend(GROUP, lend(later_ns + 1, now_ns));
    for asked in [&[GROUP][..], &[]] {
        assert_eq!(front.answer(GROUP, &get(b"key")), value);
        front.flush();
        assert_eq!(wanted(&mut end), asked);
        assert_eq!(wakes.load(Ordering::Relaxed), 1);
    }
    end.lend(GROUP, lend(now_ns, now_ns));
    assert_eq!(front.answer(GROUP, &get(b"key")), None, "it has run out");
    end.lend(GROUP, lend(later_ns, later_ns));
    end.lend(GROUP, Lease::default());
    assert_eq!(front.answer(GROUP, &get(b"key")), None, "it was taken back");
}

#[test]
fn a_read_behind_unfinished_writes_waits_for_them_even_under_a_lease() {
    let mut kv = Kv::new();
    let server = Server::bind(Options::new((Ipv4Addr::LOCALHOST, 0).into(), LIMIT));
    let server = server.expect("binds");
    let (front, mut end, _) = leased(&kv, server.waker());
    let later_ns = datapath::clock::monotonic_ns() + 3_600_000_000_000;
    end.lend(
        GroupId(0),
        Lease {
            until_ns: later_ns,
            renew_ns: later_ns,
        },
    );
    let handle = server.spawn(front, Arc::new(String::new)).expect("starts");
    let mut stream = TcpStream::connect(handle.local_addrs()[0]).expect("connects");
    stream.set_read_timeout(Some(TIMEOUT)).expect("sets");
    exchange(&mut stream, &line("GET key"), b"$-1\r\n");
    stream
        .write_all(&[line("SET key value"), line("GET key")].concat())
        .expect("sends");
    let mut submitted = Vec::new();
    while submitted.len() < 2 {
        submitted.extend(end.poll_submission());
        thread::yield_now();
    }
    for submission in submitted {
        assert_eq!(submission.access, Access::Command);
        let mut reply = Vec::new();
        kv.apply(1, &submission.body, &mut reply);
        end.complete(Completion {
            token: submission.token,
            result: Ok(reply),
        });
    }
    drop(end);
    let mut replies = [0; 16];
    stream.read_exact(&mut replies).expect("reads");
    assert_eq!(&replies, b"+OK\r\n$5\r\nvalue\r\n");
}

#[test]
fn many_clients_are_served_at_once_with_little_room() {
    let rig = Rig::new(Manners {
        capacity: 3,
        late_queries: 1,
        ..Manners::default()
    });
    thread::scope(|scope| {
        for client in 0..16 {
            let rig = &rig;
            scope.spawn(move || {
                let mut stream = rig.connect();
                for round in 0..20 {
                    let requests = line(&format!("INCR c{client}")).repeat(25);
                    let mut expected = Vec::new();
                    (1..=25).for_each(|n| reply::integer(&mut expected, round * 25 + n));
                    exchange(&mut stream, &requests, &expected);
                }
            });
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_pipeline_in_any_pieces_matches_the_model(
        steps in proptest::collection::vec(step(), 1..120),
        pieces in proptest::collection::vec(1usize..200, 1..20),
        capacity in 1usize..20,
        late_queries in 0usize..3,
    ) {
        let rig = Rig::new(Manners { capacity, late_queries, ..Manners::default() });
        let (requests, expected) = pipeline(steps.into_iter());
        let mut stream = rig.connect();
        stream.set_nodelay(true).expect("sets");
        let mut rest = &requests[..];
        for piece in &pieces {
            let (now, later) = rest.split_at((*piece).min(rest.len()));
            stream.write_all(now).expect("writes");
            rest = later;
        }
        exchange(&mut stream, rest, &expected);
    }

    #[test]
    fn garbage_closes_only_its_own_connection(
        bytes in proptest::collection::vec(any::<u8>(), 0..300)
    ) {
        let rig = Rig::new(Manners::default());
        let mut stream = rig.connect();
        stream.write_all(&bytes).expect("writes");
        let _ = stream.shutdown(Shutdown::Write);
        let _ = read_to_end(stream);
        exchange(&mut rig.connect(), b"PING\r\n", b"+PONG\r\n");
    }
}

fn guarded() -> Rig {
    let user = |name: &str, may| User {
        name: name.into(),
        password_sha256: PasswordHash::of(format!("{name}-pw").as_bytes()),
        may,
    };
    let users = vec![
        user("default", May::Read),
        user("w", May::Write),
        user("a", May::Admin),
    ];
    let options = Options {
        users: users.into(),
        ..Options::new((Ipv4Addr::LOCALHOST, 0).into(), LIMIT)
    };
    Rig::with(options, Manners::default())
}

/// The expected texts are what redis-server 7.0.15 answers.
#[test]
fn nobody_gets_anywhere_without_a_password() {
    let rig = guarded();
    let mut stream = rig.connect();
    script(
        &mut stream,
        "PING -> -NOAUTH~Authentication~required.
         SET k v -> -NOAUTH~Authentication~required.
         ACL WHOAMI -> -NOAUTH~Authentication~required.
         COMMAND COUNT -> -NOAUTH~Authentication~required.
         FOO -> -ERR~unknown~command~'FOO',~with~args~beginning~with:~
         MULTI -> -NOAUTH~Authentication~required.
         EXEC -> -EXECABORT~Transaction~discarded~because~of:~NOAUTH~Authentication~required.
         AUTH w-pw -> -WRONGPASS~invalid~username-password~pair~or~user~is~disabled.
         AUTH none w-pw -> -WRONGPASS~invalid~username-password~pair~or~user~is~disabled.
         AUTH a b c -> -ERR~syntax~error
         HELLO 3 AUTH w x -> -WRONGPASS~invalid~username-password~pair~or~user~is~disabled.
         HELLO 3 AUTH w -> -ERR~Syntax~error~in~HELLO~option~'AUTH'
         HELLO -> -NOAUTH~HELLO~must~be~called~with~the~client~already~authenticated,~otherwise~the~HELLO~AUTH~<user>~<pass>~option~can~be~used~to~authenticate~the~client~and~select~the~RESP~protocol~version~at~the~same~time
         PING -> -NOAUTH~Authentication~required.
         AUTH default-pw -> +OK
         ACL WHOAMI -> $7 default
         GET k -> $-1",
    );
    // A wrong password takes nothing away.
    script(
        &mut stream,
        "AUTH w x -> -WRONGPASS~invalid~username-password~pair~or~user~is~disabled.
         ACL WHOAMI -> $7 default
         AUTH w w-pw -> +OK
         ACL WHOAMI -> $1 w
         SET k v -> +OK
         RESET -> +RESET
         GET k -> -NOAUTH~Authentication~required.",
    );
    script(&mut rig.connect(), "QUIT -> +OK");
}

#[test]
fn a_user_does_what_it_may() {
    let rig = guarded();
    let mut stream = rig.connect();
    script(
        &mut stream,
        "AUTH default-pw -> +OK
         SET k v -> -NOPERM~this~user~has~no~permissions~to~run~the~'set'~command
         CONFIG GET save -> -NOPERM~this~user~has~no~permissions~to~run~the~'config|get'~command
         MULTI -> +OK
         GET k -> +QUEUED
         INCR n -> -NOPERM~this~user~has~no~permissions~to~run~the~'incr'~command
         EXEC -> -EXECABORT~Transaction~discarded~because~of~previous~errors.
         GET n -> $-1
         AUTH w w-pw -> +OK
         MULTI -> +OK
         INCR n -> +QUEUED
         EXEC -> *1 :1
         ACL LIST -> -NOPERM~this~user~has~no~permissions~to~run~the~'acl|list'~command
         AUTH a a-pw -> +OK
         ACL USERS -> *3 $7 default $1 w $1 a
         INCR n -> :2",
    );
    let mut bytes = line("ACL LIST");
    bytes.extend(line("PING"));
    stream.write_all(&bytes).expect("writes");
    stream.shutdown(Shutdown::Write).expect("shuts down");
    let rules = String::from_utf8(read_to_end(stream)).expect("text");
    assert!(
        rules.starts_with("*3\r\n") && rules.ends_with("+PONG\r\n"),
        "{rules}"
    );
    assert!(rules.contains("user a on sanitize-payload #"), "{rules}");
    assert!(
        rules.contains("~* resetchannels -@all +@read +@connection"),
        "{rules}"
    );
}

#[test]
fn a_user_stays_the_connections_own() {
    let rig = guarded();
    let mut known = rig.connect();
    script(&mut known, "AUTH w w-pw -> +OK");
    script(
        &mut rig.connect(),
        "SET k v -> -NOAUTH~Authentication~required.",
    );
    drop(known);
    // The place of the one that left goes to the next.
    for _ in 0..4 {
        script(
            &mut rig.connect(),
            "SET k v -> -NOAUTH~Authentication~required.",
        );
    }
}

#[test]
fn a_stranger_is_kept_short() {
    for (bytes, text) in [
        (&b"*11\r\n"[..], "unauthenticated multibulk length"),
        (b"*1\r\n$16385\r\n", "unauthenticated bulk length"),
    ] {
        let rig = guarded();
        let mut stream = rig.connect();
        stream.write_all(bytes).expect("writes");
        let expected = format!("-ERR Protocol error: {text}\r\n");
        assert_eq!(read_to_end(stream), expected.as_bytes());
        // The same is nothing much from somebody who is known, even in one piece with the password.
        let mut stream = rig.connect();
        stream.write_all(&line("AUTH w w-pw")).expect("writes");
        stream.write_all(bytes).expect("writes");
        stream.shutdown(Shutdown::Write).expect("shuts down");
        assert_eq!(read_to_end(stream), b"+OK\r\n");
    }
}

#[test]
fn without_users_everybody_is_the_default_one() {
    let rig = Rig::new(Manners::default());
    script(
        &mut rig.connect(),
        "ACL WHOAMI -> $7 default
         ACL USERS -> *1 $7 default
         AUTH a b -> -WRONGPASS~there~are~no~users~here:~connect~without~a~password",
    );
}

/// A certificate for localhost that signs itself, with its key, in files of their own.
struct Paper {
    certificate: std::path::PathBuf,
    key: std::path::PathBuf,
    roots: Arc<rustls::RootCertStore>,
    _directory: tempfile::TempDir,
}

fn paper() -> Paper {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().expect("a directory");
    let names = vec!["localhost".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).expect("made");
    let [certificate, key] = ["cert.pem", "key.pem"].map(|name| directory.path().join(name));
    std::fs::write(&certificate, made.cert.pem()).expect("written");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("written");
    let private = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(&key, private).expect("set");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).expect("a certificate");
    Paper {
        certificate,
        key,
        roots: Arc::new(roots),
        _directory: directory,
    }
}

impl Paper {
    fn listen(&self) -> Listen {
        Listen {
            address: (Ipv4Addr::LOCALHOST, 0).into(),
            tls: Some(tls::load(&self.certificate, &self.key).expect("a certificate")),
        }
    }

    /// A client that trusts it, connected to the last listener.
    fn connect(
        &self,
        rig: &Rig,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> rustls::StreamOwned<rustls::ClientConnection, TcpStream> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .expect("versions")
            .with_root_certificates(Arc::clone(&self.roots))
            .with_no_client_auth();
        let name = "localhost".try_into().expect("a name");
        let session = rustls::ClientConnection::new(Arc::new(config), name).expect("a session");
        let handle = rig.handle.as_ref().expect("runs");
        let address = handle.local_addrs().last().expect("one");
        let socket = TcpStream::connect(address).expect("connects");
        socket.set_read_timeout(Some(TIMEOUT)).expect("sets");
        socket.set_write_timeout(Some(TIMEOUT)).expect("sets");
        rustls::StreamOwned::new(session, socket)
    }
}

fn encrypted(paper: &Paper) -> Rig {
    let mut options = Options::new((Ipv4Addr::LOCALHOST, 0).into(), LIMIT);
    options.listen.push(paper.listen());
    Rig::with(options, Manners::default())
}

#[test]
fn tls_serves_beside_a_plain_listener() {
    let paper = paper();
    let rig = encrypted(&paper);
    script(&mut rig.connect(), "SET k plain -> +OK");
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let mut stream = paper.connect(&rig, &[version]);
        stream.write_all(&line("GET k")).expect("writes");
        let mut reply = [0; 11];
        stream.read_exact(&mut reply).expect("reads");
        assert_eq!(&reply, b"$5\r\nplain\r\n");
        assert_eq!(stream.conn.protocol_version(), Some(version.version));
        stream.write_all(&line("QUIT")).expect("writes");
        // The end comes with a farewell: without one this would be an error.
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).expect("a farewell");
        assert_eq!(rest, b"+OK\r\n");
    }
}

/// More than the sockets, the records and the server's own bounds hold, in both directions.
#[test]
fn much_goes_through_tls_in_order() {
    const ROUNDS: usize = 20_000;
    let paper = paper();
    let rig = encrypted(&paper);
    let mut stream = paper.connect(&rig, rustls::ALL_VERSIONS);
    stream.write_all(&line("PING")).expect("writes");
    let mut pong = [0; 7];
    stream.read_exact(&mut pong).expect("reads");
    let socket = stream.sock.try_clone().expect("clones");
    let (mut requests, mut expected) = (Vec::new(), Vec::<u8>::new());
    for round in 0..ROUNDS {
        let text = format!("{round}-{}", "x".repeat(round % 700));
        requests.extend(line(&format!("ECHO {text}")));
        expected.extend(format!("${}\r\n{text}\r\n", text.len()).as_bytes());
    }
    // One session cannot be read and written by two threads: both ways by turns, without waiting.
    socket.set_nonblocking(true).expect("sets");
    let (mut sent, mut got) = (0, Vec::new());
    let mut part = vec![0; 64 * 1024];
    let start = std::time::Instant::now();
    let would_block = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
    while got.len() < expected.len() {
        assert!(
            start.elapsed() < TIMEOUT,
            "{sent} bytes sent, {} read",
            got.len()
        );
        if sent < requests.len() {
            let end = requests.len().min(sent + 100_000);
            match stream.write(&requests[sent..end]) {
                Ok(bytes) => sent += bytes,
                Err(error) => assert!(would_block(&error), "{error}"),
            }
        }
        match stream.flush() {
            Ok(()) => {}
            Err(error) => assert!(would_block(&error), "{error}"),
        }
        match stream.read(&mut part) {
            Ok(0) => panic!("the connection ended"),
            Ok(bytes) => got.extend_from_slice(&part[..bytes]),
            Err(error) if would_block(&error) => thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
    assert!(got == expected, "what came is not what was asked for");
}

#[test]
fn what_is_no_tls_gets_nothing_from_a_tls_listener() {
    let paper = paper();
    let rig = encrypted(&paper);
    let handle = rig.handle.as_ref().expect("runs");
    let address = *handle.local_addrs().last().expect("one");
    for garbage in [
        &b"*1\r\n$4\r\nPING\r\n"[..],
        b"\x16\x03\x01\x00\x05hello",
        &[0xff; 10_000],
        b"",
    ] {
        let mut stream = TcpStream::connect(address).expect("connects");
        stream.set_read_timeout(Some(TIMEOUT)).expect("sets");
        // The server may close before all of it is written.
        let _ = stream.write_all(garbage);
        let _ = stream.shutdown(Shutdown::Write);
        let answer = read_to_end(stream);
        // An alert at most.
        assert!(answer.len() <= 7, "{}", answer.escape_ascii());
        assert!(!answer.starts_with(b"+"));
    }
    // And the others are served as before.
    let mut stream = paper.connect(&rig, rustls::ALL_VERSIONS);
    stream.write_all(&line("PING")).expect("writes");
    let mut pong = [0; 7];
    stream.read_exact(&mut pong).expect("reads");
    assert_eq!(&pong, b"+PONG\r\n");
}

#[test]
fn a_password_is_asked_for_under_tls_too() {
    let paper = paper();
    let user = User {
        name: "default".into(),
        password_sha256: PasswordHash::of(b"pw"),
        may: May::Write,
    };
    let options = Options {
        listen: vec![paper.listen()],
        users: vec![user].into(),
        ..Options::new((Ipv4Addr::LOCALHOST, 0).into(), LIMIT)
    };
    let rig = Rig::with(options, Manners::default());
    let mut stream = paper.connect(&rig, rustls::ALL_VERSIONS);
    let requests = ["SET k v", "AUTH pw", "SET k v", "QUIT"].map(line).concat();
    stream.write_all(&requests).expect("writes");
    let mut replies = Vec::new();
    stream.read_to_end(&mut replies).expect("a farewell");
    assert_eq!(
        replies.escape_ascii().to_string(),
        "-NOAUTH Authentication required.\\r\\n+OK\\r\\n+OK\\r\\n+OK\\r\\n"
    );
}

#[test]
fn a_certificate_that_cannot_be_used_is_refused_with_a_remedy() {
    use std::os::unix::fs::PermissionsExt;
    let (paper, other) = (paper(), paper());
    let refused = |certificate: &std::path::Path, key: &std::path::Path| {
        let error = tls::load(certificate, key).expect_err("refused");
        (error.to_string(), error.remedy())
    };
    let (error, _) = refused(&paper.certificate, &other.key);
    assert!(error.contains("serve TLS with certificate"), "{error}");
    let (error, _) = refused(&paper.key, &paper.key);
    assert!(error.ends_with("holds no certificate in PEM"), "{error}");
    let (error, _) = refused(&paper.certificate, &paper.certificate);
    assert!(error.contains("private key"), "{error}");
    let (error, _) = refused(&paper.certificate, std::path::Path::new("/nonexistent"));
    assert!(error.contains("No such file"), "{error}");
    let open = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(&paper.key, open).expect("set");
    let (error, remedy) = refused(&paper.certificate, &paper.key);
    assert!(error.contains("open to others (mode 0644)"), "{error}");
    assert!(remedy.starts_with("chmod 600 "), "{remedy}");
}
