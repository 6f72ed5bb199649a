//! The Inception network of the FID: the TensorFlow network of 2015, ported to PyTorch.
//!
//!   f(x)    = mean over positions of the last block, D = 2,048
//!   logits  = W f(x), without the bias, 1,008 classes
//!   spatial = the first 7 channels of the 1x1 branch of the fourth 17x17 block, [17, 17, 7] row-major: 2,023 values
//!
//! It differs from torchvision's network: means at the edges leave out the padding, the last block pools by the
//! maximum, and there are 1,008 classes.
//! Source: arXiv:1512.00567; arXiv:1706.08500 for its use; arXiv:2103.03841 for the spatial features.
//! Shapes: `[B, 1 or 3, H, W]` to `[B, 2048]`.

use crate::resize::{Resizing, grey_to_rgb, levels};
use framework::burn::module::{Module, Param};
use framework::burn::tensor::module::{avg_pool2d, conv2d, max_pool2d};
use framework::burn::tensor::ops::{AvgPoolOptions, ConvOptions, MaxPoolOptions};
use framework::checkpoint::names::{Layout, OFFICIAL, OfficialName, OfficialNames};
use framework::checkpoint::official;
use framework::data::tokenizer::ImageShape;
use framework::error::{Problems, Result};
use framework::evaluation::features::{Extracted, Extractor, FeatureWidths, Features};
use framework::nn::{Linear, parameter};
use framework::prelude::*;
use std::path::PathBuf;
use std::sync::Arc;

/// The Inception network whose features define FID, sFID, KID and the Inception Score.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required(&["path"]))]
pub struct InceptionV3 {
    /// The weights: `pt_inception-2015-12-05-6726825d.pth` of pytorch-fid, or
    /// `weights-inception-2015-12-05-6726825d.pth` of torch-fidelity. Both hold the same values. A relative path starts
    /// at the working directory.
    pub path: PathBuf,
    /// How images are resized to 299x299 pixels. Scores of different methods are not comparable.
    pub resize: Resizing,
}

framework::register!(features "inception_v3" => InceptionV3, "arXiv:1512.00567", "arXiv:1706.08500");

/// Side of the network's input, in pixels.
const SIDE: usize = 299;
/// Width of the features.
const WIDTH: usize = 2048;
/// Number of classes of the network of 2015.
const CLASSES: usize = 1008;
/// Number of channels of the spatial features.
const SPATIAL_CHANNELS: usize = 7;
/// Side of the grid of the spatial features.
const SPATIAL_SIDE: usize = 17;
/// Added to the variance of batch normalisation.
const EPSILON: f64 = 1e-3;

impl InceptionV3 {
    /// Creates the network. Its parameters are not allocated yet.
    pub fn init(&self, device: &Device) -> Inception {
        let unit = |(_, [outputs, inputs, height, width]): (String, [usize; 4])| Unit {
            conv: Weight { weight: parameter([outputs, inputs, height, width], device) },
            bn: BatchNorm {
                weight: parameter([outputs], device),
                bias: parameter([outputs], device),
                running_mean: parameter([outputs], device),
                running_var: parameter([outputs], device),
            },
        };
        Inception { units: units().into_iter().map(unit).collect(), fc: Linear::new(WIDTH, CLASSES, device) }
    }

    /// Returns the names in the published files.
    pub fn formats(&self) -> Vec<OfficialNames> {
        let names: Vec<String> = units().into_iter().map(|(name, _)| name).collect();
        let of = move |path: &str| match path.strip_prefix("units.").and_then(|path| path.split_once('.')) {
            Some((index, rest)) => {
                let unit = index.parse::<usize>().ok().and_then(|index| names.get(index));
                OfficialName { name: format!("{}.{rest}", unit.map_or("", String::as_str)), layout: Layout::Same }
            }
            None if path == "fc.weight" => OfficialName { name: path.into(), layout: Layout::Transposed },
            None => OfficialName { name: path.into(), layout: Layout::Same },
        };
        vec![OfficialNames {
            format: OFFICIAL,
            folder: "",
            of: Arc::new(of),
            nesting: &[],
            ignored: &[
                ("AuxLogits.", "the auxiliary classifier, which only training uses"),
                (".num_batches_tracked", "a counter of training"),
            ],
            optional: &[],
        }]
    }
}

impl Features for InceptionV3 {
    fn check_image(&self, [channels, height, width]: ImageShape) -> Problems {
        if channels == 1 || channels == 3 {
            return Problems::new();
        }
        let what = format!("features \"inception_v3\" cannot read these images of {channels}x{height}x{width}");
        vec![Problem::new("", what).accepts("images of 1 or 3 channels")]
    }

    fn space(&self) -> String {
        match self.resize {
            Resizing::Bilinear => "inception_v3",
            Resizing::BilinearTf1 => "inception_v3_tf1",
            Resizing::Clean => "inception_v3_clean",
        }
        .into()
    }

    fn widths(&self, _: ImageShape) -> FeatureWidths {
        FeatureWidths {
            vector: WIDTH,
            spatial: Some(SPATIAL_SIDE * SPATIAL_SIDE * SPATIAL_CHANNELS),
            classes: Some(CLASSES),
        }
    }

    fn batch_size(&self) -> usize {
        16
    }

    fn load(&self, device: &Device) -> Result<Box<dyn Extractor>> {
        let (network, _) = official::load_whole(self.init(device), &self.formats(), &self.path)?;
        Ok(Box::new(network.fold(self.resize)))
    }
}

/// Returns the name of every convolution in the order of evaluation, and the shape of its weight, `[out, in, h, w]`.
fn units() -> Vec<(String, [usize; 4])> {
    let mut all: Vec<(String, [usize; 4])> = Vec::new();
    let mut block = |block: &str, units: &[(&str, usize, usize, [usize; 2])]| {
        for (unit, inputs, outputs, [height, width]) in units {
            let name = if unit.is_empty() { block.to_string() } else { format!("{block}.{unit}") };
            all.push((name, [*outputs, *inputs, *height, *width]));
        }
    };
    const ONE: [usize; 2] = [1, 1];
    const THREE: [usize; 2] = [3, 3];
    block("Conv2d_1a_3x3", &[("", 3, 32, THREE)]);
    block("Conv2d_2a_3x3", &[("", 32, 32, THREE)]);
    block("Conv2d_2b_3x3", &[("", 32, 64, THREE)]);
    block("Conv2d_3b_1x1", &[("", 64, 80, ONE)]);
    block("Conv2d_4a_3x3", &[("", 80, 192, THREE)]);
    for (name, inputs, pooled) in [("Mixed_5b", 192, 32), ("Mixed_5c", 256, 64), ("Mixed_5d", 288, 64)] {
        block(
            name,
            &[
                ("branch1x1", inputs, 64, ONE),
                ("branch5x5_1", inputs, 48, ONE),
                ("branch5x5_2", 48, 64, [5, 5]),
                ("branch3x3dbl_1", inputs, 64, ONE),
                ("branch3x3dbl_2", 64, 96, THREE),
                ("branch3x3dbl_3", 96, 96, THREE),
                ("branch_pool", inputs, pooled, ONE),
            ],
        );
    }
    block(
        "Mixed_6a",
        &[
            ("branch3x3", 288, 384, THREE),
            ("branch3x3dbl_1", 288, 64, ONE),
            ("branch3x3dbl_2", 64, 96, THREE),
            ("branch3x3dbl_3", 96, 96, THREE),
        ],
    );
    for (name, inner) in [("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)] {
        block(
            name,
            &[
                ("branch1x1", 768, 192, ONE),
                ("branch7x7_1", 768, inner, ONE),
                ("branch7x7_2", inner, inner, [1, 7]),
                ("branch7x7_3", inner, 192, [7, 1]),
                ("branch7x7dbl_1", 768, inner, ONE),
                ("branch7x7dbl_2", inner, inner, [7, 1]),
                ("branch7x7dbl_3", inner, inner, [1, 7]),
                ("branch7x7dbl_4", inner, inner, [7, 1]),
                ("branch7x7dbl_5", inner, 192, [1, 7]),
                ("branch_pool", 768, 192, ONE),
            ],
        );
    }
    block(
        "Mixed_7a",
        &[
            ("branch3x3_1", 768, 192, ONE),
            ("branch3x3_2", 192, 320, THREE),
            ("branch7x7x3_1", 768, 192, ONE),
            ("branch7x7x3_2", 192, 192, [1, 7]),
            ("branch7x7x3_3", 192, 192, [7, 1]),
            ("branch7x7x3_4", 192, 192, THREE),
        ],
    );
    for (name, inputs) in [("Mixed_7b", 1280), ("Mixed_7c", 2048)] {
        block(
            name,
            &[
                ("branch1x1", inputs, 320, ONE),
                ("branch3x3_1", inputs, 384, ONE),
                ("branch3x3_2a", 384, 384, [1, 3]),
                ("branch3x3_2b", 384, 384, [3, 1]),
                ("branch3x3dbl_1", inputs, 448, ONE),
                ("branch3x3dbl_2", 448, 384, THREE),
                ("branch3x3dbl_3a", 384, 384, [1, 3]),
                ("branch3x3dbl_3b", 384, 384, [3, 1]),
                ("branch_pool", inputs, 192, ONE),
            ],
        );
    }
    all
}

/// A convolution without a bias, as published.
#[derive(Module, Debug)]
pub struct Weight {
    /// `[out, in, h, w]`.
    pub weight: Param<Tensor<4>>,
}

/// Batch normalisation with fixed statistics, as published.
#[derive(Module, Debug)]
pub struct BatchNorm {
    /// `[out]`.
    pub weight: Param<Tensor<1>>,
    /// `[out]`.
    pub bias: Param<Tensor<1>>,
    /// `[out]`.
    pub running_mean: Param<Tensor<1>>,
    /// `[out]`.
    pub running_var: Param<Tensor<1>>,
}

/// A convolution followed by batch normalisation, as published.
#[derive(Module, Debug)]
pub struct Unit {
    /// The convolution.
    pub conv: Weight,
    /// The normalisation.
    pub bn: BatchNorm,
}

/// The published parameters.
#[derive(Module, Debug)]
pub struct Inception {
    /// All convolutions, in the order of evaluation.
    pub units: Vec<Unit>,
    /// The classifier.
    pub fc: Linear,
}

impl Inception {
    /// Merges each normalisation into its convolution.
    fn fold(self, resize: Resizing) -> Folded {
        let unit = |unit: Unit| {
            let outputs = unit.bn.weight.dims()[0];
            let scale = unit.bn.weight.val() / (unit.bn.running_var.val() + EPSILON).sqrt();
            let bias = unit.bn.bias.val() - unit.bn.running_mean.val() * scale.clone();
            Convolution { weight: unit.conv.weight.val() * scale.reshape([outputs, 1, 1, 1]), bias }
        };
        Folded { units: self.units.into_iter().map(unit).collect(), classifier: self.fc.weight.val(), resize }
    }
}

/// A convolution with a bias, followed by ReLU.
struct Convolution {
    weight: Tensor<4>,
    bias: Tensor<1>,
}

impl Convolution {
    fn forward(&self, x: Tensor<4>, stride: usize, padding: [usize; 2]) -> Tensor<4> {
        let options = ConvOptions::new_with_padding([stride; 2], padding.map(|zeros| (zeros, zeros)), [1, 1], 1);
        let y = conv2d(x, self.weight.clone(), Some(self.bias.clone()), options);
        framework::burn::tensor::activation::relu(y)
    }
}

/// The network ready to evaluate.
struct Folded {
    units: Vec<Convolution>,
    /// `[2048, 1008]`.
    classifier: Tensor<2>,
    resize: Resizing,
}

impl Folded {
    /// Converts values in [-1, 1] to the network's input.
    fn input(&self, images: Tensor<4>) -> Tensor<4> {
        let resized = self.resize.resize(grey_to_rgb(levels(images)), [SIDE, SIDE]);
        match self.resize {
            Resizing::Bilinear => resized / 127.5 - 1.0,
            Resizing::BilinearTf1 => (resized - 128.0) / 128.0,
            Resizing::Clean => (resized.clamp(0.0, 255.0) - 128.0) / 128.0,
        }
    }
}

/// The convolutions that are left to evaluate.
struct Rest<'a>(std::slice::Iter<'a, Convolution>);

impl Rest<'_> {
    /// Applies the next convolution with stride 1 and a padding that keeps height and width.
    fn same(&mut self, x: Tensor<4>) -> Tensor<4> {
        let unit = self.0.next().expect("the list holds every convolution");
        let [.., height, width] = unit.weight.dims();
        unit.forward(x, 1, [height / 2, width / 2])
    }

    /// Applies the next convolutions one after the other, like [`Rest::same`].
    fn chain(&mut self, x: Tensor<4>, count: usize) -> Tensor<4> {
        (0..count).fold(x, |x, _| self.same(x))
    }

    /// Applies the next convolution without padding.
    fn valid(&mut self, x: Tensor<4>, stride: usize) -> Tensor<4> {
        self.0.next().expect("the list holds every convolution").forward(x, stride, [0, 0])
    }

    /// Applies the next two convolutions to the same input, and concatenates.
    fn split(&mut self, x: Tensor<4>) -> Tensor<4> {
        Tensor::cat(vec![self.same(x.clone()), self.same(x)], 1)
    }

    /// Evaluates a block at 35x35 positions.
    fn block_a(&mut self, x: Tensor<4>) -> Tensor<4> {
        let one = self.same(x.clone());
        let five = self.chain(x.clone(), 2);
        let three = self.chain(x.clone(), 3);
        Tensor::cat(vec![one, five, three, self.same(mean_pool(x))], 1)
    }

    /// Evaluates the block from 35x35 to 17x17 positions.
    fn block_b(&mut self, x: Tensor<4>) -> Tensor<4> {
        let three = self.valid(x.clone(), 2);
        let double = self.chain(x.clone(), 2);
        Tensor::cat(vec![three, self.valid(double, 2), halve(x)], 1)
    }

    /// Evaluates a block at 17x17 positions. Also returns its 1x1 branch.
    fn block_c(&mut self, x: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let one = self.same(x.clone());
        let seven = self.chain(x.clone(), 3);
        let double = self.chain(x.clone(), 5);
        (Tensor::cat(vec![one.clone(), seven, double, self.same(mean_pool(x))], 1), one)
    }

    /// Evaluates the block from 17x17 to 8x8 positions.
    fn block_d(&mut self, x: Tensor<4>) -> Tensor<4> {
        let three = self.same(x.clone());
        let three = self.valid(three, 2);
        let seven = self.chain(x.clone(), 3);
        Tensor::cat(vec![three, self.valid(seven, 2), halve(x)], 1)
    }

    /// Evaluates a block at 8x8 positions.
    fn block_e(&mut self, x: Tensor<4>, pool: fn(Tensor<4>) -> Tensor<4>) -> Tensor<4> {
        let one = self.same(x.clone());
        let three = self.same(x.clone());
        let three = self.split(three);
        let double = self.chain(x.clone(), 2);
        let double = self.split(double);
        Tensor::cat(vec![one, three, double, self.same(pool(x))], 1)
    }
}

/// Computes the mean of 3x3 positions. Positions outside the image do not count.
fn mean_pool(x: Tensor<4>) -> Tensor<4> {
    avg_pool2d(
        x,
        AvgPoolOptions {
            kernel_size: [3, 3],
            stride: [1, 1],
            padding: [(1, 1); 2],
            count_include_pad: false,
            ceil_mode: false,
        },
    )
}

/// Computes the maximum of 3x3 positions.
fn max_pool(x: Tensor<4>) -> Tensor<4> {
    maximum(x, 1, 1)
}

/// Computes the maximum of 3x3 positions, every second of them, without padding.
fn halve(x: Tensor<4>) -> Tensor<4> {
    maximum(x, 2, 0)
}

fn maximum(x: Tensor<4>, stride: usize, padding: usize) -> Tensor<4> {
    max_pool2d(
        x,
        MaxPoolOptions {
            kernel_size: [3, 3],
            stride: [stride; 2],
            padding: [(padding, padding); 2],
            dilation: [1, 1],
            ceil_mode: false,
        },
    )
}

impl Extractor for Folded {
    fn extract(&self, images: Tensor<4>) -> Result<Extracted> {
        let mut rest = Rest(self.units.iter());
        let x = rest.valid(self.input(images), 2);
        let x = rest.valid(x, 1);
        let x = halve(rest.same(x));
        let x = rest.same(x);
        let mut x = halve(rest.valid(x, 1));
        for _ in 0..3 {
            x = rest.block_a(x);
        }
        x = rest.block_b(x);
        let mut branch = None;
        for block in 0..4 {
            let (next, one) = rest.block_c(x);
            x = next;
            if block == 2 {
                branch = Some(one.narrow(1, 0, SPATIAL_CHANNELS));
            }
        }
        x = rest.block_d(x);
        x = rest.block_e(x, mean_pool);
        x = rest.block_e(x, max_pool);
        let [batch, channels, ..] = x.dims();
        let vectors = x.mean_dims(&[2, 3]).reshape([batch, channels]);
        // Channels last, as in the TensorFlow network.
        let spatial = branch.map(|branch| branch.permute([0, 2, 3, 1]).flatten(1, 3));
        Ok(Extracted { logits: Some(vectors.clone().matmul(self.classifier.clone())), vectors, spatial })
    }
}
