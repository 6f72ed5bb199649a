//! Compares the rest point of training with the statement of an objective.

use super::table::{Cases, Lookups, Row, Setting};
use super::world::World;
use super::{Reached, TOLERANCE, log_softmax, reached_in};
use framework::objective::optimum::{Of, Optimum};
use framework::objective::{NullPrediction, Objective};

/// Largest deviation of one world from the statement, and its description.
#[derive(Clone, Debug, Default)]
pub struct Failure {
    pub error: f64,
    pub what: String,
}

/// Returns the largest error of one world.
pub fn errors_of<'a>(
    objective: &'a dyn Objective,
    optimum: &Optimum,
    world: &'a World,
    setting: &Setting<'a>,
) -> Failure {
    errors(objective, optimum, std::slice::from_ref(world), setting).remove(0)
}

/// Returns the largest error of each world.
pub fn errors<'a>(
    objective: &'a dyn Objective,
    optimum: &Optimum,
    worlds: &'a [World],
    setting: &Setting<'a>,
) -> Vec<Failure> {
    let mut failures = vec![Failure::default(); worlds.len()];
    let mut note = |world: usize, error: f64, what: &dyn Fn() -> String| {
        let failure = &mut failures[world];
        // NaN counts as an infinite error.
        let error = if error.is_nan() { f64::INFINITY } else { error };
        if error > failure.error {
            *failure = Failure { error, what: what() };
        }
    };
    match optimum {
        Optimum::Towards => {
            for (world, error) in directions(objective, worlds, setting) {
                note(world, error, &|| "the first step from the reference does not follow guidance".into());
            }
        }
        Optimum::Conditional | Optimum::Tilted(_) | Optimum::Unbounded(_) | Optimum::Unstated(_) => {
            let null = objective.null();
            let (mut compared, mut nulls) = (vec![0; worlds.len()], vec![0; worlds.len()]);
            for row in reached_in(objective, worlds, setting) {
                if let Optimum::Unbounded(_) = optimum {
                    // A position that is not scored keeps its initial value, so only unstable rows count.
                    compared[row.world] += usize::from(row.condition.is_some() && row.rests.is_err());
                    continue;
                }
                if lacks_number(objective, &row) {
                    compared[row.world] += 1;
                    note(row.world, f64::INFINITY, &|| "the loss reads the network without its guidance number".into());
                    continue;
                }
                let Some(expected) = expected(optimum, &worlds[row.world], &row) else { continue };
                compared[row.world] += usize::from(row.condition.is_some());
                nulls[row.world] += usize::from(row.condition.is_none() && row.guidance == null.number());
                let error = match row.rests {
                    Ok(()) => distance(worlds[row.world].tokens(), &row.prediction, &expected),
                    Err(_) => f64::INFINITY,
                };
                note(row.world, error, &|| describe(&row, &expected));
            }
            for (world, compared) in compared.into_iter().enumerate() {
                // A reference's null prediction need not change, so nothing is stated about it.
                let of_data = match optimum {
                    Optimum::Conditional => true,
                    Optimum::Tilted(tilt) => tilt.from == Of::Data,
                    _ => false,
                };
                let needs_null = of_data && matches!(null, NullPrediction::TrainedAt(_));
                if compared == 0 {
                    let unbounded = matches!(optimum, Optimum::Unbounded(_));
                    let what =
                        if unbounded { "training converges" } else { "the loss trains no conditional prediction" };
                    note(world, f64::INFINITY, &|| what.into());
                } else if needs_null && nulls[world] == 0 {
                    note(world, f64::INFINITY, &|| match null.number() {
                        None => "the loss trains no unconditional prediction".into(),
                        Some(number) => format!("the loss trains no unconditional prediction at number {number}"),
                    });
                }
            }
        }
    }
    failures
}

/// Returns the prediction that the statement implies for a row, or `None` if it implies none.
fn expected(optimum: &Optimum, world: &World, row: &Reached) -> Option<Vec<f64>> {
    if !world.scored_at(row.input) {
        return None;
    }
    match (optimum, row.condition) {
        (Optimum::Tilted(tilt), Some(condition)) => Some(world.tilted(tilt, condition, row.input, row.guidance)),
        // A one-pass objective that learns the data also learns its unconditional prediction.
        (Optimum::Tilted(tilt), None) if tilt.from == Of::Data => Some(world.data(None, row.input)),
        (Optimum::Conditional, condition) => Some(world.data(condition, row.input)),
        _ => None,
    }
}

/// Returns whether a prediction has a condition but no guidance number, although the objective states one.
fn lacks_number(objective: &dyn Objective, row: &Reached) -> bool {
    row.condition.is_some() && row.guidance.is_none() && objective.guidance_of_scale(1.0).is_some()
}

/// Returns whether a row is where the objective's statement says, to the tolerance of the laws.
pub fn holds(objective: &dyn Objective, world: &World, row: &Reached) -> bool {
    if lacks_number(objective, row) {
        return false;
    }
    let Some(expected) = expected(&objective.optimum(world.family), world, row) else { return true };
    row.rests.is_ok() && distance(world.tokens(), &row.prediction, &expected) <= TOLERANCE
}

/// Returns the largest difference in distribution (tokens only) and in prediction space. Logits are compared up to a
/// constant.
pub fn distance(tokens: bool, got: &[f64], expected: &[f64]) -> f64 {
    let largest = expected.iter().fold(1.0_f64, |m, v| m.max(v.abs()));
    let apart =
        |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, framework::numbers::larger);
    if !tokens {
        return apart(got, expected) / largest;
    }
    let (got, expected) = (log_softmax(got), log_softmax(expected));
    let probabilities = |logs: &[f64]| logs.iter().map(|v| v.exp()).collect::<Vec<_>>();
    apart(&probabilities(&got), &probabilities(&expected)).max(apart(&got, &expected) / largest.max(10.0))
}

fn describe(row: &Reached, expected: &[f64]) -> String {
    let condition = row.condition.map_or("null".to_string(), |c| c.to_string());
    let guidance = row.guidance.map_or(String::new(), |g| format!(", guidance number {g:.4}"));
    let numbers = |all: &[f64]| all.iter().map(|v| format!("{v:.6}")).collect::<Vec<_>>().join(", ");
    let why = row.rests.err().map_or(String::new(), |why| format!(" ({why})"));
    format!(
        "  condition {condition}, input {}{guidance}\n  trained to  [{}]{why}\n  stated      [{}]",
        row.input,
        numbers(&row.prediction),
        numbers(expected),
    )
}

/// Computes how far the first descent step at the reference deviates from the guidance direction, as 1 - cosine.
/// Returns pairs (world, deviation), one per scored row with a condition.
fn directions<'a>(objective: &'a dyn Objective, worlds: &'a [World], setting: &Setting<'a>) -> Vec<(usize, f64)> {
    let cases = Cases::new(objective, worlds, setting);
    let reference: Vec<f64> = cases
        .rows
        .iter()
        .flat_map(|row| worlds[row.world].referred(row.condition, row.input)[..cases.free].to_vec())
        .collect();
    let gradient = cases.gradient(&reference, &Lookups::default());
    let scored = |row: &Row| row.condition.is_some() && worlds[row.world].scored_at(row.input);
    let conditional = cases.rows.iter().enumerate().filter(|(_, row)| scored(row));
    conditional
        .map(|(i, row)| {
            let world = &worlds[row.world];
            let down: Vec<f64> = gradient[i * cases.free..][..cases.free].iter().map(|g| -g).collect();
            let (own, null) = (world.data(row.condition, row.input), world.data(None, row.input));
            let toward: Vec<f64> = own.iter().zip(&null).map(|(own, null)| own - null).collect();
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let sizes = (dot(&down, &down) * dot(&toward, &toward)).sqrt();
            // If the conditional and the null prediction agree, there is no direction, and the step must be zero.
            let error = if dot(&toward, &toward) < 1e-16 {
                dot(&down, &down).sqrt()
            } else {
                1.0 - dot(&down, &toward) / sizes
            };
            (row.world, error)
        })
        .collect()
}
