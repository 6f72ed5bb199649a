//! Parses the command line, with a short `-h` next to the long `--help`.

use crate::arguments::Arguments;
use clap::{CommandFactory, FromArgMatches};
use std::ffi::OsString;

/// Parses the command line. Arguments that clap cannot parse end the process.
pub fn parse(arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Arguments {
    let matches = command().get_matches_from(arguments);
    Arguments::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

/// Returns the command line's description. `-h` prints the first sentence of each text, `--help` prints all.
pub fn command() -> clap::Command {
    shortened(Arguments::command())
}

/// Returns the first sentence of a text, without its full stop.
fn first(text: &str) -> &str {
    let mut ends = text.match_indices(". ").map(|(end, _)| end);
    // An abbreviation such as `e.g.` is followed by a small letter.
    let end = ends.find(|end| text[end + 2..].starts_with(|letter: char| letter.is_uppercase()));
    text[..end.unwrap_or(text.len())].trim_end_matches('.')
}

fn shortened(command: clap::Command) -> clap::Command {
    let mut command = command.mut_args(|argument| match argument.get_help().map(ToString::to_string) {
        Some(text) => {
            let long = argument.get_long_help().map_or(text.clone(), ToString::to_string);
            argument.help(first(&text).to_string()).long_help(long)
        }
        None => argument,
    });
    // The first line is the example; signals, formats and other details follow it.
    if let Some(text) = command.get_after_help().map(ToString::to_string) {
        let short = text.split("\n\n").next().unwrap_or_default().to_string();
        command = command.after_help(short).after_long_help(text);
    }
    let names: Vec<String> = command.get_subcommands().map(|inner| inner.get_name().to_string()).collect();
    names.into_iter().fold(command, |command, name| command.mut_subcommand(name, shortened))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_sentence_ends_before_a_capital_letter() {
        assert_eq!(first("Classes, e.g. 0,1. May be repeated."), "Classes, e.g. 0,1");
        assert_eq!(first("One sentence."), "One sentence");
    }

    #[test]
    fn the_short_help_is_shorter_and_both_are_complete() {
        command().debug_assert();
        let mut command = command();
        command.build();
        for name in ["train", "sample", "forward", "init"] {
            let inner = command.find_subcommand_mut(name).unwrap();
            let [short, long] = [inner.render_help().to_string(), inner.render_long_help().to_string()];
            assert!(2 * short.len() < 3 * long.len() && short.len() < long.len(), "{name}: {short}");
            assert!(short.contains("Example: unguided"), "{name}: {short}");
        }
        let train = command.find_subcommand_mut("train").unwrap();
        assert!(!train.render_help().to_string().contains("SIGUSR1"));
        assert!(train.render_long_help().to_string().contains("SIGUSR1"));
    }
}
