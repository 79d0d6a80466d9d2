//! Runs a target over its corpus, and over inputs made of it.

use consensus::random::Random;
use consensus::simulation::{self, Mutation};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Goes on for so many seconds from a random seed, instead of for a moment from a fixed one.
const SECONDS: &str = "NEARWIRE_FUZZ_SECONDS";
/// Inputs of a target in an ordinary test run, at most.
const INPUTS: usize = 60_000;
/// How long a target tries them, at most.
const MOMENT: Duration = Duration::from_secs(3);
/// An input that takes longer hangs. Generous: the machine may be busy.
const HANG: Duration = Duration::from_secs(20);
/// Longest input.
const MAX_BYTES: u64 = 4096;

/// Runs `target`, whose corpus is `tests/fuzz/corpus/<name>`.
///
/// # Panics
/// An input makes the target panic; where that input was left is said first.
pub(crate) fn fuzz(name: &str, target: impl Fn(&[u8])) {
    run(name, name, target);
}

/// What goes wrong is left under the name `kept_as`.
fn run(name: &str, kept_as: &str, target: impl Fn(&[u8])) {
    let corpus = corpus(name);
    assert!(!corpus.is_empty(), "the corpus of {name} is missing");
    let watch = Watch::start(kept_as);
    for (path, input) in &corpus {
        println!("{}", path.display());
        watch.run(input, &target);
    }
    let longer = std::env::var(SECONDS).ok();
    let (seed, inputs, time) = match longer {
        Some(seconds) => (
            getrandom::u64().expect("randomness"),
            usize::MAX,
            Duration::from_secs(seconds.parse().expect("a number of seconds")),
        ),
        None => (1, INPUTS, MOMENT),
    };
    let mut maker = Maker {
        corpus: corpus.into_iter().map(|(_, input)| input).collect(),
        random: Random::new(seed),
    };
    let begin = Instant::now();
    let mut tried = 0;
    while tried < inputs && begin.elapsed() < time {
        let input = maker.next();
        watch.run(&input, &target);
        tried += 1;
    }
    println!(
        "{name}: {tried} inputs from seed {seed} in {:?}",
        begin.elapsed()
    );
}

/// Whether `target` finds what goes wrong when this thread commits `mutation`: a check that finds
/// nothing is worth nothing.
pub(crate) fn finds(mutation: Mutation, name: &str, target: impl Fn(&[u8])) -> bool {
    simulation::mutate(Some(mutation));
    let kept_as = format!("{name}-{}", mutation.name());
    let result = catch_unwind(AssertUnwindSafe(|| run(name, &kept_as, target)));
    simulation::mutate(None);
    result.is_err()
}

/// The inputs that are kept, by name.
fn corpus(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    let Ok(entries) = std::fs::read_dir(path.join(name)) else {
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    let read = |path: PathBuf| {
        let input = std::fs::read(&path).expect("a file of the corpus");
        (path, input)
    };
    paths.into_iter().map(read).collect()
}

/// Leaves an input where it can be found.
fn leave(name: &str, input: &[u8]) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{name}"));
    std::fs::write(&path, input).expect("room for an input");
    path
}

/// Since when, and the input.
type UnderWay = (Instant, Vec<u8>);

/// Sees to it that an input that hangs or panics is known.
struct Watch {
    name: String,
    under_way: Arc<Mutex<Option<UnderWay>>>,
}

impl Watch {
    fn start(name: &str) -> Self {
        let watch = Self {
            name: name.to_owned(),
            under_way: Arc::default(),
        };
        // It ends when nobody else holds what it looks at.
        let (name, seen) = (name.to_owned(), Arc::downgrade(&watch.under_way));
        std::thread::spawn(move || {
            while let Some(under_way) = seen.upgrade() {
                if let Some((begin, input)) = &*under_way.lock().expect("nobody panics with it")
                    && begin.elapsed() > HANG
                {
                    let path = leave(&name, input);
                    eprintln!("{name}: {} takes longer than {HANG:?}", path.display());
                    std::process::abort();
                }
                drop(under_way);
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        watch
    }

    fn run(&self, input: &[u8], target: &impl Fn(&[u8])) {
        let note = |what| *self.under_way.lock().expect("nobody panics with it") = what;
        note(Some((Instant::now(), input.to_vec())));
        let result = catch_unwind(AssertUnwindSafe(|| target(input)));
        note(None);
        if let Err(panic) = result {
            let path = leave(&self.name, input);
            eprintln!(
                "The input is in {}. Once that is mended, keep it: mv {0} tests/fuzz/corpus/{}/",
                path.display(),
                self.name
            );
            resume_unwind(panic);
        }
    }
}

/// Makes inputs: random bytes, and what is kept with a few changes.
struct Maker {
    corpus: Vec<Vec<u8>>,
    random: Random,
}

impl Maker {
    fn next(&mut self) -> Vec<u8> {
        let mut input = match self.random.below(3) {
            0 => {
                // Short ones are as many as long ones.
                let scale = self.random.below(MAX_BYTES.ilog2().into());
                let length = self.random.below(2 << scale);
                (0..length).map(|_| self.random.next() as u8).collect()
            }
            _ => self.kept(),
        };
        for _ in 0..self.random.below(8) {
            self.change(&mut input);
        }
        input.truncate(MAX_BYTES as usize);
        input
    }

    fn kept(&mut self) -> Vec<u8> {
        let at = self.random.below(self.corpus.len() as u64) as usize;
        self.corpus[at].clone()
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        let at = self.random.below(input.len() as u64 + 1) as usize;
        let end = (at + self.random.below(16) as usize).min(input.len());
        match self.random.below(7) {
            0 => drop(input.drain(at..end)),
            1 => {
                let more = input[at..end].to_vec();
                drop(input.splice(at..at, more));
            }
            2 => {
                let other = self.kept();
                let from = self.random.below(other.len() as u64 + 1) as usize;
                drop(input.splice(at.., other[from..].iter().copied()));
            }
            3 => {
                let byte = self.random.next() as u8;
                input.insert(at, byte);
            }
            4 => {
                let odd = [0, 1, 0x7f, 0x80, 0xff][self.random.below(5) as usize];
                input[at..end].fill(odd);
            }
            _ => {
                let bit = 1 << self.random.below(8);
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= bit;
                }
            }
        }
    }
}
