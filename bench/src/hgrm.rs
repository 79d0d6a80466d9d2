//! HdrHistogram's percentile distribution as text (`.hgrm`), which its plotters read.

use hdrhistogram::Histogram;
use std::io::{self, Write};

/// Lines per halving of the distance to 100 %.
const TICKS_PER_HALF_DISTANCE: u32 = 5;
const NS_PER_US: f64 = 1000.0;

/// Writes a histogram of nanoseconds as a percentile distribution in microseconds.
///
/// # Errors
/// Those of `out`.
pub fn write(histogram: &Histogram<u64>, mut out: impl Write) -> io::Result<()> {
    let heads = ["Value", "Percentile", "TotalCount", "1/(1-Percentile)"];
    writeln!(
        out,
        "{:>12} {:>14} {:>10} {:>14}\n",
        heads[0], heads[1], heads[2], heads[3]
    )?;
    let mut count = 0;
    for step in histogram.iter_quantiles(TICKS_PER_HALF_DISTANCE) {
        count += step.count_since_last_iteration();
        let value = step.value_iterated_to() as f64 / NS_PER_US;
        let quantile = step.quantile_iterated_to();
        if quantile < 1.0 {
            let odds = 1.0 / (1.0 - quantile);
            writeln!(
                out,
                "{value:>12.3} {quantile:>14.12} {count:>10} {odds:>14.2}"
            )?;
        } else {
            writeln!(out, "{value:>12.3} {quantile:>14.12} {count:>10}")?;
        }
    }
    let (mean, deviation) = (histogram.mean() / NS_PER_US, histogram.stdev() / NS_PER_US);
    writeln!(
        out,
        "#[Mean    = {mean:>12.3}, StdDeviation   = {deviation:>12.3}]"
    )?;
    let max = histogram.max() as f64 / NS_PER_US;
    writeln!(
        out,
        "#[Max     = {max:>12.3}, Total count    = {:>12}]",
        histogram.len()
    )?;
    // Sub-buckets that keep the promised digits: the power of two above 2·10^digits.
    let digits = u32::from(histogram.sigfig());
    let sub_buckets = (2 * 10u64.pow(digits)).next_power_of_two();
    let mut buckets = 1;
    let mut covered = sub_buckets;
    while covered <= histogram.high() {
        covered = covered.saturating_mul(2);
        buckets += 1;
    }
    writeln!(
        out,
        "#[Buckets = {buckets:>12}, SubBuckets     = {sub_buckets:>12}]"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distribution_is_in_microseconds_and_ends_at_every_count() {
        let mut histogram = Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("bounds");
        for us in 1..=1000 {
            histogram.record(us * 1000).expect("in bounds");
        }
        let mut out = Vec::new();
        write(&histogram, &mut out).expect("memory");
        let text = String::from_utf8(out).expect("text");
        let rows: Vec<Vec<f64>> = text
            .lines()
            .skip(2)
            .take_while(|line| !line.starts_with('#'))
            .map(|line| {
                line.split_whitespace()
                    .map(|n| n.parse().expect("a number"))
                    .collect()
            })
            .collect();
        let median = rows
            .iter()
            .find(|row| row[1] == 0.5)
            .expect("a line for the median");
        assert!(
            (median[0] - 500.0).abs() < 1.0 && median[2] == 500.0,
            "{median:?}"
        );
        let last = rows.last().expect("lines");
        assert_eq!((last[1], last[2], last.len()), (1.0, 1000.0, 3));
        assert!(rows.is_sorted_by(|a, b| a[1] < b[1] && a[0] <= b[0]));
        assert!(
            text.contains("#[Max     =     1000.") && text.contains("SubBuckets"),
            "{text}"
        );
    }
}
