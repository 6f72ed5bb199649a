//! The first use of a GPU: a small backward pass, compared with the CPU's. Drivers and compilers of kernels have
//! returned wrong gradients with a correct loss, which no later step would notice.

use framework::burn::tensor::{Device, Int, Tensor, TensorData, activation};
use framework::error::{Error, Problem, Result};

/// Largest accepted difference of a gradient, relative to the largest value of that gradient. Products in TF32 differ
/// by about 1e-3; the wrong gradients that were seen differed by more than 0.5.
const TOLERANCE: f32 = 1e-2;

/// Rows of the table, its width, and the width of the output.
const SIZES: [usize; 3] = [96, 64, 80];

/// Number of rows that are looked up.
const LOOKED_UP: usize = 200;

/// Returns `n` values in (-1, 1) that look random.
fn numbers(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919 + seed * 104_729) as f32 * 0.618).sin()).collect()
}

/// Returns the gradients of a lookup, a product, a root-mean-square norm and a cross-entropy loss.
fn gradients(device: &Device) -> [Vec<f32>; 3] {
    let device = device.clone().autodiff();
    let [rows, width, classes] = SIZES;
    let matrix = |seed, shape: [usize; 2]| {
        let data = TensorData::new(numbers(shape[0] * shape[1], seed), shape);
        Tensor::<2>::from_data(data, &device).require_grad()
    };
    let ids = |most: usize| {
        let ids: Vec<i32> = (0..LOOKED_UP).map(|i| (i * 37 % most) as i32).collect();
        Tensor::<1, Int>::from_data(TensorData::new(ids, [LOOKED_UP]), &device)
    };
    let (table, weight, scale) = (matrix(1, [rows, width]), matrix(2, [width, classes]), matrix(3, [1, width]));
    let x = table.clone().select(0, ids(rows));
    let norm = (x.clone() * x.clone()).mean_dim(1).add_scalar(1e-5).sqrt();
    let y = activation::silu((x / norm * scale.clone()).matmul(weight.clone()));
    let log = activation::log_softmax(y, 1).gather(1, ids(classes).reshape([LOOKED_UP, 1]));
    let gradients = log.mean().backward();
    [table, weight, scale].map(|parameter| {
        let gradient = parameter.grad(&gradients).expect("the loss depends on every parameter");
        gradient.into_data().try_into_vec().expect("the gradients are f32")
    })
}

/// Returns the largest difference of two gradients, relative to the largest expected value.
fn difference(got: &[f32], expected: &[f32]) -> f32 {
    let largest = expected.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
    let worst = got.iter().zip(expected).map(|(a, b)| (a - b).abs());
    // NaN counts as the largest difference.
    worst.fold(0.0_f32, |most, value| if value.is_nan() { f32::INFINITY } else { most.max(value) }) / largest
}

/// Compares the gradients of a device with the CPU's.
///
/// # Errors
/// If they differ.
pub fn check(name: &str, device: &Device) -> Result<()> {
    judged(name, &gradients(device), &gradients(&Device::flex()))
}

fn judged(name: &str, got: &[Vec<f32>; 3], expected: &[Vec<f32>; 3]) -> Result<()> {
    let worst = got.iter().zip(expected).map(|(got, expected)| difference(got, expected)).fold(0.0, f32::max);
    if worst <= TOLERANCE {
        return Ok(());
    }
    let what = format!("{name} computes wrong gradients: a test pass differs from the CPU's by {worst:.1e} (relative)");
    let fix = match name.starts_with("vulkan") {
        true => "update the driver, build with --features webgpu in place of vulkan, or use --device cpu",
        false => "update the driver, or use --device cpu",
    };
    Err(Error::failed(Problem::new("--device", what).accepts(format!("at most {TOLERANCE:.0e}")).fix(fix)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_passes_and_one_wrong_gradient_is_refused() {
        let right = gradients(&Device::flex());
        assert!(right.iter().all(|gradient| gradient.iter().any(|value| value.abs() > 1e-6)));
        check("cpu", &Device::flex()).unwrap();
        let mut wrong = right.clone();
        wrong[1][5] = f32::NAN;
        assert!(judged("wgpu:0", &wrong, &right).unwrap_err().to_string().contains("wrong gradients"));
        let mut wrong = right.clone();
        wrong[2].iter_mut().for_each(|value| *value += 0.1);
        assert!(judged("vulkan:0", &wrong, &right).unwrap_err().to_string().contains("--features webgpu"));
    }

    /// Compares one gradient with finite differences of the loss, which are known without a backward pass.
    #[test]
    fn the_gradient_of_the_scale_is_the_slope_of_the_loss() {
        let [.., scale] = gradients(&Device::flex());
        let loss = |changed: usize, by: f64| {
            let [rows, width, classes] = SIZES;
            let of = |n, seed| numbers(n, seed).into_iter().map(f64::from).collect::<Vec<f64>>();
            let (table, weight, mut scale) = (of(rows * width, 1), of(width * classes, 2), of(width, 3));
            scale[changed] += by;
            let mut sum = 0.0;
            for i in 0..LOOKED_UP {
                let x = &table[i * 37 % rows * width..][..width];
                let norm = (x.iter().map(|x| x * x).sum::<f64>() / width as f64 + 1e-5).sqrt();
                let product = |class: usize| -> f64 {
                    (0..width).map(|j| x[j] / norm * scale[j] * weight[j * classes + class]).sum()
                };
                let y: Vec<f64> = (0..classes).map(product).map(|y| y / (1.0 + (-y).exp())).collect();
                sum += y[i * 37 % classes] - y.iter().map(|y| y.exp()).sum::<f64>().ln();
            }
            sum / LOOKED_UP as f64
        };
        for i in [0, 17, 63] {
            let slope = (loss(i, 1e-4) - loss(i, -1e-4)) / 2e-4;
            assert!((slope - f64::from(scale[i])).abs() < 1e-4, "{i}: {slope} against {}", scale[i]);
        }
    }
}
