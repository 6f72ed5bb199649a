//! Passes without the tape in micro-batches: each thread takes some samples through the whole network.
//!
//! A pass over many small samples consists of many short operations. If the threads share each operation, they
//! synchronise after each one. Samples are independent, so threads that share the samples synchronise only once. Each
//! thread also finds its recent results in its own CPU cache, and memory holds only the activations of the samples in
//! progress.

use crate::network::backbone::{Backbone, Control};
use crate::network::condition::Condition;
use crate::nn::precision::MatmulPrecision;
use crate::process::Input;
use burn::tensor::{Device, Tensor};
use rayon::prelude::*;

/// Smallest number of positions in a micro-batch: enough rows to amortise the packing of the weights in each matrix
/// product.
const POSITIONS: usize = 2048;

/// Runs [`Backbone::predict`], in micro-batches where that is faster. For passes without the tape.
pub fn predict(network: &dyn Backbone, input: &Input, condition: &Condition, control: &Control) -> Tensor<3> {
    let samples = input.len();
    let count = count(input, control);
    if count == 1 {
        return network.predict(input, condition, control);
    }
    // `MatmulPrecision` is thread-local; copy it to the workers.
    let precision = MatmulPrecision::of_this_thread();
    let pass = |rows: Vec<usize>| {
        precision.within(|| network.predict(&input.select(&rows), &condition.select(&rows), &control.select(&rows)))
    };
    let bounds: Vec<_> = (0..=count).map(|i| i * samples / count).collect();
    let all = bounds.par_windows(2).with_max_len(1).map(|bounds| pass((bounds[0]..bounds[1]).collect())).collect();
    Tensor::cat(all, 0)
}

/// Returns the number of micro-batches of a pass, a power of two, so that threads share them evenly. The number depends
/// only on the shape, not on the number of threads, so that results do not depend on the machine.
fn count(input: &Input, control: &Control) -> usize {
    // A cache stores the whole batch, and hooks may record values. Devices other than the CPU run operations
    // asynchronously, so host threads gain nothing.
    if control.cache.is_some() || control.hooks.is_some() || input.device() != Device::flex() {
        return 1;
    }
    let most = (input.len() * input.positions() / POSITIONS).min(input.len());
    most.checked_ilog2().map_or(1, |log| 1 << log)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::backbone::Cache;
    use crate::nn::affine;
    use crate::nn::precision::rounding;
    use crate::random::{Random, tensor};
    use burn::tensor::DType;
    use std::sync::Mutex;

    /// Adds the time, class and guidance number of a sample to the sample. Records the size and precision of every
    /// batch.
    #[derive(Debug, Default)]
    struct Noting(Mutex<Vec<(usize, String)>>);

    impl Backbone for Noting {
        fn predict(&self, input: &Input, condition: &Condition, control: &Control) -> Tensor<3> {
            let Input::Noisy { x_t, t } = input else { panic!("expected a noisy input") };
            let classes = condition.class_rows(1000);
            let numbers = control.guidance.as_deref().expect("one guidance number per sample");
            assert!(t.len() == classes.len() && t.len() == numbers.len());
            self.0.lock().unwrap().push((t.len(), format!("{:?}", rounding(x_t))));
            let told: Vec<f64> = (0..t.len()).map(|i| t[i] + classes[i] as f64 + numbers[i]).collect();
            x_t.clone() + tensor::<3>(&told, [t.len(), 1, 1], DType::F32, &x_t.device())
        }
    }

    fn case(samples: usize, positions: usize) -> (Input, Condition, Control) {
        let each = |factor: f64| -> Vec<f64> { (0..samples).map(|i| i as f64 * factor).collect() };
        let x_t = tensor::<3>(&vec![0.5; samples * positions], [samples, positions, 1], DType::F32, &Device::flex());
        let condition = Condition::Class((0..samples).map(|i| (i % 3 > 0).then_some(i)).collect());
        (Input::Noisy { x_t, t: each(0.25) }, condition, Control::guided(Some(each(1000.0))))
    }

    #[test]
    fn samples_keep_their_place_and_what_belongs_to_them() {
        for (samples, positions, batches) in [
            (115, 64, vec![57, 58]),
            (5, 1024, vec![2, 3]),
            (3, 9000, vec![1, 2]),
            (31, 64, vec![31]),
            (0, 64, vec![0]),
        ] {
            let network = Noting::default();
            let (input, condition, control) = case(samples, positions);
            let precision = MatmulPrecision::Medium;
            let predicted = precision.within(|| predict(&network, &input, &condition, &control));
            let mut noted = network.0.lock().unwrap().split_off(0);
            noted.sort();
            assert_eq!(noted, batches.into_iter().map(|n| (n, "Half".to_string())).collect::<Vec<_>>());
            let whole = network.predict(&input, &condition, &control);
            assert!(predicted.into_data() == whole.into_data(), "{samples} samples of {positions} positions");
        }
    }

    #[test]
    fn what_is_cached_is_kept_of_the_whole_batch() {
        let network = Noting::default();
        let (input, condition, control) = case(64, 128);
        predict(&network, &input, &condition, &Control { cache: Some(Cache::default()), ..control });
        assert_eq!(network.0.lock().unwrap()[0].0, 64);
    }

    #[test]
    fn layers_give_the_same_bits() {
        /// One linear layer, applied to each position.
        #[derive(Debug)]
        struct Layer(Tensor<2>);
        impl Backbone for Layer {
            fn predict(&self, input: &Input, _: &Condition, _: &Control) -> Tensor<3> {
                let Input::Noisy { x_t, .. } = input else { panic!("expected a noisy input") };
                affine(x_t.clone(), self.0.clone(), None)
            }
        }
        let normal =
            |name, count| -> Vec<f64> { Random::new(0).normal(name, 0, 0, count).into_iter().map(f64::from).collect() };
        let device = Device::flex();
        let x_t = tensor::<3>(&normal("x", 70 * 64 * 48), [70, 64, 48], DType::F32, &device);
        let input = Input::Noisy { x_t, t: vec![0.0; 70] };
        let network = Layer(tensor(&normal("weight", 48 * 40), [48, 40], DType::F32, &device));
        let (condition, control) = (Condition::None(70), Control::default());
        assert_eq!(count(&input, &control), 2);
        let [parts, whole] =
            [predict(&network, &input, &condition, &control), network.predict(&input, &condition, &control)];
        assert!(parts.into_data() == whole.into_data());
    }
}
