//! Plays a case on a device and says, field by field, what was otherwise.

use super::case::{Action, Answer, Case, Fact, Need, Packet, Request, Setting, Word};
use super::expression::{Expression, Quantity, Target};
use super::field::Field;
use crate::acceptor::Drop;
use crate::memory::{Memory, published};
use crate::region::{self, entry, group};
use crate::wire::{Flags, HEADER_BYTES, Kind, Malformed};
use crate::{GroupId, NodeId, Slot};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

/// Something that answers datagrams: an engine in this process, or a device behind a network.
pub trait Device {
    /// Why it could not be asked.
    type Error;
    /// The memory that it steps, where that can be seen.
    type Memory: Memory;

    /// What it is.
    fn target(&self) -> Target;

    /// The step of this index in the case begins.
    fn begin(&mut self, _step: usize) {}

    /// A nonce that this device has not been sent.
    fn nonce(&mut self) -> u32;

    /// Sends a datagram. `wants_answer` says whether one is expected: where packets get lost, it is
    /// then worth asking again.
    ///
    /// # Errors
    /// The device could not be asked.
    fn exchange(&mut self, datagram: &[u8], wants_answer: bool) -> Result<Outcome, Self::Error>;

    /// Lets time pass.
    ///
    /// # Errors
    /// The device went away meanwhile.
    fn wait(&mut self, ns: u64) -> Result<(), Self::Error>;

    /// By how much, in nanoseconds, the device may have been asked later than the case says.
    fn lateness_ns(&self) -> u64 {
        0
    }

    /// Has the second datagram stepped while the first one is, at a point that the device chooses.
    /// Never called where the memory cannot be seen.
    ///
    /// # Errors
    /// The device could not be asked.
    fn overlap(&mut self, first: &[u8], second: &[u8]) -> Result<(), Self::Error>;

    /// The memory that it steps, and the time by its clock.
    fn memory(&self) -> Option<(&Self::Memory, u64)>;
}

/// What came of a datagram.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// This datagram.
    Answered(Vec<u8>),
    /// Nothing, and why, if that can be seen.
    Silence(Option<Reason>),
}

/// Why nothing was answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// It was taken; no answer was asked for.
    Taken,
    /// It was not served.
    Dropped(Drop),
    /// It was malformed.
    Malformed(Malformed),
    /// It does not begin with the magic.
    NotOurs,
}

/// How a case went.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// As it should.
    Passed,
    /// The first step that went otherwise, field by field.
    Failed(Vec<Failure>),
    /// It makes no sense on this device, and why.
    Skipped(String),
    /// It makes sense, but could not be judged, and why.
    Unshown(String),
}

/// One field that was otherwise.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// The case.
    pub case: String,
    /// Its file.
    pub file: String,
    /// The line of the step.
    pub line: usize,
    /// The step, counted from 1.
    pub step: usize,
    /// What was sent or looked at, as it stands in the file.
    pub text: String,
    /// A field of the header, `value`, `answer`, `reason`, or a word of the region.
    pub field: String,
    /// Where in the answer it stands, in bytes.
    pub offset: Option<usize>,
    /// What should be there.
    pub expected: String,
    /// What was there.
    pub got: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            case,
            file,
            line,
            step,
            text,
            field,
            offset,
            expected,
            got,
        } = self;
        write!(f, "{file}:{line} {case} step {step}: {text}: {field}")?;
        if let Some(offset) = offset {
            write!(f, " at byte {offset}")?;
        }
        write!(f, ": expected {expected}, got {got}")
    }
}

/// A field that was otherwise, wherever it was.
struct Difference {
    field: String,
    offset: Option<usize>,
    expected: String,
    got: String,
}

impl Difference {
    fn new(field: &str, expected: String, got: String) -> Self {
        Self {
            field: field.into(),
            offset: None,
            expected,
            got,
        }
    }
}

/// Why a case cannot go on.
enum Stop<E> {
    Error(E),
    /// A field cannot hold its number on this device.
    Unsayable,
}

type Found<E> = Result<Vec<Difference>, Stop<E>>;

/// Plays a case. The group that the device's target names must be blank.
///
/// # Errors
/// The device could not be asked.
pub fn play<D: Device>(case: &Case, device: &mut D) -> Result<Verdict, D::Error> {
    let target = device.target();
    if let Some(lack) = case.lacking(&target) {
        return Ok(Verdict::Skipped(lack));
    }
    for (index, step) in case.steps.iter().enumerate() {
        let mut text = step.action.to_string();
        device.begin(index);
        let lock_before = lock(device);
        let found = match &step.action {
            Action::Exchange(request, answer) => {
                text = request.to_string();
                let nonce = device.nonce();
                match request.bytes(&target, nonce) {
                    Some(bytes) => exchange(device, &bytes, answer, &[]),
                    None => Err(Stop::Unsayable),
                }
            }
            Action::Wait(time) => match time.value(&target) {
                Some(ns) => device.wait(ns).map(|()| Vec::new()).map_err(Stop::Error),
                None => Err(Stop::Unsayable),
            },
            Action::Fact(fact) => check(device, fact, Place::of(case, index)),
            Action::Set(slot, words) => set(device, slot.as_ref(), words),
            Action::Overlap(first, second) => {
                let bytes = |request: &Request, nonce| request.bytes(&target, nonce);
                let nonces = (device.nonce(), device.nonce());
                match (bytes(first, nonces.0), bytes(second, nonces.1)) {
                    (Some(first), Some(second)) => device
                        .overlap(&first, &second)
                        .map(|()| Vec::new())
                        .map_err(Stop::Error),
                    _ => Err(Stop::Unsayable),
                }
            }
        };
        let mut differences = match found {
            Ok(differences) => differences,
            Err(Stop::Error(error)) => return Err(error),
            Err(Stop::Unsayable) => {
                let why = format!("`{text}` has a number that this device has no room for");
                return Ok(Verdict::Skipped(why));
            }
        };
        if matches!(step.action, Action::Exchange(..)) && lock(device) != lock_before {
            differences.push(Difference::new(
                "LOCK",
                held(lock_before).into(),
                held(lock(device)).into(),
            ));
        }
        if !differences.is_empty() {
            return Ok(Verdict::Failed(failures(case, index, &text, differences)));
        }
    }
    Ok(Verdict::Passed)
}

fn failures(case: &Case, index: usize, text: &str, differences: Vec<Difference>) -> Vec<Failure> {
    let line = case.steps.get(index).map_or(case.line, |step| step.line);
    let failures = differences.into_iter().map(|difference| Failure {
        case: case.name.clone(),
        file: case.file.clone(),
        line,
        step: index + 1,
        text: text.to_string(),
        field: difference.field,
        offset: difference.offset,
        expected: difference.expected,
        got: difference.got,
    });
    failures.collect()
}

/// How an answer differs that came after the step of this index had been judged by its `first`
/// answer, or by silence. A request that is sent again is answered as it was before, so nothing may
/// differ but the time that a lease has left.
pub fn contradiction(case: &Case, index: usize, first: Option<&[u8]>, then: &[u8]) -> Vec<Failure> {
    let text = match case.steps.get(index).map(|step| &step.action) {
        Some(Action::Exchange(request, _)) => request.to_string(),
        Some(action) => action.to_string(),
        None => String::new(),
    };
    let differences = match first {
        Some(first) if first == then => Vec::new(),
        Some(first) if first.len() >= HEADER_BYTES => {
            let any_time = Slack {
                late_ns: u64::MAX,
                has_own_clock: true,
            };
            compare(first, then, &[], any_time)
        }
        _ => {
            let expected = first.map_or("nothing".into(), summary);
            vec![Difference::new("answer", expected, summary(then))]
        }
    };
    failures(case, index, &format!("{text}, answered later"), differences)
}

/// Sends a datagram and compares what comes of it; fields in `except` may be anything.
fn exchange<D: Device>(
    device: &mut D,
    datagram: &[u8],
    answer: &Answer,
    except: &[Field],
) -> Found<D::Error> {
    let target = device.target();
    let expected = match answer {
        Answer::Packet(packet) => Some(packet.answer(&target, datagram).ok_or(Stop::Unsayable)?),
        Answer::Silent | Answer::Dropped(_) | Answer::Malformed(_) | Answer::NotOurs => None,
    };
    let outcome = device.exchange(datagram, expected.is_some());
    Ok(match (outcome.map_err(Stop::Error)?, expected) {
        (Outcome::Answered(got), Some(expected)) => {
            let late = Slack {
                late_ns: device.lateness_ns(),
                has_own_clock: !target.sets_clock,
            };
            compare(&expected, &got, except, late)
        }
        (Outcome::Answered(got), None) => {
            vec![Difference::new("answer", answer.to_string(), summary(&got))]
        }
        (Outcome::Silence(reason), Some(expected)) => {
            let got = match reason {
                None => "nothing".into(),
                Some(reason) => described(reason),
            };
            vec![Difference::new("answer", summary(&expected), got)]
        }
        (Outcome::Silence(None), None) => Vec::new(),
        (Outcome::Silence(Some(reason)), None) => {
            let (expected, got) = (answer.to_string(), described(reason));
            if expected == got {
                Vec::new()
            } else {
                vec![Difference::new("reason", expected, got)]
            }
        }
    })
}

fn described(reason: Reason) -> String {
    let answer = match reason {
        Reason::Taken => Answer::Silent,
        Reason::Dropped(reason) => Answer::Dropped(reason),
        Reason::Malformed(reason) => Answer::Malformed(reason),
        Reason::NotOurs => Answer::NotOurs,
    };
    answer.to_string()
}

/// A packet in a few words.
fn summary(packet: &[u8]) -> String {
    if packet.len() < HEADER_BYTES {
        return format!("{} bytes", packet.len());
    }
    let shown = |field: Field| field.shown(field.get(packet));
    let mut text = shown(Field::Kind);
    for field in [
        Field::Slot,
        Field::Ballot,
        Field::VoteBallot,
        Field::Watermark,
    ] {
        text = format!("{text} {}={}", field.name(), shown(field));
    }
    text
}

/// How far times may be off.
#[derive(Clone, Copy)]
struct Slack {
    late_ns: u64,
    has_own_clock: bool,
}

impl Slack {
    /// A lease's time left only falls while the question is on its way; two clocks may differ by a
    /// hundredth.
    fn allows(self, expected: u64, got: u64) -> bool {
        let drift = if self.has_own_clock {
            expected / 100
        } else {
            0
        };
        (expected.saturating_sub(self.late_ns).saturating_sub(drift)..=expected + drift)
            .contains(&got)
    }
}

fn compare(expected: &[u8], got: &[u8], except: &[Field], slack: Slack) -> Vec<Difference> {
    if got.len() < HEADER_BYTES {
        let expected = format!("{} bytes", expected.len());
        return vec![Difference::new("answer", expected, summary(got))];
    }
    let is_lease = Field::Kind.get(expected) == Kind::Nack as u64
        && Field::Flags.get(expected) == u64::from(Flags::LEASE.0);
    let mut differences = Vec::new();
    for field in Field::ALL.iter().filter(|field| !except.contains(field)) {
        let (wanted, found) = (field.get(expected), field.get(got));
        let is_time = is_lease && *field == Field::Watermark;
        // The tag covers the fields that may be anything.
        let is_open = *field == Field::Tag && (!except.is_empty() || is_lease);
        if wanted == found || is_time && slack.allows(wanted, found) || is_open {
            continue;
        }
        differences.push(Difference {
            field: field.name().into(),
            offset: Some(field.offset()),
            expected: field.shown(wanted),
            got: field.shown(found),
        });
    }
    let (wanted, found) = (&expected[HEADER_BYTES..], &got[HEADER_BYTES..]);
    differences.extend(compare_values(wanted, found, HEADER_BYTES));
    differences
}

fn compare_values(expected: &[u8], got: &[u8], start: usize) -> Option<Difference> {
    if expected == got {
        return None;
    }
    let pairs = expected.iter().zip(got);
    let at = pairs.take_while(|(one, other)| one == other).count();
    let shown = |bytes: &[u8]| {
        let from = bytes.get(at..).unwrap_or_default();
        let digits: String = from
            .iter()
            .take(8)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let more = if from.len() > 8 { "…" } else { "" };
        format!("{digits}{more} ({} bytes in all)", bytes.len())
    };
    Some(Difference {
        field: "value".into(),
        offset: Some(start + at),
        expected: shown(expected),
        got: shown(got),
    })
}

/// Whether the group's record is locked. A step that leaves it so would make it busy for ever.
fn lock<D: Device>(device: &D) -> bool {
    let held = || {
        let (memory, _) = device.memory()?;
        let at = memory.group(GroupId(device.target().group))?;
        Some(memory.load(at, group::LOCK) & 1 != 0)
    };
    held().unwrap_or(false)
}

const fn held(is_held: bool) -> &'static str {
    if is_held { "held" } else { "released" }
}

/// Writes words of the region.
fn set<D: Device>(
    device: &D,
    slot: Option<&Expression>,
    words: &[(Word, Quantity)],
) -> Found<D::Error> {
    let target = device.target();
    let set = || {
        let (memory, _) = device.memory()?;
        let group = memory.group(GroupId(target.group))?;
        let at = match slot {
            None => group,
            Some(slot) => {
                let index = slot.value(&target)? % target.window;
                memory.entry(memory.load(group, group::BASE) + index)?
            }
        };
        for (word, number) in words {
            let word = match slot {
                None => word.in_group()?,
                Some(_) => {
                    let body = published(memory.load(at, entry::LOCK));
                    word.in_entry(body * (entry::VALUE + target.value_bytes / 8))?
                }
            };
            memory.exchange(at, word, number.value(&target)?);
        }
        Some(Vec::new())
    };
    set().ok_or(Stop::Unsayable)
}

fn with(mut packet: Packet, field: Field, number: u64) -> Packet {
    let number = Quantity::Number(Expression::number(number));
    packet.fields.push((field, Setting::Number(number)));
    packet
}

/// Sends a packet and compares the answer; fields in `except` may be anything.
fn ask<D: Device>(
    device: &mut D,
    question: Packet,
    answer: Packet,
    except: &[Field],
) -> Found<D::Error> {
    let request = Request::Packet {
        packet: question,
        cut: None,
        more: Vec::new(),
    };
    let nonce = device.nonce();
    let bytes = request
        .bytes(&device.target(), nonce)
        .ok_or(Stop::Unsayable)?;
    exchange(device, &bytes, &Answer::Packet(answer), except)
}

/// What Read says of a group beside what was asked for.
const AROUND: &[Field] = &[Field::Ballot, Field::Watermark];

fn packet(kind: Kind, fields: &[(Field, u64)]) -> Packet {
    let packet = Packet::new(kind);
    fields.iter().fold(packet, |packet, (field, number)| {
        with(packet, *field, *number)
    })
}

/// What a device has promised that does not answer Read: a Fetch of another ballot is told.
fn promised<D: Device>(device: &mut D) -> Result<u64, Stop<D::Error>> {
    let target = device.target();
    let highest = Quantity::parse("MAX_ROUND.MAX_NODE").ok();
    let highest = highest.and_then(|ballot| ballot.value(&target));
    let highest = highest.ok_or(Stop::Unsayable)?;
    let question = packet(Kind::Fetch, &[(Field::Ballot, highest)]);
    let request = Request::Packet {
        packet: question,
        cut: None,
        more: Vec::new(),
    };
    let nonce = device.nonce();
    let bytes = request.bytes(&target, nonce).ok_or(Stop::Unsayable)?;
    Ok(match device.exchange(&bytes, true).map_err(Stop::Error)? {
        Outcome::Answered(answer) if Field::Kind.get(&answer) == Kind::Nack as u64 => {
            Field::VoteBallot.get(&answer)
        }
        Outcome::Answered(_) | Outcome::Silence(_) => highest,
    })
}

/// Looks at a slot: with Read, or with Fetch in the ballot promised.
fn look<D: Device>(device: &mut D, slot: u64, answer: Packet) -> Found<D::Error> {
    if device.target().answers_read {
        let question = packet(Kind::Read, &[(Field::Slot, slot)]);
        return ask(device, question, answer, AROUND);
    }
    let ballot = promised(device)?;
    if ballot == 0 {
        // Nothing was ever voted, so there is nothing to see.
        return Ok(Vec::new());
    }
    let question = packet(Kind::Fetch, &[(Field::Ballot, ballot), (Field::Slot, slot)]);
    ask(device, question, answer, AROUND)
}

/// Where in a case something is looked at.
#[derive(Clone, Copy)]
struct Place {
    /// Somebody may hold a lease.
    is_leased: bool,
    /// Nothing is sent or waited for after this: what a look changes disturbs nothing.
    is_at_end: bool,
}

impl Place {
    fn of(case: &Case, index: usize) -> Self {
        let mut rest = case.steps.iter().skip(index);
        Self {
            is_leased: case.needs.contains(&Need::Lease),
            is_at_end: rest.all(|step| matches!(step.action, Action::Fact(_))),
        }
    }
}

/// Looks at a group.
fn look_around<D: Device>(
    device: &mut D,
    promised: u64,
    highest: u64,
    trim: u64,
    place: Place,
) -> Found<D::Error> {
    let (below, above) = (0, highest.max(trim) + 1);
    if device.target().answers_read {
        // Slot 0 lies below every trim, and no entry holds a slot above the highest.
        let fields = [(Field::Ballot, promised), (Field::Watermark, trim)];
        let question = packet(Kind::Read, &[(Field::Slot, below)]);
        let mut found = ask(device, question, packet(Kind::Outside, &fields), &[])?;
        let fields = [(Field::Ballot, promised), (Field::Watermark, highest)];
        let question = packet(Kind::Read, &[(Field::Slot, above)]);
        found.extend(ask(device, question, packet(Kind::Empty, &fields), &[])?);
        return Ok(found);
    }
    let other = if promised >> 16 == 1 {
        2 << 16 | 1
    } else {
        1 << 16 | 1
    };
    let question = packet(Kind::Fetch, &[(Field::Ballot, other)]);
    let answer = packet(Kind::Nack, &[(Field::VoteBallot, promised)]);
    let mut found = ask(device, question, answer, &[])?;
    if promised != 0 {
        let fields = [(Field::Ballot, promised), (Field::Slot, below)];
        let answer = packet(Kind::Outside, &[(Field::Watermark, trim)]);
        found.extend(ask(device, packet(Kind::Fetch, &fields), answer, &[])?);
    }
    // Asking again for what was promised changes nothing. Where nothing was, it does.
    let ballot = match promised {
        0 if place.is_at_end && device.memory().is_none() => other,
        promised => promised,
    };
    if ballot == 0 {
        return Ok(found);
    }
    let answer = packet(
        Kind::Promise,
        &[(Field::Slot, highest), (Field::Watermark, trim)],
    );
    let question = packet(Kind::Prepare, &[(Field::Ballot, ballot)]);
    if place.is_leased {
        // Another's lease refuses it, and ends.
        if !place.is_at_end || device.memory().is_some() {
            return Ok(found);
        }
        let lease_ns = device.target().lease_ns;
        let ended = device.wait(lease_ns + lease_ns / 4);
        ended.map_err(Stop::Error)?;
    }
    found.extend(ask(device, question, answer, &[])?);
    Ok(found)
}

fn check<D: Device>(device: &mut D, fact: &Fact, place: Place) -> Found<D::Error> {
    let target = device.target();
    let number = |number: &Expression| number.value(&target).ok_or(Stop::Unsayable);
    let quantity = |number: &Quantity| number.value(&target).ok_or(Stop::Unsayable);
    let group = GroupId(target.group);
    let mut found = match fact {
        Fact::Region {
            promised,
            highest,
            trim,
        } => {
            let (highest, trim) = (number(highest)?, number(trim)?);
            look_around(device, quantity(promised)?, highest, trim, place)?
        }
        Fact::Vote {
            slot,
            ballot,
            value,
        } => {
            let mut answer = packet(Kind::Vote, &[(Field::VoteBallot, quantity(ballot)?)]);
            answer.value = value.clone();
            look(device, number(slot)?, answer)?
        }
        Fact::Empty(slot) => look(device, number(slot)?, Packet::new(Kind::Empty))?,
        Fact::Outside(slot) => look(device, number(slot)?, Packet::new(Kind::Outside))?,
        Fact::Decided { .. } | Fact::Lease { .. } | Fact::Heard { .. } => Vec::new(),
    };
    let Some((memory, now_ns)) = device.memory() else {
        return Ok(found);
    };
    let view = region::view(memory, group);
    let Some(view) = view else {
        found.push(Difference::new(
            "group",
            target.group.to_string(),
            "none".into(),
        ));
        return Ok(found);
    };
    let mut same = |field: &str, expected: u64, got: u64| {
        if expected != got {
            found.push(Difference::new(
                field,
                expected.to_string(),
                got.to_string(),
            ));
        }
    };
    match fact {
        Fact::Region {
            promised,
            highest,
            trim,
        } => {
            same("PROMISED", quantity(promised)?, view.promised.0);
            same("HIGHEST", number(highest)?, view.highest.0);
            same("TRIM", number(trim)?, view.trim.0);
        }
        Fact::Vote {
            slot,
            ballot,
            value,
        } => {
            let mut out = vec![0; target.value_bytes];
            let slot = Slot(number(slot)?);
            let (voted, length) =
                region::vote(memory, group, slot, target.value_bytes, &mut out).unwrap_or_default();
            same("BALLOT", quantity(ballot)?, voted.0);
            let wanted = value.bytes(&target).ok_or(Stop::Unsayable)?;
            found.extend(
                compare_values(&wanted, &out[..length], 0).map(|difference| Difference {
                    field: "VALUE".into(),
                    ..difference
                }),
            );
        }
        Fact::Empty(slot) => {
            let mut out = vec![0; target.value_bytes];
            let slot = Slot(number(slot)?);
            let vote = region::vote(memory, group, slot, target.value_bytes, &mut out);
            same("BALLOT", 0, vote.map_or(0, |(ballot, _)| ballot.0));
        }
        Fact::Outside(_) => {}
        Fact::Decided { ballot, from, upto } => {
            same("decided BALLOT", quantity(ballot)?, view.decided.ballot.0);
            same("decided FROM", number(from)?, view.decided.from.0);
            same("decided UPTO", number(upto)?, view.decided.upto.0);
        }
        Fact::Lease { ballot, left } => {
            let lease = region::lease(memory, group).unwrap_or_default();
            same("LEASE_BALLOT", quantity(ballot)?, lease.ballot.0);
            same(
                "LEASE_UNTIL",
                number(left)?,
                lease.until_ns.saturating_sub(now_ns),
            );
        }
        Fact::Heard { node, ago } => {
            let node = NodeId(number(node)?.try_into().map_err(|_| Stop::Unsayable)?);
            let seen = region::seen_ns(memory, node);
            same("peer", number(ago)?, now_ns.saturating_sub(seen));
        }
    }
    Ok(found)
}
