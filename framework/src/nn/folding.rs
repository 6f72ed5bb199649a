//! Folds a constant guidance number into the weights of the layers that read it.
//!
//!   W0 (s_t + C s_g) + b0             = W0 s_t + (b0 + W0 C s_g)
//!   W2 h_t + b2 + (W2' h_g + b2')     = W2 h_t + (b2 + W2' h_g + b2'),   h_g = silu(W0' s_g + b0')

use burn::tensor::TensorData;
use std::collections::BTreeMap;

/// Folds the sinusoids of a guidance number into the first bias of the embedder at `embedder`, whose `cond_proj` reads
/// them, and removes `cond_proj`. Returns `None` if a parameter is missing.
pub fn fold_projection(weights: &mut BTreeMap<String, TensorData>, embedder: &str, sinusoids: &[f64]) -> Option<()> {
    let projection = weights.remove(&format!("{embedder}.cond_proj.weight"))?;
    let added = product(weights.get(&format!("{embedder}.mlp_0.weight"))?, &product(&projection, sinusoids)?)?;
    add_to_bias(weights, &format!("{embedder}.mlp_0.bias"), &added)
}

/// Folds the embedding that the embedder at `guidance`, of two or three layers, computes from the sinusoids of a
/// guidance number into the last bias of the embedder at `embedder`, and removes the former. Returns `None` if a
/// parameter is missing.
pub fn fold_embedding(
    weights: &mut BTreeMap<String, TensorData>,
    [guidance, embedder]: [&str; 2],
    sinusoids: &[f64],
) -> Option<()> {
    let mut take = |name: &str| weights.remove(&format!("{guidance}.{name}"));
    let [first, first_bias] = [take("mlp_0.weight")?, take("mlp_0.bias")?];
    let mut layers = vec![(take("mlp_2.weight")?, take("mlp_2.bias")?)];
    layers.extend(take("mlp_4.weight").zip(take("mlp_4.bias")));
    let layer = |weight: &TensorData, bias: &TensorData, x: &[f64]| -> Option<Vec<f64>> {
        Some(product(weight, x)?.into_iter().zip(bias.iter::<f64>()).map(|(x, bias)| x + bias).collect())
    };
    let mut added = layer(&first, &first_bias, sinusoids)?;
    for (weight, bias) in &layers {
        let hidden: Vec<f64> = added.iter().map(|x| x / (1.0 + (-x).exp())).collect();
        added = layer(weight, bias, &hidden)?;
    }
    add_to_bias(weights, &format!("{embedder}.mlp_2.bias"), &added)
}

/// Computes `W^T x` for a weight `[in, out]` in f64; `None` if the sizes differ.
fn product(weight: &TensorData, x: &[f64]) -> Option<Vec<f64>> {
    let shape = weight.shape().to_vec();
    let [inputs, outputs] = shape[..] else { return None };
    let values: Vec<f64> = weight.iter::<f64>().collect();
    let column = |o: usize| x.iter().enumerate().map(|(i, x)| x * values[i * outputs + o]).sum();
    (inputs == x.len()).then(|| (0..outputs).map(column).collect())
}

fn add_to_bias(weights: &mut BTreeMap<String, TensorData>, name: &str, added: &[f64]) -> Option<()> {
    let bias = weights.get_mut(name)?;
    let shape = bias.shape().to_vec();
    let sums: Vec<f32> = bias.iter::<f64>().zip(added).map(|(bias, added)| (bias + added) as f32).collect();
    *bias = TensorData::new(sums, shape);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::parameters::{Init, export, initialize, restore};
    use crate::nn::{TimestepEmbedder, sinusoid};
    use crate::random::Random;
    use burn::tensor::{Device, Tensor};

    fn embedder(seed: u64, guidance: Option<usize>) -> TimestepEmbedder {
        let embedder = TimestepEmbedder::new(6, 8, guidance, &Device::flex());
        initialize(embedder, &Random::new(seed), &|_, _| Init::Normal(0.5))
    }

    /// The weights of an embedder, with their paths under `prefix`.
    fn under(prefix: &str, embedder: &TimestepEmbedder) -> BTreeMap<String, TensorData> {
        export(embedder).into_iter().map(|(name, data)| (format!("{prefix}.{name}"), data)).collect()
    }

    /// The embedder at `time`, without a guidance input.
    fn plain(weights: &BTreeMap<String, TensorData>) -> TimestepEmbedder {
        let own = weights.iter().map(|(name, data)| (name.strip_prefix("time.").unwrap().to_string(), data.clone()));
        restore(embedder(9, None), own.collect()).unwrap()
    }

    fn apart(a: Tensor<2>, b: Tensor<2>) -> f32 {
        (a - b).abs().max().into_scalar::<f32>()
    }

    #[test]
    fn folded_weights_predict_what_the_number_made_of_the_others() {
        let (device, times, waves) = (Device::flex(), [3.0, 700.0], sinusoid(&[250.0], 10));
        let whole = embedder(1, Some(10));
        let mut weights = under("time", &whole);
        fold_projection(&mut weights, "time", &waves).unwrap();
        let expected = whole.forward(&times, Some(&waves.repeat(2)), &device);
        assert!(apart(plain(&weights).forward(&times, None, &device), expected) < 1e-5);

        let (time, guidance) = (embedder(2, None), embedder(3, None));
        let mut weights = under("time", &time);
        weights.extend(under("beta", &guidance));
        fold_embedding(&mut weights, ["beta", "time"], &sinusoid(&[250.0], 8)).unwrap();
        let expected = time.forward(&times, None, &device) + guidance.forward(&[250.0, 250.0], None, &device);
        assert!(apart(plain(&weights).forward(&times, None, &device), expected) < 1e-5);
        // Without the parameters, nothing can be folded.
        assert!(fold_projection(&mut weights, "time", &waves).is_none());
        assert!(fold_embedding(&mut weights, ["beta", "time"], &waves).is_none());
    }
}
