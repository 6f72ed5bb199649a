//! One problem with what the user wrote: what, where, what is accepted, the nearest name, a fix.

use std::fmt;

/// A located problem in a pipeline document. Checks collect all of them; none is fatal by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problem {
    /// One sentence that says what is wrong.
    pub what: String,
    /// JSON pointers into the document ("" is the document itself).
    pub at: Vec<String>,
    /// What would have been accepted.
    pub accepts: Option<String>,
    /// The nearest accepted name, where a name was misspelt.
    pub nearest: Option<String>,
    /// What to change, where a change is known to help.
    pub fix: Option<String>,
}

impl Problem {
    /// A problem at one JSON pointer.
    pub fn new(at: impl Into<String>, what: impl Into<String>) -> Self {
        Self { what: what.into(), at: vec![at.into()], ..Self::default() }
    }

    /// The same problem, seen at a second pointer as well: the other half of an incompatible pair.
    pub fn and_at(mut self, at: impl Into<String>) -> Self {
        self.at.push(at.into());
        self
    }

    /// Says what would have been accepted.
    pub fn accepts(mut self, accepts: impl Into<String>) -> Self {
        self.accepts = Some(accepts.into());
        self
    }

    /// Names the nearest accepted name.
    pub fn nearest(mut self, nearest: Option<String>) -> Self {
        self.nearest = nearest;
        self
    }

    /// Says what to change.
    pub fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }

    /// The same problem with `prefix` in front of every pointer: used by a plugin that holds another.
    pub fn under(mut self, prefix: &str) -> Self {
        for at in &mut self.at {
            *at = format!("{prefix}{at}");
        }
        self
    }

    /// The problem as the command line prints it, located in `file`.
    pub fn display<'a>(&'a self, file: &'a str) -> impl fmt::Display + 'a {
        Located { problem: self, file }
    }
}

struct Located<'a> {
    problem: &'a Problem,
    file: &'a str,
}

impl fmt::Display for Located<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Problem { what, at, accepts, nearest, fix } = self.problem;
        let at: Vec<&str> = at.iter().map(|p| if p.is_empty() { "/" } else { p.as_str() }).collect();
        write!(f, "error: {what}\n  at       {}  {}", self.file, at.join(" and "))?;
        for (name, value) in [("accepts", accepts), ("nearest", nearest), ("fix", fix)] {
            if let Some(value) = value {
                write!(f, "\n  {name:<8} {value}")?;
            }
        }
        Ok(())
    }
}

/// The result of a check that reports everything it finds.
pub type Problems = Vec<Problem>;

/// An error while a pipeline runs: a file, a checkpoint, a device, a number that is not finite.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file was read and is not what it should be.
    #[error("{path}: {what}")]
    File {
        /// The file.
        path: String,
        /// What is wrong with it, and what helps.
        what: String,
    },
    /// The run itself failed.
    #[error("{0}")]
    Run(String),
    /// The user's document is wrong in ways only building it could show.
    #[error("the pipeline document has {} problem(s)", .0.len())]
    Document(Problems),
}

impl Error {
    /// Wraps a system error with the file it is about.
    pub fn io(path: &std::path::Path, source: std::io::Error) -> Self {
        Self::Io { path: path.display().to_string(), source }
    }

    /// An error about the content of a file.
    pub fn file(path: &std::path::Path, what: impl Into<String>) -> Self {
        Self::File { path: path.display().to_string(), what: what.into() }
    }
}

/// A result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
