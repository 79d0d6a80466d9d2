//! Counts tests in what libtest prints.

/// A test that finds at run time that it cannot run prints this to the *unbuffered* standard error
/// (`writeln!(std::io::stderr(), …)`; `eprintln!` is captured), followed by
/// `name: what is missing`, and returns. libtest calls it passed; it is counted as skipped here.
pub(crate) const SKIP_MARK: &str = "nearwire-test-skipped: ";

/// The reason of an ignored test that is another test's child process, and no test of its own.
const CHILD_MARK: &str = "started by ";

/// Tests by result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    pub(crate) fn total(&self) -> u64 {
        self.passed + self.failed + self.skipped
    }
}

/// What the lines seen so far amount to.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    reported: Counts,
    skipped_at_run_time: u64,
    children: u64,
    /// Names of failed tests.
    pub(crate) failures: Vec<String>,
    /// `name: reason` of skipped tests.
    pub(crate) skips: Vec<String>,
}

impl Tally {
    /// Takes one line of output.
    pub(crate) fn line(&mut self, line: &str) {
        // With one test thread the mark follows "test name ... " on the same line.
        if let Some((_, skip)) = line.split_once(SKIP_MARK) {
            self.skipped_at_run_time += 1;
            self.skips.push(skip.trim().to_owned());
        } else if let Some(result) = line.strip_prefix("test result: ") {
            self.reported.add(parse_result(result));
        } else if let Some((name, result)) = parse_test(line) {
            if result == "FAILED" {
                self.failures.push(name.to_owned());
            } else if let Some(reason) = result.strip_prefix("ignored") {
                match reason.trim_start_matches([',', ' ']) {
                    "" => self.skips.push(format!("{name}: ignored")),
                    reason if reason.starts_with(CHILD_MARK) => self.children += 1,
                    reason => self.skips.push(format!("{name}: {reason}")),
                }
            }
        }
    }

    /// Tests counted so far.
    pub(crate) fn counts(&self) -> Counts {
        Counts {
            passed: self
                .reported
                .passed
                .saturating_sub(self.skipped_at_run_time),
            failed: self.reported.failed,
            skipped: self.reported.skipped.saturating_sub(self.children) + self.skipped_at_run_time,
        }
    }
}

/// `test name ... result`, as (name, result).
fn parse_test(line: &str) -> Option<(&str, &str)> {
    line.strip_prefix("test ")?.split_once(" ... ")
}

/// `ok. 5 passed; 0 failed; 1 ignored; …`; a word that is not there counts zero.
fn parse_result(result: &str) -> Counts {
    let numbers = result.split_once(". ").map_or("", |(_, numbers)| numbers);
    let count = |word: &str| {
        numbers
            .split("; ")
            .find_map(|part| part.strip_suffix(word)?.trim().parse().ok())
            .unwrap_or(0)
    };
    Counts {
        passed: count("passed"),
        failed: count("failed"),
        skipped: count("ignored"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(output: &str) -> Tally {
        let mut tally = Tally::default();
        output.lines().for_each(|line| tally.line(line));
        tally
    }

    #[test]
    fn results_of_several_binaries_are_summed() {
        let tally = tally(
            "running 3 tests\n\
             test a::b ... ok\n\
             test a::c ... FAILED\n\
             test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 7 filtered out; \
             finished in 0.10s\n\
             running 2 tests\n\
             test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; \
             finished in 0.00s\n",
        );
        assert_eq!(
            tally.counts(),
            Counts {
                passed: 13,
                failed: 1,
                skipped: 1
            }
        );
        assert_eq!(tally.failures, ["a::c"]);
    }

    #[test]
    fn an_ignored_test_keeps_its_reason() {
        let tally = tally("test big ... ignored, needs 64 GiB\ntest odd ... ignored\n");
        assert_eq!(tally.skips, ["big: needs 64 GiB", "odd: ignored"]);
    }

    #[test]
    fn a_test_that_gives_up_at_run_time_is_skipped_not_passed() {
        let tally = tally(
            "nearwire-test-skipped: xdp_votes: no BPF, needs Linux 5.9\n\
             test afxdp ... nearwire-test-skipped: afxdp: no AF_XDP\n\
             test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; \
             finished in 1.00s\n",
        );
        assert_eq!(
            tally.counts(),
            Counts {
                passed: 3,
                failed: 0,
                skipped: 2
            }
        );
        assert_eq!(
            tally.skips,
            ["xdp_votes: no BPF, needs Linux 5.9", "afxdp: no AF_XDP"]
        );
    }

    #[test]
    fn a_child_process_of_a_test_is_not_a_test() {
        let tally = tally(
            "test holder ... ignored, started by the_next_run_cleans_up\n\
             test result: ok. 1 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; \
             finished in 1.00s\n",
        );
        assert_eq!(
            tally.counts(),
            Counts {
                passed: 1,
                failed: 0,
                skipped: 0
            }
        );
        assert!(tally.skips.is_empty());
    }

    #[test]
    fn other_output_counts_nothing() {
        let tally = tally("testing\ntest result\ntest result: nonsense\n   test x ... FAILED\n");
        assert_eq!(tally.counts(), Counts::default());
        assert!(tally.failures.is_empty());
    }
}
