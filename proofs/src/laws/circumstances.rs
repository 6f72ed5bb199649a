//! Checks that nothing else changes an optimum: the training step, remembered values, the order and the split of a
//! batch, a second evaluation. Also finds losses that read their own target.

use super::TOLERANCE;
use super::statement::errors_of;
use super::table::{Cases, Lookups, Setting};
use super::world::World;
use framework::objective::Objective;
use framework::objective::context::Memory;
use framework::objective::optimum::Optimum;

/// Values that the memory contains in turn.
const REMEMBERED: [f64; 3] = [0.5, 1.5, 4.0];

/// The steps at which the statement is checked: (steps done, steps of the training).
pub fn steps(settles_at: usize) -> Vec<(usize, usize)> {
    // Powers of two find a change at any later step. Tenths find a change at a fraction of the training.
    let powers = (0..=40).map(|k: u32| {
        let step = settles_at.saturating_add((1 << k) - 1);
        (step, step.saturating_mul([1, 2, 10][k as usize % 3]).saturating_add(1))
    });
    let steps = settles_at.saturating_mul(2).saturating_add(1_000_000);
    let tenths = (0..=10).map(move |tenth| ((steps / 10 * tenth).max(settles_at), steps));
    powers.chain(tenths).collect()
}

/// Returns irregular values for a table, the same at every call.
pub fn irregular(count: usize) -> Vec<f64> {
    (0..count).map(|i| ((i + 1) as f64 * 0.754_877_666).fract() - 0.5).collect()
}

/// Returns whether two lists of numbers differ.
pub fn apart(a: &[f64], b: &[f64]) -> bool {
    let largest = a.iter().fold(1.0_f64, |m, v| m.max(v.abs()));
    a.len() != b.len() || a.iter().zip(b).any(|(a, b)| (a - b).abs() > 1e-9 * largest || (a - b).is_nan())
}

/// Returns the first fault that one world shows.
pub fn fault<'a>(
    objective: &'a dyn Objective,
    optimum: &Optimum,
    world: &'a World,
    setting: &Setting<'a>,
) -> Option<String> {
    let worlds = std::slice::from_ref(world);
    let cases = Cases::new(objective, worlds, setting);
    if let Some(fault) = cases.fault {
        return Some(fault.into());
    }
    let values = irregular(cases.rows.len() * cases.free);
    if cases.leaks(&values) {
        return Some("the loss adds its target to a prediction that it scores".into());
    }
    let losses = cases.losses(&values);
    if apart(&losses, &cases.losses(&values)) {
        return Some("two evaluations of one batch differ".into());
    }
    let count = cases.count();
    let orders: [Vec<usize>; 3] =
        [(0..count).rev().collect(), (0..count / 2).collect(), (count / 3..count).step_by(3).collect()];
    for order in orders.iter().filter(|order| !order.is_empty()) {
        let expected: Vec<f64> = order.iter().map(|i| losses[*i]).collect();
        if apart(&expected, &cases.subset(order).losses(&values)) {
            return Some("the loss of a sample depends on the other samples of its batch, or on their order".into());
        }
    }
    let gradient = cases.gradient(&values, &Lookups::default());
    let memories = REMEMBERED.map(|value| {
        let memory: Memory = cases.remembered.iter().map(|name| (name.clone(), value)).collect();
        Setting { memory, ..setting.clone() }
    });
    let memories = memories.into_iter().filter(|setting| !setting.memory.is_empty());
    let steps = steps(objective.settles_at()).into_iter().map(|steps| Setting { steps, ..setting.clone() });
    for other in memories.chain(steps) {
        let changed = Cases::new(objective, worlds, &other);
        if changed.rows == cases.rows && !apart(&gradient, &changed.gradient(&values, &Lookups::default())) {
            continue;
        }
        // The loss differs, but it may have the same optimum.
        let failure = errors_of(objective, optimum, world, &other);
        if failure.error > TOLERANCE {
            let (step, steps) = other.steps;
            let when = match other.memory.first_key_value() {
                Some((name, value)) => format!("with {value} remembered as \"{name}\""),
                None => format!("at step {step} of {steps}"),
            };
            return Some(format!("{when}:\n{}", failure.what));
        }
    }
    None
}
