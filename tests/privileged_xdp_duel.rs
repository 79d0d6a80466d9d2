//! Leaders in the kernel, one on each processor, duel for the same few slots, and break nothing.

mod xdp_twin;

use std::time::Instant;
use xdp_twin::duellists::{SHAPE, are_alone, fight};
use xdp_twin::objects::read;
use xdp_twin::{IPS, Twin, setting};

/// Votes to be cast.
const VARIABLE: &str = "NEARWIRE_VOTES";
const VOTES: u64 = 10_000_000;

#[test]
fn duelling_leaders_on_every_processor_break_nothing() {
    let test = "duelling_leaders_on_every_processor_break_nothing";
    let Some(object) = read(test, "duel.o") else {
        return;
    };
    // It says why if the kernel takes no programs from this process.
    if Twin::of(&object, test, SHAPE, IPS[0]).is_none() || are_alone(test) {
        return;
    }
    let votes = setting(VARIABLE, VOTES);
    let began = Instant::now();
    let ended = fight(&object, votes, u64::MAX);
    eprintln!("{ended:?} in {:?}", began.elapsed());
    assert!(ended.flaws.is_empty(), "{:#?}", ended.flaws);
    assert!(ended.votes >= votes && ended.looks > 0);
}
