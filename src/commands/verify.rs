//! `verify`: checks the laws on registered objectives.

use crate::arguments::VerifyOptions;
use crate::{Outcome, console};
use framework::error::{Error, Problem, Result};
use framework::objective::Objective;
use framework::plugin::{Kind, ObjectivePlugin};
use framework::process::Family;
use proofs::laws::{self, against};
use registry::{Registry, nearest};
use serde_json::{Value, json};
use std::time::Instant;

/// Prints a table of the verified statements. Fails if one is refuted.
pub fn verify(options: &VerifyOptions) -> Outcome {
    let registry = Registry::linked();
    if let Some(other) = &options.against {
        return compare(&registry, options, other);
    }
    let entries = entries(&registry, &options.objectives)?;
    let start = Instant::now();
    // With --json, one object is printed at the end.
    let print = |line: &str| if options.json { Ok(()) } else { console::print(line) };
    allocator::keep_pages();
    let names = ["objective", "worlds", "worst error", "seconds"];
    print(&format!("{:<12}  {:>6}  {:>11}  {:>7}  optimum", names[0], names[1], names[2], names[3]))?;
    let (mut proven, mut failed, mut counterexamples, mut rows) = (0, 0, Vec::new(), Vec::new());
    for entry in &entries {
        let label = label(entry);
        let objective = registry.objective(entry.clone()).map_err(|problems| Error::input(problems, &label))?;
        print(&label)?;
        for family in Family::ALL {
            let verdict = laws::verify(&*objective, family, options.worlds as usize, options.seed);
            let outcome = match (verdict.worlds, &verdict.counterexample) {
                (0, _) => "not stated".to_string(),
                (_, None) => format!("{:.1e}", verdict.worst),
                (_, Some(_)) => format!("FAILS {:.0e}", verdict.worst),
            };
            proven += usize::from(verdict.worlds > 0 && verdict.counterexample.is_none());
            print(&format!(
                "  {:<10}  {:>6}  {outcome:>11}  {:>7.1}  {}",
                family.name(),
                verdict.worlds,
                verdict.seconds,
                verdict.statement
            ))?;
            rows.push(json!({
                "objective": entry, "process": family.name(), "worlds": verdict.worlds, "worst_error": verdict.worst,
                "seconds": verdict.seconds, "statement": verdict.statement, "counterexample": verdict.counterexample,
                "holds": (verdict.worlds > 0).then_some(verdict.counterexample.is_none())
            }));
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
    if options.json {
        console::json(
            &json!({ "proven": proven, "refuted": failed, "tolerance": laws::TOLERANCE, "statements": rows }),
        )?;
    }
    print(&format!(
        "{proven} statements proven to {:.0e}, {failed} refuted, in {:.1} s",
        laws::TOLERANCE,
        start.elapsed().as_secs_f64()
    ))?;
    print(&format!("varied: {}", laws::VARIES))?;
    print(&format!("not varied: {}", laws::VARIES_NOT))?;
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
    let print = |line: &str| if options.json { Ok(()) } else { console::print(line) };
    print(&format!("{left_label} against {right_label}"))?;
    print(&format!("  {:<10}  {:>6}  {:>6}  {:>11}", "family", "scale", "worlds", "difference"))?;
    let (mut compared, mut differ, mut rows) = (0, Vec::new(), Vec::new());
    for family in Family::ALL {
        for scale in &options.scale {
            let pair = (&*left as &dyn Objective, &*right as &dyn Objective);
            let found = against::compare(pair, *scale, family, options.worlds as usize, options.seed);
            let outcome = match &found.why_not {
                Some(why) => format!("not compared: {why}"),
                None => format!("{:>11.1e}", found.worst),
            };
            print(&format!("  {:<10}  {scale:>6}  {:>6}  {outcome}", family.name(), found.worlds))?;
            rows.push(json!({
                "process": family.name(), "scale": scale, "worlds": found.worlds, "not_compared": found.why_not,
                "difference": found.worst, "counterexample": found.counterexample
            }));
            compared += usize::from(found.why_not.is_none());
            differ.extend(found.counterexample.map(|world| format!("{}, scale {scale}\n{world}", family.name())));
        }
    }
    if options.json {
        console::json(&json!({ "objective": left_label, "against": right_label, "comparisons": rows }))?;
    }
    if compared == 0 {
        let problem = Problem::new("--against", "the objectives have no family and scale in common");
        return Err(problem.fix("choose scales with --scale, or settings with JSON entries").into());
    }
    if differ.is_empty() {
        let tolerance = laws::TOLERANCE;
        print(&format!("they reach the same optimum in {compared} comparisons, to {tolerance:.0e}"))?;
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
