//! Samples as an `.npz` file, the input of the evaluator of arXiv:2105.05233 and of others.
//!
//!   arr_0   uint8 `[N, H, W, 3]`   images: 255 (x + 1) / 2 of values in [-1, 1], rounded
//!   arr_1   int64 `[N]`            classes, if the samples have classes

use crate::picture;
use framework::data::tokenizer::ImageShape;
use framework::error::{Error, Result};
use framework::evaluation::images::Images;
use npyz::{AutoSerialize, WriterBuilder};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// An `.npz` file in progress. It gets its name when it is complete.
pub struct Npz {
    path: PathBuf,
    partial: PathBuf,
    archive: ZipWriter<BufWriter<File>>,
    classes: Vec<i64>,
}

impl Npz {
    /// Creates the file for `count` images.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn create(path: &Path, count: usize, [_, height, width]: ImageShape) -> Result<Self> {
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(".partial");
        let partial = path.with_file_name(name);
        let failed = |e: io::Error| Error::io(&partial, e);
        let file = BufWriter::new(File::create(&partial).map_err(failed)?);
        let mut archive = ZipWriter::new(file);
        let begun = begin::<u8>(&mut archive, "arr_0.npy", &[count, height, width, 3]);
        begun.map_err(failed)?;
        Ok(Self { path: path.to_path_buf(), partial, archive, classes: Vec::new() })
    }

    /// Appends images. Images that do not have 3 channels are written in grey.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn append(&mut self, images: &Images) -> Result<()> {
        for i in 0..images.len() {
            let picture = picture::image(images.row(i), images.shape);
            self.archive.write_all(picture.as_raw()).map_err(|e| Error::io(&self.partial, e))?;
        }
        self.classes.extend(images.classes.iter().map(|class| *class as i64));
        Ok(())
    }

    /// Completes the file.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn finish(self) -> Result<()> {
        let Self { path, partial, mut archive, classes } = self;
        let complete = || -> io::Result<()> {
            if !classes.is_empty() {
                begin::<i64>(&mut archive, "arr_1.npy", &[classes.len()])?;
                classes.iter().try_for_each(|class| archive.write_all(&class.to_le_bytes()))?;
            }
            archive.finish()?.into_inner()?.sync_all()?;
            fs::rename(&partial, &path)
        };
        complete().map_err(|e| Error::io(&path, e))
    }
}

/// Starts an array in the archive: an entry with the header of a file in NumPy's format.
fn begin<T: AutoSerialize>(archive: &mut ZipWriter<BufWriter<File>>, name: &str, shape: &[usize]) -> io::Result<()> {
    // Images of 256 pixels pass 4 GiB, so the entry needs 64-bit sizes.
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored).large_file(true);
    archive.start_file(name, options)?;
    let shape: Vec<u64> = shape.iter().map(|size| *size as u64).collect();
    let mut header = Vec::new();
    // The writer puts the header down at once. The values follow in the archive itself.
    drop(npyz::WriteOptions::<T>::new().default_dtype().shape(&shape).writer(&mut header).begin_nd()?);
    archive.write_all(&header)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn arrays_are_read_back_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("samples.npz");
        let mut npz = Npz::create(&path, 3, [1, 1, 2]).unwrap();
        let images = |values: &[f32], classes: &[usize]| Images {
            values: values.to_vec(),
            classes: classes.to_vec(),
            ..Images::none([1, 1, 2])
        };
        npz.append(&images(&[-1.0, 1.0, 0.0, 2.0], &[3, 1])).unwrap();
        assert!(!path.exists(), "an incomplete file has its name");
        npz.append(&images(&[-3.0, 0.5], &[2])).unwrap();
        npz.finish().unwrap();
        let mut archive = zip::ZipArchive::new(File::open(&path).unwrap()).unwrap();
        let mut read = |name: &str| {
            let mut bytes = Vec::new();
            archive.by_name(name).unwrap().read_to_end(&mut bytes).unwrap();
            bytes
        };
        let (images, classes) = (read("arr_0.npy"), read("arr_1.npy"));
        let images = npyz::NpyFile::new(&images[..]).unwrap();
        assert_eq!(images.shape(), [3, 1, 2, 3]);
        assert_eq!(images.dtype().descr(), "'|u1'");
        let grey = [0, 255, 128, 255, 0, 191].map(|value: u8| [value; 3]).concat();
        assert_eq!(images.into_vec::<u8>().unwrap(), grey);
        assert_eq!(npyz::NpyFile::new(&classes[..]).unwrap().into_vec::<i64>().unwrap(), [3, 1, 2]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "a partial file is left");
    }
}
