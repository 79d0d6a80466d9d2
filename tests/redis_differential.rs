//! The same requests to a real Redis and to our server: the replies are equal byte for byte.
//!
//! Needs `redis-server` (Debian: `apt-get install redis-server`), version 7, on the PATH; it is run
//! on loopback with a private port and directory, keeping nothing.

use consensus::state_machine::StateMachine;
use nearwire::front::{Access, Completion, WorkerEnd, attach};
use nearwire::kv::Kv;
use nearwire::local_cluster::Port;
use nearwire::resp::reply::value_bytes;
use nearwire::resp::{Handle, Options, Server};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Our server with a machine and the system's clock behind it.
struct Ours {
    handle: Option<Handle>,
    worker: Option<JoinHandle<()>>,
}

impl Ours {
    fn start(max_command_bytes: usize) -> Self {
        let listen = (Ipv4Addr::LOCALHOST, 0).into();
        let server = Server::bind(Options::new(listen, max_command_bytes)).expect("binds");
        let (sender, receiver) = std::sync::mpsc::channel::<WorkerEnd>();
        let worker = thread::spawn(move || work(receiver.recv().expect("is sent")));
        let thread = worker.thread().clone();
        let (front, end) = attach(8192, 1, Arc::new(move || thread.unpark()), server.waker());
        sender.send(end).expect("the worker listens");
        let info = Arc::new(|| "# Server\r\nredis_version:7.0.0\r\n".to_owned());
        let handle = server.spawn(front, info).expect("starts");
        Self {
            handle: Some(handle),
            worker: Some(worker),
        }
    }

    fn addr(&self) -> SocketAddr {
        self.handle.as_ref().expect("runs").local_addrs()[0]
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        drop(self.handle.take());
        drop(self.worker.take().map(JoinHandle::join));
    }
}

fn work(mut end: WorkerEnd) {
    let mut kv = Kv::new();
    while !end.is_detached() {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("after 1970")
            .as_millis() as u64;
        let mut busy = false;
        while let Some(submission) = end.poll_submission() {
            busy = true;
            let mut reply = Vec::new();
            match submission.access {
                Access::Command => kv.apply(now, &submission.body, &mut reply),
                Access::Query => kv.query(now, &submission.body, &mut reply),
            }
            end.complete(Completion {
                token: submission.token,
                result: Ok(reply),
            });
        }
        end.flush();
        if !busy {
            thread::park_timeout(Duration::from_millis(5));
        }
    }
}

/// A Redis of our own; killed when dropped.
struct Theirs {
    child: Child,
    addr: SocketAddr,
    _port: Port,
    _directory: tempfile::TempDir,
}

impl Theirs {
    /// `None`, with a word on what is missing, if there is no Redis 7 here.
    fn start() -> Option<Self> {
        let version = Command::new("redis-server").arg("--version").output().ok();
        let version = version.map(|out| String::from_utf8_lossy(&out.stdout).into_owned());
        if !version
            .as_ref()
            .is_some_and(|version| version.contains("v=7."))
        {
            eprintln!(
                "skipped: needs redis-server 7 on the PATH (apt-get install redis-server), \
                 found {version:?}"
            );
            return None;
        }
        let directory = tempfile::tempdir().expect("makes a directory");
        let port = Port::claim().expect("a free port");
        let addr = (Ipv4Addr::LOCALHOST, port.number()).into();
        let child = Command::new("redis-server")
            .args([
                "--port",
                &port.number().to_string(),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--appendonly",
                "no",
            ])
            .arg("--dir")
            .arg(directory.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server starts");
        let theirs = Self {
            child,
            addr,
            _port: port,
            _directory: directory,
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(addr).is_err() {
            assert!(
                Instant::now() < deadline,
                "redis-server does not listen at {addr}"
            );
            thread::sleep(Duration::from_millis(10));
        }
        Some(theirs)
    }
}

impl Drop for Theirs {
    fn drop(&mut self) {
        let killed = self.child.kill().and_then(|()| self.child.wait());
        assert!(
            killed.is_ok() || thread::panicking(),
            "redis-server can be killed"
        );
    }
}

struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).expect("connects");
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("sets");
        Self {
            stream,
            buffer: Vec::new(),
        }
    }

    /// Sends bytes and reads one whole reply, or what came before the connection was closed.
    fn ask(&mut self, request: &[u8]) -> String {
        self.stream.write_all(request).expect("writes");
        loop {
            if let Some(bytes) = value_bytes(&self.buffer).filter(|bytes| *bytes > 0) {
                let reply = self.buffer.drain(..bytes).collect::<Vec<_>>();
                return reply.escape_ascii().to_string();
            }
            let mut piece = [0; 8192];
            match self.stream.read(&mut piece) {
                Ok(bytes) if bytes > 0 => self.buffer.extend_from_slice(&piece[..bytes]),
                _ => return format!("closed after {}", self.buffer.escape_ascii()),
            }
        }
    }
}

fn words(text: &str) -> Vec<u8> {
    // A pair of quotes is an empty word, an underscore a space.
    let words: Vec<String> = text
        .split(' ')
        .map(|word| word.replace("''", "").replace('_', " "))
        .collect();
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n{word}\r\n", word.len()).as_bytes());
    }
    bytes
}

const SCRIPT: &str = include_str!("redis_differential.txt");

#[test]
fn replies_are_those_of_redis() {
    let Some(theirs) = Theirs::start() else {
        return;
    };
    let ours = Ours::start(60_000);
    let mut differences = Vec::new();
    for hello in ["PING", "HELLO 3"] {
        let (mut redis, mut nearwire) =
            (Client::connect(theirs.addr), Client::connect(ours.addr()));
        redis.ask(&words("FLUSHALL"));
        redis.ask(&words(hello));
        nearwire.ask(&words(hello));
        for line in SCRIPT
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
        {
            let (expected, got) = (redis.ask(&words(line)), nearwire.ask(&words(line)));
            if expected != got {
                differences.push(format!(
                    "{hello} {line}\n  Redis:    {expected}\n  nearwire: {got}"
                ));
            }
        }
        for key in 0..200 {
            nearwire.ask(&words(&format!("DEL key{key}")));
        }
        let keys: Vec<&str> = SCRIPT.split_whitespace().collect();
        for key in keys {
            nearwire.ask(&words(&format!("DEL {key}")));
        }
    }
    assert!(
        differences.is_empty(),
        "{} differ:\n{}",
        differences.len(),
        differences.join("\n")
    );
}

#[test]
fn streams_that_are_no_requests_end_as_in_redis() {
    let Some(theirs) = Theirs::start() else {
        return;
    };
    let ours = Ours::start(60_000);
    let cases: [&[u8]; 17] = [
        b"*x\r\n",
        b"*\r\n",
        b"*1\r\n:3\r\n",
        b"*1\r\nhello\r\n",
        b"*1\r\n$x\r\n",
        b"*1\r\n$-1\r\n",
        b"*1\r\n$9999999999\r\n",
        b"get \"abc\r\n",
        b"get 'abc'd\r\n",
        b"set k \"a\\x41\\n\\\"b\"\r\n",
        b"get k\r\n",
        b"get 'k'\n",
        b"\r\nping\r\n",
        b"*0\r\n*-1\r\n*1\r\n$4\r\nPING\r\n",
        b"*99999999999999999999\r\n",
        b"mget k   k\tk\r\n",
        b"what \"a\\r\\nb\"\r\n",
    ];
    for case in cases {
        let expected = Client::connect(theirs.addr).ask(case);
        let got = Client::connect(ours.addr()).ask(case);
        assert_eq!(got, expected, "{}", case.escape_ascii());
    }
}

/// Run with `--release --nocapture` to see the rates.
#[test]
fn the_tools_of_redis_are_content() {
    let ours = Ours::start(60_000);
    let port = ours.addr().port().to_string();
    let run = |tool: &str, arguments: &[&str]| {
        let out = Command::new(tool)
            .args(["-p", &port])
            .args(arguments)
            .output();
        match out {
            Ok(out) => {
                let (text, complaints) = (
                    String::from_utf8_lossy(&out.stdout),
                    String::from_utf8_lossy(&out.stderr),
                );
                assert!(out.status.success(), "{tool}: {text} {complaints}");
                assert!(!complaints.contains("WARNING"), "{tool}: {complaints}");
                Some(text.into_owned())
            }
            Err(error) => {
                eprintln!(
                    "skipped: needs {tool} on the PATH (apt-get install redis-tools): {error}"
                );
                None
            }
        }
    };
    let requests = if cfg!(debug_assertions) {
        "20000"
    } else {
        "1000000"
    };
    if let Some(rates) = run(
        "redis-benchmark",
        &[
            "-t",
            "set,get,incr",
            "-n",
            requests,
            "-c",
            "50",
            "-P",
            "16",
            "-q",
        ],
    ) {
        for line in rates
            .split(['\r', '\n'])
            .filter(|line| line.contains("per second"))
        {
            println!("{line}");
        }
    }
    if let Some(reply) = run("redis-cli", &["set", "k", "v", "ex", "100"]) {
        assert_eq!(reply.trim(), "OK");
    }
    if let Some(reply) = run("redis-cli", &["-3", "mget", "k", "none"]) {
        assert_eq!(reply.trim(), "v");
    }
}
