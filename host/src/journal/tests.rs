//! Lives of a journal that end in every way a machine can end them.

use super::testing::{DiscardingDisk, Faults, MemoryDisk, PowerLoss};
use super::*;
use consensus::simulation::{self, Mutation};
use proptest::prelude::*;
use std::sync::Mutex;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);
const IDENTITY: u64 = 7;

/// Waits until `lsn` is reported; false if the journal fails instead.
fn reported(journal: &Journal, lsn: Lsn) -> bool {
    let end = Instant::now() + PATIENCE;
    while journal.flushed() < lsn {
        if journal.failed().is_some() {
            return false;
        }
        assert!(
            Instant::now() < end,
            "record {lsn} is neither flushed nor refused"
        );
        thread::yield_now();
    }
    true
}

fn append(journal: &mut Journal, record: &[u8]) -> Option<Lsn> {
    let end = Instant::now() + PATIENCE;
    while journal.failed().is_none() {
        if let Some(lsn) = journal.append(record) {
            return Some(lsn);
        }
        assert!(Instant::now() < end, "the queue never empties");
        thread::yield_now();
    }
    None
}

/// A record that tells its number and its length.
fn record(lsn: u64, salt: u64, length: usize) -> Vec<u8> {
    let word = (lsn << 20) ^ salt;
    (0..length)
        .map(|i| (word.rotate_left(i as u32 % 64) as u8) ^ (i as u8))
        .collect()
}

struct Machine {
    memory: MemoryDisk,
    disk: DiscardingDisk,
    flush: Flush,
    /// Every record that may be on the disk, by number from 1.
    history: Vec<Vec<u8>>,
    cut: u64,
}

impl Machine {
    fn new(flush: Flush) -> Self {
        let memory = MemoryDisk::default();
        let disk = DiscardingDisk::over(Arc::new(memory.clone()));
        Self {
            memory,
            disk,
            flush,
            history: Vec::new(),
            cut: 1,
        }
    }

    fn options(&self) -> Options {
        let mut options = Options::new("/journal", IDENTITY, self.flush);
        options.segment_bytes = MIN_SEGMENT_BYTES;
        options.disk = Some(self.disk.plug_in());
        options
    }

    /// Opens the journal; what comes back must be the beginning of what was appended, up to
    /// `promised` at least.
    fn open(&mut self, promised: u64) -> Result<Journal, String> {
        let (recovery, journal) =
            Journal::open(self.options(), Arc::new(|| {})).map_err(|error| error.to_string())?;
        self.compare(recovery, promised)?;
        Ok(journal)
    }

    fn open_mutant(&mut self, mutation: Mutation) -> Journal {
        let before = simulation::mutation();
        simulation::mutate(Some(mutation));
        let (_, journal) = Journal::open(self.options(), Arc::new(|| {})).unwrap();
        simulation::mutate(before);
        journal
    }

    fn compare(&mut self, recovery: Recovery, promised: u64) -> Result<(), String> {
        let (first, last) = (recovery.first().0, recovery.last().0);
        if last < promised {
            return Err(format!(
                "record {promised} was promised, the last one is {last}"
            ));
        }
        if last > self.history.len() as u64 {
            return Err(format!("record {last} was never appended"));
        }
        if first > self.cut {
            return Err(format!(
                "records from {} are needed, the first is {first}",
                self.cut
            ));
        }
        let mut expected = first;
        let mut wrong = None;
        recovery
            .replay(|lsn, record| {
                let right = lsn.0 == expected && self.history[lsn.0 as usize - 1] == record;
                if !right && wrong.is_none() {
                    wrong = Some(format!(
                        "record {lsn} is not what was appended as {expected}"
                    ));
                }
                expected += 1;
            })
            .map_err(|error| error.to_string())?;
        if expected != last + 1 {
            return Err(format!("the records end at {expected}, not after {last}"));
        }
        self.history.truncate(last as usize);
        wrong.map_or(Ok(()), Err)
    }

    fn append(&mut self, journal: &mut Journal, salt: u64, length: usize) -> Option<Lsn> {
        let record = record(self.history.len() as u64 + 1, salt, length);
        let lsn = append(journal, &record)?;
        self.history.push(record);
        assert_eq!(lsn.0, self.history.len() as u64);
        Some(lsn)
    }
}

#[derive(Clone, Debug)]
struct Life {
    salt: u64,
    lengths: Vec<usize>,
    /// Waits after each so many records.
    stride: usize,
    /// Power goes after so many records, without waiting.
    until: usize,
    cut: bool,
    delay_us: u64,
    end: Option<PowerLoss>,
}

fn length() -> impl Strategy<Value = usize> {
    prop_oneof![8 => 0..200_usize, 3 => 0..9000_usize, 1 => 30_000..=MAX_RECORD_BYTES]
}

fn end() -> impl Strategy<Value = Option<PowerLoss>> {
    prop_oneof![
        Just(None),
        Just(Some(PowerLoss::Process)),
        Just(Some(PowerLoss::Everything)),
        any::<u64>().prop_map(|seed| Some(PowerLoss::Blocks(seed))),
        any::<u64>().prop_map(|seed| Some(PowerLoss::Torn(seed))),
    ]
}

fn life() -> impl Strategy<Value = Life> {
    (
        any::<u64>(),
        prop::collection::vec(length(), 0..40),
        1..20_usize,
        0..60_usize,
        any::<bool>(),
        prop_oneof![Just(0), 1..300_u64],
        end(),
    )
        .prop_map(|(salt, lengths, stride, until, cut, delay_us, end)| Life {
            salt,
            lengths,
            stride,
            until,
            cut,
            delay_us,
            end,
        })
}

impl Machine {
    /// Lives `life`; returns what the next one must find. `mark` is what even a damaged disk must
    /// not silently lose: all that was flushed before the last batches were written.
    fn live(&mut self, life: &Life, promised: u64) -> Result<(u64, u64), String> {
        let mut journal = self.open(promised)?;
        let flush_delay = Duration::from_micros(life.delay_us);
        self.disk.set_faults(Faults {
            flush_delay,
            ..Faults::default()
        });
        let mut mark = self.history.len() as u64;
        for (i, length) in life.lengths.iter().take(life.until).enumerate() {
            let flushed_before = journal.flushed().0;
            let Some(lsn) = self.append(&mut journal, life.salt, *length) else {
                return Err(format!("{:?}", journal.failed()));
            };
            if i % life.stride == 0 && self.flush == Flush::Before {
                if !reported(&journal, lsn) {
                    return Err(format!("{:?}", journal.failed()));
                }
                mark = flushed_before;
            }
            if life.cut && i == life.lengths.len() / 2 {
                self.cut = journal.durable().0.max(1);
                journal.cut(Lsn(self.cut));
            }
        }
        let Some(end) = life.end else {
            let all = self.history.len() as u64;
            journal.close().map_err(|error| error.to_string())?;
            return Ok((all, all));
        };
        let promised = match (self.flush, end) {
            (Flush::Before, _) | (Flush::Behind, PowerLoss::Process) => journal.flushed().0,
            (Flush::Behind, _) => journal.durable().0,
        };
        self.disk.lose_power(end);
        Ok((promised, mark.min(promised)))
    }
}

/// `PROPTEST_CASES` asks for more.
fn cases() -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn every_life_finds_what_was_promised_to_it(
        lives in prop::collection::vec(life(), 1..6),
        flush in prop_oneof![3 => Just(Flush::Before), 1 => Just(Flush::Behind)],
    ) {
        let mut machine = Machine::new(flush);
        let mut promised = 0;
        for life in &lives {
            promised = machine.live(life, promised).map_err(TestCaseError::fail)?.0;
        }
        machine.open(promised).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn a_damaged_byte_yields_an_error_or_the_records_before_the_last_batches(
        lives in prop::collection::vec(life(), 1..4),
        file in any::<prop::sample::Index>(),
        place in any::<prop::sample::Index>(),
        mask in 1..=255_u8,
    ) {
        let mut machine = Machine::new(Flush::Before);
        let (mut promised, mut mark) = (0, 0);
        for life in &lives {
            (promised, mark) = machine.live(life, promised).map_err(TestCaseError::fail)?;
        }
        // What a machine that only lost its process still had in its cache.
        machine.disk.lose_power(PowerLoss::Everything);
        let files = machine.memory.files();
        let (path, bytes) = file.get(&files);
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0) + 1;
        machine.memory.damage(path, place.index(used), mask);
        match machine.open(mark) {
            Ok(mut journal) => {
                let lsn = machine.append(&mut journal, 1, 100).expect("healthy");
                prop_assert!(reported(&journal, lsn));
                machine.disk.lose_power(PowerLoss::Everything);
                machine.open(lsn.0).map_err(TestCaseError::fail)?;
            }
            Err(error) => prop_assert!(
                error.contains("is damaged"),
                "{error}; promised {promised}, mark {mark}"
            ),
        }
    }
}

/// Appends and loses power at once after each report; whether something reported was lost.
fn loses_what_it_reported(mutation: Option<Mutation>, faults: Faults) -> bool {
    for _ in 0..20 {
        let mut machine = Machine::new(Flush::Before);
        let mut journal = match mutation {
            Some(mutation) => machine.open_mutant(mutation),
            None => machine.open(0).unwrap(),
        };
        machine.disk.set_faults(faults);
        for _ in 0..3 {
            match machine.append(&mut journal, 0, 500) {
                Some(lsn) if reported(&journal, lsn) => {}
                Some(_) | None => break,
            }
        }
        let promised = journal.flushed().0;
        machine.disk.lose_power(PowerLoss::Everything);
        if machine.open(promised).is_err() {
            return true;
        }
    }
    false
}

#[test]
fn reporting_before_the_flush_would_be_noticed() {
    let slow = Faults {
        flush_delay: Duration::from_millis(3),
        ..Faults::default()
    };
    assert!(!loses_what_it_reported(None, slow));
    assert!(loses_what_it_reported(
        Some(Mutation::FlushReportedEarly),
        slow
    ));
}

#[test]
fn retrying_a_failed_flush_would_be_noticed() {
    let failing = Faults {
        failing_flush: Some(2),
        ..Faults::default()
    };
    assert!(!loses_what_it_reported(None, failing));
    assert!(loses_what_it_reported(
        Some(Mutation::FailedFlushRetried),
        failing
    ));
}

#[test]
fn a_disk_that_lies_about_flushes_would_be_noticed() {
    let lying = Faults {
        lying_flushes: true,
        ..Faults::default()
    };
    assert!(loses_what_it_reported(None, lying));
}

#[test]
fn nothing_is_reported_after_a_failed_flush() {
    let mut machine = Machine::new(Flush::Before);
    let mut journal = machine.open(0).unwrap();
    let lsn = machine.append(&mut journal, 0, 10).unwrap();
    assert!(reported(&journal, lsn));
    machine.disk.set_faults(Faults {
        failing_flush: Some(1),
        ..Faults::default()
    });
    let lost = machine.append(&mut journal, 0, 10).unwrap();
    assert!(!reported(&journal, lost));
    assert_eq!(journal.flushed(), lsn);
    assert_eq!(journal.failed().unwrap().raw_os_error(), Some(libc::EIO));
    assert!(!journal.has_room(1));
    assert_eq!(journal.append(b"more"), None);
    assert_eq!(journal.appended(), lost);
    assert!(journal.close().is_err());
    machine.disk.lose_power(PowerLoss::Everything);
    let journal = machine.open(lsn.0).unwrap();
    assert_eq!(journal.appended(), lsn);
}

#[test]
fn a_full_disk_fails_the_journal_and_loses_nothing() {
    let mut machine = Machine::new(Flush::Before);
    let mut journal = machine.open(0).unwrap();
    machine.disk.set_faults(Faults {
        room_bytes: Some(0),
        ..Faults::default()
    });
    while let Some(lsn) = machine.append(&mut journal, 0, 4000) {
        if !reported(&journal, lsn) {
            break;
        }
    }
    assert_eq!(journal.failed().unwrap().raw_os_error(), Some(libc::ENOSPC));
    let promised = journal.flushed().0;
    assert!(
        promised > 20,
        "the segment in use still takes records: {promised}"
    );
    machine.disk.lose_power(PowerLoss::Everything);
    machine.disk.set_faults(Faults::default());
    machine.open(promised).unwrap();
}

#[test]
fn a_journal_that_is_cut_needs_no_new_files() {
    let mut machine = Machine::new(Flush::Before);
    let mut journal = machine.open(0).unwrap();
    for i in 0..2000 {
        let lsn = machine.append(&mut journal, 0, 4000).unwrap();
        assert!(reported(&journal, lsn));
        machine.cut = lsn.0;
        journal.cut(lsn);
        if i == 300 {
            machine.disk.set_faults(Faults {
                room_bytes: Some(0),
                ..Faults::default()
            });
        }
    }
    let statistics = journal.statistics();
    assert!(statistics.segments_recycled > 50, "{statistics:?}");
    assert!(machine.memory.files().len() <= 5);
    let promised = journal.flushed().0;
    // A new life needs a segment of its own, and none may have been ready when the power went.
    machine.disk.set_faults(Faults::default());
    machine.disk.lose_power(PowerLoss::Everything);
    machine.open(promised).unwrap();
}

#[test]
fn a_cut_waits_for_the_replay() {
    let mut machine = Machine::new(Flush::Before);
    let mut journal = machine.open(0).unwrap();
    for _ in 0..100 {
        machine.append(&mut journal, 0, 4000).unwrap();
    }
    journal.close().unwrap();
    let (recovery, mut journal) = Journal::open(machine.options(), Arc::new(|| {})).unwrap();
    journal.cut(Lsn(101));
    for _ in 0..100 {
        let lsn = machine.append(&mut journal, 0, 4000).unwrap();
        assert!(reported(&journal, lsn));
    }
    assert_eq!(journal.statistics().segments_recycled, 0);
    machine.history.truncate(100);
    machine.compare(recovery, 100).unwrap();
}

#[test]
fn records_that_wait_for_one_flush_share_the_next() {
    let mut machine = Machine::new(Flush::Before);
    let mut journal = machine.open(0).unwrap();
    machine.disk.set_faults(Faults {
        flush_delay: Duration::from_millis(20),
        ..Faults::default()
    });
    for _ in 0..500 {
        machine.append(&mut journal, 0, 100).unwrap();
    }
    assert!(reported(&journal, Lsn(500)));
    let statistics = journal.statistics();
    assert!(statistics.flushes <= 50, "{statistics:?}");
    assert!(statistics.latency_us(1.0) >= 20_000, "{statistics:?}");
    assert_eq!(
        (statistics.records, statistics.payload_bytes),
        (500, 50_000)
    );
}

#[test]
fn a_batch_that_nobody_waits_for_fills_first() {
    let mut machine = Machine::new(Flush::Behind);
    let mut journal = machine.open(0).unwrap();
    for _ in 0..500 {
        machine.append(&mut journal, 0, 100).unwrap();
    }
    assert!(reported(&journal, Lsn(500)));
    assert!(
        journal.statistics().flushes <= 50,
        "{:?}",
        journal.statistics()
    );
    let end = Instant::now() + PATIENCE;
    while journal.durable() < Lsn(500) {
        assert!(Instant::now() < end, "never flushed behind");
        thread::yield_now();
    }
    machine.disk.lose_power(PowerLoss::Everything);
    machine.open(500).unwrap();
}

#[test]
fn a_full_queue_is_an_answer() {
    let mut machine = Machine::new(Flush::Before);
    let mut journal = machine.open(0).unwrap();
    machine.disk.set_faults(Faults {
        flush_delay: Duration::from_millis(50),
        ..Faults::default()
    });
    let record = vec![1; MAX_RECORD_BYTES];
    let refused = (0..1000).find(|_| journal.append(&record).is_none());
    assert!(refused.is_some());
    assert!(!journal.has_room(MAX_RECORD_BYTES));
    assert!(journal.failed().is_none());
    machine.disk.lose_power(PowerLoss::Everything);
}

#[test]
fn the_worker_is_woken_after_each_report_and_on_failure() {
    let machine = Machine::new(Flush::Before);
    let (sender, woken) = std::sync::mpsc::channel();
    let sender = Mutex::new(sender);
    let wake = move || {
        let _ = sender.lock().unwrap().send(());
    };
    let (_, mut journal) = Journal::open(machine.options(), Arc::new(wake)).unwrap();
    let lsn = journal.append(b"one").unwrap();
    while journal.flushed() < lsn {
        woken.recv_timeout(PATIENCE).unwrap();
    }
    machine.disk.set_faults(Faults {
        failing_flush: Some(1),
        ..Faults::default()
    });
    journal.append(b"two").unwrap();
    while journal.failed().is_none() {
        woken.recv_timeout(PATIENCE).unwrap();
    }
}

#[test]
fn a_torn_tail_is_cut_off_and_reported_once() {
    let mut seen = false;
    for seed in 0..40 {
        let mut machine = Machine::new(Flush::Before);
        let mut journal = machine.open(0).unwrap();
        let slow = Faults {
            flush_delay: Duration::from_millis(5),
            ..Faults::default()
        };
        machine.disk.set_faults(slow);
        let first = machine.append(&mut journal, 0, 100).unwrap();
        assert!(reported(&journal, first));
        for _ in 0..20 {
            machine.append(&mut journal, 0, 3000).unwrap();
        }
        thread::sleep(Duration::from_millis(2));
        machine.disk.lose_power(PowerLoss::Blocks(seed));
        machine.disk.set_faults(Faults::default());
        let open = || Journal::open(machine.options(), Arc::new(|| {})).unwrap();
        let (recovery, journal) = open();
        let last = recovery.last();
        if let Some(torn) = recovery.torn() {
            seen = true;
            assert_eq!(torn.lsn, last.next());
            assert!(torn.seen >= torn.lsn);
        }
        drop((recovery, journal));
        let (recovery, _journal) = open();
        assert_eq!(
            (recovery.torn(), recovery.last()),
            (None, last),
            "seed {seed}"
        );
    }
    assert!(seen);
}

#[test]
fn damage_before_flushed_records_names_the_place_and_the_remedy() {
    let mut machine = Machine::new(Flush::Before);
    let mut journal = machine.open(0).unwrap();
    for _ in 0..3 {
        let lsn = machine.append(&mut journal, 0, 100).unwrap();
        assert!(reported(&journal, lsn));
    }
    machine.disk.lose_power(PowerLoss::Everything);
    // Block 0 is the superheader, 1 the empty first batch, 2 the batch of the first record.
    let path = recovery::segment_path("/journal".as_ref(), 1);
    machine.memory.damage(&path, 2 * 4096 + 100, 1);
    let error = machine.open(0).err().unwrap();
    for part in [
        "segment-0000000000000001",
        "byte 8192",
        "record 1",
        "byte 12288",
        "leave this node stopped",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn a_clean_end_protects_the_last_record_too() {
    let mut machine = Machine::new(Flush::Before);
    let mut journal = machine.open(0).unwrap();
    machine.append(&mut journal, 0, 100).unwrap();
    journal.close().unwrap();
    machine.disk.lose_power(PowerLoss::Everything);
    machine.memory.damage(
        &recovery::segment_path("/journal".as_ref(), 1),
        2 * 4096 + 100,
        1,
    );
    assert!(machine.open(0).err().unwrap().contains("is damaged"));
}

#[test]
fn another_nodes_journal_is_refused() {
    let mut machine = Machine::new(Flush::Before);
    machine.open(0).unwrap().close().unwrap();
    let mut options = machine.options();
    options.identity = 8;
    let error = Journal::open(options, Arc::new(|| {})).err().unwrap();
    assert!(
        matches!(
            error,
            JournalError::Foreign {
                found: 7,
                expected: 8,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn restarts_without_records_take_no_more_files() {
    let mut machine = Machine::new(Flush::Before);
    for _ in 0..10 {
        machine.open(0).unwrap().close().unwrap();
    }
    assert!(
        machine.memory.files().len() <= 5,
        "{}",
        machine.memory.files().len()
    );
}

#[test]
fn segments_of_an_odd_length_are_refused() {
    let machine = Machine::new(Flush::Before);
    for segment_bytes in [0, MIN_SEGMENT_BYTES - 4096, MIN_SEGMENT_BYTES + 512] {
        let options = Options {
            segment_bytes,
            ..machine.options()
        };
        let error = Journal::open(options, Arc::new(|| {})).err().unwrap();
        assert!(matches!(error, JournalError::Option { .. }), "{error}");
    }
}

#[test]
fn records_come_back_from_the_machines_own_disk() {
    let scratch = tempfile::tempdir().unwrap();
    for flush in [Flush::Before, Flush::Behind] {
        let mut options = Options::new(scratch.path().join(format!("{flush:?}")), 7, flush);
        let mut expected: Vec<Vec<u8>> = Vec::new();
        for life in 0..4_u64 {
            // A new length applies to new segments.
            options.segment_bytes = MIN_SEGMENT_BYTES + (life / 2) * 4096;
            let (recovery, mut journal) = Journal::open(options.clone(), Arc::new(|| {})).unwrap();
            assert_eq!(recovery.torn(), None);
            let mut found = Vec::new();
            recovery
                .replay(|_, record| found.push(record.to_vec()))
                .unwrap();
            assert!(found == expected);
            for i in 0..100_usize {
                let record = record(i as u64, life, i * 97 % 5000);
                let lsn = journal.append(&record).unwrap();
                expected.push(record);
                if i % 7 == 0 {
                    assert!(reported(&journal, lsn), "{:?}", journal.failed());
                }
            }
            journal.close().unwrap();
        }
    }
}

#[test]
fn tmpfs_serves_by_the_path_that_it_accepts() {
    let scratch = tempfile::tempdir_in("/dev/shm").unwrap();
    let options = Options::new(scratch.path(), 7, Flush::Before);
    let (_, mut journal) = Journal::open(options, Arc::new(|| {})).unwrap();
    let lsn = journal.append(b"record").unwrap();
    assert!(
        reported(&journal, lsn),
        "{}: {:?}",
        journal.path(),
        journal.failed()
    );
}

#[test]
fn faults_are_named_in_an_environment_variable_or_refused() {
    let expected = Faults {
        room_bytes: Some(7),
        failing_flush: Some(2),
        flush_delay: Duration::from_micros(30),
        lying_flushes: true,
    };
    let text = "room_bytes=7,failing_flush=2,flush_delay_us=30,lying_flushes";
    assert_eq!(text.parse(), Ok(expected));
    assert_eq!("".parse(), Ok(Faults::default()));
    assert!("room=7".parse::<Faults>().is_err());
    assert!("room_bytes=much".parse::<Faults>().is_err());
}

#[test]
fn a_journal_can_be_given_to_another_thread() {
    fn sendable<T: Send>() {}
    sendable::<Journal>();
    sendable::<Recovery>();
    sendable::<JournalError>();
}
