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

    /// The longest time without an answer, and the fault that it fell into.
    fn longest_gap(&self) -> Gap {
        let returns = self.returns();
        let gaps = returns.windows(2).map(|two| (two[1] - two[0], two[1]));
        let (ns, ends_ns) = gaps.max().unwrap_or((0, 0));
        let mut begun = self.marks.iter().rev();
        let fault = begun.find(|mark| mark.from_ns <= ends_ns);
        Gap {
            ns,
            fault: fault.map_or("no fault", |mark| mark.fault),
        }
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

/// A time without an answer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Gap {
    ns: u64,
    fault: &'static str,
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.ns as f64 / NS_PER_S;
        write!(f, "longest gap {seconds:.2} s in {}", self.fault)
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
    longest_gap: Gap,
    seconds: f64,
    fates: Fates,
    counts: Vec<u64>,
    /// Clusters whose clients saw what has no order.
    violations: u64,
    /// What is wrong with clusters, violation or not.
    wrong: Vec<String>,
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
            longest_gap: Gap {
                ns: 0,
                fault: "no fault",
            },
            seconds: 0.0,
            fates: Fates::default(),
            counts: vec![0; FAULTS.len()],
            violations: 0,
            wrong: Vec::new(),
        }
    }

    pub(crate) fn is_clean(&self) -> bool {
        self.wrong.is_empty()
    }

    pub(crate) fn has_violation(&self) -> bool {
        self.violations > 0
    }

    /// Takes what came of a cluster, says so, and writes its picture. The logs stay if something is
    /// wrong.
    pub(crate) fn add(&mut self, number: u64, chapter: &Chapter, directory: &Path) {
        let failed = chapter.failed();
        let returns = chapter.returns();
        let gap = chapter.longest_gap();
        let unanswered = (chapter.history.len() - returns.len()) as u64;
        let seconds = returns.last().map_or(0.0, |at_ns| *at_ns as f64 / NS_PER_S);
        println!(
            "cluster {number}: {}: {} faults in {seconds:.0} s, {} operations, {unanswered} \
             without an answer, {gap}{}",
            chapter.setting.describe(),
            chapter.marks.len(),
            chapter.history.len(),
            if failed { ": NOT as it should be" } else { "" },
        );
        if !failed {
            let _ = std::fs::remove_dir_all(directory);
        }
        let title = format!(
            "seed {}, cluster {number}: {}",
            self.seed,
            chapter.setting.describe()
        );
        let picture = directory.with_extension("svg");
        if let Some(timeline) = chapter.timeline(&title) {
            std::fs::write(&picture, timeline.to_svg()).expect("a picture");
        }
        let Judgement { own, outside, .. } = &chapter.judgement;
        let is_violated = own.is_some() || outside.is_some();
        if failed {
            let mut wrong = format!("{title}:\n{}", chapter.story());
            if is_violated {
                let none = || "accepts it, or comes to no end".to_owned();
                let _ = writeln!(
                    wrong,
                    "nearwire's checker: {}\nstateright: {}",
                    own.clone().unwrap_or_else(none),
                    outside.clone().unwrap_or_else(none)
                );
            }
            wrong += chapter.trouble.as_deref().unwrap_or("");
            self.wrong.push(wrong);
        }
        self.violations += u64::from(is_violated);
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
        self.longest_gap = self.longest_gap.max(gap);
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
             {}",
            self.seed,
            self.clusters,
            self.counts.iter().sum::<u64>(),
            self.operations,
            self.seconds,
            self.unanswered,
            self.longest_gap,
        )?;
        write!(
            f,
            "{} violations; stateright judged {:.1} % of the operations, nearwire's checker all",
            self.violations,
            100.0 * self.accepted as f64 / judged
        )?;
        self.wrong
            .iter()
            .try_for_each(|wrong| write!(f, "\n\n{wrong}"))
    }
}
