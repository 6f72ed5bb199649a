//! Writes a document with a comment above each entry.

use serde_json::Value;

/// Columns of a line.
const WIDTH: usize = 110;

/// One entry of a document: its key, its comment, and its value.
pub type Entry = (&'static str, String, Value);

/// Writes a value in one line.
fn inline(value: &Value) -> String {
    match value {
        Value::Object(members) if members.is_empty() => "{}".to_string(),
        Value::Object(members) => {
            let members =
                members.iter().map(|(key, value)| format!("{}: {}", Value::from(key.as_str()), inline(value)));
            format!("{{ {} }}", members.collect::<Vec<_>>().join(", "))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(inline).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}

/// Writes a value, broken into lines that start with `indent` if it does not fit into the rest of a line.
fn value(value: &Value, used: usize, indent: usize) -> String {
    let short = inline(value);
    let (open, close, parts): (char, char, Vec<String>) = match value {
        _ if used + short.chars().count() <= WIDTH => return short,
        Value::Object(members) => {
            let part = |(key, inner): (&String, &Value)| {
                let key = format!("{}: ", Value::from(key.as_str()));
                format!("{key}{}", self::value(inner, indent + 2 + key.len(), indent + 2))
            };
            ('{', '}', members.iter().map(part).collect())
        }
        Value::Array(items) => ('[', ']', items.iter().map(|item| self::value(item, indent + 2, indent + 2)).collect()),
        _ => return short,
    };
    let margin = " ".repeat(indent + 2);
    let mut lines = vec![String::new()];
    for part in parts {
        let last = lines.last_mut().expect("there is a line");
        if !last.is_empty() && indent + 2 + last.len() + part.len() + 3 > WIDTH {
            lines.push(part);
        } else {
            let gap = if last.is_empty() { "" } else { ", " };
            *last = format!("{last}{gap}{part}");
        }
    }
    let lines = lines.join(&format!(",\n{margin}"));
    format!("{open}\n{margin}{lines}\n{}{close}", " ".repeat(indent))
}

/// Breaks a comment into lines.
fn comment(text: &str) -> String {
    let mut lines = vec![String::from("  //")];
    for word in text.split_whitespace() {
        if lines[lines.len() - 1].len() + word.len() + 1 > WIDTH {
            lines.push(String::from("  //"));
        }
        let last = lines.last_mut().expect("there is a line");
        *last = format!("{last} {word}");
    }
    lines.join("\n")
}

/// Returns the text of a document with these entries.
pub fn document(entries: &[Entry]) -> String {
    let mut text = String::from("{\n");
    for (i, (key, why, entry)) in entries.iter().enumerate() {
        if !why.is_empty() {
            text += &format!("{}\n", comment(why));
        }
        let end = if i + 1 < entries.len() { "," } else { "" };
        let value = value(entry, 4 + key.len() + 4, 2);
        text += &format!("  {}: {value}{end}\n", Value::from(*key));
    }
    text + "}\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_document_reads_back_as_its_entries() {
        let long: Vec<usize> = (0..60).collect();
        let entries = [
            ("version", String::new(), json!(1)),
            ("data", "Why \"this\" is so. ".repeat(20), json!({ "type": "a", "list": long, "empty": {}, "é": [] })),
            ("train", "Short.".to_string(), json!({ "steps": 3, "inner": { "a": "x".repeat(80), "b": null } })),
        ];
        let text = document(&entries);
        let (value, problems) = registry::read(&text).unwrap();
        assert!(problems.is_empty());
        for (key, _, expected) in &entries {
            assert_eq!(&value[*key], expected);
        }
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH + 2), "{text}");
        assert!(text.contains("\n  // Short.\n  \"train\": {"), "{text}");
    }
}
