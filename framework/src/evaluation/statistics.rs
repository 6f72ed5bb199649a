//! Statistics of real images: computed once, saved, and compared with samples.

use crate::checkpoint::tensor_file::{Entry, foreign_dtype, header, write_tensors};
use crate::data::tokenizer::ImageShape;
use crate::error::{Error, Result};
use crate::evaluation::images::Images;
use burn::tensor::TensorData;
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

/// The version of the file.
const FORMAT: &str = "unguided-statistics-1";
/// Names in the metadata.
const METRIC: &str = "metric";
const COUNT: &str = "count";
const CAPTIONS: &str = "captions";

/// What a metric keeps of the real images.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Statistics {
    /// The metric and the setting that they belong to, e.g. `frechet_pixels`.
    pub metric: String,
    /// Number of images.
    pub count: usize,
    /// Tensors by name, f32, f64 or i64.
    pub tensors: BTreeMap<String, TensorData>,
    /// Captions of the images; empty if the metric reads none.
    pub captions: Vec<String>,
}

impl Statistics {
    /// Statistics that are the images themselves, for metrics that compare image by image.
    pub fn of_images(metric: &str, images: &Images) -> Self {
        let [channels, height, width] = images.shape;
        let classes: Vec<i64> = images.classes.iter().map(|class| *class as i64).collect();
        let mut tensors = BTreeMap::new();
        let values = TensorData::new(images.values.clone(), [images.len(), channels, height, width]);
        tensors.insert("images".to_string(), values);
        if !classes.is_empty() {
            tensors.insert("classes".to_string(), TensorData::new(classes, [images.classes.len()]));
        }
        Self { metric: metric.to_string(), count: images.len(), tensors, captions: images.captions.clone() }
    }

    /// Returns the images that [`Statistics::of_images`] kept.
    ///
    /// # Errors
    /// If there are none.
    pub fn images(&self) -> Result<Images> {
        let data = self.tensor("images")?;
        let [_, channels, height, width] = data.shape().to_vec()[..] else {
            return Err(Error::Run(format!("the images of the statistics have shape {:?}", data.shape())));
        };
        let shape: ImageShape = [channels, height, width];
        let values = data.clone().convert::<f32>().try_into_vec::<f32>().expect("converted to f32");
        let classes = match self.tensors.get("classes") {
            Some(classes) => classes.iter::<i64>().map(|class| class as usize).collect(),
            None => Vec::new(),
        };
        Ok(Images { values, shape, classes, captions: self.captions.clone() })
    }

    /// Returns a tensor.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn tensor(&self, name: &str) -> Result<&TensorData> {
        self.tensors.get(name).ok_or_else(|| {
            Error::Run(format!("the statistics of \"{}\" have no `{name}`; compute them again", self.metric))
        })
    }

    /// Checks that these are the statistics of `metric`.
    ///
    /// # Errors
    /// If they belong to another metric or setting.
    pub fn expect(&self, metric: &str) -> Result<()> {
        if self.metric == metric {
            return Ok(());
        }
        Err(Error::Run(format!(
            "the statistics belong to \"{}\", not to \"{metric}\"; compute them again",
            self.metric
        )))
    }

    /// Writes the statistics as safetensors, completely or not at all.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let entries: Vec<Entry<'_>> = self
            .tensors
            .iter()
            .map(|(name, data)| (name.clone(), foreign_dtype(data.dtype()), data.shape().to_vec(), data.as_bytes()))
            .collect();
        let captions = serde_json::to_string(&self.captions).expect("texts can be written");
        let metadata = HashMap::from([
            ("format".to_string(), FORMAT.to_string()),
            (METRIC.to_string(), self.metric.clone()),
            (COUNT.to_string(), self.count.to_string()),
            (CAPTIONS.to_string(), captions),
        ]);
        write_tensors(path, entries, Some(metadata))
    }

    /// Reads statistics that [`Statistics::save`] wrote.
    ///
    /// # Errors
    /// If the file cannot be read, or is not a file of statistics.
    pub fn load(path: &Path) -> Result<Self> {
        let wrong = |what: &str| Error::file(path, format!("is not a file of statistics: {what}"));
        let metadata = header(path)?.filter(|metadata| metadata.get("format").is_some_and(|format| format == FORMAT));
        let metadata = metadata.ok_or_else(|| wrong("its metadata has another format"))?;
        let get = |name: &str| metadata.get(name).cloned().ok_or_else(|| wrong(&format!("no `{name}`")));
        let count = get(COUNT)?.parse().map_err(|_| wrong("its count is not a number"))?;
        let captions = serde_json::from_str(&get(CAPTIONS)?).map_err(|_| wrong("its captions cannot be read"))?;
        let bytes = fs::read(path).map_err(|e| Error::io(path, e))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|e| wrong(&e.to_string()))?;
        let mut tensors = BTreeMap::new();
        for (name, view) in file.tensors() {
            let dtype = match view.dtype() {
                Dtype::F32 => burn::tensor::DType::F32,
                Dtype::F64 => burn::tensor::DType::F64,
                Dtype::I64 => burn::tensor::DType::I64,
                other => return Err(wrong(&format!("`{name}` has type {other:?}"))),
            };
            tensors.insert(name, TensorData::from_bytes_vec(view.data().to_vec(), view.shape().to_vec(), dtype));
        }
        Ok(Self { metric: get(METRIC)?, count, tensors, captions })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::dataset::Label;

    #[test]
    fn statistics_are_read_back_as_they_were_saved() {
        let mut images = Images::none([1, 2, 2]);
        images.extend([0.5, -1.0, 0.25, 1.0], &[Label::Caption("a cat".into())]);
        images.classes = vec![3];
        let statistics = Statistics::of_images("copies", &images);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("statistics.safetensors");
        statistics.save(&path).unwrap();
        let read = Statistics::load(&path).unwrap();
        assert_eq!(read, statistics);
        let back = read.images().unwrap();
        assert_eq!((back.values, back.classes, back.captions), (images.values, images.classes, images.captions));
        assert!(read.expect("copies").is_ok() && read.expect("other").is_err());
        fs::write(&path, "no statistics").unwrap();
        assert!(Statistics::load(&path).is_err());
    }
}
