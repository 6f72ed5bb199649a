//! Patches as tokens, with a codebook that is learned from the dataset.
//!
//!   id = argmin_k |patch - e_k|^2,   e_k = mean of the patches nearest to it (k-means)
//!
//! `unguided train` learns the codebook before it trains the network, and saves it in the run folder as
//! `tokenizer.safetensors`. Another document can load that file through `path`.
//! Source: Linde, Buzo and Gray, "An algorithm for vector quantizer design", IEEE Trans. Comm. 28 (1980); k-means++
//! initialization by Arthur and Vassilvitskii (2007). Shapes: `[B, C, H, W]` to `[B, H W / patch_size^2]`.

use crate::quantize::{look_up, nearest};
use framework::burn::store::bridge;
use framework::burn::tensor::{DType, TensorData};
use framework::checkpoint::open;
use framework::checkpoint::tensor_file;
use framework::data::tokenizer::{ImageShape, LearnedTokenizer, Tokenizer};
use framework::error::{Error, Problems, Result};
use framework::nn::{from_patches, from_positions, to_patches, to_positions};
use framework::prelude::*;
use framework::process::Latent;
use framework::random::Random;
use std::path::{Path as FilePath, PathBuf};

/// Square patches. Each patch becomes one token of a learned codebook.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Vq {
    /// File of a learned codebook. null = learn a codebook from the dataset before training.
    pub path: Option<PathBuf>,
    /// Side of a patch in pixels. It must divide height and width of the images.
    #[schemars(range(min = 1, max = 256))]
    pub patch_size: usize,
    /// Number of codes, 2 to 65,536.
    #[schemars(range(min = 2, max = 65_536))]
    pub vocabulary: usize,
    /// Channels of the images.
    #[schemars(range(min = 1, max = 64))]
    pub channels: usize,
    /// Largest number of k-means iterations. Learning stops earlier once no patch changes its code.
    #[schemars(range(min = 1, max = 10_000))]
    pub rounds: usize,
    /// The codebook `[vocabulary, patch_size^2 channels]`; `None` until it is loaded or learned.
    #[serde(skip)]
    codebook: Option<Tensor<2>>,
}

impl Default for Vq {
    fn default() -> Self {
        Self { path: None, patch_size: 2, vocabulary: 256, channels: 1, rounds: 50, codebook: None }
    }
}

framework::register!(tokenizer "vq" => Vq, "doi:10.1109/TCOM.1980.1094577");

/// Maximum number of patches that a codebook is learned from. From a larger set, a random subset is used.
const PATCHES: usize = 1 << 18;

impl Vq {
    fn width(&self) -> usize {
        self.patch_size * self.patch_size * self.channels
    }

    fn codes(&self) -> Tensor<2> {
        self.codebook.clone().expect("the codebook is loaded or learned before the first image")
    }

    /// Cuts images `[B, C, H, W]` into patches `[B, L, patch_size^2 C]`.
    fn patches(&self, images: Tensor<4>) -> Tensor<3> {
        let [_, _, height, width] = images.dims();
        to_patches(to_positions(images), [height, width], self.patch_size)
    }

    fn read(&mut self, path: &FilePath, device: &Device) -> Result<()> {
        let file = open::open(path)?;
        let found: Vec<&str> = file.keys().map(String::as_str).take(3).collect();
        let tensor = file.get("codebook").ok_or_else(|| {
            Error::file(
                path,
                format!("holds no `codebook`, so it is not a \"vq\" tokenizer; its first tensors are {found:?}"),
            )
        })?;
        let data = bridge::to_data(tensor).map_err(|e| Error::file(path, e.to_string()))?;
        let (shape, expected) = (data.shape().to_vec(), [self.vocabulary, self.width()]);
        if shape != expected {
            let what =
                format!("its codebook is {shape:?}, but the document asks for {expected:?} (codes, values per patch)");
            return Err(Error::file(path, what));
        }
        let values = data.convert_dtype(DType::F32).try_into_vec::<f32>().expect("converted");
        if let Some(bad) = values.iter().position(|value| !value.is_finite()) {
            return Err(Error::file(path, format!("code {} holds a value that is not finite", bad / self.width())));
        }
        self.codebook = Some(Tensor::from_data(TensorData::new(values, expected), (device, DType::F32)));
        Ok(())
    }
}

impl Tokenizer for Vq {
    fn latent_shape(&self, [channels, height, width]: ImageShape) -> Result<LatentShape, Problems> {
        let patch = self.patch_size;
        if channels != self.channels {
            let what = format!("`channels` = {}, but these images have {channels}", self.channels);
            return Err(vec![Problem::new("/channels", what).accepts(format!("{channels}"))]);
        }
        if !height.is_multiple_of(patch) || !width.is_multiple_of(patch) {
            let what = format!("`patch_size` = {patch} does not divide images of {height}x{width} pixels");
            return Err(vec![Problem::new("/patch_size", what).accepts("a divisor of both sides")]);
        }
        Ok(LatentShape::tokens([height / patch, width / patch], self.vocabulary))
    }

    fn image_shape(&self, latent: LatentShape) -> ImageShape {
        [self.channels, latent.grid[0] * self.patch_size, latent.grid[1] * self.patch_size]
    }

    fn load(&mut self, device: &Device) -> Result<()> {
        match self.path.clone() {
            Some(path) => self.read(&path, device),
            None => Ok(()),
        }
    }

    fn encode(&self, images: Tensor<4>) -> Latent {
        let patches = self.patches(images);
        let [batch, length, width] = patches.dims();
        Latent::Ids(nearest(patches.reshape([batch * length, width]), self.codes()).reshape([batch, length]))
    }

    fn decode(&self, latent: Latent, [_, height, width]: ImageShape) -> Tensor<4> {
        let patches = look_up(latent.ids(), self.codes());
        from_positions(from_patches(patches, [height, width], self.patch_size), [height, width])
    }

    fn learner(&mut self) -> Option<&mut dyn LearnedTokenizer> {
        if self.path.is_none() { Some(self) } else { None }
    }
}

impl LearnedTokenizer for Vq {
    fn learn(&mut self, images: Tensor<4>, random: &Random, progress: &mut dyn FnMut(usize, usize, f64)) -> Result<()> {
        let device = images.device();
        let patches = self.patches(images);
        let [batch, length, width] = patches.dims();
        let mut all = patches.reshape([batch * length, width]);
        if batch * length > PATCHES {
            let order = framework::random::permutation(random, "patches", 0, batch * length);
            let some: Vec<i64> = order[..PATCHES].iter().map(|i| *i as i64).collect();
            all = all.select(0, Tensor::<1, Int>::from_data(some.as_slice(), &device));
        }
        let points = all.clone().into_data().convert_dtype(DType::F32).try_into_vec::<f32>().expect("converted");
        let mut codes = first_codes(&points, width, self.vocabulary, random);
        let count = points.len() / width;
        let mut before = Vec::new();
        for round in 0..self.rounds {
            let book =
                Tensor::<2>::from_data(TensorData::new(codes.clone(), [self.vocabulary, width]), (&device, DType::F32));
            let ids =
                nearest(all.clone(), book).into_data().convert_dtype(DType::I64).try_into_vec::<i64>().expect("ids");
            let errors: Vec<f64> = ids
                .iter()
                .zip(points.chunks(width))
                .map(|(id, p)| apart(p, &codes[*id as usize * width..][..width]))
                .collect();
            progress(round + 1, self.rounds, errors.iter().sum::<f64>() / (count * width) as f64);
            if ids == before {
                break;
            }
            codes = means(&points, width, &ids, &errors, self.vocabulary);
            before = ids;
        }
        self.codebook =
            Some(Tensor::from_data(TensorData::new(codes, [self.vocabulary, width]), (&device, DType::F32)));
        Ok(())
    }

    fn save(&self, path: &FilePath) -> Result<()> {
        tensor_file::save_tensors(&[("codebook".to_string(), self.codes().into_data())], path)
    }

    fn restore(&mut self, path: &FilePath, device: &Device) -> Result<()> {
        self.read(path, device)
    }
}

/// Computes the squared distance between two patches.
fn apart(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum()
}

/// Chooses the initial codes by k-means++: each code is a random patch, with a probability proportional to its
/// squared distance from the nearest earlier code.
fn first_codes(points: &[f32], width: usize, codes: usize, random: &Random) -> Vec<f32> {
    let draws = random.uniform("first codes", 0, 0, codes);
    let mut found: Vec<f32> = Vec::with_capacity(codes * width);
    let mut distances = vec![1.0; points.len() / width];
    for draw in draws {
        let mut left = draw * distances.iter().sum::<f64>();
        // If every patch already equals a code, all distances are 0 and the first patch is chosen again.
        let chosen = distances.iter().position(|d| {
            left -= d;
            left < 0.0
        });
        let chosen = chosen.unwrap_or(0) * width;
        let code = points[chosen..][..width].to_vec();
        let new = points.chunks(width).map(|point| apart(point, &code));
        if found.is_empty() {
            distances = new.collect();
        } else {
            distances.iter_mut().zip(new).for_each(|(old, new)| *old = old.min(new));
        }
        found.extend(code);
    }
    found
}

/// Computes the mean of the patches of each code. A code without patches moves to the patch with the largest
/// error.
fn means(points: &[f32], width: usize, ids: &[i64], errors: &[f64], codes: usize) -> Vec<f32> {
    let (mut sums, mut counts) = (vec![0.0_f64; codes * width], vec![0_usize; codes]);
    for (id, point) in ids.iter().zip(points.chunks(width)) {
        let id = *id as usize;
        counts[id] += 1;
        sums[id * width..][..width].iter_mut().zip(point).for_each(|(sum, v)| *sum += f64::from(*v));
    }
    let mut worst: Vec<usize> = (0..errors.len()).collect();
    worst.sort_by(|a, b| errors[*a].total_cmp(&errors[*b]));
    (0..codes)
        .flat_map(|code| {
            if counts[code] == 0 {
                let point = worst.pop().unwrap_or(0) * width;
                return points[point..][..width].to_vec();
            }
            sums[code * width..][..width].iter().map(|sum| (sum / counts[code] as f64) as f32).collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vq(vocabulary: usize) -> Vq {
        framework::serde_json::from_str(&format!(r#"{{"vocabulary": {vocabulary}}}"#)).unwrap()
    }

    fn images(n: usize) -> Tensor<4> {
        let values: Vec<f32> =
            Random::new(3).uniform("x", 0, 0, n * 16).iter().map(|u| 2.0 * *u as f32 - 1.0).collect();
        Tensor::from_data(TensorData::new(values, [n, 1, 4, 4]), &Device::flex())
    }

    fn error(vq: &Vq, images: &Tensor<4>) -> f32 {
        let back = vq.decode(vq.encode(images.clone()), [1, 4, 4]);
        ((back - images.clone()).powi_scalar(2)).mean().into_scalar::<f32>()
    }

    #[test]
    fn error_falls_with_rounds_and_with_codes_and_the_file_keeps_them() {
        let x = images(200);
        let mut last = f64::INFINITY;
        let mut few = vq(8);
        few.learn(x.clone(), &Random::new(0), &mut |_, _, error| {
            assert!(error <= last + 1e-9, "{error} after {last}");
            last = error;
        })
        .unwrap();
        let mut many = vq(64);
        many.learn(x.clone(), &Random::new(0), &mut |_, _, _| {}).unwrap();
        assert!(error(&many, &x) < 0.6 * error(&few, &x), "{} {}", error(&many, &x), error(&few, &x));
        let path = std::env::temp_dir().join(format!("unguided-vq-{}.safetensors", std::process::id()));
        many.save(&path).unwrap();
        let mut again = vq(64);
        again.restore(&path, &Device::flex()).unwrap();
        assert_eq!(again.encode(x.clone()).ids().into_data(), many.encode(x).ids().into_data());
        let wrong = vq(8).restore(&path, &Device::flex()).unwrap_err().to_string();
        assert!(wrong.contains("[64, 4]") && wrong.contains("[8, 4]"), "{wrong}");
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn as_many_codes_as_patches_lose_nothing() {
        let x = images(2);
        let mut vq = vq(8);
        vq.learn(x.clone(), &Random::new(0), &mut |_, _, _| {}).unwrap();
        assert!(error(&vq, &x) < 1e-12);
    }
}
