//! The smallest plugins that fill every slot. They are only ever checked, never run.

use framework::backbone::{Accepts, BackboneConfig, BoxBackbone};
use framework::burn::tensor::{Device, Tensor};
use framework::condition::{Condition, ConditionKind};
use framework::conditioner::Conditioner;
use framework::dataset::{Dataset, DatasetConfig, DatasetInfo, ItemKind};
use framework::error::{Problem, Problems, Result};
use framework::foreign::ForeignNames;
use framework::guidance::{Denoiser, Guidance, Trajectory};
use framework::metric::{Images, Measurement, Metric};
use framework::objective::{Context, Needs, Objective, Optimum, Tilt};
use framework::path::Prediction;
use framework::plugin::{GuidancePlugin, ObjectivePlugin};
use framework::process::{Example, Family, Latent, LatentShape, Likelihood, Process};
use framework::random::Random;
use framework::register;
use framework::sampler::{NoiseSource, Observer, Sampler};
use framework::tokenizer::{ImageShape, Tokenizer};
use framework::weights::Init;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Squares.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Squares {
    /// Height and width, pixels.
    #[serde(default = "size")]
    #[schemars(range(min = 1, max = 1024))]
    pub size: usize,
    /// Number of classes; none = unconditional.
    #[serde(default)]
    pub num_classes: Option<usize>,
    /// Whether each has a caption.
    #[serde(default)]
    pub captions: bool,
    /// A small number.
    #[serde(default)]
    pub channel: u8,
    /// What to mix in, by name.
    #[serde(default)]
    pub shares: BTreeMap<String, f64>,
    /// Range of values.
    #[serde(default)]
    pub bounds: Option<(f64, f64)>,
}

fn size() -> usize {
    8
}

impl DatasetConfig for Squares {
    fn info(&self) -> Option<DatasetInfo> {
        let items = ItemKind::Images([3, self.size, self.size]);
        Some(DatasetInfo { items, num_classes: self.num_classes, captions: self.captions })
    }
    fn open(&self) -> Result<Box<dyn Dataset>> {
        unimplemented!()
    }
}
register!(data "squares" => Squares);

/// Pixels as they are.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pixels {}

impl Tokenizer for Pixels {
    fn latent_shape(&self, [channels, height, width]: ImageShape) -> std::result::Result<LatentShape, Problems> {
        Ok(LatentShape::values([height, width], channels))
    }
    fn image_shape(&self, latent: LatentShape) -> ImageShape {
        [latent.channels, latent.grid[0], latent.grid[1]]
    }
    fn encode(&self, _: Tensor<4>) -> Latent {
        unimplemented!()
    }
    fn decode(&self, _: Latent, _: ImageShape) -> Tensor<4> {
        unimplemented!()
    }
}
register!(tokenizer "pixels" => Pixels);

/// Counts words.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Words {}

impl Conditioner for Words {
    fn kind(&self) -> ConditionKind {
        ConditionKind::Text
    }
    fn text_shape(&self) -> [usize; 2] {
        [4, 16]
    }
    fn load(&mut self, _: &Device) -> Result<()> {
        Ok(())
    }
    fn encode(&self, _: &[Option<String>]) -> Result<Condition> {
        unimplemented!()
    }
}
register!(conditioner "words" => Words);

/// A network of nothing.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tiny {
    /// Height and width of the grid.
    pub size: usize,
    /// What it reads.
    #[serde(default = "class")]
    pub condition: ConditionKind,
    /// Number of classes.
    #[serde(default)]
    pub num_classes: Option<usize>,
    /// Whether it reads a guidance number.
    #[serde(default)]
    pub guidance_input: bool,
    /// Width.
    #[serde(default)]
    pub norm: Norm,
}

fn class() -> ConditionKind {
    ConditionKind::Class
}

/// How activations are normalised.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Norm {
    /// Not at all.
    #[default]
    None,
    /// Per layer.
    Layer {
        /// Added to the variance.
        #[schemars(range(min = 0.0, max = 1.0))]
        epsilon: f64,
    },
    /// Per group.
    Group {
        /// How many.
        groups: u32,
    },
}

impl BackboneConfig for Tiny {
    fn check(&self) -> Problems {
        let zero = self.size == 0;
        zero.then(|| Problem::new("/size", "a grid of nothing").accepts("a size of at least 1")).into_iter().collect()
    }
    fn accepts(&self) -> Accepts {
        Accepts {
            condition: self.condition,
            num_classes: self.num_classes,
            text_width: (self.condition == ConditionKind::Text).then_some(16),
            text_length: None,
            guidance_input: self.guidance_input,
            guidance_field: "/guidance_input",
            variance: false,
            perturbation: false,
            cache: false,
        }
    }
    fn latent_shape(&self) -> LatentShape {
        LatentShape::values([self.size, self.size], 3)
    }
    fn process(&self) -> Box<dyn Process> {
        Box::new(Still)
    }
    fn init(&self, _: &Device) -> BoxBackbone {
        unimplemented!()
    }
    fn initializer(&self, _: &str, _: &[usize]) -> Init {
        unimplemented!()
    }
    fn formats(&self) -> Vec<ForeignNames> {
        unimplemented!()
    }
    fn t_of_native(&self, native: f64) -> f64 {
        native
    }
    fn flops(&self) -> f64 {
        0.0
    }
    fn activations(&self) -> f64 {
        0.0
    }
}
register!(backbone "tiny" => Tiny, "arXiv:0000.00000");

#[derive(Debug)]
struct Still;

impl Process for Still {
    fn family(&self) -> Family {
        Family::Continuous
    }
    fn prediction(&self) -> Prediction {
        Prediction::Eps
    }
    fn corrupt(&self, _: &Latent, _: &Random, _: u64) -> Example {
        unimplemented!()
    }
    fn likelihood(&self) -> Likelihood {
        Likelihood::Bound
    }
    fn log_likelihood(&self, _: Tensor<3>, _: &Example) -> Tensor<1> {
        unimplemented!()
    }
}

/// No guidance in training.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Plain {
    /// Share of samples that lose their condition.
    #[serde(default)]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub drop: f64,
}

impl Objective for Plain {
    fn needs(&self) -> Needs {
        Needs { null_condition: self.drop > 0.0, ..Needs::default() }
    }
    fn loss(&self, _: &Context<'_>) -> Tensor<1> {
        unimplemented!()
    }
    fn optimum(&self, _: Family) -> Optimum {
        Optimum::Conditional
    }
    fn extra_passes(&self) -> usize {
        0
    }
}
register!(objective "plain" => Plain);

/// Learns from another objective's guidance.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Nested {
    /// Whose guidance.
    pub teacher: Box<dyn ObjectivePlugin>,
    /// How the teacher is asked.
    #[serde(default)]
    pub rules: Vec<Box<dyn GuidancePlugin>>,
    /// Largest scale.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub scale: f64,
}

impl Objective for Nested {
    fn check(&self) -> Problems {
        self.teacher.check().into_iter().map(|problem| problem.under("/teacher")).collect()
    }
    fn needs(&self) -> Needs {
        Needs { guidance_input: true, ..Needs::default() }
    }
    fn loss(&self, _: &Context<'_>) -> Tensor<1> {
        unimplemented!()
    }
    fn optimum(&self, _: Family) -> Optimum {
        Optimum::Tilted(Tilt::data("s", |scale, _| scale.unwrap_or(1.0)))
    }
    fn guidance_of_scale(&self, scale: f64) -> Option<f64> {
        Some(scale)
    }
    fn trained_scales(&self) -> Option<[f64; 2]> {
        Some([0.0, self.scale])
    }
    fn extra_passes(&self) -> usize {
        1
    }
}
register!(objective "nested" => Nested, "arXiv:0000.00001", "arXiv:0000.00002");

/// Small steps.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Steps {
    /// How many.
    #[serde(default = "steps")]
    #[schemars(range(min = 1))]
    pub steps: u32,
    /// Whether the process is one it serves.
    #[serde(default)]
    pub tokens: bool,
}

fn steps() -> u32 {
    50
}

impl Sampler for Steps {
    fn serves(&self, family: Family) -> bool {
        (family != Family::Continuous) == self.tokens
    }
    fn evaluations(&self, _: &LatentShape) -> usize {
        self.steps as usize
    }
    fn sample(&self, _: &mut Denoiser<'_>, _: &mut dyn NoiseSource, _: &mut dyn Observer) -> Latent {
        unimplemented!()
    }
}
register!(sampler "steps" => Steps);

/// Classifier-free guidance.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mix {
    /// Scale; 1 = none.
    pub scale: f64,
    /// By the network's own input.
    #[serde(default)]
    pub input: bool,
}

impl Guidance for Mix {
    fn needs_null(&self) -> bool {
        !self.input && self.scale != 1.0
    }
    fn input_scale(&self) -> Option<f64> {
        self.input.then_some(self.scale)
    }
    fn max_branches(&self) -> usize {
        2
    }
    fn start(&self) -> Box<dyn Trajectory> {
        unimplemented!()
    }
}
register!(guidance "mix" => Mix);

/// Counts samples.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Count {
    /// A name.
    #[serde(default)]
    pub label: Option<String>,
    /// Whether samples need a caption.
    #[serde(default)]
    pub captions: bool,
    /// Fewest pixels of a side.
    #[serde(default)]
    pub least_side: usize,
}

impl Metric for Count {
    fn needs_captions(&self) -> bool {
        self.captions
    }
    fn check_image(&self, [_, height, _]: ImageShape) -> Problems {
        let small = height < self.least_side;
        small.then(|| Problem::new("/least_side", format!("samples have {height}"))).into_iter().collect()
    }
    fn measure(&self, _: &Images, _: &Images) -> Result<Vec<Measurement>> {
        unimplemented!()
    }
}
register!(metric "count" => Count);
