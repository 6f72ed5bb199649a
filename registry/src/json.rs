//! Parsing of JSON text, with the location of syntax errors and duplicate keys, and `--set` overrides.

use crate::comments;
use crate::names::{join, split};
use framework::error::{Problem, Problems};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::fmt;

/// Size of the largest document, in bytes.
pub const MOST_BYTES: usize = 1_000_000;

/// Number of values in the largest document: objects, lists, strings, numbers and others.
pub const MOST_VALUES: usize = 20_000;

/// Parses a text to a JSON value. The text may contain comments and trailing commas. Returns a problem for every
/// duplicate key; the value keeps its first occurrence.
///
/// # Errors
/// If the text is not JSON; the problem names the line and the column. If it has more than [`MOST_BYTES`] bytes or
/// `MOST_VALUES` values.
pub fn read(text: &str) -> Result<(Value, Problems), Problem> {
    if text.len() > MOST_BYTES {
        return Err(too_large());
    }
    strict(&comments::without(text)?)
}

/// Does the same as [`read`] for a text without comments and trailing commas.
fn strict(text: &str) -> Result<(Value, Problems), Problem> {
    if text.len() > MOST_BYTES {
        return Err(too_large());
    }
    let mut reader = Reader { pointer: String::new(), problems: Problems::new(), values: 0 };
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = Node(&mut reader).deserialize(&mut deserializer);
    match value.and_then(|value| deserializer.end().map(|()| value)) {
        Ok(value) => Ok((value, reader.problems)),
        Err(_) if reader.values > MOST_VALUES => {
            Err(Problem::new("", "the document is too large").accepts(format!("at most {MOST_VALUES} values")))
        }
        Err(error) => Err(Problem::new(reader.pointer, format!("not JSON: {error}"))),
    }
}

/// Creates the problem with a document of more than [`MOST_BYTES`] bytes.
pub fn too_large() -> Problem {
    Problem::new("", "the document is too large").accepts(format!("at most {} MB", MOST_BYTES / 1_000_000))
}

/// Sets the value at `pointer`, for `--set /train/steps=500`. A `text` that is not JSON is taken as a string.
///
/// Creates members along the pointer that are absent or null as objects. The schema checks their names later.
///
/// # Errors
/// If the pointer does not start with `/`, contains an index outside a list, or leads through a number, a string or a
/// boolean, or if `text` has duplicate keys.
pub fn set(document: &mut Value, pointer: &str, text: &str) -> Result<(), Problem> {
    let lost = |what: String| Problem::new(if pointer.starts_with('/') { pointer } else { "" }, what);
    if !pointer.starts_with('/') {
        return Err(lost(format!("\"{pointer}\" is not a JSON pointer")).accepts("a pointer such as /train/steps"));
    }
    // A value such as `a // b` is a string, not a value with a comment.
    let (value, mut duplicates) = strict(text).unwrap_or_else(|_| (Value::String(text.to_string()), Problems::new()));
    if let Some(duplicate) = duplicates.pop() {
        return Err(duplicate.under(pointer));
    }
    let mut keys: Vec<String> = Vec::new();
    let mut rest = pointer;
    while let Some((parent, key)) = split(rest) {
        keys.push(key);
        rest = parent;
    }
    let (mut node, mut at) = (document, String::new());
    while let Some(key) = keys.pop() {
        let here = join(&at, &key);
        node = match node {
            Value::Object(members) if keys.is_empty() => {
                members.insert(key, value);
                return Ok(());
            }
            Value::Object(members) => {
                let member = members.entry(key).or_insert(Value::Null);
                if member.is_null() {
                    *member = Value::Object(Map::new());
                }
                member
            }
            Value::Array(items) => {
                let count = items.len();
                match key.parse::<usize>().ok().filter(|i| key == i.to_string()).and_then(|i| items.get_mut(i)) {
                    Some(item) => item,
                    None => {
                        return Err(lost(format!("{here} does not exist")).accepts(format!("an index below {count}")));
                    }
                }
            }
            _ => {
                return Err(lost(format!("\"{at}\" is neither an object nor a list, so it has no member \"{key}\"")));
            }
        };
        at = here;
    }
    *node = value;
    Ok(())
}

/// The state of the parser: the current pointer and the problems so far. After an error, `pointer` is its location.
struct Reader {
    pointer: String,
    problems: Problems,
    /// Number of values so far.
    values: usize,
}

impl Reader {
    fn within<T, E>(&mut self, key: &str, read: impl FnOnce(&mut Self) -> Result<T, E>) -> Result<T, E> {
        let outer = self.pointer.len();
        // Extend the pointer in place: a copy per value would be slow where keys are long.
        self.pointer.push_str(&join("", key));
        let value = read(self)?;
        self.pointer.truncate(outer);
        Ok(value)
    }
}

struct Node<'a>(&'a mut Reader);

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.0.values += 1;
        if self.0.values > MOST_VALUES {
            return Err(D::Error::custom("too many values"));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) =
            self.0.within(&items.len().to_string(), |reader| access.next_element_seed(Node(reader)))?
        {
            items.push(item);
        }
        Ok(items.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            let value = self.0.within(&key, |reader| access.next_value_seed(Node(reader)))?;
            if members.contains_key(&key) {
                self.0.problems.push(
                    Problem::new(join(&self.0.pointer, &key), format!("field \"{key}\" appears more than once"))
                        .fix("keep one of them"),
                );
            } else {
                members.insert(key, value);
            }
        }
        Ok(members.into())
    }
}
