//! What the corpus says of devices that are not the shipped step: ones that go wrong in every way
//! that the shipped step, even with a defect, does not.
#![cfg(not(loom))]

use nearwire_consensus::GroupId;
use nearwire_consensus::acceptor::Drop;
use nearwire_consensus::conformance::{
    Case, Device, Failure, Field, Outcome, Reason, Shape, Software, Target, Verdict, corpus, parse,
    play,
};
use nearwire_consensus::memory::Memory;
use nearwire_consensus::region::{self, GroupView, group};
use nearwire_consensus::wire::{self, Flags, Header, Kind, Parsed};

/// How a device differs from the shipped step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Bend {
    /// Does not answer Read, which is optional.
    Reticent,
    /// Answers nothing, and does not say why.
    Mute,
    /// Refuses everything for one reason.
    Refusing(Drop),
    /// Its answers end within the header.
    Short,
    /// Answers with a kind that nobody knows, and flags that nobody knows.
    Noisy,
    /// Lets go of no record that it has stepped.
    Holding,
    /// Shows a memory in which the group is not.
    Elsewhere,
    /// Cannot be asked.
    Gone,
    /// Sees the low half of a request's field alone.
    Halved(Kind, Field),
    /// Compares ballots by their low halves, but in Prepare.
    LowHalves,
    /// Takes a slot's distance from the trim modulo 2^32.
    ShortDistance,
    /// Compares a slot with the trim plus the window modulo 2^32.
    WrappedEnd,
    /// Compares these bits of an incarnation alone.
    SomeOfTheLife(u64),
    /// Drops epoch 0 and serves the others.
    AnyEpoch,
    /// Grants leases that never end, though it grants none.
    LockedOut,
}

struct Bent {
    step: Software,
    bend: Bend,
    /// Who holds the lease that was not to be granted.
    holder: Option<u64>,
}

/// A device went away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Away;

impl Bent {
    fn new(bend: Bend) -> Self {
        Self::of(bend, Shape::SMALL)
    }

    fn of(bend: Bend, shape: Shape) -> Self {
        let step = Software::new(shape).expect("a region");
        Self {
            step,
            bend,
            holder: None,
        }
    }

    /// Whether memory may not be looked at: what these do shows over a network, too.
    const fn is_remote(&self) -> bool {
        matches!(
            self.bend,
            Bend::Halved(..)
                | Bend::LowHalves
                | Bend::ShortDistance
                | Bend::WrappedEnd
                | Bend::SomeOfTheLife(_)
                | Bend::AnyEpoch
                | Bend::LockedOut
        )
    }

    fn view(&self) -> GroupView {
        let (memory, _) = self.step.memory().expect("it is here");
        let group = GroupId(self.step.target().group);
        region::view(memory, group).expect("it is here")
    }

    /// The request as the device takes it.
    fn taken(&self, datagram: &[u8]) -> Vec<u8> {
        let target = self.step.target();
        let mut taken = datagram.to_vec();
        let Parsed::Ours(header, _) = wire::parse(datagram, target.value_bytes) else {
            return taken;
        };
        let Header { slot, ballot, .. } = header;
        let view = self.view();
        let trim = view.trim.0;
        let (field, number) = match self.bend {
            Bend::Halved(kind, field) if kind == header.kind => {
                (field, field.get(datagram) & LOW_HALF)
            }
            Bend::LowHalves if matches!(header.kind, Kind::Accept | Kind::Fetch | Kind::Decide) => {
                let high = view.promised.0 & !LOW_HALF;
                (Field::Ballot, high | (ballot.0 & LOW_HALF))
            }
            Bend::ShortDistance if header.kind == Kind::Accept && slot.0 >= trim => {
                (Field::Slot, trim + ((slot.0 - trim) & LOW_HALF))
            }
            Bend::WrappedEnd
                if header.kind == Kind::Accept && slot.0 >= (trim + target.window) & LOW_HALF =>
            {
                // Below the trim there is no room, as there is none beyond the end.
                (Field::Slot, trim - 1)
            }
            Bend::SomeOfTheLife(bits)
                if header.incarnation.0 != 0
                    && u64::from(header.incarnation.0 ^ target.incarnation) & bits == 0 =>
            {
                (Field::Incarnation, target.incarnation.into())
            }
            Bend::AnyEpoch if header.epoch.0 > 0 => (Field::Epoch, target.epoch.into()),
            _ => return taken,
        };
        field.put(&mut taken, number);
        taken
    }

    /// What a device with leases would say that never end.
    fn locked_out(&mut self, datagram: &[u8]) -> Option<Outcome> {
        let promised = self.view().promised;
        let sender = Field::Sender.get(datagram);
        match Kind::from_code(Field::Kind.get(datagram) as u8) {
            Some(Kind::Decide)
                if Field::Flags.get(datagram) & u64::from(Flags::LEASE.0) != 0
                    && Field::Ballot.get(datagram) >= promised.0 =>
            {
                self.holder = Some(sender);
                None
            }
            Some(Kind::Prepare) if self.holder.is_some_and(|holder| holder != sender) => {
                let mut answer = datagram.to_vec();
                Field::Kind.put(&mut answer, Kind::Nack as u64);
                Field::Sender.put(&mut answer, self.step.target().node.into());
                Field::VoteBallot.put(&mut answer, promised.0);
                Field::Watermark.put(&mut answer, 1);
                Field::Flags.put(&mut answer, Flags::LEASE.0.into());
                Some(Outcome::Answered(answer))
            }
            _ => None,
        }
    }
}

impl Device for Bent {
    type Error = Away;
    type Memory = <Software as Device>::Memory;

    fn target(&self) -> Target {
        let target = self.step.target();
        match self.bend {
            Bend::Reticent => Target {
                answers_read: false,
                ..target
            },
            Bend::Elsewhere => Target {
                group: u16::MAX,
                ..target
            },
            _ => Target {
                shows_memory: !self.is_remote(),
                ..target
            },
        }
    }

    fn nonce(&mut self) -> u32 {
        self.step.nonce()
    }

    fn exchange(&mut self, datagram: &[u8], wants_answer: bool) -> Result<Outcome, Away> {
        if self.bend == Bend::LockedOut
            && let Some(outcome) = self.locked_out(datagram)
        {
            return Ok(outcome);
        }
        let taken = self.taken(datagram);
        let Ok(outcome) = self.step.exchange(&taken, wants_answer);
        Ok(match (self.bend, outcome) {
            (_, Outcome::Answered(mut answer)) if taken != datagram => {
                // An answer echoes what was asked, whatever the device has made of it.
                for field in [Field::Slot, Field::Ballot, Field::Epoch] {
                    if field.get(&answer) == field.get(&taken) {
                        field.put(&mut answer, field.get(datagram));
                    }
                }
                Outcome::Answered(answer)
            }
            (_, Outcome::Silence(_)) if self.is_remote() => Outcome::Silence(None),
            (Bend::Gone, _) => return Err(Away),
            (Bend::Mute, _) => Outcome::Silence(None),
            (Bend::Refusing(why), _) => Outcome::Silence(Some(Reason::Dropped(why))),
            (Bend::Short, Outcome::Answered(answer)) => Outcome::Answered(answer[..20].to_vec()),
            (Bend::Noisy, Outcome::Answered(mut answer)) => {
                Field::Kind.put(&mut answer, 0xee);
                Field::Flags.put(&mut answer, 0x8001);
                Field::Magic.put(&mut answer, 0x1234);
                Field::Incarnation.put(&mut answer, 0xabc);
                Outcome::Answered(answer)
            }
            (Bend::Holding, outcome) => {
                let (memory, _) = self.step.memory().expect("it is here");
                let group = memory.group(GroupId(self.step.target().group));
                let group = group.expect("it is here");
                memory.exchange(group, group::LOCK, 1);
                outcome
            }
            (_, outcome) => outcome,
        })
    }

    fn overlap(&mut self, first: &[u8], second: &[u8]) -> Result<(), Away> {
        let Ok(()) = self.step.overlap(first, second);
        Ok(())
    }

    fn wait(&mut self, ns: u64) -> Result<(), Away> {
        let Ok(()) = self.step.wait(ns);
        Ok(())
    }

    fn lateness_ns(&self) -> u64 {
        self.step.lateness_ns()
    }

    fn memory(&self) -> Option<(&Self::Memory, u64)> {
        if self.is_remote() {
            return None;
        }
        self.step.memory()
    }
}

fn one(text: &str) -> Case {
    let mut cases = parse("bent.txt", &format!("case bent\n{text}")).expect("a case");
    cases.remove(0)
}

/// What a device of this kind makes of a case.
fn played(bend: Bend, text: &str) -> Verdict {
    play(&one(text), &mut Bent::new(bend)).expect("it is here")
}

fn failures(bend: Bend, text: &str) -> Vec<Failure> {
    match played(bend, text) {
        Verdict::Failed(failures) => failures,
        other => panic!("{bend:?}: {other:?}"),
    }
}

/// Field, what should be there and what was.
fn told(failures: &[Failure]) -> Vec<(&str, &str, &str)> {
    let told = failures.iter().map(|failure| {
        let got = (failure.expected.as_str(), failure.got.as_str());
        (failure.field.as_str(), got.0, got.1)
    });
    told.collect()
}

/// Of 64 bits.
const LOW_HALF: u64 = 0xffff_ffff;
const PREPARE: &str = "send Prepare ballot=1.1\nanswer Promise slot=0 watermark=1";

/// The cases that find a device of this shape wrong.
fn found_by(bend: Bend, shape: Shape) -> Vec<String> {
    let cases = corpus().unwrap_or_else(|error| panic!("{error}"));
    let failing = cases.into_iter().filter(|case| {
        let verdict = play(case, &mut Bent::of(bend, shape)).expect("it is here");
        matches!(verdict, Verdict::Failed(_))
    });
    failing.map(|case| case.name).collect()
}

#[test]
fn a_device_that_sees_half_of_a_field_is_found() {
    for (kind, field) in [
        (Kind::Prepare, Field::Ballot),
        (Kind::Accept, Field::Ballot),
        (Kind::Fetch, Field::Ballot),
        (Kind::Decide, Field::Ballot),
        (Kind::Prepare, Field::Slot),
        (Kind::Accept, Field::Slot),
        (Kind::Fetch, Field::Slot),
        (Kind::Decide, Field::Slot),
        (Kind::Decide, Field::VoteBallot),
        (Kind::Decide, Field::Watermark),
    ] {
        for shape in [Shape::SMALL, Shape::NARROW] {
            let found = found_by(Bend::Halved(kind, field), shape);
            assert!(!found.is_empty(), "{kind:?} {}", field.name());
        }
    }
}

#[test]
fn a_device_that_compares_half_of_a_number_is_found() {
    let (wide, narrow) = (Shape::SMALL, Shape::NARROW);
    for (bend, shape, name) in [
        (
            Bend::LowHalves,
            wide,
            "an-accept-compares-ballots-in-all-their-bits",
        ),
        (
            Bend::LowHalves,
            wide,
            "a-fetch-compares-ballots-in-all-their-bits",
        ),
        (
            Bend::LowHalves,
            wide,
            "a-decide-compares-ballots-in-all-their-bits",
        ),
        (
            Bend::ShortDistance,
            wide,
            "a-slot-is-beyond-the-window-by-all-its-bits",
        ),
        (Bend::WrappedEnd, narrow, "slots-near-the-top-of-the-log"),
    ] {
        let found = found_by(bend, shape);
        assert!(found.iter().any(|case| case == name), "{bend:?}: {found:?}");
    }
}

#[test]
fn a_device_that_leaves_out_bits_of_an_incarnation_is_found() {
    let bits = (0..32).map(|bit| 1 << bit);
    let all_but_one = bits.clone().map(|bit: u64| LOW_HALF ^ bit);
    for bits in bits.chain(all_but_one).chain([0xffff, 0xffff_0000]) {
        let found = found_by(Bend::SomeOfTheLife(bits), Shape::SMALL);
        assert!(!found.is_empty(), "{bits:#x}");
    }
}

#[test]
fn a_device_that_drops_no_epoch_but_0_is_found_where_its_own_is_higher() {
    let shape = Shape {
        epoch: 2,
        ..Shape::SMALL
    };
    let found = found_by(Bend::AnyEpoch, shape);
    assert!(!found.is_empty());
    assert!(found_by(Bend::AnyEpoch, Shape::SMALL).is_empty());
}

#[test]
fn a_device_without_leases_that_honours_them_is_found() {
    let shape = Shape {
        lease_ns: 0,
        ..Shape::SMALL
    };
    let found = found_by(Bend::LockedOut, shape);
    assert_eq!(found, ["without-leases-nobody-is-locked-out"]);
}

#[test]
fn a_device_that_does_not_answer_read_is_looked_at_by_fetch() {
    let mut passed = 0;
    for case in corpus().unwrap_or_else(|error| panic!("{error}")) {
        let verdict = play(&case, &mut Bent::new(Bend::Reticent)).expect("it is here");
        assert!(!matches!(verdict, Verdict::Failed(_)), "{verdict:#?}");
        passed += usize::from(verdict == Verdict::Passed);
    }
    assert!(passed > 200, "{passed}");
}

#[test]
fn silence_is_no_answer_and_an_answer_no_silence() {
    let promise = "Promise slot=0 ballot=1.1 vote_ballot=0 watermark=1";
    let mute = failures(Bend::Mute, PREPARE);
    assert_eq!(told(&mute), [("answer", promise, "nothing")]);
    let refusing = failures(Bend::Refusing(Drop::Busy), PREPARE);
    assert_eq!(told(&refusing), [("answer", promise, "dropped busy")]);
    assert_eq!(mute[0].line, 2);
}

#[test]
fn a_reason_that_can_be_seen_has_to_be_the_right_one() {
    let text = "send Prepare ballot=1.1 epoch=E-1\ndropped epoch";
    let busy = failures(Bend::Refusing(Drop::Busy), text);
    assert_eq!(told(&busy), [("reason", "dropped epoch", "dropped busy")]);
    assert_eq!(played(Bend::Refusing(Drop::Epoch), text), Verdict::Passed);
    assert_eq!(played(Bend::Mute, text), Verdict::Passed);
}

#[test]
fn an_answer_that_is_cut_off_is_told_by_its_length() {
    let short = failures(Bend::Short, PREPARE);
    assert_eq!(told(&short), [("answer", "64 bytes", "20 bytes")]);
}

#[test]
fn fields_are_told_as_people_read_them() {
    let noisy = failures(Bend::Noisy, PREPARE);
    let incarnation = format!("{:#010x}", Bent::new(Bend::Noisy).target().incarnation);
    assert_eq!(
        told(&noisy),
        [
            ("magic", "0x4e57", "0x1234"),
            ("kind", "Promise", "238, which is no kind"),
            ("incarnation", incarnation.as_str(), "0x00000abc"),
            ("flags", "0", "0x8001"),
        ]
    );
}

#[test]
fn a_record_that_is_not_let_go_of_is_told() {
    let holding = failures(Bend::Holding, PREPARE);
    assert_eq!(told(&holding), [("LOCK", "released", "held")]);
}

#[test]
fn a_memory_without_the_group_is_told() {
    let text = "decided ballot=0 from=0 upto=0";
    let elsewhere = failures(Bend::Elsewhere, text);
    assert_eq!(told(&elsewhere), [("group", "65535", "none")]);
}

#[test]
fn a_device_that_goes_away_ends_the_case() {
    let result = play(&one(PREPARE), &mut Bent::new(Bend::Gone));
    assert_eq!(result, Err(Away));
}

#[test]
fn a_trace_in_another_group_is_a_failure() {
    let text = "send Prepare ballot=1.1 group=G+1\nanswer Promise slot=0 watermark=1";
    let verdict = Software::play(&one(text), Shape::SMALL).expect("a region");
    let Verdict::Failed(failures) = verdict else {
        panic!("{verdict:?}");
    };
    assert_eq!(told(&failures), [("group 2", "blank", "touched")]);
}

#[test]
fn what_a_device_has_no_room_for_is_skipped_there() {
    for text in [
        "send Prepare ballot=1.1 epoch=E-2\ndropped epoch",
        "wait W-9",
        "overlap Prepare ballot=1.1 epoch=E-2 with Prepare ballot=1.1",
        // Words of entries are in no group, and those of groups in no entry.
        "set SLOT=1",
        "set slot=1 TRIM=1",
    ] {
        let verdict = played(Bend::Reticent, text);
        assert!(
            matches!(&verdict, Verdict::Skipped(why) if why.contains("no room for")),
            "{text}: {verdict:?}"
        );
    }
}
