//! A training objective: its loss, what it needs, and the distribution its minimiser samples.

use crate::backbone::Control;
use crate::condition::Condition;
use crate::error::Problems;
use crate::nn;
use crate::process::{Example, Family, Input, Process, Progress, divergence, squared_error};
use crate::random::tensor;
use burn::tensor::Tensor;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Debug;

/// What an objective needs from the pipeline. Checked before anything is built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// The network must know a null condition.
    pub null_condition: bool,
    /// The network must read a guidance number.
    pub guidance_input: bool,
    /// An exponential moving average of the weights, as teacher.
    pub ema: bool,
    /// A frozen copy of the weights the run starts from, or a teacher.
    pub reference: bool,
    /// Conditions that do not belong to the sample.
    pub negatives: bool,
    /// A number of classes to choose others from.
    pub classes: bool,
    /// The log-likelihood of samples, or a bound.
    pub likelihood: bool,
    /// The document's metrics, measured on samples during training.
    pub measurements: bool,
}

/// Numbers that an objective keeps from one measurement to the next. They are saved with the run.
pub type Memory = BTreeMap<String, f64>;

/// The distribution that the minimiser of an objective samples. The laws check it.
pub enum Optimum {
    /// `p(x | c)` and `p(x)`; guided at sampling by any rule.
    Conditional,
    /// One pass samples a tilted distribution.
    Tilted(Tilt),
    /// The descent from the conditional reference starts exactly along `conditional - unconditional`; where it ends has
    /// no closed form.
    Towards,
    /// There is no minimiser, and why.
    Unbounded(&'static str),
    /// A minimiser that no formula is known for, and why. The laws have nothing to check: say it in the documentation.
    Unstated(&'static str),
}

impl Optimum {
    /// The statement, as a person reads it.
    pub fn statement(&self) -> String {
        match self {
            Self::Conditional => "conditional and unconditional".into(),
            Self::Tilted(tilt) => {
                let of = if tilt.from == Of::Reference { "the reference" } else { "the data" };
                let against = match tilt.against {
                    Against::Null => String::new(),
                    Against::MeanOfClasses => ", against the mean of all classes".into(),
                    Against::MeanOfOtherClasses => ", against the mean of all other classes".into(),
                    Against::Others => ", against all other conditions".into(),
                    Against::Made { text, .. } => format!(", against {text}"),
                };
                let free = if tilt.free_normaliser { ", up to a factor of c" } else { "" };
                format!("{of} at scale {}{against}{free}", tilt.text)
            }
            Self::Towards => "descends from the reference along guidance".into(),
            Self::Unbounded(why) => format!("none: {why}"),
            Self::Unstated(why) => format!("no closed form: {why}"),
        }
    }
}

/// Where a tilt starts, and whose difference it follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// The training data.
    Data,
    /// The frozen reference.
    Reference,
}

/// What a condition is contrasted with.
#[derive(Clone, Copy, Debug)]
pub enum Against {
    /// The unconditional prediction.
    Null,
    /// The plain mean of the predictions of all classes.
    MeanOfClasses,
    /// The plain mean of the predictions of all other classes.
    MeanOfOtherClasses,
    /// The prediction for everything but the condition: `p(x | not c)`.
    Others,
    /// What an objective of its own makes of the conditional and the unconditional prediction of a sample.
    Made {
        /// In words, behind "against ".
        text: &'static str,
        /// From (conditional, unconditional).
        from: fn(&[f64], &[f64]) -> Vec<f64>,
    },
}

/// A scale as a function of the guidance number (if the network reads one) and of progress.
pub type ScaleAt = Box<dyn Fn(Option<f64>, f64) -> f64 + Send + Sync>;

/// `from(c) + (scale - 1) (of(c) - of(against))` in prediction space.
pub struct Tilt {
    /// The scale.
    pub scale: ScaleAt,
    /// The scale in words: `1 / beta`.
    pub text: String,
    /// What is tilted.
    pub from: Of,
    /// Whose difference it is tilted by.
    pub of: Of,
    /// What the condition is contrasted with.
    pub against: Against,
    /// Whether this holds for a model whose log-probabilities need not sum to one, up to one factor a condition.
    pub free_normaliser: bool,
}

impl Tilt {
    /// The data at the scale that `scale` gives.
    pub fn data(text: impl Into<String>, scale: impl Fn(Option<f64>, f64) -> f64 + Send + Sync + 'static) -> Self {
        Self {
            scale: Box::new(scale),
            text: text.into(),
            from: Of::Data,
            of: Of::Data,
            against: Against::Null,
            free_normaliser: false,
        }
    }
}

/// Which weights answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The weights in training, tracked by the gradient tape.
    Online,
    /// The same weights without the tape: `sg[..]`.
    Stopped,
    /// Their exponential moving average.
    Ema,
    /// The frozen reference or teacher.
    Reference,
}

/// The networks a loss may call. The trainer and the laws implement it.
pub trait Models {
    /// The prediction of the weights `role`, `[B, position, channel]`.
    fn predict(&self, role: Role, input: &Input, condition: &Condition, control: &Control) -> Tensor<3>;

    /// The same, where samples that are not `wanted` may be left out. The trainer's networks leave them out of the pass; the
    /// laws evaluate the formula as it stands.
    fn predict_where(
        &self,
        wanted: &[bool],
        role: Role,
        input: &Input,
        condition: &Condition,
        control: &Control,
    ) -> Partial {
        Partial { found: Some(self.predict(role, input, condition, control)), rows: (0..wanted.len()).collect() }
    }
}

/// A prediction of some samples of a batch; [`Partial::or`] makes it one of all.
#[derive(Debug)]
pub struct Partial {
    /// `[rows, position, channel]`; none if there are no rows.
    pub(crate) found: Option<Tensor<3>>,
    /// The samples it is of, in their order.
    pub(crate) rows: Vec<usize>,
}

impl Partial {
    /// With `known`, its gradient stopped, where a sample was left out. Shapes: `[B, position, channel]`.
    pub fn or(self, known: &Tensor<3>) -> Tensor<3> {
        let known = if known.device().is_autodiff() { known.clone().inner() } else { known.clone() };
        let ([batch, ..], rows) = (known.dims(), self.rows);
        match self.found {
            None => known,
            Some(found) if rows.len() == batch => found,
            Some(found) => {
                // Behind the known ones come those found.
                let mut order: Vec<usize> = (0..batch).collect();
                rows.into_iter().enumerate().for_each(|(i, row)| order[row] = batch + i);
                nn::rows(Tensor::cat(vec![known, found], 0), order)
            }
        }
    }
}

/// The random choices a loss may make. The trainer draws them; the laws enumerate them.
pub trait Draw {
    /// One number uniform in [low, high) a sample.
    fn uniform(&self, purpose: &str, low: f64, high: f64, n: usize) -> Vec<f64>;
    /// One index a sample, drawn with these probabilities.
    fn choice(&self, purpose: &str, probabilities: &[f64], n: usize) -> Vec<usize>;
    /// The condition of another sample, drawn independently of this one's.
    fn negative(&self, purpose: &str, condition: &Condition) -> Condition;
}

/// What a loss sees of one batch. Every random choice goes through it, so a run resumes exactly.
pub struct Context<'a> {
    /// The batch's one corruption draw.
    pub example: &'a Example,
    /// The true conditions.
    pub condition: &'a Condition,
    /// Share of training done, in [0, 1].
    pub progress: f64,
    /// Optimizer steps done.
    pub step: usize,
    /// Number of classes, where conditions are classes.
    pub num_classes: Option<usize>,
    memory: Option<&'a Memory>,
    process: &'a dyn Process,
    models: &'a dyn Models,
    draw: &'a dyn Draw,
    log: RefCell<BTreeMap<String, Tensor<1>>>,
}

impl<'a> Context<'a> {
    /// The context of one batch.
    pub fn new(
        example: &'a Example,
        (condition, num_classes): (&'a Condition, Option<usize>),
        process: &'a dyn Process,
        models: &'a dyn Models,
        draw: &'a dyn Draw,
        (step, steps): (usize, usize),
    ) -> Self {
        let progress = step as f64 / steps.max(1) as f64;
        Self {
            example,
            condition,
            num_classes,
            memory: None,
            progress,
            step,
            process,
            models,
            draw,
            log: RefCell::default(),
        }
    }

    /// The same context with what [`Objective::measured`] remembers.
    pub fn with_memory(self, memory: &'a Memory) -> Self {
        Self { memory: Some(memory), ..self }
    }

    /// A number that [`Objective::measured`] remembered; `None` before the first measurement.
    pub fn remembered(&self, name: &str) -> Option<f64> {
        self.memory?.get(name).copied()
    }

    /// Number of samples.
    pub fn batch(&self) -> usize {
        self.condition.len()
    }

    /// The weights in training, tracked. Shapes: `[B, position, channel]`.
    pub fn online(&self, condition: &Condition, guidance: Option<&[f64]>) -> Tensor<3> {
        self.model(Role::Online, condition, guidance)
    }

    /// The same weights with the gradient stopped: `sg[f(x_t, condition, guidance)]`.
    pub fn stopped(&self, condition: &Condition, guidance: Option<&[f64]>) -> Tensor<3> {
        self.model(Role::Stopped, condition, guidance)
    }

    /// [`Context::stopped`] of the samples that are `wanted`; one that is not costs the trainer no pass, and takes its
    /// prediction from elsewhere: [`Partial::or`]. Asked for before [`Context::online`], it needs no memory beside the tape.
    pub fn stopped_where(&self, wanted: &[bool], condition: &Condition, guidance: Option<&[f64]>) -> Partial {
        let control = Control::guided(guidance.map(<[f64]>::to_vec));
        self.models.predict_where(wanted, Role::Stopped, &self.example.input, condition, &control)
    }

    /// Any of the networks on the batch's input.
    pub fn model(&self, role: Role, condition: &Condition, guidance: Option<&[f64]>) -> Tensor<3> {
        let control = Control::guided(guidance.map(<[f64]>::to_vec));
        self.models.predict(role, &self.example.input, condition, &control)
    }

    /// Null in place of each condition with probability `p`; and which were dropped.
    pub fn drop_condition(&self, p: f64) -> (Condition, Vec<bool>) {
        let dropped: Vec<bool> = self.choice("drop", &[p, 1.0 - p]).into_iter().map(|choice| choice == 0).collect();
        (self.condition.dropped(&dropped), dropped)
    }

    /// One number uniform in [low, high) a sample. `purpose` names the stream.
    pub fn uniform(&self, purpose: &str, low: f64, high: f64) -> Vec<f64> {
        self.draw.uniform(purpose, low, high, self.batch())
    }

    /// One index a sample, drawn with these probabilities. `purpose` names the stream.
    pub fn choice(&self, purpose: &str, probabilities: &[f64]) -> Vec<usize> {
        self.draw.choice(purpose, probabilities, self.batch())
    }

    /// The condition of another sample in place of each: it may happen to be the same.
    pub fn negative(&self, purpose: &str) -> Condition {
        self.draw.negative(purpose, self.condition)
    }

    /// Any class in place of each, all equally likely.
    ///
    /// # Panics
    /// Without classes: `needs().classes` has the check phase refuse that.
    pub fn any_class(&self, purpose: &str) -> Condition {
        let n = self.num_classes.expect("the check phase refuses objectives that choose classes where there are none");
        Condition::Class(self.choice(purpose, &vec![1.0 / n as f64; n]).into_iter().map(Some).collect())
    }

    /// Another class in place of each, all equally likely; null stays null.
    ///
    /// # Panics
    /// Without classes: `needs().classes` has the check phase refuse that.
    pub fn other_class(&self, purpose: &str) -> Condition {
        let (Some(n), Condition::Class(own)) = (self.num_classes, self.condition) else {
            panic!("the check phase refuses objectives that choose classes where there are none")
        };
        let others = self.choice(purpose, &vec![1.0 / (n - 1) as f64; n - 1]);
        let other = |(own, other): (&Option<usize>, usize)| own.map(|own| other + usize::from(other >= own));
        Condition::Class(own.iter().zip(others).map(other).collect())
    }

    /// A weight for every prediction, from (sample, progress): `[B, 1, 1]` or `[B, position, 1]`, to multiply with `like`.
    pub fn weights(&self, like: &Tensor<3>, weight: impl Fn(usize, f64) -> f64) -> Tensor<3> {
        let batch = self.batch();
        let (values, positions): (Vec<f64>, usize) = match &self.example.progress {
            Progress::PerSample(all) => (all.iter().enumerate().map(|(i, p)| weight(i, *p)).collect(), 1),
            Progress::PerPosition(all) => (
                (0..batch).flat_map(|i| all.iter().map(move |p| (i, *p))).map(|(i, p)| weight(i, p)).collect(),
                all.len(),
            ),
        };
        tensor(&values, [batch, positions, 1], like.dtype(), &like.device().inner())
    }

    /// The process's loss of each sample against the batch's target, `[B]`.
    pub fn loss(&self, prediction: Tensor<3>) -> Tensor<1> {
        self.process.loss(prediction, self.example)
    }

    /// Mean squared difference of two predictions of each sample, `[B]`.
    pub fn squared_error(&self, prediction: Tensor<3>, other: Tensor<3>) -> Tensor<1> {
        squared_error(prediction, other, self.example)
    }

    /// `KL(softmax(teacher) | softmax(student))` of each sample, `[B]`, nats.
    pub fn divergence(&self, student: Tensor<3>, teacher: Tensor<3>) -> Tensor<1> {
        divergence(student, teacher, self.example)
    }

    /// The process's log-likelihood (or bound) of each sample, `[B]`, nats.
    pub fn log_likelihood(&self, prediction: Tensor<3>) -> Tensor<1> {
        self.process.log_likelihood(prediction, self.example)
    }

    /// Records a number of each sample under `name`; its mean appears in the run's metrics.
    pub fn log(&self, name: &str, value: Tensor<1>) {
        self.log.borrow_mut().insert(name.to_string(), value.inner().mean());
    }

    /// What [`Context::log`] recorded: means, `[1]`.
    pub fn into_log(self) -> BTreeMap<String, Tensor<1>> {
        self.log.into_inner()
    }
}

/// A training objective. The document entry is the objective.
pub trait Objective: Debug + Send + Sync {
    /// Problems within this entry; pointers are relative to it.
    fn check(&self) -> Problems {
        Problems::new()
    }

    /// What the pipeline must provide.
    fn needs(&self) -> Needs;

    /// Loss of each sample, `[B]`; its mean is minimised.
    fn loss(&self, context: &Context<'_>) -> Tensor<1>;

    /// Takes note of the metrics on samples of the network as it is: called every `sample_every` steps.
    ///
    /// # Errors
    /// What is missing among the measurements.
    fn measured(&self, memory: &mut Memory, measurements: &BTreeMap<String, f64>) -> Result<(), String> {
        let _ = (memory, measurements);
        Ok(())
    }

    /// What the minimiser samples, on a process of this family.
    fn optimum(&self, family: Family) -> Optimum;

    /// Why training on this family is an extension that the paper does not define; `None` where it does.
    fn extension(&self, family: Family) -> Option<&'static str> {
        let _ = family;
        None
    }

    /// Problems of this entry with the backbone's process; pointers are relative to the entry.
    fn check_process(&self, process: &dyn Process) -> Problems {
        let _ = process;
        Problems::new()
    }

    /// The guidance number at which one pass samples scale `scale`; `None` if the objective trains no
    /// guidance input.
    fn guidance_of_scale(&self, scale: f64) -> Option<f64> {
        let _ = scale;
        None
    }

    /// The inverse of [`Objective::guidance_of_scale`].
    fn scale_of_guidance(&self, guidance: f64) -> Option<f64> {
        let _ = guidance;
        None
    }

    /// Smallest and largest scale that the guidance input is trained at; `None` where there is no input, or no bound.
    fn trained_scales(&self) -> Option<[f64; 2]> {
        None
    }

    /// Network passes of one training step without gradient, beside the tracked one.
    fn extra_passes(&self) -> usize;
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{DType, Device};

    #[test]
    fn samples_that_are_not_wanted_keep_what_is_known() {
        let of = |values: &[f64]| tensor::<3>(values, [values.len(), 1, 1], DType::F64, &Device::flex());
        let known = of(&[1.0, 2.0, 3.0, 4.0]);
        let asked = |rows: &[usize]| {
            let found: Vec<f64> = rows.iter().map(|i| 10.0 + *i as f64).collect();
            let part = Partial { found: (!rows.is_empty()).then(|| of(&found)), rows: rows.to_vec() };
            part.or(&known).into_data().try_into_vec::<f64>().unwrap()
        };
        assert_eq!(asked(&[0, 3]), [10.0, 2.0, 3.0, 13.0]);
        assert_eq!(asked(&[1, 2]), [1.0, 11.0, 12.0, 4.0]);
        assert_eq!(asked(&[0, 1, 2, 3]), [10.0, 11.0, 12.0, 13.0]);
        assert_eq!(asked(&[]), [1.0, 2.0, 3.0, 4.0]);
    }
}
