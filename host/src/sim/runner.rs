//! Many worlds on many cores.

use super::{Coverage, Options, Outcome, run};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use std::{io, thread};

/// Failures that are kept whole.
const FIRST_FAILURES: usize = 16;

/// Which seeds, and with how many threads.
#[derive(Clone, Copy, Debug)]
pub struct Seeds {
    /// The first seed.
    pub first: u64,
    /// How many.
    pub seeds: u64,
    /// No seed is begun after so long.
    pub time: Option<Duration>,
    /// Begin no seed after the first failure.
    pub fail_fast: bool,
    /// Threads.
    pub jobs: usize,
    /// What each world is to do.
    pub options: Options,
}

/// What came of many seeds.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Seeds run.
    pub seeds: u64,
    /// Those in which something did not hold.
    pub failures: u64,
    /// Events in all.
    pub events: u64,
    /// Packets that arrived.
    pub deliveries: u64,
    /// Slots chosen.
    pub commits: u64,
    /// Times that another came to lead.
    pub leader_changes: u64,
    /// The fewest deliveries, commits and leader changes of a seed that ended well.
    pub least: Option<(u64, u64, u64)>,
    /// Virtual time in nanoseconds.
    pub simulated_ns: u64,
    /// Time that all threads together took.
    pub busy: Duration,
    /// Time that it took.
    pub wall: Duration,
    /// What the worlds went through.
    pub coverage: Coverage,
    /// The first failures, by seed.
    pub first_failures: Vec<Outcome>,
}

impl Tally {
    fn add(&mut self, outcome: Outcome) {
        self.seeds += 1;
        self.events += outcome.events;
        self.deliveries += outcome.deliveries;
        self.commits += outcome.commits;
        self.leader_changes += outcome.leader_changes;
        self.simulated_ns += outcome.simulated_ns;
        self.coverage.add(&outcome.coverage);
        if outcome.violation.is_some() {
            self.failures += 1;
            self.first_failures.push(outcome);
            self.first_failures.sort_by_key(|failure| failure.seed);
            self.first_failures.truncate(FIRST_FAILURES);
            return;
        }
        let (deliveries, commits, changes) = self.least.unwrap_or((u64::MAX, u64::MAX, u64::MAX));
        self.least = Some((
            deliveries.min(outcome.deliveries),
            commits.min(outcome.commits),
            changes.min(outcome.leader_changes),
        ));
    }

    /// Events per second of one core.
    pub fn events_per_s_per_core(&self) -> f64 {
        self.events as f64 / self.busy.as_secs_f64().max(1e-9)
    }
}

/// Runs the seeds. `progress` is told after each one how many are done and how many failed.
///
/// # Errors
/// The system has no thread left.
pub fn run_seeds(seeds: &Seeds, progress: &mut dyn FnMut(&Tally)) -> io::Result<Tally> {
    let began = Instant::now();
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let mut tally = Tally::default();
    thread::scope(|scope| {
        let (report, outcomes) = channel();
        for number in 0..seeds.jobs.max(1) {
            let report = report.clone();
            let (next, stop) = (&next, &stop);
            thread::Builder::new()
                .name(format!("world-{number}"))
                .spawn_scoped(scope, move || {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        let is_late = seeds.time.is_some_and(|time| began.elapsed() >= time);
                        if number >= seeds.seeds || is_late || stop.load(Ordering::Relaxed) {
                            return;
                        }
                        let start = Instant::now();
                        let outcome = run(seeds.first.wrapping_add(number), &seeds.options);
                        if seeds.fail_fast && outcome.violation.is_some() {
                            stop.store(true, Ordering::Relaxed);
                        }
                        if report.send((outcome, start.elapsed())).is_err() {
                            return;
                        }
                    }
                })
                .inspect_err(|_| stop.store(true, Ordering::Relaxed))?;
        }
        drop(report);
        collect(outcomes, &mut tally, progress);
        io::Result::Ok(())
    })?;
    tally.wall = began.elapsed();
    Ok(tally)
}

fn collect(
    outcomes: Receiver<(Outcome, Duration)>,
    tally: &mut Tally,
    progress: &mut dyn FnMut(&Tally),
) {
    for (outcome, busy) in outcomes {
        tally.busy += busy;
        tally.add(outcome);
        progress(tally);
    }
}
