//! The end of a run: a table of what ran, what was skipped and why, and one closing line.

use std::fmt::{self, Write as _};
use std::time::Duration;

use crate::libtest::Counts;

/// How a step ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Ok,
    OkWith(String),
    Failed(String),
    Skipped(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok => out.write_str("ok"),
            Self::OkWith(remark) => write!(out, "ok: {remark}"),
            Self::Failed(why) => write!(out, "failed: {why}"),
            Self::Skipped(why) => write!(out, "skipped: {why}"),
        }
    }
}

/// One row.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    pub(crate) step: &'static str,
    /// Whether its tests are counted one by one.
    pub(crate) tests: bool,
    pub(crate) outcome: Outcome,
    pub(crate) elapsed: Duration,
    pub(crate) counts: Counts,
    /// `name: reason` of tests that were skipped inside a step that ran.
    pub(crate) skips: Vec<String>,
    pub(crate) failures: Vec<String>,
}

impl Report {
    /// What the step adds to the closing line.
    ///
    /// A step that is not a test counts one. A test step that failed without a failed test (it did
    /// not compile, or a process died) counts one failure beside its tests.
    pub(crate) fn weight(&self) -> Counts {
        let mut counts = if self.tests {
            self.counts
        } else {
            Counts::default()
        };
        match &self.outcome {
            Outcome::Ok | Outcome::OkWith(_) if !self.tests => counts.passed = 1,
            Outcome::Ok | Outcome::OkWith(_) => {}
            Outcome::Failed(_) => counts.failed = counts.failed.max(1),
            Outcome::Skipped(_) => counts.skipped += 1,
        }
        counts
    }
}

/// Whether every step that ran succeeded.
pub(crate) fn succeeded(reports: &[Report]) -> bool {
    reports.iter().all(|report| report.weight().failed == 0)
}

/// The table, the reasons of skipped tests, the names of failed ones and the closing line.
pub(crate) fn render(reports: &[Report]) -> String {
    let mut text = String::new();
    let mut sum = Counts::default();
    let mut tests = 0;
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "{:<12} {:>8} {:>6}  result",
        "step", "seconds", "tests"
    );
    for report in reports {
        sum.add(report.weight());
        let ran = report.counts.passed + report.counts.failed;
        let shown = if report.tests {
            ran.to_string()
        } else {
            "-".to_owned()
        };
        tests += if report.tests { ran } else { 0 };
        let seconds = report.elapsed.as_secs_f64();
        let _ = writeln!(
            text,
            "{:<12} {seconds:>8.1} {shown:>6}  {}",
            report.step, report.outcome
        );
    }
    let seconds: f64 = reports
        .iter()
        .map(|report| report.elapsed.as_secs_f64())
        .sum();
    let _ = writeln!(text, "{:<12} {seconds:>8.1} {tests:>6}", "all");
    list(&mut text, "skipped tests:", reports, |report| &report.skips);
    list(&mut text, "failed tests:", reports, |report| {
        &report.failures
    });
    let _ = write!(
        text,
        "\n{} passed, {} failed, {} skipped",
        sum.passed, sum.failed, sum.skipped
    );
    text
}

fn list(text: &mut String, title: &str, reports: &[Report], of: fn(&Report) -> &[String]) {
    if reports.iter().all(|report| of(report).is_empty()) {
        return;
    }
    let _ = writeln!(text, "\n{title}");
    for report in reports {
        for entry in of(report) {
            let _ = writeln!(text, "  {}: {entry}", report.step);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(step: &'static str, tests: bool, outcome: Outcome, counts: Counts) -> Report {
        Report {
            step,
            tests,
            outcome,
            elapsed: Duration::from_millis(1500),
            counts,
            skips: Vec::new(),
            failures: Vec::new(),
        }
    }

    fn last_line(reports: &[Report]) -> String {
        render(reports)
            .lines()
            .last()
            .unwrap_or_default()
            .to_owned()
    }

    #[test]
    fn the_closing_line_counts_tests_and_other_steps() {
        let reports = [
            report("format", false, Outcome::Ok, Counts::default()),
            report(
                "unit",
                true,
                Outcome::Ok,
                Counts {
                    passed: 40,
                    failed: 0,
                    skipped: 2,
                },
            ),
            report(
                "loom",
                true,
                Outcome::Skipped("none".to_owned()),
                Counts::default(),
            ),
        ];
        assert_eq!(last_line(&reports), "41 passed, 0 failed, 3 skipped");
        assert!(succeeded(&reports));
    }

    #[test]
    fn a_step_that_does_not_compile_is_one_failure() {
        let broken = Outcome::Failed("`cargo test` ended with exit status: 101".to_owned());
        let reports = [report("unit", true, broken, Counts::default())];
        assert_eq!(last_line(&reports), "0 passed, 1 failed, 0 skipped");
        assert!(!succeeded(&reports));
    }

    #[test]
    fn failed_tests_are_not_counted_twice() {
        let failed = Outcome::Failed("`cargo test` ended with exit status: 101".to_owned());
        let counts = Counts {
            passed: 5,
            failed: 2,
            skipped: 0,
        };
        let reports = [report("unit", true, failed, counts)];
        assert_eq!(last_line(&reports), "5 passed, 2 failed, 0 skipped");
    }

    #[test]
    fn reasons_stand_beside_what_was_skipped() {
        let skipped = Outcome::Skipped("needs root".to_owned());
        let mut unit = report("unit", true, Outcome::Ok, Counts::default());
        unit.skips.push("big: needs 64 GiB".to_owned());
        let text = render(&[report("privileged", true, skipped, Counts::default()), unit]);
        assert!(
            text.contains("privileged        1.5      0  skipped: needs root\n"),
            "{text}"
        );
        assert!(
            text.contains("skipped tests:\n  unit: big: needs 64 GiB\n"),
            "{text}"
        );
    }
}
