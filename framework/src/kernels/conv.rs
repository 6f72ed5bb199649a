//! Convolution as one matrix product an image: its patches, spread out as columns, times the weights.

use super::math::{Number, room, total, vectorized};
use super::matrix::{Matrix, MatrixMut, multiply};
use super::{Fused, dense, numbers, tensor};
use burn::backend::TensorMetadata;
use burn::backend::flex::FlexTensor;
use burn::tensor::Shape;
use rayon::prelude::*;

/// Images from which on threads take an image each; fewer share the product of one.
const MANY: usize = 4;
/// Parts of a batch whose weight gradients are added up apart; fixed, so that sums have one order.
const PARTS: usize = 8;

/// A convolution. Inputs: `x` `[B, in, H, W]`, `weight` `[out, in, k, k]`, `bias` `[out]`.
#[derive(Clone, Debug)]
pub(crate) struct Convolve {
    pub stride: usize,
    /// Zeros before and after each axis.
    pub padding: (usize, usize),
}

/// Sizes of one call.
#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    inputs: usize,
    outputs: usize,
    kernel: usize,
    /// Height and width.
    from: [usize; 2],
    to: [usize; 2],
    stride: usize,
    before: usize,
}

impl Sizes {
    fn area(&self) -> usize {
        self.from[0] * self.from[1]
    }
    /// Columns of the product: output positions.
    fn positions(&self) -> usize {
        self.to[0] * self.to[1]
    }
    /// Rows of the columns: numbers of a patch.
    fn patch(&self) -> usize {
        self.inputs * self.kernel * self.kernel
    }
    /// The image is its own columns.
    fn pointwise(&self) -> bool {
        self.kernel == 1 && self.stride == 1 && self.from == self.to
    }

    /// For row (c, ky, kx) of the columns and output row `y`: the row of the image it reads, the first and last output
    /// column that lies on the image, and the image's column at the first.
    #[inline(always)]
    fn span(&self, ky: usize, kx: usize, y: usize) -> Option<(usize, std::ops::Range<usize>, usize)> {
        let row = (y * self.stride + ky).checked_sub(self.before).filter(|row| *row < self.from[0])?;
        let first = self.before.saturating_sub(kx).div_ceil(self.stride);
        // x stride + kx - before < width
        let end = (self.from[1] + self.before).saturating_sub(kx).div_ceil(self.stride).min(self.to[1]);
        (first < end).then(|| (row, first..end, first * self.stride + kx - self.before))
    }

    /// Every row of the columns with what it reads: calls `f(place in columns, place in image, length)`.
    #[inline(always)]
    fn spans(&self, mut f: impl FnMut(std::ops::Range<usize>, usize)) {
        let mut row = 0;
        for c in 0..self.inputs {
            for ky in 0..self.kernel {
                for kx in 0..self.kernel {
                    for y in 0..self.to[0] {
                        if let Some((from_row, span, column)) = self.span(ky, kx, y) {
                            let place = row * self.positions() + y * self.to[1];
                            f(
                                place + span.start..place + span.end,
                                (c * self.from[0] + from_row) * self.from[1] + column,
                            );
                        }
                    }
                    row += 1;
                }
            }
        }
    }
}

impl Convolve {
    fn sizes(&self, x: &Shape, weight: &Shape) -> Sizes {
        let to = |side: usize| (side + self.padding.0 + self.padding.1 - weight[2]) / self.stride + 1;
        Sizes {
            batch: x[0],
            inputs: x[1],
            outputs: weight[0],
            kernel: weight[2],
            from: [x[2], x[3]],
            to: [to(x[2]), to(x[3])],
            stride: self.stride,
            before: self.padding.0,
        }
    }
}

/// One row of the columns of a convolution that keeps the size: the image's plane, shifted as a whole. What the shift
/// carries from one line of the plane to the next lies on `edges`, and is no part of the row.
struct Shifted {
    /// Place in the row, and in the plane, of what both hold.
    row: std::ops::Range<usize>,
    plane: std::ops::Range<usize>,
    /// Columns of every line that no pixel reaches.
    edges: std::ops::Range<usize>,
}

impl Sizes {
    /// Of one channel, in the order of the kernel; `None` unless height and width stay.
    fn shifts(&self) -> Option<Vec<Shifted>> {
        let [height, width] = self.from;
        if self.stride != 1 || self.from != self.to {
            return None;
        }
        let by = |k: usize| k as isize - self.before as isize;
        let shift = |ky: usize, kx: usize| {
            let area = (height * width) as isize;
            let shift = by(ky) * width as isize + by(kx);
            let [start, end] = [(-shift).clamp(0, area), (area - shift).clamp(0, area)];
            let edges = match by(kx) {
                left @ ..0 => 0..left.unsigned_abs().min(width),
                right => width.saturating_sub(right as usize)..width,
            };
            let place = |i: isize| i as usize;
            Shifted {
                row: place(start)..place(end.max(start)),
                plane: place(start + shift)..place(end.max(start) + shift),
                edges,
            }
        };
        Some((0..self.kernel * self.kernel).map(|k| shift(k / self.kernel, k % self.kernel)).collect())
    }
}

/// Sets the edges of a row to zero.
#[inline(always)]
fn clear_edges<T: Number>(row: &mut [T], width: usize, edges: &std::ops::Range<usize>) {
    if !edges.is_empty() {
        row.chunks_exact_mut(width).for_each(|line| line[edges.clone()].fill(T::of(0.0)));
    }
}

/// Spreads an image out; `columns` holds zeros wherever a patch reaches over the edge, and keeps them.
fn spread<T: Number>(image: &[T], columns: &mut [T], sizes: Sizes) {
    if let Some(shifts) = sizes.shifts() {
        let rows = columns.chunks_exact_mut(sizes.positions());
        let planes = image.chunks_exact(sizes.area()).flat_map(|plane| std::iter::repeat_n(plane, shifts.len()));
        for ((row, plane), shift) in rows.zip(planes).zip(shifts.iter().cycle()) {
            row[shift.row.clone()].copy_from_slice(&plane[shift.plane.clone()]);
            clear_edges(row, sizes.to[1], &shift.edges);
        }
    } else if sizes.stride == 1 {
        sizes.spans(|to, from| columns[to.clone()].copy_from_slice(&image[from..][..to.len()]));
    } else {
        sizes.spans(|to, from| {
            for (i, column) in columns[to].iter_mut().enumerate() {
                *column = image[from + i * sizes.stride];
            }
        });
    }
}

/// Adds columns back to the pixels they came from. What lies over the edge is lost, in `columns` too.
fn gather<T: Number>(columns: &mut [T], image: &mut [T], sizes: Sizes) {
    if let Some(shifts) = sizes.shifts() {
        vectorized(
            #[inline(always)]
            || {
                for (rows, plane) in
                    columns.chunks_exact_mut(shifts.len() * sizes.positions()).zip(image.chunks_exact_mut(sizes.area()))
                {
                    for (row, shift) in rows.chunks_exact_mut(sizes.positions()).zip(&shifts) {
                        clear_edges(row, sizes.to[1], &shift.edges);
                        let pixels = plane[shift.plane.clone()].iter_mut();
                        pixels.zip(&row[shift.row.clone()]).for_each(|(pixel, value)| *pixel += *value);
                    }
                }
            },
        );
    } else if sizes.stride == 1 {
        sizes.spans(|from, to| {
            let image = &mut image[to..][..from.len()];
            image.iter_mut().zip(&columns[from]).for_each(|(pixel, column)| *pixel += *column);
        });
    } else {
        sizes.spans(|from, to| {
            for (i, column) in columns[from].iter().enumerate() {
                image[to + i * sizes.stride] += *column;
            }
        });
    }
}

impl Fused<3> for Convolve {
    type Saved = [FlexTensor; 3];

    fn forward<T: Number>(&self, inputs: [FlexTensor; 3]) -> (FlexTensor, Self::Saved) {
        let inputs = inputs.map(dense::<T>);
        let sizes = self.sizes(&inputs[0].shape(), &inputs[1].shape());
        let [x, weight, bias] = inputs.each_ref().map(numbers::<T>);
        let (patch, positions) = (sizes.patch(), sizes.positions());
        let wide = sizes.batch < MANY;
        let columns = || vec![T::of(0.0); if sizes.pointwise() { 0 } else { patch * positions }];
        let image = |columns: &mut Vec<T>, (i, y): (usize, &mut [T])| {
            let x = &x[i * sizes.inputs * sizes.area()..][..sizes.inputs * sizes.area()];
            y.chunks_exact_mut(positions).zip(bias).for_each(|(y, bias)| y.fill(*bias));
            let read = if sizes.pointwise() {
                x
            } else {
                spread(x, columns, sizes);
                columns
            };
            let shape = [sizes.outputs, patch, positions];
            let out = MatrixMut { values: y, row: positions };
            multiply(shape, Matrix::rows(weight, patch), Matrix::rows(read, positions), out, (true, T::of(1.0)), wide);
        };
        let mut y = room::<T>(sizes.batch * sizes.outputs * positions);
        if wide {
            let mut columns = columns();
            y.chunks_exact_mut(sizes.outputs * positions).enumerate().for_each(|part| image(&mut columns, part));
        } else {
            y.par_chunks_exact_mut(sizes.outputs * positions).enumerate().for_each_init(columns, image);
        }
        (tensor(y, Shape::new([sizes.batch, sizes.outputs, sizes.to[0], sizes.to[1]])), inputs)
    }

    fn backward<T: Number>(&self, inputs: Self::Saved, grad: FlexTensor, wanted: [bool; 3]) -> [Option<FlexTensor>; 3] {
        let grad = dense::<T>(grad);
        let (shape, kernels) = (inputs[0].shape(), inputs[1].shape());
        let sizes = self.sizes(&shape, &kernels);
        let [x, weight, _] = inputs.each_ref().map(numbers::<T>);
        let grad = numbers::<T>(&grad);
        let (patch, positions, image) = (sizes.patch(), sizes.positions(), sizes.inputs * sizes.area());
        let zero = T::of(0.0);
        // One image alone is worth all threads for its product; a part of a batch takes one.
        let part = sizes.batch.div_ceil(PARTS).max(1);
        let wide = sizes.batch < MANY;
        let of_part = |(p, mut of_x): (usize, Option<&mut [T]>)| {
            let images = p * part..((p + 1) * part).min(sizes.batch);
            let mut columns = vec![zero; if sizes.pointwise() { 0 } else { patch * positions }];
            let mut back = room::<T>(if sizes.pointwise() || of_x.is_none() { 0 } else { patch * positions });
            let mut of_weight = vec![zero; if wanted[1] { sizes.outputs * patch } else { 0 }];
            let mut of_bias = vec![zero; sizes.outputs];
            for (j, i) in images.enumerate() {
                let grad = &grad[i * sizes.outputs * positions..][..sizes.outputs * positions];
                if wanted[2] {
                    for (sum, grad) in of_bias.iter_mut().zip(grad.chunks_exact(positions)) {
                        *sum += super::math::sum(positions, |k| grad[k]);
                    }
                }
                if wanted[1] {
                    let x = &x[i * image..][..image];
                    let read = if sizes.pointwise() {
                        x
                    } else {
                        spread(x, &mut columns, sizes);
                        &columns[..]
                    };
                    let read = Matrix::rows(read, positions).transposed();
                    let out = MatrixMut { values: &mut of_weight, row: patch };
                    let shape = [sizes.outputs, positions, patch];
                    multiply(shape, Matrix::rows(grad, positions), read, out, (true, T::of(1.0)), wide);
                }
                if let Some(of_x) = &mut of_x {
                    let of_x = &mut of_x[j * image..][..image];
                    let shape = [patch, sizes.outputs, positions];
                    let weight = Matrix::rows(weight, patch).transposed();
                    let values = if sizes.pointwise() { &mut *of_x } else { &mut back[..] };
                    let out = MatrixMut { values, row: positions };
                    multiply(shape, weight, Matrix::rows(grad, positions), out, (false, T::of(1.0)), wide);
                    if !sizes.pointwise() {
                        gather(&mut back, of_x, sizes);
                    }
                }
            }
            (of_weight, of_bias)
        };
        let mut of_x = vec![zero; if wanted[0] { x.len() } else { 0 }];
        let parts: Vec<(Vec<T>, Vec<T>)> = if wanted[0] {
            of_x.par_chunks_mut(part * image).map(Some).enumerate().map(of_part).collect()
        } else {
            (0..sizes.batch.div_ceil(part)).into_par_iter().map(|p| of_part((p, None))).collect()
        };
        let (of_weight, of_bias): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        [
            wanted[0].then(|| tensor(of_x, shape)),
            wanted[1].then(|| tensor(total(of_weight), kernels)),
            wanted[2].then(|| tensor(total(of_bias), Shape::new([sizes.outputs]))),
        ]
    }
}
