//! Convolution as matrix products. The patches of one image, or of several small images, become the columns of
//! a matrix (im2col), which is multiplied by the weights. A large enough 3x3 convolution uses Winograd tiles
//! instead, which take fewer multiplications.

mod winograd;

use super::math::{Number, room, sum, total, vectorized};
use super::matrix::{Matrix, MatrixMut, Rounding, multiply};
use super::{Fused, dense, numbers, tensor};
use burn::backend::TensorMetadata;
use burn::backend::flex::FlexTensor;
use burn::tensor::Shape;
use rayon::prelude::*;
use std::borrow::Cow;
use std::ops::Range;
use winograd::Winograd;

/// Target number of columns per product. Images with fewer positions share a product, so that the weights are
/// read only once for all of them.
const COLUMNS: usize = 256;
/// Number of products from which on each thread computes its own. With fewer products, all threads share each
/// one.
const MANY: usize = 4;
/// Parts of a batch with separate partial sums of the weight gradient. The constant fixes the order of
/// summation.
const PARTS: usize = 8;

/// A 2-D convolution. Inputs: `x` `[B, in, H, W]`, `weight` `[out, in, k, k]`, `bias` `[out]`.
#[derive(Clone, Debug)]
pub(crate) struct Convolve {
    pub stride: usize,
    /// Number of zeros before and after each axis.
    pub padding: (usize, usize),
    pub rounding: Rounding,
}

/// Sizes of one call.
#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    inputs: usize,
    outputs: usize,
    kernel: usize,
    /// Height and width of the input.
    from: [usize; 2],
    to: [usize; 2],
    stride: usize,
    before: usize,
}

impl Sizes {
    fn area(&self) -> usize {
        self.from[0] * self.from[1]
    }
    /// Returns the number of output positions of an image, which is its number of columns.
    fn positions(&self) -> usize {
        self.to[0] * self.to[1]
    }
    /// Returns the number of elements per patch, which is the number of rows of the column matrix.
    fn patch(&self) -> usize {
        self.inputs * self.kernel * self.kernel
    }
    /// Returns the number of elements of an image in the input and in the output.
    fn image(&self) -> [usize; 2] {
        [self.inputs * self.area(), self.outputs * self.positions()]
    }
    /// Returns the number of images that share a product.
    fn group(&self) -> usize {
        (COLUMNS / self.positions()).clamp(1, self.batch.max(1))
    }
    /// Returns the number of products of the batch.
    fn groups(&self) -> usize {
        self.batch.div_ceil(self.group())
    }
    /// Returns whether all threads share each product. This is so if there are too few products for one per
    /// thread.
    fn wide(&self) -> bool {
        self.groups() < MANY
    }
    /// Returns whether the column matrix equals the image.
    fn pointwise(&self) -> bool {
        self.kernel == 1 && self.stride == 1 && self.from == self.to
    }

    /// For position (ky, kx) of the kernel and output row `y`, returns the input row, the range of output
    /// columns whose input pixel is within the image, and the input column of the first of them. Returns `None`
    /// if there is no such column.
    #[inline(always)]
    fn span(&self, ky: usize, kx: usize, y: usize) -> Option<(usize, Range<usize>, usize)> {
        let row = (y * self.stride + ky).checked_sub(self.before).filter(|row| *row < self.from[0])?;
        let first = self.before.saturating_sub(kx).div_ceil(self.stride);
        // x stride + kx - before < width
        let end = (self.from[1] + self.before).saturating_sub(kx).div_ceil(self.stride).min(self.to[1]);
        (first < end).then(|| (row, first..end, first * self.stride + kx - self.before))
    }

    /// Calls `f(row, range in the row, start in the plane)` for every range that the rows of one channel read
    /// from its plane.
    #[inline(always)]
    fn spans(&self, mut f: impl FnMut(usize, Range<usize>, usize)) {
        for row in 0..self.kernel * self.kernel {
            for y in 0..self.to[0] {
                if let Some((line, span, column)) = self.span(row / self.kernel, row % self.kernel, y) {
                    let place = y * self.to[1];
                    f(row, place + span.start..place + span.end, line * self.from[1] + column);
                }
            }
        }
    }
}

impl Convolve {
    /// Returns the Winograd convolution where it is faster. Matrix units are not combined with it: they
    /// multiply columns faster than the tiles can be transformed, and rounded tiles would have a larger error.
    fn winograd(&self, sizes: Sizes) -> Option<Winograd> {
        Winograd::of(sizes).filter(|_| !self.rounding.has_units())
    }

    fn sizes(&self, x: &Shape, weight: &Shape) -> Sizes {
        assert!(x[1] == weight[1] && weight[2] == weight[3], "shapes do not match: images {x:?}, kernel {weight:?}");
        let to = |side: usize| {
            let room = (side + self.padding.0 + self.padding.1).checked_sub(weight[2]);
            room.expect("the padded image is at least as large as the kernel") / self.stride + 1
        };
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

/// One row of the column matrix of a convolution that keeps the image size: the image plane, shifted as a
/// whole. The shift also moves pixels from one line of the plane to the next. These pixels are at `edges` and
/// must be cleared.
struct Shifted {
    /// The common elements of row and plane, as ranges in each.
    row: Range<usize>,
    plane: Range<usize>,
    /// Columns of each line that read outside the image.
    edges: Range<usize>,
}

impl Sizes {
    /// Returns the shifts of one channel, in the order of the kernel, or `None` if the convolution changes
    /// height or width.
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
            // A shift by more than the size of the plane leaves no common elements.
            let both = |by: isize| if start < end { (start + by) as usize..(end + by) as usize } else { 0..0 };
            Shifted { row: both(0), plane: both(shift), edges }
        };
        Some((0..self.kernel * self.kernel).map(|k| shift(k / self.kernel, k % self.kernel)).collect())
    }
}

/// Sets the edges of a row to zero.
#[inline(always)]
fn clear_edges<T: Number>(row: &mut [T], width: usize, edges: &Range<usize>) {
    if !edges.is_empty() {
        row.chunks_exact_mut(width).for_each(|line| line[edges.clone()].fill(T::of(0.0)));
    }
}

/// Calls `work(i, piece)` for every piece of `size` elements, on all threads if `wide`.
fn pieces<T: Number>(all: &mut [T], size: usize, wide: bool, work: impl Fn(usize, &mut [T]) + Sync) {
    if wide {
        all.par_chunks_exact_mut(size).enumerate().for_each(|(i, piece)| work(i, piece));
    } else {
        all.chunks_exact_mut(size).enumerate().for_each(|(i, piece)| work(i, piece));
    }
}

/// Writes the patches of `images` to `columns` (im2col), one image after another. `columns` must contain zeros
/// wherever a patch extends beyond the image, because not all of these elements are written.
fn spread<T: Number>(images: &[T], columns: &mut [T], sizes: Sizes) {
    let (area, positions, image) = (sizes.area(), sizes.positions(), sizes.image()[0]);
    let width = images.len() / image * positions;
    let (rows, shifts) = (sizes.kernel * sizes.kernel, sizes.shifts());
    pieces(columns, rows * width, sizes.wide(), |channel, columns| {
        for (i, image) in images.chunks_exact(image).enumerate() {
            let plane = &image[channel * area..][..area];
            let place = |row: usize, to: &Range<usize>| {
                let start = row * width + i * positions;
                start + to.start..start + to.end
            };
            if let Some(shifts) = &shifts {
                for (row, shift) in shifts.iter().enumerate() {
                    columns[place(row, &shift.row)].copy_from_slice(&plane[shift.plane.clone()]);
                    clear_edges(&mut columns[place(row, &(0..positions))], sizes.to[1], &shift.edges);
                }
            } else if sizes.stride == 1 {
                sizes.spans(|row, to, from| columns[place(row, &to)].copy_from_slice(&plane[from..][..to.len()]));
            } else {
                sizes.spans(|row, to, from| {
                    let pixels = plane[from..].iter().step_by(sizes.stride);
                    columns[place(row, &to)].iter_mut().zip(pixels).for_each(|(column, pixel)| *column = *pixel);
                });
            }
        }
    });
}

/// Adds `columns` to the pixels from which they were copied (col2im). Elements outside the image are dropped,
/// and may be cleared in `columns`.
fn gather<T: Number>(columns: &mut [T], images: &mut [T], sizes: Sizes) {
    let (area, positions) = (sizes.area(), sizes.positions());
    let width = images.len() / sizes.image()[0] * positions;
    let (rows, shifts) = (sizes.kernel * sizes.kernel, sizes.shifts());
    if let Some(shifts) = &shifts {
        pieces(columns, rows * width, sizes.wide(), |_, columns| {
            for (row, shift) in columns.chunks_exact_mut(width).zip(shifts) {
                clear_edges(row, sizes.to[1], &shift.edges);
            }
        });
    }
    let columns = &*columns;
    pieces(images, area, sizes.wide(), |i, plane| {
        let (image, channel) = (i / sizes.inputs, i % sizes.inputs);
        let place = |row: usize, from: Range<usize>| {
            let start = (channel * rows + row) * width + image * positions;
            &columns[start + from.start..start + from.end]
        };
        vectorized(
            #[inline(always)]
            || {
                if let Some(shifts) = &shifts {
                    for (row, shift) in shifts.iter().enumerate() {
                        let pixels = plane[shift.plane.clone()].iter_mut();
                        pixels.zip(place(row, shift.row.clone())).for_each(|(pixel, value)| *pixel += *value);
                    }
                } else {
                    sizes.spans(|row, from, to| {
                        let pixels = plane[to..].iter_mut().step_by(sizes.stride);
                        pixels.zip(place(row, from)).for_each(|(pixel, value)| *pixel += *value);
                    });
                }
            },
        );
    });
}

/// Concatenates images `[n, rows, positions]` into one matrix `[rows, n positions]`.
fn side_by_side<T: Number>(images: &[T], positions: usize, count: usize) -> Cow<'_, [T]> {
    if count == 1 {
        return Cow::Borrowed(images);
    }
    let (width, image) = (count * positions, images.len() / count);
    let mut all = room::<T>(images.len());
    for (i, image) in images.chunks_exact(image).enumerate() {
        for (row, line) in all.chunks_exact_mut(width).zip(image.chunks_exact(positions)) {
            row[i * positions..][..positions].copy_from_slice(line);
        }
    }
    Cow::Owned(all)
}

/// Allocates the column matrix of a group, filled with zeros. Returns an empty vector if the images themselves
/// are the column matrix.
fn columns<T: Number>(sizes: Sizes) -> Vec<T> {
    let own = sizes.pointwise() && sizes.group() == 1;
    vec![T::of(0.0); if own { 0 } else { sizes.patch() * sizes.group() * sizes.positions() }]
}

/// Returns the column matrix of `images`: the images themselves if `place` is empty, otherwise computed in
/// `place`.
fn spread_into<'a, T: Number>(images: &'a [T], place: &'a mut [T], sizes: Sizes) -> &'a [T] {
    if place.is_empty() {
        return images;
    }
    let count = images.len() / sizes.image()[0];
    let place = &mut place[..sizes.patch() * count * sizes.positions()];
    if count < sizes.group() {
        // The last group is smaller, so its zeros are at other positions.
        place.fill(T::of(0.0));
    }
    spread(images, place, sizes);
    place
}

impl Fused<3> for Convolve {
    type Saved = ();

    fn forward<T: Number>(&self, inputs: [FlexTensor; 3]) -> (FlexTensor, ()) {
        let inputs = inputs.map(dense::<T>);
        let sizes = self.sizes(&inputs[0].shape(), &inputs[1].shape());
        let [x, weight, bias] = inputs.each_ref().map(numbers::<T>);
        assert_eq!(bias.len(), sizes.outputs, "length of the bias");
        let shape = Shape::new([sizes.batch, sizes.outputs, sizes.to[0], sizes.to[1]]);
        if let Some(winograd) = self.winograd(sizes) {
            return (tensor(winograd.forward([x, weight, bias]), shape), ());
        }
        let (patch, positions, [from, to], wide) = (sizes.patch(), sizes.positions(), sizes.image(), sizes.wide());
        let one = T::of(1.0);
        let group = |place: &mut Vec<T>, (i, y): (usize, &mut [T])| {
            let count = y.len() / to;
            let width = count * positions;
            let read = spread_into(&x[i * sizes.group() * from..][..count * from], place, sizes);
            let product = |out: &mut [T], keep: bool| {
                let (weight, read) = (Matrix::rows(weight, patch), Matrix::rows(read, width));
                let out = MatrixMut { values: out, row: width };
                multiply([sizes.outputs, patch, width], weight, read, out, (keep, one), wide, self.rounding);
            };
            if count == 1 {
                y.chunks_exact_mut(positions).zip(bias).for_each(|(y, bias)| y.fill(*bias));
                return product(y, true);
            }
            let mut all = room::<T>(sizes.outputs * width);
            product(&mut all, false);
            for (i, y) in y.chunks_exact_mut(to).enumerate() {
                for ((y, all), bias) in y.chunks_exact_mut(positions).zip(all.chunks_exact(width)).zip(bias) {
                    y.iter_mut().zip(&all[i * positions..]).for_each(|(y, value)| *y = *value + *bias);
                }
            }
        };
        let mut y = room::<T>(sizes.batch * to);
        if wide {
            let mut place = columns(sizes);
            y.chunks_mut(sizes.group() * to).enumerate().for_each(|part| group(&mut place, part));
        } else {
            y.par_chunks_mut(sizes.group() * to).enumerate().for_each_init(|| columns(sizes), group);
        }
        (tensor(y, shape), ())
    }

    fn backward<T: Number>(
        &self,
        inputs: [FlexTensor; 3],
        (): (),
        grad: FlexTensor,
        wanted: [bool; 3],
    ) -> [Option<FlexTensor>; 3] {
        let (inputs, grad) = (inputs.map(dense::<T>), dense::<T>(grad));
        let (shape, kernels) = (inputs[0].shape(), inputs[1].shape());
        let sizes = self.sizes(&shape, &kernels);
        assert!(sizes.batch > 0, "the gradient of an empty batch is not defined");
        let [x, weight, _] = inputs.each_ref().map(numbers::<T>);
        let grad = numbers::<T>(&grad);
        let shapes = [shape, kernels, Shape::new([sizes.outputs])];
        if let Some(winograd) = self.winograd(sizes) {
            let mut shapes = shapes.into_iter();
            return winograd
                .backward([x, weight], grad, wanted)
                .map(|of| of.zip(shapes.next()).map(|(of, shape)| tensor(of, shape)));
        }
        let (patch, positions, [from, to], wide) = (sizes.patch(), sizes.positions(), sizes.image(), sizes.wide());
        let (zero, one) = (T::of(0.0), T::of(1.0));
        // Images per part, a multiple of the group size. One part is enough if all threads share each product.
        let part = if wide { sizes.batch } else { sizes.groups().div_ceil(PARTS) * sizes.group() };
        let of_part = |(p, mut of_x): (usize, Option<&mut [T]>)| {
            let mut place = columns(sizes);
            let mut back = room::<T>(if of_x.is_some() { place.len() } else { 0 });
            let mut of_weight = room::<T>(if wanted[1] { sizes.outputs * patch } else { 0 });
            let mut of_bias = vec![zero; sizes.outputs];
            let images = p * part..((p + 1) * part).min(sizes.batch);
            for first in images.clone().step_by(sizes.group()) {
                let count = sizes.group().min(images.end - first);
                let width = count * positions;
                let grad = side_by_side(&grad[first * to..][..count * to], positions, count);
                if wanted[2] {
                    for (total, grad) in of_bias.iter_mut().zip(grad.chunks_exact(width)) {
                        *total += sum(width, |k| grad[k]);
                    }
                }
                let grad = Matrix::rows(&grad, width);
                if wanted[1] {
                    let read = spread_into(&x[first * from..][..count * from], &mut place, sizes);
                    let read = Matrix::rows(read, width).transposed();
                    let out = MatrixMut { values: &mut of_weight, row: patch };
                    multiply(
                        [sizes.outputs, width, patch],
                        grad,
                        read,
                        out,
                        (first > images.start, one),
                        wide,
                        self.rounding,
                    );
                }
                if let Some(of_x) = &mut of_x {
                    let of_x = &mut of_x[(first - images.start) * from..][..count * from];
                    let weight = Matrix::rows(weight, patch).transposed();
                    let own = back.is_empty();
                    let values = if own { &mut *of_x } else { &mut back[..patch * width] };
                    multiply(
                        [patch, sizes.outputs, width],
                        weight,
                        grad,
                        MatrixMut { values, row: width },
                        (false, one),
                        wide,
                        self.rounding,
                    );
                    if !own {
                        gather(&mut back[..patch * width], of_x, sizes);
                    }
                }
            }
            (of_weight, of_bias)
        };
        let mut of_x = vec![zero; if wanted[0] { x.len() } else { 0 }];
        let places = 0..sizes.batch.div_ceil(part);
        let parts: Vec<(Vec<T>, Vec<T>)> = match (wide, wanted[0]) {
            (true, is_wanted) => vec![of_part((0, is_wanted.then_some(&mut of_x[..])))],
            (false, true) => of_x.par_chunks_mut(part * from).map(Some).enumerate().map(of_part).collect(),
            (false, false) => places.into_par_iter().map(|p| of_part((p, None))).collect(),
        };
        let (of_weight, of_bias): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        let [shape, kernels, biases] = shapes;
        [
            wanted[0].then(|| tensor(of_x, shape)),
            wanted[1].then(|| tensor(total(of_weight), kernels)),
            wanted[2].then(|| tensor(total(of_bias), biases)),
        ]
    }
}
