//! The promises of an objective.

use super::bench::{BATCH, Bench, silent};
use super::entry::{fields, parse, round_trip};

use framework::plugin::{Kind, ObjectivePlugin};
use framework::process::Family;
use framework::random::{Random, permutation};
use serde_json::Value;

/// Checks an objective on a small, compatible backbone. Both are document entries.
pub fn objective(entry: &Value, backbone: &Value) -> Vec<String> {
    let mut failures = round_trip::<Box<dyn ObjectivePlugin>>(entry);
    let Some(objective) = parse::<Box<dyn ObjectivePlugin>>(entry) else { return failures };
    let bench = Bench::new(backbone);
    let mut must = |holds: bool, what: &str| {
        if !holds {
            failures.push(what.to_string());
        }
    };
    let (losses, gradients) = bench.losses(&*objective, 0, 0, None);
    // Ignore parameters that the plain conditional loss does not train either, such as the embedding of the null
    // condition.
    let plain = bench.gradients(bench.process.loss(bench.predict(&bench.condition), &bench.example).mean());
    let untrained = silent(&plain);
    let silent: Vec<&str> = silent(&gradients).into_iter().filter(|path| !untrained.contains(path)).collect();
    must(losses.len() == BATCH, "the loss has one value per sample");
    must(losses.iter().all(|loss| loss.is_finite()), "the loss is finite");
    must(bench.losses(&*objective, 0, 0, None).0 == losses, "the same seed gives the same loss");
    must(silent.is_empty(), &format!("gradients reach every parameter; they do not reach {silent:?}"));
    let order = permutation(&Random::new(1), "order", 0, BATCH);
    let (permuted, _) = bench.losses(&*objective, 0, 0, Some(&order));
    let worst =
        order.iter().zip(&permuted).map(|(i, loss)| (loss - losses[*i]).abs()).fold(0.0, framework::numbers::larger);
    let largest = losses.iter().fold(1e-6_f64, |m, loss| m.max(loss.abs()));
    must(worst <= 1e-5 * largest, "permuting the batch permutes the losses");
    let acts = |objective: &dyn ObjectivePlugin| {
        // Compare at the start and late in training, and compare gradients too: some settings change only those.
        let trials = [(0, 0), (1, 0), (2, 0), (0, usize::MAX / 4)];
        let numbers: Vec<_> = trials.iter().map(|(draw, step)| bench.losses(objective, *draw, *step, None)).collect();
        let families = [Family::Continuous, Family::NextToken];
        let stated = families.map(|family| objective.optimum(family).statement());
        let scales = [objective.guidance_of_scale(2.0), objective.scale_of_guidance(2.0)];
        let refused: Vec<_> =
            objective.check_process(&*bench.process).into_iter().map(|problem| problem.what).collect();
        format!("{numbers:?} {:?} {stated:?} {scales:?} {refused:?}", objective.needs())
    };
    let fits = |objective: &dyn ObjectivePlugin| bench.fits(objective);
    failures.extend(fields::<Box<dyn ObjectivePlugin>>(entry, Kind::Objective, &|new| {
        // A setting that makes the objective incompatible with this backbone counts as having an effect.
        let problems = new.check();
        if !problems.is_empty() {
            return Err(problems);
        }
        Ok(if fits(&**new) { acts(&**new) } else { "another backbone".to_string() })
    }));
    failures
}
