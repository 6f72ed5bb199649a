//! A checked document as objects ([`Pipeline`]), its `train` entry ([`train_config`]), and sampling of images
//! ([`images`]). A new field of the `train` entry is added in [`train_config`] alone.

pub mod captions;
pub mod images;
pub mod train_config;
pub mod weak;

use crate::blame;
use crate::data::checked::Checked;
use crate::data::dataset::{Dataset, DatasetConfig, DatasetInfo, ItemKind, Label};
use crate::data::loader::{Batch, readable, spread};
use crate::data::tokenizer::{ImageShape, Tokenizer};
use crate::error::{Error, Problem, Result};
use crate::evaluation::images::Images;
use crate::evaluation::metric::Metric;
use crate::evaluation::space::Spaces;
use crate::interrupt;
use crate::network::backbone::{BackboneConfig, BoxBackbone};
use crate::network::condition::Condition;
use crate::network::conditioner::Conditioner;
use crate::nn::parameters;
use crate::objective::Objective;
use crate::optimization::trainable;
use crate::pipeline::train_config::TrainConfig;
use crate::pipeline::weak::{WeakConfig, WeakNetwork};
use crate::plugin::Kind;
use crate::process::{Latent, LatentShape, Process};
use crate::random::Random;
use crate::sampling::guidance::Guidance;
use crate::sampling::sampler::Sampler;
use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use std::collections::BTreeMap;

/// Largest number of pixel values in memory at once when a caller requests all images of a dataset: 1 GiB in f32.
pub const MOST_VALUES: usize = 1 << 28;

/// The parts of one pipeline.
pub struct Pipeline {
    /// Dataset.
    pub data: Box<dyn DatasetConfig>,
    /// Tokenizer: converts images to latents and back.
    pub tokenizer: Box<dyn Tokenizer>,
    /// Conditioner: converts captions to features. `None` for backbones that read no text.
    pub conditioner: Option<Box<dyn Conditioner>>,
    /// Backbone configuration.
    pub backbone: Box<dyn BackboneConfig>,
    /// Training objective.
    pub objective: Box<dyn Objective>,
    /// Settings of the training loop.
    pub train: TrainConfig,
    /// Sampler.
    pub sampler: Box<dyn Sampler>,
    /// Guidance rule of sampling.
    pub guidance: Box<dyn Guidance>,
    /// Weak network of the guidance rule; `None` if the rule uses none or the network is not loaded yet.
    pub weak: Option<WeakNetwork>,
    /// Checkpoint of the weak network.
    pub weak_source: Option<WeakConfig>,
    /// Metrics on samples.
    pub metrics: Vec<Box<dyn Metric>>,
    /// Resolved document, with every default written out.
    pub document: String,
    /// Name in messages of the part in each slot: `objective "gft"`, followed by its library, if any.
    pub names: BTreeMap<Kind, String>,
}

impl Pipeline {
    /// Creates the network with newly initialized parameters, as the run trains it.
    pub fn init_backbone(&self, device: &Device) -> BoxBackbone {
        let init = |path: &str, shape: &[usize]| self.backbone.initializer(path, shape);
        self.adapt(parameters::initialize(self.backbone.init(device), &Random::new(self.train.seed), &init))
    }

    /// Attaches adapters to a network of this backbone and freezes parameters, as the document specifies.
    pub fn adapt(&self, network: BoxBackbone) -> BoxBackbone {
        if self.train.lora.is_none() && self.train.frozen.is_empty() {
            return network;
        }
        trainable::adapt(network, self.train.trainable(), &Random::new(self.train.seed), &self.is_new())
    }

    /// Returns a predicate on parameter paths: whether official files lack the parameter.
    pub fn is_new(&self) -> impl Fn(&str) -> bool {
        let formats = self.backbone.formats();
        move |path: &str| formats.iter().any(|names| names.fresh(path).is_some())
    }

    /// Creates the network with the weights of a checkpoint. Adapters are merged into the weights.
    ///
    /// # Errors
    /// If a name or shape in the checkpoint does not match the network.
    pub fn restore(&self, values: BTreeMap<String, TensorData>, device: &Device) -> Result<BoxBackbone> {
        match self.train.lora {
            None => parameters::restore(self.backbone.init(device), values),
            Some(_) => Ok(parameters::restore(self.init_backbone(device), values)?.materialize()),
        }
    }

    /// Returns the name in messages of the part in a slot.
    pub fn name(&self, kind: Kind) -> &str {
        self.names.get(&kind).map_or(kind.name(), String::as_str)
    }

    /// Returns the process of the backbone.
    pub fn process(&self) -> Box<dyn Process> {
        self.backbone.process()
    }

    /// Loads the files of tokenizer and conditioner.
    ///
    /// # Errors
    /// If a file is missing or has the wrong content.
    pub fn load(&mut self, device: &Device) -> Result<()> {
        self.tokenizer.load(device)?;
        match &mut self.conditioner {
            Some(conditioner) => conditioner.load(device),
            None => Ok(()),
        }
    }

    /// Loads the features of the metrics. Called once, before they measure.
    ///
    /// # Errors
    /// If a file is missing or does not fit, or a metric panics.
    pub fn load_metrics(&mut self, device: &Device) -> Result<()> {
        let (who, mut spaces) = (self.name(Kind::Metric).to_string(), Spaces::new(device));
        self.metrics.iter_mut().try_for_each(|metric| blame::caught(&who, || metric.load(&mut spaces))?)
    }

    /// Computes the latents of a batch, in f32.
    ///
    /// # Errors
    /// If the tokenizer panics.
    pub fn latents(&self, batch: &Batch, info: &DatasetInfo, device: &Device) -> Result<Latent> {
        let count = batch.labels.len();
        match &info.items {
            ItemKind::Images([c, h, w]) => {
                let images = tensor4(batch.values.clone(), [count, *c, *h, *w], device);
                self.encode(images)
            }
            ItemKind::Latents { grid, channels } => {
                let data = TensorData::new(batch.values.clone(), [count, grid[0] * grid[1], *channels]);
                Ok(Latent::Values(Tensor::from_data(data, device)))
            }
            ItemKind::Tokens(shape) => {
                let ids: Vec<i64> = batch.values.iter().map(|id| *id as i64).collect();
                let ids = TensorData::new(ids, [count, shape.positions()]);
                self.tokens(Tensor::from_data(ids, device), shape)
            }
        }
    }

    /// Returns tokens `[B, position]` as a latent, for a pyramid with the features that feed its levels.
    ///
    /// # Errors
    /// If the tokenizer panics.
    fn tokens(&self, ids: Tensor<2, Int>, shape: &LatentShape) -> Result<Latent> {
        let Some(codec) = self.tokenizer.codec().filter(|_| !shape.levels.is_empty()) else {
            return Ok(Latent::Ids(ids));
        };
        let (batch, device, mut from) = (ids.dims()[0], ids.device(), 0);
        let level = |side: &usize| {
            from += side * side;
            ids.clone().narrow(1, from - side * side, side * side)
        };
        let coarser: Vec<Tensor<2, Int>> = shape.levels[..shape.levels.len() - 1].iter().map(level).collect();
        let features = blame::caught(self.name(Kind::Tokenizer), || codec.features(&coarser, batch, &device))?;
        Ok(Latent::Levels { ids, features })
    }

    /// Encodes images as latents.
    ///
    /// # Errors
    /// If the tokenizer panics.
    pub fn encode(&self, images: Tensor<4>) -> Result<Latent> {
        blame::caught(self.name(Kind::Tokenizer), || self.tokenizer.encode(images))
    }

    /// Decodes latents to images.
    ///
    /// # Errors
    /// If the tokenizer panics.
    pub fn decode(&self, latent: Latent, image: ImageShape) -> Result<Tensor<4>> {
        blame::caught(self.name(Kind::Tokenizer), || self.tokenizer.decode(latent, image))
    }

    /// Builds the condition of a batch from its labels.
    ///
    /// # Errors
    /// If a caption cannot be encoded.
    pub fn condition(&self, labels: &[Label]) -> Result<Condition> {
        if let Some(conditioner) = &self.conditioner {
            let caption = |label: &Label| match label {
                Label::Caption(caption) => Some(caption.clone()),
                _ => None,
            };
            let captions: Vec<Option<String>> = labels.iter().map(caption).collect();
            return blame::caught(self.name(Kind::Conditioner), || conditioner.encode(&captions))?;
        }
        let class = |label: &Label| match label {
            Label::Class(class) => Some(*class),
            _ => None,
        };
        let unconditional = self.backbone.accepts().num_classes().is_none();
        if unconditional {
            Ok(Condition::None(labels.len()))
        } else {
            Ok(Condition::Class(labels.iter().map(class).collect()))
        }
    }

    /// Checks that the conditioner can encode the caption of a label. Returns how it shortens the caption, if it does.
    ///
    /// # Errors
    /// If the caption cannot be encoded.
    pub fn check_label(&self, label: &Label) -> Result<Option<String>> {
        match (&self.conditioner, label) {
            (Some(conditioner), Label::Caption(caption)) => {
                blame::caught(self.name(Kind::Conditioner), || conditioner.check_caption(caption))?
            }
            _ => Ok(None),
        }
    }

    /// Returns the shape of the images that samples decode to.
    pub fn image_shape(&self) -> ImageShape {
        self.tokenizer.image_shape(self.latent_shape())
    }

    /// Returns the shape of the backbone's latents.
    pub fn latent_shape(&self) -> LatentShape {
        self.backbone.latent_shape()
    }

    /// Opens the dataset.
    ///
    /// # Errors
    /// If the dataset cannot be opened.
    pub fn open(&self) -> Result<Checked> {
        let who = self.name(Kind::Data);
        let dataset = blame::caught(who, || self.data.open())?.map_err(|error| match error {
            // The document names the files, so an unreadable one is a mistake of its user.
            Error::Io { .. } | Error::File { .. } => Problem::new("/data", error.to_string()).into(),
            other => other,
        })?;
        Checked::new(who, dataset)
    }

    /// Opens the dataset and checks that its content fits the backbone.
    ///
    /// # Errors
    /// If the dataset cannot be opened, or its latents, classes or captions do not match the backbone.
    pub fn open_data(&self) -> Result<Checked> {
        let dataset = self.open()?;
        let info = dataset.info();
        let latent = match &info.items {
            ItemKind::Images(shape) => self.tokenizer.latent_shape(*shape).map_err(Error::Input)?,
            ItemKind::Latents { grid, channels } => LatentShape::values(*grid, *channels),
            ItemKind::Tokens(shape) => shape.clone(),
        };
        let disagree = |what: String| Error::from(Problem::new("/data", what).and_at("/backbone"));
        let expected = self.latent_shape();
        if latent != expected {
            return Err(disagree(format!("the dataset has latents {latent:?}; the backbone expects {expected:?}")));
        }
        let accepts = self.backbone.accepts();
        if info.captions != accepts.condition.is_text() {
            let (has, reads) = if info.captions { ("captions", "no text") } else { ("no captions", "a text") };
            return Err(disagree(format!("the dataset has {has}; the backbone reads {reads}")));
        }
        let takes = accepts.num_classes();
        if info.num_classes != takes {
            let classes = |count: Option<usize>| count.map_or("no classes".to_string(), |n| format!("{n} classes"));
            let (has, reads) = (classes(info.num_classes), classes(takes));
            let what = format!("the dataset has {has}; the backbone expects {reads}");
            let problem = Problem::new("/data", what).and_at("/backbone");
            return Err(match dataset.how_to_add_classes().filter(|_| info.num_classes.is_none()) {
                Some(how) => {
                    problem.fix(format!("{how}; one class needs one sub-folder and a backbone of 1 class")).into()
                }
                None => problem.into(),
            });
        }
        Ok(dataset)
    }

    /// Reads the images of the dataset in batches, for comparison with samples. If there are more than [`MOST_VALUES`]
    /// values, selects as many images as fit, evenly spread over the dataset. Decodes latents. Omits items that cannot
    /// be read. Returns the number of images.
    ///
    /// # Errors
    /// If most items cannot be read, `receive` fails, or a training that measures is asked to stop.
    pub fn real_images(
        &self,
        dataset: &dyn Dataset,
        device: &Device,
        receive: &mut dyn FnMut(&Images) -> Result<()>,
    ) -> Result<usize> {
        let (shape, mut count) = (self.image_shape(), 0);
        for indices in spread(dataset.len(), MOST_VALUES / shape.iter().product::<usize>()).chunks(64) {
            if interrupt::must_abort() {
                return Err(Error::Interrupted);
            }
            let images = self.images_at(dataset, indices, device)?;
            receive(&images)?;
            count += images.len();
        }
        Ok(count)
    }

    /// Reads the images at `indices` without augmentation. Decodes latents. Omits items that cannot be read.
    ///
    /// # Errors
    /// If most items cannot be read, or the tokenizer panics.
    pub fn images_at(&self, dataset: &dyn Dataset, indices: &[usize], device: &Device) -> Result<Images> {
        let (info, batch) = (dataset.info(), readable(dataset, indices)?);
        match info.items {
            ItemKind::Images(shape) => {
                let mut images = Images::none(shape);
                images.extend(batch.values, &batch.labels);
                Ok(images)
            }
            ItemKind::Latents { .. } | ItemKind::Tokens(_) => {
                let shape = self.image_shape();
                let mut images = Images::none(shape);
                let decoded = self.decode(self.latents(&batch, &info, device)?, shape)?;
                let values = decoded.try_into_vec_as::<f32>().map_err(|e| Error::Run(format!("{e:?}")))?;
                images.extend(values, &batch.labels);
                Ok(images)
            }
        }
    }
}

fn tensor4(values: Vec<f32>, shape: [usize; 4], device: &Device) -> Tensor<4> {
    Tensor::from_data(TensorData::new(values, shape), device)
}
