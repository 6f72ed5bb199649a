//! The LlamaGen network: transformer layers with rotary positions, after a prefix of a class or a text.

use crate::{LlamaGenConfig, ModelType, Numbers};
use framework::burn;
use framework::burn::module::{Module, Param};
use framework::network::backbone::{Backbone, Cache};
use framework::nn::dropout::{Dropout, path_rate};
use framework::nn::hooks::{AttentionSite, Hooked, Packed};
use framework::nn::{
    Activation, Embedding, GatedMlp, Linear, Place, RmsNorm, Rotary, Span, TimestepEmbedder, activate, heads,
    merge_heads, parameter,
};
use framework::prelude::*;

/// Self-attention without biases, with rotary position embedding of queries and keys.
#[derive(Module, Debug)]
struct SelfAttention {
    wqkv: Linear,
    wo: Linear,
    #[module(skip)]
    n_head: usize,
}

/// Transformer layer: attention and gated MLP, each preceded by a norm.
#[derive(Module, Debug)]
struct Layer {
    attention: SelfAttention,
    feed_forward: GatedMlp,
    attention_norm: RmsNorm,
    ffn_norm: RmsNorm,
}

/// Projection of the text features.
#[derive(Module, Debug)]
struct CaptionProjection {
    fc1: Linear,
    fc2: Linear,
}

/// Weights of the prefix that precedes the image tokens. The prefix is a row of the class table, whose last row
/// belongs to the null class, or the projected features of a text.
#[derive(Module, Debug)]
struct Prefix {
    embedding_table: Option<Embedding>,
    cap_proj: Option<CaptionProjection>,
    uncond_embedding: Option<Param<Tensor<2>>>,
}

/// The LlamaGen network. Field names follow the official checkpoints.
#[derive(Module, Debug)]
pub struct LlamaGen {
    cls_embedding: Prefix,
    t_embedder: Option<TimestepEmbedder>,
    tok_embeddings: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    output: Linear,
    #[module(skip)]
    config: LlamaGenConfig,
}

/// Width of the sinusoids of the guidance number.
const FREQUENCIES: usize = 256;

impl LlamaGen {
    /// Builds the network without allocating its parameters.
    pub fn new(config: &LlamaGenConfig, device: &Device) -> Self {
        let Numbers { dim, n_layer, n_head } = config.checked();
        let layer = |_| Layer {
            attention: SelfAttention {
                wqkv: Linear::without_bias(dim, 3 * dim, device),
                wo: Linear::without_bias(dim, dim, device),
                n_head,
            },
            feed_forward: GatedMlp::new(dim, config.hidden(), device),
            attention_norm: RmsNorm::new(dim, config.norm_eps, device),
            ffn_norm: RmsNorm::new(dim, config.norm_eps, device),
        };
        let text = config.model_type == ModelType::T2i;
        let width = config.text_width();
        Self {
            cls_embedding: Prefix {
                embedding_table: (!text).then(|| Embedding::new(config.classes() + 1, dim, device)),
                cap_proj: text.then(|| CaptionProjection {
                    fc1: Linear::without_bias(width, dim, device),
                    fc2: Linear::without_bias(dim, dim, device),
                }),
                uncond_embedding: text.then(|| parameter([config.prefix(), width], device)),
            },
            t_embedder: config.guidance_input.map(|_| TimestepEmbedder::new(dim, FREQUENCIES, None, device)),
            tok_embeddings: Embedding::new(config.vocab_size, dim, device),
            layers: (0..n_layer).map(layer).collect(),
            norm: RmsNorm::new(dim, config.norm_eps, device),
            output: Linear::without_bias(dim, config.vocab_size, device),
            config: config.clone(),
        }
    }

    /// Returns the prefix that precedes the image tokens, `[B, prefix, D]`.
    fn prefix(&self, condition: &Condition, guidance: Option<&[f64]>) -> Tensor<3> {
        let prefix = match (&self.cls_embedding.embedding_table, condition) {
            (Some(table), _) => table.rows(&condition.class_rows(self.config.classes())).unsqueeze_dim(1),
            (None, Condition::Text { features, dropped, .. }) => self.text(features, dropped),
            _ => panic!("a text-conditional llamagen was given no text; the check phase refuses that"),
        };
        match (&self.t_embedder, guidance) {
            (Some(embedder), Some(guidance)) => {
                let thousands: Vec<f64> = guidance.iter().map(|g| 1000.0 * g).collect();
                let device = prefix.device().inner();
                prefix + embedder.forward(&thousands, None, &device).unsqueeze_dim(1)
            }
            _ => prefix,
        }
    }

    /// Projects text features `[B, prefix, F]`. Dropped samples use the learned null features instead.
    fn text(&self, features: &Tensor<3>, dropped: &[bool]) -> Tensor<3> {
        let (Some(projection), Some(null)) = (&self.cls_embedding.cap_proj, &self.cls_embedding.uncond_embedding)
        else {
            unreachable!("a network without a class table has both")
        };
        let null: Tensor<3> = null.val().unsqueeze();
        let rows: Vec<Tensor<3>> = dropped
            .iter()
            .enumerate()
            .map(
                |(i, dropped)| {
                    if *dropped { null.clone() } else { features.clone().narrow(0, i, 1).cast(null.dtype()) }
                },
            )
            .collect();
        projection.fc2.forward(activate(projection.fc1.forward(Tensor::cat(rows, 0)), Activation::GeluTanh))
    }

    /// Returns the rotations of the sequence entries `from..to`.
    fn rotary(&self, from: usize, to: usize, like: &Tensor<3>) -> Rotary {
        let (prefix, side) = (self.config.prefix(), self.config.side());
        let place = |i: usize| match i.checked_sub(prefix) {
            None => Place::Nowhere,
            Some(token) => Place::At(token / side, token % side),
        };
        let places: Vec<Place> = (from..to).map(place).collect();
        let Numbers { dim, n_head, .. } = self.config.checked();
        Rotary::new(&places, dim / n_head, self.config.rope_base, like.dtype(), &like.device().inner())
    }
}

impl Backbone for LlamaGen {
    fn predict(&self, input: &Input, condition: &Condition, control: &Control) -> Tensor<3> {
        let Input::Tokens { ids } = input else {
            panic!("llamagen reads tokens; the check phase refuses other families")
        };
        let (length, prefix) = (ids.dims()[1], self.config.prefix());
        let cache = control.cache.as_ref();
        // The sequence is [prefix, all tokens except the last]. Entries before `read` are in the cache already.
        let (read, end) = (cache.map_or(0, Cache::read), prefix + length - 1);
        let tokens = |from: usize| self.tok_embeddings.forward(ids.clone().narrow(1, from, length - 1 - from));
        let mut x = match read {
            0 if length == 1 => self.prefix(condition, control.guidance.as_deref()),
            0 => Tensor::cat(vec![self.prefix(condition, control.guidance.as_deref()), tokens(0)], 1),
            _ => tokens(read - prefix),
        };
        x = control.dropout.elements(x, self.config.token_dropout_p, "tokens");
        let rotary = self.rotary(read, end, &x);
        for (i, layer) in self.layers.iter().enumerate() {
            x = control.hooks.block(i, x, |x| {
                layer.forward(x, &rotary, (cache, &control.hooks), (i, &self.config, control.dropout))
            });
        }
        if let Some(cache) = cache {
            cache.advance(end);
        }
        // The last entry of the prefix predicts the first token, so drop the outputs of the entries before it.
        let skip = if read == 0 { prefix - 1 } else { 0 };
        self.output.forward(self.norm.forward(x.narrow(1, skip, end - read - skip)))
    }
}

impl Layer {
    fn forward(
        &self,
        x: Tensor<3>,
        rotary: &Rotary,
        (cache, hooks): (Option<&Cache>, &Hooked),
        (index, config, dropout): (usize, &LlamaGenConfig, Dropout),
    ) -> Tensor<3> {
        let path = path_rate(config.drop_path_rate, index, config.checked().n_layer);
        let branch = |x: Tensor<3>, p: f64, name: &str| {
            let dropped = dropout.elements(x, p, &format!("{name} {index}"));
            dropout.path(dropped, path, &format!("{name} path {index}"))
        };
        let attended = self.attention.forward(self.attention_norm.forward(x.clone()), rotary, (cache, hooks), index);
        let x = x + branch(attended, config.resid_dropout_p, "attention");
        x.clone() + branch(self.feed_forward.forward(self.ffn_norm.forward(x)), config.ffn_dropout_p, "mlp")
    }
}

impl SelfAttention {
    fn forward(
        &self,
        x: Tensor<3>,
        rotary: &Rotary,
        (cache, hooks): (Option<&Cache>, &Hooked),
        index: usize,
    ) -> Tensor<3> {
        let (width, site) = (x.dims()[2], AttentionSite::own(index));
        let qkv = rotary.turn(self.wqkv.forward(x));
        let mixed = match cache {
            None => {
                let packed = Packed { span: Span::Causal, ..Packed::all(self.n_head) };
                hooks.attend_packed(site, qkv, packed)
            }
            Some(cache) => {
                let part = |i: usize| heads(qkv.clone().narrow(2, i * width, width), self.n_head);
                let [k, v] = hooks.cached(index, cache.extend(index, part(1), part(2)));
                merge_heads(hooks.attend(site, [part(0), k, v], Span::Causal, None, None))
            }
        };
        self.wo.forward(mixed)
    }
}
