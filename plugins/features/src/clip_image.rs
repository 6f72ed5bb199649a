//! CLIP's image encoder.
//!
//!   f(x) = W norm(h_0),   h = layers(norm([class; patches] + positions)),   h_0: the class token
//!
//! Source: arXiv:2103.00020 sec. 2.4 and the released code; arXiv:2203.06026 for Frechet distances in this space.
//! Shapes: `[B, 1 or 3, H, W]` to `[B, projection_dim]`.

use crate::resize::{Resizing, grey_to_rgb, levels};
use framework::burn::module::{Module, Param};
use framework::checkpoint::names::{Layout, OfficialName, OfficialNames};
use framework::checkpoint::official;
use framework::data::tokenizer::ImageShape;
use framework::error::{Problems, Result};
use framework::evaluation::features::{Extracted, Extractor, FeatureWidths, Features};
use framework::nn::{
    Activation, Embedding, LayerNorm, Linear, Mlp, Span, attend, heads, merge_heads, parameter, to_patches,
    to_positions,
};
use framework::prelude::*;
use std::path::PathBuf;
use std::sync::Arc;

/// CLIP's image encoder. The defaults match ViT-B/32.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required(&["path"]))]
pub struct ClipImage {
    /// The weights: a folder or a file of `transformers` that holds the image encoder and its projection, e.g. of
    /// `openai/clip-vit-base-patch32`. A relative path starts at the working directory.
    pub path: PathBuf,
    /// Side of the network's input, in pixels; a multiple of `patch_size`. The shorter side of an image is resized to
    /// it, cubic with antialiasing, and the centre is cut out.
    #[schemars(range(min = 1, max = 4096))]
    pub image_size: usize,
    /// Side of a patch, in pixels.
    #[schemars(range(min = 1, max = 256))]
    pub patch_size: usize,
    /// Width of the tokens.
    #[schemars(range(min = 1, max = 65_536))]
    pub hidden_size: usize,
    /// Hidden width of the MLPs.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub intermediate_size: usize,
    /// Number of transformer layers.
    #[schemars(range(min = 1, max = 512))]
    pub num_layers: usize,
    /// Number of attention heads per layer; a divisor of `hidden_size`.
    #[schemars(range(min = 1, max = 256))]
    pub num_heads: usize,
    /// Number of dimensions of the features.
    #[schemars(range(min = 1, max = 65_536))]
    pub projection_dim: usize,
}

impl Default for ClipImage {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            image_size: 224,
            patch_size: 32,
            hidden_size: 768,
            intermediate_size: 3072,
            num_layers: 12,
            num_heads: 12,
            projection_dim: 512,
        }
    }
}

framework::register!(features "clip_image" => ClipImage, "arXiv:2103.00020", "arXiv:2203.06026");

/// Mean of each channel of the training images, in [0, 1].
const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// Standard deviation of each channel of the training images.
const DEVIATION: [f32; 3] = [0.268_629_55, 0.261_302_6, 0.275_777_1];
/// The epsilon of every layer norm.
const EPSILON: f64 = 1e-5;

impl ClipImage {
    /// Creates the network. Its parameters are not allocated yet.
    pub fn init(&self, device: &Device) -> ImageEncoder {
        let width = self.hidden_size;
        let norm = || LayerNorm::new(width, EPSILON, device);
        let linear = || Linear::new(width, width, device);
        let layer = |_| Layer {
            layer_norm1: norm(),
            self_attn: Attention {
                q_proj: linear(),
                k_proj: linear(),
                v_proj: linear(),
                out_proj: linear(),
                num_heads: self.num_heads,
            },
            layer_norm2: norm(),
            mlp: Mlp::new(width, self.intermediate_size, device).with_activation(Activation::GeluQuick),
        };
        let side = self.image_size / self.patch_size;
        ImageEncoder {
            class_embedding: parameter([width], device),
            patch_embedding: Linear::without_bias(3 * self.patch_size * self.patch_size, width, device),
            position_embedding: Embedding::new(side * side + 1, width, device),
            pre_layrnorm: norm(),
            layers: (0..self.num_layers).map(layer).collect(),
            post_layernorm: norm(),
            visual_projection: Linear::without_bias(width, self.projection_dim, device),
            image_size: self.image_size,
            patch_size: self.patch_size,
        }
    }

    /// Returns the names in the files of `transformers`.
    pub fn formats(&self) -> Vec<OfficialNames> {
        let patch = self.patch_size;
        let of = move |path: &str| {
            let name = match path.split('.').next() {
                Some("visual_projection") => path.to_string(),
                Some("layers") => format!("vision_model.encoder.{path}"),
                Some("class_embedding" | "patch_embedding" | "position_embedding") => {
                    format!("vision_model.embeddings.{path}")
                }
                _ => format!("vision_model.{path}"),
            };
            let linear = ["self_attn", "mlp", "visual_projection"].iter().any(|part| path.contains(part));
            let layout = match () {
                () if path.starts_with("patch_embedding") => Layout::PatchConv { patch },
                () if linear && path.ends_with(".weight") => Layout::Transposed,
                () => Layout::Same,
            };
            OfficialName { name, layout }
        };
        vec![OfficialNames {
            format: "transformers",
            folder: "",
            of: Arc::new(of),
            nesting: &[],
            ignored: &[
                ("position_ids", "indices that count from 0"),
                ("text_model.", "the text encoder"),
                ("text_projection", "the projection of texts"),
                ("logit_scale", "the scale of CLIP's loss"),
            ],
            optional: &[],
        }]
    }
}

impl Features for ClipImage {
    fn check(&self) -> Problems {
        let mut problems = Problems::new();
        for (name, value, of, whole) in [
            ("num_heads", self.num_heads, "hidden_size", self.hidden_size),
            ("patch_size", self.patch_size, "image_size", self.image_size),
        ] {
            if value == 0 || !whole.is_multiple_of(value) {
                let what = format!("`{name}` = {value} does not divide `{of}` = {whole}");
                problems.push(Problem::new(format!("/{name}"), what).accepts(format!("a divisor of {whole}")));
            }
        }
        problems
    }

    fn check_image(&self, [channels, height, width]: ImageShape) -> Problems {
        if channels == 1 || channels == 3 {
            return Problems::new();
        }
        let what = format!("features \"clip_image\" cannot read these images of {channels}x{height}x{width}");
        vec![Problem::new("", what).accepts("images of 1 or 3 channels")]
    }

    fn space(&self) -> String {
        format!("clip_image_{}_{}", self.hidden_size, self.patch_size)
    }

    fn widths(&self, _: ImageShape) -> FeatureWidths {
        FeatureWidths::of_vector(self.projection_dim)
    }

    fn batch_size(&self) -> usize {
        16
    }

    fn load(&self, device: &Device) -> Result<Box<dyn Extractor>> {
        let (network, _) = official::load_whole(self.init(device), &self.formats(), &self.path)?;
        Ok(Box::new(Loaded(network)))
    }
}

/// Self-attention with separate projections of queries, keys and values.
#[derive(Module, Debug)]
pub struct Attention {
    /// Queries.
    pub q_proj: Linear,
    /// Keys.
    pub k_proj: Linear,
    /// Values.
    pub v_proj: Linear,
    /// Output projection.
    pub out_proj: Linear,
    #[module(skip)]
    num_heads: usize,
}

/// One transformer layer.
#[derive(Module, Debug)]
pub struct Layer {
    /// Before the attention.
    pub layer_norm1: LayerNorm,
    /// Self-attention over all tokens.
    pub self_attn: Attention,
    /// Before the MLP.
    pub layer_norm2: LayerNorm,
    /// Applied to each token separately.
    pub mlp: Mlp,
}

/// The image encoder. The fields have the names of the official checkpoints.
#[derive(Module, Debug)]
pub struct ImageEncoder {
    /// `[D]`.
    pub class_embedding: Param<Tensor<1>>,
    /// `[p p 3, D]`.
    pub patch_embedding: Linear,
    /// `[1 + number of patches, D]`.
    pub position_embedding: Embedding,
    /// Before the layers.
    pub pre_layrnorm: LayerNorm,
    /// The layers, in order.
    pub layers: Vec<Layer>,
    /// After the last layer, on the class token.
    pub post_layernorm: LayerNorm,
    /// To the features.
    pub visual_projection: Linear,
    #[module(skip)]
    image_size: usize,
    #[module(skip)]
    patch_size: usize,
}

impl Attention {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let part = |linear: &Linear| heads(linear.forward(x.clone()), self.num_heads);
        let parts = [part(&self.q_proj), part(&self.k_proj), part(&self.v_proj)];
        self.out_proj.forward(merge_heads(attend(parts, Span::All, None, None)))
    }
}

/// The network ready to evaluate.
struct Loaded(ImageEncoder);

impl Extractor for Loaded {
    fn extract(&self, images: Tensor<4>) -> Result<Extracted> {
        let network = &self.0;
        let (side, device) = (network.image_size, images.device());
        let resized = Resizing::Clean.resize_and_crop(grey_to_rgb(levels(images)), side).round().clamp(0.0, 255.0);
        let channels = |values: [f32; 3]| Tensor::<1>::from_data(values, &device).reshape([1, 3, 1, 1]);
        let x = (resized / 255.0 - channels(MEAN)) / channels(DEVIATION);
        let batch = x.dims()[0];
        let patches = network.patch_embedding.forward(to_patches(to_positions(x), [side, side], network.patch_size));
        let width = patches.dims()[2];
        let class = network.class_embedding.val().reshape([1, 1, width]).expand([batch, 1, width]);
        let positions = network.position_embedding.weight.val().unsqueeze_dim(0);
        let mut x = network.pre_layrnorm.forward(Tensor::cat(vec![class, patches], 1) + positions);
        for layer in &network.layers {
            x = x.clone() + layer.self_attn.forward(layer.layer_norm1.forward(x));
            x = x.clone() + layer.mlp.forward(layer.layer_norm2.forward(x));
        }
        let first = network.post_layernorm.forward(x.narrow(1, 0, 1).reshape([batch, width]));
        Ok(Extracted::of_vectors(network.visual_projection.forward(first)))
    }
}
