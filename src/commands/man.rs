//! `man`: writes the man pages.

use crate::arguments::Arguments;
use crate::{Outcome, console, outputs};
use clap::CommandFactory;
use framework::error::{Error, Problem};
use std::path::Path;

/// Writes `unguided.1` and a page per command to a folder.
pub fn man(folder: &Path) -> Outcome {
    if !folder.is_dir() {
        let what = format!("the folder {} does not exist", folder.display());
        return Err(Problem::new("FOLDER", what).accepts("an existing folder").into());
    }
    outputs::writable("FOLDER", folder)?;
    clap_mangen::generate_to(Arguments::command(), folder).map_err(|e| Error::io(folder, e))?;
    console::report(&folder.display().to_string());
    Ok(())
}
