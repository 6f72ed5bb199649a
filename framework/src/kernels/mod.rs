//! Fused kernels of the CPU backend, with their backward passes. The layers of [`crate::nn`] run on them.
//!
//! A layer calls its kernel first. The kernel returns `None` on another backend or for an unsupported data
//! type; the layer then composes the same function from tensor operations. The tests below compare both forms.
//!
//! A kernel divides its work by shape alone and adds partial sums in a fixed order, so its result is
//! bit-identical for every run and every number of threads.
//!
//! To add a kernel: implement [`Fused`] on slices of [`Number`], call it from the layer, and give it a test of
//! its own.

mod affine;
mod attention;
mod bf16;
mod conv;
mod likelihood;
mod math;
mod matrix;
mod norm;
mod pointwise;
mod rotary;
mod unit;
mod update;

pub(crate) use affine::Affine;
pub(crate) use attention::{Attend, AttendPacked};
pub(crate) use bf16::Narrow;
pub(crate) use conv::Convolve;
pub(crate) use likelihood::LogProbability;
pub(crate) use math::chunks;
pub(crate) use matrix::Rounding;
pub use norm::GroupNormConfig;
pub(crate) use norm::{GatedAdd, GroupNormalize, Normalize};
pub use pointwise::Activation;
pub(crate) use pointwise::{Activate, Gate, GatePair};
pub(crate) use rotary::Turn;
pub(crate) use unit::{SHORTEST, UnitHeads};
pub(crate) use update::{AdamwStep, adamw, lerp, square_sum};

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::{FlexTensor, Layout};
use burn::backend::tensor::FloatTensor;
use burn::backend::{
    Autodiff, BackendTensor, DispatchAutodiffContext, DispatchTensor, DispatchTensorKind, Flex, TensorMetadata,
};
use burn::tensor::{Bool, Bytes, DType, Int, Shape, Tensor};
use math::Number;
use std::fmt::Debug;
use std::marker::PhantomData;
use std::sync::Arc;

/// A function of `N` CPU tensors with its derivative.
pub(crate) trait Fused<const N: usize>: Clone + Debug + Send + 'static {
    /// Results of the forward pass that the backward pass needs in addition to the inputs.
    type Saved: Clone + Debug + Send + 'static;
    /// Which inputs the backward pass needs. They are kept by reference and are not converted: bf16 stays bf16.
    const NEEDED: [bool; N] = [true; N];

    /// Computes the output and the values to save for the backward pass.
    fn forward<T: Number>(&self, inputs: [FlexTensor; N]) -> (FlexTensor, Self::Saved);

    /// Computes the gradient of each `wanted` input from the gradient of the output. An input that is not in
    /// [`Fused::NEEDED`] is an empty tensor.
    fn backward<T: Number>(
        &self,
        inputs: [FlexTensor; N],
        saved: Self::Saved,
        grad: FlexTensor,
        wanted: [bool; N],
    ) -> [Option<FlexTensor>; N];

    /// Calls [`Fused::forward`] on inputs of `dtype`; bf16 is computed in f32.
    fn forward_any(&self, dtype: DType, inputs: [FlexTensor; N]) -> (FlexTensor, Self::Saved) {
        let inputs = inputs.map(bf16::widened);
        let (output, saved) = match dtype {
            DType::F64 => self.forward::<f64>(inputs),
            _ => self.forward::<f32>(inputs),
        };
        (bf16::narrowed(output, dtype), saved)
    }

    /// Calls [`Fused::backward`] for inputs of `dtype`.
    fn backward_any(
        &self,
        dtype: DType,
        inputs: [FlexTensor; N],
        saved: Self::Saved,
        grad: FlexTensor,
        wanted: [bool; N],
    ) -> [Option<FlexTensor>; N] {
        let (inputs, grad) = (inputs.map(bf16::widened), bf16::widened(grad));
        let of_inputs = match dtype {
            DType::F64 => self.backward::<f64>(inputs, saved, grad, wanted),
            _ => self.backward::<f32>(inputs, saved, grad, wanted),
        };
        of_inputs.map(|grad| grad.map(|grad| bf16::narrowed(grad, dtype)))
    }
}

/// Returns a tensor of any rank as the handle that kernels take.
pub(crate) fn handle<const D: usize>(x: &Tensor<D>) -> DispatchTensor {
    x.clone().into_dispatch()
}

/// Generates one non-generic entry point per kernel and arity; each returns `None` when [`run`] does. Layers
/// are generic over tensor rank; calling the generic `run` from them would monomorphise every kernel again in
/// each plugin crate.
macro_rules! entries {
    ($($name:ident: $op:ty, $inputs:literal;)*) => {
        $(pub(crate) fn $name(op: $op, inputs: [DispatchTensor; $inputs]) -> Option<DispatchTensor> {
            run(op, inputs)
        })*
    };
}
entries! {
    activate: Activate, 1;
    gate: Gate, 1;
    gate_pair: GatePair, 2;
    normalize: Normalize, 1;
    normalize_scaled: Normalize, 2;
    normalize_affine: Normalize, 3;
    group_normalize: GroupNormalize, 3;
    gated_add: GatedAdd, 3;
    linear: Affine, 2;
    affine: Affine, 3;
    convolve: Convolve, 3;
    attend: Attend, 3;
    attend_packed: AttendPacked, 1;
    turn: Turn, 1;
    unit_heads: UnitHeads, 2;
    log_probability: LogProbability, 1;
    narrow: Narrow, 1;
}

/// Returns the data type of the inputs if all of them are on the CPU backend and have the same supported type.
fn common(inputs: &[DispatchTensor]) -> Option<DType> {
    let dtype = inputs[0].dtype();
    let has_kernel = matches!(dtype, DType::F32 | DType::F64 | DType::BF16);
    (has_kernel && inputs.iter().all(|input| input.dtype() == dtype && on_cpu(&input.kind))).then_some(dtype)
}

/// Runs `op`. Returns `None` if there is no kernel for the inputs.
fn run<const N: usize, F: Fused<N>>(op: F, inputs: [DispatchTensor; N]) -> Option<DispatchTensor> {
    let dtype = common(&inputs)?;
    let context = inputs.iter().fold(DispatchAutodiffContext::Disabled, |all, input| all.merge(input.autodiff));
    let kind = if context == DispatchAutodiffContext::Disabled {
        let output = op.forward_any(dtype, inputs.map(|input| plain(input.kind))).0;
        DispatchTensorKind::Flex(BackendTensor::Float(output))
    } else {
        let inputs = inputs.map(|input| lifted(input.kind));
        let nodes = inputs.each_ref().map(|input| input.node());
        let inputs = inputs.map(|input| input.into_primitive());
        let kept = std::array::from_fn(|i| if F::NEEDED[i] { inputs[i].clone() } else { nothing() });
        let (output, saved) = op.forward_any(dtype, inputs);
        let output = match Step(PhantomData).prepare::<NoCheckpointing>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => prepared.finish((op, dtype, kept, saved), output),
            OpsKind::UnTracked(prepared) => prepared.finish(output),
        };
        DispatchTensorKind::Autodiff(Box::new(DispatchTensorKind::Flex(BackendTensor::Autodiff(output))))
    };
    Some(DispatchTensor { kind, autodiff: context })
}

/// Returns an empty tensor.
fn nothing() -> FlexTensor {
    tensor::<f32>(Vec::new(), Shape::new([0]))
}

/// Returns whether a tensor is on the CPU backend, tracked by autodiff or not.
fn on_cpu(kind: &DispatchTensorKind) -> bool {
    match kind {
        DispatchTensorKind::Flex(_) => true,
        DispatchTensorKind::Autodiff(inner) => on_cpu(inner),
        #[allow(unreachable_patterns)] // There is no other kind if the CPU is the only backend.
        _ => false,
    }
}

/// Returns a mask with one byte per element. Returns `None` on another backend or for another element size.
pub(crate) fn bytes(mask: &Tensor<4, Bool>) -> Option<FlexTensor> {
    constant(mask.clone().into_dispatch().kind).filter(|mask| mask.dtype().size() == 1)
}

/// Returns a constant table, row-major. Returns `None` on another backend.
pub(crate) fn table<const D: usize>(x: &Tensor<D>) -> Option<FlexTensor> {
    constant(x.clone().into_dispatch().kind).map(|table| bf16::widened(table.to_contiguous()))
}

/// Returns the indices in row-major order. Returns `None` on another backend.
pub(crate) fn indices<const D: usize>(x: &Tensor<D, Int>) -> Option<Arc<[usize]>> {
    let x = constant(x.clone().into_dispatch().kind)?.to_contiguous();
    match x.dtype() {
        DType::I64 => Some(x.as_slice::<i64>()?.iter().map(|i| *i as usize).collect()),
        DType::I32 => Some(x.as_slice::<i32>()?.iter().map(|i| *i as usize).collect()),
        _ => None,
    }
}

/// Returns the CPU tensor if autodiff does not track it.
fn constant(kind: DispatchTensorKind) -> Option<FlexTensor> {
    match kind {
        DispatchTensorKind::Flex(BackendTensor::Bool(x) | BackendTensor::Int(x) | BackendTensor::Float(x)) => Some(x),
        DispatchTensorKind::Autodiff(inner) => constant(*inner),
        _ => None,
    }
}

fn plain(kind: DispatchTensorKind) -> FlexTensor {
    match kind {
        DispatchTensorKind::Flex(BackendTensor::Autodiff(tracked)) => tracked.into_primitive(),
        DispatchTensorKind::Flex(tensor) => tensor.float(),
        DispatchTensorKind::Autodiff(inner) => plain(*inner),
        #[allow(unreachable_patterns)]
        other => unreachable!("{other:?} is not a CPU tensor"),
    }
}

fn lifted(kind: DispatchTensorKind) -> FloatTensor<Autodiff<Flex>> {
    match kind {
        DispatchTensorKind::Flex(BackendTensor::Autodiff(tracked)) => tracked,
        DispatchTensorKind::Autodiff(inner) => lifted(*inner),
        constant => FloatTensor::<Autodiff<Flex>>::new(plain(constant)),
    }
}

/// A fused operation on the autodiff tape.
#[derive(Debug)]
struct Step<F>(PhantomData<F>);

impl<const N: usize, F: Fused<N>> Backward<Flex, N> for Step<F> {
    type State = (F, DType, [FlexTensor; N], F::Saved);

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node);
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let (op, dtype, inputs, saved) = ops.state;
        let of_inputs = op.backward_any(dtype, inputs, saved, grad, wanted);
        for (parent, grad) in ops.parents.into_iter().zip(of_inputs) {
            if let Some(parent) = parent {
                grads.register::<Flex>(parent.id, grad.expect("the kernel returns a gradient for every wanted input"));
            }
        }
    }
}

/// Returns the width of a head if each row of `width` elements holds queries, then keys, then values.
fn width_of_head(width: usize, heads: usize) -> usize {
    assert!(
        heads > 0 && width.is_multiple_of(3 * heads),
        "cannot split rows of width {width} into queries, keys and values of {heads} heads"
    );
    width / 3 / heads
}

/// Returns a row-major tensor; copies the elements if their layout differs.
fn dense<T: Number>(x: FlexTensor) -> FlexTensor {
    if x.as_slice::<T>().is_some() { x } else { x.to_contiguous() }
}

/// Returns a row-major tensor whose storage holds exactly its elements; copies them otherwise.
fn whole<T: Number>(x: FlexTensor) -> FlexTensor {
    let all = x.is_contiguous() && x.storage::<T>().len() == x.shape().num_elements();
    if all { x } else { x.to_contiguous() }
}

/// Returns the elements of a tensor that [`dense`] returned.
fn numbers<T: Number>(x: &FlexTensor) -> &[T] {
    x.as_slice().expect("the tensor is dense and its elements have type `T`")
}

/// Creates a row-major tensor from `values`.
fn tensor<T: Number>(values: Vec<T>, shape: Shape) -> FlexTensor {
    assert_eq!(values.len(), shape.num_elements(), "element count of shape {shape:?}");
    FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(shape), T::DTYPE)
}

#[cfg(test)]
mod tests;
