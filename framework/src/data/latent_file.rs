//! Files of encoded latents, which the dataset `latents` reads and `unguided encode` writes.
//!
//!   x, x_flip     float [N, C, H, W]   latents of the images, and of the mirrored images; tokens: int32 [N, 1, H, W],
//!                                      or [N, 1, 1, L] for the L positions of a pyramid
//!   y             int64 `[N]`            classes
//!   captions      uint8 `[bytes]`        all captions in UTF-8, concatenated
//!   caption_ends  int64 `[N]`            end of each caption in `captions`
//!
//! Only `x` is required.

use crate::checkpoint::tensor_file::{foreign_dtype, header, write_tensors};
use crate::data::dataset::{Dataset, Label};
use crate::data::loader::{Batch, readable_or_none};
use crate::data::tokenizer::ImageShape;
use crate::error::{Error, Result};
use crate::nn::from_positions;
use crate::process::Latent;
use burn::tensor::{DType, Device, Tensor, TensorData};
use safetensors::tensor::Dtype;
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

/// Name of the tensor that holds the captions.
pub const CAPTIONS: &str = "captions";
/// Name of the tensor that holds the end of each caption.
pub const CAPTION_ENDS: &str = "caption_ends";
/// The only key in a file's metadata.
const ABOUT: &str = "unguided-latents-1";
/// Batches read ahead of the encoder.
const AHEAD: usize = 2;

/// The items of one file, collected in memory.
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
    /// Creates an empty shard for latents of shape C, H, W, stored in a float type, or for tokens of shape 1, H, W,
    /// stored as I32.
    pub fn new(shape: [usize; 3], dtype: DType) -> Self {
        let (x, x_flip, captions) = (Vec::new(), Vec::new(), Vec::new());
        Self { dtype, shape, x, x_flip, y: Vec::new(), captions, caption_ends: Vec::new(), len: 0 }
    }

    /// Returns the number of items.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether the shard has no items.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Encodes a batch of images of shape C, H, W and appends it. With `flip`, it also encodes the mirrored
    /// images.
    ///
    /// # Errors
    /// If the tokenizer panics, or a latent is not finite in the shard's type.
    ///
    /// # Panics
    /// If the tokenizer returns latents of another shape.
    pub fn encode(
        &mut self,
        batch: &Batch,
        image: ImageShape,
        encode: &dyn Fn(Tensor<4>) -> Result<Latent>,
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
            self.x_flip.extend(self.bytes(encode(images.clone().flip([3]))?)?);
        }
        self.x.extend(self.bytes(encode(images)?)?);
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

    /// Returns latents `[B, C, H, W]` as the bytes that the file stores.
    fn bytes(&self, latent: Latent) -> Result<Vec<u8>> {
        let [channels, height, width] = self.shape;
        let x = match latent {
            Latent::Values(x) => x,
            Latent::Ids(ids) | Latent::Levels { ids, .. } => {
                assert_eq!(ids.dims()[1], height * width);
                return Ok(ids.into_data().convert_dtype(self.dtype).as_bytes().to_vec());
            }
        };
        let count = x.dims()[0];
        let x = from_positions(x, [height, width]);
        assert_eq!(x.dims(), [count, channels, height, width]);
        let data = x.into_data().convert_dtype(self.dtype);
        match data.iter::<f32>().find(|value| !value.is_finite()) {
            None => Ok(data.as_bytes().to_vec()),
            Some(value) => {
                let what = format!("a latent value is {value} in type {:?}; use a wider type", self.dtype);
                Err(Error::Run(what))
            }
        }
    }

    /// Writes the shard atomically. `about` is kept in the file's metadata.
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
        // All captions may be empty strings, so the number of caption ends decides whether there are
        // captions.
        let there = |name: &str, bytes: &[u8]| !bytes.is_empty() || (name == CAPTIONS && !ends.is_empty());
        let stored = all.into_iter().filter(|(name, _, bytes)| there(name, bytes));
        let stored = stored.map(|(name, (dtype, shape), bytes)| (name.to_string(), *dtype, shape.clone(), &bytes[..]));
        // A map with a single entry has only one order, so equal shards give identical files.
        let metadata = HashMap::from([(ABOUT.to_string(), about.to_string())]);
        write_tensors(path, stored.collect(), Some(metadata))
    }
}

/// Returns the `about` text of a latent file; `None` if the file was not written by [`Shard::write`].
///
/// # Errors
/// If the file cannot be read.
pub fn about(path: &Path) -> Result<Option<String>> {
    Ok(header(path)?.and_then(|mut metadata| metadata.remove(ABOUT)))
}

/// Reads the items of each range in order, on a thread that runs ahead of the receiver. A batch never crosses
/// the end of a range. Unreadable items are left out.
pub fn batches(dataset: Arc<dyn Dataset>, ranges: Vec<Range<usize>>, batch_size: usize) -> Receiver<Batch> {
    let (sender, batches) = sync_channel(AHEAD);
    std::thread::spawn(move || {
        for range in ranges {
            let indices: Vec<usize> = range.collect();
            for indices in indices.chunks(batch_size) {
                // The channel is closed if the encoder failed.
                if sender.send(readable_or_none(&*dataset, indices)).is_err() {
                    return;
                }
            }
        }
    });
    batches
}
