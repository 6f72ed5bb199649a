//! The autoencoder with a normal latent that `kl_f16` and `sd_vae` share.

use framework::burn;
use framework::burn::module::Module;
use framework::nn::Conv2d;
use framework::nn::autoencoder::{AutoencoderConfig, Decoder, Encoder};
use framework::prelude::*;

/// The weights.
#[derive(Module, Debug)]
pub struct KlNetwork {
    /// Images to features.
    pub encoder: Encoder,
    /// Features to mean and logarithm of the variance.
    pub quant_conv: Conv2d,
    /// Latents to features.
    pub post_quant_conv: Conv2d,
    /// Features to images.
    pub decoder: Decoder,
}

impl KlNetwork {
    /// Allocates nothing. Encoder and decoder may have attention at different levels.
    pub fn new(encoder: &AutoencoderConfig, decoder: &AutoencoderConfig, channels: usize, device: &Device) -> Self {
        Self {
            encoder: Encoder::new(encoder, 2 * channels, device),
            quant_conv: Conv2d::new(2 * channels, 2 * channels, 1, device),
            post_quant_conv: Conv2d::new(channels, channels, 1, device),
            decoder: Decoder::new(decoder, channels, device),
        }
    }

    /// Mean and logarithm of the variance, one after the other: `[B, 2 z, h, w]`.
    pub fn moments(&self, images: Tensor<4>) -> Tensor<4> {
        self.quant_conv.forward(self.encoder.forward(images))
    }

    /// Latents `[B, z, h, w]` to images.
    pub fn decode(&self, latent: Tensor<4>) -> Tensor<4> {
        self.decoder.forward(self.post_quant_conv.forward(latent))
    }
}
