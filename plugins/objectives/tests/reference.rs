//! CCA's loss of recorded log-probabilities equals that of the official code (thu-ml/CCA 7d5a073; `shared/goldens`).

use framework::burn::store::bridge;
use framework::burn::tensor::{DType, Device, Tensor};
use framework::foreign;
use framework::random::tensor;
use objectives::{Cca, Negatives, Variant};
use std::path::Path;

/// The loss of a golden file with the options it was recorded with.
fn compare(file: &str, cca: &Cca) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/goldens").join(file);
    if !path.exists() {
        eprintln!("skipped: {} is absent", path.display());
        return;
    }
    let golden = foreign::open(&path).unwrap();
    let numbers = |name: &str| -> Option<Vec<f64>> {
        let data = bridge::to_data(golden.get(name)?).unwrap();
        Some(data.convert::<f64>().try_into_vec::<f64>().unwrap())
    };
    let own = numbers("img_logp_gap").unwrap();
    let other = numbers("negative_img_logp_gap").unwrap();
    let positive: Vec<bool> =
        numbers("neg_weight").map_or(vec![false; own.len()], |all| all.iter().map(|weight| *weight > 0.5).collect());
    let at = |values: &[f64]| -> Tensor<1> { tensor(values, [values.len()], DType::F64, &Device::flex()) };
    let loss = cca.of_gaps(at(&own), at(&other), &positive).mean().into_scalar::<f64>();
    let expected = numbers("loss").unwrap()[0];
    assert!((loss - expected).abs() <= 1e-5 * expected.abs().max(1e-3), "{file}: {loss} against {expected}");
}

fn cca(variant: Variant) -> Cca {
    Cca { drop_probability: 0.3, variant }
}

#[test]
fn losses_equal_the_official_ones() {
    let negatives = |lambda| Negatives { lambda, ..Negatives::default() };
    let undivided = |lambda| Negatives { divide: false, ..negatives(lambda) };
    let contrast = |beta, negatives| cca(Variant::Contrast { beta, negatives });
    compare("cca_var_cca.safetensors", &contrast(0.02, negatives(50.0)));
    compare("cca_var_cca_nouncond.safetensors", &contrast(0.02, undivided(50.0)));
    compare("cca_var_dpo.safetensors", &cca(Variant::Dpo { beta: 0.02 }));
    compare("cca_var_unlearning.safetensors", &cca(Variant::Unlearning { negatives: negatives(0.5) }));
    compare("cca_llamagen_cca.safetensors", &contrast(0.02, negatives(300.0)));
    compare("cca_llamagen_cca_lowlambda.safetensors", &contrast(0.1, negatives(0.5)));
    compare("cca_llamagen_dpo.safetensors", &cca(Variant::Dpo { beta: 0.02 }));
    // The official LlamaGen script runs the unlearning loss under the name of CCA where nothing is dropped.
    compare("cca_llamagen_nouncond.safetensors", &cca(Variant::Unlearning { negatives: undivided(300.0) }));
}
