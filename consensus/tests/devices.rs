//! What the corpus says of devices that are not the shipped step: one of the hardware profile, and
//! ones that go wrong in every way that the shipped step, even with a defect, does not.
#![cfg(not(loom))]

use nearwire_consensus::GroupId;
use nearwire_consensus::acceptor::Drop;
use nearwire_consensus::conformance::{
    Case, Device, Failure, Field, Need, Outcome, Reason, Shape, Software, Target, Verdict, corpus,
    parse, play,
};
use nearwire_consensus::memory::Memory;
use nearwire_consensus::region::group;
use nearwire_consensus::wire::{self, Parsed};

/// How a device differs from the shipped step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Bend {
    /// Rounds of 16 bits and slots of 32, as the hardware profile has it.
    Narrow,
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
}

struct Bent {
    step: Software,
    bend: Bend,
}

/// A device went away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Away;

impl Bent {
    fn new(bend: Bend) -> Self {
        let step = Software::new(Shape::ALL[0]).expect("a region");
        Self { step, bend }
    }

    /// What is malformed is so at any width.
    fn is_too_wide(&self, datagram: &[u8]) -> bool {
        let Parsed::Ours(header, _) = wire::parse(datagram, self.step.target().value_bytes) else {
            return false;
        };
        let slot = header.slot.0.max(header.watermark);
        header.ballot.round() > u16::MAX.into() || slot > u32::MAX.into()
    }
}

impl Device for Bent {
    type Error = Away;
    type Memory = <Software as Device>::Memory;

    fn target(&self) -> Target {
        let target = self.step.target();
        match self.bend {
            Bend::Narrow => Target {
                is_narrow: true,
                ..target
            },
            Bend::Reticent => Target {
                answers_read: false,
                ..target
            },
            Bend::Elsewhere => Target {
                group: u16::MAX,
                ..target
            },
            _ => target,
        }
    }

    fn nonce(&mut self) -> u32 {
        self.step.nonce()
    }

    fn exchange(&mut self, datagram: &[u8], wants_answer: bool) -> Result<Outcome, Away> {
        if self.bend == Bend::Narrow && self.is_too_wide(datagram) {
            let why = Reason::Dropped(Drop::Inconsistent);
            return Ok(Outcome::Silence(Some(why)));
        }
        let Ok(outcome) = self.step.exchange(datagram, wants_answer);
        Ok(match (self.bend, outcome) {
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

const PREPARE: &str = "send Prepare ballot=1.1\nanswer Promise slot=0 watermark=1";

#[test]
fn a_device_of_the_hardware_profile_passes_what_is_meant_for_it() {
    let mut for_narrow_alone = 0;
    for case in corpus().unwrap_or_else(|error| panic!("{error}")) {
        let mut device = Bent::new(Bend::Narrow);
        let verdict = play(&case, &mut device).expect("it is here");
        let is_wide = case.needs.contains(&Need::Wide);
        for_narrow_alone += usize::from(case.needs.contains(&Need::Narrow));
        match verdict {
            Verdict::Passed => assert!(!is_wide, "{}", case.name),
            Verdict::Skipped(_) => {}
            Verdict::Failed(failures) => panic!("{failures:#?}"),
        }
    }
    assert!(for_narrow_alone > 0);
    let widest = "send Accept ballot=MAX_ROUND.1 slot=1 value=\"v\"\nanswer Accepted";
    assert_eq!(played(Bend::Narrow, widest), Verdict::Passed);
    let wider = "send Prepare ballot=1.1 slot=MAX_SLOT+1\ndropped inconsistent";
    assert_eq!(played(Bend::Narrow, wider), Verdict::Passed);
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
    let verdict = Software::play(&one(text), Shape::ALL[0]).expect("a region");
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
        let verdict = played(Bend::Narrow, text);
        assert!(
            matches!(&verdict, Verdict::Skipped(why) if why.contains("no room for")),
            "{text}: {verdict:?}"
        );
    }
}
