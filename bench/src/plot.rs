//! Pictures of latencies, the percentiles and the distribution, system against floor; and of a rate
//! over time.

use hdrhistogram::Histogram;
use kuva::backend::png::PngBackend;
use kuva::backend::svg::SvgBackend;
use kuva::plot::LinePlot;
use kuva::plot::legend::LegendPosition;
use kuva::render::annotations::{ReferenceLine, ShadedRegion};
use kuva::render::layout::{Layout, TickFormat};
use kuva::render::plots::Plot;
use kuva::render::render::{Scene, render_multiple};
use std::sync::Arc;

/// Points per line at most.
const POINTS: usize = 400;
/// The percentile axis ends here: 99.99 %.
const NINES: f64 = 4.0;
const NS_PER_US: f64 = 1000.0;
const COLOURS: [&str; 6] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9",
];

/// For what is marked on a [`timeline`].
const SHADES: [&str; 20] = [
    "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f",
    "#bcbd22", "#17becf", "#aec7e8", "#ffbb78", "#98df8a", "#ff9896", "#c5b0d5", "#c49c94",
    "#f7b6d2", "#393b79", "#637939", "#843c39",
];

/// A line: latencies in nanoseconds under a name.
#[derive(Clone, Copy)]
pub struct Series<'a> {
    /// What the legend calls it.
    pub name: &'a str,
    /// The latencies.
    pub latencies: &'a Histogram<u64>,
}

/// A picture that can be written in either format.
pub struct Picture {
    scene: Scene,
}

impl Picture {
    /// The picture as SVG text.
    pub fn to_svg(&self) -> String {
        SvgBackend::new().render_scene(&self.scene)
    }

    /// The picture as a PNG file's bytes.
    ///
    /// # Errors
    /// Says why it cannot be drawn.
    pub fn to_png(&self) -> Result<Vec<u8>, String> {
        PngBackend::new().render_scene(&self.scene)
    }
}

/// Latency over percentile; the percentile axis gives each further nine the same room. `None` if
/// nothing was measured.
pub fn percentiles(title: &str, series: &[Series<'_>]) -> Option<Picture> {
    let line = |latencies: &Histogram<u64>| -> Vec<(f64, f64)> {
        // Beyond the last request there is nothing to show.
        let nines = (latencies.len().max(10) as f64).log10().min(NINES);
        (0..=POINTS)
            .map(|step| {
                let x = nines * step as f64 / POINTS as f64;
                let quantile = 1.0 - 10f64.powf(-x);
                (x, latencies.value_at_quantile(quantile) as f64 / NS_PER_US)
            })
            .collect()
    };
    let percentile = |nines: f64| {
        let digits = (nines - 2.0).max(0.0) as usize;
        format!("{:.digits$} %", 100.0 * (1.0 - 10f64.powf(-nines)))
    };
    let plots = lines(series, line)?;
    let layout = Layout::auto_from_plots(&plots)
        .with_x_label("percentile")
        .with_y_label("latency, µs")
        .with_log_y()
        .with_x_axis_min(0.0)
        .with_x_axis_max(NINES)
        .with_x_tick_step(1.0)
        .with_x_tick_format(TickFormat::Custom(Arc::new(percentile)))
        .with_y_tick_format(TickFormat::Custom(Arc::new(plain)));
    let layout = layout.with_legend_position(LegendPosition::InsideTopLeft);
    Some(draw(title, plots, layout))
}

/// The share of requests that took at most so long. `None` if nothing was measured.
pub fn distribution(title: &str, series: &[Series<'_>]) -> Option<Picture> {
    let line = |latencies: &Histogram<u64>| -> Vec<(f64, f64)> {
        let step = |step: usize| {
            // To 99.99 %: the longest outlier would squeeze everything else.
            let quantile = 0.9999 * step as f64 / POINTS as f64;
            let us = latencies.value_at_quantile(quantile) as f64 / NS_PER_US;
            (us.max(0.001), quantile)
        };
        (0..=POINTS).map(step).collect()
    };
    let plots = lines(series, line)?;
    let layout = Layout::auto_from_plots(&plots)
        .with_x_label("latency, µs")
        .with_y_label("share of requests")
        .with_log_x()
        .with_y_axis_min(0.0)
        .with_y_axis_max(1.0)
        .with_x_tick_format(TickFormat::Custom(Arc::new(plain)))
        .with_y_tick_format(TickFormat::Custom(Arc::new(|share| {
            format!("{:.0} %", share * 100.0)
        })));
    let layout = layout.with_legend_position(LegendPosition::InsideBottomRight);
    Some(draw(title, plots, layout))
}

/// A time with a name.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    /// What the picture calls it.
    pub name: &'a str,
    /// When it began, in seconds.
    pub from_s: f64,
    /// When it ended.
    pub to_s: f64,
}

/// A rate over seconds, with times marked by shades of a colour for each name. `None` without a
/// point.
pub fn timeline(
    title: &str,
    rate: &str,
    points: &[(f64, f64)],
    spans: &[Span<'_>],
) -> Option<Picture> {
    let (last, _) = points.last()?;
    let line = LinePlot::new()
        .with_data(points.to_vec())
        .with_color("#000000");
    let mut plots = vec![Plot::Line(line.with_stroke_width(1.5))];
    let mut names: Vec<&str> = spans.iter().map(|span| span.name).collect();
    names.sort_unstable();
    names.dedup();
    let colour = |name: &str| {
        let place = names.iter().position(|other| *other == name).unwrap_or(0);
        SHADES[place % SHADES.len()]
    };
    // A name has its colour from a line of no length.
    plots.extend(names.iter().map(|name| {
        let nowhere = LinePlot::new()
            .with_data(vec![points[0], points[0]])
            .with_color(colour(name));
        Plot::Line(nowhere.with_stroke_width(4.0).with_legend(*name))
    }));
    let mut layout = Layout::auto_from_plots(&plots)
        .with_x_label("seconds")
        .with_y_label(rate)
        .with_x_axis_min(0.0)
        .with_x_axis_max(last.max(1.0))
        .with_y_axis_min(0.0)
        .with_legend_position(LegendPosition::OutsideRightTop);
    for span in spans {
        let shade = ShadedRegion::vertical(span.from_s, span.to_s)
            .with_color(colour(span.name))
            .with_opacity(0.4);
        let begin = ReferenceLine::vertical(span.from_s).with_color(colour(span.name));
        layout = layout.with_shaded_region(shade).with_reference_line(begin);
    }
    let layout = layout
        .with_title(title)
        .with_width(1280.0)
        .with_height(420.0);
    Some(Picture {
        scene: render_multiple(plots, layout),
    })
}

fn lines(
    series: &[Series<'_>],
    line: impl Fn(&Histogram<u64>) -> Vec<(f64, f64)>,
) -> Option<Vec<Plot>> {
    let plots: Vec<Plot> = series
        .iter()
        .zip(COLOURS.iter().cycle())
        .filter(|(series, _)| !series.latencies.is_empty())
        .map(|(series, colour)| {
            let line = LinePlot::new()
                .with_data(line(series.latencies))
                .with_color(*colour);
            Plot::Line(line.with_stroke_width(2.0).with_legend(series.name))
        })
        .collect();
    (!plots.is_empty()).then_some(plots)
}

fn draw(title: &str, plots: Vec<Plot>, layout: Layout) -> Picture {
    let layout = layout
        .with_title(title)
        .with_width(720.0)
        .with_height(420.0);
    Picture {
        scene: render_multiple(plots, layout),
    }
}

/// A number of microseconds without exponent or needless digits.
fn plain(value: f64) -> String {
    if value >= 1.0 {
        format!("{value:.0}")
    } else {
        format!("{value}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::latencies;

    fn skewed(base_ns: u64) -> Histogram<u64> {
        let mut histogram = latencies();
        for step in 1..=20_000u64 {
            let tail = if step % 500 == 0 { base_ns * 8 } else { 0 };
            histogram
                .record(base_ns + step * 2 + tail)
                .expect("in bounds");
        }
        histogram
    }

    #[test]
    fn both_pictures_show_every_series_and_whole_percentiles() {
        let (system, floor) = (skewed(90_000), skewed(45_000));
        let series = [
            Series {
                name: "software",
                latencies: &system,
            },
            Series {
                name: "UDP echo",
                latencies: &floor,
            },
        ];
        let pictures = [
            percentiles("commit latency", &series),
            distribution("commit latency", &series),
        ];
        for picture in pictures.into_iter().flatten() {
            let svg = picture.to_svg();
            assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
            for text in [
                "software",
                "UDP echo",
                "commit latency",
                COLOURS[0],
                COLOURS[1],
            ] {
                assert!(svg.contains(text), "{text} is missing");
            }
            let png = picture.to_png().expect("a raster");
            assert_eq!(&png[..4], b"\x89PNG");
        }
        let percentiles = percentiles("", &series).expect("something was measured");
        assert!(percentiles.to_svg().contains("99.99 %"));
    }

    #[test]
    fn a_timeline_names_what_is_marked_and_shades_it() {
        let points = [(0.5, 100.0), (1.5, 0.0), (2.5, 90.0)];
        let span = |name, from_s| Span {
            name,
            from_s,
            to_s: from_s + 0.5,
        };
        let spans = [span("loss", 0.5), span("kill", 1.0), span("loss", 2.0)];
        let svg = timeline("a run", "operations per second", &points, &spans)
            .expect("there are points")
            .to_svg();
        for text in [
            "a run",
            "operations per second",
            "loss",
            "kill",
            SHADES[0],
            SHADES[1],
        ] {
            assert!(svg.contains(text), "{text} is missing");
        }
        let plain = timeline("a run", "operations per second", &points, &[]);
        let rectangles = |svg: &str| svg.matches("<rect").count();
        let without = rectangles(&plain.expect("there are points").to_svg());
        assert!(rectangles(&svg) >= without + spans.len());
        assert!(timeline("", "", &[], &spans).is_none());
    }

    #[test]
    fn nothing_measured_makes_no_picture_and_one_value_makes_one() {
        let mut one = latencies();
        for pictures in [0, 1] {
            let series = [Series {
                name: "software",
                latencies: &one,
            }];
            let drawn = percentiles("", &series)
                .iter()
                .chain(&distribution("", &series))
                .count();
            assert_eq!(drawn, pictures * 2);
            one.record(50_000).expect("in bounds");
        }
    }
}
