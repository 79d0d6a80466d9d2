//! The result, for people, programs and documents.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Context as _;
use consensus::simulation::Mutation;
use serde_json::json;

use super::catcher::Catch;

/// What came of one defect.
pub(super) struct Row {
    pub(super) mutation: Mutation,
    /// Who noticed it, in the order of trying.
    pub(super) catches: Vec<(&'static str, Catch)>,
    /// What was tried, and for how long it might have gone on.
    pub(super) budget: String,
    pub(super) elapsed: Duration,
}

impl Row {
    pub(super) fn is_caught(&self) -> bool {
        !self.catches.is_empty()
    }

    fn by(&self) -> String {
        let told = self.catches.iter().map(|(catcher, catch)| {
            let mut told = format!("{catcher}: {}", catch.by);
            if let Some(seed) = catch.seed {
                let _ = write!(told, ", seed {seed}");
            }
            if let Some(events) = catch.events {
                let _ = write!(told, ", {events} events");
            }
            told
        });
        told.collect::<Vec<_>>().join("; ")
    }
}

/// A row as it is told while others are still tried.
pub(super) fn line(row: &Row) -> String {
    let by = if row.is_caught() {
        row.by()
    } else {
        format!("NOT CAUGHT by {}", row.budget)
    };
    let seconds = row.elapsed.as_secs_f64();
    format!("{:<28} {seconds:>6.1} s  {by}", row.mutation.name())
}

/// Every row, and how many escaped.
pub(super) fn text(rows: &[Row]) -> String {
    let mut text = format!("{:<28} {:>8}  caught by\n", "mutation", "seconds");
    for row in rows {
        text.push_str(&line(row));
        text.push('\n');
    }
    let caught = rows.iter().filter(|row| row.is_caught()).count();
    let _ = write!(text, "{caught} caught, {} escaped", rows.len() - caught);
    text
}

/// An array with an object for each row.
pub(super) fn json(rows: &[Row]) -> anyhow::Result<String> {
    let catch = |(catcher, catch): &(&str, Catch)| {
        json!({
            "catcher": catcher,
            "what": catch.by,
            "seed": catch.seed,
            "events": catch.events,
        })
    };
    let rows: Vec<_> = rows
        .iter()
        .map(|row| {
            let first = row.catches.first().map(|(_, catch)| catch);
            json!({
                "name": row.mutation.name(),
                "breaks": row.mutation.breaks(),
                "caught": row.is_caught(),
                "by": row.is_caught().then(|| row.by()),
                "seed": first.and_then(|catch| catch.seed),
                "events": first.and_then(|catch| catch.events),
                "catches": row.catches.iter().map(catch).collect::<Vec<_>>(),
                "budget": row.budget,
                "seconds": row.elapsed.as_secs_f64(),
            })
        })
        .collect();
    serde_json::to_string_pretty(&rows).context("write the table")
}

/// A table for the documentation.
pub(super) fn markdown(rows: &[Row]) -> String {
    let mut text = "| Mutation | Breaks | Caught by |\n|---|---|---|\n".to_owned();
    for row in rows {
        let (name, breaks) = (row.mutation.name(), row.mutation.breaks());
        let _ = writeln!(text, "| `{name}` | {breaks} | {} |", row.by());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_escape_is_told_with_what_was_tried() {
        let row = Row {
            mutation: Mutation::ALL[0],
            catches: Vec::new(),
            budget: "corpus, sim 20 seeds".to_owned(),
            elapsed: Duration::from_millis(1500),
        };
        let text = text(&[row]);
        assert!(
            text.contains("1.5 s  NOT CAUGHT by corpus, sim 20 seeds"),
            "{text}"
        );
        assert!(text.ends_with("0 caught, 1 escaped"), "{text}");
    }

    #[test]
    fn a_seed_and_its_events_reach_the_json() {
        let catch = Catch {
            by: "agreement".to_owned(),
            seed: Some(7),
            events: Some(90),
        };
        let row = Row {
            mutation: Mutation::ALL[0],
            catches: vec![("sim", catch)],
            budget: String::new(),
            elapsed: Duration::ZERO,
        };
        let text = json(&[row]).expect("plain values");
        let value: serde_json::Value = serde_json::from_str(&text).expect("what was written");
        assert_eq!(value[0]["seed"], 7);
        assert_eq!(value[0]["by"], "sim: agreement, seed 7, 90 events");
    }
}
