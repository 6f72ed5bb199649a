//! The autoencoder of latent diffusion (Stable Diffusion, DiT, SiT). One position covers 8x8 pixels.
//!
//!   mean, logvar = halves of quant_conv(encoder(image)),   z = mean, or mean + exp(logvar / 2) noise
//!   x            = scaling_factor z,   image = decoder(post_quant_conv(x / scaling_factor))
//!
//! Source: arXiv:2112.10752 sec. 3.1. Shapes: images `[B, 3, H, W]`, x `[B, L, 4]` in raster order, L = H W / 64.
//! Large images can be cut into overlapping tiles whose seams are blended, as `diffusers` does.

use crate::IMAGE_CHANNELS;
use crate::kl::KlNetwork;
use framework::burn::tensor::DType;
use framework::checkpoint::component::Component;
use framework::checkpoint::names::{BESIDE_LATENT_DIFFUSION, Layout, OfficialName, OfficialNames};
use framework::checkpoint::official::{self, Report};
use framework::checkpoint::open;
use framework::data::tokenizer::{ImageShape, Tokenizer};
use framework::error::{Error, Problems, Result};
use framework::nn::autoencoder::AutoencoderConfig;
use framework::nn::parameters;
use framework::nn::{from_positions, to_positions};
use framework::prelude::*;
use framework::process::Latent;
use framework::random::{Random, tensor};
use framework::serde_json::json;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

/// How a latent is chosen from the Gaussian that the encoder predicts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Posterior {
    /// The mean.
    #[default]
    Mean,
    /// A random sample. Its noise is a function of the pixels, so the same image always gives the same latent.
    Sample,
}

/// The autoencoder of latent diffusion. The defaults match Stable Diffusion 1.5 and sd-vae-ft-*.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required(&["path"]))]
pub struct SdVae {
    /// The weights: the folder vae/ of a `diffusers` pipeline, the folder of the whole pipeline, or a file of
    /// either format (.safetensors, .bin, .ckpt). A relative path starts at the working directory.
    pub path: PathBuf,
    /// Channels of the latent.
    #[schemars(range(min = 1, max = 4096))]
    pub latent_channels: usize,
    /// Channels of each level, finest first; multiples of 32. Each level but the last halves height and width.
    #[schemars(length(min = 1, max = 8), inner(range(min = 32, max = 16_384)))]
    pub block_out_channels: Vec<usize>,
    /// Residual blocks per level of the encoder. Each level of the decoder has one more.
    #[schemars(range(min = 1, max = 64))]
    pub layers_per_block: usize,
    /// Factor that multiplies the latent, above 0, unitless. null = the factor in the `config.json` next to
    /// the weights, or 0.18215 if there is none.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub scaling_factor: Option<f64>,
    /// How a latent is chosen from the Gaussian that the encoder predicts.
    pub posterior: Posterior,
    /// Side of the tiles that larger images are cut into, in pixels. null = images are never cut.
    #[schemars(range(min = 8, max = 65_536))]
    pub tile: Option<usize>,
    #[serde(skip)]
    loaded: Option<Loaded>,
}

impl Default for SdVae {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            latent_channels: 4,
            block_out_channels: vec![128, 256, 512, 512],
            layers_per_block: 2,
            scaling_factor: None,
            posterior: Posterior::default(),
            tile: None,
            loaded: None,
        }
    }
}

#[derive(Clone, Debug)]
struct Loaded {
    network: KlNetwork,
    scaling_factor: f64,
}

/// The factor of every release whose configuration does not state one.
const SCALING_FACTOR: f64 = 0.18215;
/// Fraction of a tile that overlaps the next tile.
const OVERLAP: f64 = 0.25;

framework::register!(tokenizer "sd_vae" => SdVae, "arXiv:2112.10752");

impl SdVae {
    fn sizes(&self) -> AutoencoderConfig {
        // `check` requires every width to be a multiple of the first one, so these divisions are exact.
        AutoencoderConfig {
            image_channels: IMAGE_CHANNELS,
            ch: self.block_out_channels[0],
            ch_mult: self.block_out_channels.iter().map(|channels| channels / self.block_out_channels[0]).collect(),
            num_res_blocks: self.layers_per_block,
            attention: Vec::new(),
        }
    }

    /// Creates the network. Its parameters are not allocated yet.
    pub fn init(&self, device: &Device) -> KlNetwork {
        KlNetwork::new(&self.sizes(), &self.sizes(), self.latent_channels, device)
    }

    /// Returns the names of three formats: `diffusers`, `diffusers` with the attention names it used before
    /// 2023, and the CompVis checkpoint, whose names equal ours.
    pub fn formats(&self) -> Vec<OfficialNames> {
        let (levels, coarsest) =
            (self.block_out_channels.len(), self.block_out_channels[self.block_out_channels.len() - 1]);
        let diffusers = |format, attention: [&'static str; 5]| OfficialNames {
            format,
            folder: "vae",
            of: Arc::new(move |path| {
                let name = diffusers(path, levels, attention);
                let map = path.contains("attn_1") && path.ends_with("weight") && !path.contains("norm");
                let layout = if map { Layout::Reshaped(vec![coarsest; 2]) } else { Layout::Same };
                OfficialName { name, layout }
            }),
            nesting: &[],
            ignored: &[],
            optional: &[],
        };
        vec![
            diffusers("diffusers", ["group_norm", "to_q", "to_k", "to_v", "to_out.0"]),
            diffusers("diffusers_legacy", ["group_norm", "query", "key", "value", "proj_attn"]),
            OfficialNames {
                format: "compvis",
                folder: "",
                of: Arc::new(|path| OfficialName { name: path.to_string(), layout: Layout::Same }),
                nesting: &["state_dict.first_stage_model.", "first_stage_model.", "state_dict."],
                ignored: BESIDE_LATENT_DIFFUSION,
                optional: &[],
            },
        ]
    }

    fn loaded(&self) -> &Loaded {
        self.loaded.as_ref().expect("`load` is called before the first image")
    }

    /// Reads the factor from the configuration next to the weights, if it states one.
    fn configured_factor(&self) -> Result<Option<f64>> {
        let folder = if self.path.is_dir() { &self.path } else { self.path.parent().unwrap_or(FilePath::new("")) };
        let files = [folder.join("vae/config.json"), folder.join("config.json")];
        let Some(file) = files.into_iter().find(|file| file.exists()) else { return Ok(None) };
        let wrong = |what: String| Error::file(&file, what);
        let config: framework::serde_json::Value = framework::serde_json::from_str(&open::text(&file)?)
            .map_err(|e| wrong(format!("is not a JSON configuration: {e}")))?;
        let Some(factor) = config.get("scaling_factor").filter(|factor| !factor.is_null()) else { return Ok(None) };
        let number = factor.as_f64().filter(|factor| factor.is_finite() && *factor > 0.0);
        number.map(Some).ok_or_else(|| {
            let factor: String = factor.to_string().chars().take(60).collect();
            wrong(format!(
                "its `scaling_factor` is {factor}, not a number above 0; correct it, or set /tokenizer/scaling_factor"
            ))
        })
    }

    fn stride(&self) -> usize {
        self.sizes().stride()
    }

    /// Returns the side of a tile in latent positions.
    fn tile(&self) -> usize {
        self.tile.map_or(usize::MAX, |tile| tile / self.stride())
    }

    /// Encodes a batch to latents `[B, z, h, w]`, not yet scaled.
    fn latents(&self, images: Tensor<4>) -> Tensor<4> {
        let (stride, z) = (self.stride(), self.latent_channels);
        let network = &self.loaded().network;
        let moments = tiled(images.clone(), self.tile().saturating_mul(stride), [stride, 1], &|x| network.moments(x));
        let mean = moments.clone().narrow(1, 0, z);
        match self.posterior {
            Posterior::Mean => mean,
            Posterior::Sample => {
                let noise: Vec<f64> = (0..images.dims()[0])
                    .flat_map(|i| noise_of(images.clone().narrow(0, i, 1), mean.dims()[1..].iter().product()))
                    .collect();
                let noise = tensor(&noise, mean.dims(), DType::F32, &mean.device());
                mean + (moments.narrow(1, z, z).clamp(-30.0, 20.0) * 0.5).exp() * noise
            }
        }
    }
}

/// Returns `n` standard normal values that depend only on the image.
fn noise_of(image: Tensor<4>, n: usize) -> Vec<f64> {
    let bytes = image.into_data();
    Random::of(bytes.as_bytes()).normal("posterior", 0, 0, n).into_iter().map(f64::from).collect()
}

/// Applies `f` to overlapping tiles of side `tile`, and blends their seams. An input no larger than a tile is
/// not cut. `f` multiplies height and width by `of[1] / of[0]`.
fn tiled(x: Tensor<4>, tile: usize, of: [usize; 2], f: &dyn Fn(Tensor<4>) -> Tensor<4>) -> Tensor<4> {
    let [_, _, height, width] = x.dims();
    if height <= tile && width <= tile {
        return f(x);
    }
    // The step is a multiple of the stride, so that tiles start at whole latent positions.
    let step = (((tile as f64 * (1.0 - OVERLAP)) as usize) / of[0]).max(1) * of[0];
    let scaled = |side: usize| side * of[1] / of[0];
    let (blend, kept) = (scaled(tile) - scaled(step), scaled(step));
    let mut rows: Vec<Vec<Tensor<4>>> = Vec::new();
    for top in (0..height).step_by(step) {
        let row = (0..width).step_by(step).map(|left| {
            let (h, w) = (tile.min(height - top), tile.min(width - left));
            f(x.clone().narrow(2, top, h).narrow(3, left, w))
        });
        rows.push(row.collect());
    }
    let mut made = Vec::new();
    for i in 0..rows.len() {
        let mut line = Vec::new();
        for j in 0..rows[i].len() {
            let mut piece = rows[i][j].clone();
            if i > 0 {
                piece = blended(rows[i - 1][j].clone(), piece, blend, 2);
            }
            if j > 0 {
                piece = blended(rows[i][j - 1].clone(), piece, blend, 3);
            }
            rows[i][j] = piece.clone();
            let [_, _, h, w] = piece.dims();
            line.push(piece.narrow(2, 0, kept.min(h)).narrow(3, 0, kept.min(w)));
        }
        made.push(Tensor::cat(line, 3));
    }
    Tensor::cat(made, 2)
}

/// Blends the first `extent` rows (`axis` 2) or columns (3) of `next` linearly with the last ones of `before`.
fn blended(before: Tensor<4>, next: Tensor<4>, extent: usize, axis: usize) -> Tensor<4> {
    let (have, size) = (before.dims()[axis], next.dims()[axis]);
    let extent = extent.min(have).min(size);
    if extent == 0 {
        return next;
    }
    let mut shape = [1; 4];
    shape[axis] = extent;
    let ramp: Vec<f64> = (0..extent).map(|i| i as f64 / extent as f64).collect();
    let ramp: Tensor<4> = tensor(&ramp, shape, next.dtype(), &next.device());
    let tail = before.narrow(axis, have - extent, extent);
    let head = next.clone().narrow(axis, 0, extent);
    let mixed = tail * (ramp.clone().neg() + 1.0) + head * ramp;
    if extent == size { mixed } else { Tensor::cat(vec![mixed, next.narrow(axis, extent, size - extent)], axis) }
}

/// Converts our name to the name in `diffusers`. `attention` lists its names of the five attention layers.
fn diffusers(path: &str, levels: usize, attention: [&str; 5]) -> String {
    let parts: Vec<&str> = path.split('.').collect();
    let block = |rest: &[&str]| rest.join(".").replace("nin_shortcut", "conv_shortcut");
    match parts[..] {
        [way, "down", level, "block", i, ..] => format!("{way}.down_blocks.{level}.resnets.{i}.{}", block(&parts[5..])),
        [way, "down", level, "downsample", ..] => {
            format!("{way}.down_blocks.{level}.downsamplers.0.{}", parts[4..].join("."))
        }
        // `diffusers` counts the levels of the decoder from the coarsest.
        [way, "up", level, part, ..] => {
            let level = levels - 1 - level.parse::<usize>().expect("the level is an index");
            match part {
                "block" => format!("{way}.up_blocks.{level}.resnets.{}.{}", parts[4], block(&parts[5..])),
                _ => format!("{way}.up_blocks.{level}.upsamplers.0.{}", parts[4..].join(".")),
            }
        }
        [way, "mid", "block_1", ..] => format!("{way}.mid_block.resnets.0.{}", block(&parts[3..])),
        [way, "mid", "block_2", ..] => format!("{way}.mid_block.resnets.1.{}", block(&parts[3..])),
        [way, "mid", "attn_1", map, rest] => {
            let place = ["norm", "q", "k", "v", "proj_out"].iter().position(|own| *own == map).expect("a known layer");
            format!("{way}.mid_block.attentions.0.{}.{rest}", attention[place])
        }
        _ => path.replace("norm_out", "conv_norm_out"),
    }
}

impl Tokenizer for SdVae {
    fn check(&self) -> Problems {
        let mut problems = Problems::new();
        let first = self.block_out_channels[0];
        for (level, channels) in self.block_out_channels.iter().enumerate() {
            if !channels.is_multiple_of(32) || !channels.is_multiple_of(first) {
                let what = format!("level {level} has {channels} channels");
                let accepts = format!("multiples of 32 and of the first level's {first}");
                problems.push(Problem::new(format!("/block_out_channels/{level}"), what).accepts(accepts));
            }
        }
        if self.scaling_factor.is_some_and(|factor| !(factor.is_finite() && factor > 0.0)) {
            let what = format!("`scaling_factor` is {:?}", self.scaling_factor.unwrap_or_default());
            problems.push(Problem::new("/scaling_factor", what).accepts("a number above 0"));
        }
        if let Some(tile) = self.tile
            && (!tile.is_multiple_of(self.stride()) || tile < 2 * self.stride())
        {
            let what = format!("`tile` = {tile}");
            problems.push(Problem::new("/tile", what).accepts(format!("a multiple of {0}, above {0}", self.stride())));
        }
        problems
    }

    fn latent_shape(&self, image: ImageShape) -> Result<LatentShape, Problems> {
        Ok(LatentShape::values(self.sizes().grid(image)?, self.latent_channels))
    }

    fn image_shape(&self, latent: LatentShape) -> ImageShape {
        self.sizes().image(latent.grid)
    }

    fn load(&mut self, device: &Device) -> Result<()> {
        let (network, _) = official::load_whole(self.init(device), &self.formats(), &self.path)?;
        let scaling_factor = match self.scaling_factor {
            Some(factor) => factor,
            None => self.configured_factor()?.unwrap_or(SCALING_FACTOR),
        };
        self.loaded = Some(Loaded { network, scaling_factor });
        Ok(())
    }

    fn convert(&self, from: &FilePath, to: &FilePath, format: Option<&str>) -> Result<Option<Report>> {
        official::convert(self.init(&Device::flex()), &self.formats(), [from, to], format).map(Some)
    }

    fn parameters(&self) -> usize {
        parameters::count(&self.init(&Device::flex()))
    }

    fn component(&self, format: &str, [_, height, width]: ImageShape) -> Option<Component> {
        let formats = self.formats();
        let names = formats.iter().find(|names| names.format == format)?;
        let Loaded { network, scaling_factor } = self.loaded();
        let mut tensors = official::named(parameters::export(network), names);
        if names.folder.is_empty() {
            tensors.iter_mut().for_each(|(name, _)| *name = format!("first_stage_model.{name}"));
        }
        let levels = self.block_out_channels.len();
        let entries = [
            ("in_channels", json!(IMAGE_CHANNELS)),
            ("out_channels", json!(IMAGE_CHANNELS)),
            ("down_block_types", json!(vec!["DownEncoderBlock2D"; levels])),
            ("up_block_types", json!(vec!["UpDecoderBlock2D"; levels])),
            ("block_out_channels", json!(self.block_out_channels)),
            ("layers_per_block", json!(self.layers_per_block)),
            ("act_fn", json!("silu")),
            ("latent_channels", json!(self.latent_channels)),
            ("norm_num_groups", json!(32)),
            ("sample_size", json!(height.max(width))),
            ("scaling_factor", json!(scaling_factor)),
            ("shift_factor", json!(null)),
            ("latents_mean", json!(null)),
            ("latents_std", json!(null)),
            ("force_upcast", json!(true)),
            ("use_quant_conv", json!(true)),
            ("use_post_quant_conv", json!(true)),
            ("mid_block_add_attention", json!(true)),
        ];
        let mut config = Component::diffusers_config("AutoencoderKL");
        config.extend(entries.map(|(key, value)| (key.to_string(), value)));
        Some(Component {
            folder: "vae",
            library: "diffusers",
            class: "AutoencoderKL",
            config_file: "config.json",
            config,
            weights_file: "diffusion_pytorch_model.safetensors",
            tensors,
            ..Component::default()
        })
    }

    fn encode(&self, images: Tensor<4>) -> Latent {
        // Encode one image at a time, because the activations of a single large image can fill the memory.
        let batch = images.dims()[0];
        let each = (0..batch).map(|i| self.latents(images.clone().narrow(0, i, 1))).collect();
        Latent::Values(to_positions(Tensor::cat(each, 0)) * self.loaded().scaling_factor)
    }

    fn decode(&self, latent: Latent, [_, height, width]: ImageShape) -> Tensor<4> {
        let Latent::Values(x) = latent else { panic!("tokenizer \"sd_vae\" decodes values, not tokens") };
        let (Loaded { network, scaling_factor }, stride) = (self.loaded(), self.stride());
        let x = from_positions(x / *scaling_factor, [height / stride, width / stride]);
        let each = |i: usize| tiled(x.clone().narrow(0, i, 1), self.tile(), [1, stride], &|x| network.decode(x));
        Tensor::cat((0..x.dims()[0]).map(each).collect(), 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use framework::burn::tensor::TensorData;

    #[test]
    fn the_factor_beside_the_weights_is_a_number_or_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let vae: SdVae =
            framework::serde_json::from_value(framework::serde_json::json!({ "path": folder.path() })).unwrap();
        assert_eq!(vae.configured_factor().unwrap(), None);
        let file = folder.path().join("config.json");
        for (text, factor) in
            [("{}", None), ("{\"scaling_factor\": null}", None), ("{\"scaling_factor\": 0.5}", Some(0.5))]
        {
            std::fs::write(&file, text).unwrap();
            assert_eq!(vae.configured_factor().unwrap(), factor);
        }
        for text in [
            "",
            "{\"scaling_factor\": \"0.5\"}",
            "{\"scaling_factor\": [1]}",
            "{\"scaling_factor\": -1}",
            "{\"scaling_factor\": 1e999}",
        ] {
            std::fs::write(&file, text).unwrap();
            let said = vae.configured_factor().unwrap_err().to_string();
            assert!(said.contains("config.json") && said.len() < 400, "{said}");
        }
        std::fs::File::create(&file).unwrap().set_len(10 << 30).unwrap();
        assert!(vae.configured_factor().unwrap_err().to_string().contains("has more than"));
    }

    #[test]
    fn tiles_of_a_map_of_pixels_are_the_whole() {
        // A function of single pixels has no seams, so the blended tiles must equal the untiled result.
        let values: Vec<f64> = (0..2 * 23 * 37).map(|i| (f64::from(i) * 0.37).sin()).collect();
        let x: Tensor<4> = tensor(&values, [1, 2, 23, 37], DType::F64, &Device::flex());
        for tile in [4, 8, 16] {
            let made = tiled(x.clone(), tile, [1, 1], &|x| x * 3.0);
            let apart = (made - x.clone() * 3.0).abs().max().into_scalar::<f64>();
            assert!(apart < 1e-12, "{tile}: {apart}");
        }
        // The same holds for a function that repeats every pixel.
        let double = |x: Tensor<4>| framework::nn::upsample_nearest(x);
        let apart = (tiled(x.clone(), 8, [1, 2], &double) - double(x)).abs().max().into_scalar::<f64>();
        assert!(apart < 1e-12, "{apart}");
    }

    #[test]
    fn noise_is_a_function_of_the_image() {
        let image =
            |value: f32| Tensor::<4>::from_data(TensorData::new(vec![value; 12], [1, 3, 2, 2]), &Device::flex());
        assert_eq!(noise_of(image(0.5), 4), noise_of(image(0.5), 4));
        assert_ne!(noise_of(image(0.5), 4), noise_of(image(0.25), 4));
    }
}
