//! Sources of images: items of a dataset, and samples of a network, which are kept on disk until they are measured.

use crate::watcher::{Stage, Watcher};
use framework::burn::tensor::{Device, TensorData};
use framework::data::dataset::{Dataset, ItemKind, Label};
use framework::data::loader::readable;
use framework::data::tokenizer::ImageShape;
use framework::error::{Error, Problem, Result};
use framework::evaluation::images::Images;
use framework::evaluation::statistics::Statistics;
use framework::network::backbone::BoxBackbone;
use framework::pipeline::Pipeline;
use framework::pipeline::images::{Request, sample_from};
use std::fs;
use std::ops::Range;
use std::path::PathBuf;

/// Images in a fixed order, read batch by batch.
pub trait ImageSource {
    /// Returns the number of images.
    fn count(&self) -> usize;

    /// Returns the shape of one image.
    fn shape(&self) -> ImageShape;

    /// Returns the number of images per batch.
    fn batch_size(&self) -> usize;

    /// Reads the images of a range, which is one batch. Items that cannot be read are left out.
    ///
    /// # Errors
    /// If most items cannot be read, or the images cannot be sampled.
    fn read(&mut self, range: Range<usize>, watcher: &mut dyn Watcher) -> Result<Images>;
}

/// Returns the ranges of the batches of a source.
pub fn batches(source: &dyn ImageSource) -> impl Iterator<Item = Range<usize>> + use<> {
    let (count, size) = (source.count(), source.batch_size());
    (0..count).step_by(size).map(move |first| first..(first + size).min(count))
}

/// Number of dataset items per batch.
const ITEMS: usize = 64;

/// Items of a dataset.
pub struct Items<'a> {
    dataset: &'a dyn Dataset,
    indices: Vec<usize>,
    /// Decodes latents. `None` for a dataset of images.
    decoder: Option<&'a Pipeline>,
    shape: ImageShape,
    device: Device,
    stage: Stage,
}

impl<'a> Items<'a> {
    /// Selects items of a dataset. `decoder` has the tokenizer of latents.
    ///
    /// # Errors
    /// If the dataset holds latents and there is no decoder, or latents of another shape.
    pub fn new(
        dataset: &'a dyn Dataset,
        indices: Vec<usize>,
        decoder: Option<&'a Pipeline>,
        device: &Device,
        stage: Stage,
    ) -> Result<Self> {
        let shape = match (&dataset.info().items, decoder) {
            (ItemKind::Images(shape), _) => *shape,
            (ItemKind::Latents { grid, channels }, Some(pipeline)) => {
                let expected = pipeline.latent_shape();
                if (expected.grid, expected.channels) != (*grid, *channels) {
                    let what = format!("the latents have {channels} channels on a {} x {} grid", grid[0], grid[1]);
                    let problem = Problem::new("", what);
                    let [height, width] = expected.grid;
                    return Err(problem
                        .accepts(format!("latents of the document: {} channels, {height} x {width}", expected.channels))
                        .into());
                }
                pipeline.image_shape()
            }
            (ItemKind::Tokens(latent), Some(pipeline)) => {
                let expected = pipeline.latent_shape();
                if expected != *latent {
                    let what = format!("the tokens are those of {} positions", latent.positions());
                    let accepts = format!("tokens of the document: {} positions", expected.positions());
                    let problem = Problem::new("", what).accepts(accepts);
                    return Err(problem.and_at("/tokenizer").into());
                }
                pipeline.image_shape()
            }
            (ItemKind::Latents { .. } | ItemKind::Tokens(_), None) => {
                return Err(Problem::new("", "latents need the tokenizer that decodes them")
                    .accepts("a document with the tokenizer: --document FILE, or --against FILE.json")
                    .into());
            }
        };
        Ok(Self { dataset, indices, decoder, shape, device: device.clone(), stage })
    }
}

impl ImageSource for Items<'_> {
    fn count(&self) -> usize {
        self.indices.len()
    }

    fn shape(&self) -> ImageShape {
        self.shape
    }

    fn batch_size(&self) -> usize {
        ITEMS
    }

    fn read(&mut self, range: Range<usize>, watcher: &mut dyn Watcher) -> Result<Images> {
        let (end, indices) = (range.end, &self.indices[range]);
        let images = match self.decoder {
            Some(pipeline) => pipeline.images_at(self.dataset, indices, &self.device)?,
            None => {
                let (batch, mut images) = (readable(self.dataset, indices)?, Images::none(self.shape));
                images.extend(batch.values, &batch.labels);
                images
            }
        };
        watcher.progress(self.stage, end, self.indices.len(), "");
        Ok(images)
    }
}

/// Samples of a network. Each batch is one file in a folder, so that an interrupted evaluation samples no batch twice.
pub struct Samples<'a> {
    pipeline: &'a Pipeline,
    network: &'a BoxBackbone,
    request: Request<'a>,
    folder: PathBuf,
    device: Device,
    /// Network evaluations per sample, once a batch was read.
    pub nfe: usize,
    /// Duration of all sampling so far, in seconds, that of interrupted commands included.
    pub seconds: f64,
}

impl<'a> Samples<'a> {
    /// Creates the source of the requested samples. Their files are in `folder`, which exists.
    pub fn new(
        pipeline: &'a Pipeline,
        network: &'a BoxBackbone,
        request: Request<'a>,
        folder: PathBuf,
        device: &Device,
    ) -> Self {
        Self { pipeline, network, request, folder, device: device.clone(), nfe: 0, seconds: 0.0 }
    }

    fn sample(&mut self, range: &Range<usize>, watcher: &mut dyn Watcher) -> Result<Statistics> {
        let labels = self.request.labels[range.clone()].to_vec();
        let (count, total) = (labels.len(), self.request.labels.len());
        let request = Request { labels, ..self.request };
        let sampled =
            sample_from(self.pipeline, self.network, &request, range.start, &self.device, &mut |step, steps| {
                watcher.progress(Stage::Sampling, range.start + count * step / steps.max(1), total, "");
            })?;
        let mut file = Statistics::of_images(SAMPLES, &sampled.images);
        file.tensors.insert(NFE.into(), TensorData::new(vec![sampled.nfe as i64], [1]));
        file.tensors.insert(SECONDS.into(), TensorData::new(vec![sampled.seconds], [1]));
        Ok(file)
    }
}

/// Names in the file of a batch of samples.
const SAMPLES: &str = "samples";
const NFE: &str = "nfe";
const SECONDS: &str = "seconds";

impl ImageSource for Samples<'_> {
    fn count(&self) -> usize {
        self.request.labels.len()
    }

    fn shape(&self) -> ImageShape {
        self.pipeline.image_shape()
    }

    fn batch_size(&self) -> usize {
        self.request.batch_size
    }

    fn read(&mut self, range: Range<usize>, watcher: &mut dyn Watcher) -> Result<Images> {
        let path = self.folder.join(format!("{:08}.safetensors", range.start));
        let (shape, labels) = (self.shape(), &self.request.labels[range.clone()]);
        let fits = |file: &Statistics| {
            let values = labels.len() * shape.iter().product::<usize>();
            file.metric == SAMPLES && file.tensor("images").is_ok_and(|images| images.num_elements() == values)
        };
        // A file is complete or absent. One that something else damaged is sampled again.
        let kept = if path.exists() { Statistics::load(&path).ok().filter(fits) } else { None };
        let file = match kept {
            Some(file) => file,
            None => {
                let file = self.sample(&range, watcher)?;
                file.save(&path)?;
                file
            }
        };
        self.nfe = file.tensor(NFE)?.iter::<i64>().next().unwrap_or_default() as usize;
        self.seconds += file.tensor(SECONDS)?.iter::<f64>().next().unwrap_or_default();
        let mut images = Images::none(shape);
        images.extend(file.images()?.values, &self.request.labels[range.clone()]);
        watcher.progress(Stage::Sampling, range.end, self.request.labels.len(), "");
        Ok(images)
    }
}

/// Creates an empty folder for samples, or opens an existing one.
///
/// # Errors
/// If the folder cannot be created.
pub fn samples_folder(folder: &std::path::Path) -> Result<PathBuf> {
    let samples = folder.join(SAMPLES);
    fs::create_dir_all(&samples).map_err(|e| Error::io(&samples, e))?;
    Ok(samples)
}

/// Returns whether labels have classes, and whether they have captions.
pub fn labelled(labels: &[Label]) -> (bool, bool) {
    let first = labels.first();
    (matches!(first, Some(Label::Class(_))), matches!(first, Some(Label::Caption(_))))
}
