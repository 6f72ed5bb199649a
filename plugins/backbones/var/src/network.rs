//! The VAR network: transformer blocks that the class modulates, and attention within and across levels.

// Two parameters keep the capital letters of their official names.
#![allow(non_snake_case)]

use crate::{Numbers, VarConfig};
use framework::burn;
use framework::burn::module::{Module, Param};
use framework::burn::tensor::{Bool, TensorData};
use framework::network::backbone::{Backbone, Cache};
use framework::nn::dropout::{Dropout, path_rate};
use framework::nn::hooks::{AttentionSite, Hooked, Packed};
use framework::nn::{
    Embedding, Linear, Mlp, Span, TimestepEmbedder, adaptive_layer_norm, affine, gated_add, heads, merge_heads,
    parameter, silu, unit_heads,
};
use framework::prelude::*;

/// Self-attention within and across levels. Queries and values have a bias, keys have none.
#[derive(Module, Debug)]
struct SelfAttention {
    scale_mul_1H11: Option<Param<Tensor<4>>>,
    q_bias: Param<Tensor<1>>,
    v_bias: Param<Tensor<1>>,
    mat_qkv: Linear,
    proj: Linear,
    #[module(skip)]
    num_heads: usize,
}

/// Transformer block. Its modulation comes from its own layer (`ada_lin`), or from the shared layer plus an offset
/// (`ada_gss`).
#[derive(Module, Debug)]
struct Block {
    attn: SelfAttention,
    ffn: Mlp,
    ada_lin: Option<Linear>,
    ada_gss: Option<Param<Tensor<4>>>,
}

/// Modulation of the final norm.
#[derive(Module, Debug)]
struct HeadNorm {
    ada_lin: Linear,
}

/// The VAR network. Field names follow the official checkpoints.
#[derive(Module, Debug)]
pub struct Var {
    word_embed: Linear,
    class_emb: Embedding,
    beta_embedder: Option<TimestepEmbedder>,
    pos_start: Param<Tensor<3>>,
    pos_1LC: Param<Tensor<3>>,
    lvl_embed: Embedding,
    shared_ada_lin: Option<Linear>,
    blocks: Vec<Block>,
    head_nm: HeadNorm,
    head: Linear,
    #[module(skip)]
    config: VarConfig,
}

/// Width of the sinusoids of the guidance number.
const FREQUENCIES: usize = 256;
/// Upper limit of an attention scale. The learned logarithm of the scale is clamped to ln(100).
const LARGEST_SCALE: f64 = 100.0;

impl Var {
    /// Builds the network without allocating its parameters.
    pub fn new(config: &VarConfig, device: &Device) -> Self {
        let Numbers { depth, embed_dim: width, num_heads, shared_aln } = config.checked();
        let block = |_| Block {
            attn: SelfAttention {
                scale_mul_1H11: config.attn_l2_norm.then(|| parameter([1, num_heads, 1, 1], device)),
                q_bias: parameter([width], device),
                v_bias: parameter([width], device),
                mat_qkv: Linear::without_bias(width, 3 * width, device),
                proj: Linear::new(width, width, device),
                num_heads,
            },
            ffn: Mlp::new(width, config.hidden(), device),
            ada_lin: (!shared_aln).then(|| Linear::new(width, 6 * width, device)),
            ada_gss: shared_aln.then(|| parameter([1, 1, 6, width], device)),
        };
        Self {
            word_embed: Linear::new(config.channels, width, device),
            class_emb: Embedding::new(config.num_classes + 1, width, device),
            beta_embedder: config.guidance_input.map(|_| TimestepEmbedder::new(width, FREQUENCIES, None, device)),
            pos_start: parameter([1, config.first(), width], device),
            pos_1LC: parameter([1, config.positions(), width], device),
            lvl_embed: Embedding::new(config.patch_nums.len(), width, device),
            shared_ada_lin: shared_aln.then(|| Linear::new(width, 6 * width, device)),
            blocks: (0..depth).map(block).collect(),
            head_nm: HeadNorm { ada_lin: Linear::new(width, 2 * width, device) },
            head: Linear::new(width, config.vocabulary, device),
            config: config.clone(),
        }
    }

    /// Returns the sum of the class and guidance embeddings, one vector per sample: `[B, D]`.
    fn condition(&self, condition: &Condition, guidance: Option<&[f64]>) -> Tensor<2> {
        let class = self.class_emb.rows(&condition.class_rows(self.config.num_classes));
        match (&self.beta_embedder, guidance) {
            (Some(embedder), Some(guidance)) => {
                let thousands: Vec<f64> = guidance.iter().map(|g| 1000.0 * g).collect();
                let device = class.device().inner();
                class + embedder.forward(&thousands, None, &device)
            }
            _ => class,
        }
    }

    /// Returns the attention mask of the queries `from..to` over the keys `0..to`. It hides keys of finer levels.
    /// Returns `None` if no key is hidden.
    fn mask(&self, from: usize, to: usize, batch: usize, device: &Device) -> Option<Tensor<4, Bool>> {
        let levels = &self.config.levels()[..to];
        if levels[from] == levels[to - 1] {
            return None;
        }
        let hidden: Vec<bool> =
            levels[from..].iter().flat_map(|own| levels.iter().map(move |other| other > own)).collect();
        let mask = Tensor::<4, Bool>::from_data(TensorData::new(hidden, [1, 1, to - from, to]), device);
        Some(mask.expand([batch, self.config.checked().num_heads, to - from, to]))
    }
}

impl Backbone for Var {
    fn predict(&self, input: &Input, condition: &Condition, control: &Control) -> Tensor<3> {
        let Input::Levels { features } = input else {
            panic!("var reads levels; the check phase refuses other families")
        };
        let [batch, end, _] = features.dims();
        let (cache, first, device) = (control.cache.as_ref(), self.config.first(), features.device().inner());
        let read = cache.map_or(0, Cache::read);
        let c = self.condition(condition, control.guidance.as_deref());
        let width = c.dims()[1];
        // The first level starts from the class alone. Every other level reads the features of the coarser levels.
        let words = |from: usize| {
            let features = features.clone().narrow(1, from, end - from).cast(c.dtype());
            self.word_embed.forward(features)
        };
        let start = || c.clone().unsqueeze_dim::<3>(1).expand([batch, first, width]) + self.pos_start.val();
        let x = match read {
            0 if end == first => start(),
            0 => Tensor::cat(vec![start(), words(first)], 1),
            _ => words(read),
        };
        let levels: Vec<i64> = self.config.levels()[read..end].iter().map(|level| *level as i64).collect();
        let places = self.lvl_embed.rows(&levels).unsqueeze::<3>() + self.pos_1LC.val().narrow(1, read, end - read);
        let mut x = x + places;
        let mask = self.mask(read, end, batch, &device);
        let active = silu(c);
        let shared = self.shared_ada_lin.as_ref().map(|ada| ada.forward(active.clone()).reshape([batch, 1, 6, width]));
        for (i, block) in self.blocks.iter().enumerate() {
            let modulation = block.modulation(&active, shared.as_ref());
            let dropout = control.dropout;
            let state = Pass { mask: mask.clone(), cache, hooks: &control.hooks, index: i, dropout };
            x = control.hooks.block(i, x, |x| block.forward(x, modulation, state, &self.config));
        }
        if let Some(cache) = cache {
            cache.advance(end);
        }
        let [scale, shift] = self.head_nm.ada_lin.forward(active).chunk(2, 1).try_into().expect("two equal chunks");
        let x = adaptive_layer_norm(x, self.config.norm_eps, shift, scale);
        self.head.forward(x)
    }
}

/// Inputs of a block apart from its tokens.
struct Pass<'a> {
    mask: Option<Tensor<4, Bool>>,
    cache: Option<&'a Cache>,
    hooks: &'a Hooked,
    index: usize,
    dropout: Dropout,
}

impl Block {
    /// Returns the gates, scales and shifts of attention (1) and MLP (2), each `[B, D]`, in the official order:
    /// gamma1, gamma2, scale1, scale2, shift1, shift2.
    fn modulation(&self, active: &Tensor<2>, shared: Option<&Tensor<4>>) -> [Tensor<2>; 6] {
        let [batch, width] = active.dims();
        let all = match (&self.ada_lin, &self.ada_gss, shared) {
            (Some(ada), ..) => ada.forward(active.clone()).reshape([batch, 1, 6, width]),
            (None, Some(offset), Some(shared)) => shared.clone() + offset.val(),
            _ => unreachable!("a block has its own modulation layer or an offset to the shared one"),
        };
        std::array::from_fn(|i| all.clone().narrow(2, i, 1).reshape([batch, width]))
    }

    fn forward(
        &self,
        x: Tensor<3>,
        [gamma_attn, gamma_ffn, scale_attn, scale_ffn, shift_attn, shift_ffn]: [Tensor<2>; 6],
        pass: Pass<'_>,
        config: &VarConfig,
    ) -> Tensor<3> {
        let (epsilon, dropout, index) = (config.norm_eps, pass.dropout, pass.index);
        let path = path_rate(config.drop_path_rate, index, config.checked().depth);
        let branch = |x: Tensor<3>, name: &str| {
            let dropped = dropout.elements(x, config.drop_rate, &format!("{name} {index}"));
            dropout.path(dropped, path, &format!("{name} path {index}"))
        };
        let modulated = adaptive_layer_norm(x.clone(), epsilon, shift_attn, scale_attn);
        let x = gated_add(x, branch(self.attn.forward(modulated, pass), "attention"), gamma_attn);
        let modulated = adaptive_layer_norm(x.clone(), epsilon, shift_ffn, scale_ffn);
        gated_add(x, branch(self.ffn.forward(modulated), "mlp"), gamma_ffn)
    }
}

impl SelfAttention {
    fn forward(&self, x: Tensor<3>, Pass { mask, cache, hooks, index, .. }: Pass<'_>) -> Tensor<3> {
        let (width, site) = (x.dims()[2], AttentionSite::own(index));
        let [q_bias, v_bias] = [&self.q_bias, &self.v_bias].map(Param::val);
        let bias = Tensor::cat(vec![q_bias.clone(), q_bias.zeros_like(), v_bias], 0);
        let mut qkv = affine(x, self.mat_qkv.weight.val(), Some(bias));
        let mut scale = 0.25 / ((width / self.num_heads) as f64).sqrt();
        if let Some(log_scale) = &self.scale_mul_1H11 {
            let factors = log_scale.val().clamp_max(LARGEST_SCALE.ln()).exp();
            (qkv, scale) = (unit_heads(qkv, factors.reshape([self.num_heads])), 1.0);
        }
        let mixed = match cache {
            Some(cache) => {
                let [q, k, v] = [0, 1, 2].map(|i| heads(qkv.clone().narrow(2, i * width, width), self.num_heads));
                let [k, v] = hooks.cached(index, cache.extend(index, k, v));
                merge_heads(hooks.attend(site, [q, k, v], Span::All, mask, Some(scale)))
            }
            None => {
                let packed = Packed { num_heads: self.num_heads, span: Span::All, mask, scale: Some(scale) };
                hooks.attend_packed(site, qkv, packed)
            }
        };
        self.proj.forward(mixed)
    }
}
