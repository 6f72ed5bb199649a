//! Attention that saves two values per query: the maximum logit and the inverse of the softmax denominator. The
//! backward pass recomputes the attention weights from them, one block of queries at a time. Memory is
//! therefore linear in the length, not quadratic.
//!
//! Source: arXiv:2205.14135 algorithms 1 and 4 (the recomputation; blocks here span all keys).

use super::math::{GRAIN, Number, exponentials, maximum, room, sum, vectorized};
use super::matrix::{Matrix, MatrixMut, Rounding, multiply};
use super::{Fused, tensor, whole, width_of_head};
use burn::backend::TensorMetadata;
use burn::backend::flex::{FlexTensor, Layout};
use burn::tensor::Shape;
use rayon::prelude::*;
use std::ops::Range;

/// Attention weights per block of queries; this many stay in the cache of a core. A block still has at least 64
/// queries, because a product of fewer rows spends most of its time on packing the keys.
const BLOCK: usize = 1 << 15;

/// Computes `softmax(scale q k^T) v`. Inputs: `q` `[B, heads, L, d]`, `k` and `v` `[B, heads, K, d]`.
#[derive(Clone, Debug)]
pub(crate) struct Attend {
    pub scale: f64,
    /// Whether query `l` sees only the keys up to `K - L + l`.
    pub causal: bool,
    /// `[B, heads, L, K]`, true = hidden. Any dimension may be 1, which broadcasts.
    pub mask: Option<FlexTensor>,
    pub rounding: Rounding,
}

/// A view of a tensor `[B, heads, L, d]` with contiguous rows and arbitrary other strides.
#[derive(Clone, Copy)]
struct Heads<'a, T> {
    values: &'a [T],
    strides: [usize; 3],
}

impl<'a, T: Number> Heads<'a, T> {
    /// Creates a view of a tensor that [`strided`] returned.
    fn of(x: &'a FlexTensor) -> Self {
        let (layout, strides) = (x.layout(), x.layout().strides());
        let values = &x.storage::<T>()[layout.start_offset()..];
        Self { values, strides: [0, 1, 2].map(|i| strides[i] as usize) }
    }

    /// Returns the rows of one head from `first` on.
    fn rows(self, [b, h]: [usize; 2], first: usize) -> Matrix<'a, T> {
        let start = b * self.strides[0] + h * self.strides[1] + first * self.strides[2];
        Matrix { values: &self.values[start..], row: self.strides[2], column: 1 }
    }
}

/// Returns a tensor `[B, heads, L, d]` whose rows are contiguous; copies it otherwise.
fn strided(x: FlexTensor) -> FlexTensor {
    let whole = x.layout().strides().iter().all(|stride| *stride >= 0) && x.layout().strides()[3] == 1;
    if whole { x } else { x.to_contiguous() }
}

/// The destination for the rows of a result `[B, heads, L, d]`, shared by all threads. Rows of different heads
/// are adjacent in memory, so that heads merge without a copy.
#[derive(Clone, Copy)]
struct Rows<T> {
    start: *mut T,
    dims: [usize; 4],
    strides: [usize; 3],
}
// SAFETY: only one thread writes a row: the thread that processes its head and block.
unsafe impl<T> Send for Rows<T> {}
unsafe impl<T> Sync for Rows<T> {}

impl<T: Number> Rows<T> {
    /// Selects the rows of part `part` in memory with the layout `[B, L, parts, heads, d]`.
    fn of(values: *mut [T], dims: [usize; 4], (part, parts): (usize, usize)) -> Self {
        let [_, heads, length, width] = dims;
        let line = parts * heads * width;
        assert_eq!(values.len(), dims.iter().product::<usize>() * parts, "size of the result");
        Self {
            start: values.cast::<T>().wrapping_add(part * heads * width),
            dims,
            strides: [length * line, width, line],
        }
    }

    /// Writes `rows` of one head from row `first` on.
    fn write(self, [b, h]: [usize; 2], first: usize, rows: &[T]) {
        let [batch, heads, length, width] = self.dims;
        assert!(b < batch && h < heads && first + rows.len() / width <= length, "row index out of range");
        for (i, row) in rows.chunks_exact(width).enumerate() {
            let place = b * self.strides[0] + h * self.strides[1] + (first + i) * self.strides[2];
            // SAFETY: the assertion above keeps the row within the result, and no other thread writes it.
            unsafe { std::ptr::copy_nonoverlapping(row.as_ptr(), self.start.add(place), width) };
        }
    }
}

/// Views memory with the layout `[B, L, parts, heads, d]` as the tensor `[B, heads, L, d]` of part `part`.
fn view(values: FlexTensor, [batch, heads, length, width]: [usize; 4], (part, parts): (usize, usize)) -> FlexTensor {
    let line = (parts * heads * width) as isize;
    let strides = vec![length as isize * line, width as isize, line, 1];
    values.with_layout(Layout::new(Shape::new([batch, heads, length, width]), strides, part * heads * width))
}

/// Sizes of one call, and the keys that each query may see.
struct Scene<'a> {
    dims: [usize; 4],
    keys: usize,
    causal: bool,
    mask: Option<Mask<'a>>,
}

/// The hidden keys, one byte per element.
struct Mask<'a> {
    values: &'a [u8],
    /// Strides of sample, head, query and key; 0 where the mask broadcasts.
    strides: [isize; 4],
    offset: usize,
}

impl Mask<'_> {
    /// Returns a function that tells whether a key is hidden from query `row`.
    fn of_row(&self, [b, h]: [usize; 2], row: usize) -> impl Fn(usize) -> bool {
        let place = [b, h, row].iter().zip(self.strides).map(|(i, stride)| *i as isize * stride).sum::<isize>();
        let start = self.offset as isize + place;
        move |key| self.values[(start + key as isize * self.strides[3]) as usize] != 0
    }
}

impl<'a> Scene<'a> {
    fn new(op: &'a Attend, qkv: &[FlexTensor; 3]) -> Self {
        let [q, k, v] = qkv.each_ref().map(TensorMetadata::shape);
        assert!(k == v && [0, 1, 3].iter().all(|i| q[*i] == k[*i]), "queries {q:?}, keys {k:?}, values {v:?}");
        let bytes = |mask: &'a FlexTensor| {
            let (layout, shape) = (mask.layout(), mask.shape());
            let strides = std::array::from_fn(|i| if shape[i] == 1 { 0 } else { layout.strides()[i] });
            Mask { values: mask.bytes(), strides, offset: layout.start_offset() }
        };
        Self { dims: [q[0], q[1], q[2], q[3]], keys: k[2], causal: op.causal, mask: op.mask.as_ref().map(bytes) }
    }

    /// Returns the number of queries per block.
    fn block(&self) -> usize {
        (BLOCK / self.keys.max(1)).clamp(64, 256).min(self.dims[2])
    }

    /// Returns how many keys query `row` may see if no mask hides any.
    fn seen(&self, row: usize) -> usize {
        if self.causal { (row + 1 + self.keys).saturating_sub(self.dims[2]).min(self.keys) } else { self.keys }
    }

    /// Returns the number of keys up to the last one that any of `rows` sees. Later keys are skipped for this
    /// block.
    fn reach(&self, head: [usize; 2], rows: Range<usize>) -> usize {
        let end = self.seen(rows.end - 1);
        let Some(mask) = &self.mask else { return end };
        let last = |row| {
            let hidden = mask.of_row(head, row);
            (0..end).rev().find(|key| !hidden(*key)).map_or(0, |key| key + 1)
        };
        // Keep at least one key: a row that sees no key gets weight zero for it.
        rows.map(last).max().unwrap_or_default().max(1).min(end)
    }

    /// Sets the logits of the keys that are hidden from `row` to minus infinity. `logits` has one value per
    /// key.
    fn hide<T: Number>(&self, [b, h]: [usize; 2], row: usize, logits: &mut [T]) {
        let hidden = T::of(f64::NEG_INFINITY);
        let seen = self.seen(row).min(logits.len());
        logits[seen..].fill(hidden);
        if let Some(mask) = &self.mask {
            let is_hidden = mask.of_row([b, h], row);
            for (key, logit) in logits[..seen].iter_mut().enumerate() {
                if is_hidden(key) {
                    *logit = hidden;
                }
            }
        }
    }

    /// Calls `work([sample, head])` for every pair of sample and head, in parallel if there is enough work.
    fn heads(&self, work: impl Fn([usize; 2]) + Sync) {
        let [batch, heads, length, _] = self.dims;
        let head = |i: usize| work([i / heads, i % heads]);
        if batch * heads * length * self.keys < GRAIN {
            (0..batch * heads).for_each(head);
        } else {
            (0..batch * heads).into_par_iter().for_each(head);
        }
    }
}

impl Fused<3> for Attend {
    /// Maximum logit and inverse softmax denominator of every query, `[B, heads, L, 2]`.
    type Saved = FlexTensor;

    fn forward<T: Number>(&self, inputs: [FlexTensor; 3]) -> (FlexTensor, FlexTensor) {
        let qkv = inputs.map(strided);
        let scene = Scene::new(self, &qkv);
        let [q, k, v] = qkv.each_ref().map(Heads::<T>::of);
        let [batch, heads, length, width] = scene.dims;
        let (block, scale) = (scene.block(), T::of(self.scale));
        let mut output = room::<T>(scene.dims.iter().product());
        let rows_of_output = Rows::of(&mut output[..], scene.dims, (0, 1));
        let mut scales = vec![T::of(0.0); 2 * batch * heads * length];
        let blocks = length.div_ceil(block);
        let task = |task: usize, scales: &mut [T]| {
            let head = [task / blocks / heads, task / blocks % heads];
            let (first, rows) = (task % blocks * block, scales.len() / 2);
            let keys = scene.reach(head, first..first + rows);
            let (mut weights, mut mixed) = (room(rows * keys), room(rows * width));
            let (queries, seen) = (q.rows(head, first), k.rows(head, 0).transposed());
            self.multiply([rows, width, keys], queries, seen, all(&mut weights, keys), (false, scale));
            for (i, scales) in scales.chunks_exact_mut(2).enumerate() {
                let row = &mut weights[i * keys..][..keys];
                scene.hide(head, first + i, row);
                scales.copy_from_slice(&softmax(row));
            }
            self.multiply(
                [rows, keys, width],
                Matrix::rows(&weights, keys),
                v.rows(head, 0),
                all(&mut mixed, width),
                (false, T::of(1.0)),
            );
            rows_of_output.write(head, first, &mixed);
        };
        // One part per head and block of queries. A block never crosses from one head to the next.
        let mut parts: Vec<&mut [T]> =
            scales.chunks_mut(2 * length).flat_map(|head| head.chunks_mut(2 * block)).collect();
        if batch * heads * length * scene.keys < GRAIN {
            parts.iter_mut().enumerate().for_each(|(i, part)| task(i, part));
        } else {
            parts.par_iter_mut().enumerate().for_each(|(i, part)| task(i, part));
        }
        let scales = tensor(scales, Shape::new([batch, heads, length, 2]));
        let shape = Shape::new([batch, length, heads * width]);
        (view(tensor(output, shape), scene.dims, (0, 1)), scales)
    }

    fn backward<T: Number>(
        &self,
        inputs: [FlexTensor; 3],
        scales: FlexTensor,
        grad: FlexTensor,
        wanted: [bool; 3],
    ) -> [Option<FlexTensor>; 3] {
        let qkv = inputs.map(strided);
        let [q, k] = [0, 1].map(|i| qkv[i].shape());
        let [queries, keys] = [q, k].map(|shape| [shape[0], shape[1], shape[2], shape[3]]);
        let mut results = [queries, keys, keys].map(|dims| (room::<T>(dims.iter().product()), dims));
        let rows = results.each_mut().map(|(values, dims)| Rows::of(&mut values[..], *dims, (0, 1)));
        self.differentiate((&qkv, &scales), grad, rows);
        let mut wanted = wanted.into_iter();
        results.map(|(values, dims)| {
            let shape = Shape::new([dims[0], dims[2], dims[1] * dims[3]]);
            wanted.next().expect("there are three flags").then(|| view(tensor(values, shape), dims, (0, 1)))
        })
    }
}

impl Attend {
    /// Multiplies on the current thread alone, because each thread processes its own head.
    fn multiply<T: Number>(
        &self,
        shape: [usize; 3],
        a: Matrix<'_, T>,
        b: Matrix<'_, T>,
        out: MatrixMut<'_, T>,
        keep_and_factor: (bool, T),
    ) {
        multiply(shape, a, b, out, keep_and_factor, false, self.rounding);
    }

    /// Writes the gradients of queries, keys and values.
    fn differentiate<T: Number>(
        &self,
        (qkv, scales): (&[FlexTensor; 3], &FlexTensor),
        grad: FlexTensor,
        [of_q, of_k, of_v]: [Rows<T>; 3],
    ) {
        let grad = strided(grad);
        let scene = Scene::new(self, qkv);
        let [q, k, v] = qkv.each_ref().map(Heads::<T>::of);
        let (grad, scales) = (Heads::<T>::of(&grad), super::numbers::<T>(scales));
        let [_, heads, length, width] = scene.dims;
        let (block, scale, zero) = (scene.block(), T::of(self.scale), T::of(0.0));
        scene.heads(|head| {
            let [mut weights, mut slopes] = [(); 2].map(|()| room(block * scene.keys));
            let mut of_queries = room(block * width);
            let [mut of_keys, mut of_values] = [(); 2].map(|()| vec![zero; scene.keys * width]);
            let scales = &scales[2 * (head[0] * heads + head[1]) * length..][..2 * length];
            for first in (0..length).step_by(block) {
                let rows = block.min(length - first);
                let keys = scene.reach(head, first..first + rows);
                let (weights, slopes) = (&mut weights[..rows * keys], &mut slopes[..rows * keys]);
                let (queries, upstream) = (q.rows(head, first), grad.rows(head, first));
                let into_keys = k.rows(head, 0).transposed();
                self.multiply([rows, width, keys], queries, into_keys, all(weights, keys), (false, scale));
                self.multiply(
                    [rows, width, keys],
                    upstream,
                    v.rows(head, 0).transposed(),
                    all(slopes, keys),
                    (false, T::of(1.0)),
                );
                for i in 0..rows {
                    let (weights, slopes) = (&mut weights[i * keys..][..keys], &mut slopes[i * keys..][..keys]);
                    scene.hide(head, first + i, weights);
                    let [highest, inverse] = [scales[2 * (first + i)], scales[2 * (first + i) + 1]];
                    vectorized(
                        #[inline(always)]
                        || {
                            for weight in weights.iter_mut() {
                                *weight = (*weight - highest).exp() * inverse;
                            }
                            // Softmax backward needs `slope - sum(weight * slope)`. A single subtraction
                            // cancels badly when the difference is tiny, and the rounded weights do not sum to
                            // exactly 1, so subtract the weighted mean twice.
                            for _ in 0..2 {
                                let mean = sum(keys, |k| weights[k] * slopes[k]);
                                slopes.iter_mut().for_each(|slope| *slope = *slope - mean);
                            }
                            for (weight, slope) in weights.iter().zip(slopes.iter_mut()) {
                                *slope = *weight * *slope * scale;
                            }
                        },
                    );
                }
                let (weights, slopes) = (Matrix::rows(weights, keys), Matrix::rows(slopes, keys));
                let out = all(&mut of_queries[..rows * width], width);
                self.multiply([rows, keys, width], slopes, k.rows(head, 0), out, (false, T::of(1.0)));
                of_q.write(head, first, &of_queries[..rows * width]);
                let add = (true, T::of(1.0));
                self.multiply([keys, rows, width], slopes.transposed(), queries, all(&mut of_keys, width), add);
                self.multiply([keys, rows, width], weights.transposed(), upstream, all(&mut of_values, width), add);
            }
            of_k.write(head, 0, &of_keys);
            of_v.write(head, 0, &of_values);
        });
    }
}

/// [`Attend`] on the packed queries, keys and values that a single linear layer computes. Input:
/// `[B, L, 3 heads d]`, output `[B, L, heads d]`.
#[derive(Clone, Debug)]
pub(crate) struct AttendPacked {
    pub attend: Attend,
    pub heads: usize,
}

impl AttendPacked {
    fn dims(&self, shape: &Shape) -> [usize; 4] {
        [shape[0], self.heads, shape[1], width_of_head(shape[2], self.heads)]
    }

    /// Returns views of the queries, keys and values in a row-major tensor.
    fn parts(&self, x: FlexTensor) -> [FlexTensor; 3] {
        let dims = self.dims(&x.shape());
        [0, 1, 2].map(|part| view(x.clone(), dims, (part, 3)))
    }
}

impl Fused<1> for AttendPacked {
    /// The same as for [`Attend`].
    type Saved = FlexTensor;

    fn forward<T: Number>(&self, [x]: [FlexTensor; 1]) -> (FlexTensor, FlexTensor) {
        let x = whole::<T>(x);
        let dims = self.dims(&x.shape());
        let (output, scales) = self.attend.forward::<T>(self.parts(x));
        let merged = Layout::contiguous(Shape::new([dims[0], dims[2], dims[1] * dims[3]]));
        (output.with_layout(merged), scales)
    }

    fn backward<T: Number>(
        &self,
        [x]: [FlexTensor; 1],
        scales: FlexTensor,
        grad: FlexTensor,
        _: [bool; 1],
    ) -> [Option<FlexTensor>; 1] {
        let x = whole::<T>(x);
        let dims = self.dims(&x.shape());
        let grad = view(whole::<T>(grad), dims, (0, 1));
        let mut of_x = room::<T>(3 * dims.iter().product::<usize>());
        let all: *mut [T] = &mut of_x[..];
        let rows = [0, 1, 2].map(|part| Rows::of(all, dims, (part, 3)));
        self.attend.differentiate((&self.parts(x), &scales), grad, rows);
        [Some(tensor(of_x, Shape::new([dims[0], dims[2], 3 * dims[1] * dims[3]])))]
    }
}

/// Returns the whole of a row-major matrix.
fn all<T>(values: &mut [T], width: usize) -> MatrixMut<'_, T> {
    MatrixMut { values, row: width }
}

/// Replaces logits by attention weights; returns the maximum logit and the inverse of the denominator. A row
/// that sees no key gets weight 0; a row with NaN becomes all NaN.
fn softmax<T: Number>(row: &mut [T]) -> [T; 2] {
    vectorized(
        #[inline(always)]
        || {
            let highest = maximum(row);
            if highest == T::of(f64::NEG_INFINITY) {
                // [`maximum`] ignores NaN; a row of NaN must not be treated as hidden.
                let weight = row.iter().find(|x| x.to_f64().is_nan()).copied().unwrap_or(T::of(0.0));
                row.fill(weight);
                return [weight; 2];
            }
            let inverse = T::of(1.0) / exponentials(row, highest);
            for weight in row.iter_mut() {
                *weight *= inverse;
            }
            [highest, inverse]
        },
    )
}
