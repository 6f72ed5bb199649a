//! Valid and invalid documents, and the messages that the registry reports for them.

use framework_dylib as _;

mod dummies;
mod mutations;

use framework::error::Problems;
use insta::assert_snapshot;
use mutations::contains;
use proptest::prelude::*;
use registry::{Registry, set};
use serde_json::{Value, json};
use std::sync::LazyLock;

static REGISTRY: LazyLock<Registry> = LazyLock::new(Registry::linked);

fn valid() -> Value {
    json!({
        "$schema": "schema.json",
        "version": 1,
        "about": "a test",
        "data": { "type": "squares", "num_classes": 10, "channel": 3, "shares": { "a": 0.5, "type": 1 }, "bounds": [0, 1.5] },
        "tokenizer": { "type": "pixels" },
        "backbone": { "type": "tiny", "size": 8, "num_classes": 10, "guidance_input": true, "norm": { "layer": { "epsilon": 1e-6 } } },
        "objective": {
            "scale": 4,
            "type": "nested",
            "teacher": { "type": "plain", "drop": 0.1 },
            "rules": [{ "scale": 2.5, "type": "mix" }],
        },
        "train": { "steps": 10, "batch_size": 2, "learning_rate": 1e-3 },
        "sampler": { "type": "steps", "steps": 20 },
        "guidance": { "scale": 1.5, "type": "mix" },
        "metrics": [{ "type": "count" }, { "type": "count", "label": "other" }],
    })
}

fn show(problems: &Problems) -> String {
    problems
        .iter()
        .map(|problem| format!("error: {}", problem.clone().in_file("p.json")))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Returns the problems of the valid document after these overrides, or "ok".
fn after(overrides: &[(&str, &str)]) -> String {
    let mut document = valid();
    for (pointer, value) in overrides {
        set(&mut document, pointer, value).unwrap();
    }
    match REGISTRY.parse_and_check(&document.to_string()) {
        Ok(_) => "ok".to_string(),
        Err(problems) => show(&problems),
    }
}

fn without(pointer: &str) -> String {
    let mut document = valid();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    document.pointer_mut(parent).unwrap().as_object_mut().unwrap().shift_remove(key).unwrap();
    show(&REGISTRY.parse(&document.to_string()).unwrap_err())
}

#[test]
fn a_valid_document_resolves_to_itself_and_its_defaults() {
    let document = REGISTRY.parse_and_check(&valid().to_string()).unwrap();
    let resolved = REGISTRY.resolved(&document);
    assert!(contains(&resolved, &valid()));
    assert_eq!(resolved.pointer("/data/size"), Some(&json!(8)));
    assert_eq!(resolved.pointer("/backbone/condition"), Some(&json!("class")));
    assert_eq!(resolved.get("conditioner"), Some(&Value::Null));
    let again = REGISTRY.parse_and_check(&resolved.to_string()).unwrap();
    assert_eq!(REGISTRY.resolved(&again), resolved);
}

#[test]
fn the_schema_is_valid_and_has_no_dangling_references() {
    let schema = REGISTRY.schema();
    assert!(jsonschema::meta::is_valid(schema));
    fn references<'a>(schema: &'a Value, found: &mut Vec<&'a str>) {
        match schema {
            Value::Object(members) => {
                found.extend(members.get("$ref").and_then(Value::as_str));
                members.values().for_each(|schema| references(schema, found));
            }
            Value::Array(items) => items.iter().for_each(|schema| references(schema, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    references(schema, &mut found);
    for reference in found {
        assert!(schema.pointer(&reference[1..]).is_some(), "{reference}");
    }
    assert_eq!(schema.pointer("/$defs/objective.nested/properties/teacher/$ref"), Some(&json!("#/$defs/objective")));
    assert_eq!(schema.pointer("/$defs/objective/properties/type/enum"), Some(&json!(["nested", "plain"])));
    assert_snapshot!(schema.pointer("/$defs/objective.nested/description").unwrap().as_str().unwrap(), @r#"
    Learns from another objective's guidance.

    Source: arXiv:0000.00001, arXiv:0000.00002.
    "#);
}

#[test]
fn wrong_names_are_reported_with_the_accepted_ones() {
    assert_snapshot!(after(&[("/objective/type", "nestd")]), @r#"
    error: unknown objective "nestd"
      at       p.json  /objective/type
      accepts  nested, plain
      nearest  nested
    "#);
    assert_snapshot!(after(&[("/objective/teacher/type", "plane"), ("/objective/rules/0/type", "7")]), @r#"
    error: unknown guidance 7
      at       p.json  /objective/rules/0/type
      accepts  mix
    error: unknown objective "plane"
      at       p.json  /objective/teacher/type
      accepts  nested, plain
      nearest  plain
    "#);
    assert_snapshot!(after(&[("/metrics/1/type", "count_everything")]), @r#"
    error: unknown metric "count_everything"
      at       p.json  /metrics/1/type
      accepts  count
    "#);
    assert_snapshot!(after(&[("/sampler/stepz", "3"), ("/objective/teacher/dropp", "0.1"), ("/extra", "1")]), @r#"
    error: unknown field "extra"
      at       p.json  /extra
      accepts  $schema, version, about, plugins, data, tokenizer, conditioner, backbone, objective, train, sampler, guidance, metrics
    error: unknown field "dropp"
      at       p.json  /objective/teacher/dropp
      accepts  drop
      nearest  drop
    error: unknown field "stepz"
      at       p.json  /sampler/stepz
      accepts  steps, tokens
      nearest  steps
    "#);
    assert_snapshot!(after(&[("/backbone/condition", "txt"), ("/backbone/norm", "lair")]), @r#"
    error: "txt" is not accepted here
      at       p.json  /backbone/condition
      accepts  none, class, text
      nearest  text
    error: "lair" is not accepted here
      at       p.json  /backbone/norm
      accepts  none, an object (fields: layer), an object (fields: group)
      nearest  layer
    "#);
    assert_snapshot!(after(&[("/backbone/norm", "{\"grup\": {\"groups\": 2}}")]), @r#"
    error: an object is not accepted here
      at       p.json  /backbone/norm
      accepts  none, an object (fields: layer), an object (fields: group)
      nearest  group
    "#);
    assert_snapshot!(without("/objective/type"), @r#"
    error: the objective has no "type"
      at       p.json  /objective
      accepts  nested, plain
      fix      add "type"
    "#);
    assert_snapshot!(without("/objective/teacher/type"), @r#"
    error: the objective has no "type"
      at       p.json  /objective/teacher
      accepts  nested, plain
      fix      add "type"
    "#);
    assert_snapshot!(without("/backbone"), @r#"
    error: missing field "backbone"
      at       p.json  /
      accepts  an object (type: tiny)
      fix      add "backbone"
    "#);
    assert_snapshot!(without("/guidance/scale"), @r#"
    error: missing field "scale"
      at       p.json  /guidance
      accepts  a number
      fix      add "scale"
    "#);
}

#[test]
fn a_missing_required_field_is_refused() {
    assert_snapshot!(without("/backbone/size"), @r#"
    error: missing field "size"
      at       p.json  /backbone
      accepts  an integer >= 0
      fix      add "size"
    "#);
    assert_snapshot!(without("/train/steps"), @r#"
    error: missing field "steps"
      at       p.json  /train
      accepts  an integer from 1 to 1000000000
      fix      add "steps"
    "#);
}

#[test]
fn wrong_values_are_reported_with_the_accepted_ones() {
    assert_snapshot!(after(&[("/data/size", "\"big\""), ("/sampler/steps", "0"), ("/objective/teacher/drop", "1.5")]), @r#"
    error: "big" is not an integer
      at       p.json  /data/size
      accepts  an integer from 1 to 1024
    error: 1.5 is out of range
      at       p.json  /objective/teacher/drop
      accepts  a number from 0 to 1
    error: 0 is out of range
      at       p.json  /sampler/steps
      accepts  an integer from 1 to 4294967295
    "#);
    assert_snapshot!(after(&[("/data/size", "-1"), ("/data/num_classes", "3.0"), ("/data/channel", "256")]), @r#"
    error: 256 is out of range
      at       p.json  /data/channel
      accepts  an integer from 0 to 255
    error: 3.0 is not a plain integer
      at       p.json  /data/num_classes
      accepts  an integer >= 0, or null
    error: -1 is out of range
      at       p.json  /data/size
      accepts  an integer from 1 to 1024
    "#);
    assert_snapshot!(after(&[("/sampler/steps", "4294967296")]), @r#"
    error: 4294967296 is out of range
      at       p.json  /sampler/steps
      accepts  an integer from 1 to 4294967295
    "#);
    assert_snapshot!(after(&[("/sampler/steps", "1e30"), ("/backbone/size", "99999999999999999999")]), @r#"
    error: 1e+20 is not a plain integer
      at       p.json  /backbone/size
      accepts  an integer >= 0
    error: 1e+30 is not a plain integer
      at       p.json  /sampler/steps
      accepts  an integer from 1 to 4294967295
    error: 1e+30 is out of range
      at       p.json  /sampler/steps
      accepts  an integer from 1 to 4294967295
    "#);
    assert_snapshot!(after(&[("/data/bounds", "[1]"), ("/conditioner", "[]"), ("/objective/scale", "0")]), @r#"
    error: a list of length 0 is not accepted here
      at       p.json  /conditioner
      accepts  an object (type: words), null
    error: a list of length 1 has less than 2 items
      at       p.json  /data/bounds
      accepts  a list, or null
    error: 0 is out of range
      at       p.json  /objective/scale
      accepts  a number > 0
    "#);
    assert_snapshot!(after(&[("/backbone/norm", "{\"layer\": {\"epsilon\": 2}}")]), @r#"
    error: 2 is out of range
      at       p.json  /backbone/norm/layer/epsilon
      accepts  a number from 0 to 1
    "#);
    assert_snapshot!(after(&[("/version", "2"), ("/tokenizer", "pixels"), ("/guidance", "null")]), @r#"
    error: null is not an object
      at       p.json  /guidance
      accepts  an object (type: mix)
    error: "pixels" is not an object
      at       p.json  /tokenizer
      accepts  an object (type: pixels)
    error: 2 is not accepted here
      at       p.json  /version
      accepts  1
    "#);
}

#[test]
fn text_that_is_not_json_is_located() {
    let said = |text: &str| show(&REGISTRY.parse(text).unwrap_err());
    assert_snapshot!(said("{\n  \"data\": { \"size\": 8,, }\n}"), @r#"
    error: not JSON: key must be a string at line 2 column 23
      at       p.json  /data
    "#);
    // Comments keep the location of what follows them.
    assert_snapshot!(said("// 8 pixels\n{ /* é */ \"data\": { \"size\": x } }"), @r#"
    error: not JSON: expected value at line 2 column 30
      at       p.json  /data/size
    "#);
    assert_snapshot!(said("{\n  /* \"data\": 1\n}"), @r#"
    error: not JSON: a comment without its end at line 2 column 3
      at       p.json  /
      fix      close the comment with */
    "#);
    assert_snapshot!(said("{ \"train\": { \"rate\": 1e400 } }"), @r#"
    error: not JSON: number out of range at line 1 column 26
      at       p.json  /train/rate
    "#);
    assert_snapshot!(said("{} {}"), @r#"
    error: not JSON: trailing characters at line 1 column 4
      at       p.json  /
    "#);
    assert_snapshot!(said("[]"), @r#"
    error: a list of length 0 is not an object
      at       p.json  /
      accepts  an object (fields: $schema, version, about, plugins, data, tokenizer, conditioner, backbone, objective, train, sampler, guidance, metrics)
    "#);
    let commented = "// a\n".to_string() + &valid().to_string().replacen('{', "{ /* b */", 1).replacen("]}", "],}", 1);
    assert!(REGISTRY.parse(&commented).is_ok());
    let twice = valid().to_string().replacen("\"drop\":0.1", "\"drop\":0.1,\"drop\":0.2", 1);
    assert_snapshot!(said(&twice), @r#"
    error: field "drop" appears more than once
      at       p.json  /objective/teacher/drop
      fix      keep one of them
    "#);
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    assert_snapshot!(after(&[("/data/size", "16"), ("/data/num_classes", "9")]), @r#"
    error: dataset "squares" has 9 classes; backbone "tiny" has 10 classes
      at       p.json  /data and /backbone
      accepts  the same number of classes on both sides
    error: tokenizer "pixels" produces latents with 16x16 positions and 3 channels; backbone "tiny" models latents with 8x8 positions and 3 channels
      at       p.json  /tokenizer and /backbone
      accepts  the same latent shape on both sides
    "#);
    assert_snapshot!(after(&[("/backbone/guidance_input", "false")]), @r#"
    error: objective "nested" needs a guidance input; backbone "tiny" has none
      at       p.json  /objective and /backbone/guidance_input
      accepts  a backbone with a guidance input
      fix      enable /backbone/guidance_input
    "#);
    assert_snapshot!(after(&[("/objective", "{\"type\": \"plain\"}"), ("/guidance/input", "true")]), @r#"
    error: the guidance input of backbone "tiny" has no effect: objective "plain" does not train it
      at       p.json  /backbone/guidance_input and /objective
      accepts  no guidance input, or an objective that trains it
      fix      remove /backbone/guidance_input
    error: guidance "mix" sets the scale through the backbone's guidance input; objective "plain" trains no guidance input
      at       p.json  /guidance and /objective
      accepts  guidance by branches, or an objective that trains a guidance input
    "#);
    assert_snapshot!(after(&[("/guidance/input", "true"), ("/guidance/scale", "9")]), @r#"
    error: guidance "mix" requests scale 9; objective "nested" does not train it
      at       p.json  /guidance and /objective
      accepts  scales from 0 to 4
    "#);
    assert_snapshot!(after(&[("/conditioner", "{\"type\": \"words\"}"), ("/sampler/tokens", "true")]), @r#"
    error: conditioner "words" has no effect: backbone "tiny" reads a class
      at       p.json  /conditioner and /backbone
      accepts  no conditioner, or a backbone that reads a text
      fix      remove /conditioner
    error: sampler "steps" cannot sample from backbone "tiny", which has a continuous process (diffusion or flow)
      at       p.json  /sampler and /backbone
      accepts  a sampler for a continuous process (diffusion or flow)
    "#);
    assert_snapshot!(after(&[("/backbone/condition", "text")]), @r#"
    error: backbone "tiny" reads a text; the document has no conditioner
      at       p.json  /backbone
      accepts  a backbone that reads a text, with a conditioner
      fix      add /conditioner
    error: backbone "tiny" reads a text; dataset "squares" has no captions
      at       p.json  /data and /backbone
      accepts  a dataset with captions
    "#);
    assert_snapshot!(after(&[
        ("/backbone", "{\"type\": \"tiny\", \"size\": 8, \"condition\": \"none\"}"),
        ("/data/captions", "true"),
        ("/objective", "{\"type\": \"plain\", \"drop\": 0.1}"),
    ]), @r#"
    error: dataset "squares" has captions; backbone "tiny" reads no condition
      at       p.json  /data and /backbone
      accepts  a dataset without captions, or a backbone that reads a text
    error: guidance "mix" needs the null condition; backbone "tiny" reads no condition
      at       p.json  /guidance and /backbone
      accepts  guidance without a null branch, or a backbone that reads a class or a text
    error: objective "plain" needs the null condition; backbone "tiny" reads no condition
      at       p.json  /objective and /backbone
      accepts  a backbone that reads a class or a text
    "#);
    assert_snapshot!(after(&[("/metrics/1/captions", "true"), ("/metrics/1/least_side", "9")]), @r#"
    error: metric "count" needs captions; dataset "squares" has none
      at       p.json  /metrics/1
      accepts  a dataset with captions, or a metric that needs none
    error: samples are 8 pixels high
      at       p.json  /metrics/1/least_side
    "#);
    assert_snapshot!(after(&[("/backbone/size", "0")]), @r#"
    error: `size` is 0
      at       p.json  /backbone/size
      accepts  a size of at least 1
    "#);
}

#[test]
fn wrong_overrides_are_located() {
    let said = |pointer: &str| format!("error: {}", set(&mut valid(), pointer, "1").unwrap_err().in_file("p.json"));
    assert_snapshot!(said("sampler"), @r#"
    error: "sampler" is not a JSON pointer
      at       p.json  /
      accepts  a pointer such as /train/steps
    "#);
    assert_snapshot!(said("/metrics/2/label"), @r#"
    error: /metrics/2 does not exist
      at       p.json  /metrics/2/label
      accepts  an index below 2
    "#);
    assert_snapshot!(said("/version/x"), @r#"
    error: "/version" is neither an object nor a list, so it has no member "x"
      at       p.json  /version/x
    "#);
    let mut document = valid();
    set(&mut document, "/metrics/1", "{\"type\": \"count\"}").unwrap();
    set(&mut document, "/about", "two words").unwrap();
    assert_eq!(document.pointer("/metrics/1/label"), None);
    assert_eq!(document["about"], "two words");
    set(&mut document, "/train/from/checkpoint", "file.pt").unwrap();
    assert_eq!(document["train"]["from"]["checkpoint"], "file.pt");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn nothing_written_is_ignored(mutant in mutations::a_mutant(vec![valid()])) {
        mutations::is_located_or_kept(&REGISTRY, &mutant)?;
    }
}
