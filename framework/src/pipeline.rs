//! A checked document, as objects: what the trainer and the samplers work on.

use crate::adapt;
use crate::backbone::{BackboneConfig, BoxBackbone};
use crate::condition::Condition;
use crate::conditioner::Conditioner;
use crate::dataset::{Dataset, DatasetConfig, DatasetInfo, ItemKind, Label};
use crate::error::{Error, Result};
use crate::guard::{self, Guarded};
use crate::guidance::Guidance;
use crate::loader::{Batch, readable, spread};
use crate::metric::{Images, Metric};
use crate::objective::Objective;
use crate::plugin::Kind;
use crate::process::{Latent, LatentShape, Process};
use crate::random::Random;
use crate::sampler::Sampler;
use crate::tokenizer::{ImageShape, Tokenizer};
use crate::train_config::TrainConfig;
use crate::weights;
use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use std::collections::BTreeMap;

/// Numbers of images that are held at once, where all of a dataset are asked for: 1 GiB.
pub const MOST_VALUES: usize = 1 << 28;

/// The parts of one pipeline.
pub struct Pipeline {
    /// Where items come from.
    pub data: Box<dyn DatasetConfig>,
    /// Images to latents.
    pub tokenizer: Box<dyn Tokenizer>,
    /// Captions to features.
    pub conditioner: Option<Box<dyn Conditioner>>,
    /// Sizes of the network.
    pub backbone: Box<dyn BackboneConfig>,
    /// What is minimised.
    pub objective: Box<dyn Objective>,
    /// How training goes.
    pub train: TrainConfig,
    /// How latents are drawn.
    pub sampler: Box<dyn Sampler>,
    /// How they are guided.
    pub guidance: Box<dyn Guidance>,
    /// What is measured on samples.
    pub metrics: Vec<Box<dyn Metric>>,
    /// The resolved document, every default written out.
    pub document: String,
    /// What messages call the part in each slot: `objective "gft"`, and the library it comes from, if any.
    pub names: BTreeMap<Kind, String>,
}

impl Pipeline {
    /// The network with freshly drawn parameters, as the run trains it.
    pub fn init_backbone(&self, device: &Device) -> BoxBackbone {
        let init = |path: &str, shape: &[usize]| self.backbone.initializer(path, shape);
        self.adapt(weights::initialize(self.backbone.init(device), &Random::new(self.train.seed), &init))
    }

    /// A network of this backbone as the run trains it: with its adapters, and with what is frozen.
    pub fn adapt(&self, network: BoxBackbone) -> BoxBackbone {
        if self.train.lora.is_none() && self.train.frozen.is_empty() {
            return network;
        }
        adapt::adapt(network, &self.train, &Random::new(self.train.seed), &self.is_new())
    }

    /// Tells of a parameter's path whether official files lack it.
    pub fn is_new(&self) -> impl Fn(&str) -> bool {
        let formats = self.backbone.formats();
        move |path: &str| formats.iter().any(|names| names.fresh(path).is_some())
    }

    /// The network of a checkpoint's numbers, adapters merged into their weights.
    ///
    /// # Errors
    /// If names or shapes are not the network's.
    pub fn restore(&self, values: BTreeMap<String, TensorData>, device: &Device) -> Result<BoxBackbone> {
        match self.train.lora {
            None => weights::restore(self.backbone.init(device), values),
            Some(_) => Ok(weights::restore(self.init_backbone(device), values)?.materialize()),
        }
    }

    /// What messages call the part in a slot.
    pub fn name(&self, kind: Kind) -> &str {
        self.names.get(&kind).map_or(kind.name(), String::as_str)
    }

    /// The process of the network.
    pub fn process(&self) -> Box<dyn Process> {
        self.backbone.process()
    }

    /// Loads what tokenizer and conditioner need.
    ///
    /// # Errors
    /// If a file is missing or is not what it should be.
    pub fn load(&mut self, device: &Device) -> Result<()> {
        self.tokenizer.load(device)?;
        match &mut self.conditioner {
            Some(conditioner) => conditioner.load(device),
            None => Ok(()),
        }
    }

    /// The latents of a batch, `f32`.
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
        }
    }

    /// The latents of images.
    ///
    /// # Errors
    /// If the tokenizer panics.
    pub fn encode(&self, images: Tensor<4>) -> Result<Latent> {
        guard::caught(self.name(Kind::Tokenizer), || self.tokenizer.encode(images))
    }

    /// The images of latents.
    ///
    /// # Errors
    /// If the tokenizer panics.
    pub fn decode(&self, latent: Latent, image: ImageShape) -> Result<Tensor<4>> {
        guard::caught(self.name(Kind::Tokenizer), || self.tokenizer.decode(latent, image))
    }

    /// The condition of a batch.
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
            return guard::caught(self.name(Kind::Conditioner), || conditioner.encode(&captions))?;
        }
        let class = |label: &Label| match label {
            Label::Class(class) => Some(*class),
            _ => None,
        };
        let unconditional = self.backbone.accepts().num_classes.is_none();
        if unconditional {
            Ok(Condition::None(labels.len()))
        } else {
            Ok(Condition::Class(labels.iter().map(class).collect()))
        }
    }

    /// Shape of the images that samples decode to.
    pub fn image_shape(&self) -> ImageShape {
        self.tokenizer.image_shape(self.latent_shape())
    }

    /// The backbone's latent.
    pub fn latent_shape(&self) -> LatentShape {
        self.backbone.latent_shape()
    }

    /// Opens the dataset.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn open(&self) -> Result<Guarded> {
        let who = self.name(Kind::Data);
        Guarded::new(who, guard::caught(who, || self.data.open())??)
    }

    /// Opens the dataset and checks that it is what the document made us expect.
    ///
    /// # Errors
    /// If it cannot be opened, or its latents, classes or captions are not what the network takes.
    pub fn open_data(&self) -> Result<Guarded> {
        let dataset = self.open()?;
        let info = dataset.info();
        let latent = match &info.items {
            ItemKind::Images(shape) => self.tokenizer.latent_shape(*shape).map_err(Error::Document)?,
            ItemKind::Latents { grid, channels } => LatentShape::values(*grid, *channels),
        };
        let expected = self.latent_shape();
        if latent != expected {
            return Err(Error::Run(format!("the data give latents {latent:?}, the backbone takes {expected:?}")));
        }
        let accepts = self.backbone.accepts();
        if info.captions != accepts.condition.is_text() {
            let (has, reads) = if info.captions { ("captions", "no text") } else { ("no captions", "a text") };
            return Err(Error::Run(format!("the data have {has}, the backbone reads {reads}")));
        }
        let takes = accepts.num_classes;
        if info.num_classes != takes {
            let classes = |count: Option<usize>| count.map_or("no classes".to_string(), |n| format!("{n} classes"));
            let (has, reads) = (classes(info.num_classes), classes(takes));
            return Err(Error::Run(format!("the data have {has}, the backbone reads {reads}")));
        }
        Ok(dataset)
    }

    /// The dataset's images: what samples are compared with; of a dataset of more than fit into [`MOST_VALUES`] that many,
    /// evenly spread over it. Latents are decoded, items that cannot be read left out.
    ///
    /// # Errors
    /// If most items cannot be read.
    pub fn real_images(&self, dataset: &dyn Dataset, device: &Device) -> Result<Images> {
        let info = dataset.info();
        let shape = self.image_shape();
        let mut images = Images::none(shape);
        for indices in spread(dataset.len(), MOST_VALUES / shape.iter().product::<usize>()).chunks(64) {
            let batch = readable(dataset, indices)?;
            match info.items {
                ItemKind::Images(_) => images.extend(batch.values, &batch.labels),
                ItemKind::Latents { .. } => {
                    let decoded = self.decode(self.latents(&batch, &info, device)?, shape)?;
                    let values = decoded.try_into_vec_as::<f32>().map_err(|e| Error::Run(format!("{e:?}")))?;
                    images.extend(values, &batch.labels);
                }
            }
        }
        Ok(images)
    }
}

fn tensor4(values: Vec<f32>, shape: [usize; 4], device: &Device) -> Tensor<4> {
    Tensor::from_data(TensorData::new(values, shape), device)
}
