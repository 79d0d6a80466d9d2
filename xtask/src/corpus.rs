//! `cargo xtask corpus`: cases that the step itself is the source of.
//!
//! Random requests walk the step from blank groups. A walk is kept if it led to something new, two
//! traits of a request and of the state that it met with an outcome that they had not had; moves
//! that had no part in that are taken out. Later walks begin where kept ones ended, so that rare
//! states are built upon. One seed, so the file is the same wherever it is written.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, ensure};
use consensus::conformance::{
    Action, Answer, Case, Device as _, Expression, Fact, Field, Need, Outcome, Packet, Quantity,
    Reason, Request, Setting, Shape, Software, Step, Target, Value, Verdict,
};
use consensus::random::Random;
use consensus::region::{self, GroupView};
use consensus::wire::{Flags, HEADER_BYTES, Header, Kind, Parsed, parse};
use consensus::{Ballot, GroupId, Slot};

use crate::workspace::Workspace;

const PATH: &str = "consensus/corpus/generated.txt";
const HEAD: &str = "\
# Written by `cargo xtask corpus` from the step itself; do not edit. Random requests walk the step,
# and a walk is kept if two traits of a request and its state had an outcome that was new. What was
# new stands above each case.
";
/// Moves of one walk at the most.
const MAX_STEPS: usize = 12;
/// Moves by which a walk goes on from a kept one.
const NEW_STEPS: usize = 6;

/// Where walks take place.
struct Ground {
    /// What the names of its cases begin with.
    name: &'static str,
    seed: u64,
    /// Walks that are tried.
    walks: u64,
    /// Slots of the smallest window that its cases are for.
    window: u64,
    /// The slots, from and trims that are asked for: in the same order, and in the same ring
    /// entries, for every window of so many slots or more.
    numbers: &'static [&'static str],
}

/// Most cases tell the edges of a window from what lies inside. A few are for windows that have no
/// inside.
const GROUNDS: [Ground; 2] = [
    Ground {
        name: "generated",
        seed: 0x6e65_6172_7769_7265,
        walks: 20_000,
        window: 8,
        numbers: &[
            "0", "1", "2", "3", "W-1", "W", "W+1", "W+2", "2W-1", "2W", "2W+1", "3W", "3W+1",
        ],
    },
    Ground {
        name: "generated-small",
        seed: 0x736d_616c_6c65_7374,
        walks: 400,
        window: 2,
        numbers: &["0", "1", "W", "W+1", "2W", "2W+1", "3W", "3W+1"],
    },
];
const MAX_VALUE: usize = 65_535;

/// Whether to write the file or to compare it.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Write nothing; fail if the file is not what would be written.
    #[arg(long)]
    check: bool,
}

/// Writes the generated part of the conformance corpus; the answer is whether it is up to date.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let workspace = Workspace::load()?;
    let path = workspace.root.join(PATH);
    let text = generate()?;
    if arguments.check {
        return is_current(&path, &text);
    }
    std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    Ok(true)
}

fn is_current(path: &Path, text: &str) -> anyhow::Result<bool> {
    let found =
        std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    if found != text {
        eprintln!("error: {PATH} is not what the step gives: run `cargo xtask corpus`");
    }
    Ok(found == text)
}

/// What may happen in a walk. Times are those of leases, which have walks of their own: over a
/// network they are measured, and there each silence takes a while.
#[derive(Clone)]
enum Move {
    Ask(Packet),
    Wait,
}

#[derive(Clone)]
struct Walk {
    ground: &'static Ground,
    moves: Vec<Move>,
    has_leases: bool,
}

/// Two traits of a request and the state that it met, its kind, and what came of it.
type Pair = ([&'static str; 3], String);

/// A request by its kind and its traits, among them those of the state that it met, and what came
/// of it.
struct Met {
    class: Vec<&'static str>,
    outcome: String,
}

impl Met {
    /// All products of the traits would be more cases than anyone reads, so they go by twos.
    fn pairs(&self) -> Vec<Pair> {
        let Some((kind, traits)) = self.class.split_first() else {
            return Vec::new();
        };
        let mut pairs = vec![([*kind, "", ""], self.outcome.clone())];
        for (index, one) in traits.iter().enumerate() {
            for other in &traits[index + 1..] {
                pairs.push(([*kind, *one, *other], self.outcome.clone()));
            }
        }
        pairs
    }
}

/// The text of the generated cases.
fn generate() -> anyhow::Result<String> {
    let mut text = HEAD.to_owned();
    for ground in &GROUNDS {
        text.push_str(&walks(ground)?);
    }
    Ok(text)
}

/// The text of one ground's cases.
fn walks(ground: &'static Ground) -> anyhow::Result<String> {
    let mut random = Random::new(ground.seed);
    let mut seen = BTreeSet::new();
    let mut kept: Vec<Walk> = Vec::new();
    let mut text = String::new();
    for _ in 0..ground.walks {
        let mut walk = match kept.len() as u64 {
            0 => Walk::new(ground, false),
            count if random.below(3) > 0 => kept[random.below(count) as usize].clone(),
            _ => Walk::new(ground, random.below(4) == 0),
        };
        let moves = MAX_STEPS.min(walk.moves.len() + NEW_STEPS);
        while walk.moves.len() < moves {
            let next = walk.next(&mut random);
            walk.moves.push(next);
        }
        let news = cut_down(&mut walk, &seen)?;
        if news.is_empty() {
            continue;
        }
        let Some((case, why)) = tell(&walk, &news, kept.len() + 1)? else {
            continue;
        };
        if !fits_all_shapes(&case)? {
            // In a larger window some sums come in another order.
            ensure!(
                ground.window < GROUNDS[0].window,
                "{case}\nfits one shape only"
            );
            continue;
        }
        seen.extend(news);
        kept.push(walk);
        text.push_str(&format!("\n# {}\n{case}", why.join("\n# ")));
    }
    Ok(text)
}

fn fits_all_shapes(case: &Case) -> anyhow::Result<bool> {
    for shape in Shape::ALL {
        if let Verdict::Failed(_) = Software::play(case, shape)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn number(expression: &str) -> anyhow::Result<Setting> {
    let parsed = Expression::parse(expression).map_err(anyhow::Error::msg)?;
    Ok(Setting::Number(Quantity::Number(parsed)))
}

fn ballot(round: u64, node: u64) -> Quantity {
    Quantity::Ballot(Expression::number(round), Expression::number(node))
}

impl Walk {
    const fn new(ground: &'static Ground, has_leases: bool) -> Self {
        Self {
            ground,
            moves: Vec::new(),
            has_leases,
        }
    }

    fn next(&self, random: &mut Random) -> Move {
        if self.has_leases && random.below(5) == 0 {
            return Move::Wait;
        }
        let kinds = [
            Kind::Prepare,
            Kind::Fetch,
            Kind::Accept,
            Kind::Accept,
            Kind::Decide,
            Kind::Read,
        ];
        let kind = kinds[random.below(kinds.len() as u64) as usize];
        let mut packet = Packet::new(kind);
        let mut pick = |random: &mut Random, field| {
            let numbers = self.ground.numbers;
            let text = numbers[random.below(numbers.len() as u64) as usize];
            if let Ok(setting) = number(text) {
                packet.fields.push((field, setting));
            }
        };
        match kind {
            Kind::Prepare => {}
            Kind::Decide => {
                pick(random, Field::Slot);
                pick(random, Field::VoteBallot);
                pick(random, Field::Watermark);
            }
            _ => pick(random, Field::Slot),
        }
        if kind == Kind::Accept {
            packet.value = match random.below(6) {
                0 => Value::Text(String::new()),
                1 => Value::Fill(number_of("V"), random.below(251) as u8),
                _ => {
                    let letter = char::from(b'a' + random.below(26) as u8);
                    Value::Text(letter.to_string())
                }
            };
        }
        if kind != Kind::Read {
            let quantity = ballot(1 + random.below(4), 1 + random.below(3));
            packet
                .fields
                .insert(0, (Field::Ballot, Setting::Number(quantity)));
        }
        if kind == Kind::Decide {
            let mut flags = Flags(0);
            if self.has_leases || random.below(2) == 0 {
                flags = flags.with(Flags::ACK_WANTED);
            }
            if self.has_leases && random.below(2) == 0 {
                flags = flags.with(Flags::LEASE);
            }
            if self.has_leases && random.below(4) == 0 {
                flags = flags.with(Flags::RELEASE);
            }
            if flags != Flags(0) {
                packet.fields.push((Field::Flags, Setting::Flags(flags)));
            }
        }
        Move::Ask(packet)
    }
}

fn number_of(text: &str) -> Expression {
    Expression::parse(text).unwrap_or_else(|_| Expression::number(0))
}

/// A walk that was played: what each move met, and how it is written down.
struct Played {
    device: Software,
    teller: Teller,
    met: Vec<Option<Met>>,
    actions: Vec<Action>,
}

/// Plays a walk. Nothing if a request of a walk with leases is not answered.
fn played(walk: &Walk) -> anyhow::Result<Option<Played>> {
    let mut device = Software::new(Shape {
        window: walk.ground.window,
        ..Shape::SMALL
    })?;
    let target = device.target();
    let mut teller = Teller::new(walk.ground, target);
    let (mut met, mut actions) = (Vec::new(), Vec::new());
    for one in &walk.moves {
        let packet = match one {
            Move::Wait => {
                let Ok(()) = device.wait(target.lease_ns / 4);
                met.push(None);
                actions.push(Action::Wait(number_of("L/4")));
                continue;
            }
            Move::Ask(packet) => packet,
        };
        let request = Request::Packet {
            packet: packet.clone(),
            cut: None,
            more: Vec::new(),
        };
        let bytes = request
            .bytes(&target, device.nonce())
            .context("a request that cannot be said")?;
        let class = class_of_request(&device, &bytes);
        let Ok(outcome) = device.exchange(&bytes, true);
        if walk.has_leases && !matches!(outcome, Outcome::Answered(_)) {
            return Ok(None);
        }
        teller.note(packet, &bytes);
        let answer = teller.answer(&bytes, &outcome)?;
        let outcome = class_of_answer(&answer);
        met.push(Some(Met { class, outcome }));
        actions.push(Action::Exchange(request, answer));
    }
    Ok(Some(Played {
        device,
        teller,
        met,
        actions,
    }))
}

impl Played {
    fn pairs(&self) -> BTreeSet<Pair> {
        self.met.iter().flatten().flat_map(Met::pairs).collect()
    }
}

/// Cuts a walk down to what leads to news, and returns these.
fn cut_down(walk: &mut Walk, seen: &BTreeSet<Pair>) -> anyhow::Result<BTreeSet<Pair>> {
    let mut news = BTreeSet::new();
    while !walk.moves.is_empty() {
        if let Some(played) = played(walk)? {
            news = &played.pairs() - seen;
            break;
        }
        walk.moves.pop();
    }
    let mut at = walk.moves.len();
    while at > 0 && !news.is_empty() {
        at -= 1;
        let mut shorter = walk.clone();
        shorter.moves.remove(at);
        if played(&shorter)?.is_some_and(|played| played.pairs().is_superset(&news)) {
            *walk = shorter;
        }
    }
    Ok(news)
}

/// Writes a walk down, with what it was kept for.
fn tell(
    walk: &Walk,
    news: &BTreeSet<Pair>,
    ordinal: usize,
) -> anyhow::Result<Option<(Case, Vec<String>)>> {
    let Some(mut played) = played(walk)? else {
        return Ok(None);
    };
    let new = |met: &&Met| met.pairs().iter().any(|pair| news.contains(pair));
    let why = played.met.iter().flatten().filter(new);
    let why = why.map(|met| format!("{}: {}", met.class.join(", "), met.outcome));
    let why = why.collect();
    let facts = played.teller.facts(&played.device, walk.has_leases)?;
    played.actions.extend(facts);
    let mut needs = vec![Need::Window(walk.ground.window)];
    if walk.has_leases {
        needs.push(Need::Lease);
    }
    let step = |action| Step { line: 0, action };
    let case = Case {
        file: "generated.txt".into(),
        line: 0,
        name: format!("{}-{ordinal}", walk.ground.name),
        why: String::new(),
        needs,
        steps: played.actions.into_iter().map(step).collect(),
    };
    Ok(Some((case, why)))
}

/// What an answer is, without its numbers.
fn class_of_answer(answer: &Answer) -> String {
    match answer {
        Answer::Packet(packet) => {
            let is_flagged = packet
                .fields
                .iter()
                .any(|(field, _)| *field == Field::Flags);
            let lease = if is_flagged { " for a lease" } else { "" };
            format!("{:?}{lease}", packet.kind)
        }
        other => other.to_string(),
    }
}

/// The kind of a request, and its traits and those of the state that it meets.
fn class_of_request(device: &Software, request: &[u8]) -> Vec<&'static str> {
    let Parsed::Ours(header, value) = parse(request, MAX_VALUE) else {
        return vec!["malformed"];
    };
    let Some((memory, now_ns)) = device.memory() else {
        return Vec::new();
    };
    let target = device.target();
    let group = GroupId(target.group);
    let Some(view) = region::view(memory, group) else {
        return vec!["torn"];
    };
    let mut class = vec![kind_class(&header)];
    if header.kind != Kind::Read {
        class.push(order(
            header.ballot,
            view.promised,
            [
                "below the promise",
                "the promised ballot",
                "above the promise",
            ],
        ));
    }
    if matches!(header.kind, Kind::Fetch | Kind::Accept | Kind::Read) {
        class.push(slot_class(header.slot.0, &view, target.window));
        let holds = |slot: u64| {
            let mut out = vec![0; target.value_bytes];
            region::vote(memory, group, Slot(slot), target.value_bytes, &mut out)
        };
        let slot = header.slot.0;
        let around = (1..=4).map(|rings| rings * target.window);
        class.push(match holds(slot) {
            Some((ballot, _)) if header.kind == Kind::Accept => order(
                header.ballot,
                ballot,
                [
                    "over a higher vote",
                    "over its own vote",
                    "over a lower vote",
                ],
            ),
            Some(_) => "with a vote",
            None if around.clone().any(|by| holds(slot + by).is_some()) => "overwritten",
            None if around
                .clone()
                .any(|by| slot > by && holds(slot - by).is_some()) =>
            {
                "over an older slot"
            }
            None => "without a vote",
        });
    }
    if matches!(header.kind, Kind::Prepare | Kind::Decide) {
        let lease = region::lease(memory, group).unwrap_or_default();
        class.push(match lease.ballot.node() == header.ballot.node() {
            _ if lease.ballot == Ballot::NONE => "no lease",
            _ if lease.until_ns <= now_ns => "a lease that has ended",
            true => "its node's lease",
            false => "another's lease",
        });
    }
    if header.kind == Kind::Accept {
        class.push(match value.len() {
            0 => "an empty value",
            length if length == target.value_bytes => "the longest value",
            _ => "a value",
        });
    }
    if header.kind == Kind::Decide {
        class.push(order(
            header.ballot,
            view.decided.ballot,
            [
                "below the record",
                "of the record's ballot",
                "above the record",
            ],
        ));
        let next = header.slot.0 + 1;
        class.push(match header.watermark {
            trim if trim > next => "trim too high",
            trim if trim > view.trim.0 => "raises the trim",
            trim if trim == view.trim.0 => "repeats the trim",
            _ => "a lower trim",
        });
        class.push(match header.vote_ballot.0 {
            from if from > next => "from too high",
            from if from == view.decided.from.0 => "the same from",
            _ => "another from",
        });
        class.push(order(
            Ballot(header.slot.0),
            Ballot(view.decided.upto.0),
            ["a lower upto", "the same upto", "a higher upto"],
        ));
    }
    class
}

fn kind_class(header: &Header) -> &'static str {
    let flags = header.flags;
    match header.kind {
        Kind::Prepare => "Prepare",
        Kind::Fetch => "Fetch",
        Kind::Accept => "Accept",
        Kind::Read => "Read",
        _ if flags.has(Flags::RELEASE) => "Decide that gives the lease back",
        _ if flags.has(Flags::LEASE) => "Decide with a lease",
        _ if flags.has(Flags::ACK_WANTED) => "Decide that wants an answer",
        _ => "Decide",
    }
}

fn order(one: Ballot, other: Ballot, names: [&'static str; 3]) -> &'static str {
    match one.cmp(&other) {
        std::cmp::Ordering::Less => names[0],
        std::cmp::Ordering::Equal => names[1],
        std::cmp::Ordering::Greater => names[2],
    }
}

fn slot_class(slot: u64, view: &GroupView, window: u64) -> &'static str {
    let (first, last) = (view.trim.0, view.trim.0 + window - 1);
    match slot {
        0 => "slot 0",
        slot if slot < first => "below the trim",
        slot if slot == first => "the first slot kept",
        slot if slot < last => "inside the window",
        slot if slot == last => "the last slot of the window",
        slot if slot == last + 1 => "the first slot beyond",
        _ => "beyond the window",
    }
}

/// Finds the words for numbers and bytes that a walk has led to.
struct Teller {
    ground: &'static Ground,
    target: Target,
    values: Vec<(Vec<u8>, Value)>,
    slots: BTreeSet<u64>,
}

impl Teller {
    const fn new(ground: &'static Ground, target: Target) -> Self {
        Self {
            ground,
            target,
            values: Vec::new(),
            slots: BTreeSet::new(),
        }
    }

    fn note(&mut self, packet: &Packet, request: &[u8]) {
        self.values
            .push((request[HEADER_BYTES..].to_vec(), packet.value.clone()));
        if packet.kind != Kind::Decide {
            self.slots.insert(Field::Slot.get(request));
        }
    }

    fn value(&self, bytes: &[u8]) -> anyhow::Result<Value> {
        if bytes.is_empty() {
            return Ok(Value::Text(String::new()));
        }
        let found = self.values.iter().find(|(known, _)| known == bytes);
        found
            .map(|(_, value)| value.clone())
            .context("a value that nobody sent")
    }

    /// A slot, as it was asked for.
    fn slot(&self, slot: u64) -> anyhow::Result<Expression> {
        let mut known = self.ground.numbers.iter().map(|text| number_of(text));
        known
            .find(|known| known.value(&self.target) == Some(slot))
            .with_context(|| format!("slot {slot}, which nobody asked for"))
    }

    /// The time that a lease has left: walks wait by quarters.
    fn left(&self, ns: u64) -> anyhow::Result<Expression> {
        let quarter = self.target.lease_ns / 4;
        ensure!(
            ns.is_multiple_of(quarter),
            "{ns} ns is no quarter of a lease"
        );
        Ok(number_of(match ns / quarter {
            0 => "0",
            1 => "L/4",
            2 => "L/2",
            3 => "3L/4",
            _ => "L",
        }))
    }

    fn ballot(number: u64) -> Quantity {
        match Ballot(number) {
            Ballot::NONE => Quantity::Number(Expression::number(0)),
            held => ballot(held.round(), held.node().0.into()),
        }
    }

    fn answer(&self, request: &[u8], outcome: &Outcome) -> anyhow::Result<Answer> {
        let bytes = match outcome {
            Outcome::Answered(bytes) => bytes,
            Outcome::Silence(Some(Reason::Taken)) => return Ok(Answer::Silent),
            Outcome::Silence(Some(Reason::Dropped(reason))) => return Ok(Answer::Dropped(*reason)),
            Outcome::Silence(Some(Reason::Malformed(reason))) => {
                return Ok(Answer::Malformed(*reason));
            }
            Outcome::Silence(Some(Reason::NotOurs) | None) => return Ok(Answer::NotOurs),
        };
        let kind = Kind::from_code(Field::Kind.get(bytes) as u8).context("a kind")?;
        let mut packet = Packet::new(kind);
        packet.value = self.value(&bytes[HEADER_BYTES..])?;
        let usual = packet
            .answer(&self.target, request)
            .context("an answer that cannot be said")?;
        let flags = Flags(Field::Flags.get(bytes) as u16);
        for field in Field::ALL {
            let number = field.get(bytes);
            if number == field.get(&usual) {
                continue;
            }
            let setting = match field {
                Field::Flags => Setting::Flags(flags),
                Field::Ballot | Field::VoteBallot => Setting::Number(Self::ballot(number)),
                Field::Watermark if flags.has(Flags::LEASE) => {
                    Setting::Number(Quantity::Number(self.left(number)?))
                }
                _ => Setting::Number(Quantity::Number(self.slot(number)?)),
            };
            packet.fields.push((*field, setting));
        }
        Ok(Answer::Packet(packet))
    }

    /// What is so at the end, for every slot that was named up to there.
    fn facts(&self, device: &Software, has_leases: bool) -> anyhow::Result<Vec<Action>> {
        let (memory, now_ns) = device.memory().context("memory in this process")?;
        let group = GroupId(self.target.group);
        let view = region::view(memory, group).context("a released record")?;
        let mut facts = vec![
            Fact::Region {
                promised: Self::ballot(view.promised.0),
                highest: self.slot(view.highest.0)?,
                trim: self.slot(view.trim.0)?,
            },
            Fact::Decided {
                ballot: Self::ballot(view.decided.ballot.0),
                from: self.slot(view.decided.from.0)?,
                upto: self.slot(view.decided.upto.0)?,
            },
        ];
        if has_leases {
            let lease = region::lease(memory, group).context("a group")?;
            facts.push(Fact::Lease {
                ballot: Self::ballot(lease.ballot.0),
                left: self.left(lease.until_ns.saturating_sub(now_ns))?,
            });
        }
        for slot in self.slots.iter().copied().filter(|slot| *slot > 0) {
            let mut out = vec![0; self.target.value_bytes];
            let vote = region::vote(memory, group, Slot(slot), out.len(), &mut out);
            let is_overwritten = (1..=4).any(|rings| {
                let later = Slot(slot + rings * self.target.window);
                let mut out = vec![0; self.target.value_bytes];
                region::vote(memory, group, later, out.len(), &mut out).is_some()
            });
            facts.push(match vote {
                _ if slot < view.trim.0 || is_overwritten => Fact::Outside(self.slot(slot)?),
                Some((ballot, length)) => Fact::Vote {
                    slot: self.slot(slot)?,
                    ballot: Self::ballot(ballot.0),
                    value: self.value(&out[..length])?,
                },
                None => Fact::Empty(self.slot(slot)?),
            });
        }
        Ok(facts.into_iter().map(Action::Fact).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_cases_are_those_that_the_step_gives() {
        let text = generate().unwrap_or_else(|error| panic!("{error:#}"));
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let is_current = is_current(&root.join(PATH), &text);
        assert!(is_current.expect("the file"), "run `cargo xtask corpus`");
    }
}
