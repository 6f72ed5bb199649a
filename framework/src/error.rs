//! Errors, and problems in the user's input: what is wrong, where, what is accepted, the nearest name, a fix.

use crate::interrupt;
use std::borrow::Cow;
use std::fmt;

/// Problems that an error shows. It counts the others.
pub const MOST_SHOWN: usize = 50;

/// Characters that an error shows of one text, such as a name from a file.
const MOST_CHARACTERS: usize = 4000;

/// A problem in the user's input. The checks of a document report all of its problems.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problem {
    /// What is wrong, in one sentence.
    pub what: String,
    /// The document that the pointers in `at` refer to; `None` if the problem is not in a document.
    pub file: Option<String>,
    /// JSON pointers into the document ("" is the document itself). Outside documents, an option or a file.
    pub at: Vec<String>,
    /// Differences from the expected input, one per line.
    pub differs: Vec<String>,
    /// The accepted values.
    pub accepts: Option<String>,
    /// The nearest accepted name, if a name was misspelt.
    pub nearest: Option<String>,
    /// A change that is known to help.
    pub fix: Option<String>,
}

impl Problem {
    /// Creates a problem at one JSON pointer.
    pub fn new(at: impl Into<String>, what: impl Into<String>) -> Self {
        Self { what: what.into(), at: vec![at.into()], ..Self::default() }
    }

    /// Adds a second pointer: the other half of an incompatible pair.
    pub fn and_at(mut self, at: impl Into<String>) -> Self {
        self.at.push(at.into());
        self
    }

    /// Sets the accepted values.
    pub fn accepts(mut self, accepts: impl Into<String>) -> Self {
        self.accepts = Some(accepts.into());
        self
    }

    /// Sets the nearest accepted name.
    pub fn nearest(mut self, nearest: Option<String>) -> Self {
        self.nearest = nearest;
        self
    }

    /// Sets the suggested change.
    pub fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }

    /// Prefixes every pointer with `prefix`. A plugin that contains another plugin uses it for the inner
    /// one's problems.
    pub fn under(mut self, prefix: &str) -> Self {
        for at in &mut self.at {
            *at = format!("{prefix}{at}");
        }
        self
    }

    /// Sets the document that contains the problem, under the name that the user knows.
    pub fn in_file(mut self, file: &str) -> Self {
        self.file = Some(file.to_string());
        self
    }
}

/// Formats the problem as the command prints it, without the leading "error: ".
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, file, at, differs, accepts, nearest, fix } = self;
        f.write_str(&short(what))?;
        let root = if file.is_some() { "/" } else { "" };
        let at: Vec<&str> = at.iter().map(|place| if place.is_empty() { root } else { place.as_str() }).collect();
        let at = at.join(" and ");
        let place: Vec<&str> =
            [file.as_deref(), Some(at.as_str())].into_iter().flatten().filter(|p| !p.is_empty()).collect();
        if !place.is_empty() {
            write!(f, "\n  at       {}", short(&place.join("  ")))?;
        }
        for line in differs {
            write!(f, "\n  differs  {}", short(line))?;
        }
        for (name, value) in [("accepts", accepts), ("nearest", nearest), ("fix", fix)] {
            if let Some(value) = value {
                write!(f, "\n  {name:<8} {}", short(value))?;
            }
        }
        Ok(())
    }
}

/// Returns the first characters of a text that is too long for a message.
fn short(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(MOST_CHARACTERS) {
        Some((end, _)) => Cow::Owned(format!("{}.. ({} bytes in all)", &text[..end], text.len())),
        None => Cow::Borrowed(text),
    }
}

/// Formats problems as the command prints them, without the first "error: ".
fn joined(problems: &[Problem]) -> String {
    let mut all: Vec<String> = problems.iter().take(MOST_SHOWN).map(ToString::to_string).collect();
    if problems.len() > MOST_SHOWN {
        all.push(format!("{} more problems are not shown", problems.len() - MOST_SHOWN));
    }
    all.join("\nerror: ")
}

/// All problems that a check found.
pub type Problems = Vec<Problem>;

/// The reason why a command, or a part of one, failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The content of a file is invalid.
    #[error("{path}: {what}")]
    File {
        /// The file.
        path: String,
        /// What is wrong with the file, and a fix if one is known.
        what: String,
    },
    /// The run failed.
    #[error("{0}")]
    Run(String),
    /// The run failed, and a fix is known.
    #[error("{0}")]
    Failed(Box<Problem>),
    /// The process was asked to stop. The work so far is saved.
    #[error("interrupted")]
    Interrupted,
    /// The user's input is wrong: a document, an option, or a file.
    #[error("{}", joined(.0))]
    Input(Problems),
}

impl Error {
    /// Wraps a system error together with its file.
    pub fn io(path: &std::path::Path, source: std::io::Error) -> Self {
        Self::Io { path: path.display().to_string(), source }
    }

    /// Creates an error about the content of a file.
    pub fn file(path: &std::path::Path, what: impl Into<String>) -> Self {
        Self::File { path: path.display().to_string(), what: what.into() }
    }

    /// Creates an error from the problems of a document, which the user knows as `file`.
    pub fn input(problems: Problems, file: &str) -> Self {
        Self::Input(problems.into_iter().map(|problem| problem.in_file(file)).collect())
    }

    /// Creates an error for a failed run whose `problem` contains a fix.
    pub fn failed(problem: Problem) -> Self {
        Self::Failed(Box::new(problem))
    }

    /// Returns the exit code of a command that ends with this error: 2 if the input is wrong, 128 and the number of the
    /// signal if one stopped it, 1 otherwise.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Input(_) => 2,
            Self::Interrupted => interrupt::exit_code(),
            _ => 1,
        }
    }
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        Self::Input(vec![problem])
    }
}

/// A result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_shows_fifty_problems_and_counts_the_others() {
        let problems = |count: usize| Error::Input((0..count).map(|i| Problem::new("", format!("p{i}."))).collect());
        assert!(!problems(50).to_string().contains("more problems"));
        let said = problems(53).to_string();
        assert!(said.ends_with("p49.\nerror: 3 more problems are not shown"), "{said}");
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let said = Problem::new("é".repeat(5000), "é".repeat(4000)).accepts("é".repeat(4001)).to_string();
        assert_eq!(said.matches('é').count(), 12000);
        assert!(said.contains("(10000 bytes in all)") && said.contains("(8002 bytes in all)"), "{said}");
    }
}
