//! Lines, and which of them were run.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, ensure};
use serde_json::json;

/// Of a hundred lines, as many have to be covered.
const LEAST_PERCENT: u64 = 95;
/// The corpus' reader and player stand here: no part of an acceptor or a replica.
const HARNESS: &str = "conformance";

/// How many lines there are, and how many of them were run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Sum {
    pub(super) lines: u64,
    pub(super) covered: u64,
}

impl Sum {
    fn of<'a>(lines: impl IntoIterator<Item = &'a bool>) -> Self {
        let mut sum = Self::default();
        for was_run in lines {
            sum.lines += 1;
            sum.covered += u64::from(*was_run);
        }
        sum
    }

    fn and(self, other: Self) -> Self {
        Self {
            lines: self.lines + other.lines,
            covered: self.covered + other.covered,
        }
    }

    /// In hundredths of a percent, rounded down: 94.999 is not 95.
    const fn basis_points(self) -> u64 {
        match (self.covered * 10_000).checked_div(self.lines) {
            Some(points) => points,
            None => 0,
        }
    }

    fn percent(self) -> f64 {
        self.basis_points() as f64 / 100.0
    }
}

/// Whether each line that can be run was, by file.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Lines(BTreeMap<String, BTreeMap<usize, bool>>);

impl Lines {
    /// Reads lcov's format; files are named from `sources`, others left out.
    pub(super) fn parse(lcov: &str, sources: &Path) -> anyhow::Result<Self> {
        let mut files: BTreeMap<String, BTreeMap<usize, bool>> = BTreeMap::new();
        let mut file = None;
        for text in lcov.lines() {
            if let Some(path) = text.strip_prefix("SF:") {
                let inside = Path::new(path).strip_prefix(sources).ok();
                file = inside.map(|path| path.display().to_string());
            } else if let Some(rest) = text.strip_prefix("DA:")
                && let Some(file) = &file
            {
                let mut numbers = rest.split(',').map(str::parse::<u64>);
                let (Some(Ok(line)), Some(Ok(count))) = (numbers.next(), numbers.next()) else {
                    anyhow::bail!("read `{text}` of {file}");
                };
                let lines = files.entry(file.clone()).or_default();
                *lines.entry(line as usize).or_default() |= count > 0;
            }
        }
        ensure!(
            !files.is_empty(),
            "no line of {} is known",
            sources.display()
        );
        Ok(Self(files))
    }

    /// All files together.
    pub(super) fn sum(&self) -> Sum {
        Sum::of(self.0.values().flat_map(BTreeMap::values))
    }
}

/// What is printed.
pub(super) struct Report<'a> {
    pub(super) root: &'a Path,
    /// Where the files are, from the root.
    pub(super) sources: &'a str,
    pub(super) seeds: u64,
    pub(super) all: Lines,
    /// What each part has alone.
    pub(super) alone: Vec<(&'static str, Sum)>,
}

impl Report<'_> {
    /// Whether enough lines are covered.
    pub(super) fn is_enough(&self) -> bool {
        self.all.sum().basis_points() >= LEAST_PERCENT * 100
    }

    /// With and without the harness: the second is what votes, leads and learns.
    fn halves(&self) -> (Sum, Sum) {
        let mut halves = (Sum::default(), Sum::default());
        for (file, lines) in &self.all.0 {
            let sum = Sum::of(lines.values());
            if file.starts_with(HARNESS) {
                halves.1 = halves.1.and(sum);
            } else {
                halves.0 = halves.0.and(sum);
            }
        }
        halves
    }

    pub(super) fn text(&self) -> anyhow::Result<String> {
        let mut text = format!(
            "{:<28} {:>6} {:>8} {:>7}\n",
            "file", "lines", "covered", "%"
        );
        let mut row = |name: &str, sum: Sum| {
            let (lines, covered, percent) = (sum.lines, sum.covered, sum.percent());
            let _ = writeln!(text, "{name:<28} {lines:>6} {covered:>8} {percent:>7.2}");
        };
        for (file, lines) in &self.all.0 {
            row(file, Sum::of(lines.values()));
        }
        let (runtime, harness) = self.halves();
        row("all", self.all.sum());
        row("without conformance", runtime);
        row("conformance", harness);
        for (part, sum) in &self.alone {
            row(&format!("{part} alone"), *sum);
        }
        let _ = writeln!(text, "\nnot covered, with {} seeds:", self.seeds);
        for (file, line, source) in self.uncovered()? {
            let _ = writeln!(text, "{}/{file}:{line}: {source}", self.sources);
        }
        if !self.is_enough() {
            let _ = writeln!(text, "\nless than {LEAST_PERCENT} % is covered");
        }
        Ok(text)
    }

    pub(super) fn json(&self) -> anyhow::Result<String> {
        let told = |sum: Sum| json!({"lines": sum.lines, "covered": sum.covered, "percent": sum.percent()});
        let (runtime, harness) = self.halves();
        let files = self.all.0.iter().map(|(file, lines)| {
            let mut told = told(Sum::of(lines.values()));
            told["file"] = format!("{}/{file}", self.sources).into();
            told
        });
        let alone = self.alone.iter();
        let alone = alone.map(|(part, sum)| ((*part).to_owned(), told(*sum)));
        let uncovered = self.uncovered()?;
        let uncovered = uncovered.iter().map(|(file, line, source)| {
            json!({"file": format!("{}/{file}", self.sources), "line": line, "text": source})
        });
        let report = json!({
            "seeds": self.seeds,
            "least_percent": LEAST_PERCENT,
            "is_enough": self.is_enough(),
            "all": told(self.all.sum()),
            "without_conformance": told(runtime),
            "conformance": told(harness),
            "alone": alone.collect::<serde_json::Map<_, _>>(),
            "files": files.collect::<Vec<_>>(),
            "uncovered": uncovered.collect::<Vec<_>>(),
        });
        serde_json::to_string_pretty(&report).context("write the report")
    }

    /// File, number and text of each line that was not run.
    fn uncovered(&self) -> anyhow::Result<Vec<(&str, usize, String)>> {
        let mut uncovered = Vec::new();
        for (file, lines) in &self.all.0 {
            let path = self.root.join(self.sources).join(file);
            let text =
                fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            let text: Vec<&str> = text.lines().collect();
            for (line, _) in lines.iter().filter(|(_, was_run)| !**was_run) {
                let source = line.checked_sub(1).and_then(|at| text.get(at));
                let source = source.map_or("", |source| source.trim());
                uncovered.push((file.as_str(), *line, source.to_owned()));
            }
        }
        Ok(uncovered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LCOV: &str = "\
SF:/w/consensus/src/acceptor.rs
DA:10,3
DA:11,0
end_of_record
SF:/w/consensus/src/conformance/text.rs
DA:1,1
end_of_record
SF:/w/consensus/src/acceptor.rs
DA:10,0
DA:12,1
end_of_record
SF:/w/host/src/main.rs
DA:1,0
end_of_record
";

    fn lines(lcov: &str) -> anyhow::Result<Lines> {
        Lines::parse(lcov, Path::new("/w/consensus/src"))
    }

    #[test]
    fn a_line_is_covered_if_it_was_run_anywhere() {
        let lines = lines(LCOV).expect("lcov's format");
        let acceptor = [(10, true), (11, false), (12, true)];
        assert_eq!(lines.0["acceptor.rs"], BTreeMap::from(acceptor));
        let (sum, count) = (lines.sum(), lines.0.len());
        assert_eq!((sum.lines, sum.covered, count), (4, 3, 2));
    }

    #[test]
    fn nothing_known_is_an_error_and_so_is_a_number_that_is_none() {
        assert!(lines("").is_err());
        assert!(lines("SF:/w/host/src/main.rs\nDA:1,0\n").is_err());
        assert!(lines("SF:/w/consensus/src/acceptor.rs\nDA:x,0\n").is_err());
    }

    #[test]
    fn little_less_than_enough_is_not_enough() {
        let of = |covered| Sum {
            lines: 100_000,
            covered,
        };
        assert_eq!(of(94_999).basis_points(), 9499);
        assert_eq!(of(95_000).basis_points(), 9500);
        assert_eq!(Sum::default().basis_points(), 0);
    }

    #[test]
    fn the_harness_is_told_apart() {
        let report = Report {
            root: Path::new("/w"),
            sources: "consensus/src",
            seeds: 1,
            all: lines(LCOV).expect("lcov's format"),
            alone: Vec::new(),
        };
        let (runtime, harness) = report.halves();
        assert_eq!((runtime.lines, harness.lines), (3, 1));
        assert!(!report.is_enough());
    }
}
