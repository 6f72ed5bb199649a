use super::composed;
use crate::kernels::{self, Turn, handle};
use crate::random::tensor;
use burn::tensor::{DType, Device, Tensor};

/// Rotary embeddings: rotations of queries and keys by their position on a grid. The tables hold cosines and
/// signed sines, each `[L, d]`.
///
/// The first half of the pairs of a head rotate with the row, the second half with the column. The angle of
/// pair `i` of a half is `position * base^(-2 i / (d / 2))`. Source: arXiv:2104.09864 eq. 15; in two dimensions
/// arXiv:2406.06525.
#[derive(Clone, Debug)]
pub struct Rotary {
    cos: Tensor<2>,
    sin: Tensor<2>,
}

/// The position of a sequence element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// No position. The released LlamaGen multiplies the queries and keys of its condition by zero, so that all
    /// keys get equal attention.
    Nowhere,
    /// Row and column on the grid.
    At(usize, usize),
}

impl Rotary {
    /// Creates the tables of a sequence, for heads of width `d` (a multiple of 4).
    pub fn new(places: &[Place], d: usize, base: f64, dtype: DType, device: &Device) -> Self {
        let quarter = d / 4;
        let frequency = |i: usize| base.powf(-2.0 * i as f64 / (d / 2) as f64);
        let (mut cos, mut sin) = (Vec::with_capacity(places.len() * d), Vec::with_capacity(places.len() * d));
        for place in places {
            let Place::At(row, column) = place else {
                cos.extend(std::iter::repeat_n(0.0, d));
                sin.extend(std::iter::repeat_n(0.0, d));
                continue;
            };
            for place in [*row, *column] {
                for i in 0..quarter {
                    let angle = place as f64 * frequency(i);
                    cos.extend([angle.cos(); 2]);
                    sin.extend([-angle.sin(), angle.sin()]);
                }
            }
        }
        let table = |values: &[f64]| tensor(values, [places.len(), d], dtype, device);
        Self { cos: table(&cos), sin: table(&sin) }
    }

    /// Rotates the pairs `(2 i, 2 i + 1)` of every query and key head. The values do not change. Shapes: packed
    /// queries, keys and values `[B, L, 3 heads d]` to the same.
    pub fn turn(&self, qkv: Tensor<3>) -> Tensor<3> {
        kernels::table(&self.cos)
            .zip(kernels::table(&self.sin))
            .filter(|_| self.cos.dtype() == qkv.dtype())
            .and_then(|(cos, sin)| kernels::turn(Turn { cos, sin }, [handle(&qkv)]))
            .map(Tensor::from_dispatch)
            .unwrap_or_else(|| composed::turn(qkv, &self.cos, &self.sin))
    }
}
