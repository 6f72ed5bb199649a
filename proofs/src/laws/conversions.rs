//! Compares the conversions and trained scales of an objective with its optimum and with the guidance numbers that its
//! loss trains.

use super::choices::Points;
use super::table::{Cases, Setting};
use super::world::World;
use framework::objective::Objective;
use framework::objective::optimum::{Optimum, ScaleAt};

/// Quantiles of a uniform random number between its ends. Each must lead to a different guidance number.
const BETWEEN: [f64; 2] = [0.37, 0.61];

fn close(a: f64, b: f64) -> bool {
    a == b || (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1.0)
}

/// Returns the scale of a guidance number. If it changes with the progress of decoding, returns the scale furthest from
/// 1.
fn scale_of(scale: &ScaleAt, number: f64) -> f64 {
    let all = (0..=4096).map(|i| scale(Some(number), f64::from(i) / 4096.0));
    all.fold(1.0, |furthest: f64, scale| if (scale - 1.0).abs() > (furthest - 1.0).abs() { scale } else { furthest })
}

/// Returns the first statement about guidance numbers that does not hold.
pub fn fault<'a>(
    objective: &'a dyn Objective,
    optimum: &Optimum,
    world: &'a World,
    setting: &Setting<'a>,
) -> Option<String> {
    let setting = Setting { points: Points::Ends(BETWEEN.to_vec()), ..setting.clone() };
    let cases = Cases::new(objective, std::slice::from_ref(world), &setting);
    let mut numbers: Vec<f64> =
        cases.trained.iter().filter(|row| row.condition.is_some()).filter_map(super::table::Row::number).collect();
    numbers.sort_by(f64::total_cmp);
    numbers.dedup();
    let stated = objective.trained_scales();
    if numbers.is_empty() {
        let claims = objective.guidance_of_scale(2.0).is_some() || stated.is_some();
        return claims.then(|| "the loss trains no guidance number, but the objective converts scales to one".into());
    }
    let Optimum::Tilted(tilt) = optimum else { return None };
    let mut scales = Vec::new();
    for number in numbers {
        let scale = scale_of(&tilt.scale, number);
        let converted = objective.scale_of_guidance(number);
        if !converted.is_some_and(|converted| close(converted, scale)) {
            return Some(format!(
                "guidance number {number:.4} samples scale {scale:.4}, but `scale_of_guidance` returns {converted:.4?}"
            ));
        }
        let back = objective.guidance_of_scale(scale);
        if !back.is_some_and(|back| close(back, number)) {
            return Some(format!(
                "scale {scale:.4} is sampled at guidance number {number:.4}, but `guidance_of_scale` returns {back:.4?}"
            ));
        }
        scales.push(scale);
    }
    let Some([least, most]) = stated else {
        return Some("the loss trains guidance numbers, but `trained_scales` states no range".into());
    };
    let has = |scale: f64| scales.iter().any(|trained| close(*trained, scale));
    let between = scales.iter().filter(|scale| **scale > least && **scale < most && !close(**scale, most)).count();
    if has(least) && has(most) && (close(least, most) || between >= BETWEEN.len()) {
        return None;
    }
    let trained: Vec<String> = scales.iter().map(|scale| format!("{scale:.4}")).collect();
    Some(format!("`trained_scales` states {least:.4} to {most:.4}, but the loss trains {}", trained.join(", ")))
}
