//! Sums whose bits do not depend on the number of ranks.
//!
//! With `n = 2^k m` passes and `m` odd, the passes form `2^k` blocks of `m`. A block is added from the left, and the
//! blocks are added in a binary tree. With 2, 4, .. 2^k ranks, the passes of one rank are a subtree.

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use std::ops::Range;

/// Returns the passes of a step that `rank` of `ranks` computes.
pub fn passes_of(rank: usize, ranks: usize, passes: usize) -> Range<usize> {
    rank * passes / ranks..(rank + 1) * passes / ranks
}

/// The sum of the gradients of one rank's passes, which are added one after the other.
pub struct TreeSum {
    /// Number of passes in a block.
    block: usize,
    taken: usize,
    /// Partial sums, and the height of each in the tree.
    sums: Vec<(u32, GradientsParams)>,
}

impl TreeSum {
    /// Creates the sum of this number of passes, at least one.
    pub fn new(passes: usize) -> Self {
        Self { block: (passes >> passes.trailing_zeros()).max(1), taken: 0, sums: Vec::new() }
    }

    /// Adds the gradients of the next pass.
    pub fn add<M: Module>(&mut self, module: &M, gradients: GradientsParams) {
        match self.sums.pop_if(|_| !self.taken.is_multiple_of(self.block)) {
            Some((height, sum)) => self.sums.push((height, added(module, sum, gradients))),
            None => self.sums.push((0, gradients)),
        }
        self.taken += 1;
        if !self.taken.is_multiple_of(self.block) {
            return;
        }
        while let [.., (left, _), (right, _)] = self.sums[..]
            && left == right
        {
            let (height, right) = self.sums.pop().expect("two sums");
            let (_, left) = self.sums.pop().expect("two sums");
            self.sums.push((height + 1, added(module, left, right)));
        }
    }

    /// Returns the sum. All passes must have been added.
    pub fn total(mut self) -> GradientsParams {
        debug_assert!(self.sums.len() <= 1, "a pass is missing");
        self.sums.pop().map(|(_, sum)| sum).unwrap_or_default()
    }
}

/// Returns `left + right` per parameter. A parameter may be missing in either.
fn added<M: Module>(module: &M, left: GradientsParams, right: GradientsParams) -> GradientsParams {
    struct Add(GradientsParams, GradientsParams);
    impl ModuleVisitor for Add {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let sum = match (self.0.remove::<D>(param.id), self.1.remove::<D>(param.id)) {
                (Some(left), Some(right)) => left + right,
                (Some(one), None) | (None, Some(one)) => one,
                (None, None) => return,
            };
            self.0.register(param.id, sum);
        }
    }
    let mut add = Add(left, right);
    module.visit(&mut add);
    add.0
}

/// Adds `ranks` vectors of equal length, which follow each other in `parts`, in a binary tree over the ranks. The sum
/// replaces the first vector.
pub fn add_parts(parts: &mut [f32], ranks: usize) {
    let length = parts.len() / ranks.max(1);
    let mut stride = 1;
    while stride < ranks {
        for first in (0..ranks - stride).step_by(2 * stride) {
            let (left, right) = parts.split_at_mut((first + stride) * length);
            let left = &mut left[first * length..(first + 1) * length];
            left.iter_mut().zip(&right[..length]).for_each(|(left, right)| *left += right);
        }
        stride *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Linear;
    use crate::nn::parameters::{self, Init};
    use crate::random::Random;
    use burn::tensor::Device;

    /// Values whose f32 sum depends on the order of the additions.
    const VALUES: [f32; 12] = [1e8, 3.1, -1e8, 0.7, 5e7, 1.3, 2.9, -7e7, 0.11, 4e6, 1e-3, 6.5];

    fn network() -> Linear {
        let random = Random::new(0);
        parameters::initialize(Linear::new(1, 1, &Device::flex()), &random, &|_, _| Init::Zeros)
    }

    fn sum(network: &Linear, values: &[f32]) -> f32 {
        let mut sum = TreeSum::new(values.len());
        for value in values {
            let mut gradients = GradientsParams::new();
            let tensor = Tensor::<2>::from_data([[*value]], &Device::flex());
            gradients.register(parameters::param_id("weight"), tensor);
            sum.add(network, gradients);
        }
        sum.total().get::<2>(parameters::param_id("weight")).expect("a gradient").into_scalar()
    }

    #[test]
    fn passes_are_added_in_blocks_and_blocks_in_a_tree() {
        let network = network();
        let [a, b, c, d, e, f, ..] = VALUES;
        assert_eq!(sum(&network, &[a]), a);
        assert_eq!(sum(&network, &VALUES[..3]), (a + b) + c);
        assert_eq!(sum(&network, &VALUES[..4]), (a + b) + (c + d));
        assert_eq!(sum(&network, &VALUES[..6]), ((a + b) + c) + ((d + e) + f));
        assert_ne!((a + b) + (c + d), ((a + b) + c) + d, "the values must show the order");
    }

    #[test]
    fn two_and_four_ranks_add_as_one_does() {
        let network = network();
        for passes in [4, 8, 12] {
            let whole = sum(&network, &VALUES[..passes]);
            for ranks in [2, 4] {
                let of = |rank| sum(&network, &VALUES[passes_of(rank, ranks, passes)]);
                let mut parts: Vec<f32> = (0..ranks).map(of).collect();
                add_parts(&mut parts, ranks);
                assert_eq!(parts[0].to_bits(), whole.to_bits(), "{passes} passes on {ranks} ranks");
            }
        }
    }

    #[test]
    fn every_pass_has_one_rank() {
        for (ranks, passes) in [(1, 5), (3, 7), (4, 4), (5, 12)] {
            let all: Vec<usize> = (0..ranks).flat_map(|rank| passes_of(rank, ranks, passes)).collect();
            assert_eq!(all, (0..passes).collect::<Vec<_>>());
            assert!((0..ranks).all(|rank| !passes_of(rank, ranks, passes).is_empty()));
        }
    }

    #[test]
    fn three_vectors_are_added_in_order() {
        let mut parts = vec![1e8, 1.0, 3.1, 2.0, -1e8, 4.0];
        add_parts(&mut parts, 3);
        assert_eq!(parts[..2], [(1e8 + 3.1) + -1e8, 7.0]);
    }
}
