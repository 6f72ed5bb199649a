//! The MAR network: encoder, decoder, and the head that they condition.

use crate::head::{Head, HeadConfig};
use crate::{EPSILON, FREQUENCIES, MarConfig, Numbers, Sizes};
use framework::burn;
use framework::burn::module::{Module, Param};
use framework::network::backbone::Backbone;
use framework::nn::dropout::Dropout;
use framework::nn::hooks::{AttentionSite, Hooked};
use framework::nn::{
    Activation, Attention, AttentionConfig, LayerNorm, Linear, Mlp, TimestepEmbedder, gather, parameter, rows,
};
use framework::prelude::*;

/// Transformer block: attention and MLP, each preceded by a norm.
#[derive(Module, Debug)]
struct Block {
    norm1: LayerNorm,
    attn: Attention,
    norm2: LayerNorm,
    mlp: Mlp,
}

/// The MAR network. Field names follow the official checkpoints.
#[derive(Module, Debug)]
pub struct Mar {
    class_emb: Param<Tensor<2>>,
    fake_latent: Param<Tensor<2>>,
    beta_embedder: Option<TimestepEmbedder>,
    z_proj: Linear,
    z_proj_ln: LayerNorm,
    encoder_pos_embed_learned: Param<Tensor<3>>,
    encoder_blocks: Vec<Block>,
    encoder_norm: LayerNorm,
    decoder_embed: Linear,
    mask_token: Param<Tensor<3>>,
    decoder_pos_embed_learned: Param<Tensor<3>>,
    decoder_blocks: Vec<Block>,
    decoder_norm: LayerNorm,
    diffusion_pos_embed_learned: Param<Tensor<3>>,
    diffloss: Head,
    #[module(skip)]
    config: MarConfig,
}

impl Mar {
    /// Builds the network without allocating its parameters.
    pub fn new(config: &MarConfig, device: &Device) -> Self {
        let Sizes { encoder, decoder, diffloss_d, diffloss_w } = config.checked();
        let (tokens, channels) = (config.patches().tokens(), config.token_width());
        let norm = |width: usize| LayerNorm::new(width, EPSILON, device);
        let blocks = |Numbers { embed_dim: width, depth, num_heads }: Numbers| {
            let block = |_| Block {
                norm1: norm(width),
                attn: Attention::new(AttentionConfig { width, num_heads }, device),
                norm2: norm(width),
                mlp: Mlp::new(width, config.mlp_width(width), device).with_activation(Activation::Gelu),
            };
            (0..depth).map(block).collect::<Vec<_>>()
        };
        let positions = |width: usize| parameter([1, config.buffer_size + tokens, width], device);
        let head = HeadConfig {
            channels,
            out_channels: config.out_channels(),
            condition: decoder.embed_dim,
            depth: diffloss_d,
            width: diffloss_w,
        };
        Self {
            class_emb: parameter([config.class_num, encoder.embed_dim], device),
            fake_latent: parameter([1, encoder.embed_dim], device),
            beta_embedder: config
                .guidance_input
                .map(|_| TimestepEmbedder::new(encoder.embed_dim, FREQUENCIES, None, device)),
            z_proj: Linear::new(channels, encoder.embed_dim, device),
            z_proj_ln: norm(encoder.embed_dim),
            encoder_pos_embed_learned: positions(encoder.embed_dim),
            encoder_blocks: blocks(encoder),
            encoder_norm: norm(encoder.embed_dim),
            decoder_embed: Linear::new(encoder.embed_dim, decoder.embed_dim, device),
            mask_token: parameter([1, 1, decoder.embed_dim], device),
            decoder_pos_embed_learned: positions(decoder.embed_dim),
            decoder_blocks: blocks(decoder),
            decoder_norm: norm(decoder.embed_dim),
            diffusion_pos_embed_learned: parameter([1, tokens, decoder.embed_dim], device),
            diffloss: Head::new(head, device),
            config: config.clone(),
        }
    }

    /// Returns the sum of the class and guidance embeddings, one vector per sample: `[B, E]`.
    pub fn condition(&self, condition: &Condition, guidance: Option<&[f64]>, device: &Device) -> Tensor<2> {
        let table = Tensor::cat(vec![self.class_emb.val(), self.fake_latent.val()], 0);
        let classes = condition.class_rows(self.config.class_num);
        let class = rows(table, classes.into_iter().map(|class| class as usize));
        match (&self.beta_embedder, guidance) {
            (Some(embedder), Some(guidance)) => {
                let guidance: Vec<f64> = guidance.iter().map(|number| 1000.0 * number).collect();
                class + embedder.forward(&guidance, None, device)
            }
            _ => class,
        }
    }

    /// Encodes the class tokens and the known tokens of the latent, `[B, buffer + known, E]`.
    /// Shapes: `x` `[B, L, D]`, `hidden` row-major `[B, L]`, `class` `[B, E]`.
    pub fn encode(&self, x: Tensor<3>, hidden: &[bool], class: Tensor<2>, pass: &Pass) -> Tensor<3> {
        let ([batch, length, _], [_, width]) = (x.dims(), class.dims());
        let buffer = self.config.buffer_size;
        let position = self.encoder_pos_embed_learned.val();
        let mut tokens = class.unsqueeze_dim::<3>(1) + position.clone().narrow(1, 0, buffer);
        let known: Vec<usize> = (0..batch * length).filter(|i| !hidden[*i]).map(|i| i % length).collect();
        if !known.is_empty() {
            let table = position.reshape([buffer + length, width]);
            let places = rows(table, known.iter().map(|place| buffer + place));
            let values = self.z_proj.forward(gather(x, &known).cast(tokens.dtype()));
            tokens = Tensor::cat(vec![tokens, values + places.reshape([batch, known.len() / batch, width])], 1);
        }
        let tokens = run(&self.encoder_blocks, 0, self.z_proj_ln.forward(tokens), pass);
        self.encoder_norm.forward(tokens)
    }

    /// Computes the decoder's output at every position, `[B, L, W]`.
    /// Shapes: `encoded` `[B, buffer + known, E]`, `hidden` row-major `[B, L]`.
    pub fn decode(&self, encoded: Tensor<3>, hidden: &[bool], pass: &Pass) -> Tensor<3> {
        let x = self.decoder_embed.forward(encoded);
        let [batch, read, width] = x.dims();
        let (buffer, length) = (self.config.buffer_size, hidden.len() / batch);
        // The table holds all encoded tokens, and the mask token as its last row.
        let mask = batch * read;
        let table = Tensor::cat(vec![x.reshape([mask, width]), self.mask_token.val().reshape([1, width])], 0);
        let mut next = 0..mask;
        let mut row = |hidden: bool| if hidden { mask } else { next.next().expect("an equal number of known tokens") };
        let mut order = Vec::with_capacity(batch * (buffer + length));
        for hidden in hidden.chunks(length) {
            order.extend((0..buffer).map(|_| false).chain(hidden.iter().copied()).map(&mut row));
        }
        let x = rows(table, order).reshape([batch, buffer + length, width]) + self.decoder_pos_embed_learned.val();
        let x = run(&self.decoder_blocks, self.encoder_blocks.len(), x, pass);
        self.decoder_norm.forward(x).narrow(1, buffer, length) + self.diffusion_pos_embed_learned.val()
    }
}

/// The inputs of a block apart from its tokens.
#[derive(Clone, Debug, Default)]
pub struct Pass {
    /// Hooks that read or change the forward pass.
    pub hooks: Hooked,
    /// Masks of the pass.
    pub dropout: Dropout,
    /// Probability of dropping an element.
    pub proj_dropout: f64,
}

impl Backbone for Mar {
    fn predict(&self, input: &Input, condition: &Condition, control: &Control) -> Tensor<3> {
        let Input::Masked { x, hidden, places, x_t, t } = input else {
            panic!("mar reads masked tokens; the check phase refuses other families")
        };
        let read = || {
            let class = self.condition(condition, control.guidance.as_deref(), &x.device().inner());
            let pass =
                Pass { hooks: control.hooks.clone(), dropout: control.dropout, proj_dropout: self.config.proj_dropout };
            self.decode(self.encode(x.clone(), hidden, class, &pass), hidden, &pass)
        };
        let z = match &control.cache {
            Some(cache) => cache.features(read),
            None => read(),
        };
        let [batch, count, channels] = x_t.dims();
        let flat = batch * count;
        let head = &self.config.masked().head;
        let t: Vec<f64> = t.iter().map(|t| head.index_of_t(*t)).collect();
        let z = gather(z, places).reshape([flat, self.config.checked().decoder.embed_dim]);
        let x_t = x_t.clone().reshape([flat, channels]);
        let out = self.diffloss.forward(x_t.clone().cast(z.dtype()), &t, z);
        out.reshape([batch, count, self.config.out_channels()]).cast(x_t.dtype())
    }
}

/// Runs the blocks on the tokens. The first block has index `first` in the numbering over encoder and decoder.
fn run(blocks: &[Block], first: usize, tokens: Tensor<3>, pass: &Pass) -> Tensor<3> {
    let indexed = blocks.iter().zip(first..);
    indexed.fold(tokens, |tokens, (block, i)| pass.hooks.block(i, tokens, |tokens| block.forward(tokens, pass, i)))
}

impl Block {
    fn forward(&self, x: Tensor<3>, pass: &Pass, index: usize) -> Tensor<3> {
        let drop = |x: Tensor<3>, name: &str| pass.dropout.elements(x, pass.proj_dropout, &format!("{name} {index}"));
        let attended = self.attn.forward(self.norm1.forward(x.clone()), &pass.hooks, AttentionSite::own(index));
        let x = x + drop(attended, "attention");
        let mixed = self.mlp.forward_with(self.norm2.forward(x.clone()), |hidden| drop(hidden, "hidden"));
        x + drop(mixed, "mlp")
    }
}
