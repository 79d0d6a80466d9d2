//! A client of a world: the real session, a load, and what it was told.

use super::machine::{EPOCH, address};
use super::scenario::Scenario;
use crate::history::{Action, Operation};
use crate::kv::{Call, Op};
use consensus::client::{Client, Config, Event};
use consensus::random::Random;
use consensus::{GroupId, NodeId};

/// Values that are added to, as against set.
const COUNTERS: &[u8] = b"c";
const REGISTERS: &[u8] = b"r";

/// A client, and the operations that it began.
pub(super) struct SimClient {
    pub(super) session: Client,
    pub(super) group: GroupId,
    number: usize,
    random: Random,
    next_ns: u64,
    /// The operation under way in each place of the pipeline.
    lanes: Vec<Option<usize>>,
    pub(super) history: Vec<Operation>,
    /// When the youngest operation that was answered had begun.
    pub(super) answered_from_ns: u64,
    pub(super) answered: u64,
    think_ns: u64,
    keys: u64,
    body_bytes: usize,
    writes: u64,
}

impl SimClient {
    pub(super) fn new(number: usize, group: GroupId, scenario: &Scenario, seed: u64) -> Self {
        let mut random = Random::new(seed);
        Self {
            session: new_session(group, scenario, &mut random),
            group,
            number,
            random,
            next_ns: 0,
            lanes: vec![None; scenario.in_flight],
            history: Vec::new(),
            answered_from_ns: 0,
            answered: 0,
            think_ns: scenario.think_ns,
            keys: scenario.keys,
            body_bytes: scenario.body_bytes,
            writes: 0,
        }
    }

    /// Forgets its session, and what was under way stays unknown.
    pub(super) fn begin_anew(&mut self, scenario: &Scenario) {
        self.session = new_session(self.group, scenario, &mut self.random);
        self.lanes.fill(None);
    }

    /// When it wants its turn.
    pub(super) fn due_ns(&self, is_open: bool) -> u64 {
        let has_lane = self.lanes.contains(&None);
        let next = if is_open && has_lane {
            self.next_ns
        } else {
            u64::MAX
        };
        self.session.poll_timeout().unwrap_or(u64::MAX).min(next)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.lanes.iter().all(Option::is_none)
    }

    /// Does what is due; while `is_open` it begins operations.
    pub(super) fn turn(&mut self, now_ns: u64, is_open: bool) {
        if self.session.poll_timeout().is_some_and(|due| due <= now_ns) {
            self.session.handle_timeout(now_ns);
        }
        if is_open
            && now_ns >= self.next_ns
            && let Some(lane) = self.lanes.iter().position(Option::is_none)
        {
            self.begin(now_ns, lane);
            self.next_ns = now_ns + self.random.below(2 * self.think_ns);
        }
    }

    fn begin(&mut self, now_ns: u64, lane: usize) {
        let draw = self.random.next();
        let counts = draw & 1 == 0;
        let name = if counts { COUNTERS } else { REGISTERS };
        let key = [name, &[b'0' + ((draw >> 8) % self.keys) as u8]].concat();
        let arguments = |words: &[&[u8]]| words.iter().copied().map(<[u8]>::to_vec).collect();
        let (op, words, action): (Op, Vec<Vec<u8>>, Action) = match (draw >> 32) % 8 {
            0..3 => (Op::Get, arguments(&[&key]), Action::Read { value: None }),
            3 if !counts => (Op::Del, arguments(&[&key]), Action::Delete),
            _ if counts => {
                let action = Action::Increment { result: None };
                (Op::Incr, arguments(&[&key]), action)
            }
            _ => {
                let value = self.value();
                let words = arguments(&[&key, &value]);
                (Op::Set, words, Action::Write { value })
            }
        };
        let call = Call {
            op,
            arguments: words.iter().map(Vec::as_slice).collect(),
        };
        let body = call.to_body();
        let index = self.history.len();
        let taken = match action {
            Action::Read { .. } => self.session.submit_query(index as u64, &body),
            _ => self.session.submit_command(index as u64, &body),
        };
        if taken.is_err() {
            return;
        }
        self.lanes[lane] = Some(index);
        self.history.push(Operation {
            // What overlaps is no sequential program: each place in the pipeline is one.
            client: (self.number * 1000 + lane) as u64,
            key,
            invoked_ns: now_ns,
            returned_ns: None,
            action,
        });
    }

    /// A value that nobody else ever writes, as long as drawn.
    fn value(&mut self) -> Vec<u8> {
        self.writes += 1;
        let mut value = format!("{}.{}", self.number, self.writes).into_bytes();
        // The command's own bytes and the key's take eight.
        let longest = self.body_bytes.saturating_sub(8).max(8);
        let bytes = value.len() + self.random.below(longest as u64) as usize;
        value.resize(bytes.min(longest), b'-');
        value
    }

    /// Notes an answer. Returns what makes no sense.
    pub(super) fn answered(&mut self, now_ns: u64, event: Event) -> Result<(), String> {
        let index = event.token as usize;
        for lane in self.lanes.iter_mut().filter(|lane| **lane == Some(index)) {
            *lane = None;
        }
        let Some(operation) = self.history.get_mut(index) else {
            return Err(format!("an answer to operation {index}, which never was"));
        };
        let Ok(reply) = event.result else {
            // Applied once or not at all: it never returns.
            return Ok(());
        };
        match &mut operation.action {
            Action::Write { .. } if reply == b"+OK\r\n" => {}
            Action::Delete if matches!(&reply[..], b":0\r\n" | b":1\r\n") => {}
            Action::Increment { result } => match integer(&reply) {
                Some(number) => *result = Some(number),
                None => return Err(unexpected("INCR", &reply)),
            },
            Action::Read { value } => match bulk(&reply) {
                Some(found) => *value = found,
                None => return Err(unexpected("GET", &reply)),
            },
            Action::Write { .. } | Action::Delete => return Err(unexpected("a write", &reply)),
        }
        operation.returned_ns = Some(now_ns);
        self.answered_from_ns = self.answered_from_ns.max(operation.invoked_ns);
        self.answered += 1;
        Ok(())
    }
}

fn new_session(group: GroupId, scenario: &Scenario, random: &mut Random) -> Client {
    let mut members: Vec<_> = (0..scenario.nodes)
        .map(|place| (NodeId(place as u16 + 1), address(place)))
        .collect();
    let first = random.below(members.len() as u64) as usize;
    members.rotate_left(first);
    let config = Config {
        members,
        group,
        epoch: EPOCH,
        max_value: crate::node::max_request_bytes(scenario.value_bytes),
        max_in_flight: 2 * scenario.in_flight,
        seed: random.next(),
    };
    match Client::new(config) {
        Ok(client) if scenario.quorum_reads => {
            client.reading_from(address(random.below(scenario.machines() as u64) as usize))
        }
        Ok(client) => client,
        Err(error) => unreachable!("a scenario draws what a client takes: {error}"),
    }
}

fn unexpected(what: &str, reply: &[u8]) -> String {
    format!("{what} was answered {:?}", String::from_utf8_lossy(reply))
}

fn integer(reply: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(reply).ok()?;
    text.strip_prefix(':')?.strip_suffix("\r\n")?.parse().ok()
}

/// The value of a GET: `Some(None)` if there was none.
fn bulk(reply: &[u8]) -> Option<Option<Vec<u8>>> {
    if reply == b"_\r\n" {
        return Some(None);
    }
    let rest = reply.strip_prefix(b"$")?;
    let end = rest.iter().position(|byte| *byte == b'\r')?;
    let length: usize = std::str::from_utf8(&rest[..end]).ok()?.parse().ok()?;
    let value = rest.get(end + 2..)?.strip_suffix(b"\r\n")?;
    (value.len() == length).then(|| Some(value.to_vec()))
}
