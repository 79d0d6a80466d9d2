//! Exactly once: a command takes effect once however often it was sent, in its session's order, and
//! every answer to it is the same (Lee et al. 2015, "RIFL").
//!
//! A second machine, as simple as can be, applies the chosen log by those rules alone. Each reply
//! that leaves a replica must be the one that it gave, and the state in the end the one that it
//! has.

use super::Verdict;
use super::chronicle::{Digest, digest};
use crate::kv::{Body, Call, Kv, Op};
use consensus::envelope::{EntryKind, Status, entries, outcomes};
use consensus::session::SESSION_TTL_MS;
use consensus::state_machine::StateMachine;
use consensus::wire::Header;
use consensus::{SessionId, Slot};
use std::collections::HashMap;

#[derive(Default)]
struct Session {
    replies: Vec<Digest>,
    used_ms: u64,
}

/// The second machine of one group.
#[derive(Default)]
pub(super) struct Reference {
    slot: u64,
    clock_ms: u64,
    sessions: HashMap<u64, Session>,
    values: HashMap<Vec<u8>, Vec<u8>>,
}

/// An answer that has left, and is looked at when the event is over: the slot that it speaks of may
/// have been applied in the same event.
pub(super) struct Answer {
    group: usize,
    node: usize,
    session: u64,
    sequence: u64,
    status: Status,
    reply: Digest,
}

impl Reference {
    /// Applies the next value of the log.
    pub(super) fn apply(&mut self, value: &[u8]) {
        self.slot += 1;
        let mut opened = 0;
        for entry in entries(value).map_while(Result::ok) {
            match entry.kind {
                EntryKind::Clock => {
                    self.clock_ms = self.clock_ms.max(entry.sequence.0);
                    let now_ms = self.clock_ms;
                    self.sessions.retain(|_, session| {
                        now_ms.saturating_sub(session.used_ms) < SESSION_TTL_MS
                    });
                }
                EntryKind::Open => {
                    let id = SessionId::new(Slot(self.slot), opened);
                    opened += 1;
                    let used_ms = self.clock_ms;
                    let replies = Vec::new();
                    self.sessions.insert(id.0, Session { replies, used_ms });
                }
                EntryKind::Command => {
                    let Some(session) = self.sessions.get_mut(&entry.session.0) else {
                        continue;
                    };
                    session.used_ms = self.clock_ms;
                    if entry.sequence.0 == session.replies.len() as u64 + 1 {
                        let reply = execute(&mut self.values, entry.body);
                        session.replies.push(digest(&reply));
                    }
                }
                EntryKind::Query => {}
            }
        }
    }
}

impl Reference {
    /// Holds what a replica says of each key against what it must be in the end.
    pub(super) fn compare(&self, node: usize, group: usize, machine: &Kv) -> Verdict {
        for (key, value) in &self.values {
            let call = Call {
                op: Op::Get,
                arguments: std::iter::once(&key[..]).collect(),
            };
            let mut reply = Vec::new();
            machine.query(self.clock_ms, &call.to_body(), &mut reply);
            let bulk = [format!("${}\r\n", value.len()).as_bytes(), value, b"\r\n"].concat();
            if reply != bulk {
                return Err(format!(
                    "group {group}: in the end node {node} has another value of {:?} than the log \
                     gives",
                    String::from_utf8_lossy(key)
                ));
            }
        }
        Ok(())
    }
}

/// The commands that the clients of a world use.
fn execute(values: &mut HashMap<Vec<u8>, Vec<u8>>, body: &[u8]) -> Vec<u8> {
    let Some(Body::Single(call)) = Body::decode(body) else {
        return Vec::new();
    };
    match (call.op, &call.arguments[..]) {
        (Op::Set, [key, value]) => {
            values.insert(key.to_vec(), value.to_vec());
            b"+OK\r\n".to_vec()
        }
        (Op::Del, [key]) => {
            let was = values.remove(*key).is_some();
            format!(":{}\r\n", u8::from(was)).into_bytes()
        }
        (Op::Incr, [key]) => {
            let before = values
                .get(*key)
                .map_or("0", |value| std::str::from_utf8(value).unwrap_or_default());
            let sum = before.parse::<i64>().unwrap_or_default() + 1;
            values.insert(key.to_vec(), sum.to_string().into_bytes());
            format!(":{sum}\r\n").into_bytes()
        }
        _ => Vec::new(),
    }
}

/// Takes down the answers in a Response.
pub(super) fn take_down(node: usize, header: &Header, value: &[u8], into: &mut Vec<Answer>) {
    let SessionId(session) = header.session();
    if session == 0 {
        // Answers to queries and to openings.
        return;
    }
    for outcome in outcomes(value).map_while(Result::ok) {
        into.push(Answer {
            group: usize::from(header.group.0),
            node,
            session,
            sequence: outcome.sequence.0,
            status: outcome.status,
            reply: digest(outcome.body),
        });
    }
}

/// Looks at an answer.
pub(super) fn check(references: &[Reference], answer: &Answer) -> Verdict {
    let Answer {
        group,
        node,
        session,
        sequence,
        ..
    } = answer;
    let known = references[*group].sessions.get(session);
    let what =
        format!("node {node} answers command {sequence} of session {session} of group {group}");
    match answer.status {
        Status::Done => {
            // A session that has expired since was answered in time.
            let Some(known) = known else { return Ok(()) };
            match known.replies.get((sequence - 1) as usize) {
                None => Err(format!("{what}, which the log has not applied")),
                Some(reply) if *reply != answer.reply => {
                    Err(format!("{what} otherwise than the log does"))
                }
                Some(_) => Ok(()),
            }
        }
        Status::UnknownSession if known.is_some() => {
            Err(format!("{what}: no such session, but the log has it open"))
        }
        Status::OutOfOrder
        | Status::UnknownSession
        | Status::TooLarge
        | Status::Opened
        | Status::TooManySessions
        | Status::ReplyForgotten => Ok(()),
    }
}
