//! Statistics of real images as published `.npz` files: `mu` and `sigma` of the features, and `mu_s` and `sigma_s` of
//! features that keep positions.
//!
//! Source: arXiv:2105.05233, whose code writes and reads them; pytorch-fid writes `mu` and `sigma` alone.

use crate::checkpoint::tensor_file::atomically;
use crate::error::{Error, Result};
use crate::evaluation::metric::Metric;
use crate::evaluation::statistics::Statistics;
use burn::tensor::{DType, TensorData};
use npyz::{NpyFile, Order, WriterBuilder};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

/// Names of the arrays, in the order in which the published code writes them.
const NAMES: [&str; 4] = ["mu", "sigma", "mu_s", "sigma_s"];

/// The largest array that is read, in values: a covariance of 16,384 dimensions.
const MOST_VALUES: u64 = 1 << 28;

/// Reads the arrays of a file of statistics. Other arrays, such as images, are left out.
///
/// # Errors
/// If the file cannot be read, or holds no statistics.
pub fn read(path: &Path) -> Result<BTreeMap<String, TensorData>> {
    let wrong = |what: String| Error::file(path, format!("is not a file of statistics: {what}"));
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(|e| wrong(e.to_string()))?;
    let mut arrays = BTreeMap::new();
    for name in NAMES {
        let Ok(mut entry) = archive.by_name(&format!("{name}.npy")) else { continue };
        arrays.insert(name.to_string(), array(&mut entry).map_err(|e| wrong(format!("`{name}`: {e}")))?);
    }
    if arrays.is_empty() {
        let found: Vec<String> = archive.file_names().filter_map(|name| Some(name.ok()?.into_owned())).collect();
        return Err(wrong(format!("it has no `mu`; its entries are {}", found.join(", "))));
    }
    Ok(arrays)
}

/// Reads one array as f64.
fn array(entry: &mut dyn Read) -> io::Result<TensorData> {
    let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let npy = NpyFile::new(entry)?;
    let shape: Vec<usize> = npy.shape().iter().map(|size| *size as usize).collect();
    if npy.shape().iter().try_fold(1_u64, |all, size| all.checked_mul(*size)).is_none_or(|all| all > MOST_VALUES) {
        return Err(invalid(format!("its shape {shape:?} is too large")));
    }
    if npy.order() == Order::Fortran && shape.len() > 1 {
        return Err(invalid("it is stored column by column".into()));
    }
    let values = match npy.try_data::<f64>() {
        Ok(values) => values.collect::<io::Result<Vec<f64>>>()?,
        Err(npy) => match npy.try_data::<f32>() {
            Ok(values) => values.map(|value| value.map(f64::from)).collect::<io::Result<Vec<f64>>>()?,
            Err(npy) => return Err(invalid(format!("its values have type {}", npy.dtype().descr()))),
        },
    };
    match values.iter().all(|value| value.is_finite()) {
        true => Ok(TensorData::new(values, shape)),
        false => Err(invalid("it holds values that are not finite".into())),
    }
}

/// Writes the statistics of all metrics that have published names.
///
/// # Errors
/// If no metric has any, or the file cannot be written.
pub fn write(path: &Path, all: &[(&dyn Metric, &Statistics)]) -> Result<()> {
    let mut arrays = BTreeMap::new();
    for (metric, statistics) in all {
        for (own, published) in metric.published() {
            arrays.insert(*published, statistics.tensor(own)?);
        }
    }
    if arrays.is_empty() {
        return Err(Error::Run(format!(
            "{}: none of the metrics has statistics that an .npz file can hold; the metrics `frechet` and \
             `spatial_frechet` have",
            path.display()
        )));
    }
    atomically(path, |file| {
        let mut archive = ZipWriter::new(file);
        let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        for name in NAMES {
            let Some(data) = arrays.get(name) else { continue };
            archive.start_file(format!("{name}.npy"), options)?;
            let data = (*data).clone().convert_dtype(DType::F64);
            let shape: Vec<u64> = data.shape().to_vec().into_iter().map(|size| size as u64).collect();
            let mut array = Vec::new();
            let mut writer =
                npyz::WriteOptions::<f64>::new().default_dtype().shape(&shape).writer(&mut array).begin_nd()?;
            writer.extend(data.iter::<f64>())?;
            writer.finish()?;
            archive.write_all(&array)?;
        }
        archive.finish()?;
        Ok(())
    })
}

/// Returns the statistics of a metric from the arrays of a file; `None` if the file does not hold them.
pub fn statistics_of(metric: &dyn Metric, arrays: &BTreeMap<String, TensorData>) -> Option<Statistics> {
    let (name, pairs) = (metric.statistics()?, metric.published());
    let pick = |(own, published): &(&str, &str)| Some(((*own).to_string(), arrays.get(*published)?.clone()));
    let tensors = pairs.iter().map(pick).collect::<Option<BTreeMap<_, _>>>().filter(|tensors| !tensors.is_empty())?;
    // The files do not say how many images they describe.
    Some(Statistics { metric: name, count: 0, tensors, captions: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluation::metric::{Accumulator, Reference};
    use std::sync::Arc;

    #[derive(Debug)]
    struct Mean;

    impl Metric for Mean {
        fn statistics(&self) -> Option<String> {
            Some("mean_of_pixels".into())
        }
        fn published(&self) -> &'static [(&'static str, &'static str)] {
            &[("mean", "mu"), ("covariance", "sigma")]
        }
        fn reference(&self) -> Box<dyn Reference> {
            unreachable!("this test accumulates nothing")
        }
        fn start(&self, _: Arc<Statistics>) -> Result<Box<dyn Accumulator>> {
            unreachable!("this test accumulates nothing")
        }
    }

    #[test]
    fn statistics_are_read_back_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("statistics.npz");
        let tensors = BTreeMap::from([
            ("mean".to_string(), TensorData::new(vec![0.5_f64, -2.0], [2])),
            ("covariance".to_string(), TensorData::new(vec![1.0_f64, 0.25, 0.25, 3.0], [2, 2])),
        ]);
        let statistics = Statistics { metric: "mean_of_pixels".into(), tensors, ..Statistics::default() };
        write(&path, &[(&Mean, &statistics)]).unwrap();
        let arrays = read(&path).unwrap();
        assert_eq!(arrays.keys().collect::<Vec<_>>(), ["mu", "sigma"]);
        assert_eq!(statistics_of(&Mean, &arrays), Some(statistics));
        assert_eq!(statistics_of(&Mean, &BTreeMap::new()), None);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn other_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("other.npz");
        std::fs::write(&path, "no archive").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("is not a file of statistics"));
        let mut archive = ZipWriter::new(File::create(&path).unwrap());
        archive.start_file("arr_0.npy", SimpleFileOptions::default()).unwrap();
        archive.finish().unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("it has no `mu`; its entries are arr_0.npy"));
        let none = write(&path, &[]).unwrap_err().to_string();
        assert!(none.contains("none of the metrics"), "{none}");
    }
}
