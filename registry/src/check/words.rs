//! Descriptions of process families and latent shapes, for messages.

use framework::process::{Family, LatentShape};

pub(super) fn describe(family: Family) -> &'static str {
    match family {
        Family::Continuous => "a continuous process (diffusion or flow)",
        Family::NextToken => "a next-token process",
        Family::NextLevel => "a next-level process",
        Family::Masked => "a masked process",
    }
}

pub(super) fn words(shape: &LatentShape) -> String {
    let [height, width] = shape.grid;
    match shape.vocabulary {
        Some(vocabulary) if !shape.levels.is_empty() => {
            let (levels, channels) = (&shape.levels, shape.channels);
            format!("level sides {levels:?}, a vocabulary of {vocabulary} and {channels} feature channels")
        }
        Some(vocabulary) => format!("{height}x{width} tokens and a vocabulary of {vocabulary}"),
        None => format!("{height}x{width} positions and {} channels", shape.channels),
    }
}
