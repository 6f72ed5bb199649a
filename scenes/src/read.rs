//! Recognises the objects in a picture analytically, without a network and without training images.
//!
//!   1. fit each pixel as background + share (color - background), with the color that leaves the smallest error
//!   2. connected pixels with share > 0.4 are an object or a speck; the color with the largest sum of shares wins
//!   3. render every shape and size at the same centre of mass; the object is the one nearest to the shares
//!   4. a group is all objects of one kind; two groups are related along the axis in which their centres differ more

use crate::scene::{BACKGROUND, coverage, middle};
use crate::{Color, Description, Group, Kind, MAX_COUNT, Object, Relation, Shape, Size};
use std::collections::BTreeMap;

/// A pixel belongs to an object if more than this share of it is covered.
const COVERED: f32 = 0.4;
/// A region that covers less than this fraction of the smallest shape's area is a speck, not an object.
const SPECK: f64 = 0.4;
/// A region is strange if its squared difference from the nearest rendered shape exceeds this fraction of the
/// shape's sum of squares.
const STRANGE: f64 = 0.5;

/// The content that was recognised in a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// The objects, in raster order of their first pixel.
    pub objects: Vec<Object>,
    /// Number of further objects that match no shape and size.
    pub strange: usize,
}

impl Reading {
    /// Returns the [canonical](Description::canonical) description. Returns `None` if no caption describes the
    /// picture: it has strange objects, no objects, more than two kinds, or too many objects of one kind.
    pub fn description(&self) -> Option<Description> {
        let mut groups: BTreeMap<Kind, Vec<Object>> = BTreeMap::new();
        self.objects.iter().for_each(|object| groups.entry(object.kind).or_default().push(*object));
        if self.strange > 0 || groups.values().any(|objects| objects.len() > MAX_COUNT) {
            return None;
        }
        let groups: Vec<(Kind, Vec<Object>)> = groups.into_iter().collect();
        let group = |(kind, objects): &(Kind, Vec<Object>)| Group { count: objects.len(), kind: *kind };
        match &groups[..] {
            [only] => Some(Description { first: group(only), second: None }),
            [a, b] => {
                let second = Some((relation(&a.1, &b.1), group(b)));
                Some(Description { first: group(a), second }.canonical())
            }
            _ => None,
        }
    }

    /// Returns the position of the objects of kind `first` relative to kind `second`; `None` if either kind is
    /// missing.
    pub fn relation(&self, first: Kind, second: Kind) -> Option<Relation> {
        let of = |kind| self.objects.iter().copied().filter(|object| object.kind == kind).collect::<Vec<_>>();
        let (first, second) = (of(first), of(second));
        (!first.is_empty() && !second.is_empty()).then(|| relation(&first, &second))
    }
}

fn relation(first: &[Object], second: &[Object]) -> Relation {
    let apart = [0, 1].map(|axis| middle(second)[axis] - middle(first)[axis]);
    match (apart[0].abs() >= apart[1].abs(), apart[0] >= 0.0, apart[1] >= 0.0) {
        (true, true, _) => Relation::LeftOf,
        (true, false, _) => Relation::RightOf,
        (false, _, true) => Relation::Above,
        (false, _, false) => Relation::Below,
    }
}

/// Recognises the objects in a picture `[3, side, side]`, nominally in [-1, 1]. On pictures of
/// [`Scene::render`](crate::Scene::render) the result is correct from 24 pixels on, and it tolerates noise.
///
/// # Panics
/// If the picture does not have `3 side^2` values.
pub fn read(picture: &[f32], side: usize) -> Reading {
    assert_eq!(picture.len(), 3 * side * side, "a picture is [3, side, side]");
    let pixel = |i: usize| [0, 1, 2].map(|channel| picture[channel * side * side + i] - BACKGROUND);
    let fits: Vec<(Color, f32)> = (0..side * side).map(|i| fit(pixel(i))).collect();
    let labels = components(&fits.iter().map(|(_, share)| *share > COVERED).collect::<Vec<_>>(), side);
    let mut reading = Reading { objects: Vec::new(), strange: 0 };
    for label in 1..=labels.iter().copied().max().unwrap_or(0) {
        let own: Vec<usize> = (0..side * side).filter(|i| labels[*i] == label).collect();
        let area: f64 = own.iter().map(|i| f64::from(fits[*i].1)).sum();
        if area < SPECK * 0.55 * (Size::Small.side() * side as f64).powi(2) {
            continue;
        }
        let votes = |color: Color| own.iter().filter(|i| fits[**i].0 == color).map(|i| fits[*i].1).sum::<f32>();
        let color = *Color::ALL.iter().max_by(|a, b| votes(**a).total_cmp(&votes(**b))).expect("there are colors");
        // The shares of the object and of its surroundings, which contain its soft edge. Pixels of other
        // objects count as 0.
        let around = around(&own, side);
        let shares: Vec<(usize, f32)> = around
            .into_iter()
            .map(|i| (i, if labels[i] == label || labels[i] == 0 { share(pixel(i), color) } else { 0.0 }))
            .collect();
        match nearest(&shares, color, side) {
            Some(object) => reading.objects.push(object),
            None => reading.strange += 1,
        }
    }
    reading
}

/// Computes the share of a color in a pixel. The pixel is relative to the background.
fn share(pixel: [f32; 3], color: Color) -> f32 {
    let color = color.rgb().map(|v| v - BACKGROUND);
    let dot = |a: [f32; 3], b: [f32; 3]| a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
    dot(pixel, color) / dot(color, color)
}

/// Returns the color that fits a pixel best, and its share.
fn fit(pixel: [f32; 3]) -> (Color, f32) {
    let left = |color: Color| {
        let share = share(pixel, color).clamp(0.0, 1.0);
        let left = |(p, c): (f32, f32)| (p - share * (c - BACKGROUND)).powi(2);
        pixel.into_iter().zip(color.rgb()).map(left).sum::<f32>()
    };
    let color = *Color::ALL.iter().min_by(|a, b| left(**a).total_cmp(&left(**b))).expect("there are colors");
    (color, share(pixel, color).clamp(0.0, 1.0))
}

/// Labels the 4-connected regions of set pixels from 1, in raster order. Other pixels have the label 0.
fn components(set: &[bool], side: usize) -> Vec<usize> {
    let mut labels = vec![0; set.len()];
    let mut count = 0;
    for start in 0..set.len() {
        if !set[start] || labels[start] > 0 {
            continue;
        }
        count += 1;
        labels[start] = count;
        let mut open = vec![start];
        while let Some(i) = open.pop() {
            let (x, y) = (i % side, i / side);
            let beside = [
                (x > 0).then(|| i - 1),
                (x + 1 < side).then_some(i + 1),
                (y > 0).then(|| i - side),
                (y + 1 < side).then_some(i + side),
            ];
            for j in beside.into_iter().flatten().filter(|j| set[*j]) {
                if labels[j] == 0 {
                    labels[j] = count;
                    open.push(j);
                }
            }
        }
    }
    labels
}

/// Returns the pixels of the bounding box of `own`, extended by one pixel on each side.
fn around(own: &[usize], side: usize) -> Vec<usize> {
    let range = |of: fn(usize, usize) -> usize| {
        let all = own.iter().map(|i| of(*i, side));
        let (low, high) = (all.clone().min().unwrap_or(0), all.max().unwrap_or(0));
        low.saturating_sub(1)..=(high + 1).min(side - 1)
    };
    let (rows, columns) = (range(|i, side| i / side), range(|i, side| i % side));
    rows.flat_map(|y| columns.clone().map(move |x| y * side + x)).collect()
}

/// Returns the object whose rendering is nearest to the shares; `None` if the difference is too large.
fn nearest(shares: &[(usize, f32)], color: Color, side: usize) -> Option<Object> {
    let mass: f64 = shares.iter().map(|(_, share)| f64::from(*share)).sum();
    let mean = |of: fn(usize, usize) -> usize| {
        let moment = |(i, share): &(usize, f32)| f64::from(*share) * (of(*i, side) as f64 + 0.5);
        shares.iter().map(moment).sum::<f64>() / mass / side as f64
    };
    let [x, y] = [mean(|i, side| i % side), mean(|i, side| i / side)];
    let given: BTreeMap<usize, f32> = shares.iter().copied().collect();
    let given_energy: f64 = given.values().map(|share| f64::from(share * share)).sum();
    let mut best: Option<(f64, f64, Object)> = None;
    for (shape, size) in Shape::ALL.iter().flat_map(|shape| Size::ALL.iter().map(move |size| (*shape, *size))) {
        let center = [x, y - shape.sag() * size.side()];
        let (mut energy, mut apart) = (0.0, given_energy);
        coverage(shape, size, center, side, |pixel, drawn| {
            let given = given.get(&pixel).copied().unwrap_or(0.0);
            energy += f64::from(drawn * drawn);
            apart += f64::from((given - drawn).powi(2) - given * given);
        });
        if best.is_none_or(|(least, ..)| apart < least) {
            best = Some((apart, energy, Object { kind: Kind { size, color, shape }, center }));
        }
    }
    best.filter(|(apart, energy, _)| *apart <= STRANGE * energy).map(|(.., object)| object)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Scene, Vocabulary};
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use rand_distr::{Distribution, StandardNormal};

    fn scene(seed: u64) -> Scene {
        let (shapes, colors, sizes) = (Shape::ALL.to_vec(), Color::ALL.to_vec(), Size::ALL.to_vec());
        let all = Vocabulary { shapes, colors, sizes, max_count: 3, groups: 2 };
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let description = all.describe(&mut random);
        Scene::place(description, &mut random)
    }

    /// Returns the share of 2,000 random scenes whose description is recognised exactly, with Gaussian noise
    /// on every value.
    fn right(side: usize, noise: f32) -> f64 {
        let right = |seed: &u64| {
            let (scene, mut random) = (scene(*seed), ChaCha8Rng::seed_from_u64(!seed));
            let mut picture = scene.render(side);
            for value in &mut picture {
                let normal: f32 = StandardNormal.sample(&mut random);
                *value += noise * normal;
            }
            read(&picture, side).description() == Some(scene.description.canonical())
        };
        let share = (0..2000).filter(right).count() as f64 / 2000.0;
        println!("{side} pixels, noise {noise}: {share}");
        share
    }

    #[test]
    fn captions_are_read_back_at_every_resolution() {
        for side in [24, 32, 48, 64] {
            assert!(right(side, 0.0) >= 0.995);
        }
    }

    #[test]
    fn captions_are_read_back_through_noise() {
        for side in [24, 32, 48, 64] {
            assert!(right(side, 0.1) >= 0.97);
        }
    }

    #[test]
    fn pictures_that_no_caption_describes_have_no_description() {
        let described = |picture: &[f32]| read(picture, 32).description();
        assert_eq!(described(&[BACKGROUND; 3 * 32 * 32]), None);
        assert_eq!(described(&[1.0; 3 * 32 * 32]), None);
        // A red bar across the whole picture is one strange object.
        let mut bar = vec![BACKGROUND; 3 * 32 * 32];
        bar[32 * 10..32 * 16].fill(1.0);
        assert_eq!(read(&bar, 32), Reading { objects: Vec::new(), strange: 1 });
        // A speck is ignored.
        let mut speck = scene(3).render(32);
        let before = read(&speck, 32);
        speck[0] = 1.0;
        assert_eq!(read(&speck, 32), before);
    }

    #[test]
    fn a_missing_group_has_no_relation() {
        let kind = |color| Kind { size: Size::Small, color, shape: Shape::Circle };
        let object = |color, center| Object { kind: kind(color), center };
        let objects = vec![object(Color::Red, [0.2, 0.5]), object(Color::Blue, [0.8, 0.4])];
        let reading = Reading { objects, strange: 0 };
        assert_eq!(reading.relation(kind(Color::Red), kind(Color::Blue)), Some(Relation::LeftOf));
        assert_eq!(reading.relation(kind(Color::Blue), kind(Color::Red)), Some(Relation::RightOf));
        assert_eq!(reading.relation(kind(Color::Green), kind(Color::Red)), None);
    }
}
