//! Places the objects of a scene and renders the picture.
//!
//!   picture = background + coverage (color - background),   coverage = share of a pixel's 8x8 points inside the shape
//!
//! Bounding boxes keep the distance [`GAP`] from each other and [`MARGIN`] from the edge. The objects of a
//! group are in a row along one axis, with random positions along the other. Two groups have separate bands
//! along the axis of their relation.

use crate::{Description, Group, Kind, Shape, Size};
use rand::{Rng, RngExt};

/// Smallest distance from an object to the edge, in units of the picture's side.
const MARGIN: f64 = 0.02;
/// Smallest distance between the bounding boxes of two objects, in units of the picture's side.
const GAP: f64 = 0.06;
/// Smallest ratio of the distance between two groups along the axis of their relation to the distance along
/// the other axis.
const CLEAR: f64 = 1.5;
/// Number of sample points along one side of a pixel. The share of points inside a shape is the coverage.
const POINTS: usize = 8;
/// Red, green and blue of the background.
pub(crate) const BACKGROUND: f32 = -1.0;

/// One object of a scene.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Object {
    /// Size, colour and shape.
    pub kind: Kind,
    /// Centre of the bounding box: x to the right, y downwards, in units of the picture's side.
    pub center: [f64; 2],
}

/// A description with a position for every object.
#[derive(Clone, Debug, PartialEq)]
pub struct Scene {
    /// Content of the scene.
    pub description: Description,
    /// Objects of the scene, beginning with the first group.
    pub objects: Vec<Object>,
}

impl Scene {
    /// Chooses random positions for the objects of a description.
    pub fn place(description: Description, random: &mut impl Rng) -> Self {
        let free = [MARGIN, 1.0 - MARGIN];
        let Some((relation, second)) = description.second else {
            let axis = random.random_range(0..2);
            return Self { description, objects: stack(description.first, axis, free, random) };
        };
        let axis = relation.axis();
        let (near, far) =
            if relation.first_is_near() { (description.first, second) } else { (second, description.first) };
        let thick = |group: Group| extent(group.kind)[axis];
        loop {
            let split = random.random_range(free[0] + thick(near)..free[1] - thick(far) - GAP);
            let near = stack(near, 1 - axis, [free[0], split], random);
            let far = stack(far, 1 - axis, [split + GAP, free[1]], random);
            let apart = [0, 1].map(|axis| (middle(&far)[axis] - middle(&near)[axis]).abs());
            if apart[axis] >= CLEAR * apart[1 - axis] {
                let objects = if relation.first_is_near() { [near, far] } else { [far, near] }.concat();
                return Self { description, objects };
            }
        }
    }

    /// Renders the picture `[3, side, side]` in [-1, 1].
    pub fn render(&self, side: usize) -> Vec<f32> {
        let mut picture = vec![BACKGROUND; 3 * side * side];
        for object in &self.objects {
            let Object { kind: Kind { size, color, shape }, center } = *object;
            coverage(shape, size, center, side, |pixel, share| {
                for (channel, color) in color.rgb().into_iter().enumerate() {
                    picture[channel * side * side + pixel] += share * (color - BACKGROUND);
                }
            });
        }
        picture
    }
}

/// Returns width and height of the bounding box of an object, in units of the picture's side.
fn extent(kind: Kind) -> [f64; 2] {
    kind.shape.extent().map(|extent| extent * kind.size.side())
}

/// Places the objects of a group one after another along `axis`, and anywhere in `band` along the other axis.
fn stack(group: Group, axis: usize, band: [f64; 2], random: &mut impl Rng) -> Vec<Object> {
    let Group { count, kind } = group;
    let extent = extent(kind);
    let (long, across) = (extent[axis], extent[1 - axis]);
    let slack = 1.0 - 2.0 * MARGIN - count as f64 * (long + GAP) + GAP;
    let mut shifts: Vec<f64> = (0..count).map(|_| slack * random.random::<f64>()).collect();
    shifts.sort_by(f64::total_cmp);
    let place = |(i, shift): (usize, f64)| {
        let mut center = [0.0; 2];
        center[axis] = MARGIN + shift + i as f64 * (long + GAP) + long / 2.0;
        center[1 - axis] = band[0] + across / 2.0 + (band[1] - band[0] - across) * random.random::<f64>();
        Object { kind, center }
    };
    shifts.into_iter().enumerate().map(place).collect()
}

/// Computes the mean of the centres.
pub(crate) fn middle(objects: &[Object]) -> [f64; 2] {
    [0, 1].map(|axis| objects.iter().map(|object| object.center[axis]).sum::<f64>() / objects.len() as f64)
}

/// Calls `each` with the index of every pixel that a shape touches, and the share of the pixel that it covers.
pub(crate) fn coverage(shape: Shape, size: Size, center: [f64; 2], side: usize, mut each: impl FnMut(usize, f32)) {
    let unit = size.side();
    let range = |axis: usize| {
        let half = shape.extent()[axis] * unit / 2.0;
        let pixel = |at: f64| (at * side as f64).clamp(0.0, side as f64);
        pixel(center[axis] - half).floor() as usize..pixel(center[axis] + half).ceil() as usize
    };
    // Position of sample point `i` of a pixel relative to the centre of the shape, in units of the shape's
    // size.
    let point = |pixel: usize, i: usize, axis: usize| {
        ((pixel as f64 + (i as f64 + 0.5) / POINTS as f64) / side as f64 - center[axis]) / unit
    };
    for y in range(1) {
        for x in range(0) {
            let inside =
                (0..POINTS * POINTS).filter(|i| shape.holds(point(x, i % POINTS, 0), point(y, i / POINTS, 1))).count();
            if inside > 0 {
                each(y * side + x, inside as f32 / (POINTS * POINTS) as f32);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Color, Vocabulary};
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    fn vocabulary(sizes: &[Size]) -> Vocabulary {
        let (shapes, colors, sizes) = (Shape::ALL.to_vec(), Color::ALL.to_vec(), sizes.to_vec());
        Vocabulary { shapes, colors, sizes, max_count: 3, groups: 2 }
    }

    proptest! {
        #[test]
        fn objects_lie_inside_and_apart_and_groups_in_their_relation(seed in any::<u64>(), large in any::<bool>()) {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            let sizes = if large { &[Size::Large] } else { Size::ALL };
            let scene = Scene::place(vocabulary(sizes).describe(&mut random), &mut random);
            let count: usize = scene.description.groups().map(|group| group.count).sum();
            prop_assert_eq!(scene.objects.len(), count);
            let half = |object: &Object, axis: usize| extent(object.kind)[axis] / 2.0;
            for (i, a) in scene.objects.iter().enumerate() {
                for axis in 0..2 {
                    let (low, high) = (a.center[axis] - half(a, axis), a.center[axis] + half(a, axis));
                    prop_assert!(low >= MARGIN - 1e-9 && high <= 1.0 - MARGIN + 1e-9, "{:?}", a);
                }
                for b in &scene.objects[..i] {
                    let gap = |axis: usize| (a.center[axis] - b.center[axis]).abs() - half(a, axis) - half(b, axis);
                    prop_assert!(gap(0).max(gap(1)) >= GAP - 1e-9, "{:?} {:?}", a, b);
                }
            }
            if let Some((relation, _)) = scene.description.second {
                let (first, second) = scene.objects.split_at(scene.description.first.count);
                let (axis, sign) = (relation.axis(), if relation.first_is_near() { 1.0 } else { -1.0 });
                let apart = [0, 1].map(|axis| middle(second)[axis] - middle(first)[axis]);
                prop_assert!(sign * apart[axis] >= CLEAR * apart[1 - axis].abs());
            }
        }
    }

    #[test]
    fn pictures_are_in_range_and_cover_the_area_of_their_shapes() {
        let areas = [std::f64::consts::PI / 4.0, 1.0, 0.55];
        for (shape, area) in Shape::ALL.iter().zip(areas) {
            let kind = Kind { size: Size::Large, color: Color::Red, shape: *shape };
            let description = Description { first: Group { count: 1, kind }, second: None };
            let picture = Scene::place(description, &mut ChaCha8Rng::seed_from_u64(1)).render(64);
            assert!(picture.iter().all(|v| (-1.0..=1.0).contains(v)));
            // In the red channel, the color red is 1.9 above the background.
            let covered: f64 = picture[..64 * 64].iter().map(|v| f64::from(v - BACKGROUND) / 1.9).sum();
            let expected = area * (0.25_f64 * 64.0).powi(2);
            assert!((covered / expected - 1.0).abs() < 0.02, "{shape:?} {covered} {expected}");
        }
    }
}
