use super::*;
use std::time::{Duration, Instant};

fn wait(journal: &Journal, lsn: Lsn) {
    let end = Instant::now() + Duration::from_secs(10);
    while journal.flushed() < lsn {
        assert!(journal.failed().is_none(), "{:?}", journal.failed());
        assert!(Instant::now() < end, "not flushed");
        thread::yield_now();
    }
}

fn records(recovery: Recovery) -> Vec<(u64, Vec<u8>)> {
    let mut records = Vec::new();
    recovery
        .replay(|lsn, record| records.push((lsn.0, record.to_vec())))
        .unwrap();
    records
}

#[test]
fn records_come_back_on_the_real_disk() {
    let directory = tempfile::tempdir().unwrap();
    for flush in [Flush::Before, Flush::Behind] {
        let mut options = Options::new(directory.path().join(format!("{flush:?}")), 7, flush);
        options.segment_bytes = MIN_SEGMENT_BYTES;
        let mut expected = Vec::new();
        for life in 0..4_u8 {
            let (recovery, mut journal) = Journal::open(options.clone(), Arc::new(|| {})).unwrap();
            eprintln!("{} {:?}", journal.path(), recovery.torn());
            assert_eq!(recovery.torn(), None);
            assert_eq!(records(recovery), expected);
            for i in 0..100_usize {
                let record = vec![life; i * 97 % 5000];
                let lsn = journal.append(&record).unwrap();
                expected.push((lsn.0, record));
                if i % 7 == 0 {
                    wait(&journal, lsn);
                }
            }
            wait(&journal, journal.appended());
            eprintln!("{:?}", journal.statistics());
            journal.close().unwrap();
        }
    }
}
