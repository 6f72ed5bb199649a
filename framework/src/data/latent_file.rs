//! Files of encoded latents: what dataset `latents` reads and `unguided encode` writes.
//!
//!   x, x_flip     float [N, C, H, W]   the latents, and those of the mirrored images
//!   y             int64 `[N]`            the classes
//!   captions      uint8 `[bytes]`        the captions one after another, UTF-8
//!   caption_ends  int64 `[N]`            where each ends in `captions`
//!
//! Everything but `x` may be absent.

use crate::checkpoint::{self, foreign_dtype, write_tensors};
use crate::dataset::{Dataset, Label};
use crate::error::{Error, Result};
use crate::loader::{Batch, readable_or_none};
use crate::nn::from_positions;
use crate::pipeline::Pipeline;
use crate::process::Latent;
use crate::tokenizer::ImageShape;
use burn::tensor::{DType, Device, Tensor, TensorData};
use safetensors::tensor::Dtype;
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

/// Name of the tensor of captions.
pub const CAPTIONS: &str = "captions";
/// Name of the tensor of their ends.
pub const CAPTION_ENDS: &str = "caption_ends";
/// The one name in a file's metadata.
const ABOUT: &str = "unguided-latents-1";
/// Batches read ahead of the encoder.
const AHEAD: usize = 2;

/// The items of one file, as they come.
#[derive(Clone, Debug)]
pub struct Shard {
    dtype: DType,
    shape: [usize; 3],
    x: Vec<u8>,
    x_flip: Vec<u8>,
    y: Vec<i64>,
    captions: Vec<u8>,
    caption_ends: Vec<i64>,
    len: usize,
}

impl Shard {
    /// An empty one for latents of shape C, H, W, kept in a float type.
    pub fn new(shape: [usize; 3], dtype: DType) -> Self {
        let (x, x_flip, captions) = (Vec::new(), Vec::new(), Vec::new());
        Self { dtype, shape, x, x_flip, y: Vec::new(), captions, caption_ends: Vec::new(), len: 0 }
    }

    /// Number of items.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Encodes a batch of images of shape C, H, W, mirrored as well if asked, and adds it.
    ///
    /// # Errors
    /// If the tokenizer panics, or a latent is not finite in the shard's type.
    ///
    /// # Panics
    /// If the tokenizer makes tokens, or latents of another shape.
    pub fn encode(
        &mut self,
        batch: &Batch,
        image: ImageShape,
        pipeline: &Pipeline,
        flip: bool,
        device: &Device,
    ) -> Result<()> {
        let count = batch.labels.len();
        if count == 0 {
            return Ok(());
        }
        let [channels, height, width] = image;
        let values = TensorData::new(batch.values.clone(), [count, channels, height, width]);
        let images = Tensor::<4>::from_data(values, device);
        if flip {
            self.x_flip.extend(self.bytes(pipeline.encode(images.clone().flip([3]))?)?);
        }
        self.x.extend(self.bytes(pipeline.encode(images)?)?);
        for label in &batch.labels {
            match label {
                Label::None => {}
                Label::Class(class) => self.y.push(*class as i64),
                Label::Caption(caption) => {
                    self.captions.extend(caption.bytes());
                    self.caption_ends.push(self.captions.len() as i64);
                }
            }
        }
        self.len += count;
        Ok(())
    }

    /// Latents `[B, C, H, W]` as they lie in the file.
    fn bytes(&self, latent: Latent) -> Result<Vec<u8>> {
        let Latent::Values(x) = latent else { panic!("files of latents hold numbers, not tokens") };
        let [channels, height, width] = self.shape;
        let count = x.dims()[0];
        let x = from_positions(x, [height, width]);
        assert_eq!(x.dims(), [count, channels, height, width]);
        let data = x.into_data().convert_dtype(self.dtype);
        match data.iter::<f32>().find(|value| !value.is_finite()) {
            None => Ok(data.as_bytes().to_vec()),
            Some(value) => {
                let what = format!("a latent is {value} as {:?}; a wider type may hold it", self.dtype);
                Err(Error::Run(what))
            }
        }
    }

    /// Writes it, whole or not at all. `about` is kept in the file's metadata.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, path: &Path, about: &str) -> Result<()> {
        let [channels, height, width] = self.shape;
        let numbers = |values: &[i64]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        let (y, ends) = (numbers(&self.y), numbers(&self.caption_ends));
        let latents = (foreign_dtype(self.dtype), vec![self.len, channels, height, width]);
        let integers = (Dtype::I64, vec![self.len]);
        let all = [
            ("x", &latents, &self.x),
            ("x_flip", &latents, &self.x_flip),
            ("y", &integers, &y),
            (CAPTION_ENDS, &integers, &ends),
            (CAPTIONS, &(Dtype::U8, vec![self.captions.len()]), &self.captions),
        ];
        // Captions may all be empty; their ends are not.
        let there = |name: &str, bytes: &[u8]| !bytes.is_empty() || (name == CAPTIONS && !ends.is_empty());
        let stored = all.into_iter().filter(|(name, _, bytes)| there(name, bytes));
        let stored = stored.map(|(name, (dtype, shape), bytes)| (name.to_string(), *dtype, shape.clone(), &bytes[..]));
        // One entry alone has one order, so equal shards are equal files.
        let metadata = HashMap::from([(ABOUT.to_string(), about.to_string())]);
        write_tensors(path, stored.collect(), Some(metadata))
    }
}

/// What was said about a file when it was written; `None` if it is none of ours.
///
/// # Errors
/// If the file cannot be read.
pub fn about(path: &Path) -> Result<Option<String>> {
    Ok(checkpoint::header(path)?.and_then(|mut metadata| metadata.remove(ABOUT)))
}

/// Reads the items of each range in order, in batches that do not cross its end, ahead of who asks for them. Items that
/// cannot be read are left out.
pub fn batches(dataset: Arc<dyn Dataset>, ranges: Vec<Range<usize>>, batch_size: usize) -> Receiver<Batch> {
    let (sender, batches) = sync_channel(AHEAD);
    std::thread::spawn(move || {
        for range in ranges {
            let indices: Vec<usize> = range.collect();
            for indices in indices.chunks(batch_size) {
                // A closed channel is an encoder that failed.
                if sender.send(readable_or_none(&*dataset, indices)).is_err() {
                    return;
                }
            }
        }
    });
    batches
}
