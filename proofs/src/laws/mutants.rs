//! What the laws say of a mutant: whether it differs from the right objective, is refuted, or is equivalent.

use super::mutation::Mutation;
use super::statement::{self, errors_of};
use super::table::{Cases, Lookups, Scores, Setting};
use super::world::World;
use super::{Reached, TOLERANCE, VARIED, circumstances, conversions, reached_in, strategy, trees};
use framework::objective::Objective;
use framework::objective::context::Memory;
use framework::objective::optimum::{Optimum, Tilt};
use framework::process::Family;
use proptest::strategy::ValueTree;

/// Number of worlds on which a mutant is compared with its statement.
const WORLDS: usize = 8;

/// Returns whether the laws refute the objective that `mutation` makes wrong, on eight worlds; `None` if nothing is stated
/// for this family.
pub fn refuted(objective: &dyn Objective, mutation: &Mutation, family: Family, seed: u64) -> Option<bool> {
    let objective = &*mutation.stated(objective);
    let optimum = objective.optimum(family);
    let defined = objective.check_process(&Scores::new(family, false)).is_empty();
    if !defined || matches!(optimum, Optimum::Unstated(_)) {
        return None;
    }
    let free = matches!(&optimum, Optimum::Tilted(Tilt { free_normaliser: true, .. }));
    let setting = Setting::late(free, Some(mutation));
    let strategy = strategy(objective, &optimum, family, None);
    let worlds: Vec<World> = trees(&strategy, WORLDS, seed).iter().map(ValueTree::current).collect();
    // The cheapest check first.
    Some(
        worlds.iter().any(|world| errors_of(objective, &optimum, world, &setting).error > TOLERANCE)
            || worlds
                .iter()
                .take(VARIED)
                .any(|world| conversions::fault(objective, &optimum, world, &setting).is_some())
            || worlds
                .iter()
                .take(VARIED)
                .any(|world| circumstances::fault(objective, &optimum, world, &setting).is_some()),
    )
}

/// Returns the first worlds of a family, with a reference that knows the data.
fn few(objective: &dyn Objective, family: Family) -> Vec<World> {
    let strategy = World::strategy(family, World::length(family, objective.needs().likelihood));
    trees(&strategy, 3, 11).iter().map(|tree| tree.current().pretrained()).collect()
}

/// Returns whether a mutation changes the loss or the statements of an objective at all.
pub fn differs(objective: &dyn Objective, mutation: &Mutation, family: Family) -> bool {
    let changed = mutation.stated(objective);
    let stated = |objective: &dyn Objective| {
        let scale = match objective.optimum(family) {
            Optimum::Tilted(tilt) => (tilt.scale)(objective.guidance_of_scale(2.0).or(Some(0.5)), 1.0),
            _ => 0.0,
        };
        let converted = (objective.guidance_of_scale(2.0), objective.scale_of_guidance(0.3));
        (scale, converted, objective.trained_scales(), objective.null())
    };
    if stated(objective) != stated(&*changed) {
        return true;
    }
    let worlds = few(objective, family);
    circumstances::steps(objective.settles_at()).into_iter().step_by(13).any(|steps| {
        let memory = Memory::from([("mutant".to_string(), 1.0)]);
        let plain = Setting { steps, memory: memory.clone(), ..Setting::late(false, None) };
        let wrong = Setting { mutation: Some(mutation), ..plain.clone() };
        let (plain, wrong) = (Cases::new(objective, &worlds, &plain), Cases::new(&*changed, &worlds, &wrong));
        let values = circumstances::irregular(plain.rows.len() * plain.free);
        let reads_the_same = plain.rows == wrong.rows && plain.trained == wrong.trained;
        !reads_the_same
            || circumstances::apart(
                &plain.gradient(&values, &Lookups::default()),
                &wrong.gradient(&values, &Lookups::default()),
            )
    })
}

/// Returns whether training with the mutant rests exactly where training with the objective rests, for every condition,
/// and whether its statements are the same.
pub fn equivalent(objective: &dyn Objective, mutation: &Mutation, family: Family) -> bool {
    let (changed, worlds) = (mutation.stated(objective), few(objective, family));
    let free = matches!(objective.optimum(family), Optimum::Tilted(Tilt { free_normaliser: true, .. }));
    let rows = |objective: &dyn Objective, mutation| -> Vec<Reached> {
        let setting = Setting::late(free, mutation);
        reached_in(objective, &worlds, &setting).into_iter().filter(|row| row.condition.is_some()).collect()
    };
    let (plain, wrong) = (rows(objective, None), rows(&*changed, Some(mutation)));
    let key = |row: &Reached| (row.world, row.input, row.condition);
    // A mutant may train other guidance numbers, so rows are compared by what the statement implies for each.
    plain.iter().all(|row| wrong.iter().any(|other| key(other) == key(row) && other.rests == row.rests))
        && wrong.iter().all(|row| {
            let scored = worlds[row.world].scored_at(row.input);
            !scored || statement::holds(objective, &worlds[row.world], row)
        })
}
