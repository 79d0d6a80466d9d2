//! Clients that contend for a few keys and write down what they asked for and what they were told.

#![allow(dead_code, reason = "each test file takes what it needs")]

use crate::common::{Reply, Resp, request};
use consensus::NodeId;
use consensus::random::Random;
use nearwire::client::{Client, ClientError, Options};
use nearwire::front::Access;
use nearwire::history::{Action, Operation};
use nearwire::kv;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A node that is silent for so long is left by clients that are not patient.
const SILENCE: Duration = Duration::from_millis(500);
/// The patient ones see what a node says that was stopped for long.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many batches a client sends to one node, on the average, before it asks another.
const STAY: u64 = 300;
/// How long a client over UDP waits for its last answers.
const LAST_ANSWERS: Duration = Duration::from_secs(5);
/// How many operations each client has under way.
const IN_FLIGHT: usize = 4;

/// Who loads the cluster, and with what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Clients over RESP.
    pub(crate) resp: usize,
    /// Clients over UDP.
    pub(crate) udp: usize,
    /// Keys that they contend for.
    pub(crate) keys: u64,
}

#[derive(Debug)]
struct Shared {
    begin: Instant,
    stop: AtomicBool,
    answered: AtomicU64,
}

impl Shared {
    fn now_ns(&self) -> u64 {
        self.begin.elapsed().as_nanos() as u64
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

/// Clients that go on until they are told to stop.
#[derive(Debug)]
pub(crate) struct Recording {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<Vec<Operation>>>,
}

impl Recording {
    /// Starts clients of a cluster.
    pub(crate) fn start(
        shape: Shape,
        fronts: &[SocketAddr],
        members: &[(NodeId, SocketAddr)],
    ) -> Self {
        let shared = Arc::new(Shared {
            begin: Instant::now(),
            stop: AtomicBool::new(false),
            answered: AtomicU64::new(0),
        });
        let clients = (0..shape.resp + shape.udp)
            .map(|number| {
                let script = Script::new(number as u64, shape.keys, Arc::clone(&shared));
                let (fronts, members) = (fronts.to_vec(), members.to_vec());
                std::thread::spawn(move || {
                    if number < shape.resp {
                        over_resp(script, &fronts)
                    } else {
                        over_udp(script, &members)
                    }
                })
            })
            .collect();
        Self { shared, clients }
    }

    /// The clock of the record.
    pub(crate) fn now_ns(&self) -> u64 {
        self.shared.now_ns()
    }

    /// How many operations were answered.
    pub(crate) fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::SeqCst)
    }

    /// Ends the load.
    #[track_caller]
    pub(crate) fn stop(self) -> Vec<Operation> {
        self.shared.stop.store(true, Ordering::SeqCst);
        let clients = self.clients.into_iter();
        clients
            .flat_map(|client| client.join().expect("every answer was one of those known"))
            .collect()
    }
}

/// The name of a key.
pub(crate) fn key(number: u64) -> String {
    format!("key:{number}")
}

/// What a client asks for, and its record.
struct Script {
    client: u64,
    keys: u64,
    random: Random,
    /// So that no value is written twice.
    next_value: u64,
    record: Vec<Operation>,
    shared: Arc<Shared>,
}

impl Script {
    fn new(client: u64, keys: u64, shared: Arc<Shared>) -> Self {
        Self {
            client,
            keys,
            random: Random::new(client + 1),
            next_value: (client + 1) << 32,
            record: Vec::new(),
            shared,
        }
    }

    /// The next request, and its place in the record.
    fn ask(&mut self) -> (usize, Vec<String>) {
        let key = key(self.random.below(self.keys));
        self.next_value += 1000;
        let (action, command, value) = match self.random.below(100) {
            0..45 => (Action::Read { value: None }, "GET", None),
            45..70 => {
                let value = self.next_value.to_string();
                let bytes = value.clone().into_bytes();
                (Action::Write { value: bytes }, "SET", Some(value))
            }
            70..75 => {
                let value = format!("text {}", self.next_value);
                let bytes = value.clone().into_bytes();
                (Action::Write { value: bytes }, "SET", Some(value))
            }
            75..80 => (Action::Delete, "DEL", None),
            _ => (Action::Increment { result: None }, "INCR", None),
        };
        self.record.push(Operation {
            client: self.client,
            key: key.clone().into_bytes(),
            invoked_ns: self.shared.now_ns(),
            returned_ns: None,
            action,
        });
        let mut words = vec![command.to_owned(), key];
        words.extend(value);
        (self.record.len() - 1, words)
    }

    /// Writes down an answer. An error that leaves open whether the command was applied is none.
    fn answer(&mut self, place: usize, reply: Reply) {
        let returned_ns = self.shared.now_ns();
        let operation = &mut self.record[place];
        match (&mut operation.action, reply) {
            (Action::Write { .. }, Reply::Simple(ok)) if ok == "OK" => {}
            (Action::Read { value }, Reply::Bulk(found)) => *value = found,
            (Action::Delete, Reply::Integer(0 | 1)) => {}
            (Action::Increment { result }, Reply::Integer(number)) => *result = Some(number),
            (Action::Increment { .. }, Reply::Error(error)) if error.contains("not an integer") => {
            }
            (_, Reply::Error(error))
                if error.contains("unknown") || error.contains("try again") =>
            {
                return;
            }
            (_, Reply::Error(error)) if error.contains("not applied") => {
                self.never_happened(place);
                return;
            }
            (action, reply) => panic!("{reply:?} is no answer to {action:?}"),
        }
        operation.returned_ns = Some(returned_ns);
        self.shared.answered.fetch_add(1, Ordering::SeqCst);
    }

    /// What was refused for certain leaves a read without an answer, which means nothing.
    fn never_happened(&mut self, place: usize) {
        self.record[place].action = Action::Read { value: None };
    }
}

/// Sends a few requests at once and waits for their replies. After an error, the outcome of those
/// unanswered is unknown; then, and once in a while, another node is asked.
fn over_resp(mut script: Script, fronts: &[SocketAddr]) -> Vec<Operation> {
    let patience = match script.client % 2 {
        0 => PATIENCE,
        _ => SILENCE,
    };
    let mut connection: Option<Resp> = None;
    while !script.shared.stopping() {
        let Some(resp) = &mut connection else {
            let front = fronts[script.random.below(fronts.len() as u64) as usize];
            match Resp::connect(front) {
                Ok(resp) => connection = Some(resp.patient(patience)),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
            continue;
        };
        if batch(&mut script, resp).is_err() || script.random.below(STAY) == 0 {
            connection = None;
        }
    }
    script.record
}

fn batch(script: &mut Script, resp: &mut Resp) -> io::Result<()> {
    let asked: Vec<(usize, Vec<String>)> = (0..IN_FLIGHT).map(|_| script.ask()).collect();
    let bytes = asked.iter().flat_map(|(_, words)| {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        request(&words)
    });
    resp.send_bytes(&bytes.collect::<Vec<u8>>())?;
    for (place, _) in asked {
        let reply = resp.receive()?;
        script.answer(place, reply);
    }
    Ok(())
}

/// Keeps a few requests under way. The library repeats them until they are answered.
fn over_udp(mut script: Script, members: &[(NodeId, SocketAddr)]) -> Vec<Operation> {
    let options = Options {
        timeout: SILENCE,
        // It counts from the oldest that is unanswered, and that one may have been lost.
        max_in_flight: 4096,
        ..Options::default()
    };
    let mut client = Client::connect(members, options).expect("a socket");
    let mut under_way = BTreeMap::new();
    let mut last = None;
    loop {
        if script.shared.stopping() {
            let last = *last.get_or_insert_with(Instant::now);
            if under_way.is_empty() || last.elapsed() > LAST_ANSWERS {
                return script.record;
            }
        } else {
            while under_way.len() < IN_FLIGHT {
                let (place, words) = script.ask();
                let words: Vec<&[u8]> = words.iter().map(String::as_bytes).collect();
                let (access, body) = kv::encode(&words).expect("a command");
                let token = place as u64;
                match access {
                    Access::Query => client.submit_query(token, &body),
                    Access::Command => client.submit(token, &body),
                }
                .expect("few are under way");
                under_way.insert(token, place);
            }
        }
        match client.poll() {
            Ok(done) => {
                let place = under_way.remove(&done.token).expect("it was asked for");
                if let Ok(reply) = done.result {
                    script.answer(place, decoded(&reply));
                }
            }
            Err(ClientError::TimedOut { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// A reply of the machine itself, which is RESP3.
fn decoded(reply: &[u8]) -> Reply {
    let text = String::from_utf8_lossy(reply);
    let (line, rest) = text.split_once("\r\n").expect("a line");
    match line.split_at(1) {
        ("+", text) => Reply::Simple(text.to_owned()),
        ("-", text) => Reply::Error(text.to_owned()),
        (":", text) => Reply::Integer(text.parse().expect("a number")),
        ("_", "") => Reply::Bulk(None),
        ("$", _) => Reply::Bulk(
            rest.strip_suffix("\r\n")
                .map(|text| text.as_bytes().to_vec()),
        ),
        _ => panic!("{line:?} is no reply"),
    }
}
