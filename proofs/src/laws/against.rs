//! Compares two objectives: checks whether they reach the same optimum at given scales on the same worlds.

use super::choices::Points;
use super::statement::distance;
use super::table::{Scores, Setting};
use super::{Reached, TOLERANCE, World, reached_in, shrink, trees};
use framework::objective::Objective;
use framework::objective::optimum::{Optimum, Tilt};
use framework::process::Family;
use proptest::strategy::{Strategy, ValueTree};
use std::collections::BTreeMap;

/// Result of a comparison on one family of worlds, at one scale.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// Family of the process.
    pub family: Family,
    /// Guidance scale.
    pub scale: f64,
    /// Number of worlds compared; 0 if one of the objectives reaches no prediction at this scale.
    pub worlds: usize,
    /// Largest difference.
    pub worst: f64,
    /// Why nothing was compared.
    pub why_not: Option<String>,
    /// The smallest world found in which the objectives differ, with the differences.
    pub counterexample: Option<String>,
}

/// Predictions by (world, input, condition).
type Guided = BTreeMap<(usize, usize, usize), Vec<f64>>;

/// Returns the prediction at a scale that training reaches, for every condition and scored input.
fn guided(objective: &dyn Objective, worlds: &[World], scale: f64) -> Result<Guided, String> {
    let optimum = objective.optimum(worlds[0].family);
    let free = matches!(&optimum, Optimum::Tilted(Tilt { free_normaliser: true, .. }));
    let mut setting = Setting::late(free, None);
    let number = objective.guidance_of_scale(scale);
    let mix = match (&optimum, number) {
        (Optimum::Conditional, _) => true,
        (Optimum::Tilted(_), Some(number)) => {
            setting.points = Points::At(number);
            false
        }
        (Optimum::Tilted(tilt), None) => {
            let own = (tilt.scale)(None, 1.0);
            if (own - scale).abs() > 1e-9 * scale.abs().max(1.0) {
                return Err(format!("it samples scale {own:.4} only"));
            }
            false
        }
        (other, _) => return Err(other.statement()),
    };
    let rows: Vec<Reached> = reached_in(objective, worlds, &setting);
    if let Some(why) = rows.iter().filter(|row| row.condition.is_some()).find_map(|row| row.rests.err()) {
        return Err(why.into());
    }
    let null = |row: &Reached| {
        let same = |other: &&Reached| (other.world, other.input, other.condition) == (row.world, row.input, None);
        rows.iter().find(same).ok_or_else(|| "it trains no unconditional prediction".to_string())
    };
    let mut found = Guided::new();
    for row in &rows {
        let Some(condition) = row.condition else { continue };
        let trained = number.is_none_or(|number| row.guidance == Some(number));
        if !trained || !worlds[row.world].scored_at(row.input) {
            continue;
        }
        let prediction = match mix {
            false => row.prediction.clone(),
            true => {
                let null = &null(row)?.prediction;
                row.prediction.iter().zip(null).map(|(given, null)| null + scale * (given - null)).collect()
            }
        };
        found.insert((row.world, row.input, condition), prediction);
    }
    if found.is_empty() { Err(format!("it does not train scale {scale}")) } else { Ok(found) }
}

/// Returns the largest difference of two objectives in one world, and its description.
fn difference(a: &dyn Objective, b: &dyn Objective, worlds: &[World], scale: f64) -> Result<(f64, String), String> {
    let of = |name: &str, objective| guided(objective, worlds, scale).map_err(|why| format!("{name}: {why}"));
    let (a, b) = (of("the first", a)?, of("the second", b)?);
    let mut worst = (0.0, String::new());
    for (key, left) in &a {
        let Some(right) = b.get(key) else { continue };
        let apart = distance(worlds[key.0].tokens(), left, right);
        if apart > worst.0 {
            let numbers = |all: &[f64]| all.iter().map(|v| format!("{v:.6}")).collect::<Vec<_>>().join(", ");
            let (_, input, condition) = key;
            let what = format!(
                "  condition {condition}, input {input}\n  the first   [{}]\n  the second  [{}]",
                numbers(left),
                numbers(right)
            );
            worst = (apart, what);
        }
    }
    Ok(worst)
}

/// Compares two objectives on random worlds of one family at one scale.
pub fn compare(
    (a, b): (&dyn Objective, &dyn Objective),
    scale: f64,
    family: Family,
    worlds: usize,
    seed: u64,
) -> Comparison {
    let nothing =
        |why: String| Comparison { family, scale, worlds: 0, worst: 0.0, why_not: Some(why), counterexample: None };
    for objective in [a, b] {
        if let Some(problem) = objective.check_process(&Scores::new(family, false)).into_iter().next() {
            return nothing(problem.what);
        }
    }
    let length = World::length(family, a.needs().likelihood || b.needs().likelihood);
    // An objective that reads a reference must reach the optimum that other objectives learn from the data. So the
    // reference predicts the data exactly.
    let strategy = World::strategy(family, length).prop_map(World::pretrained);
    let mut trees = trees(&strategy, worlds, seed);
    let all: Vec<World> = trees.iter().map(ValueTree::current).collect();
    let (worst, _) = match difference(a, b, &all, scale) {
        Ok(found) => found,
        Err(why) => return nothing(why),
    };
    let of = |world: &World| difference(a, b, std::slice::from_ref(world), scale).unwrap_or_default();
    let fails = |world: &World| of(world).0 > TOLERANCE;
    let counterexample = trees.iter_mut().find(|tree| fails(&tree.current())).map(|tree| {
        let smallest = shrink(tree, &fails);
        format!("{}\n{}", of(&smallest).1, smallest.table())
    });
    Comparison { family, scale, worlds, worst, why_not: None, counterexample }
}
