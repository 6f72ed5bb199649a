//! Features equal the results of pytorch-fid, torch-fidelity and clean-fid, recorded in `tests/goldens/data` (see
//! MANIFEST.md there). The weights come from the formula of `tests/goldens/data/evaluation.py`.

use features::{InceptionV3, Resizing};
use framework::burn::tensor::TensorData;
use framework::checkpoint::tensor_file::save_tensors;
use framework::evaluation::features::{Extracted, Features};
use framework::nn::parameters;
use framework::prelude::*;
use framework_dylib as _;
use goldens::{Golden, close, values};
use std::path::Path as FilePath;

/// Returns `count` numbers in [0, 1): a hash of the name and the index.
fn hashes(name: &str, count: usize) -> impl Iterator<Item = f64> {
    let seed = name.bytes().fold(2_166_136_261_u32, |seed, byte| (seed ^ u32::from(byte)).wrapping_mul(16_777_619));
    (0..count as u32).map(move |i| {
        let mut h = i.wrapping_mul(0x9E37_79B1).wrapping_add(seed);
        h ^= h >> 16;
        h = h.wrapping_mul(0x7FEB_352D);
        h ^= h >> 15;
        h = h.wrapping_mul(0x846C_A68B);
        h ^= h >> 16;
        f64::from(h) / 2.0_f64.powi(32)
    })
}

/// Returns the weights of one tensor under its official name and in its official shape.
fn weights(name: &str, shape: Vec<usize>) -> TensorData {
    let inputs = shape[1..].iter().product::<usize>() as f64;
    let value = |u: f64| match name {
        _ if name.ends_with("conv.weight") => (u - 0.5) * (24.0 / inputs).sqrt(),
        _ if name.ends_with("bn.weight") => 0.8 + 0.4 * u,
        _ if name.ends_with("running_var") => 0.5 + u,
        "fc.weight" => (u - 0.5) * (12.0 / inputs).sqrt(),
        _ => 0.4 * (u - 0.5),
    };
    let values: Vec<f32> = hashes(name, shape.iter().product()).map(|u| value(u) as f32).collect();
    TensorData::new(values, shape)
}

/// Writes the network's weights by the formula, as a file with the official names.
fn write(path: &FilePath) {
    let config = InceptionV3::default();
    let (network, formats) = (config.init(&Device::flex()), config.formats());
    let tensors: Vec<(String, TensorData)> = parameters::parameters(&network)
        .into_iter()
        .map(|(own, shape, _)| {
            let name = (formats[0].of)(&own).name;
            let shape = if name == "fc.weight" { vec![shape[1], shape[0]] } else { shape };
            (name.clone(), weights(&name, shape))
        })
        .collect();
    save_tensors(&tensors, path).unwrap();
}

fn images(name: &str, shape: [usize; 4]) -> Tensor<4> {
    let values: Vec<f32> =
        hashes(name, shape.iter().product()).map(|u| (u * 256.0).floor() as f32 / 127.5 - 1.0).collect();
    Tensor::from_data(TensorData::new(values, shape), &Device::flex())
}

#[test]
fn inception_features_equal_the_official_codes() {
    let golden = Golden::open("evaluation_inception.safetensors");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.safetensors");
    write(&path);
    for (resize, name) in
        [(Resizing::Bilinear, "bilinear"), (Resizing::BilinearTf1, "bilinear_tf1"), (Resizing::Clean, "clean")]
    {
        let network = InceptionV3 { path: path.clone(), resize }.load(&Device::flex()).unwrap();
        for (size, shape) in [("small", [2, 3, 20, 24]), ("large", [1, 3, 340, 310])] {
            let Extracted { vectors, spatial, logits } = network.extract(images(size, shape)).unwrap();
            let what = format!("{size}.{name}");
            close(&what, &values(vectors), &golden.numbers(&what), 1e-3);
            if what == "small.bilinear_tf1" {
                close("spatial", &values(spatial.unwrap()), &golden.numbers("small.spatial"), 1e-3);
                close("logits", &values(logits.unwrap()), &golden.numbers("small.logits"), 1e-3);
            }
        }
    }
}

#[test]
fn other_files_are_refused_by_name_and_shape() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.safetensors");
    let other = TensorData::new(vec![0.0_f32; 8], [2, 4]);
    save_tensors(&[("fc.weight".to_string(), other)], &path).unwrap();
    let refused = InceptionV3 { path, ..InceptionV3::default() }.load(&Device::flex()).err().unwrap().to_string();
    assert!(refused.contains("missing `Conv2d_1a_3x3.conv.weight` [32, 3, 3, 3]"), "{refused}");
}
