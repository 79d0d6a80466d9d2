//! `nearwire conform`.

use super::Failure;
use super::asking::AskingArgs;
use super::output::{self, Output};
use clap::ValueEnum;
use consensus::NodeId;
use consensus::conformance::{self, Case, Need, Shape, Software, Target, Verdict, corpus};
use consensus::simulation::{IS_COMPILED_IN, Mutation, mutate};
use nearwire::conform::{Asking, Claims, Session};
use nearwire::kv::glob;
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::ops::RangeInclusive;
use std::time::Duration;

/// How long an answer is waited for, sending again, unless the command line says otherwise.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// Test an acceptor against the conformance corpus: packets in, packets out, and the region after.
///
/// With --target whatever answers there is asked over the network; each case takes a group of its
/// own that nobody has used. With --engine an engine of this program is tested in this process.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  nearwire conform --engine software
  nearwire conform --target 127.0.0.1:4747
  nearwire conform --target 10.0.0.7:4747 --case 'a-lease-*'
  nearwire conform --target 10.0.0.9:4747 --profile hardware --groups 0-1023 \\
      --window-slots 64 --value-bytes 128
  nearwire conform --target 127.0.0.1:4747 --output json | jq '.failures[]'

A nearwire node says itself what it is. It has groups to test if `[region] conformance_groups` is
set; a group is good for one case. docs/conformance.md is for the maker of a device.")]
pub(crate) struct Args {
    /// The acceptor to test.
    #[arg(
        long,
        env = "NEARWIRE_TARGET",
        value_name = "HOST:PORT",
        conflicts_with = "engine"
    )]
    target: Option<String>,
    /// The engine to test, in this process, in shapes of its own.
    #[arg(
        long,
        env = "NEARWIRE_ENGINE",
        value_enum,
        conflicts_with_all = [
            "silence_ms", "groups", "window_slots", "value_bytes", "lease_ms", "epoch", "profile",
            "no_read",
        ]
    )]
    engine: Option<Engine>,
    /// Play only the cases whose names match.
    #[arg(long, env = "NEARWIRE_CASE", value_name = "GLOB", default_value = "*")]
    case: String,
    /// Print the cases instead of playing them.
    #[arg(long, env = "NEARWIRE_LIST")]
    list: bool,
    /// A defect for the engine to commit, to see that the cases find it.
    #[arg(long, env = "NEARWIRE_MUTATION", value_name = "NAME")]
    mutation: Option<String>,
    #[command(flatten)]
    device: DeviceArgs,
}

/// What a device is and how it is asked.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Target")]
struct DeviceArgs {
    #[command(flatten)]
    asking: AskingArgs,
    /// How long there must be nothing where nothing is expected, in milliseconds.
    #[arg(
        long,
        env = "NEARWIRE_SILENCE_MS",
        value_name = "MS",
        default_value_t = 150,
        value_parser = clap::value_parser!(u64).range(1..=60_000)
    )]
    silence_ms: u64,
    /// Groups that may be used, the others are left alone.
    #[arg(long, env = "NEARWIRE_GROUPS", value_name = "FIRST-LAST", value_parser = range)]
    groups: Option<RangeInclusive<u16>>,
    /// Slots that the target keeps.
    #[arg(
        long,
        env = "NEARWIRE_WINDOW_SLOTS",
        value_name = "N",
        value_parser = clap::value_parser!(u64).range(2..=1 << 20)
    )]
    window_slots: Option<u64>,
    /// Longest value that the target takes.
    #[arg(
        long,
        env = "NEARWIRE_VALUE_BYTES",
        value_name = "N",
        value_parser = clap::value_parser!(u16).range(64..=32_768)
    )]
    value_bytes: Option<u16>,
    /// How long the target's leases last, in milliseconds; 0 if it grants none.
    #[arg(long, env = "NEARWIRE_LEASE_MS", value_name = "MS")]
    lease_ms: Option<u32>,
    /// The membership that the target is in.
    #[arg(long, env = "NEARWIRE_EPOCH", value_name = "N")]
    epoch: Option<u32>,
    /// What the target implements.
    #[arg(long, env = "NEARWIRE_PROFILE", value_enum, default_value_t = Profile::Full)]
    profile: Profile,
    /// The target does not answer Read: look with Fetch and Prepare instead.
    #[arg(long, env = "NEARWIRE_NO_READ")]
    no_read: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Engine {
    /// The step that every software node takes.
    Software,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Profile {
    /// Everything in docs/protocol.md.
    Full,
    /// The hardware profile: ballots and slots of 32 bits.
    Hardware,
}

fn range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.trim().parse(), last.trim().parse()) {
        (Ok(first), Ok(last)) if first <= last => Ok(first..=last),
        _ => Err("write FIRST-LAST, such as 1-1024".into()),
    }
}

pub(crate) fn main(args: &Args, output: Output) -> anyhow::Result<()> {
    let all = corpus()?;
    let pattern = args.case.as_bytes();
    let chosen = all
        .iter()
        .filter(|case| glob::matches(pattern, case.name.as_bytes()));
    let cases: Vec<&Case> = chosen.collect();
    if cases.is_empty() {
        return Err(
            Failure::usage(format!("no case is named like {:?}", args.case))
                .remedy("`nearwire conform --list` prints all of them")
                .into(),
        );
    }
    if args.list {
        return list(&cases, output);
    }
    let summary = match (&args.target, args.engine) {
        (Some(target), _) => over_the_wire(args, target, &cases)?,
        (None, Some(Engine::Software)) => in_process(args.mutation.as_deref(), &cases)?,
        (None, None) => {
            return Err(
                Failure::usage("nothing to test: neither --target nor --engine is given")
                    .remedy("add --target HOST:PORT or --engine software")
                    .into(),
            );
        }
    };
    summary.print(output)
}

fn list(cases: &[&Case], output: Output) -> anyhow::Result<()> {
    match output {
        Output::Table => {
            let texts: Vec<_> = cases.iter().map(ToString::to_string).collect();
            output::line(texts.join("\n").trim_end())
        }
        Output::Json => {
            let names = cases.iter().map(|case| {
                serde_json::json!({
                    "case": case.name,
                    "file": case.file,
                    "line": case.line,
                    "why": case.why,
                    "text": case.to_string(),
                })
            });
            output::json(&names.collect::<Vec<_>>())
        }
    }
}

fn in_process(mutation: Option<&str>, cases: &[&Case]) -> anyhow::Result<Summary> {
    let mut summary = Summary::new("engine software");
    mutate(mutation.map(defect).transpose()?);
    for case in cases {
        // A case counts as one, in however many shapes it is played.
        let mut verdict = Verdict::Skipped("no shape of the engine fits".into());
        let mut device = String::new();
        for shape in Shape::ALL {
            match Software::play(case, shape)? {
                Verdict::Passed => verdict = Verdict::Passed,
                Verdict::Failed(failures) => {
                    verdict = Verdict::Failed(failures);
                    device = format!("W={} V={}", shape.window, shape.value_bytes);
                    break;
                }
                other @ (Verdict::Skipped(_) | Verdict::Unshown(_)) => {
                    if verdict != Verdict::Passed {
                        verdict = other;
                    }
                }
            }
        }
        summary.take(case, verdict, &device);
    }
    mutate(None);
    Ok(summary)
}

fn defect(name: &str) -> anyhow::Result<Mutation> {
    let mutation = Mutation::from_name(name).ok_or_else(|| {
        let names: Vec<_> = Mutation::ALL.iter().map(|one| one.name()).collect();
        Failure::usage(format!("there is no mutation {name:?}"))
            .remedy(format!("known here: {}", names.join(", ")))
    })?;
    if !IS_COMPILED_IN {
        return Err(
            Failure::unsupported("this build has no deliberate defects compiled in")
                .remedy("cargo build --features simulation")
                .into(),
        );
    }
    Ok(mutation)
}

fn over_the_wire(args: &Args, target: &str, cases: &[&Case]) -> anyhow::Result<Summary> {
    if args.mutation.is_some() {
        return Err(
            Failure::usage("--mutation is for --engine: the target commits its own")
                .remedy(
                    "start a node that was built with `--features simulation` with \
                     NEARWIRE_MUTATION=NAME in its own environment",
                )
                .into(),
        );
    }
    let address = resolve(target)?;
    let device = &args.device;
    let asking = Asking {
        key: device.asking.keys()?.map(|keys| keys.signs),
        timeout: device.asking.timeout().unwrap_or(ANSWER_LIMIT),
        silence: Duration::from_millis(device.silence_ms),
    };
    let claims = Claims {
        window_slots: device.window_slots,
        value_bytes: device.value_bytes.map(usize::from),
        lease_ns: device.lease_ms.map(|ms| u64::from(ms) * 1_000_000),
        epoch: device.epoch,
        groups: device.groups.clone(),
        is_narrow: device.profile == Profile::Hardware,
        has_no_read: device.no_read,
    };
    let mut session = Session::open(address, asking, &claims)?;
    let found = session.target();
    let about = format!("W={} V={}", found.window, found.value_bytes);
    let mut summary = Summary::new(&format!("node {} at {address}", NodeId(found.node)));
    let found = *found;
    let verdicts = session.play(cases)?;
    for (case, verdict) in cases.iter().zip(verdicts) {
        summary.take(case, verdict, &about);
    }
    summary.limits = limits(cases, &found);
    Ok(summary)
}

/// What the cases do not show of a target like this, though its kind could be shown to do it.
fn limits(cases: &[&Case], target: &Target) -> Vec<String> {
    let needs = || cases.iter().flat_map(|case| &case.needs);
    let window = needs().filter_map(|need| match need {
        Need::Window(slots) => Some(*slots),
        _ => None,
    });
    let window = window.max().unwrap_or(0);
    let is_small = |need: &Need| matches!(need, Need::Window(slots) if target.window < *slots);
    let large = cases.iter().filter(|case| case.needs.iter().any(is_small));
    let large = large.count();
    let mut limits = Vec::new();
    if large > 0 {
        limits.push(format!(
            "this is a test in part: {large} of {} cases need a window of more than {} slots; set \
             the device up with {window}",
            cases.len(),
            target.window
        ));
    }
    let is_old = |need: &Need| matches!(need, Need::Epoch(_)) && need.lacking(target).is_some();
    if needs().any(is_old) {
        limits.push(format!(
            "not shown: that requests of older memberships are dropped; its own is {}, so set the \
             device up with 2 or more (--epoch)",
            target.epoch
        ));
    }
    limits
}

fn resolve(text: &str) -> anyhow::Result<SocketAddr> {
    let unusable = |why: &dyn std::fmt::Display| {
        Failure::usage(format!("--target {text}: {why}"))
            .remedy("write HOST:PORT, such as 127.0.0.1:4747 or [::1]:4747")
    };
    let mut found = text.to_socket_addrs().map_err(|error| unusable(&error))?;
    let address = found.find(|address| address.port() != 0);
    Ok(address.ok_or_else(|| unusable(&"there is no address with a port"))?)
}

/// How the cases went.
#[derive(Serialize)]
struct Summary {
    tested: String,
    cases: usize,
    passed: usize,
    failed: usize,
    skipped: usize,
    /// They make sense, but could not be judged.
    not_shown: usize,
    failures: Vec<Row>,
    skips: Vec<Skip>,
    unshown: Vec<Skip>,
    /// What no case has shown, in sentences.
    limits: Vec<String>,
}

/// One field that was otherwise.
#[derive(Serialize)]
struct Row {
    case: String,
    file: String,
    line: usize,
    step: usize,
    sent: String,
    device: String,
    field: String,
    offset: Option<usize>,
    expected: String,
    got: String,
}

#[derive(Serialize)]
struct Skip {
    case: String,
    why: String,
}

impl Summary {
    fn new(tested: &str) -> Self {
        Self {
            tested: tested.into(),
            cases: 0,
            passed: 0,
            failed: 0,
            skipped: 0,
            not_shown: 0,
            failures: Vec::new(),
            skips: Vec::new(),
            unshown: Vec::new(),
            limits: Vec::new(),
        }
    }

    fn take(&mut self, case: &Case, verdict: Verdict, device: &str) {
        self.cases += 1;
        match verdict {
            Verdict::Passed => self.passed += 1,
            Verdict::Failed(failures) => {
                self.failed += 1;
                let rows = failures
                    .into_iter()
                    .map(|failure| Row::new(failure, device));
                self.failures.extend(rows);
            }
            Verdict::Skipped(why) => {
                self.skipped += 1;
                self.skips.push(Skip {
                    case: case.name.clone(),
                    why,
                });
            }
            Verdict::Unshown(why) => {
                self.not_shown += 1;
                self.unshown.push(Skip {
                    case: case.name.clone(),
                    why,
                });
            }
        }
    }

    fn print(&self, output: Output) -> anyhow::Result<()> {
        match output {
            Output::Json => output::json(self)?,
            Output::Table => self.print_table()?,
        }
        let (failed, cases) = (self.failed, self.cases);
        if failed == 0 && self.not_shown > 0 {
            let text = format!("{} of {cases} cases could not be judged", self.not_shown);
            return Err(Failure::unsupported(text)
                .remedy("play them again with --case on a machine that has time")
                .into());
        }
        if failed == 0 && self.passed == 0 {
            let text = format!("none of {cases} cases can be played on {}", self.tested);
            return Err(Failure::unsupported(text)
                .remedy("choose other cases with --case, or set the device up otherwise")
                .into());
        }
        if failed == 0 {
            return Ok(());
        }
        Err(
            Failure::failed(format!("{} fails {failed} of {cases} cases", self.tested))
                .remedy(
                    "`nearwire conform --list --case NAME` prints a case; docs/conformance.md says \
                     how to read it",
                )
                .into(),
        )
    }

    fn print_table(&self) -> anyhow::Result<()> {
        if !self.failures.is_empty() {
            let head = ["case", "at", "step", "field", "byte", "expected", "got"];
            let rows = self.failures.iter().map(|row| {
                [
                    row.case.clone(),
                    format!("{}:{}", row.file, row.line),
                    row.sent.clone(),
                    row.field.clone(),
                    row.offset.map_or("-".into(), |offset| offset.to_string()),
                    row.expected.clone(),
                    row.got.clone(),
                ]
            });
            output::line(&output::table(head, rows))?;
            output::line("")?;
        }
        for (what, skips) in [("not for it", &self.skips), ("not shown", &self.unshown)] {
            let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
            for skip in skips {
                *reasons.entry(&skip.why).or_default() += 1;
            }
            for (why, count) in reasons {
                output::line(&format!("{count} {what}: {why}"))?;
            }
        }
        for limit in &self.limits {
            output::line(limit)?;
        }
        output::line(&format!(
            "{}: {} cases, {} passed, {} failed, {} skipped, {} not shown",
            self.tested, self.cases, self.passed, self.failed, self.skipped, self.not_shown
        ))
    }
}

impl Row {
    fn new(failure: conformance::Failure, device: &str) -> Self {
        Self {
            case: failure.case,
            file: failure.file,
            line: failure.line,
            step: failure.step,
            sent: failure.text,
            device: device.into(),
            field: failure.field,
            offset: failure.offset,
            expected: failure.expected,
            got: failure.got,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(verdict: Verdict) -> Summary {
        let mut summary = Summary::new("a device");
        let cases = corpus().expect("the corpus");
        summary.take(&cases[0], Verdict::Passed, "");
        summary.take(&cases[1], verdict, "");
        summary
    }

    #[test]
    fn what_could_not_be_judged_is_no_pass() {
        let error = summary(Verdict::Unshown("it was late".into()))
            .print(Output::Json)
            .expect_err("nobody knows");
        assert_eq!(error.to_string(), "1 of 2 cases could not be judged");
        let skipped = summary(Verdict::Skipped("it has no key".into()));
        assert!(skipped.print(Output::Json).is_ok());
    }
}
