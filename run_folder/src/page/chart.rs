//! Line charts as SVG. The colours are classes, so that the style sheet of the page gives them for light and dark.

use crate::page::curves::{smoothed, thinned};
use crate::page::numbers::{tick, value};
use std::fmt::Write;

/// Size of a chart, in units of its view box. Text has 12 units, so that it stays legible on a phone.
const WIDTH: f64 = 440.0;
const HEIGHT: f64 = 260.0;
/// Space around the plotted area: left, right, top, bottom.
const LEFT: f64 = 54.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 26.0;
const BOTTOM: f64 = 42.0;

/// Number of buckets that a curve with more points is reduced to.
const BUCKETS: usize = 220;
/// Number of points per curve that show their value under the pointer.
const TOOLTIPS: usize = 20;
/// Number of colours of the style sheet. Further curves repeat them, dashed.
pub const COLORS: usize = 8;
/// Ratio of the largest to the smallest value from which the y axis is logarithmic.
const LOG_FROM: f64 = 50.0;

/// One line of a chart.
#[derive(Clone, Debug, Default)]
pub struct Line {
    /// Name in tooltips.
    pub name: String,
    /// Index of the colour.
    pub color: usize,
    /// Points (x, y). Points that are not finite are left out.
    pub points: Vec<(f64, f64)>,
    /// Text next to each point, for lines whose points are results of their own. Such points get a dot.
    pub labels: Vec<String>,
}

/// A chart.
#[derive(Clone, Debug, Default)]
pub struct Chart {
    /// Title of the x axis, with its unit.
    pub x: String,
    /// Title of the y axis, with its unit.
    pub y: String,
    /// Lines. Later ones cover earlier ones.
    pub lines: Vec<Line>,
    /// Whether long lines are smoothed, over a faint line of the logged values.
    pub is_smoothed: bool,
    /// Whether the y axis stays linear for any values.
    pub is_linear: bool,
}

/// Escapes text for HTML and SVG.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A range of one axis, linear or logarithmic.
#[derive(Clone, Copy)]
struct Axis {
    low: f64,
    high: f64,
    is_log: bool,
}

impl Axis {
    /// Returns the axis of these values, or `None` without values.
    fn of(values: impl Iterator<Item = f64> + Clone, may_be_log: bool, margin: f64) -> Option<Self> {
        let low = values.clone().reduce(f64::min)?;
        let high = values.reduce(f64::max)?;
        if may_be_log && low > 0.0 && high / low > LOG_FROM {
            let room = (high / low).powf(margin);
            return Some(Self { low: low / room, high: high * room, is_log: true });
        }
        let room = if high > low { margin * (high - low) } else { 0.5 * high.abs().max(1e-3) };
        Some(Self { low: low - room, high: high + room, is_log: false })
    }

    /// Returns where a value is, from 0 = low to 1 = high.
    fn share(&self, v: f64) -> f64 {
        match self.is_log {
            true => (v / self.low).ln() / (self.high / self.low).ln(),
            false => (v - self.low) / (self.high - self.low),
        }
    }

    /// Returns round values within the axis, about `count` of them.
    fn ticks(&self, count: usize) -> Vec<f64> {
        if self.is_log {
            let (first, last) = (self.low.log10().floor() as i32, self.high.log10().ceil() as i32);
            let decades = (self.high / self.low).log10();
            let factors: &[f64] = if decades > 3.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
            let skip = (decades / count as f64).ceil().max(1.0) as i32;
            let powers = (first..=last).filter(|power| decades <= 3.0 || power % skip == 0);
            let all = powers.flat_map(|power| factors.iter().map(move |factor| factor * 10_f64.powi(power)));
            return all.filter(|v| (self.low..=self.high).contains(v)).collect();
        }
        let rough = (self.high - self.low) / count as f64;
        let unit = 10_f64.powf(rough.log10().floor());
        let step =
            [1.0, 2.0, 2.5, 5.0, 10.0].iter().map(|f| f * unit).find(|step| *step >= rough).unwrap_or(unit * 10.0);
        let first = (self.low / step).ceil() as i64;
        let last = (self.high / step).floor() as i64;
        (first..=last).map(|i| i as f64 * step).collect()
    }
}

impl Chart {
    /// Renders the chart, or returns `None` if no line has a finite point.
    pub fn svg(&self) -> Option<String> {
        let finite = |line: &Line| -> Vec<(f64, f64)> {
            line.points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite()).collect()
        };
        let points: Vec<Vec<(f64, f64)>> = self.lines.iter().map(finite).collect();
        let is_scatter = self.lines.iter().any(|line| !line.labels.is_empty());
        let margin = if is_scatter { 0.08 } else { 0.0 };
        let x = Axis::of(points.iter().flatten().map(|p| p.0), false, margin)?;
        let y = Axis::of(points.iter().flatten().map(|p| p.1), !self.is_linear, 0.06)?;
        let at = |(px, py): (f64, f64)| {
            let width = WIDTH - LEFT - RIGHT;
            let height = HEIGHT - TOP - BOTTOM;
            (LEFT + width * x.share(px), TOP + height * (1.0 - y.share(py)))
        };
        let mut svg = String::new();
        let title = format!("{} by {}", self.y, self.x);
        let _ = write!(
            svg,
            "<svg class=\"chart\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">",
            escaped(&title)
        );
        let scale = if y.is_log { ", log scale" } else { "" };
        let _ = write!(svg, "<text class=\"title\" x=\"4\" y=\"14\">{}{scale}</text>", escaped(&self.y));
        for v in y.ticks(5) {
            let (_, py) = at((x.low, v));
            let _ = write!(svg, "<path class=\"grid\" d=\"M{LEFT} {py:.1}H{}\"/>", WIDTH - RIGHT);
            let _ =
                write!(svg, "<text class=\"tick end\" x=\"{}\" y=\"{:.1}\">{}</text>", LEFT - 6.0, py + 4.0, tick(v));
        }
        for v in x.ticks(5) {
            let (px, _) = at((v, y.low));
            let base = HEIGHT - BOTTOM;
            let _ = write!(svg, "<path class=\"axis\" d=\"M{px:.1} {base}v4\"/>");
            let _ = write!(svg, "<text class=\"tick middle\" x=\"{px:.1}\" y=\"{}\">{}</text>", base + 17.0, tick(v));
        }
        let _ = write!(svg, "<path class=\"axis\" d=\"M{LEFT} {}H{}\"/>", HEIGHT - BOTTOM, WIDTH - RIGHT);
        let _ = write!(
            svg,
            "<text class=\"title middle\" x=\"{}\" y=\"{}\">{}</text>",
            LEFT + (WIDTH - LEFT - RIGHT) / 2.0,
            HEIGHT - 6.0,
            escaped(&self.x)
        );
        for (line, points) in self.lines.iter().zip(&points) {
            let dash = if line.color >= COLORS { " dashed" } else { "" };
            let _ = write!(svg, "<g class=\"c{}{dash}\">", line.color % COLORS);
            let path = |points: &[(f64, f64)]| {
                let mut path = String::new();
                for (i, point) in thinned(points, BUCKETS).into_iter().enumerate() {
                    let (px, py) = at(point);
                    let _ = write!(path, "{}{px:.1} {py:.1}", if i == 0 { "M" } else { "L" });
                }
                path
            };
            match smoothed(points).filter(|_| self.is_smoothed) {
                Some(smooth) => {
                    let _ = write!(svg, "<path class=\"raw\" d=\"{}\"/>", path(points));
                    let _ = write!(svg, "<path class=\"line\" d=\"{}\"/>", path(&smooth));
                    self.tooltips(&mut svg, line, &smooth, &at);
                }
                None => {
                    let _ = write!(svg, "<path class=\"line\" d=\"{}\"/>", path(points));
                    if points.len() <= TOOLTIPS {
                        for point in points {
                            let (px, py) = at(*point);
                            let _ = write!(svg, "<circle class=\"dot\" cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"3\"/>");
                        }
                    }
                    self.tooltips(&mut svg, line, points, &at);
                }
            }
            svg.push_str("</g>");
        }
        // Labels come last, so that no line covers them.
        for (line, points) in self.lines.iter().zip(&points) {
            for (label, point) in line.labels.iter().zip(points) {
                let (px, py) = at(*point);
                let (anchor, dx) = if px > WIDTH * 0.8 { ("end", -6.0) } else { ("start", 6.0) };
                let _ = write!(
                    svg,
                    "<text class=\"c{} tick {anchor} halo\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                    line.color % COLORS,
                    px + dx,
                    py - 5.0,
                    escaped(label)
                );
            }
        }
        svg.push_str("</svg>");
        Some(svg)
    }

    /// Adds invisible circles that show the value of a point under the pointer.
    fn tooltips(&self, svg: &mut String, line: &Line, points: &[(f64, f64)], at: &dyn Fn((f64, f64)) -> (f64, f64)) {
        for index in framework::data::loader::spread(points.len(), TOOLTIPS) {
            let ((px, py), (x, y)) = (at(points[index]), points[index]);
            let label = line.labels.get(index).map(|label| format!(", {label}")).unwrap_or_default();
            let text = format!("{}{label}\n{}: {}\n{}: {}", line.name, self.x, value(x), self.y, value(y));
            let _ = write!(
                svg,
                "<circle class=\"hit\" cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"9\"><title>{}</title></circle>",
                escaped(&text)
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<(f64, f64)>) -> Chart {
        let line = Line { name: "a<b".into(), points, ..Line::default() };
        Chart { x: "step".into(), y: "loss".into(), lines: vec![line], is_smoothed: true, is_linear: false }
    }

    #[test]
    fn ticks_are_round_and_within_their_axis() {
        let linear = Axis { low: 0.0, high: 1000.0, is_log: false };
        assert_eq!(linear.ticks(5), [0.0, 200.0, 400.0, 600.0, 800.0, 1000.0]);
        let short = Axis { low: 0.5, high: 30.0, is_log: true };
        assert_eq!(short.ticks(5), [0.5, 1.0, 2.0, 5.0, 10.0, 20.0]);
        let long = Axis { low: 1e-6, high: 1e4, is_log: true };
        let ticks = long.ticks(5);
        assert!(ticks.len() <= 6 && ticks.iter().all(|v| v.log10().fract().abs() < 1e-9), "{ticks:?}");
    }

    #[test]
    fn values_over_many_decades_get_a_logarithmic_axis() {
        assert!(chart(vec![(0.0, 1.0), (1.0, 100.0)]).svg().unwrap().contains("log scale"));
        assert!(!chart(vec![(0.0, 1.0), (1.0, 10.0)]).svg().unwrap().contains("log scale"));
        assert!(!chart(vec![(0.0, 0.0), (1.0, 100.0)]).svg().unwrap().contains("log scale"));
        let linear = Chart { is_linear: true, ..chart(vec![(0.0, 1.0), (1.0, 100.0)]) };
        assert!(!linear.svg().unwrap().contains("log scale"));
    }

    #[test]
    fn points_that_are_not_finite_are_left_out_and_text_is_escaped() {
        let svg = chart(vec![(0.0, 1.0), (1.0, f64::NAN), (2.0, 2.0)]).svg().unwrap();
        assert!(!svg.contains("NaN") && svg.contains("a&lt;b") && !svg.contains("a<b"));
        assert_eq!(svg.matches("class=\"hit\"").count(), 2);
        assert_eq!(chart(vec![(0.0, f64::INFINITY)]).svg(), None);
        // A constant has an axis around its value.
        assert!(chart(vec![(5.0, 3.0)]).svg().unwrap().contains("loss: 3"));
    }

    #[test]
    fn long_curves_show_their_mean_over_their_values() {
        let points: Vec<(f64, f64)> = (0..5000).map(|i| (f64::from(i), f64::from(i % 7))).collect();
        let svg = chart(points.clone()).svg().unwrap();
        assert!(svg.contains("class=\"raw\"") && svg.len() < 20_000, "{}", svg.len());
        assert!(!Chart { is_smoothed: false, ..chart(points) }.svg().unwrap().contains("class=\"raw\""));
    }
}
