//! `nearwire bench step`.

use super::output::Output;
use super::{Failure, output};
use bench::machine::Machine;
use bench::step::{Measured, Row, Setting, Times, to_json, to_table};
use consensus::region::Layout;
use datapath::Placement;
use nearwire::bench_target::Engine;
use nearwire::config::Region;
use nearwire::step_trial::{CASES, Case, InKernel, InProcess, Trial, TrialError};
use nearwire::xdp::{OBJECT, XdpError, capabilities};

/// What one request costs an acceptor, without network and client.
///
/// A run shows an acceptor one request for each slot of its ring, and then looks for the effect of
/// every single one: a vote in each slot, a new promise, a decided record, an answer of the right
/// kind. If one is missing the command fails, since it would have timed another path.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
How XDP is timed: the kernel runs the program on one request after the other (BPF_PROG_TEST_RUN with
`repeat`) and says how long one took on average. A repeat is shown what the last one left, so a
second program first puts the next request into the packet (its tag was computed before) and goes on
with the acceptor by a tail call. Three runs of each round tell these apart:

  wrapped_ns        put the request in place, then the acceptor
  wrapped_floor_ns  put the request in place, then XDP_TX
  floor_ns          XDP_TX alone: what a program costs that does nothing but send back
  ns                wrapped_ns - (wrapped_floor_ns - floor_ns): without what puts it in place
  ratio             ns / floor_ns
  wrapped_ratio     wrapped_ns / wrapped_floor_ns, which is flattered by what puts it in place

`software` is the same step in this process, from datagram to datagram: no Ethernet, IP and UDP and
no floor. Neither has a network around it; `bench lat` and `bench rate` have.

Examples:
  nearwire bench step --engine software
  sudo nearwire bench step --engine xdp --output json
  sudo chrt -f 10 nearwire bench step                      nobody else on the CPU meanwhile
  sudo nearwire bench step --window-slots 256 --region-value-bytes 64
                                                           a ring that fits into the caches")]
pub(crate) struct Args {
    /// What steps the acceptor; several, separated by commas, are measured one after the other.
    #[arg(
        long,
        env = "NEARWIRE_ENGINE",
        value_enum,
        value_delimiter = ',',
        default_value = "software,xdp"
    )]
    engine: Vec<Engine>,
    /// How often each side is run.
    #[arg(
        long,
        env = "NEARWIRE_ROUNDS",
        value_name = "N",
        default_value_t = 20,
        value_parser = clap::value_parser!(u16).range(1..=10_000)
    )]
    rounds: u16,
    /// Slots of the acceptor's ring, a power of two, and so the requests of a run: a ring that is
    /// larger than the processor's caches makes each request dearer.
    #[arg(
        long,
        env = "NEARWIRE_WINDOW_SLOTS",
        value_name = "N",
        default_value_t = Region::default().window_slots
    )]
    window_slots: u64,
    /// Longest value of the region in bytes, which decides how far apart its ring entries are.
    /// Longer messages are left out.
    #[arg(
        long,
        env = "NEARWIRE_REGION_VALUE_BYTES",
        value_name = "N",
        default_value_t = Region::default().value_bytes
    )]
    region_value_bytes: usize,
}

/// What is timed, and by whom.
const fn mode(engine: Engine) -> &'static str {
    match engine {
        Engine::Software => "datagram to datagram in this process",
        Engine::Xdp => "frame to frame in BPF_PROG_TEST_RUN, the attached program by a tail call",
    }
}

pub(crate) fn main(args: &Args, output: Output) -> anyhow::Result<()> {
    let layout = Layout::new(1, args.window_slots, args.region_value_bytes)
        .map_err(|error| Failure::usage(error.to_string()))?;
    // Before this thread is pinned, which would hide the other CPUs.
    let machine = Machine::read();
    let cpus = bench::site::allowed_cpus();
    Placement {
        cpu: cpus.last().copied(),
        ..Placement::default()
    }
    .apply()?;
    let mut rows = Vec::new();
    let mut refused = None;
    for engine in &args.engine {
        for (message, value_bytes) in CASES {
            if value_bytes > args.region_value_bytes {
                continue;
            }
            for is_keyed in [false, true] {
                let case = Case {
                    message,
                    value_bytes,
                    is_keyed,
                };
                let (row, failure) = args.row(*engine, case, layout, &machine)?;
                rows.push(row);
                refused = refused.or(failure);
            }
        }
    }
    output::bytes(
        match output {
            Output::Json => to_json(&rows) + "\n",
            Output::Table => to_table(&rows),
        }
        .as_bytes(),
    )?;
    match refused {
        Some(failure) if rows.iter().all(|row| row.unsupported.is_some()) => Err(failure.into()),
        _ => Ok(()),
    }
}

impl Args {
    fn row(
        &self,
        engine: Engine,
        case: Case,
        layout: Layout,
        machine: &Machine,
    ) -> anyhow::Result<(Row, Option<Failure>)> {
        let setting = Setting {
            engine: engine.name(),
            mode: mode(engine),
            message: case.message.name(),
            value_bytes: case.value_bytes,
            auth: case.is_keyed,
            window_slots: layout.window(),
            region_value_bytes: layout.value_bytes(),
            rounds: usize::from(self.rounds),
            repeats: layout.window(),
        };
        let measured = match engine {
            Engine::Software => self.software(case, layout),
            Engine::Xdp => {
                let Some(object) = OBJECT else {
                    let failure = no_object();
                    let row = Row::unsupported(setting, failure.to_string(), machine.clone());
                    return Ok((row, Some(failure)));
                };
                self.xdp(object, case, layout)
            }
        };
        match measured {
            Ok(measured) => Ok((Row::new(setting, measured, machine.clone()), None)),
            Err(error) => {
                let failure = failed(error)?;
                Ok((
                    Row::unsupported(setting, failure.to_string(), machine.clone()),
                    Some(failure),
                ))
            }
        }
    }

    fn software(&self, case: Case, layout: Layout) -> Result<Measured, TrialError> {
        let engine = InProcess::new(case, layout)?;
        let mut trial = Trial::new(case, engine, layout.window());
        let rounds = self.rounds(|| trial.run(layout.window()))?;
        Ok(Measured::new(&rounds, layout.window(), None))
    }

    fn xdp(&self, object: &[u8], case: Case, layout: Layout) -> Result<Measured, TrialError> {
        // A layout has at most 2^20 slots.
        let repeats = u32::try_from(layout.window()).unwrap_or(u32::MAX);
        let engine = InKernel::load(object, case, layout, repeats)?;
        let mut trial = Trial::new(case, engine, layout.window());
        let rounds = self.rounds(|| trial.run(layout.window()))?;
        let verified = trial.engine().loaded().verified_instructions()?;
        Ok(Measured::new(&rounds, layout.window(), verified))
    }

    fn rounds(
        &self,
        mut run: impl FnMut() -> Result<Times, TrialError>,
    ) -> Result<Vec<Times>, TrialError> {
        // The first one finds cold caches.
        run()?;
        (0..self.rounds).map(|_| run()).collect()
    }
}

fn no_object() -> Failure {
    Failure::unsupported("time the acceptor in XDP: this build embeds no XDP object").remedy(
        "build nearwire where `cargo xtask ebpf` works, or from sources that fit the committed \
         object",
    )
}

/// What cannot be done here; what went wrong is the error.
fn failed(error: TrialError) -> anyhow::Result<Failure> {
    if let TrialError::Xdp(XdpError::Load(_) | XdpError::Verify(_)) = &error
        && !capabilities::lacking().is_empty()
    {
        return Ok(Failure::unsupported(
            "time the acceptor in XDP: this user may not load programs into the kernel",
        )
        .remedy("run it as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"));
    }
    Err(error.into())
}
