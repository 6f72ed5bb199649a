//! The containers that weights are written to. The ending of the file name selects one.

use crate::checkpoint::tensor_file::save_tensors;
use crate::checkpoint::torch_file;
use crate::error::{Problem, Result};
use burn::tensor::TensorData;
use std::path::Path;

/// A container of tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    /// Safetensors.
    Safetensors,
    /// The zip of `torch.save`.
    Torch,
}

impl Container {
    /// Returns the container that a file name asks for.
    ///
    /// # Errors
    /// If the ending belongs to no container. The error lists the accepted endings.
    pub fn of(path: &Path) -> Result<Self> {
        let ending = path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase());
        match ending.as_deref() {
            Some("safetensors") => Ok(Self::Safetensors),
            Some("pt" | "pth" | "ckpt" | "bin") => Ok(Self::Torch),
            _ => {
                let what = format!("{}: the ending of the file name selects no format of weights", path.display());
                Err(Problem::new("", what).accepts(".safetensors, or .pt, .pth, .ckpt or .bin for torch").into())
            }
        }
    }

    /// Writes named tensors. A torch file holds them under the entry `entry`, or as a flat dictionary if `entry` is
    /// empty. Safetensors is always flat.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(self, tensors: &[(String, TensorData)], path: &Path, entry: &str) -> Result<()> {
        match self {
            Self::Safetensors => save_tensors(tensors, path),
            Self::Torch => torch_file::save(tensors, path, entry),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ending_selects_the_container() {
        for (name, container) in [
            ("a.safetensors", Container::Safetensors),
            ("a.SAFETENSORS", Container::Safetensors),
            ("a.ckpt", Container::Torch),
            ("a.b.pt", Container::Torch),
        ] {
            assert_eq!(Container::of(Path::new(name)).unwrap(), container, "{name}");
        }
        for name in ["a", "dit-0.1", "a.gguf", "safetensors"] {
            let error = Container::of(Path::new(name)).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(".safetensors, or .pt"), "{error}");
        }
    }
}
