//! `verify`: checks the laws on registered objectives.

use crate::Outcome;
use crate::arguments::VerifyOptions;
use framework::error::{Error, Problem, Result};
use framework::objective::Objective;
use framework::plugin::{Kind, ObjectivePlugin};
use framework::process::Family;
use proofs::laws::{self, against};
use registry::{Registry, nearest};
use serde_json::Value;
use std::time::Instant;

/// Prints a table of the verified statements. Fails if one is refuted.
pub fn verify(options: &VerifyOptions) -> Outcome {
    let registry = Registry::linked();
    if let Some(other) = &options.against {
        return compare(&registry, options, other);
    }
    let entries = entries(&registry, &options.objectives)?;
    let start = Instant::now();
    allocator::keep_pages();
    println!("{:<12}  {:>6}  {:>11}  {:>7}  optimum", "objective", "worlds", "worst error", "seconds");
    let (mut proven, mut failed, mut counterexamples) = (0, 0, Vec::new());
    for entry in &entries {
        let label = label(entry);
        let objective = registry.objective(entry.clone()).map_err(|problems| Error::input(problems, &label))?;
        println!("{label}");
        for family in Family::ALL {
            let verdict = laws::verify(&*objective, family, options.worlds as usize, options.seed);
            let outcome = match (verdict.worlds, &verdict.counterexample) {
                (0, _) => "not stated".to_string(),
                (_, None) => format!("{:.1e}", verdict.worst),
                (_, Some(_)) => format!("FAILS {:.0e}", verdict.worst),
            };
            proven += usize::from(verdict.worlds > 0 && verdict.counterexample.is_none());
            println!(
                "  {:<10}  {:>6}  {outcome:>11}  {:>7.1}  {}",
                family.name(),
                verdict.worlds,
                verdict.seconds,
                verdict.statement
            );
            if let Some(counterexample) = verdict.counterexample {
                failed += 1;
                counterexamples.push(format!(
                    "{label}, {}: refuted: {}\n{counterexample}",
                    family.name(),
                    verdict.statement
                ));
            }
        }
    }
    println!(
        "{proven} statements proven to {:.0e}, {failed} refuted, in {:.1} s",
        laws::TOLERANCE,
        start.elapsed().as_secs_f64()
    );
    println!("varied: {}", laws::VARIES);
    println!("not varied: {}", laws::VARIES_NOT);
    if failed == 0 {
        return Ok(());
    }
    let worlds = counterexamples.join("\n");
    Err(Error::Run(format!("{failed} statements are refuted. The smallest world found for each:\n\n{worlds}")))
}

/// Compares one objective with another. Fails if they differ, or if nothing can be compared.
fn compare(registry: &Registry, options: &VerifyOptions, other: &str) -> Outcome {
    let one = |asked: &str| -> Result<(String, Box<dyn ObjectivePlugin>)> {
        let entry = entries(registry, &[asked.to_string()])?.remove(0);
        let label = label(&entry);
        let objective = registry.objective(entry).map_err(|problems| Error::input(problems, &label))?;
        Ok((label, objective))
    };
    let [asked] = &options.objectives[..] else {
        let problem = Problem::new("--against", format!("{} objectives are given", options.objectives.len()));
        return Err(problem.accepts("one objective").fix("unguided verify gft --against cfg").into());
    };
    let ((left_label, left), (right_label, right)) = (one(asked)?, one(other)?);
    println!("{left_label} against {right_label}");
    println!("  {:<10}  {:>6}  {:>6}  {:>11}", "family", "scale", "worlds", "difference");
    let (mut compared, mut differ) = (0, Vec::new());
    for family in Family::ALL {
        for scale in &options.scale {
            let pair = (&*left as &dyn Objective, &*right as &dyn Objective);
            let found = against::compare(pair, *scale, family, options.worlds as usize, options.seed);
            let outcome = match &found.why_not {
                Some(why) => format!("not compared: {why}"),
                None => format!("{:>11.1e}", found.worst),
            };
            println!("  {:<10}  {scale:>6}  {:>6}  {outcome}", family.name(), found.worlds);
            compared += usize::from(found.why_not.is_none());
            differ.extend(found.counterexample.map(|world| format!("{}, scale {scale}\n{world}", family.name())));
        }
    }
    if compared == 0 {
        let problem = Problem::new("--against", "the objectives have no family and scale in common");
        return Err(problem.fix("choose scales with --scale, or settings with JSON entries").into());
    }
    if differ.is_empty() {
        println!("they reach the same optimum in {compared} comparisons, to {:.0e}", laws::TOLERANCE);
        return Ok(());
    }
    let worlds = differ.join("\n");
    Err(Error::Run(format!(
        "they differ in {} of {compared} comparisons. The smallest world found for each:\n\n{worlds}",
        differ.len()
    )))
}

/// Returns the type and the fields of an entry as text: `gft`, or `gft {"dropped_sample":"plain"}`.
fn label(entry: &Value) -> String {
    let mut fields = entry.as_object().cloned().unwrap_or_default();
    let name = fields.shift_remove("type").and_then(|name| Some(name.as_str()?.to_string())).unwrap_or_default();
    if fields.is_empty() { name } else { format!("{name} {}", Value::from(fields)) }
}

/// Returns the entries to verify: the requested ones, or all variants of all objectives.
fn entries(registry: &Registry, asked: &[String]) -> Result<Vec<Value>> {
    let known: Vec<_> = registry.entries().iter().filter(|entry| entry.kind == Kind::Objective).collect();
    if asked.is_empty() {
        return Ok(known.iter().flat_map(|entry| registry.variants(entry)).collect());
    }
    let mut entries = Vec::new();
    for asked in asked {
        if asked.trim_start().starts_with('{') {
            let (value, problems) = registry::read(asked).map_err(|problem| Error::input(vec![problem], asked))?;
            if !problems.is_empty() {
                return Err(Error::input(problems, asked));
            }
            entries.push(value);
            continue;
        }
        let Some(entry) = known.iter().find(|entry| entry.name == asked) else {
            let names: Vec<&str> = known.iter().map(|entry| entry.name).collect();
            let near = nearest(asked, names.iter().copied());
            let problem = Problem::new("", format!("unknown objective \"{asked}\"")).nearest(near);
            return Err(problem.accepts(format!("{}, or a JSON entry", names.join(", "))).into());
        };
        entries.extend(registry.variants(entry));
    }
    Ok(entries)
}
