//! 3x3 convolution with Winograd tiles: the four outputs of a tile take 16 multiplications per pair of channels
//! instead of 36.
//!
//!   y = A^T [(G g G^T) * (B^T d B)] A
//!
//! A tile `d` has 4x4 pixels, and the next tile starts two pixels further. Its output `y` has 2x2 pixels. For
//! each of the 16 positions in a transformed tile, the sum over channels is a matrix product. The gradients use
//! the adjoint of each step.
//!
//! Source: Lavin and Gray, arXiv:1509.09308, F(2x2, 3x3).

use super::super::math::{Number, room, sum, vectorized};
use super::super::matrix::{Matrix, MatrixMut, Rounding, multiply};
use super::Sizes;
use rayon::prelude::*;
use std::ops::{Add, Mul, Neg, Range, Sub};

/// Positions in a transformed tile.
const PLACES: usize = 16;
/// Minimum number of input and output channels. With fewer channels, the transforms cost as much as they save.
const CHANNELS: usize = 16;
/// Minimum number of tiles per batch. With fewer tiles, the transform of the weights costs as much as it saves.
const TILES: usize = 64;
/// Tiles per group, but at least one row of tiles. The transforms of this many tiles stay in a cache.
const AT_ONCE: usize = 1024;
/// Tiles, or weights, that are transformed at a time: one vector register of elements.
const LANES: usize = 16;
/// Pixels per line that [`LANES`] tiles read.
const PIXELS: usize = 2 * LANES + 2;

/// A 3x3 convolution that keeps height and width.
#[derive(Clone, Copy)]
pub(super) struct Winograd {
    sizes: Sizes,
    /// Rows and columns of tiles per image.
    tiles: [usize; 2],
}

/// A group of tiles that are computed at a time: all tiles of some images, or some rows of one image.
struct Group {
    images: Range<usize>,
    rows: Range<usize>,
    /// Number of tiles in the group.
    tiles: usize,
}

/// Up to [`LANES`] adjacent tiles of a row.
struct Strip {
    /// Row and column of the first tile in its image.
    tile: [usize; 2],
    count: usize,
    /// Index of the first tile in the group.
    place: usize,
}

impl Winograd {
    /// Returns `None` if im2col is faster or the convolution is not of this kind.
    pub fn of(sizes: Sizes) -> Option<Self> {
        let tiles = sizes.from.map(|side| side.div_ceil(2));
        let same = sizes.kernel == 3 && sizes.stride == 1 && sizes.before == 1 && sizes.to == sizes.from;
        let many = sizes.inputs.min(sizes.outputs) >= CHANNELS && sizes.batch * tiles[0] * tiles[1] >= TILES;
        (same && many).then_some(Self { sizes, tiles })
    }

    /// Returns the groups of the whole batch, in order.
    fn groups(self) -> impl Iterator<Item = Group> {
        let ([down, across], batch) = (self.tiles, self.sizes.batch);
        let (rows, images) = ((AT_ONCE / across).clamp(1, down), (AT_ONCE / (down * across)).max(1));
        let firsts =
            (0..batch).step_by(images).flat_map(move |image| (0..down).step_by(rows).map(move |row| [image, row]));
        firsts.map(move |[image, row]| {
            let (images, rows) = (image..batch.min(image + images), row..down.min(row + rows));
            Group { tiles: images.len() * rows.len() * across, images, rows }
        })
    }

    /// Returns the strips of image `i` of a group.
    fn strips(self, group: &Group, i: usize) -> impl Iterator<Item = Strip> {
        let (across, rows) = (self.tiles[1], group.rows.clone());
        let before = i * rows.len();
        rows.enumerate().flat_map(move |(line, row)| {
            (0..across).step_by(LANES).map(move |column| Strip {
                tile: [row, column],
                count: LANES.min(across - column),
                place: (before + line) * across + column,
            })
        })
    }

    /// Computes the output; `bias` has one value per output channel.
    pub fn forward<T: Number>(self, [x, weight, bias]: [&[T]; 3]) -> Vec<T> {
        let Sizes { inputs, outputs, .. } = self.sizes;
        let weights = self.transformed_weights(weight);
        let mut y = room::<T>(self.sizes.batch * self.sizes.image()[1]);
        for group in self.groups() {
            let pixels = self.transformed(x, inputs, &group, pixels);
            let mut sums = room::<T>(PLACES * outputs * group.tiles);
            products([outputs, inputs, group.tiles], &mut sums, false, |place| {
                [at_place(&weights, inputs, place), at_place(&pixels, group.tiles, place)]
            });
            self.back(
                &sums,
                &mut y,
                outputs,
                &group,
                #[inline(always)]
                |tile, channel, plane, strip| {
                    self.write(on_both_sides(tile, outputs_of), bias[channel], plane, strip);
                },
            );
        }
        y
    }

    /// Computes the gradients of input, weight and bias.
    pub fn backward<T: Number>(self, [x, weight]: [&[T]; 2], grad: &[T], wanted: [bool; 3]) -> [Option<Vec<T>>; 3] {
        let Sizes { inputs, outputs, .. } = self.sizes;
        let weights = wanted[0].then(|| self.transformed_weights(weight));
        let mut of_x = wanted[0].then(|| vec![T::of(0.0); x.len()]);
        let mut of_weights = wanted[1].then(|| room::<T>(PLACES * outputs * inputs));
        for (i, group) in self.groups().enumerate().take_while(|_| wanted[0] || wanted[1]) {
            let upstream = self.transformed(grad, outputs, &group, outputs_back);
            if let Some(of_weights) = &mut of_weights {
                let pixels = self.transformed(x, inputs, &group, pixels);
                products([outputs, group.tiles, inputs], of_weights, i > 0, |place| {
                    [at_place(&upstream, group.tiles, place), at_place(&pixels, group.tiles, place).transposed()]
                });
            }
            if let (Some(of_x), Some(weights)) = (&mut of_x, &weights) {
                let mut back = room::<T>(PLACES * inputs * group.tiles);
                products([inputs, outputs, group.tiles], &mut back, false, |place| {
                    [at_place(weights, inputs, place).transposed(), at_place(&upstream, group.tiles, place)]
                });
                self.back(
                    &back,
                    of_x,
                    inputs,
                    &group,
                    #[inline(always)]
                    |tile, _, plane, strip| {
                        self.add(on_both_sides(tile, pixels_back), plane, strip);
                    },
                );
            }
        }
        [of_x, of_weights.map(|of_weights| self.weights_back(&of_weights)), wanted[2].then(|| self.of_bias(grad))]
    }
}

/// Steps of the forward and backward pass.
impl Winograd {
    /// Computes `G g G^T`. Layout: `[outputs, 16, inputs]`.
    fn transformed_weights<T: Number>(self, weight: &[T]) -> Vec<T> {
        let inputs = self.sizes.inputs;
        let mut all = room::<T>(self.sizes.outputs * PLACES * inputs);
        let rows = all.par_chunks_exact_mut(PLACES * inputs).zip(weight.par_chunks_exact(9 * inputs));
        rows.for_each(|(to, from)| {
            vectorized(
                #[inline(always)]
                || {
                    for first in (0..inputs).step_by(LANES) {
                        let count = LANES.min(inputs - first);
                        let mut kernel = [[Lanes::zero(); 3]; 3];
                        for (lane, weights) in from[9 * first..][..9 * count].as_chunks::<9>().0.iter().enumerate() {
                            let places = kernel.as_flattened_mut().iter_mut().zip(weights);
                            places.for_each(|(lanes, weight)| lanes.0[lane] = *weight);
                        }
                        let tile = on_both_sides(kernel, weights_of);
                        for (lanes, to) in tile.as_flattened().iter().zip(to.chunks_exact_mut(inputs)) {
                            lanes.write(&mut to[first..], count);
                        }
                    }
                },
            );
        });
        all
    }

    /// Computes `G^T u G` of gradients with the layout `[16, outputs, inputs]`.
    fn weights_back<T: Number>(self, of_weights: &[T]) -> Vec<T> {
        let Sizes { inputs, outputs, .. } = self.sizes;
        let mut all = room::<T>(outputs * inputs * 9);
        all.par_chunks_exact_mut(9 * inputs).enumerate().for_each(|(output, to)| {
            vectorized(
                #[inline(always)]
                || {
                    for first in (0..inputs).step_by(LANES) {
                        let count = LANES.min(inputs - first);
                        let tile = tile_at(
                            #[inline(always)]
                            |place| Lanes::read(&of_weights[(place * outputs + output) * inputs + first..], count),
                        );
                        let kernel = on_both_sides(tile, weights_back);
                        for (lane, to) in to[9 * first..][..9 * count].as_chunks_mut::<9>().0.iter_mut().enumerate() {
                            let places = to.iter_mut().zip(kernel.as_flattened());
                            places.for_each(|(weight, lanes)| *weight = lanes.0[lane]);
                        }
                    }
                },
            );
        });
        all
    }

    /// Transforms the tiles of a group, `N` pixels per side. Layout of the images: `[B, channels, H, W]`; of
    /// the result: `[channels, 16, tiles]`.
    fn transformed<T: Number, const N: usize>(
        self,
        images: &[T],
        channels: usize,
        group: &Group,
        transform: impl Fn([Lanes<T>; N]) -> [Lanes<T>; 4] + Sync,
    ) -> Vec<T> {
        let area = self.sizes.area();
        let mut all = room::<T>(channels * PLACES * group.tiles);
        all.par_chunks_exact_mut(PLACES * group.tiles).enumerate().for_each(|(channel, to)| {
            vectorized(
                #[inline(always)]
                || {
                    for (i, image) in group.images.clone().enumerate() {
                        let plane = &images[(image * channels + channel) * area..][..area];
                        for strip in self.strips(group, i) {
                            let tile = on_both_sides(self.read(plane, &strip), &transform);
                            for (lanes, to) in tile.as_flattened().iter().zip(to.chunks_exact_mut(group.tiles)) {
                                lanes.write(&mut to[strip.place..], strip.count);
                            }
                        }
                    }
                },
            );
        });
        all
    }

    /// Calls `write(tile, channel, plane, strip)` for all tiles of a group. Layout of `tiles`:
    /// `[16, channels, tiles]`.
    fn back<T: Number>(
        self,
        tiles: &[T],
        images: &mut [T],
        channels: usize,
        group: &Group,
        write: impl Fn([[Lanes<T>; 4]; 4], usize, &mut [T], &Strip) + Sync,
    ) {
        let area = self.sizes.area();
        let images = &mut images[group.images.start * channels * area..group.images.end * channels * area];
        images.par_chunks_exact_mut(area).enumerate().for_each(|(i, plane)| {
            let (image, channel) = (i / channels, i % channels);
            vectorized(
                #[inline(always)]
                || {
                    for strip in self.strips(group, image) {
                        let tile = tile_at(
                            #[inline(always)]
                            |place| {
                                Lanes::read(
                                    &tiles[(place * channels + channel) * group.tiles + strip.place..],
                                    strip.count,
                                )
                            },
                        );
                        write(tile, channel, plane, &strip);
                    }
                },
            );
        });
    }

    /// For line `line` of tiles that start `margin` pixels before their output, returns the range of pixels
    /// within the image and the index of the first of them in the plane. Returns `None` if the line is outside
    /// the image.
    #[inline(always)]
    fn line(self, strip: &Strip, line: usize, margin: usize) -> Option<(Range<usize>, usize)> {
        let ([height, width], [row, column]) = (self.sizes.from, strip.tile);
        let y = (2 * row + line).checked_sub(margin).filter(|y| *y < height)?;
        let start = margin.saturating_sub(2 * column);
        let x = 2 * column + start - margin;
        let end = (2 * strip.count + 2 * margin).min(start + width - x);
        Some((start..end, y * width + x))
    }

    /// Reads tiles of `N` pixels per side, centred on their 2x2 outputs; pixels outside the image are zero.
    #[inline(always)]
    fn read<T: Number, const N: usize>(self, plane: &[T], strip: &Strip) -> [[Lanes<T>; N]; N] {
        let mut tile = [[Lanes::zero(); N]; N];
        for (line, of_line) in tile.iter_mut().enumerate() {
            let mut pixels = [T::of(0.0); PIXELS];
            if let Some((span, place)) = self.line(strip, line, N / 2 - 1) {
                let from = &plane[place..][..span.len()];
                pixels[span].copy_from_slice(from);
            }
            let [mut even, mut odd] = [[T::of(0.0); LANES + 1]; 2];
            for i in 0..LANES + 1 {
                (even[i], odd[i]) = (pixels[2 * i], pixels[2 * i + 1]);
            }
            for (k, lanes) in of_line.iter_mut().enumerate() {
                let from = if k % 2 == 0 { &even } else { &odd };
                lanes.0.copy_from_slice(&from[k / 2..][..LANES]);
            }
        }
        tile
    }

    /// Writes the outputs of tiles plus `bias`.
    #[inline(always)]
    fn write<T: Number>(self, tile: [[Lanes<T>; 2]; 2], bias: T, plane: &mut [T], strip: &Strip) {
        for (line, [even, odd]) in tile.iter().enumerate() {
            if let Some((span, place)) = self.line(strip, line, 0) {
                let mut pixels = [T::of(0.0); 2 * LANES];
                for i in 0..LANES {
                    (pixels[2 * i], pixels[2 * i + 1]) = (even.0[i] + bias, odd.0[i] + bias);
                }
                plane[place..][..span.len()].copy_from_slice(&pixels[span]);
            }
        }
    }

    /// Adds tiles to the pixels from which they were read.
    #[inline(always)]
    fn add<T: Number>(self, tile: [[Lanes<T>; 4]; 4], plane: &mut [T], strip: &Strip) {
        for (line, lanes) in tile.iter().enumerate() {
            if let Some((span, place)) = self.line(strip, line, 1) {
                let mut pixels = [T::of(0.0); PIXELS];
                for k in 0..4 {
                    (0..LANES).for_each(|i| pixels[2 * i + k] += lanes[k].0[i]);
                }
                let pixels = &pixels[span];
                plane[place..][..pixels.len()].iter_mut().zip(pixels).for_each(|(to, from)| *to += *from);
            }
        }
    }

    fn of_bias<T: Number>(self, grad: &[T]) -> Vec<T> {
        let (area, outputs) = (self.sizes.area(), self.sizes.outputs);
        let total = |channel: usize| {
            let planes = grad.chunks_exact(area).skip(channel).step_by(outputs);
            planes.map(|plane| sum(area, |i| plane[i])).sum()
        };
        (0..outputs).into_par_iter().map(total).collect()
    }
}

/// Computes `out = keep out + a b` for each position in a tile; `factors` returns `a` and `b`. Layout of `out`:
/// `[16, m, n]`.
fn products<'a, T: Number>(
    shape: [usize; 3],
    out: &mut [T],
    keep: bool,
    factors: impl Fn(usize) -> [Matrix<'a, T>; 2] + Sync,
) {
    let row = shape[2];
    // Each position is one task. If the tasks are too few for the threads, several threads share a product.
    let wide = rayon::current_num_threads() > PLACES / 4;
    out.par_chunks_exact_mut(shape[0] * row).enumerate().for_each(|(place, values)| {
        let [a, b] = factors(place);
        multiply(shape, a, b, MatrixMut { values, row }, (keep, T::of(1.0)), wide, Rounding::None);
    });
}

/// Returns the matrix of one position, with `width` columns, from values with the layout `[rows, 16, width]`.
fn at_place<T>(x: &[T], width: usize, place: usize) -> Matrix<'_, T> {
    Matrix { values: &x[place * width..], row: PLACES * width, column: 1 }
}

/// One element of each of [`LANES`] tiles or channels.
#[derive(Clone, Copy)]
struct Lanes<T>([T; LANES]);

impl<T: Number> Lanes<T> {
    /// Reads `count` elements and fills the rest with zeros.
    #[inline(always)]
    fn read(from: &[T], count: usize) -> Self {
        if let Some(lanes) = from.first_chunk().filter(|_| count == LANES) {
            return Self(*lanes);
        }
        let mut lanes = [T::of(0.0); LANES];
        lanes.iter_mut().zip(&from[..count]).for_each(|(to, from)| *to = *from);
        Self(lanes)
    }

    /// Writes the first `count` elements.
    #[inline(always)]
    fn write(&self, to: &mut [T], count: usize) {
        match to.first_chunk_mut() {
            Some(to) if count == LANES => *to = self.0,
            _ => to[..count].iter_mut().zip(&self.0).for_each(|(to, from)| *to = *from),
        }
    }

    #[inline(always)]
    fn zero() -> Self {
        Self([T::of(0.0); LANES])
    }

    #[inline(always)]
    fn with(mut self, other: Self, f: impl Fn(T, T) -> T) -> Self {
        for (a, b) in self.0.iter_mut().zip(&other.0) {
            *a = f(*a, *b);
        }
        self
    }
}

impl<T: Number> Add for Lanes<T> {
    type Output = Self;
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.with(other, |a, b| a + b)
    }
}

impl<T: Number> Sub for Lanes<T> {
    type Output = Self;
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.with(other, |a, b| a - b)
    }
}

impl<T: Number> Neg for Lanes<T> {
    type Output = Self;
    #[inline(always)]
    fn neg(self) -> Self {
        self.with(self, |a, _| -a)
    }
}

impl<T: Number> Mul<f64> for Lanes<T> {
    type Output = Self;
    #[inline(always)]
    fn mul(self, factor: f64) -> Self {
        self.with(self, |a, _| T::of(factor) * a)
    }
}

/// Creates a tile; `lanes` returns the elements of each position.
#[inline(always)]
fn tile_at<T: Number>(lanes: impl Fn(usize) -> Lanes<T>) -> [[Lanes<T>; 4]; 4] {
    let mut tile = [[Lanes::zero(); 4]; 4];
    for (place, to) in tile.as_flattened_mut().iter_mut().enumerate() {
        *to = lanes(place);
    }
    tile
}

/// Computes `F x F^T`, where `f` applies the matrix `F`.
#[inline(always)]
fn on_both_sides<T: Number, const N: usize, const M: usize>(
    x: [[Lanes<T>; N]; N],
    f: impl Fn([Lanes<T>; N]) -> [Lanes<T>; M],
) -> [[Lanes<T>; M]; M] {
    let (mut rows, mut all) = ([[Lanes::zero(); M]; N], [[Lanes::zero(); M]; M]);
    for (to, row) in rows.iter_mut().zip(x) {
        *to = f(row);
    }
    for column in 0..M {
        let mut from = [Lanes::zero(); N];
        for (from, row) in from.iter_mut().zip(&rows) {
            *from = row[column];
        }
        for (to, lanes) in all.iter_mut().zip(f(from)) {
            to[column] = lanes;
        }
    }
    all
}

/// Applies `B^T`.
#[inline(always)]
fn pixels<T: Number>([a, b, c, d]: [Lanes<T>; 4]) -> [Lanes<T>; 4] {
    [a - c, b + c, c - b, b - d]
}

/// Applies `B`.
#[inline(always)]
fn pixels_back<T: Number>([a, b, c, d]: [Lanes<T>; 4]) -> [Lanes<T>; 4] {
    [a, b - c + d, b + c - a, -d]
}

/// Applies `G`.
#[inline(always)]
fn weights_of<T: Number>([a, b, c]: [Lanes<T>; 3]) -> [Lanes<T>; 4] {
    let (outer, inner) = ((a + c) * 0.5, b * 0.5);
    [a, outer + inner, outer - inner, c]
}

/// Applies `G^T`.
#[inline(always)]
fn weights_back<T: Number>([a, b, c, d]: [Lanes<T>; 4]) -> [Lanes<T>; 3] {
    [a + (b + c) * 0.5, (b - c) * 0.5, (b + c) * 0.5 + d]
}

/// Applies `A^T`.
#[inline(always)]
fn outputs_of<T: Number>([a, b, c, d]: [Lanes<T>; 4]) -> [Lanes<T>; 2] {
    [a + b + c, b - c - d]
}

/// Applies `A`.
#[inline(always)]
fn outputs_back<T: Number>([a, b]: [Lanes<T>; 2]) -> [Lanes<T>; 4] {
    [a, a + b, a - b, -b]
}
