//! Comments and trailing commas in documents (JSONC). Both are replaced with spaces, byte by byte, so that the JSON
//! parser reads the rest unchanged and reports the lines and columns of the file.

use framework::error::Problem;
use jsonc_parser::errors::ParseErrorKind;
use jsonc_parser::tokens::Token;
use jsonc_parser::{Scanner, ScannerOptions};
use std::borrow::Cow;

/// Replaces `// comments`, `/* comments */` and the comma before a closing bracket with spaces. Line breaks stay.
///
/// # Errors
/// If a comment is not closed; the problem names the line and the column.
pub fn without(text: &str) -> Result<Cow<'_, str>, Problem> {
    let mut scanner = Scanner::new(text, &ScannerOptions::default());
    let mut blanked: Vec<(usize, usize)> = Vec::new();
    // The place of the last comma, if it follows a value and only comments follow it.
    let mut comma = None;
    let mut after_value = false;
    loop {
        match scanner.scan() {
            Ok(None) => break,
            Ok(Some(Token::CommentLine(_) | Token::CommentBlock(_))) => {
                blanked.push((scanner.token_start(), scanner.token_end()));
            }
            Ok(Some(Token::Comma)) => {
                comma = after_value.then_some((scanner.token_start(), scanner.token_end()));
                after_value = false;
            }
            Ok(Some(Token::CloseBrace | Token::CloseBracket)) => {
                blanked.extend(comma.take());
                after_value = true;
            }
            Ok(Some(token)) => {
                comma = None;
                after_value = !matches!(token, Token::OpenBrace | Token::OpenBracket | Token::Colon);
            }
            Err(error) if matches!(error.kind(), ParseErrorKind::UnterminatedCommentBlock) => {
                let (line, column) = place(text, scanner.token_start());
                let what = format!("not JSON: a comment without its end at line {line} column {column}");
                return Err(Problem::new("", what).fix("close the comment with */"));
            }
            // The JSON parser also stops here, and it names the location.
            Err(_) => break,
        }
    }
    if blanked.is_empty() {
        return Ok(Cow::Borrowed(text));
    }
    let mut bytes = text.as_bytes().to_vec();
    for (start, end) in blanked {
        for byte in &mut bytes[start..end] {
            if !matches!(byte, b'\n' | b'\r') {
                *byte = b' ';
            }
        }
    }
    Ok(Cow::Owned(String::from_utf8(bytes).expect("whole characters became spaces")))
}

/// Returns the line and the column of a byte. Both start at 1, and columns count bytes, as in the JSON parser.
fn place(text: &str, byte: usize) -> (usize, usize) {
    let before = &text.as_bytes()[..byte];
    let line_start = before.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    (before.iter().filter(|b| **b == b'\n').count() + 1, byte - line_start + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn comments_and_trailing_commas_become_spaces() {
        for (text, expected) in [
            ("{\"a\": 1, // é\n}", "{\"a\": 1       \n}"),
            ("[1, /* two\nlines */ 2,]", "[1,       \n         2 ]"),
            ("[[1,],\n {},]", "[[1 ],\n {} ]"),
            ("{\"a\": \"// no /* comment */\",}", "{\"a\": \"// no /* comment */\" }"),
            ("{\"a\\\"//\": 1}", "{\"a\\\"//\": 1}"),
        ] {
            assert_eq!(without(text).unwrap(), expected);
        }
    }

    #[test]
    fn other_commas_stay_and_are_refused_by_the_parser() {
        for text in ["[,]", "{,}", "[1,,]", "[1,]]", "{\"a\":,}"] {
            let read = without(text).unwrap();
            assert!(serde_json::from_str::<serde_json::Value>(&read).is_err(), "{text} became {read}");
        }
    }

    #[test]
    fn a_comment_without_its_end_is_located() {
        let problem = without("{\n  /* a").unwrap_err();
        assert_eq!(problem.what, "not JSON: a comment without its end at line 2 column 3");
    }

    /// Writes a value as JSON with comments and trailing commas. `choices` decides where.
    fn commented(value: &serde_json::Value, choices: &mut impl Iterator<Item = u8>, text: &mut String) {
        let mut gap = |text: &mut String| match choices.next() {
            Some(0) => text.push_str("// \"a, } ] é\n"),
            Some(1) => text.push_str("/* { \" , \n */"),
            Some(2) => text.push_str(" \n"),
            _ => {}
        };
        gap(text);
        let parts: (char, Vec<(Option<&str>, &serde_json::Value)>, char) = match value {
            serde_json::Value::Object(members) => {
                ('{', members.iter().map(|(key, value)| (Some(key.as_str()), value)).collect(), '}')
            }
            serde_json::Value::Array(items) => ('[', items.iter().map(|value| (None, value)).collect(), ']'),
            other => return text.push_str(&other.to_string()),
        };
        text.push(parts.0);
        let count = parts.1.len();
        for (i, (key, value)) in parts.1.into_iter().enumerate() {
            if let Some(key) = key {
                text.push_str(&serde_json::Value::from(key).to_string());
                text.push(':');
            }
            commented(value, choices, text);
            if i + 1 < count || choices.next().is_some_and(|choice| choice > 1) {
                text.push(',');
            }
        }
        if let Some(0) = choices.next() {
            text.push_str("/**/");
        }
        text.push(parts.2);
    }

    proptest! {
        #[test]
        fn a_commented_document_has_the_same_values(
            value in any::<f64>().prop_map(serde_json::Value::from).boxed().prop_recursive(4, 32, 4, |inner| prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::from),
                prop::collection::vec((".{0,6}", inner), 0..4)
                    .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
            ]),
            choices in prop::collection::vec(0u8..5, 0..64),
        ) {
            let mut text = String::new();
            commented(&value, &mut choices.into_iter(), &mut text);
            let blanked = without(&text).unwrap();
            prop_assert_eq!(blanked.len(), text.len());
            let read: serde_json::Value = serde_json::from_str(&blanked).unwrap();
            prop_assert_eq!(read, value);
        }

        #[test]
        fn any_text_keeps_its_length_and_its_lines(text in "[\\[\\]{},:/*\"\\\\ a1é\n]{0,40}") {
            if let Ok(blanked) = without(&text) {
                prop_assert_eq!(blanked.len(), text.len());
                prop_assert_eq!(blanked.matches('\n').count(), text.matches('\n').count());
            }
        }
    }
}
