//! The result, for people, programs and documents.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Context as _;
use consensus::simulation::Mutation;
use serde_json::json;

use super::alone::Alone;
use super::catcher::{Budget, Catch, Extent};

/// The head of the table of defects, as the documentation has it.
const HEAD: &str = "| Mutation | Breaks | Caught by |\n|---|---|---|\n";
/// The head of the table of invariants, as the documentation has it.
const HEAD_ALONE: &str = "| Invariant | Catches | Within | First |\n|---|---|---|---|\n";

/// What came of one defect.
pub(super) struct Row {
    pub(super) mutation: Mutation,
    /// Who noticed it, in the order of trying.
    pub(super) catches: Vec<(Budget, Catch)>,
    /// Who was asked, and what each might have spent.
    pub(super) tried: Vec<Budget>,
    pub(super) elapsed: Duration,
}

impl Row {
    pub(super) fn is_caught(&self) -> bool {
        !self.catches.is_empty()
    }

    fn by(&self) -> String {
        let told = self.catches.iter().map(|(budget, catch)| {
            let mut told = format!("{}: {}", budget.catcher, catch.by);
            if let Some(Extent { failed, cases, .. }) = catch.extent {
                let _ = write!(told, ", {failed} of {cases} cases");
            }
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

    /// What is suspicious about the way it was caught.
    pub(super) fn warning(&self) -> Option<String> {
        let name = self.mutation.name();
        let extent = self.catches.iter().find_map(|(_, catch)| catch.extent)?;
        let (failed, cases) = (extent.failed, extent.cases);
        if extent.is_broad() {
            Some(format!(
                "{name} fails {failed} of {cases} cases: does it break more than it says?"
            ))
        } else if !extent.shows_rule {
            Some(format!(
                "{name} fails {failed} cases, but none that states its rule"
            ))
        } else {
            None
        }
    }
}

/// What came of one invariant by itself.
pub(super) struct AloneRow {
    pub(super) alone: Alone,
    pub(super) catch: Option<Catch>,
}

/// A row as it is told while others are still tried.
pub(super) fn line(row: &Row) -> String {
    let by = if row.is_caught() {
        row.by()
    } else {
        let tried: Vec<_> = row.tried.iter().map(ToString::to_string).collect();
        format!("NOT CAUGHT by {}", tried.join(", "))
    };
    let seconds = row.elapsed.as_secs_f64();
    format!("{:<28} {seconds:>6.1} s  {by}", row.mutation.name())
}

/// Every row, what is suspicious, and how many escaped.
pub(super) fn text(rows: &[Row]) -> String {
    let mut text = format!("{:<28} {:>8}  caught by\n", "mutation", "seconds");
    for row in rows {
        text.push_str(&line(row));
        text.push('\n');
    }
    for warning in rows.iter().filter_map(Row::warning) {
        let _ = writeln!(text, "warning: {warning}");
    }
    let caught = rows.iter().filter(|row| row.is_caught()).count();
    let _ = write!(text, "{caught} caught, {} escaped", rows.len() - caught);
    text
}

/// An array with an object for each row. `budget` is of the catcher in `by`, and `null` if there is
/// none.
pub(super) fn json(rows: &[Row]) -> anyhow::Result<String> {
    let catch = |(budget, catch): &(Budget, Catch)| {
        json!({
            "catcher": budget.catcher,
            "what": catch.by,
            "failed_cases": catch.extent.map(|extent| extent.failed),
            "cases": catch.extent.map(|extent| extent.cases),
            "seed": catch.seed,
            "events": catch.events,
            "budget": budget.json(),
        })
    };
    let rows: Vec<_> = rows
        .iter()
        .map(|row| {
            let first = row.catches.first();
            let first_catch = first.map(|(_, catch)| catch);
            json!({
                "name": row.mutation.name(),
                "breaks": row.mutation.breaks(),
                "caught": row.is_caught(),
                "by": row.is_caught().then(|| row.by()),
                "budget": first.map(|(budget, _)| budget.json()),
                "seed": first_catch.and_then(|catch| catch.seed),
                "events": first_catch.and_then(|catch| catch.events),
                "catches": row.catches.iter().map(catch).collect::<Vec<_>>(),
                "tried": row.tried.iter().map(Budget::json).collect::<Vec<_>>(),
                "warning": row.warning(),
                "seconds": row.elapsed.as_secs_f64(),
            })
        })
        .collect();
    serde_json::to_string_pretty(&rows).context("write the table")
}

/// The table of defects as the documentation has it.
pub(super) fn markdown(rows: &[Row]) -> String {
    let mut text = HEAD.to_owned();
    for row in rows {
        let (name, breaks) = (row.mutation.name(), row.mutation.breaks());
        let _ = writeln!(text, "| `{name}` | {breaks} | {} |", row.by());
    }
    text
}

/// The table of invariants for people.
pub(super) fn text_alone(rows: &[AloneRow]) -> String {
    let mut text = format!(
        "{:<24} {:<28} {:>6}  first\n",
        "invariant", "catches", "seeds"
    );
    for AloneRow { alone, catch } in rows {
        let (invariant, name, seeds) = (alone.invariant, alone.mutation.name(), alone.seeds);
        let first = catch.as_ref().map_or("NOT CAUGHT".to_owned(), first);
        let _ = writeln!(text, "{invariant:<24} {name:<28} {seeds:>6}  {first}");
    }
    let caught = rows.iter().filter(|row| row.catch.is_some()).count();
    let _ = write!(text, "{caught} catch, {} do not", rows.len() - caught);
    text
}

/// An array with an object for each invariant.
pub(super) fn json_alone(rows: &[AloneRow]) -> anyhow::Result<String> {
    let object = |AloneRow { alone, catch }: &AloneRow| {
        json!({
            "invariant": alone.invariant,
            "name": alone.mutation.name(),
            "caught": catch.is_some(),
            "seed": catch.as_ref().and_then(|catch| catch.seed),
            "events": catch.as_ref().and_then(|catch| catch.events),
            "budget": { "catcher": "sim", "seeds": alone.seeds },
        })
    };
    let rows: Vec<_> = rows.iter().map(object).collect();
    serde_json::to_string_pretty(&rows).context("write the table")
}

/// The table of invariants as the documentation has it.
pub(super) fn markdown_alone(rows: &[AloneRow]) -> String {
    let mut text = HEAD_ALONE.to_owned();
    for AloneRow { alone, catch } in rows {
        let (invariant, name, seeds) = (alone.invariant, alone.mutation.name(), alone.seeds);
        let first = catch.as_ref().map_or("nothing".to_owned(), first);
        let _ = writeln!(text, "| {invariant} | `{name}` | {seeds} seeds | {first} |");
    }
    text
}

fn first(catch: &Catch) -> String {
    let (seed, event) = (catch.seed.unwrap_or(0), catch.events.unwrap_or(0));
    format!("seed {seed}, event {event}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutants::alone::ALONE;
    use crate::mutants::catcher::Limit;

    const DOCUMENT: &str = include_str!("../../../docs/mutations.md");

    fn row(catch: Option<(Budget, Catch)>, tried: Vec<Budget>) -> Row {
        Row {
            mutation: Mutation::ALL[0],
            catches: catch.into_iter().collect(),
            tried,
            elapsed: Duration::from_millis(1500),
        }
    }

    fn budget(catcher: &'static str, limit: Limit) -> Budget {
        Budget { catcher, limit }
    }

    fn caught(by: &str) -> Catch {
        Catch {
            by: by.to_owned(),
            seed: None,
            events: None,
            extent: None,
        }
    }

    fn value(row: Row) -> serde_json::Value {
        let text = json(&[row]).expect("plain values");
        serde_json::from_str(&text).expect("what was written")
    }

    /// The cells of the table of the documentation that begins so.
    fn documented(head: &str) -> Vec<Vec<&'static str>> {
        let (_, table) = DOCUMENT.split_once(head).expect("the document has it");
        let lines = table.lines().take_while(|line| line.starts_with('|'));
        let cells = lines.map(|line| line.trim_matches('|').split('|').map(str::trim).collect());
        cells.collect()
    }

    #[test]
    fn the_documentation_has_every_defect_in_order() {
        let expected: Vec<_> = Mutation::ALL
            .iter()
            .map(|one| (format!("`{}`", one.name()), one.breaks()))
            .collect();
        let rows = documented(HEAD);
        let rows: Vec<_> = rows
            .iter()
            .inspect(|cells| assert!(cells.len() == 3 && !cells[2].is_empty(), "{cells:?}"))
            .map(|cells| (cells[0].to_owned(), cells[1]))
            .collect();
        assert_eq!(rows, expected, "cargo xtask mutants --output markdown");
    }

    #[test]
    fn the_documentation_has_every_invariant_by_itself() {
        let expected: Vec<_> = ALONE
            .iter()
            .map(|one| {
                let (name, seeds) = (one.mutation.name(), one.seeds);
                vec![
                    one.invariant.to_owned(),
                    format!("`{name}`"),
                    format!("{seeds} seeds"),
                ]
            })
            .collect();
        let rows = documented(HEAD_ALONE);
        let rows: Vec<_> = rows.iter().map(|cells| cells[..3].to_vec()).collect();
        assert_eq!(
            rows, expected,
            "cargo xtask mutants --invariants --output markdown"
        );
    }

    #[test]
    fn an_escape_is_told_with_what_was_tried() {
        let tried = vec![
            budget("corpus", Limit::Seconds(60)),
            budget("sim", Limit::Seeds(20)),
        ];
        let text = text(&[row(None, tried.clone())]);
        assert!(
            text.contains("1.5 s  NOT CAUGHT by corpus 60 s, sim 20 seeds"),
            "{text}"
        );
        assert!(text.ends_with("0 caught, 1 escaped"), "{text}");
        let value = value(row(None, tried));
        assert_eq!(value[0]["budget"], serde_json::Value::Null);
        assert_eq!(
            value[0]["tried"][1],
            json!({ "catcher": "sim", "seeds": 20 })
        );
    }

    #[test]
    fn a_seed_its_events_and_the_budget_reach_the_json() {
        let catch = Catch {
            seed: Some(7),
            events: Some(90),
            ..caught("agreement")
        };
        let value = value(row(
            Some((budget("sim", Limit::Seeds(20)), catch)),
            Vec::new(),
        ));
        assert_eq!(value[0]["seed"], 7);
        assert_eq!(value[0]["by"], "sim: agreement, seed 7, 90 events");
        assert_eq!(value[0]["budget"], json!({ "catcher": "sim", "seeds": 20 }));
    }

    #[test]
    fn a_defect_that_fails_most_cases_or_not_its_own_is_suspicious() {
        for (failed, shows_rule, is_suspicious) in
            [(50, true, false), (51, true, true), (1, false, true)]
        {
            let extent = Some(Extent {
                failed,
                cases: 100,
                shows_rule,
            });
            let catch = Catch {
                extent,
                ..caught("a-case")
            };
            let row = row(
                Some((budget("corpus", Limit::Seconds(60)), catch)),
                Vec::new(),
            );
            let text = text(&[row]);
            assert!(text.contains(&format!("a-case, {failed} of 100 cases")));
            assert_eq!(text.contains("warning: "), is_suspicious, "{text}");
        }
    }
}
