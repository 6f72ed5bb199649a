//! Laws: check whether the minimiser of an objective samples the distribution that its `optimum()` states.
//! You can change the worlds, the table or the solver here without touching an objective.
//!
//! A law generates random finite worlds. The network is a table that can represent any prediction. Expectations are
//! exact: they enumerate every outcome, condition, dropping and random choice with its probability. The solver finds
//! the rest point of training in f64. The law compares it with the statement: the predictions, and for tokens also the
//! distributions. A failing world is shrunk to the smallest one that still fails.
//!
//! A uniform random number is replaced by two points. The table has a separate row for every guidance number, so each
//! row's optimum is the same under any density with support there.

mod solve;
mod table;
mod world;

pub use world::{CHANNELS, CONDITIONS, World};

use framework::objective::Objective;
use framework::objective::optimum::{Optimum, Tilt};
use framework::process::Family;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::time::Instant;
use table::{Cases, Lookups, Row, Scores};

/// Largest accepted error, absolute for probabilities and relative for predictions (to 1 or to the largest prediction).
pub const TOLERANCE: f64 = 1e-6;

/// Result of the law for one objective on one family of worlds.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Family of the process.
    pub family: Family,
    /// The statement in words.
    pub statement: String,
    /// Number of worlds tested; 0 if there is nothing to check.
    pub worlds: usize,
    /// Largest error over all worlds.
    pub worst: f64,
    /// Duration in seconds.
    pub seconds: f64,
    /// The smallest failing world found, as a table, with the differences.
    pub counterexample: Option<String>,
}

/// The prediction that training reaches at one row of the table.
#[derive(Clone, Debug)]
pub struct Reached {
    /// Index of the world.
    pub world: usize,
    /// Index of the input within the world.
    pub input: usize,
    /// Index of the condition; `None` = null.
    pub condition: Option<usize>,
    /// Guidance number, if the network reads one.
    pub guidance: Option<f64>,
    /// The prediction.
    pub prediction: Vec<f64>,
    /// `Ok` if training stays at this point, otherwise the reason why not.
    pub rests: Result<(), &'static str>,
}

/// Returns the predictions that training with `objective` reaches in `worlds` of one family, row by row. With `free`,
/// token models need not be normalised.
pub fn reached(objective: &dyn Objective, worlds: &[World], free: bool) -> Vec<Reached> {
    let cases = Cases::new(objective, worlds, free);
    let rest = solve::solve(&cases);
    let width = worlds[0].width();
    cases
        .rows
        .iter()
        .enumerate()
        .map(|(i, row)| {
            let numbers = i * cases.free..(i + 1) * cases.free;
            let mut prediction = rest.values[numbers.clone()].to_vec();
            prediction.resize(width, 0.0);
            let last = rest.last[numbers.clone()].iter().fold(0.0_f64, |m, v| m.max(*v));
            let push = rest.push[numbers].iter().fold(f64::INFINITY, |m, v| m.min(*v));
            let rests = if push < -1e-7 {
                Err("the rest point of training is unstable")
            } else if last.is_nan() || last >= 1e-8 {
                Err("training does not converge")
            } else {
                Ok(())
            };
            let Row { world, input, condition, .. } = *row;
            Reached { world, input, condition, guidance: row.number(), prediction, rests }
        })
        .collect()
}

/// Tests an objective's statement on random worlds of one family, in parallel. The same seed gives the same worlds.
pub fn verify(objective: &dyn Objective, family: Family, worlds: usize, seed: u64) -> Verdict {
    let start = Instant::now();
    let optimum = objective.optimum(family);
    let statement = optimum.statement();
    let nothing = |statement| Verdict { family, statement, worlds: 0, worst: 0.0, seconds: 0.0, counterexample: None };
    if let Some(problem) = objective.check_process(&Scores { family, free: false }).into_iter().next() {
        return nothing(format!("not defined: {}", problem.what));
    }
    if matches!(optimum, Optimum::Unstated(_)) {
        return nothing(statement);
    }
    let length = World::length(family, objective.needs().likelihood);
    let pretrained = matches!(optimum, Optimum::Towards);
    let strategy =
        World::strategy(family, length).prop_map(move |world| if pretrained { world.pretrained() } else { world });
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    let mut runner = TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &key));
    let mut trees: Vec<_> =
        (0..worlds).map(|_| strategy.new_tree(&mut runner).expect("the strategy rejects no world")).collect();
    let drawn: Vec<World> = trees.iter().map(ValueTree::current).collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let chunks: Vec<&[World]> = drawn.chunks(worlds.div_ceil(threads).clamp(1, 100)).collect();
    let errors: Vec<f64> = std::thread::scope(|scope| {
        let optimum = &optimum;
        let mut results = Vec::new();
        for chunks in chunks.chunks(threads) {
            let threads: Vec<_> =
                chunks.iter().map(|chunk| scope.spawn(move || errors(objective, optimum, chunk))).collect();
            for thread in threads {
                results.extend(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            }
        }
        results.into_iter().map(|failure| failure.error).collect()
    });
    let worst = errors.iter().copied().fold(0.0, f64::max);
    let counterexample = errors.iter().position(|error| *error > TOLERANCE).map(|first| {
        let fails = |world: &World| errors_of(objective, &optimum, world).error > TOLERANCE;
        let smallest = shrink(&mut trees[first], &fails);
        let failure = errors_of(objective, &optimum, &smallest);
        format!("{}\n{}", failure.what, smallest.table())
    });
    Verdict { family, statement, worlds, worst, seconds: start.elapsed().as_secs_f64(), counterexample }
}

/// Shrinks a failing world and returns the smallest one found that still fails.
fn shrink<T: ValueTree<Value = World>>(tree: &mut T, fails: &dyn Fn(&World) -> bool) -> World {
    let mut smallest = tree.current();
    for _ in 0..100 {
        if fails(&tree.current()) {
            smallest = tree.current();
            if !tree.simplify() {
                break;
            }
        } else if !tree.complicate() {
            break;
        }
    }
    smallest
}

/// Largest deviation of one world from the statement, and its description.
#[derive(Clone, Debug, Default)]
struct Failure {
    error: f64,
    what: String,
}

fn errors_of(objective: &dyn Objective, optimum: &Optimum, world: &World) -> Failure {
    errors(objective, optimum, std::slice::from_ref(world)).remove(0)
}

/// Returns the largest error of each world.
fn errors(objective: &dyn Objective, optimum: &Optimum, worlds: &[World]) -> Vec<Failure> {
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
            for (world, error) in directions(objective, worlds) {
                note(world, error, &|| "the first step from the reference does not follow guidance".into());
            }
        }
        Optimum::Conditional | Optimum::Tilted(_) | Optimum::Unbounded(_) | Optimum::Unstated(_) => {
            let free = matches!(optimum, Optimum::Tilted(Tilt { free_normaliser: true, .. }));
            let (mut compared, mut nulls) = (vec![0; worlds.len()], vec![0; worlds.len()]);
            for row in reached(objective, worlds, free) {
                if let Optimum::Unbounded(_) = optimum {
                    // A position that is not scored keeps its initial value, so only unstable rows count.
                    compared[row.world] += usize::from(row.condition.is_some() && row.rests.is_err());
                    continue;
                }
                let Some(expected) = expected(optimum, &worlds[row.world], &row) else { continue };
                compared[row.world] += usize::from(row.condition.is_some());
                nulls[row.world] += usize::from(row.condition.is_none());
                let error = match row.rests {
                    Ok(()) => distance(worlds[row.world].tokens(), &row.prediction, &expected),
                    Err(_) => f64::INFINITY,
                };
                note(row.world, error, &|| describe(&row, &expected));
            }
            for (world, compared) in compared.into_iter().enumerate() {
                let needs_null = matches!(optimum, Optimum::Conditional) && objective.needs().null_condition;
                if compared == 0 {
                    let unbounded = matches!(optimum, Optimum::Unbounded(_));
                    let what =
                        if unbounded { "training converges" } else { "the loss trains no conditional prediction" };
                    note(world, f64::INFINITY, &|| what.into());
                } else if needs_null && nulls[world] == 0 {
                    note(world, f64::INFINITY, &|| "the loss trains no unconditional prediction".into());
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
        (Optimum::Tilted(tilt), None) if tilt.from == framework::objective::optimum::Of::Data => {
            Some(world.data(None, row.input))
        }
        (Optimum::Conditional, condition) => Some(world.data(condition, row.input)),
        _ => None,
    }
}

/// Returns the largest difference in distribution (tokens only) and in prediction space. Logits are compared up to a
/// constant.
fn distance(tokens: bool, got: &[f64], expected: &[f64]) -> f64 {
    let largest = expected.iter().fold(1.0_f64, |m, v| m.max(v.abs()));
    let apart = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    if !tokens {
        return apart(got, expected) / largest;
    }
    let (got, expected) = (log_softmax(got), log_softmax(expected));
    let probabilities = |logs: &[f64]| logs.iter().map(|v| v.exp()).collect::<Vec<_>>();
    apart(&probabilities(&got), &probabilities(&expected)).max(apart(&got, &expected) / largest.max(10.0))
}

/// Converts logits to log-probabilities.
pub fn log_softmax(logits: &[f64]) -> Vec<f64> {
    let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|v| (v - top).exp()).sum();
    logits.iter().map(|v| v - top - sum.ln()).collect()
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
fn directions(objective: &dyn Objective, worlds: &[World]) -> Vec<(usize, f64)> {
    let cases = Cases::new(objective, worlds, false);
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
