//! Laws: check whether the minimiser of an objective samples the distribution that its `optimum()` states.
//! You can change the worlds, the table or the solver here without touching an objective.
//!
//! A law generates random finite worlds. The network is a table that can represent any prediction. Expectations are
//! exact: they enumerate every outcome, condition, dropping and random choice with its probability. The solver finds
//! the rest point of training in f64. The law compares it with the statement: the predictions, and for tokens also the
//! distributions. It also compares the stated conversions and trained scales with the numbers that the loss trains, and
//! evaluates the loss in other circumstances: other steps, other batches, remembered values. A failing world is shrunk
//! to the smallest one that still fails.
//!
//! A uniform random number is replaced by two points. The table has a separate row for every guidance number, so each
//! row's optimum is the same under any density with support there.

pub mod against;
mod choices;
mod circumstances;
mod conversions;
pub mod mutants;
mod mutation;
mod solve;
mod statement;
mod table;
mod world;

pub use mutation::Mutation;
pub use world::{CHANNELS, CONDITIONS, World};

use framework::objective::Objective;
use framework::objective::optimum::{Optimum, Tilt};
use framework::process::Family;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use statement::{errors, errors_of};
use std::time::Instant;
use table::{Cases, Row, Scores, Setting};

/// Largest accepted error, absolute for probabilities and relative for predictions (to 1 or to the largest prediction).
pub const TOLERANCE: f64 = 1e-6;

/// Number of worlds in which the circumstances are varied.
const VARIED: usize = 3;

/// What the laws vary for each statement, in words.
pub const VARIES: &str = "the data (three conditions, random inputs, targets and probabilities), the frozen reference, \
    every dropping and random choice, both ends and two interior points of every guidance number, 52 training steps and \
    lengths, remembered values, order and split of the batch";

/// What the laws do not vary, in words.
pub const VARIES_NOT: &str = "the network (a table represents every prediction), the optimizer, the process's own \
    weights over time, steps before a warm-up ends, an average that lags behind the weights, more conditions or longer \
    sequences";

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
    reached_in(objective, worlds, &Setting::late(free, None))
}

fn reached_in<'a>(objective: &'a dyn Objective, worlds: &'a [World], setting: &Setting<'a>) -> Vec<Reached> {
    let cases = Cases::new(objective, worlds, setting);
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
    if let Some(problem) = objective.check_process(&Scores::new(family, false)).into_iter().next() {
        return nothing(format!("not defined: {}", problem.what));
    }
    if matches!(optimum, Optimum::Unstated(_)) {
        return nothing(statement);
    }
    let free = matches!(&optimum, Optimum::Tilted(Tilt { free_normaliser: true, .. }));
    let setting = Setting::late(free, None);
    let strategy = strategy(objective, &optimum, family, None);
    let mut trees = trees(&strategy, worlds, seed);
    let all: Vec<World> = trees.iter().map(ValueTree::current).collect();
    let refuted = |what: String, world: &World, worst: f64| Verdict {
        family,
        statement: optimum.statement(),
        worlds,
        worst,
        seconds: start.elapsed().as_secs_f64(),
        counterexample: Some(format!("{what}\n{}", world.table())),
    };
    // Check the circumstances first: a loss that depends on them has no single optimum to compare.
    for tree in trees.iter_mut().take(VARIED) {
        let fault = |world: &World| {
            circumstances::fault(objective, &optimum, world, &setting)
                .or_else(|| conversions::fault(objective, &optimum, world, &setting))
        };
        if fault(&tree.current()).is_some() {
            let smallest = smallest(objective, &optimum, family, tree, &|world| fault(world).is_some());
            let what = fault(&smallest).unwrap_or_default();
            return refuted(what, &smallest, f64::INFINITY);
        }
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let chunks: Vec<&[World]> = all.chunks(worlds.div_ceil(threads).clamp(1, 100)).collect();
    let errors: Vec<f64> = std::thread::scope(|scope| {
        let (optimum, setting) = (&optimum, &setting);
        let mut results = Vec::new();
        for chunks in chunks.chunks(threads) {
            let threads: Vec<_> =
                chunks.iter().map(|chunk| scope.spawn(move || errors(objective, optimum, chunk, setting))).collect();
            for thread in threads {
                results.extend(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            }
        }
        results.into_iter().map(|failure| failure.error).collect()
    });
    let worst = errors.iter().copied().fold(0.0, framework::numbers::larger);
    if let Some(first) = errors.iter().position(|error| *error > TOLERANCE) {
        let fails = |world: &World| errors_of(objective, &optimum, world, &setting).error > TOLERANCE;
        let smallest = smallest(objective, &optimum, family, &mut trees[first], &fails);
        let failure = errors_of(objective, &optimum, &smallest, &setting);
        return refuted(failure.what, &smallest, worst);
    }
    let seconds = start.elapsed().as_secs_f64();
    Verdict { family, statement, worlds, worst, seconds, counterexample: None }
}

/// Returns random worlds that suit an objective, of one size if `size` is given.
fn strategy(
    objective: &dyn Objective,
    optimum: &Optimum,
    family: Family,
    size: Option<usize>,
) -> impl Strategy<Value = World> + use<> {
    let length = World::length(family, objective.needs().likelihood);
    let sizes = if family.has_logits() { length..=length } else { 1..=3 };
    let pretrained = matches!(optimum, Optimum::Towards);
    let unbounded = matches!(optimum, Optimum::Unbounded(_));
    World::of_sizes(family, size.map_or(sizes, |size| size..=size)).prop_map(move |mut world| {
        if unbounded {
            // An objective that does not guide pure noise has an optimum there.
            world.progress.iter_mut().for_each(|progress| *progress = progress.max(0.1));
        }
        if pretrained { world.pretrained() } else { world }
    })
}

/// Returns the first `count` worlds of a seed.
fn trees<S: Strategy<Value = World>>(strategy: &S, count: usize, seed: u64) -> Vec<S::Tree> {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    let mut runner = TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &key));
    (0..count).map(|_| strategy.new_tree(&mut runner).expect("the strategy rejects no world")).collect()
}

/// Returns the smallest failing world found: of the smallest size that fails, shrunk.
fn smallest<T: ValueTree<Value = World>>(
    objective: &dyn Objective,
    optimum: &Optimum,
    family: Family,
    tree: &mut T,
    fails: &dyn Fn(&World) -> bool,
) -> World {
    for size in 1..tree.current().size {
        let smaller = strategy(objective, optimum, family, Some(size));
        if let Some(tree) = trees(&smaller, 5, 0).iter_mut().find(|tree| fails(&tree.current())) {
            return shrink(tree, fails);
        }
    }
    shrink(tree, fails)
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

/// Converts logits to log-probabilities.
pub fn log_softmax(logits: &[f64]) -> Vec<f64> {
    let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|v| (v - top).exp()).sum();
    logits.iter().map(|v| v - top - sum.ln()).collect()
}
