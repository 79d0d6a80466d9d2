//! Regions whose words were damaged, and steps over them.

use crate::harness::finds;
use crate::node::header;
use crate::{Script, fuzz};
use consensus::acceptor::{Acceptor, Step};
use consensus::memory::Buffers;
use consensus::region::{Birth, Layout, Region, view, vote};
use consensus::simulation::Mutation;
use consensus::sync::AtomicU64;
use consensus::{Epoch, GroupId, NodeId, Slot};
use std::sync::atomic::Ordering;

pub(crate) const VALUE_BYTES: usize = 64;

pub(crate) fn layout() -> Layout {
    Layout::new(1, 16, VALUE_BYTES).expect("valid")
}

pub(crate) fn birth(node: u16) -> Birth {
    Birth {
        cluster: 1,
        node: NodeId(node),
        nonce: node.into(),
        boot: 0,
    }
}

pub(crate) fn acceptor(node: u16) -> Acceptor {
    Acceptor {
        node: NodeId(node),
        incarnation: birth(node).incarnation(),
        layout: layout(),
    }
}

pub(crate) fn blank() -> Vec<AtomicU64> {
    (0..layout().words()).map(|_| AtomicU64::new(0)).collect()
}

fn load(words: &[AtomicU64]) -> Vec<u64> {
    words
        .iter()
        .map(|word| word.load(Ordering::Relaxed))
        .collect()
}

/// Steps a region with arbitrary requests.
fn run(region: &Region<&[AtomicU64]>, script: &mut Script<'_>) {
    let acceptor = acceptor(1);
    for now_ns in 0..32 {
        if script.is_over() {
            break;
        }
        let value = script.take(24);
        let mut request = header(script);
        request.length = value.len() as u16;
        let mut reply = [0; VALUE_BYTES];
        let mut buffers = Buffers {
            request: value,
            reply: &mut reply,
        };
        if let Step::Reply(header, _) = acceptor.step(region, now_ns, &request, &mut buffers) {
            assert!(usize::from(header.length) <= VALUE_BYTES);
        }
    }
    let _ = view(region, GroupId(0));
    let _ = vote(
        region,
        GroupId(0),
        Slot(1),
        VALUE_BYTES,
        &mut [0; VALUE_BYTES],
    );
}

/// What is refused is left alone, and what is opened can be stepped.
fn damaged(input: &[u8]) {
    let mut script = Script(input);
    let words = blank();
    let region = Region::create(words.as_slice(), layout(), birth(1), Epoch(1), 0);
    let mut steps = Script(script.take(usize::from(script.0.first().copied().unwrap_or(0))));
    run(&region.expect("blank words"), &mut steps);
    let mut rest = Script(script.take(80));
    for _ in script.pieces() {
        let at = match script.byte() % 4 {
            0 => script.below(16),
            1 => script.below(64),
            _ => script.below(words.len()),
        };
        words[at].store(script.odd_number(), Ordering::Relaxed);
    }
    let before = load(&words);
    match Region::open(words.as_slice(), layout(), birth(1)) {
        Ok((region, _)) => run(&region, &mut rest),
        Err(error) => {
            assert!(!error.to_string().is_empty());
            assert_eq!(
                load(&words),
                before,
                "a region that is refused is left alone"
            );
        }
    }
    // Another layout, node or life is another region.
    let larger = Layout::new(1, 32, VALUE_BYTES).expect("valid");
    assert!(Region::open(words.as_slice(), larger, birth(1)).is_err());
    let later = Birth {
        nonce: 9,
        ..birth(1)
    };
    for birth in [birth(2), later] {
        assert!(Region::open(words.as_slice(), layout(), birth).is_err());
    }
}

#[test]
fn a_damaged_region_is_refused_or_stepped() {
    fuzz("region", damaged);
}

fn arbitrary(input: &[u8]) {
    let words = blank();
    for (word, bytes) in words.iter().zip(input.chunks(8)) {
        let mut padded = [0; 8];
        padded[..bytes.len()].copy_from_slice(bytes);
        word.store(u64::from_be_bytes(padded), Ordering::Relaxed);
    }
    let before = load(&words);
    assert!(Region::open(words.as_slice(), layout(), birth(1)).is_err());
    assert_eq!(load(&words), before);
}

#[test]
fn words_that_are_no_region_are_refused() {
    fuzz("words", arbitrary);
}

#[test]
fn a_region_of_another_life_that_is_opened_is_caught() {
    assert!(finds(Mutation::OtherLifeOpened, "region", damaged));
}
