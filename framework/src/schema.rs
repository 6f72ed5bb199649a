//! Additions to the JSON Schema that schemars derives for a document entry.

use schemars::Schema;
use schemars::transform::Transform;
use serde_json::{Value, json};

/// Marks the fields that a document must state.
///
/// `#[serde(default)]` on a struct makes all fields optional and takes all defaults from one `impl Default`. This
/// attribute makes the named fields required again and removes their defaults from the schema:
/// `#[schemars(transform = Required(&["steps"]))]`. Their values in `impl Default` are placeholders. They never reach a
/// document, because the registry validates each document against the schema before serde reads it.
#[derive(Clone, Copy, Debug)]
pub struct Required(pub &'static [&'static str]);

impl Transform for Required {
    /// # Panics
    /// If the entry has no field of one of the names.
    fn transform(&mut self, schema: &mut Schema) {
        let mut fields = schema.get_mut("properties").and_then(Value::as_object_mut);
        for name in self.0 {
            let field = fields.as_mut().and_then(|fields| fields.get_mut(*name)?.as_object_mut());
            field.unwrap_or_else(|| panic!("the entry has no field `{name}`")).shift_remove("default");
        }
        schema.insert("required".to_string(), json!(self.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemars::JsonSchema;
    use serde::{Deserialize, Serialize};

    #[derive(Serialize, Deserialize, JsonSchema)]
    #[serde(default, deny_unknown_fields)]
    #[schemars(transform = Required(&["steps"]))]
    struct Entry {
        steps: usize,
        seed: u64,
    }

    impl Default for Entry {
        fn default() -> Self {
            Self { steps: 0, seed: 7 }
        }
    }

    #[derive(Serialize, Deserialize, JsonSchema)]
    #[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
    enum Choice {
        First(Entry),
    }

    #[test]
    fn only_required_fields_have_no_default() {
        let schema = Value::from(schemars::schema_for!(Entry));
        assert_eq!(schema["required"], json!(["steps"]));
        assert_eq!(schema["properties"]["steps"].get("default"), None);
        assert_eq!(schema["properties"]["seed"]["default"], json!(7));
    }

    #[test]
    fn a_variant_requires_its_type_and_the_fields_of_its_struct() {
        let schema = Value::from(schemars::schema_for!(Choice));
        let first = &schema["oneOf"][0];
        assert_eq!(first["required"], json!(["type", "steps"]));
        assert_eq!(first["properties"]["type"]["const"], json!("first"));
        assert_eq!(first["additionalProperties"], json!(false));
        assert_eq!(first["properties"]["seed"]["default"], json!(7));
    }

    #[test]
    fn a_variant_rejects_fields_that_its_struct_lacks() {
        let read = |text: &str| serde_json::from_str::<Choice>(text).map(|Choice::First(entry)| entry.seed);
        assert_eq!(read(r#"{"type": "first", "steps": 2}"#).unwrap(), 7);
        assert!(read(r#"{"type": "first", "steps": 2, "other": 1}"#).is_err());
    }
}
