use super::*;
use crate::kv::parse_integer;
use proptest::prelude::*;
use std::time::{Duration, Instant};

fn write(value: &str) -> Action {
    let value = value.as_bytes().to_vec();
    Action::Write { value }
}

fn read(value: &str) -> Action {
    let value = Some(value.as_bytes().to_vec());
    Action::Read { value }
}

fn nothing() -> Action {
    Action::Read { value: None }
}

fn increment(result: i64) -> Action {
    let result = Some(result);
    Action::Increment { result }
}

fn operation(invoked_ns: u64, returned_ns: impl Into<Option<u64>>, action: Action) -> Operation {
    Operation {
        client: invoked_ns,
        key: b"k".to_vec(),
        invoked_ns,
        returned_ns: returned_ns.into(),
        action,
    }
}

/// Operations one after the other, at times 10, 20, ...
fn sequence(actions: impl IntoIterator<Item = Action>) -> Vec<Operation> {
    let at = (1..).map(|n| n * 10);
    at.zip(actions)
        .map(|(at, action)| operation(at, at + 5, action))
        .collect()
}

#[track_caller]
fn window(operations: &[Operation]) -> Window {
    match check(operations) {
        Err(Violation::Unordered(window)) => window,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_one_order_explains_is_accepted() {
    let history = [
        nothing(),
        write("a"),
        read("a"),
        Action::Delete,
        nothing(),
        increment(1),
        increment(2),
        read("2"),
        write("a"),
        Action::Increment { result: None },
        write("41"),
        increment(42),
        write("9223372036854775807"),
        Action::Increment { result: None },
    ];
    assert_eq!(check(&sequence(history)), Ok(()));
    assert_eq!(check(&[]), Ok(()));
}

#[test]
fn concurrent_operations_take_effect_in_either_order() {
    for value in ["a", "b"] {
        let history = [
            operation(0, 10, write("a")),
            operation(5, 15, write("b")),
            operation(20, 25, read(value)),
        ];
        assert_eq!(check(&history), Ok(()));
    }
    // A return and an invocation at one moment may have been in either order.
    let history = [operation(0, 10, write("a")), operation(10, 15, nothing())];
    assert_eq!(check(&history), Ok(()));
}

#[test]
fn a_stale_read_is_caught_with_what_shows_it() {
    let mut history = sequence([
        write("old"),
        write("a"),
        read("a"),
        write("b"),
        read("b"),
        read("a"),
        write("c"),
        read("c"),
    ]);
    history.reverse();
    let window = window(&history);
    assert_eq!(window.before, [Some(b"b".to_vec())]);
    assert_eq!(window.operations, [operation(60, 65, read("a"))]);
    let earlier = [operation(20, 25, write("a")), operation(40, 45, write("b"))];
    assert_eq!(window.earlier, earlier);
}

#[test]
fn a_read_from_the_future_is_caught() {
    let window = window(&sequence([write("x"), read("a"), write("a"), read("a")]));
    assert_eq!(window.operations.len(), 1, "{window}");
    assert_eq!(window.before, [Some(b"x".to_vec())]);
}

#[test]
fn a_lost_update_is_caught() {
    window(&sequence([write("a"), write("b"), read("a")]));
    window(&sequence([write("a"), nothing()]));
    let window = window(&sequence([increment(1), increment(2), increment(2)]));
    assert_eq!(window.operations.len(), 1);
    assert_eq!(window.before, [Some(b"2".to_vec())]);
}

#[test]
fn a_duplicated_increment_is_caught() {
    window(&sequence([increment(1), increment(3)]));
    window(&sequence([increment(1), read("2")]));
    // One that was not answered may be the reason, but only once.
    let mut history = sequence([increment(1), increment(3)]);
    history.push(operation(0, None, increment(0)));
    assert_eq!(check(&history), Ok(()));
    history.extend([operation(30, 35, increment(5))]);
    window(&history);
}

#[test]
fn a_resurrected_delete_is_caught() {
    window(&sequence([write("a"), Action::Delete, read("a")]));
    window(&sequence([increment(1), Action::Delete, increment(2)]));
}

#[test]
fn an_operation_without_an_answer_happens_late_or_never() {
    let lost = operation(16, None, write("lost"));
    for rest in [
        vec![write("a"), read("a"), read("a"), read("a")],
        vec![write("a"), read("lost"), read("lost")],
        vec![write("a"), read("a"), read("lost"), write("b"), read("b")],
    ] {
        let mut history = sequence(rest);
        history.push(lost.clone());
        assert_eq!(check(&history), Ok(()));
    }
    for rest in [
        // Twice.
        vec![write("a"), read("lost"), write("b"), read("lost")],
        // Before it was asked for.
        vec![read("lost"), write("a")],
    ] {
        let mut history = sequence(rest);
        history.push(lost.clone());
        window(&history);
    }
    let mut history = sequence([write("a"), nothing(), increment(1), nothing()]);
    history.push(operation(0, None, Action::Delete));
    window(&history);
    history.push(operation(0, None, Action::Delete));
    assert_eq!(check(&history), Ok(()));
    // A read that was never answered says nothing.
    assert_eq!(check(&[operation(0, None, read("x"))]), Ok(()));
}

#[test]
fn keys_are_judged_apart() {
    let mut history = sequence([write("a"), nothing()]);
    history[1].key = b"other".to_vec();
    assert_eq!(check(&history), Ok(()));
    history.extend(sequence([read("x")]));
    assert_eq!(window(&history).key, b"k");
}

#[test]
fn a_violation_reads_as_a_story() {
    let mut history = sequence([write("a\n"), write("b"), read("a\n")]);
    history.push(operation(12, None, increment(0)));
    for operation in &mut history {
        operation.invoked_ns *= 1000;
        operation.returned_ns = operation.returned_ns.map(|at_ns| at_ns * 1000);
    }
    let text = check(&history).expect_err("a stale read").to_string();
    let expected = "\
key \"k\": no order explains these 2 operations, if the key held \"b\" before (times in µs)
     earlier:
           0.0 to          5.0  client 10   SET \"a\\n\"
          10.0 to         15.0  client 20   SET \"b\"
     without an order:
           2.0 to    no answer  client 12   INCR
          20.0 to         25.0  client 30   GET = \"a\\n\"";
    assert_eq!(text, expected);
}

#[test]
fn a_search_that_meets_its_bound_gives_no_verdict() {
    let history = recorded(SHAPE, 1);
    let first: Vec<&Operation> = history.iter().filter(|one| one.key == [0; 8]).collect();
    let mut effort = search::Effort {
        shared: 20,
        per_operation: 0,
    };
    let result = window::check_key(&first, &mut effort);
    assert!(matches!(result, Err(window::Failure::Undecided)));
    let undecided = Violation::Undecided {
        key: b"k".to_vec(),
        operations: first.len(),
    };
    assert!(
        undecided
            .to_string()
            .contains("not found out within bounds")
    );
}

/// Every order there is, one after the other.
fn has_an_order(state: Option<&[u8]>, left: &[&Operation]) -> bool {
    if left.iter().all(|operation| operation.returned_ns.is_none()) {
        return true;
    }
    (0..left.len()).any(|at| {
        let mut rest = left.to_vec();
        let next = rest.remove(at);
        let preceded = |other: &&Operation| {
            let returned_ns = other.returned_ns;
            returned_ns.is_some_and(|returned_ns| returned_ns < next.invoked_ns)
        };
        if rest.iter().any(preceded) {
            return false;
        }
        let answered = next.returned_ns.is_some();
        match &next.action {
            Action::Write { value } => has_an_order(Some(value), &rest),
            Action::Delete => has_an_order(None, &rest),
            Action::Read { value } => {
                (!answered || value.as_deref() == state) && has_an_order(state, &rest)
            }
            Action::Increment { result } => {
                let number = state.map_or(Some(0), parse_integer);
                let sum = number.and_then(|number| number.checked_add(1));
                if answered && sum != *result {
                    return false;
                }
                match sum {
                    Some(sum) => has_an_order(Some(sum.to_string().as_bytes()), &rest),
                    None => has_an_order(state, &rest),
                }
            }
        }
    })
}

fn values() -> impl Strategy<Value = Vec<u8>> {
    prop::sample::select(vec!["0", "1", "2", "a", "b", "01", "9223372036854775807"])
        .prop_map(|text| text.as_bytes().to_vec())
}

fn actions() -> impl Strategy<Value = Action> {
    let result = prop::option::weighted(0.9, 1..4i64);
    prop_oneof![
        3 => values().prop_map(|value| Action::Write { value }),
        4 => prop::option::weighted(0.8, values()).prop_map(|value| Action::Read { value }),
        1 => Just(Action::Delete),
        3 => result.prop_map(|result| Action::Increment { result }),
    ]
}

fn histories(most: usize) -> impl Strategy<Value = Vec<Operation>> {
    let one = (0..24u64, prop::option::weighted(0.7, 0..12u64), actions());
    prop::collection::vec(one, 1..=most).prop_map(|all| {
        all.into_iter()
            .map(|(invoked, takes, action)| {
                operation(invoked, takes.map(|takes| invoked + takes), action)
            })
            .collect()
    })
}

mod properties {
    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn verdicts_are_those_of_trying_every_order(history in histories(6)) {
            let all: Vec<&Operation> = history.iter().collect();
            let expected = has_an_order(None, &all);
            match check(&history) {
                Ok(()) => prop_assert!(expected),
                Err(Violation::Undecided { .. }) => prop_assert!(false, "six operations"),
                Err(Violation::Unordered(window)) => {
                    prop_assert!(!expected);
                    let operations: Vec<&Operation> = window.operations.iter().collect();
                    for state in &window.before {
                        prop_assert!(!has_an_order(state.as_deref(), &operations), "{window}");
                    }
                }
            }
        }
    }
}

/// A small generator: the tests below want the same history each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// How a long history is made.
#[derive(Clone, Copy)]
struct Shape {
    operations: usize,
    keys: u64,
    clients: usize,
    /// So many in a thousand are not answered.
    lost: u64,
    /// The values of SET are below this.
    values: u64,
    /// So many in a thousand take a thousand times as long.
    stuck: u64,
}

const SHAPE: Shape = Shape {
    operations: 100_000,
    keys: 1000,
    clients: 16,
    lost: 1,
    values: 1 << 40,
    stuck: 1,
};

/// A history of clients that each do one thing after the other, each at one moment on the way.
fn recorded(shape: Shape, seed: u64) -> Vec<Operation> {
    let mut dice = Dice(seed);
    let mut machine: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    // For each client: when its operation takes effect, its key and itself.
    let mut clients: Vec<Option<(u64, u64, Operation)>> = vec![None; shape.clients];
    let mut free_ns = vec![0u64; shape.clients];
    let mut history = Vec::with_capacity(shape.operations);
    while history.len() < shape.operations {
        for (client, slot) in clients.iter_mut().enumerate() {
            if slot.is_none() {
                let key = dice.below(shape.keys);
                let invoked_ns = free_ns[client] + dice.below(2_000);
                let slow = if dice.below(1000) < shape.stuck {
                    1000
                } else {
                    1
                };
                let at_ns = invoked_ns + dice.below(50_000 * slow);
                let returned_ns = at_ns + dice.below(50_000 * slow);
                free_ns[client] = returned_ns + 1;
                let action = match dice.below(10) {
                    0..3 => write(&dice.below(shape.values).to_string()),
                    3 => write(&format!("v{}", dice.below(shape.values))),
                    4..8 => nothing(),
                    8 => Action::Delete,
                    _ => Action::Increment { result: None },
                };
                let operation = Operation {
                    client: client as u64,
                    key: key.to_be_bytes().to_vec(),
                    invoked_ns,
                    returned_ns: (dice.below(1000) >= shape.lost).then_some(returned_ns),
                    action,
                };
                *slot = Some((at_ns, key, operation));
            }
        }
        let next = clients
            .iter_mut()
            .min_by_key(|slot| slot.as_ref().map(|(at_ns, ..)| *at_ns))
            .expect("there are clients");
        let (_, key, mut operation) = next.take().expect("each has an operation");
        // Of those that are not answered, every other one never happens.
        if operation.returned_ns.is_some() || dice.below(2) == 0 {
            match &mut operation.action {
                Action::Write { value } => {
                    machine.insert(key, value.clone());
                }
                Action::Read { value } => *value = machine.get(&key).cloned(),
                Action::Delete => {
                    machine.remove(&key);
                }
                Action::Increment { result } => {
                    let number = machine
                        .get(&key)
                        .map_or(Some(0), |text| parse_integer(text));
                    *result = number.and_then(|number| number.checked_add(1));
                    if let Some(number) = result {
                        machine.insert(key, number.to_string().into_bytes());
                    }
                }
            }
        }
        history.push(operation);
    }
    history
}

#[test]
fn long_histories_are_accepted_in_time() {
    for (name, shape) in [
        ("many keys", SHAPE),
        (
            "one key",
            Shape {
                keys: 1,
                clients: 8,
                ..SHAPE
            },
        ),
        ("few keys", Shape { keys: 4, ..SHAPE }),
        (
            "few values",
            Shape {
                values: 5,
                keys: 10,
                ..SHAPE
            },
        ),
        (
            "much lost",
            Shape {
                lost: 20,
                keys: 10,
                ..SHAPE
            },
        ),
        (
            "much stuck",
            Shape {
                stuck: 20,
                keys: 4,
                ..SHAPE
            },
        ),
    ] {
        for seed in 1..4 {
            let history = recorded(shape, seed);
            let start = Instant::now();
            assert_eq!(check(&history), Ok(()), "{name}, seed {seed}");
            let took = start.elapsed();
            assert!(
                took < Duration::from_secs(20),
                "{name}, seed {seed}: {took:?}"
            );
        }
    }
}

#[test]
fn one_wrong_answer_among_many_is_caught() {
    for seed in 1..20 {
        let mut history = recorded(
            Shape {
                keys: 50,
                operations: 10_000,
                ..SHAPE
            },
            seed,
        );
        let at = history.len() / 2;
        let wrong = history[at..].iter_mut().find(|operation| {
            matches!(operation.action, Action::Read { .. }) && operation.returned_ns.is_some()
        });
        wrong.expect("reads are common").action = read("never written");
        let window = window(&history);
        assert!(window.operations.len() < 20, "{window}");
    }
}
