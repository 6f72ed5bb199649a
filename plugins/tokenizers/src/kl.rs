//! The autoencoder with a Gaussian latent that `kl_f16` and `sd_vae` share.

use framework::burn;
use framework::burn::module::Module;
use framework::nn::Conv2d;
use framework::nn::autoencoder::{AutoencoderConfig, Decoder, Encoder};
use framework::prelude::*;

/// The weights of the autoencoder.
#[derive(Module, Debug)]
pub struct KlNetwork {
    /// Maps images to features.
    pub encoder: Encoder,
    /// Maps features to the mean and the log variance of the latent.
    pub quant_conv: Conv2d,
    /// Maps latents to features.
    pub post_quant_conv: Conv2d,
    /// Maps features to images.
    pub decoder: Decoder,
}

impl KlNetwork {
    /// Creates the network. Its parameters are not allocated yet. Encoder and decoder may have attention at
    /// different levels.
    pub fn new(encoder: &AutoencoderConfig, decoder: &AutoencoderConfig, channels: usize, device: &Device) -> Self {
        Self {
            encoder: Encoder::new(encoder, 2 * channels, device),
            quant_conv: Conv2d::new(2 * channels, 2 * channels, 1, device),
            post_quant_conv: Conv2d::new(channels, channels, 1, device),
            decoder: Decoder::new(decoder, channels, device),
        }
    }

    /// Computes mean and log variance, concatenated along the channels: `[B, 2 z, h, w]`.
    pub fn moments(&self, images: Tensor<4>) -> Tensor<4> {
        self.quant_conv.forward(self.encoder.forward(images))
    }

    /// Decodes latents `[B, z, h, w]` to images.
    pub fn decode(&self, latent: Tensor<4>) -> Tensor<4> {
        self.decoder.forward(self.post_quant_conv.forward(latent))
    }
}
