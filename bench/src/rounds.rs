//! Rounds: floor and system in turns, so that both see the same neighbours.
//!
//! Machines are shared, and their speed drifts by more than what is measured here. So a ratio is
//! taken within a round, and the median over the rounds is what counts.

use crate::load::{Sample, latencies};
use crate::report::{self, Measured};
use hdrhistogram::Histogram;

/// One side of a round.
#[derive(Clone, Debug)]
pub struct Turn {
    /// What the client measured.
    pub sample: Sample,
    /// CPU time of the serving side per request in microseconds; `None` if it could not be read.
    pub cpu_us_per_op: Option<f64>,
    /// CPU time of the whole machine per request in microseconds, whoever spent it; `None` if it
    /// could not be read.
    pub machine_cpu_us_per_op: Option<f64>,
}

/// What the same packets cost when the other side only sends them back.
#[derive(Clone, Debug)]
pub struct Floors {
    /// The UDP echo, both sides blocking.
    pub blocking: Turn,
    /// The UDP echo waiting as the system does, where the system polls or lingers.
    pub alike: Option<Turn>,
    /// The echo by a program on the interface, where the system has such; the client waits as it
    /// does for the system.
    pub xdp: Option<Turn>,
}

/// What was measured next to each other.
#[derive(Clone, Debug)]
pub struct Round {
    /// The floors.
    pub floors: Floors,
    /// The cluster.
    pub system: Turn,
}

/// The median, or `None` of nothing. Of an even number of values, the mean of the middle two.
pub fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    match values.len() % 2 {
        1 => Some(upper),
        _ => Some(f64::midpoint(upper, values[middle - 1])),
    }
}

/// What the rounds come to.
pub fn measured(rounds: &[Round]) -> Measured {
    let system =
        |pick: &dyn Fn(&Turn) -> Option<f64>| median(rounds.iter().filter_map(|r| pick(&r.system)));
    let latency = |quantile: f64| system(&|turn| latency_us(turn, quantile));
    Measured {
        p50_us: latency(0.5),
        p90_us: latency(0.9),
        p99_us: latency(0.99),
        p999_us: latency(0.999),
        p9999_us: latency(0.9999),
        max_us: rounds
            .iter()
            .filter_map(|round| latency_us(&round.system, 1.0))
            .reduce(f64::max),
        ops_per_s: system(&|turn| Some(turn.sample.per_s())),
        cpu_us_per_op: system(&|turn| turn.cpu_us_per_op),
        machine_cpu_us_per_commit: system(&|turn| turn.machine_cpu_us_per_op),
        lost: Some(rounds.iter().map(|round| round.system.sample.lost).sum()),
        requests_per_datagram: system(&|turn| {
            let sent = turn.sample.sent;
            ratio(Some(sent.requests as f64), Some(sent.datagrams as f64))
        }),
        floors: floors(rounds),
        ratio_p50: median(rounds.iter().filter_map(|round| {
            ratio(
                latency_us(&round.system, 0.5),
                latency_us(&round.floors.blocking, 0.5),
            )
        })),
        ratio_rate: median(rounds.iter().filter_map(|round| {
            ratio(
                Some(round.system.sample.per_s()),
                Some(round.floors.blocking.sample.per_s()),
            )
        })),
        ratio_p50_alike: median(rounds.iter().filter_map(|round| {
            ratio(
                latency_us(&round.system, 0.5),
                latency_us(round.floors.alike.as_ref()?, 0.5),
            )
        })),
        ratio_rate_alike: median(rounds.iter().filter_map(|round| {
            ratio(
                Some(round.system.sample.per_s()),
                Some(round.floors.alike.as_ref()?.sample.per_s()),
            )
        })),
        ratio_sync: None,
    }
}

fn floors(rounds: &[Round]) -> report::Floors {
    let floor = |pick: &dyn Fn(&Turn) -> Option<f64>| {
        median(rounds.iter().filter_map(|r| pick(&r.floors.blocking)))
    };
    let alike = |pick: &dyn Fn(&Turn) -> Option<f64>| {
        median(rounds.iter().filter_map(|r| pick(r.floors.alike.as_ref()?)))
    };
    let xdp = |pick: &dyn Fn(&Turn) -> Option<f64>| {
        median(rounds.iter().filter_map(|r| pick(r.floors.xdp.as_ref()?)))
    };
    report::Floors {
        udp_echo_p50_us: floor(&|turn| latency_us(turn, 0.5)),
        udp_echo_p99_us: floor(&|turn| latency_us(turn, 0.99)),
        udp_echo_ops_per_s: floor(&|turn| Some(turn.sample.per_s())),
        udp_echo_cpu_us_per_op: floor(&|turn| turn.cpu_us_per_op),
        udp_echo_machine_cpu_us_per_op: floor(&|turn| turn.machine_cpu_us_per_op),
        udp_echo_lost: Some(
            rounds
                .iter()
                .map(|round| round.floors.blocking.sample.lost)
                .sum(),
        ),
        udp_echo_alike_p50_us: alike(&|turn| latency_us(turn, 0.5)),
        udp_echo_alike_ops_per_s: alike(&|turn| Some(turn.sample.per_s())),
        xdp_echo_p50_us: xdp(&|turn| latency_us(turn, 0.5)),
        xdp_echo_p99_us: xdp(&|turn| latency_us(turn, 0.99)),
        xdp_echo_ops_per_s: xdp(&|turn| Some(turn.sample.per_s())),
        xdp_echo_machine_cpu_us_per_op: xdp(&|turn| turn.machine_cpu_us_per_op),
        ..report::Floors::default()
    }
}

/// All rounds' latencies together, for pictures: percentiles of it mix good and bad rounds.
pub fn merged<'a>(turns: impl IntoIterator<Item = &'a Turn>) -> Histogram<u64> {
    let mut all = latencies();
    for turn in turns {
        all.add(&turn.sample.latencies)
            .expect("all samples have the same bounds");
    }
    all
}

fn latency_us(turn: &Turn, quantile: f64) -> Option<f64> {
    (!turn.sample.latencies.is_empty()).then(|| turn.sample.latency_us(quantile))
}

fn ratio(of: Option<f64>, to: Option<f64>) -> Option<f64> {
    let (of, to) = of.zip(to)?;
    (to > 0.0).then(|| of / to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Sent;
    use std::time::Duration;

    fn turn(us: u64, count: u64) -> Turn {
        let mut histogram = latencies();
        histogram.record_n(us * 1000, count).expect("in bounds");
        Turn {
            sample: Sample {
                latencies: histogram,
                completed: count,
                measured: Duration::from_secs(1),
                lost: 1,
                sent: Sent {
                    datagrams: 10,
                    requests: 25,
                },
            },
            cpu_us_per_op: Some(us as f64 / 10.0),
            machine_cpu_us_per_op: Some(us as f64 / 5.0),
        }
    }

    fn close(value: Option<f64>, expected: f64) -> bool {
        value.is_some_and(|value| (value / expected - 1.0).abs() < 0.001)
    }

    #[test]
    fn ratios_are_taken_within_rounds() {
        // The machine became three times slower in the second and third round: the ratio of the
        // medians is 2 / 1, but within each round the system took twice the floor's time.
        let round = |floor, system| Round {
            floors: Floors {
                blocking: turn(floor, 1000),
                alike: None,
                xdp: None,
            },
            system: turn(system, 500),
        };
        let measured = measured(&[round(50, 100), round(150, 300), round(160, 320)]);
        assert!(close(measured.ratio_p50, 2.0), "{measured:?}");
        assert!(close(measured.ratio_rate, 0.5), "{measured:?}");
        assert!(
            close(measured.p50_us, 300.0) && close(measured.max_us, 320.0),
            "{measured:?}"
        );
        assert!(
            close(measured.floors.udp_echo_p50_us, 150.0),
            "{measured:?}"
        );
        assert!(close(measured.requests_per_datagram, 2.5), "{measured:?}");
        assert_eq!((measured.lost, measured.ratio_p50_alike), (Some(3), None));
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median([]), None);
    }

    #[test]
    fn a_round_without_answers_has_no_latency() {
        let silent = Round {
            floors: Floors {
                blocking: turn(1, 0),
                alike: None,
                xdp: None,
            },
            system: turn(1, 0),
        };
        let measured = measured(&[silent]);
        assert_eq!(
            (measured.p50_us, measured.ratio_p50, measured.ratio_rate),
            (None, None, None)
        );
    }
}
