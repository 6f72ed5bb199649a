//! The smallest plugins that fill every slot. The tests check them and never run them.

use framework::burn::tensor::{Device, Int, Tensor};
use framework::checkpoint::names::OfficialNames;
use framework::data::dataset::{Dataset, DatasetConfig, DatasetInfo, ItemKind};
use framework::data::tokenizer::{ImageShape, Tokenizer};
use framework::error::{Problem, Problems, Result};
use framework::evaluation::metric::{Accumulator, Metric, Reference};
use framework::evaluation::statistics::Statistics;
use framework::network::backbone::{Accepts, BackboneConfig, BoxBackbone, HookSites};
use framework::network::condition::{Condition, ConditionShape};
use framework::network::conditioner::Conditioner;
use framework::nn::parameters::Init;
use framework::objective::context::Context;
use framework::objective::optimum::{Optimum, Tilt};
use framework::objective::{Needs, NullPrediction, Objective};
use framework::plugin::{GuidancePlugin, ObjectivePlugin};
use framework::process::path::NoisePath;
use framework::process::path::Prediction;
use framework::process::{Example, Family, Latent, LatentShape, Likelihood, Process};
use framework::random::Random;
use framework::register;
use framework::sampling::denoiser::Denoiser;
use framework::sampling::guidance::{Guidance, GuidanceNeeds, Trajectory};
use framework::sampling::sampler::{ContinuousSampler, NoiseSource, Observer, Sampler, Sampling, TokenSampler};
use framework::schema::Required;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A dataset of squares.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Squares {
    /// Height and width in pixels, 1 to 1024.
    #[schemars(range(min = 1, max = 1024))]
    pub size: usize,
    /// Number of classes; none = unconditional.
    pub num_classes: Option<usize>,
    /// Whether each image has a caption.
    pub captions: bool,
    /// A small number, 0 to 255.
    pub channel: u8,
    /// Shares of a mixture by name.
    pub shares: BTreeMap<String, f64>,
    /// Range of values.
    pub bounds: Option<(f64, f64)>,
}

impl Default for Squares {
    fn default() -> Self {
        Self { size: 8, num_classes: None, captions: false, channel: 0, shares: BTreeMap::new(), bounds: None }
    }
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

/// Pixels, unchanged.
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

/// A conditioner that counts words.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Words {}

impl Conditioner for Words {
    fn produces(&self) -> ConditionShape {
        ConditionShape::Text { length: Some(4), width: 16 }
    }
    fn load(&mut self, _: &Device) -> Result<()> {
        Ok(())
    }
    fn encode(&self, _: &[Option<String>]) -> Result<Condition> {
        unimplemented!()
    }
}
register!(conditioner "words" => Words);

/// A network without layers.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required(&["size"]))]
pub struct Tiny {
    /// Height and width of the grid.
    pub size: usize,
    /// Condition that the network reads.
    pub condition: Reads,
    /// Number of classes.
    pub num_classes: Option<usize>,
    /// Whether the network reads a guidance number.
    pub guidance_input: bool,
    /// Normalisation of the activations.
    pub norm: Norm,
}

impl Default for Tiny {
    fn default() -> Self {
        Self { size: 0, condition: Reads::Class, num_classes: None, guidance_input: false, norm: Norm::default() }
    }
}

/// Condition that the network reads.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reads {
    /// No condition.
    None,
    /// A class.
    Class,
    /// A text.
    Text,
}

/// Normalisation of the activations.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Norm {
    /// No normalisation.
    #[default]
    None,
    /// Per layer.
    Layer {
        /// Added to the variance, 0 to 1.
        #[schemars(range(min = 0.0, max = 1.0))]
        epsilon: f64,
    },
    /// Per group.
    Group {
        /// Number of groups.
        groups: u32,
    },
}

impl BackboneConfig for Tiny {
    fn check(&self) -> Problems {
        let zero = self.size == 0;
        zero.then(|| Problem::new("/size", "`size` is 0").accepts("a size of at least 1")).into_iter().collect()
    }
    fn accepts(&self) -> Accepts {
        Accepts {
            condition: match self.condition {
                Reads::None => ConditionShape::None,
                Reads::Class => ConditionShape::Class { count: self.num_classes.unwrap_or_default() },
                Reads::Text => ConditionShape::Text { length: None, width: 16 },
            },
            guidance_input: self.guidance_input,
            guidance_field: "/guidance_input",
            variance: false,
            hooks: HookSites::default(),
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
    fn formats(&self) -> Vec<OfficialNames> {
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

/// An objective without guidance in training.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Plain {
    /// Share of samples that lose their condition, 0 to 1.
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
    fn null(&self) -> NullPrediction {
        NullPrediction::TrainedAt(None)
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
    /// Objective whose guidance is learned.
    pub teacher: Box<dyn ObjectivePlugin>,
    /// Guidance rules of the teacher.
    #[serde(default)]
    pub rules: Vec<Box<dyn GuidancePlugin>>,
    /// Largest guidance scale, above 0.
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
    fn null(&self) -> NullPrediction {
        NullPrediction::TrainedAt(None)
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

/// A sampler.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Steps {
    /// Number of steps, at least 1.
    #[schemars(range(min = 1))]
    pub steps: u32,
    /// Whether the sampler serves token processes instead of continuous ones.
    pub tokens: bool,
}

impl Default for Steps {
    fn default() -> Self {
        Self { steps: 50, tokens: false }
    }
}

impl Sampler for Steps {
    fn sampling(&self) -> Sampling<'_> {
        if self.tokens { Sampling::NextToken(self) } else { Sampling::Continuous(self) }
    }
    fn serves(&self, family: Family) -> bool {
        (family != Family::Continuous) == self.tokens
    }
    fn evaluations(&self, _: &LatentShape) -> usize {
        self.steps as usize
    }
}

impl ContinuousSampler for Steps {
    fn run(&self, _: &mut Denoiser<'_>, _: &dyn NoisePath, _: &mut dyn NoiseSource, _: &mut dyn Observer) -> Tensor<3> {
        unimplemented!()
    }
}

impl TokenSampler for Steps {
    fn run(&self, _: &mut Denoiser<'_>, _: usize, _: &mut dyn NoiseSource, _: &mut dyn Observer) -> Tensor<2, Int> {
        unimplemented!()
    }
}
register!(sampler "steps" => Steps);

/// Classifier-free guidance.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mix {
    /// Guidance scale; 1 = no guidance.
    pub scale: f64,
    /// Whether the network's guidance input applies the scale.
    #[serde(default)]
    pub input: bool,
}

impl Guidance for Mix {
    fn needs(&self) -> GuidanceNeeds {
        GuidanceNeeds { null: !self.input && self.scale != 1.0, ..GuidanceNeeds::branches(2) }
    }
    fn input_scale(&self) -> Option<f64> {
        self.input.then_some(self.scale)
    }
    fn start(&self) -> Box<dyn Trajectory> {
        unimplemented!()
    }
}
register!(guidance "mix" => Mix);

/// A metric that counts samples.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Count {
    /// Name of the count.
    #[serde(default)]
    pub label: Option<String>,
    /// Whether each sample needs a caption.
    #[serde(default)]
    pub captions: bool,
    /// Smallest height of a sample, in pixels.
    #[serde(default)]
    pub least_side: usize,
}

impl Metric for Count {
    fn needs_captions(&self) -> bool {
        self.captions
    }
    fn check_image(&self, [_, height, _]: ImageShape) -> Problems {
        let small = height < self.least_side;
        small.then(|| Problem::new("/least_side", format!("samples are {height} pixels high"))).into_iter().collect()
    }
    fn reference(&self) -> Box<dyn Reference> {
        unimplemented!()
    }
    fn start(&self, _: Arc<Statistics>) -> Result<Box<dyn Accumulator>> {
        unimplemented!()
    }
}
register!(metric "count" => Count);
