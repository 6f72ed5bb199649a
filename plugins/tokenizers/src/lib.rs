//! Tokenizers convert images to latents and back, one file each. To add a tokenizer, add its file and list it
//! below.

#[cfg(test)]
use framework_dylib as _;

mod kl;
mod kl_f16;
mod levels;
mod pixels;
mod pyramid;
mod quantize;
mod sd_vae;
mod var_vqvae;
mod vq;
mod vq_f16;

pub use kl::KlNetwork;
pub use kl_f16::KlF16;
pub use levels::Levels;
pub use pixels::Pixels;
pub use pyramid::Pyramid;
pub use sd_vae::{Posterior, SdVae};
pub use var_vqvae::{VarNetwork, VarVqvae, phi_of_levels, phi_ticks};
pub use vq::Vq;
pub use vq_f16::{VqF16, VqNetwork};

/// Channels of the images that the published autoencoders were trained on: red, green and blue.
const IMAGE_CHANNELS: usize = 3;
