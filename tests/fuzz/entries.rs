//! Values of the log, commands, replies and session tables.

use crate::{Script, fuzz};
use consensus::envelope::{Entry, EntryKind, MAX_REPLY_BYTES, Outcome, Status, entries, outcomes};
use consensus::session::Sessions;
use consensus::state_machine::StateMachine;
use consensus::{Sequence, SessionId};
use nearwire::kv::{Body, Kv, append_part};

/// Entries and outcomes that are read are written back as they were.
fn envelope(input: &[u8]) {
    let check = |bytes: &[u8]| {
        let read: Result<Vec<Entry<'_>>, _> = entries(bytes).collect();
        if let Ok(read) = read {
            let mut out = Vec::new();
            read.iter().for_each(|entry| entry.append(&mut out));
            assert_eq!(out.len(), bytes.len());
            let again: Result<Vec<Entry<'_>>, _> = entries(&out).collect();
            assert_eq!(again.as_ref(), Ok(&read));
        }
        let read: Result<Vec<Outcome<'_>>, _> = outcomes(bytes).collect();
        if let Ok(read) = read {
            let mut out = Vec::new();
            read.iter().for_each(|outcome| outcome.append(&mut out));
            assert_eq!(out.len(), bytes.len());
        }
    };
    check(input);
    let mut script = Script(input);
    let (mut packed, mut answers) = (Vec::new(), Vec::new());
    for _ in 0..script.byte() % 4 {
        let sequence = Sequence(script.odd_number());
        let entry = Entry {
            session: SessionId(script.odd_number()),
            sequence,
            kind: EntryKind::Command,
            behind: script.odd_number() as u32,
            body: script.take(19),
        };
        entry.append(&mut packed);
        let outcome = Outcome {
            sequence,
            status: Status::Done,
            body: entry.body,
        };
        outcome.append(&mut answers);
    }
    script.damage(&mut packed);
    check(&packed);
    check(&answers);
}

#[test]
fn packed_entries_are_refused_or_read_back() {
    fuzz("envelope", envelope);
}

/// A session table that is read is written back as it was.
fn sessions(input: &[u8]) {
    let check = |bytes: &[u8]| {
        if let Ok((sessions, rest)) = Sessions::read(bytes) {
            let mut out = Vec::new();
            sessions.write(&mut out);
            let (again, none) = Sessions::read(&out).expect("it was just written");
            assert!(none.is_empty() && again.len() == sessions.len());
            assert!(rest.len() <= bytes.len());
        }
    };
    check(input);
    let mut script = Script(input);
    let mut sessions = Sessions::default();
    for number in 1..=u64::from(script.byte() % 5) {
        let id = SessionId(number);
        sessions.open(id, script.odd_number());
        for sequence in 1..=u64::from(script.byte() % 4) {
            let _ = sessions.admit(id, Sequence(sequence), script.byte().into(), 0);
            sessions.replied(id, script.take(5));
        }
    }
    let mut bytes = Vec::new();
    sessions.write(&mut bytes);
    check(&bytes);
    script.damage(&mut bytes);
    check(&bytes);
}

#[test]
fn a_session_table_is_refused_or_read_back() {
    fuzz("sessions", sessions);
}

/// The machine answers whatever was chosen, the same on every replica, and its snapshot is itself.
fn machine(input: &[u8]) {
    let mut script = Script(input);
    let (mut one, mut other) = (Kv::new(), Kv::new());
    let mut now_ms = 0;
    for _ in 0..64 {
        if script.is_over() {
            break;
        }
        let mut body = Vec::new();
        let parts = script.byte() % 4;
        for _ in 0..parts.max(1) {
            // An operation, then words of a few letters.
            let mut part = vec![script.byte() % 32];
            for _ in 0..script.byte() % 5 {
                let word = script.take(usize::from(input[0] % 3) + 1);
                part.push(word.len() as u8);
                part.extend(word.iter().map(|byte| match byte {
                    0..128 => b"012-9ab*"[usize::from(byte % 8)],
                    byte => *byte,
                }));
            }
            if parts < 3 {
                body = part;
            } else if let Some(Body::Single(call)) = Body::decode(&part) {
                append_part(&mut body, &call);
            }
        }
        now_ms += u64::from(script.byte());
        let (mut reply, mut same, mut asked) = (Vec::new(), Vec::new(), Vec::new());
        one.query(now_ms, &body, &mut asked);
        one.apply(now_ms, &body, &mut reply);
        other.apply(now_ms, &body, &mut same);
        assert_eq!(reply, same);
        for reply in [&reply, &asked] {
            assert!(!reply.is_empty() && reply.len() <= MAX_REPLY_BYTES);
        }
        one.clock(now_ms);
        other.clock(now_ms);
    }
    let bytes = frozen(&one);
    let mut restored = Kv::new();
    restored.restore(&bytes).expect("its own snapshot");
    assert_eq!(frozen(&restored), bytes);
    let mut damaged = bytes;
    Script(input).damage(&mut damaged);
    let _ = restored.restore(&damaged);
    let _ = frozen(&restored);
}

fn frozen(machine: &Kv) -> Vec<u8> {
    let mut frozen = machine.freeze();
    let mut bytes = Vec::new();
    while frozen.next_chunk(&mut bytes) {}
    bytes
}

#[test]
fn the_machine_answers_whatever_was_chosen() {
    fuzz("machine", machine);
}
