//! Model checking (stateright) of the shipped step and the shipped leader: small worlds,
//! exhaustively. `docs/model-checking.md` has the worlds, the argument and the numbers.
#![cfg(all(feature = "simulation", not(loom)))]

mod cluster;
mod memory;
mod packet;

use cluster::{World, membership};
use nearwire_consensus::simulation::Mutation;
use stateright::{Checker, HasDiscoveries, Model};
use std::time::Instant;

/// Longest value in bytes that a region is made for.
const VALUE_BYTES: usize = 64;
/// A counterexample that a reader can follow.
const MAX_STEPS: usize = 40;
const THREADS: usize = 2;

/// Two proposers with one ballot each, one slot.
fn smallest() -> World {
    World {
        rounds: [&[1], &[2]],
        slots: 1,
        window: 2,
        loses_memory: false,
        trims: false,
        dawdles: false,
        both_bodies: false,
        membership: membership(),
        mutation: None,
    }
}

/// Explores a world to its end: every claim holds, and everything that should happen does.
fn holds(name: &str, world: World) {
    let start = Instant::now();
    let checker = world.checker().threads(THREADS).spawn_bfs().join();
    println!(
        "{name}: {} states, {} transitions, depth {}, {:.1} s",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        start.elapsed().as_secs_f64()
    );
    checker.assert_properties();
}

/// Finds the shortest way in which a defect breaks a claim, and tells it.
fn catches(mutation: Mutation, claim: &'static str, world: World) {
    let world = World {
        mutation: Some(mutation),
        ..world
    };
    // One thread visits states in the order of their depth.
    let checker = world.checker().threads(1);
    let checker = checker.finish_when(HasDiscoveries::AnyFailures);
    let checker = checker.spawn_bfs().join();
    let path = checker.assert_any_discovery(claim).into_vec();
    let steps = path.len() - 1;
    println!(
        "{}: \"{claim}\" falls after {steps} steps, among {} states",
        mutation.name(),
        checker.unique_state_count()
    );
    for (number, (state, action)) in (1..).zip(&path) {
        if let Some(action) = action {
            println!("{number:>4}. {}", state.tell(action));
        }
    }
    assert!(steps <= MAX_STEPS, "{steps} steps");
}

#[test]
fn two_ballots_in_one_slot() {
    let world = World {
        both_bodies: true,
        dawdles: true,
        loses_memory: true,
        ..smallest()
    };
    holds("two ballots, one slot, one memory lost", world);
}

#[test]
fn three_ballots_in_one_slot() {
    let world = World {
        rounds: [&[1, 3], &[2]],
        ..smallest()
    };
    holds("three ballots, one slot", world);
}

#[test]
fn an_unchecked_promise_is_found() {
    catches(Mutation::PromiseNotChecked, "agreement", smallest());
}
