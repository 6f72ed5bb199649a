//! Fused kernels of the CPU backend, with their backward passes: what the layers of [`crate::nn`] run on where they can.
//!
//! A layer asks for its kernel. On another backend, or for a data type that has none, the answer is `None`, and
//! the layer composes the same function from tensor operations; the tests below hold both to one another. A kernel
//! divides its work by shapes alone and adds parts in a fixed order, so its bits depend neither on the run nor on the
//! number of threads.
//!
//! Adding one: implement [`Fused`] on slices of [`Number`], call it from the layer, and give it a test of its own.

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
pub(crate) use norm::{GatedAdd, GroupNormalize, Normalize};
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

/// A function of `N` tensors with its derivative, on the CPU.
pub(crate) trait Fused<const N: usize>: Clone + Debug + Send + 'static {
    /// What the backward pass needs of the forward pass beside the inputs.
    type Saved: Clone + Debug + Send + 'static;
    /// The inputs that the backward pass needs. They are kept by reference, bf16 as it is.
    const NEEDED: [bool; N] = [true; N];

    /// The output, and what is kept of it if a gradient is asked for.
    fn forward<T: Number>(&self, inputs: [FlexTensor; N]) -> (FlexTensor, Self::Saved);

    /// The gradient of each input that is `wanted`, from the output's. Inputs that are not needed are empty.
    fn backward<T: Number>(
        &self,
        inputs: [FlexTensor; N],
        saved: Self::Saved,
        grad: FlexTensor,
        wanted: [bool; N],
    ) -> [Option<FlexTensor>; N];

    /// [`Fused::forward`] on numbers of `dtype`: bf16 is computed in f32.
    fn forward_any(&self, dtype: DType, inputs: [FlexTensor; N]) -> (FlexTensor, Self::Saved) {
        let inputs = inputs.map(bf16::widened);
        let (output, saved) = match dtype {
            DType::F64 => self.forward::<f64>(inputs),
            _ => self.forward::<f32>(inputs),
        };
        (bf16::narrowed(output, dtype), saved)
    }

    /// [`Fused::backward`] for inputs of `dtype`.
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

/// A tensor of any rank, as kernels take it.
pub(crate) fn handle<const D: usize>(x: &Tensor<D>) -> DispatchTensor {
    x.clone().into_dispatch()
}

/// One function a kernel and number of inputs, `None` as [`run`] says. They are compiled here, once: layers are generic
/// over the rank, and would carry the kernels into every crate that calls one.
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

/// The data type of the inputs, if they are all on the CPU backend and all of one type that kernels are made for.
fn common(inputs: &[DispatchTensor]) -> Option<DType> {
    let dtype = inputs[0].dtype();
    let has_kernel = matches!(dtype, DType::F32 | DType::F64 | DType::BF16);
    (has_kernel && inputs.iter().all(|input| input.dtype() == dtype && on_cpu(&input.kind))).then_some(dtype)
}

/// Runs `op`; `None` where there is no kernel for the inputs.
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

/// A tensor without numbers.
fn nothing() -> FlexTensor {
    tensor::<f32>(Vec::new(), Shape::new([0]))
}

/// Whether a tensor is on the CPU backend, tracked or not.
fn on_cpu(kind: &DispatchTensorKind) -> bool {
    match kind {
        DispatchTensorKind::Flex(_) => true,
        DispatchTensorKind::Autodiff(inner) => on_cpu(inner),
        #[allow(unreachable_patterns)] // With the CPU as the only backend there is no other kind.
        _ => false,
    }
}

/// The numbers of a mask, one byte each; `None` if they are elsewhere or lie otherwise.
pub(crate) fn bytes(mask: &Tensor<4, Bool>) -> Option<FlexTensor> {
    constant(mask.clone().into_dispatch().kind).filter(|mask| mask.dtype().size() == 1)
}

/// The numbers of a table that nobody trains, row-major; `None` if they are elsewhere.
pub(crate) fn table<const D: usize>(x: &Tensor<D>) -> Option<FlexTensor> {
    constant(x.clone().into_dispatch().kind).map(|table| bf16::widened(table.to_contiguous()))
}

/// Indices as they lie; `None` if they are elsewhere.
pub(crate) fn indices<const D: usize>(x: &Tensor<D, Int>) -> Option<Arc<[usize]>> {
    let x = constant(x.clone().into_dispatch().kind)?.to_contiguous();
    match x.dtype() {
        DType::I64 => Some(x.as_slice::<i64>()?.iter().map(|i| *i as usize).collect()),
        DType::I32 => Some(x.as_slice::<i32>()?.iter().map(|i| *i as usize).collect()),
        _ => None,
    }
}

/// A tensor on the CPU that is not on the tape.
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
        other => unreachable!("{other:?} is not on the CPU"),
    }
}

fn lifted(kind: DispatchTensorKind) -> FloatTensor<Autodiff<Flex>> {
    match kind {
        DispatchTensorKind::Flex(BackendTensor::Autodiff(tracked)) => tracked,
        DispatchTensorKind::Autodiff(inner) => lifted(*inner),
        constant => FloatTensor::<Autodiff<Flex>>::new(plain(constant)),
    }
}

/// What the tape holds of a fused operation.
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
                grads.register::<Flex>(parent.id, grad.expect("a gradient for every input that wants one"));
            }
        }
    }
}

/// Width of a head where queries, keys and values lie side by side in rows of `width`.
fn width_of_head(width: usize, heads: usize) -> usize {
    assert!(heads > 0 && width.is_multiple_of(3 * heads), "rows of {width} in three parts of {heads} heads each");
    width / 3 / heads
}

/// The numbers of a tensor, row-major; copies those that lie otherwise.
fn dense<T: Number>(x: FlexTensor) -> FlexTensor {
    if x.as_slice::<T>().is_some() { x } else { x.to_contiguous() }
}

/// Row-major numbers that are all of their memory.
fn whole<T: Number>(x: FlexTensor) -> FlexTensor {
    let all = x.is_contiguous() && x.storage::<T>().len() == x.shape().num_elements();
    if all { x } else { x.to_contiguous() }
}

/// The numbers of a tensor that [`dense`] returned.
fn numbers<T: Number>(x: &FlexTensor) -> &[T] {
    x.as_slice().expect("a dense tensor of its own data type")
}

/// A tensor of new numbers, row-major.
fn tensor<T: Number>(values: Vec<T>, shape: Shape) -> FlexTensor {
    assert_eq!(values.len(), shape.num_elements(), "numbers of a tensor {shape:?}");
    FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(shape), T::DTYPE)
}

#[cfg(test)]
mod tests;
