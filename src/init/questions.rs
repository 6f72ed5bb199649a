//! Questions on a terminal. Without a terminal, or with --yes, nothing is asked and the first choice counts.

use framework::error::{Error, Result};
use inquire::{InquireError, Select};
use std::fmt::Display;
use std::io::{self, IsTerminal};

/// Whether questions can be asked.
#[derive(Clone, Copy, Debug)]
pub struct Questions {
    asks: bool,
}

/// A choice with its explanation.
struct Choice<T>(T, String);

impl<T> Display for Choice<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.1)
    }
}

impl Questions {
    /// Asks on a terminal, unless `yes` accepts every recommendation.
    pub fn new(yes: bool) -> Self {
        Self { asks: !yes && io::stdin().is_terminal() && io::stderr().is_terminal() && io::stdout().is_terminal() }
    }

    /// Asks for one of the choices, which are values with explanations. The first one is recommended.
    ///
    /// # Errors
    /// If the user cancels.
    pub fn choose<T>(self, question: &str, mut choices: Vec<(T, String)>) -> Result<T> {
        if !self.asks || choices.len() == 1 {
            return Ok(choices.swap_remove(0).0);
        }
        let choices = choices.into_iter().map(|(value, text)| Choice(value, text)).collect();
        match Select::new(question, choices).with_page_size(12).prompt() {
            Ok(Choice(value, _)) => Ok(value),
            Err(InquireError::OperationCanceled | InquireError::OperationInterrupted) => {
                framework::interrupt::request_stop(2);
                Err(Error::Interrupted)
            }
            Err(error) => Err(Error::Run(format!("the question cannot be asked: {error}; use --yes"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_choice_counts_without_a_terminal() {
        let choices = || vec![(1, "one".to_string()), (2, "two".to_string())];
        assert_eq!(Questions::new(true).choose("Which?", choices()).unwrap(), 1);
        assert_eq!(Questions { asks: false }.choose("Which?", choices()).unwrap(), 1);
    }
}
