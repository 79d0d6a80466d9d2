//! What came of a run: for a terminal, and as pictures.

use crate::faults::FAULTS;
use crate::judges::Judgement;
use crate::network::Fates;
use crate::world::{Mark, Setting};
use bench::plot::{self, Span};
use comfy_table::{Cell, CellAlignment, Table, presets};
use nearwire::history::Operation;
use std::fmt;
use std::fmt::Write as _;
use std::path::Path;

const NS_PER_S: f64 = 1e9;
/// A point of the timeline is the rate in so long.
const BIN_NS: u64 = 250_000_000;

/// What came of one cluster.
pub(crate) struct Chapter {
    pub(crate) setting: Setting,
    pub(crate) marks: Vec<Mark>,
    pub(crate) history: Vec<Operation>,
    pub(crate) judgement: Judgement,
    /// Something that did not come about.
    pub(crate) trouble: Option<String>,
    pub(crate) fates: Fates,
}

impl Chapter {
    pub(crate) fn failed(&self) -> bool {
        self.trouble.is_some() || !self.judgement.is_clean()
    }

    /// Moments at which answers came, in order.
    fn returns(&self) -> Vec<u64> {
        let returns = self.history.iter().filter_map(|one| one.returned_ns);
        let mut returns: Vec<u64> = returns.collect();
        returns.sort_unstable();
        returns
    }

    fn timeline(&self, title: &str) -> Option<plot::Picture> {
        let returns = self.returns();
        let bins = returns.last()? / BIN_NS + 1;
        let mut counts = vec![0u64; bins as usize];
        for at_ns in returns {
            counts[(at_ns / BIN_NS) as usize] += 1;
        }
        let bin_s = BIN_NS as f64 / NS_PER_S;
        let points: Vec<(f64, f64)> = (0..)
            .zip(&counts)
            .map(|(bin, count)| ((f64::from(bin) + 0.5) * bin_s, *count as f64 / bin_s))
            .collect();
        let spans: Vec<Span<'_>> = self
            .marks
            .iter()
            .map(|mark| Span {
                name: mark.fault,
                from_s: mark.from_ns as f64 / NS_PER_S,
                to_s: mark.to_ns as f64 / NS_PER_S,
            })
            .collect();
        plot::timeline(title, "operations per second", &points, &spans)
    }

    fn story(&self) -> String {
        let mut story = String::new();
        for mark in &self.marks {
            let _ = writeln!(
                story,
                "  {:>8.3} to {:>8.3} s  {:<16} {}",
                mark.from_ns as f64 / NS_PER_S,
                mark.to_ns as f64 / NS_PER_S,
                mark.fault,
                mark.details
            );
        }
        story
    }
}

/// What came of all clusters of a run.
pub(crate) struct Report {
    seed: u64,
    clusters: u64,
    operations: u64,
    unanswered: u64,
    accepted: u64,
    undecided: u64,
    longest_gap_ns: u64,
    seconds: f64,
    fates: Fates,
    counts: Vec<u64>,
    violations: Vec<String>,
    troubles: Vec<String>,
}

impl Report {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            seed,
            clusters: 0,
            operations: 0,
            unanswered: 0,
            accepted: 0,
            undecided: 0,
            longest_gap_ns: 0,
            seconds: 0.0,
            fates: Fates::default(),
            counts: vec![0; FAULTS.len()],
            violations: Vec::new(),
            troubles: Vec::new(),
        }
    }

    pub(crate) fn is_clean(&self) -> bool {
        self.violations.is_empty() && self.troubles.is_empty()
    }

    pub(crate) fn has_violation(&self) -> bool {
        !self.violations.is_empty()
    }

    /// What is wrong, and what led to it.
    pub(crate) fn violations(&self) -> String {
        let wrong = [&self.violations[..], &self.troubles[..]].concat();
        wrong.join("\n\n")
    }

    /// Takes what came of a cluster, says so, and writes its picture. The logs stay if something is
    /// wrong.
    pub(crate) fn add(&mut self, number: u64, chapter: Chapter, directory: &Path) {
        let failed = chapter.failed();
        let returns = chapter.returns();
        let gap_ns = returns.windows(2).map(|two| two[1] - two[0]).max();
        let unanswered = (chapter.history.len() - returns.len()) as u64;
        let seconds = returns.last().map_or(0.0, |at_ns| *at_ns as f64 / NS_PER_S);
        println!(
            "cluster {number}: {}, {}: {} faults in {seconds:.0} s, {} operations, {unanswered} \
             without an answer, longest gap {:.2} s{}",
            chapter.setting.durability.name(),
            chapter.setting.engines(),
            chapter.marks.len(),
            chapter.history.len(),
            gap_ns.unwrap_or(0) as f64 / NS_PER_S,
            if failed { ": NOT as it should be" } else { "" },
        );
        if !failed {
            let _ = std::fs::remove_dir_all(directory);
        }
        let title = format!(
            "seed {}, cluster {number}: {}, {}",
            self.seed,
            chapter.setting.durability.name(),
            chapter.setting.engines()
        );
        let picture = directory.with_extension("svg");
        if let Some(timeline) = chapter.timeline(&title) {
            std::fs::write(&picture, timeline.to_svg()).expect("a picture");
        }
        let of_seed = format!(
            "seed {}, cluster {number} ({title}):\n{}",
            self.seed,
            chapter.story()
        );
        let Judgement { own, outside, .. } = &chapter.judgement;
        if own.is_some() || outside.is_some() {
            let none = || "accepts it, or comes to no end".to_owned();
            self.violations.push(format!(
                "{of_seed}nearwire's checker: {}\nstateright: {}",
                own.clone().unwrap_or_else(none),
                outside.clone().unwrap_or_else(none)
            ));
        }
        if let Some(trouble) = &chapter.trouble {
            self.troubles.push(format!("{of_seed}{trouble}"));
        }
        if failed {
            let mut text = String::new();
            for one in &chapter.history {
                let _ = writeln!(
                    text,
                    "{} {} {:?} client {} {one}",
                    one.key.escape_ascii(),
                    one.invoked_ns,
                    one.returned_ns,
                    one.client
                );
            }
            std::fs::write(directory.join("history"), text).expect("a file");
            std::fs::write(directory.join("faults"), chapter.story()).expect("a file");
        }
        self.clusters += 1;
        self.operations += chapter.history.len() as u64;
        self.unanswered += unanswered;
        self.accepted += chapter.judgement.accepted;
        self.undecided += chapter.judgement.undecided;
        self.longest_gap_ns = self.longest_gap_ns.max(gap_ns.unwrap_or(0));
        self.seconds += seconds;
        self.fates.add(&chapter.fates);
        for mark in &chapter.marks {
            let place = FAULTS.iter().position(|fault| fault.name == mark.fault);
            self.counts[place.expect("it is in the table")] += 1;
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["FAULT", "TIMES", "WHAT"]);
        for (fault, count) in FAULTS.iter().zip(&self.counts) {
            table.add_row([
                Cell::new(fault.name),
                Cell::new(count).set_alignment(CellAlignment::Right),
                Cell::new(fault.what),
            ]);
        }
        writeln!(f, "{table}")?;
        let Fates {
            passed,
            blocked,
            lost,
            doubled,
            delayed,
        } = self.fates;
        writeln!(
            f,
            "frames: {passed} passed, {blocked} blocked, {lost} lost, {doubled} doubled, {delayed} \
             overtaken"
        )?;
        let judged = (self.accepted + self.undecided).max(1) as f64;
        writeln!(
            f,
            "seed {}: {} clusters, {} faults, {} operations in {:.0} s, {} without an answer, \
             longest gap {:.2} s",
            self.seed,
            self.clusters,
            self.counts.iter().sum::<u64>(),
            self.operations,
            self.seconds,
            self.unanswered,
            self.longest_gap_ns as f64 / NS_PER_S,
        )?;
        write!(
            f,
            "{} violations; stateright judged {:.1} % of the operations, nearwire's checker all",
            self.violations.len(),
            100.0 * self.accepted as f64 / judged
        )?;
        if self.is_clean() {
            return Ok(());
        }
        write!(f, "\n\n{}", self.violations())
    }
}
