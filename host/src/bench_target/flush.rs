//! The floor of a durable commit: what a flush costs while the other replicas flush too.

use crate::journal::{Flush, Journal, JournalError, Options};
use bench::load::latencies;
use bench::run::TargetError;
use datapath::Placement;
use hdrhistogram::Histogram;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

/// About the record of a vote for a 64-byte value: the request's header and one command.
const RECORD_BYTES: usize = 200;
/// How long a flush may take before it counts as stuck.
const STUCK: Duration = Duration::from_secs(10);

/// Appends one record at a time and waits until it is flushed, on each of `places` at once, each in
/// a journal of its own below `directory`. Nanoseconds from append to news of the flush.
///
/// It is the replicas' own journal, so that the code path is the same: hand-over to the writer's
/// thread, one aligned write with its flush, hand-over back.
pub(super) fn measure(
    directory: &Path,
    places: &[Placement],
    warmup: Duration,
    measure: Duration,
) -> Result<Histogram<u64>, TargetError> {
    let ready = Arc::new(Barrier::new(places.len()));
    let threads: Vec<_> = places
        .iter()
        .enumerate()
        .map(|(number, place)| {
            let (ready, place) = (Arc::clone(&ready), *place);
            let directory = directory.join(format!("flush-{number}"));
            thread::spawn(move || write(directory, place, &ready, warmup, measure))
        })
        .collect();
    let mut all = latencies();
    for thread in threads {
        let one = thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        all.add(&one)?;
    }
    Ok(all)
}

fn write(
    directory: PathBuf,
    place: Placement,
    ready: &Barrier,
    warmup: Duration,
    measure: Duration,
) -> Result<Histogram<u64>, TargetError> {
    let opened = open(directory, place);
    // Whoever failed must still let the others go.
    ready.wait();
    let mut journal = opened?;
    let mut latencies = latencies();
    let start = Instant::now();
    while start.elapsed() < warmup + measure {
        let begun = Instant::now();
        let lsn = journal.append(&[0x5a; RECORD_BYTES]);
        let lsn = lsn.ok_or("the journal takes no record")?;
        while journal.flushed() < lsn {
            if journal.failed().is_some() {
                break;
            }
            if begun.elapsed() > STUCK {
                return Err("a flush does not end".into());
            }
            thread::park_timeout(STUCK);
        }
        if let Some(error) = journal.failed() {
            return Err(error.to_string().into());
        }
        let took = begun.elapsed();
        if start.elapsed() >= warmup {
            latencies.saturating_record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
        }
    }
    journal.close()?;
    Ok(latencies)
}

fn open(directory: PathBuf, place: Placement) -> Result<Journal, TargetError> {
    place.apply()?;
    let me = thread::current();
    let opened: Result<_, JournalError> = Journal::open(
        Options::new(directory, 1, Flush::Before),
        Arc::new(move || me.unpark()),
    );
    let (recovery, journal) = opened?;
    drop(recovery);
    Ok(journal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_writers_flush_at_the_same_time() {
        let directory = tempfile::tempdir().expect("a directory");
        let places = [Placement::default(); 3];
        let (warmup, time) = (Duration::from_millis(10), Duration::from_millis(100));
        let latencies = measure(directory.path(), &places, warmup, time).expect("a disk");
        assert!(latencies.len() >= 3, "{} flushes", latencies.len());
    }
}
