//! Scalars that stay on the device until all of them are read together. A read waits for the device, so a training step
//! should have only one.

use burn::tensor::{DType, Tensor};

/// Scalars to read.
#[derive(Default)]
pub struct Readings(Vec<Tensor<1>>);

impl Readings {
    /// Adds a tensor of one element, without its gradient tape. Returns the index of its value in [`Readings::read`].
    pub fn add(&mut self, scalar: Tensor<1>) -> usize {
        let scalar = if scalar.dtype() == DType::F32 { scalar } else { scalar.cast(DType::F32) };
        self.0.push(scalar);
        self.0.len() - 1
    }

    /// Reads all scalars at once.
    pub fn read(self) -> Vec<f64> {
        if self.0.is_empty() {
            return Vec::new();
        }
        let values = Tensor::cat(self.0, 0).into_data().try_into_vec::<f32>().expect("the scalars are f32");
        values.into_iter().map(f64::from).collect()
    }
}
