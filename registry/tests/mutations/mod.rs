//! Documents with random changes, and the claim about each document: it is valid and keeps every value that was
//! written, or every problem states its location.

use framework::error::Problems;
use proptest::prelude::*;
use proptest::sample::Index;
use registry::{Registry, read};
use serde_json::Value;

/// Returns whether `resolved` contains every value of `written`.
pub fn contains(resolved: &Value, written: &Value) -> bool {
    match (resolved, written) {
        (Value::Object(all), Value::Object(some)) => {
            some.iter().all(|(key, value)| all.get(key).is_some_and(|resolved| contains(resolved, value)))
        }
        (Value::Array(all), Value::Array(some)) => {
            all.len() == some.len() && all.iter().zip(some).all(|(a, b)| contains(a, b))
        }
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (a, b) => a == b,
    }
}

/// Collects every pointer of a value, including the root.
fn pointers(value: &Value, here: &str, found: &mut Vec<String>) {
    found.push(here.to_string());
    match value {
        Value::Object(members) => {
            members.iter().for_each(|(key, value)| pointers(value, &format!("{here}/{key}"), found))
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, value)| pointers(value, &format!("{here}/{i}"), found));
        }
        _ => {}
    }
}

/// Generates a name that some document uses, an awkward name, or any other name.
fn a_name(known: Vec<String>) -> BoxedStrategy<String> {
    prop_oneof![
        6 => prop::sample::select(known),
        1 => prop::sample::select(vec!["a/b~c".to_string(), String::new()]),
        3 => "[a-z_]{1,8}",
    ]
    .boxed()
}

fn a_value(known: Vec<String>) -> BoxedStrategy<Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-3i64..300).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(vec![3.0, -0.0, 1e300, 1e19, 0.5, 1.0]).prop_map(Value::from),
        a_name(known.clone()).prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 3, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::vec((a_name(known.clone()), inner), 0..3)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
    .boxed()
}

#[derive(Clone, Debug)]
enum Mutation {
    Delete,
    Rename(String),
    Replace(Value),
    Copy(Index),
    Insert(String, Value),
}

fn a_mutation(known: Vec<String>) -> BoxedStrategy<(Index, Mutation)> {
    let mutation = prop_oneof![
        Just(Mutation::Delete),
        a_name(known.clone()).prop_map(Mutation::Rename),
        a_value(known.clone()).prop_map(Mutation::Replace),
        any::<Index>().prop_map(Mutation::Copy),
        (a_name(known.clone()), a_value(known)).prop_map(|(name, value)| Mutation::Insert(name, value)),
    ];
    (any::<Index>(), mutation).boxed()
}

fn mutate(document: &mut Value, at: Index, mutation: Mutation) {
    let mut all = Vec::new();
    pointers(document, "", &mut all);
    let at = at.get(&all);
    let split = at.rsplit_once('/');
    match mutation {
        Mutation::Replace(value) => {
            if let Some(place) = document.pointer_mut(at) {
                *place = value;
            }
        }
        Mutation::Copy(from) => {
            let value = document.pointer(from.get(&all[..]).as_str()).cloned();
            if let (Some(value), Some(place)) = (value, document.pointer_mut(at)) {
                *place = value;
            }
        }
        Mutation::Insert(name, value) => match document.pointer_mut(at) {
            Some(Value::Object(members)) => drop(members.insert(name, value)),
            Some(Value::Array(items)) => items.push(value),
            _ => {}
        },
        Mutation::Delete | Mutation::Rename(_) => {
            let Some((parent, key)) = split else { return };
            match document.pointer_mut(parent) {
                Some(Value::Object(members)) => {
                    let Some(value) = members.shift_remove(key) else { return };
                    if let Mutation::Rename(name) = mutation {
                        members.insert(name, value);
                    }
                }
                Some(Value::Array(items)) => drop(items.remove(key.parse().unwrap())),
                _ => {}
            }
        }
    }
}

fn located(problems: &Problems) -> bool {
    !problems.is_empty()
        && problems.iter().all(|problem| {
            !problem.what.is_empty()
                && !problem.at.is_empty()
                && problem.at.iter().all(|at| at.is_empty() || at.starts_with('/'))
        })
}

/// A changed document and its text.
#[derive(Clone, Debug)]
pub struct Mutant {
    document: Value,
    text: String,
    /// Whether the text contains a member twice.
    doubled: bool,
}

/// Generates one of the documents with one to three changes. In some texts, one member appears twice.
pub fn a_mutant(documents: Vec<Value>) -> impl Strategy<Value = Mutant> {
    let mut known: Vec<String> = Vec::new();
    documents.iter().for_each(|document| words(document, &mut known));
    known.sort();
    known.dedup();
    let twice = prop::option::weighted(0.1, any::<Index>());
    (prop::sample::select(documents), prop::collection::vec(a_mutation(known), 1..4), twice).prop_map(
        |(mut document, mutations, twice)| {
            for (at, mutation) in mutations {
                mutate(&mut document, at, mutation);
            }
            let (mut text, mut doubled) = (document.to_string(), false);
            if let Some(twice) = twice {
                let braces: Vec<usize> = text.match_indices("{\"").map(|(i, _)| i).collect();
                if !braces.is_empty() {
                    let at = twice.get(&braces) + 1;
                    let key: String = text[at + 1..].chars().take_while(|c| *c != '"').collect();
                    text.insert_str(at, &format!("\"{key}\":0,"));
                    doubled = read(&text).is_ok();
                }
            }
            Mutant { document, text, doubled }
        },
    )
}

/// Collects every key and every string of a document.
fn words(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => members.iter().for_each(|(key, value)| {
            found.push(key.clone());
            words(value, found);
        }),
        Value::Array(items) => items.iter().for_each(|value| words(value, found)),
        Value::String(text) => found.push(text.clone()),
        _ => {}
    }
}

/// Checks the claim for one mutant. Returns whether the mutant is valid.
pub fn is_located_or_kept(registry: &Registry, mutant: &Mutant) -> Result<bool, TestCaseError> {
    match registry.parse(&mutant.text) {
        Ok(parsed) => {
            prop_assert!(!mutant.doubled);
            let resolved = registry.resolved(&parsed);
            prop_assert!(contains(&resolved, &mutant.document), "{resolved} lacks a value of {}", mutant.document);
            let problems = registry.check(&parsed);
            prop_assert!(problems.is_empty() || located(&problems));
            if problems.is_empty() {
                // A valid document can be built. Building opens no file and initializes no weights.
                let pipeline = registry.build(parsed);
                prop_assert!(pipeline.sampler.evaluations(&pipeline.latent_shape()) > 0);
            }
            Ok(problems.is_empty())
        }
        Err(problems) => {
            prop_assert!(located(&problems), "{problems:?}");
            Ok(false)
        }
    }
}
