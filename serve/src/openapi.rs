//! The description of the interface, OpenAPI 3.1, with the schemas of the types that the handlers read and write.

use crate::describe::{Choices, RunDescription};
use crate::events;
use crate::limits::{MOST_BODY, MOST_IMAGES, MOST_WAITING, SAMPLING};
use crate::progress::Progress;
use crate::refusal::Refused;
use crate::request::SampleRequest;
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

/// Returns the OpenAPI document.
pub fn document() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut generator: SchemaGenerator = settings.into_generator();
    macro_rules! schema {
        ($type:ty) => {
            generator.subschema_for::<$type>().to_value()
        };
    }
    let content = |kind: &str, schema: Value| json!({ kind: { "schema": schema } });
    let refused = schema!(Refused);
    let answer = |what: &str, content: Value| {
        json!({
            "200": { "description": what, "content": content },
            "default": {
                "description": "Refused or failed. 400 malformed, 403 foreign, 404 unknown, 405 wrong method, 408 too \
                    slow, 409 no checkpoint yet, 413 too large, 415 not JSON, 422 wrong input, 503 too busy.",
                "content": { "application/json": { "schema": refused } }
            }
        })
    };
    let png = || content("image/png", json!({ "type": "string", "contentEncoding": "binary" }));
    let run = json!({
        "name": "run", "in": "path", "required": true, "schema": { "type": "string" }, "description": "Id of a run."
    });
    let step = json!({
        "name": "step", "in": "path", "required": true, "schema": { "type": "integer", "minimum": 0 },
        "description": "Step of a sample grid that the training saved."
    });
    let body = json!({ "required": true, "content": content("application/json", schema!(SampleRequest)) });
    let stream = format!(
        "Server-sent events. `queued` (Queued) comes first, then `step` (Stepped) while sampling, then `done` (Done) or \
         `error` (Refused). A stream that the client closes ends its request. At most {MOST_IMAGES} images and {} s per \
         request, {MOST_WAITING} waiting requests, {MOST_BODY} bytes per body.",
        SAMPLING.as_secs()
    );
    let paths = json!({
        "/api/runs": { "get": {
            "summary": "Lists the served runs.", "operationId": "runs",
            "responses": answer("The runs.", content("application/json", schema!(Vec<RunDescription>)))
        } },
        "/api/runs/{run}/choices": { "get": {
            "summary": "Lists samplers and guidance rules, and why a run cannot use one.", "operationId": "choices",
            "parameters": [run],
            "responses": answer("The choices.", content("application/json", schema!(Choices)))
        } },
        "/api/runs/{run}/progress": { "get": {
            "summary": "Returns the state and the logged curves of a training.", "operationId": "progress",
            "parameters": [run],
            "responses": answer("The progress.", content("application/json", schema!(Progress)))
        } },
        "/api/runs/{run}/samples/{step}": { "get": {
            "summary": "Returns a sample grid that the training saved.", "operationId": "sampleGrid",
            "parameters": [run, step], "responses": answer("The grid.", png())
        } },
        "/api/samples": { "post": {
            "summary": "Samples a grid and streams its estimates.", "operationId": "samples", "requestBody": body,
            "responses": answer(&stream, content("text/event-stream", json!({ "oneOf": [
                schema!(events::Queued), schema!(events::Stepped), schema!(events::Done), refused
            ] })))
        } },
        "/api/samples.png": { "post": {
            "summary": "Samples a grid and returns it: the bytes that `unguided sample` writes.",
            "operationId": "samplesPng", "requestBody": body, "responses": answer("The grid.", png())
        } },
        "/openapi.json": { "get": {
            "summary": "Returns this document.", "operationId": "openapi",
            "responses": answer("The document.", content("application/json", json!({ "type": "object" })))
        } }
    });
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Unguided", "version": env!("CARGO_PKG_VERSION"),
            "description": "Samples the runs that `unguided serve` was started with. The page at `/` uses only these calls."
        },
        "paths": paths,
        "components": { "schemas": generator.take_definitions(true) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls `see` with every `$ref`.
    fn references(value: &Value, see: &mut dyn FnMut(&str)) {
        match value {
            Value::Object(members) => members.iter().for_each(|(key, value)| match value {
                Value::String(to) if key == "$ref" => see(to),
                _ => references(value, see),
            }),
            Value::Array(items) => items.iter().for_each(|item| references(item, see)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_of_the_description_resolves() {
        let document = document();
        let mut seen = 0;
        references(&document, &mut |to| {
            assert!(document.pointer(to.trim_start_matches('#')).is_some(), "{to}");
            seen += 1;
        });
        assert!(seen > 10, "{seen}");
    }
}
