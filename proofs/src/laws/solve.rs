//! Solver for the rest point of the training dynamics `d theta / d time = -gradient`, by Newton's method in f64.
//!
//! With stopped gradients, the update direction is not the gradient of any function, so there is no function to
//! minimise. Training converges to a stable zero of the gradient: one where every eigenvalue of the gradient's
//! derivative has a positive real part. An unstable zero is not an optimum.

use super::table::{Cases, Lookups};
use nalgebra::{DMatrix, DVector, Schur};
use petgraph::algo::tarjan_scc;
use petgraph::graph::DiGraph;
use petgraph::unionfind::UnionFind;
use std::collections::BTreeMap;

/// Maximum number of Newton steps.
const STEPS: i32 = 60;
/// Maximum length of the first step; the limit grows afterwards. Without it, Newton's step diverges where a sigmoid is
/// flat.
const FIRST: f64 = 4.0;
/// Maximum number of times that a step is halved because it does not reduce the gradient.
const HALVINGS: usize = 12;
/// Step size of the central differences that probe the derivative.
const PROBE: f64 = 1e-4;

/// Table elements that influence each other, and the derivative of their gradient.
struct Block {
    /// Indices of the elements in the table.
    at: Vec<usize>,
    derivative: DMatrix<f64>,
    /// Newton step.
    step: DVector<f64>,
    /// Largest absolute gradient before the step.
    gradient: f64,
    /// Largest absolute entry of the derivative.
    scale: f64,
}

/// Rest point of the table.
pub struct Rest {
    /// Elements of the table, row-major.
    pub values: Vec<f64>,
    /// Per element: length of the last Newton step, or 0 if the gradient vanishes.
    pub last: Vec<f64>,
    /// Per element: smallest real part of the eigenvalues of its derivative block, relative to the block's scale.
    /// Negative if the rest point is unstable.
    pub push: Vec<f64>,
}

/// Finds the rest point, starting from a table of zeros.
pub fn solve(cases: &Cases<'_>) -> Rest {
    let lookups = Lookups::default();
    let count = cases.rows.len() * cases.free;
    let mut values = vec![0.0; count];
    let mut gradient = cases.gradient(&values, &lookups);
    let mut colours = colours(cases, true);
    let mut blocks = Vec::new();
    for step in 0..STEPS {
        let mut derivative = probe(cases, &lookups, &values, &colours);
        if step == 0 && !agrees(cases, &lookups, &values, &derivative) {
            // The loss couples different inputs, as the likelihood of a whole sequence does. Probe one element per
            // world at a time.
            colours = self::colours(cases, false);
            derivative = probe(cases, &lookups, &values, &colours);
        }
        blocks = self::blocks(&gradient, &derivative);
        gradient = advance(cases, &lookups, &mut values, &blocks, FIRST * 1.5_f64.powi(step));
        if blocks.iter().all(|block| block.step.amax() < 1e-11 || block.gradient < 1e-15) {
            break;
        }
    }
    let (mut last, mut push) = (vec![0.0; count], vec![0.0; count]);
    for block in &blocks {
        // A non-zero gradient with a zero derivative never vanishes.
        let endless = block.scale == 0.0 && block.gradient > 1e-14;
        let at_rest = block.gradient < 1e-13;
        let step = match (endless, at_rest) {
            (true, _) => f64::INFINITY,
            (_, true) => 0.0,
            _ => block.step.amax(),
        };
        block.at.iter().for_each(|at| last[*at] = step);
        block.push_back(&mut push);
    }
    Rest { values, last, push }
}

/// Groups the elements that are probed together: at most one per world, or with `by_input` one per input of each world.
fn colours(cases: &Cases<'_>, by_input: bool) -> Vec<Vec<usize>> {
    let mut next = std::collections::HashMap::<(usize, usize), usize>::new();
    let mut colours: Vec<Vec<usize>> = Vec::new();
    for at in 0..cases.rows.len() * cases.free {
        let row = cases.rows[at / cases.free];
        let colour = next.entry((row.world, if by_input { row.input } else { 0 })).or_default();
        if *colour == colours.len() {
            colours.push(Vec::new());
        }
        colours[*colour].push(at);
        *colour += 1;
    }
    colours
}

/// Non-zero entries (row, column, value) of the derivative of the gradient.
type Entries = Vec<(usize, usize, f64)>;

fn probe(cases: &Cases<'_>, lookups: &Lookups, values: &[f64], colours: &[Vec<usize>]) -> Entries {
    // Each group contains one probed element per input (or per world), so that element causes any change of the
    // gradient there.
    let whole = colours.len() > 1 && !one_per_input(cases, colours);
    let group = |at: usize| {
        let row = cases.rows[at / cases.free];
        (row.world, if whole { 0 } else { row.input })
    };
    let mut entries = Entries::new();
    for colour in colours {
        let (mut up, mut down) = (values.to_vec(), values.to_vec());
        let mut column = std::collections::HashMap::new();
        for at in colour {
            up[*at] += PROBE;
            down[*at] -= PROBE;
            column.insert(group(*at), *at);
        }
        let (up, down) = (cases.gradient(&up, lookups), cases.gradient(&down, lookups));
        for (at, (up, down)) in up.iter().zip(&down).enumerate() {
            let change = (up - down) / (2.0 * PROBE);
            if change != 0.0
                && let Some(column) = column.get(&group(at))
            {
                entries.push((at, *column, change));
            }
        }
    }
    entries
}

fn one_per_input(cases: &Cases<'_>, colours: &[Vec<usize>]) -> bool {
    let inputs: std::collections::HashSet<(usize, usize)> =
        cases.rows.iter().map(|row| (row.world, row.input)).collect();
    colours.first().is_some_and(|first| first.len() == inputs.len())
}

/// Returns whether the entries are the complete derivative: they must predict how the gradient changes along an
/// irregular direction.
fn agrees(cases: &Cases<'_>, lookups: &Lookups, values: &[f64], entries: &Entries) -> bool {
    let direction: Vec<f64> = (0..values.len()).map(|i| (i as f64 * 0.754_877_666).fract() - 0.5).collect();
    let moved = |by: f64| -> Vec<f64> {
        let moved: Vec<f64> = values.iter().zip(&direction).map(|(v, d)| v + by * d).collect();
        cases.gradient(&moved, lookups)
    };
    let (up, down) = (moved(PROBE), moved(-PROBE));
    let mut said = vec![0.0; values.len()];
    entries.iter().for_each(|(row, column, value)| said[*row] += value * direction[*column]);
    let largest = entries.iter().fold(0.0_f64, |m, (.., value)| m.max(value.abs()));
    said.iter()
        .zip(up.iter().zip(&down))
        .all(|(said, (up, down))| (said - (up - down) / (2.0 * PROBE)).abs() <= 1e-4 * largest)
}

/// Splits the elements into blocks that influence each other, and computes the Newton step of each block.
fn blocks(gradient: &[f64], entries: &Entries) -> Vec<Block> {
    // Finite differences leave noise of about 1e-12 where the derivative is zero.
    let largest = entries.iter().fold(0.0_f64, |m, (.., value)| m.max(value.abs()));
    let mut joined = UnionFind::<usize>::new(gradient.len());
    for (row, column, value) in entries {
        if value.abs() > 1e-9 * largest {
            joined.union(*row, *column);
        }
    }
    let mut members = BTreeMap::<usize, Vec<usize>>::new();
    let mut place = vec![(0, 0); gradient.len()];
    for (at, place) in place.iter_mut().enumerate() {
        let root = joined.find(at);
        let block = members.entry(root).or_default();
        *place = (root, block.len());
        block.push(at);
    }
    let mut matrices: BTreeMap<usize, DMatrix<f64>> =
        members.iter().map(|(root, at)| (*root, DMatrix::zeros(at.len(), at.len()))).collect();
    for (row, column, value) in entries {
        if place[*row].0 == place[*column].0
            && let Some(matrix) = matrices.get_mut(&place[*row].0)
        {
            matrix[(place[*row].1, place[*column].1)] = *value;
        }
    }
    members
        .into_iter()
        .map(|(root, at)| {
            let derivative = matrices.remove(&root).expect("created above");
            let right = DVector::from_iterator(at.len(), at.iter().map(|i| -gradient[*i]));
            let scale = derivative.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
            // Damping keeps elements that nothing trains, whose derivative is zero, in place.
            let damped = &derivative + DMatrix::identity(at.len(), at.len()) * (scale * 1e-13 + 1e-300);
            let step = damped.lu().solve(&right).filter(|step| step.iter().all(|v| v.is_finite()));
            let step = step.unwrap_or_else(|| DVector::zeros(at.len()));
            Block { at, derivative, step, gradient: right.amax(), scale }
        })
        .collect()
}

/// Takes a Newton step in every block, halved until the block's gradient does not grow. Returns the new gradient.
fn advance(cases: &Cases<'_>, lookups: &Lookups, values: &mut [f64], blocks: &[Block], longest: f64) -> Vec<f64> {
    let before = values.to_vec();
    let mut length: Vec<f64> = blocks.iter().map(|block| (longest / block.step.amax()).min(1.0)).collect();
    for halving in 0.. {
        for (block, length) in blocks.iter().zip(&length) {
            for (i, step) in block.at.iter().zip(block.step.iter()) {
                values[*i] = before[*i] + step * length;
            }
        }
        let gradient = cases.gradient(values, lookups);
        let mut good = true;
        for (block, length) in blocks.iter().zip(&mut length) {
            let after = block.at.iter().fold(0.0_f64, |m, i| m.max(gradient[*i].abs()));
            // Below 1e-14 the gradient is rounding noise.
            if !(after <= block.gradient || after < 1e-14) {
                *length *= 0.5;
                good = false;
            }
        }
        if good || halving == HALVINGS {
            return gradient;
        }
    }
    unreachable!("the loop returns at the latest after `HALVINGS`")
}

impl Block {
    /// Computes for each element the smallest real part of the eigenvalues of its strongly connected component, divided
    /// by the block's scale.
    ///
    /// Elements that influence others without feedback (a teacher, a stopped branch) form their own component: the
    /// derivative is block triangular, so its eigenvalues are the eigenvalues of the diagonal blocks.
    fn push_back(&self, push: &mut [f64]) {
        if self.scale == 0.0 {
            return;
        }
        let mut graph = DiGraph::<(), ()>::new();
        let nodes: Vec<_> = self.at.iter().map(|_| graph.add_node(())).collect();
        for (row, column) in (0..nodes.len()).flat_map(|row| (0..nodes.len()).map(move |column| (row, column))) {
            if self.derivative[(row, column)].abs() > 1e-8 * self.scale {
                graph.add_edge(nodes[row], nodes[column], ());
            }
        }
        for entangled in tarjan_scc(&graph) {
            let entangled: Vec<usize> = entangled.into_iter().map(petgraph::graph::NodeIndex::index).collect();
            let n = entangled.len();
            let part = DMatrix::from_fn(n, n, |row, column| self.derivative[(entangled[row], entangled[column])]);
            // If the eigenvalues cannot be computed, the component counts as unstable.
            let least = Schur::try_new(part, 1e-12 * self.scale, 10_000).map_or(f64::NEG_INFINITY, |schur| {
                schur.complex_eigenvalues().iter().map(|value| value.re).fold(f64::INFINITY, f64::min)
            });
            entangled.into_iter().for_each(|i| push[self.at[i]] = least / self.scale);
        }
    }
}
