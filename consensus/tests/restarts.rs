//! A restart over the memory that each case of the corpus leaves: the acceptor's own is taken as it
//! is, another's is refused by name, and so are records that contradict themselves.
#![cfg(not(loom))]

use nearwire_consensus::conformance::{Case, Device, Need, Shape, Software, Verdict, corpus, play};
use nearwire_consensus::memory::Memory;
use nearwire_consensus::region::{
    Birth, Layout, OpenError, Region, Restored, entry, group, header,
};
use nearwire_consensus::sync::AtomicU64;
use nearwire_consensus::{Epoch, GroupId, NodeId};

/// A region as it lies in memory, and what its owner opens it with.
#[derive(Clone)]
struct Left {
    words: Vec<u64>,
    layout: Layout,
    birth: Birth,
}

impl Left {
    /// By a case, if the shape lets it be played. What cases write into memory themselves need make
    /// no sense.
    fn by(case: &Case, shape: Shape) -> Option<Self> {
        if case.needs.contains(&Need::Memory) {
            return None;
        }
        let mut device = Software::new(shape).expect("a region");
        let Ok(verdict) = play(case, &mut device);
        let (region, _) = device.memory().expect("it is here");
        let (layout, birth) = (*region.layout(), *region.birth());
        let words = (0..layout.words()).map(|at| region.load(at, 0)).collect();
        (verdict == Verdict::Passed).then_some(Self {
            words,
            layout,
            birth,
        })
    }

    fn all() -> Vec<Self> {
        let cases = corpus().unwrap_or_else(|error| panic!("{error}"));
        let shapes = Shape::ALL[..2].iter();
        let left = shapes.flat_map(|shape| cases.iter().filter_map(|case| Self::by(case, *shape)));
        let left: Vec<_> = left.collect();
        assert!(left.len() > cases.len(), "{}", left.len());
        left
    }

    fn memory(&self) -> Vec<AtomicU64> {
        self.words.iter().copied().map(AtomicU64::new).collect()
    }

    fn open(&self) -> Result<Restored, OpenError> {
        let opened = Region::open(self.memory(), self.layout, self.birth);
        opened.map(|(region, restored)| {
            for (at, word) in self.words.iter().enumerate() {
                assert_eq!(region.load(at, 0), *word, "word {at}");
            }
            restored
        })
    }

    /// What opening says after `change`.
    fn changed(&self, change: impl FnOnce(&mut Self)) -> OpenError {
        let mut changed = self.clone();
        change(&mut changed);
        changed.open().expect_err("it is not what it was")
    }

    /// Where the record of the middle group stands, and its first ring entry; cases are played
    /// there.
    fn places(&self) -> (usize, usize) {
        let group = self.layout.group_at(GroupId(1)).expect("three groups");
        let first = self.layout.entry_at(self.words[group + group::BASE]);
        (group, first.expect("a ring"))
    }
}

#[test]
fn whatever_a_case_leaves_is_opened_as_it_is() {
    for left in Left::all() {
        assert_eq!(left.open(), Ok(Restored::default()));
    }
}

#[test]
fn whoever_else_opens_it_is_refused_by_name() {
    for left in Left::all() {
        let found = left.birth;
        assert_eq!(
            left.changed(|other| other.birth.cluster += 1),
            OpenError::OtherCluster
        );
        let wanted = NodeId(found.node.0 + 1);
        assert_eq!(
            left.changed(|other| other.birth.node = wanted),
            OpenError::OtherNode {
                found: found.node,
                wanted
            }
        );
        let later = left.changed(|other| other.birth.boot += 1);
        assert!(
            matches!(later, OpenError::OtherIncarnation { found: before, .. } if before == found.incarnation())
        );
        let (window, value_bytes) = (left.layout.window(), left.layout.value_bytes());
        let wider = Layout::new(left.layout.groups(), 2 * window, value_bytes);
        assert_eq!(
            left.changed(|other| other.layout = wider.expect("a layout")),
            OpenError::OtherLayout {
                groups: left.layout.groups().into(),
                window,
                value_bytes: value_bytes as u64
            }
        );
        let wanted = left.layout.bytes();
        assert_eq!(
            left.changed(|other| other.words.truncate(left.words.len() - 1)),
            OpenError::Size {
                found: wanted - 8,
                wanted
            }
        );
    }
}

#[test]
fn a_header_that_is_none_is_told_from_one_that_is_damaged() {
    for left in Left::all() {
        let with = |at: usize, word: u64| left.changed(|other| other.words[at] = word);
        assert_eq!(with(header::MAGIC, 0), OpenError::Blank);
        assert_eq!(with(header::MAGIC, 7), OpenError::Foreign(7));
        assert_eq!(with(header::VERSION, 99), OpenError::Version(99));
        let damaged = OpenError::Damaged {
            what: "header",
            at: 0,
        };
        assert_eq!(with(header::CLUSTER, 99), damaged);
    }
}

#[test]
fn a_record_that_no_step_leaves_is_damage() {
    for left in Left::all() {
        let (record, entry) = left.places();
        let published = |at: usize| (left.words[at] >> 1 & 1) as usize;
        let body = record + group::BODIES + published(record + group::LOCK) * group::BODY_WORDS;
        let vote_words = entry::VALUE + left.layout.value_bytes() / 8;
        let vote = entry + entry::BODIES + published(entry + entry::LOCK) * vote_words;
        let highest = left.words[record + group::HIGHEST];
        let beyond = left.words[record + group::TRIM] + left.layout.window();
        let above = left.words[record + group::PROMISED] + 1;
        for (what, start, at, word) in [
            ("group", record, record + group::WINDOW, 1),
            ("group", record, record + group::TRIM, 0),
            ("group", record, record + group::HIGHEST, beyond),
            ("group", record, record + group::STATE, 7),
            ("group", record, record + group::LEASE_NS, 1),
            ("decided record", body, body + group::BALLOT, above),
            ("decided record", body, body + group::LEASE_BALLOT, above),
            ("ring entry", entry, vote + entry::BALLOT, above),
            ("ring entry", entry, vote + entry::SLOT, highest + 1),
            ("ring entry", entry, vote + entry::LENGTH, 1 << 20),
        ] {
            let at_byte = start * 8;
            assert_eq!(
                left.changed(|other| other.words[at] = word),
                OpenError::Damaged { what, at: at_byte },
                "word {at}"
            );
        }
    }
}

#[test]
fn no_region_is_made_over_what_a_case_has_touched() {
    for left in Left::all() {
        let make = |words: &[u64]| {
            let words: Vec<_> = words.iter().copied().map(AtomicU64::new).collect();
            Region::create(words, left.layout, left.birth, Epoch(1), 0).map(drop)
        };
        assert!(matches!(
            make(&left.words),
            Err(OpenError::Damaged {
                what: "blank header",
                ..
            })
        ));
        // The header is lost, the records are there.
        let mut lost = left.words.clone();
        lost[header::MAGIC] = 0;
        let (record, entry) = left.places();
        let was_stepped = [group::LOCK, group::PROMISED, group::HIGHEST];
        let was_stepped = was_stepped.iter().any(|word| lost[record + word] != 0);
        assert_eq!(make(&lost).is_err(), was_stepped, "{record}");
        lost[entry + entry::LOCK] = 2;
        assert!(make(&lost).is_err());
        assert_eq!(make(&vec![0; lost.len()]), Ok(()));
        assert!(matches!(make(&lost[1..]), Err(OpenError::Size { .. })));
    }
}
