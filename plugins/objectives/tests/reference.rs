//! The CCA loss on recorded log-probabilities equals the loss of the official code (thu-ml/CCA 7d5a073;
//! `tests/goldens/data`).

use framework::burn::tensor::{DType, Device, Tensor};
use framework::random::tensor;
use framework_dylib as _;
use goldens::Golden;
use objectives::{Cca, Contrast, Dpo, Negatives, Unlearning, Variant};

/// Compares the loss with the one in a golden file. `cca` has the options of the recording.
fn compare(file: &str, cca: &Cca) {
    let golden = Golden::open(file);
    let (own, other) = (golden.numbers("img_logp_gap"), golden.numbers("negative_img_logp_gap"));
    let weighed = golden.names().any(|name| name == "neg_weight");
    let positive = if weighed { golden.flags("neg_weight") } else { vec![false; own.len()] };
    let at = |values: &[f64]| -> Tensor<1> { tensor(values, [values.len()], DType::F64, &Device::flex()) };
    let loss = cca.of_gaps(at(&own), at(&other), &positive).mean().into_scalar::<f64>();
    let expected = golden.numbers("loss")[0];
    assert!((loss - expected).abs() <= 1e-5 * expected.abs().max(1e-3), "{file}: {loss} against {expected}");
}

fn cca(variant: Variant) -> Cca {
    Cca { drop_probability: 0.3, variant }
}

#[test]
fn losses_equal_the_official_ones() {
    let negatives = |lambda| Negatives { lambda, ..Negatives::default() };
    let undivided = |lambda| Negatives { divide: false, ..negatives(lambda) };
    let contrast = |beta, negatives| cca(Variant::Contrast(Contrast { beta, negatives }));
    compare("cca_var_cca.safetensors", &contrast(0.02, negatives(50.0)));
    compare("cca_var_cca_nouncond.safetensors", &contrast(0.02, undivided(50.0)));
    compare("cca_var_dpo.safetensors", &cca(Variant::Dpo(Dpo { beta: 0.02 })));
    compare("cca_var_unlearning.safetensors", &cca(Variant::Unlearning(Unlearning { negatives: negatives(0.5) })));
    compare("cca_llamagen_cca.safetensors", &contrast(0.02, negatives(300.0)));
    compare("cca_llamagen_cca_lowlambda.safetensors", &contrast(0.1, negatives(0.5)));
    compare("cca_llamagen_dpo.safetensors", &cca(Variant::Dpo(Dpo { beta: 0.02 })));
    // If no condition is dropped, the official LlamaGen script computes the unlearning loss under the name CCA.
    compare("cca_llamagen_nouncond.safetensors", &cca(Variant::Unlearning(Unlearning { negatives: undivided(300.0) })));
}
