//! Loaded feature spaces. Metrics with equal `features` entries share one network, and one pass per batch.

use crate::error::{Error, Result};
use crate::evaluation::features::{Extracted, Extractor, Features};
use crate::evaluation::images::Images;
use burn::tensor::{Device, Tensor, TensorData};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// The feature spaces of several metrics, loaded once each.
pub struct Spaces {
    device: Device,
    /// By the JSON of their entry.
    loaded: BTreeMap<String, Arc<Space>>,
}

impl Spaces {
    /// Starts without a space. Networks are loaded to `device`.
    pub fn new(device: &Device) -> Self {
        Self { device: device.clone(), loaded: BTreeMap::new() }
    }

    /// Returns the device of the networks.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Returns the space of an entry. Loads its network unless an equal entry was loaded before.
    ///
    /// # Errors
    /// If a file is missing or does not fit.
    pub fn load<F: Features + Serialize + ?Sized>(&mut self, entry: &F) -> Result<Arc<Space>> {
        let key = serde_json::to_string(entry).map_err(|e| Error::Run(e.to_string()))?;
        if let Some(space) = self.loaded.get(&key) {
            return Ok(space.clone());
        }
        let space = Arc::new(Space {
            name: entry.space(),
            batch_size: entry.batch_size().max(1),
            extractor: entry.load(&self.device)?,
            device: self.device.clone(),
            last: Mutex::new(None),
        });
        self.loaded.insert(key, space.clone());
        Ok(space)
    }
}

/// Features of several images, `[count, width]` row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Rows {
    /// Values, image by image.
    pub values: Vec<f32>,
    /// Number of values per image.
    pub width: usize,
}

impl Rows {
    /// Returns the number of images.
    pub fn len(&self) -> usize {
        self.values.len().checked_div(self.width).unwrap_or(0)
    }

    /// Returns whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Returns the features of image `i`.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.values[i * self.width..(i + 1) * self.width]
    }

    fn append(&mut self, features: Tensor<2>) -> Result<()> {
        self.width = features.dims()[1];
        let values = features.try_into_vec_as::<f32>().map_err(|e| Error::Run(format!("{e:?}")))?;
        self.values.extend(values);
        Ok(())
    }
}

/// Features of a batch of images. Metrics that keep features share them.
#[derive(Clone, Debug)]
pub struct FeatureBatch {
    /// The vectors that metrics compare, `[B, D]`.
    pub vectors: Arc<Rows>,
    /// Features that keep positions, `[B, S]`.
    pub spatial: Option<Arc<Rows>>,
    /// Logits of the classes, `[B, K]`.
    pub logits: Option<Arc<Rows>>,
}

/// A loaded feature space.
pub struct Space {
    name: String,
    batch_size: usize,
    extractor: Box<dyn Extractor>,
    device: Device,
    /// The most recent batch and its features: metrics ask for the same batch one after the other.
    last: Mutex<Option<(Vec<f32>, FeatureBatch)>>,
}

impl fmt::Debug for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Space").field(&self.name).finish()
    }
}

impl Space {
    /// Returns the name of the space in measurements and statistics.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the features of a batch. If this batch was the most recent one, no network runs.
    ///
    /// # Errors
    /// If the images do not fit the network.
    pub fn of(&self, images: &Images) -> Result<FeatureBatch> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((values, features)) = &*last
            && *values == images.values
        {
            return Ok(features.clone());
        }
        *last = None;
        let features = self.extract(images)?;
        *last = Some((images.values.clone(), features.clone()));
        Ok(features)
    }

    fn extract(&self, images: &Images) -> Result<FeatureBatch> {
        let [channels, height, width] = images.shape;
        let empty = || Rows { values: Vec::new(), width: 0 };
        let (mut vectors, mut spatial, mut logits) = (empty(), None::<Rows>, None::<Rows>);
        for values in images.values.chunks(self.batch_size * images.width().max(1)) {
            let shape = [values.len() / images.width(), channels, height, width];
            let tensor = Tensor::<4>::from_data(TensorData::new(values.to_vec(), shape), &self.device);
            let extracted: Extracted = self.extractor.extract(tensor)?;
            vectors.append(extracted.vectors)?;
            for (all, part) in [(&mut spatial, extracted.spatial), (&mut logits, extracted.logits)] {
                if let Some(part) = part {
                    all.get_or_insert_with(empty).append(part)?;
                }
            }
        }
        let share = |rows: Option<Rows>| rows.map(Arc::new);
        Ok(FeatureBatch { vectors: Arc::new(vectors), spatial: share(spatial), logits: share(logits) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tokenizer::ImageShape;
    use crate::evaluation::features::FeatureWidths;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Means of the channels. It counts its passes.
    #[derive(Debug, Serialize)]
    struct Means {
        #[serde(skip)]
        passes: Arc<AtomicUsize>,
    }

    struct Loaded(Arc<AtomicUsize>);

    impl Features for Means {
        fn space(&self) -> String {
            "means".into()
        }
        fn widths(&self, image: ImageShape) -> FeatureWidths {
            FeatureWidths::of_vector(image[0])
        }
        fn batch_size(&self) -> usize {
            2
        }
        fn load(&self, _: &Device) -> Result<Box<dyn Extractor>> {
            Ok(Box::new(Loaded(self.passes.clone())))
        }
    }

    impl Extractor for Loaded {
        fn extract(&self, images: Tensor<4>) -> Result<Extracted> {
            self.0.fetch_add(1, Ordering::Relaxed);
            let [batch, channels, ..] = images.dims();
            Ok(Extracted::of_vectors(images.mean_dims(&[2, 3]).reshape([batch, channels])))
        }
    }

    #[test]
    fn equal_entries_share_one_pass_per_batch_of_bounded_size() {
        let entry = Means { passes: Arc::default() };
        let mut spaces = Spaces::new(&Device::flex());
        let (one, two) = (spaces.load(&entry).unwrap(), spaces.load(&entry).unwrap());
        assert!(Arc::ptr_eq(&one, &two));
        let mut images = Images::none([2, 1, 2]);
        images.values = (0..12).map(|v| v as f32).collect();
        let features = one.of(&images).unwrap();
        assert_eq!((features.vectors.values.clone(), features.vectors.len()), (vec![0.5, 2.5, 4.5, 6.5, 8.5, 10.5], 3));
        assert!(Arc::ptr_eq(&features.vectors, &two.of(&images).unwrap().vectors));
        // Three images are two passes of at most two images.
        assert_eq!(entry.passes.load(Ordering::Relaxed), 2);
        images.values[0] = 2.0;
        assert_eq!(two.of(&images).unwrap().vectors.values[0], 1.5);
        assert_eq!(entry.passes.load(Ordering::Relaxed), 4);
    }
}
