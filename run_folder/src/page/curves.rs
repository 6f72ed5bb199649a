//! Curves of the values that a run logs: by step, by training time and by number of images.

use crate::folder::{EVALUATION_SECONDS, SKIPPED};
use serde::Serialize;
use serde_json::Value;

/// One logged value of a curve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Point {
    /// Completed steps.
    pub step: f64,
    /// Training time in seconds.
    pub seconds: f64,
    /// Number of images that the network was trained on, repetitions included.
    pub images: f64,
    /// Logged value.
    pub value: f64,
}

/// The curve of one logged quantity.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Curve {
    /// Name in `metrics.jsonl`.
    pub name: String,
    /// Points in the order of steps. Values that are not finite are left out.
    pub points: Vec<Point>,
}

/// Keys of a line that are not values of the training.
const WITHOUT_CURVE: [&str; 3] = ["step", SKIPPED, EVALUATION_SECONDS];

/// What the lines of `metrics.jsonl` say.
pub struct Logged {
    pub curves: Vec<Curve>,
    pub step: usize,
    pub seconds: f64,
    pub seconds_per_step: Option<f64>,
    pub skipped: u64,
}

/// Reads the lines of `metrics.jsonl`. The time of a line is the sum of the durations of the intervals up to it; a
/// duration is the number of images in the interval over the logged images per second.
pub fn read(lines: &[Value], samples_per_step: usize) -> Logged {
    let mut curves: Vec<Curve> = Vec::new();
    let (mut last, mut timed, mut seconds, mut skipped, mut paces) = (0.0, 0.0, 0.0, 0, Vec::new());
    for line in lines {
        let (Some(line), Some(step)) = (line.as_object(), line["step"].as_f64()) else { continue };
        if let Some(speed) = line.get("images_per_second").and_then(Value::as_f64).filter(|speed| *speed > 0.0) {
            let pace = samples_per_step as f64 / speed;
            // Lines without a speed, such as measurements, are within an interval.
            seconds += (step - timed).max(0.0) * pace;
            timed = step;
            paces.push(pace);
        }
        skipped += line.get(SKIPPED).and_then(Value::as_u64).unwrap_or_default();
        for (name, value) in line {
            let Some(value) = value.as_f64().filter(|_| !WITHOUT_CURVE.contains(&name.as_str())) else { continue };
            let point = Point { step, seconds, images: step * samples_per_step as f64, value };
            match curves.iter_mut().find(|curve| curve.name == *name) {
                Some(curve) => curve.points.push(point),
                None => curves.push(Curve { name: name.clone(), points: vec![point] }),
            }
        }
        last = step;
    }
    Logged { curves, step: last as usize, seconds, seconds_per_step: median(paces), skipped }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        count if count % 2 == 0 => Some((values[middle - 1] + values[middle]) / 2.0),
        _ => Some(values[middle]),
    }
}

/// Smallest number of points that are smoothed. Fewer are shown as they are.
const LEAST_SMOOTHED: usize = 40;

/// Returns the points smoothed by an exponential moving average over about a fortieth of the curve; `None` for curves
/// with few points.
///
///   mean_i = sum_j (1 - a)^(i - j) y_j / sum_j (1 - a)^(i - j),   a = 2 / (window + 1)
pub fn smoothed(points: &[(f64, f64)]) -> Option<Vec<(f64, f64)>> {
    if points.len() < LEAST_SMOOTHED {
        return None;
    }
    let window = (points.len() as f64 / LEAST_SMOOTHED as f64).max(5.0);
    let keep = 1.0 - 2.0 / (window + 1.0);
    let (mut sum, mut weight) = (0.0, 0.0);
    let mean = |(x, y): &(f64, f64)| {
        sum = keep * sum + y;
        weight = keep * weight + 1.0;
        (*x, sum / weight)
    };
    Some(points.iter().map(mean).collect())
}

/// Reduces a curve to at most about `2 most` points: of each of `most` buckets, the smallest and the largest value. A
/// spike stays visible.
pub fn thinned(points: &[(f64, f64)], most: usize) -> Vec<(f64, f64)> {
    if points.len() <= 2 * most {
        return points.to_vec();
    }
    let mut kept: Vec<(f64, f64)> = vec![points[0]];
    for bucket in points.chunks(points.len().div_ceil(most)) {
        let position = |best: fn(&f64, &f64) -> bool| {
            (0..bucket.len()).reduce(|a, b| if best(&bucket[b].1, &bucket[a].1) { b } else { a }).unwrap_or_default()
        };
        let (low, high) = (position(|new, old| new < old), position(|new, old| new > old));
        kept.extend([bucket[low.min(high)], bucket[low.max(high)]]);
    }
    kept.push(points[points.len() - 1]);
    kept.dedup();
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_number_of_a_line_is_a_curve_of_its_own() {
        let lines = [
            json!({ "step": 2, "loss": 4.0, "images_per_second": 8.0, "skipped": 3 }),
            json!({ "step": 3, "fid": 9.0, "note": "text", "evaluation_seconds": 2.0 }),
            json!({ "step": 4, "loss": null, "images_per_second": 4.0, "skipped": 1 }),
        ];
        let logged = read(&lines, 4);
        assert_eq!((logged.step, logged.skipped), (4, 4));
        let names: Vec<&str> = logged.curves.iter().map(|curve| curve.name.as_str()).collect();
        assert_eq!(names, ["loss", "images_per_second", "fid"]);
        assert_eq!(logged.curves[0].points, [Point { step: 2.0, seconds: 1.0, images: 8.0, value: 4.0 }]);
        assert_eq!(logged.curves[2].points, [Point { step: 3.0, seconds: 1.0, images: 12.0, value: 9.0 }]);
        assert_eq!((logged.seconds, logged.seconds_per_step), (3.0, Some(0.75)));
        assert_eq!(read(&[], 4).seconds_per_step, None);
    }

    #[test]
    fn smoothing_keeps_a_constant_and_starts_at_the_first_value() {
        let constant: Vec<(f64, f64)> = (0..100).map(|i| (f64::from(i), 3.0)).collect();
        assert!(smoothed(&constant).unwrap().iter().all(|(_, y)| (y - 3.0).abs() < 1e-12));
        let step: Vec<(f64, f64)> = (0..100).map(|i| (f64::from(i), if i == 0 { 1.0 } else { 4.0 })).collect();
        let smooth = smoothed(&step).unwrap();
        // Window 5, so a = 1/3: (2/3 + 4) / (2/3 + 1) = 2.8.
        assert_eq!(smooth[0].1, 1.0);
        assert!((smooth[1].1 - 2.8).abs() < 1e-12 && smooth[99].1 > 3.999);
        assert_eq!(smoothed(&step[..39]), None);
    }

    #[test]
    fn thinning_keeps_the_ends_and_the_spikes() {
        let mut points: Vec<(f64, f64)> = (0..10_000).map(|i| (f64::from(i), 1.0)).collect();
        points[5_123].1 = 50.0;
        points[7_777].1 = -50.0;
        let kept = thinned(&points, 100);
        assert!(kept.len() <= 202, "{}", kept.len());
        assert!(kept.contains(&points[0]) && kept.contains(&points[9_999]));
        assert!(kept.contains(&points[5_123]) && kept.contains(&points[7_777]));
        assert!(kept.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert_eq!(thinned(&points[..150], 100), points[..150]);
    }
}
