//! What stands between MULTI and EXEC.

use super::reply;
use crate::kv::{Call, Local, TRANSACTION, append_part};
use consensus::GroupId;

/// One command of a transaction.
#[derive(Debug)]
pub(super) enum Part {
    /// The machine answers it.
    Machine,
    /// The front answers it, once the others are answered.
    Local(Local, Vec<Vec<u8>>),
}

/// Commands waiting for EXEC.
#[derive(Debug)]
pub(super) struct Transaction {
    parts: Vec<Part>,
    body: Vec<u8>,
    local_bytes: usize,
    machine_parts: usize,
    /// Where all of its keys lie, once there are some.
    pub(super) group: Option<GroupId>,
    /// A command was refused, so EXEC must refuse the rest.
    pub(super) spoiled: bool,
}

/// What EXEC has to do.
#[derive(Debug)]
pub(super) struct Execution {
    pub(super) parts: Vec<Part>,
    /// What the machine is given, if it has any part in this.
    pub(super) body: Option<Vec<u8>>,
}

impl Transaction {
    pub(super) fn new() -> Self {
        Self {
            parts: Vec::new(),
            body: vec![TRANSACTION],
            local_bytes: 0,
            machine_parts: 0,
            group: None,
            spoiled: false,
        }
    }

    pub(super) fn push_call(&mut self, call: &Call<'_>) {
        append_part(&mut self.body, call);
        self.machine_parts += 1;
        self.parts.push(Part::Machine);
    }

    pub(super) fn push_local(&mut self, local: Local, words: &[&[u8]]) {
        self.local_bytes += 1 + words.iter().map(|word| word.len() + 1).sum::<usize>();
        self.parts.push(Part::Local(
            local,
            words.iter().map(|word| word.to_vec()).collect(),
        ));
    }

    /// What is kept here, in bytes; the front's own parts count as if they were sent.
    pub(super) fn bytes(&self) -> usize {
        self.body.len() + self.local_bytes
    }

    pub(super) fn into_execution(self) -> Execution {
        let body = (self.machine_parts > 0).then_some(self.body);
        Execution {
            parts: self.parts,
            body,
        }
    }
}

/// Puts the machine's replies and the front's into one array, in RESP3. `answer` writes the reply
/// of a local part.
pub(super) fn merge(
    parts: &[Part],
    machine: &[u8],
    mut answer: impl FnMut(Local, &[&[u8]], &mut Vec<u8>),
) -> Vec<u8> {
    // An error for the whole, or nothing of our own to put in.
    if machine.first() == Some(&b'-') || parts.iter().all(|part| matches!(part, Part::Machine)) {
        return machine.to_vec();
    }
    let mut merged = Vec::with_capacity(machine.len() + 64);
    reply::array(&mut merged, parts.len());
    let head = machine
        .iter()
        .position(|byte| *byte == b'\n')
        .map_or(0, |end| end + 1);
    let mut rest = &machine[head..];
    for part in parts {
        match part {
            Part::Machine => {
                let bytes = reply::value_bytes(rest).unwrap_or(rest.len());
                let (value, tail) = rest.split_at(bytes);
                merged.extend_from_slice(value);
                rest = tail;
            }
            Part::Local(local, words) => {
                let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
                answer(*local, &words, &mut merged);
            }
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_replies_take_their_places_among_the_machines() {
        let ping = || Part::Local(Local::Ping, vec![]);
        let parts = [ping(), Part::Machine, ping(), Part::Machine];
        let machine = b"*2\r\n$1\r\nv\r\n*1\r\n_\r\n";
        let merged = merge(&parts, machine, |_, _, out| reply::simple(out, "PONG"));
        assert_eq!(merged, b"*4\r\n+PONG\r\n$1\r\nv\r\n+PONG\r\n*1\r\n_\r\n");
        assert_eq!(merge(&parts, b"-ERR no\r\n", |_, _, _| ()), b"-ERR no\r\n");
    }
}
