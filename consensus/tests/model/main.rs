//! Model checking (stateright) of the shipped step and the shipped leader: small worlds,
//! exhaustively. `docs/model-checking.md` has the worlds, the argument and the numbers.
//!
//! The larger worlds: `cargo test --release -p nearwire-consensus --features simulation --test
//! model -- --ignored --nocapture`
#![cfg(all(feature = "simulation", not(loom)))]

mod cluster;
mod memory;
mod packet;

use cluster::{Action, State, World, electorate};
use nearwire_consensus::simulation::Mutation;
use stateright::{Checker, HasDiscoveries, Model, Path};
use std::collections::{BTreeSet, HashSet};
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
        fills: [1, 1],
        window: 2,
        loses_memory: false,
        trims: None,
        promises_once: false,
        one_by_one: false,
        both_bodies: false,
        electorate: electorate(),
        mutation: None,
    }
}

fn three_ballots() -> World {
    World {
        rounds: [&[1, 3], &[2]],
        ..smallest()
    }
}

fn two_slots() -> World {
    World {
        fills: [2, 2],
        ..smallest()
    }
}

/// The third slot takes the ring entry of the first, once that is trimmed.
fn ring() -> World {
    World {
        fills: [3, 3],
        trims: Some(1),
        promises_once: true,
        ..smallest()
    }
}

fn tell(path: Path<State, Action>) -> usize {
    let path = path.into_vec();
    for (number, (state, action)) in (1..).zip(&path) {
        if let Some(action) = action {
            println!("{number:>4}. {}", state.tell(action));
        }
    }
    path.len() - 1
}

/// Explores a world to its end: every claim holds, and everything that should happen does.
fn holds(name: &str, world: World) {
    let start = Instant::now();
    let checker = world.checker().threads(THREADS);
    let checker = checker.finish_when(HasDiscoveries::AnyFailures);
    let checker = checker.spawn_bfs().join();
    println!(
        "{name}: {} states, {} transitions, depth {}, {:.1} s",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        start.elapsed().as_secs_f64()
    );
    for property in checker.model().properties() {
        let found = checker.discovery(property.name);
        if property.expectation.discovery_is_failure() {
            if let Some(path) = found {
                let steps = tell(path);
                panic!("{name}: \"{}\" falls after {steps} steps", property.name);
            }
        } else {
            assert!(
                found.is_some(),
                "{name}: \"{}\" never happens",
                property.name
            );
        }
    }
}

/// Finds the shortest way in which a defect breaks a claim, and tells it.
fn catches(mutation: Mutation, claim: &'static str, world: World) {
    let world = World {
        mutation: Some(mutation),
        ..world
    };
    let mut shortest: Option<Path<State, Action>> = None;
    loop {
        let mut checker = world.clone().checker().threads(THREADS);
        if let Some(path) = &shortest {
            // A state is as deep as its path has states: look only for shorter ones.
            checker = checker.target_max_depth(path.clone().into_vec().len());
        }
        let checker = checker.finish_when(HasDiscoveries::AnyOf(BTreeSet::from([claim])));
        let found = checker.spawn_bfs().join().discovery(claim);
        if found.is_none() {
            break;
        }
        shortest = found;
    }
    println!("{}: \"{claim}\" falls so:", mutation.name());
    let steps = tell(shortest.expect("no counterexample"));
    assert!(steps <= MAX_STEPS, "{steps} steps");
}

#[test]
fn two_ballots_agree_whatever_is_lost() {
    let world = World {
        both_bodies: true,
        one_by_one: true,
        loses_memory: true,
        ..smallest()
    };
    holds("two ballots, one slot, one memory lost, one by one", world);
}

#[test]
fn three_ballots_agree_whatever_is_lost() {
    let world = World {
        loses_memory: true,
        ..three_ballots()
    };
    holds("three ballots, one slot, one memory lost", world);
}

#[test]
fn two_slots_agree() {
    holds("two ballots, two slots", two_slots());
}

#[test]
fn a_trimmed_slot_is_learned() {
    let world = World {
        fills: [2, 2],
        ..ring()
    };
    holds("two ballots, two slots, the first trimmed", world);
}

#[test]
#[ignore = "a larger world"]
fn two_slots_agree_whatever_is_lost() {
    let world = World {
        loses_memory: true,
        ..two_slots()
    };
    holds("two ballots, two slots, one memory lost", world);
}

#[test]
#[ignore = "a larger world"]
fn a_ring_entry_is_used_again() {
    holds("two ballots, three slots in a ring of two", ring());
}

/// What can be seen of a state: the memories and votes, what was asked, what was applied.
fn visible(state: &State) -> impl Eq + std::hash::Hash + use<> {
    let mut nodes = state
        .nodes
        .each_ref()
        .map(|node| (node.memory, node.reborn, node.votes.clone()));
    nodes.sort();
    let proposers = state
        .proposers
        .each_ref()
        .map(|proposer| (proposer.used, proposer.applied.clone()));
    (nodes, proposers, state.requests.clone())
}

/// Leaders that hear as late as makes a difference bring about whatever others do.
#[test]
fn hearing_late_hides_nothing() {
    for world in [
        smallest(),
        World {
            loses_memory: true,
            ..smallest()
        },
    ] {
        let seen = [false, true].map(|one_by_one| {
            let world = World {
                one_by_one,
                ..world.clone()
            };
            let mut states: HashSet<State> = world.init_states().into_iter().collect();
            let mut frontier: Vec<State> = states.iter().cloned().collect();
            while let Some(state) = frontier.pop() {
                for next in world.next_states(&state) {
                    if states.insert(next.clone()) {
                        frontier.push(next);
                    }
                }
            }
            let visible: HashSet<_> = states.iter().map(visible).collect();
            println!(
                "one by one: {one_by_one}: {} states, {} to be told apart",
                states.len(),
                visible.len()
            );
            visible
        });
        assert!(seen[0] == seen[1]);
    }
}

#[test]
fn an_unchecked_promise_is_found() {
    catches(Mutation::PromiseNotChecked, "agreement", smallest());
}

#[test]
fn an_unraised_highest_is_found() {
    catches(Mutation::HighestNotRaised, "agreement", smallest());
}

#[test]
fn a_phase_one_without_a_quorum_is_found() {
    catches(Mutation::PhaseOneShort, "agreement", smallest());
}

#[test]
fn a_lowest_vote_adopted_is_found() {
    catches(Mutation::LowestVoteAdopted, "agreement", three_ballots());
}

#[test]
fn a_foreign_life_counted_is_found() {
    let world = World {
        loses_memory: true,
        ..smallest()
    };
    catches(
        Mutation::ForeignLifeCounted,
        "what is applied was chosen",
        world,
    );
}
