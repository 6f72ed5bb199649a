//! Wrong objectives: each differs from a correct objective by one change. The laws must refute every one.

use super::world::CONDITIONS;
use framework::error::Problems;
use framework::network::backbone::Control;
use framework::network::condition::Condition;
use framework::objective::context::{Models, RandomChoices, Role};
use framework::objective::optimum::{Optimum, Tilt};
use framework::objective::{Needs, NullPrediction, Objective};
use framework::prelude::{Context, Tensor};
use framework::process::path::Prediction;
use framework::process::{Example, Family, Input, Latent, Likelihood, Process, Progress, Target};
use framework::random::{Random, tensor};
use std::collections::BTreeSet;
use std::fmt::Debug;

/// A change of numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Number {
    /// Multiplied.
    Times(f64),
    /// Shifted.
    Plus(f64),
    /// `1 - x`.
    Complement,
    /// `1 / (1 + x)`.
    Inverse,
}

impl Number {
    fn of(self, x: f64) -> f64 {
        match self {
            Self::Times(factor) => x * factor,
            Self::Plus(shift) => x + shift,
            Self::Complement => 1.0 - x,
            Self::Inverse => 1.0 / (1.0 + x),
        }
    }
}

/// A change of the loss, or of what the objective states.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Change {
    /// Changes the predictions of a network.
    Prediction(Role, Number),
    /// Detaches the predictions of the network in training.
    Detach,
    /// Adds a multiple of the input to the predictions of a network.
    AddInput(Role, f64),
    /// Evaluates another network.
    Network(Role, Role),
    /// Reads the null condition in place of the condition.
    Null(Role),
    /// Reads class 0 in place of the null condition.
    NoNull(Role),
    /// Reads the next class.
    NextClass(Role),
    /// Changes the guidance number that a network reads.
    Guidance(Role, Number),
    /// Reads the same guidance number for every sample.
    OneGuidance(Role, f64),
    /// Omits the guidance number.
    NoGuidance(Role),
    /// Changes every uniform random number.
    Uniform(Number),
    /// Takes the next of the possible choices.
    NextChoice,
    /// Always takes the first choice.
    FirstChoice,
    /// Takes the sample's own condition as the negative.
    OwnNegative,
    /// Changes the target.
    Target(f64),
    /// Takes the target of another sample.
    NextTarget,
    /// Adds a share of the target to every prediction that is scored.
    Leak(f64),
    /// Changes the progress of every sample.
    Progress(Number),
    /// Negates the loss.
    Sign,
    /// Squares the loss.
    Square,
    /// Counts only every second sample of the batch.
    EverySecond,
    /// Negates the loss from this step on.
    SignFrom(usize),
    /// Negates the loss before this step.
    SignBefore(usize),
    /// Counts the unconditional prediction from this step on.
    NullFrom(usize),
    /// Negates the loss in the first half of training.
    SignInFirstHalf,
    /// Negates the loss if the objective remembers a value.
    SignIfRemembered,
    /// States a scale shifted by this much.
    StatedScale(f64),
    /// States another conversion from scale to guidance number.
    StatedNumber(Number),
    /// States another conversion from guidance number to scale.
    StatedInverse(Number),
    /// States a larger range of trained scales.
    StatedRange(f64),
    /// States a smaller range of trained scales.
    StatedPart,
    /// States a null prediction at another guidance number.
    StatedNull(f64),
}

/// One change that makes an objective wrong.
#[derive(Clone, Debug)]
pub struct Mutation {
    change: Change,
}

/// Evaluates the loss on an example with these networks, choices and process. Also returns the names looked up in the
/// memory.
type Evaluate<'e> =
    dyn Fn(&Example, &dyn Models, &dyn RandomChoices, &dyn Process) -> (Tensor<1>, BTreeSet<String>) + 'e;

impl Mutation {
    /// Returns every mutation.
    pub fn all() -> Vec<Self> {
        use Change as C;
        use Number as N;
        let mut all = Vec::new();
        for role in [Role::Online, Role::Stopped, Role::Ema, Role::Reference] {
            for number in [N::Times(-1.0), N::Times(0.5), N::Times(0.0), N::Plus(0.3)] {
                all.push(C::Prediction(role, number));
            }
            all.extend([C::AddInput(role, 0.5), C::Null(role), C::NoNull(role), C::NextClass(role)]);
            all.extend([N::Plus(0.25), N::Complement, N::Inverse].map(|number| C::Guidance(role, number)));
            all.extend([C::NoGuidance(role), C::OneGuidance(role, 0.7)]);
        }
        all.extend([
            C::Detach,
            C::Network(Role::Online, Role::Reference),
            C::Network(Role::Stopped, Role::Reference),
            C::Network(Role::Ema, Role::Reference),
            C::Network(Role::Reference, Role::Stopped),
            C::Uniform(N::Times(0.5)),
            C::Uniform(N::Plus(0.1)),
            C::NextChoice,
            C::FirstChoice,
            C::OwnNegative,
            C::Target(-1.0),
            C::Target(0.5),
            C::NextTarget,
            C::Leak(0.5),
            C::Progress(N::Complement),
            C::Progress(N::Times(0.5)),
            C::Sign,
            C::Square,
            C::EverySecond,
            C::SignFrom(1_000),
            C::SignBefore(1_000),
            C::NullFrom(100_000),
            C::SignInFirstHalf,
            C::SignIfRemembered,
            C::StatedScale(0.1),
            C::StatedNumber(N::Plus(0.1)),
            C::StatedNumber(N::Times(0.5)),
            C::StatedNumber(N::Inverse),
            C::StatedInverse(N::Plus(0.1)),
            C::StatedInverse(N::Times(2.0)),
            C::StatedRange(2.0),
            C::StatedRange(f64::INFINITY),
            C::StatedPart,
            C::StatedNull(0.5),
        ]);
        all.into_iter().map(|change| Self { change }).collect()
    }

    /// Returns the change in words.
    pub fn name(&self) -> String {
        format!("{:?}", self.change)
    }

    /// Returns the objective with the changed statements. A change of the loss is applied by the laws themselves.
    pub fn stated<'o>(&self, objective: &'o dyn Objective) -> Box<dyn Objective + 'o> {
        Box::new(Stated { of: objective, change: self.change })
    }

    /// Evaluates the changed loss.
    pub(super) fn apply(
        &self,
        example: &Example,
        models: &dyn Models,
        choices: &dyn RandomChoices,
        process: &dyn Process,
        (step, steps): (usize, usize),
        evaluate: &Evaluate<'_>,
    ) -> (Tensor<1>, BTreeSet<String>) {
        let change = self.change;
        let early = step * 2 < steps;
        let changed = match change {
            Change::NullFrom(from) if step < from => None,
            _ => Some(change),
        };
        let models = WrongModels { of: models, change: changed };
        let choices = WrongChoices { of: choices, change };
        let process = WrongProcess { of: process, change };
        let example = match change {
            Change::Progress(number) => {
                let all = |all: &Vec<f64>| all.iter().map(|p| number.of(*p)).collect();
                let progress = match &example.progress {
                    Progress::PerSample(values) => Progress::PerSample(all(values)),
                    Progress::PerPosition(values) => Progress::PerPosition(all(values)),
                };
                Example { progress, ..example.clone() }
            }
            _ => example.clone(),
        };
        let (loss, remembered) = evaluate(&example, &models, &choices, &process);
        let loss = match change {
            Change::Sign => -loss,
            Change::SignFrom(from) if step >= from => -loss,
            Change::SignBefore(before) if step < before => -loss,
            Change::SignInFirstHalf if early => -loss,
            Change::Square => loss.clone() * loss,
            Change::EverySecond => {
                let [count] = loss.dims();
                let weights: Vec<f64> = (0..count).map(|i| f64::from(u8::from(i % 2 == 0))).collect();
                loss.clone() * tensor(&weights, [count], loss.dtype(), &loss.device().inner())
            }
            _ => loss,
        };
        (loss, remembered)
    }
}

struct WrongModels<'m> {
    of: &'m dyn Models,
    change: Option<Change>,
}

impl Models for WrongModels<'_> {
    fn predict(&self, role: Role, input: &Input, condition: &Condition, control: &Control) -> Tensor<3> {
        let classes = |new: &dyn Fn(Option<usize>) -> Option<usize>| match condition {
            Condition::Class(all) => Condition::Class(all.iter().map(|class| new(*class)).collect()),
            other => other.clone(),
        };
        let numbers = |new: &dyn Fn(f64) -> f64| Control {
            guidance: control.guidance.as_ref().map(|all| all.iter().map(|number| new(*number)).collect()),
            ..control.clone()
        };
        let plain = || self.of.predict(role, input, condition, control);
        match self.change {
            Some(Change::Prediction(of, number)) if of == role => {
                let prediction = plain();
                match number {
                    Number::Times(factor) => prediction * factor,
                    Number::Plus(shift) => {
                        // A constant does not change logits, so the shift grows with the channel.
                        let [.., width] = prediction.dims();
                        let shifts: Vec<f64> = (0..width).map(|i| shift * (i + 1) as f64).collect();
                        prediction.clone()
                            + tensor(&shifts, [1, 1, width], prediction.dtype(), &prediction.device().inner())
                    }
                    Number::Complement | Number::Inverse => prediction,
                }
            }
            Some(Change::AddInput(of, factor)) if of == role => match input {
                Input::Noisy { x_t, .. } => plain() + x_t.clone() * factor,
                _ => plain(),
            },
            Some(Change::Detach) if role == Role::Online => self.of.predict(Role::Stopped, input, condition, control),
            Some(Change::Network(of, other)) if of == role => self.of.predict(other, input, condition, control),
            Some(Change::Null(of)) if of == role => self.of.predict(role, input, &classes(&|_| None), control),
            Some(Change::NullFrom(_)) if role == Role::Online => {
                self.of.predict(role, input, &classes(&|_| None), control)
            }
            Some(Change::NoNull(of)) if of == role => {
                self.of.predict(role, input, &classes(&|class| class.or(Some(0))), control)
            }
            Some(Change::NextClass(of)) if of == role => {
                let next = |class: Option<usize>| class.map(|class| (class + 1) % CONDITIONS);
                self.of.predict(role, input, &classes(&next), control)
            }
            Some(Change::Guidance(of, number)) if of == role => {
                self.of.predict(role, input, condition, &numbers(&|x| number.of(x)))
            }
            Some(Change::OneGuidance(of, number)) if of == role => {
                self.of.predict(role, input, condition, &numbers(&|_| number))
            }
            Some(Change::NoGuidance(of)) if of == role => {
                self.of.predict(role, input, condition, &Control { guidance: None, ..control.clone() })
            }
            _ => plain(),
        }
    }
}

struct WrongChoices<'c> {
    of: &'c dyn RandomChoices,
    change: Change,
}

impl RandomChoices for WrongChoices<'_> {
    fn uniform(&self, purpose: &str, low: f64, high: f64, n: usize) -> Vec<f64> {
        let plain = self.of.uniform(purpose, low, high, n);
        match self.change {
            Change::Uniform(number) => plain.into_iter().map(|x| number.of(x)).collect(),
            _ => plain,
        }
    }

    fn choice(&self, purpose: &str, probabilities: &[f64], n: usize) -> Vec<usize> {
        let plain = self.of.choice(purpose, probabilities, n);
        match self.change {
            Change::NextChoice => plain.into_iter().map(|choice| (choice + 1) % probabilities.len()).collect(),
            Change::FirstChoice => vec![0; plain.len()],
            _ => plain,
        }
    }

    fn negative(&self, purpose: &str, condition: &Condition) -> Condition {
        let plain = self.of.negative(purpose, condition);
        if self.change == Change::OwnNegative { condition.clone() } else { plain }
    }
}

#[derive(Debug)]
struct WrongProcess<'p> {
    of: &'p dyn Process,
    change: Change,
}

impl WrongProcess<'_> {
    fn changed(&self, prediction: Tensor<3>, example: &Example) -> (Tensor<3>, Example) {
        let mut example = example.clone();
        match (self.change, &example.target) {
            (Change::Target(factor), Target::Values(values)) => {
                example.target = Target::Values(values.clone() * factor);
            }
            // Tokens have no multiples; the sign of the logits stands for the sign of the target.
            (Change::Target(factor), Target::Ids(_)) => return (prediction * factor, example),
            (Change::NextTarget, Target::Values(values)) => {
                example.target = Target::Values(values.clone().roll(&[1], &[0]));
            }
            (Change::NextTarget, Target::Ids(ids)) => example.target = Target::Ids(ids.clone().roll(&[1], &[0])),
            (Change::Leak(share), Target::Values(values)) => return (prediction + values.clone() * share, example),
            (Change::Leak(share), Target::Ids(ids)) => {
                let width = prediction.dims()[2];
                let told = ids.clone().one_hot::<3>(width).float().cast(prediction.dtype());
                return (prediction + told * share, example);
            }
            _ => {}
        }
        (prediction, example)
    }
}

impl Process for WrongProcess<'_> {
    fn family(&self) -> Family {
        self.of.family()
    }
    fn prediction(&self) -> Prediction {
        self.of.prediction()
    }
    fn corrupt(&self, x: &Latent, random: &Random, step: u64) -> Example {
        self.of.corrupt(x, random, step)
    }
    fn loss(&self, prediction: Tensor<3>, example: &Example) -> Tensor<1> {
        let (prediction, example) = self.changed(prediction, example);
        self.of.loss(prediction, &example)
    }
    fn likelihood(&self) -> Likelihood {
        self.of.likelihood()
    }
    fn log_likelihood(&self, prediction: Tensor<3>, example: &Example) -> Tensor<1> {
        let (prediction, example) = self.changed(prediction, example);
        self.of.log_likelihood(prediction, &example)
    }
}

/// An objective with one changed statement.
struct Stated<'o> {
    of: &'o dyn Objective,
    change: Change,
}

impl Debug for Stated<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} of {:?}", self.change, self.of)
    }
}

impl Objective for Stated<'_> {
    fn needs(&self) -> Needs {
        self.of.needs()
    }
    fn loss(&self, context: &Context<'_>) -> Tensor<1> {
        let loss = self.of.loss(context);
        if self.change == Change::SignIfRemembered && context.remembered("mutant").is_some() { -loss } else { loss }
    }
    fn null(&self) -> NullPrediction {
        match (self.change, self.of.null()) {
            (Change::StatedNull(number), NullPrediction::TrainedAt(_)) => NullPrediction::TrainedAt(Some(number)),
            (_, null) => null,
        }
    }
    fn optimum(&self, family: Family) -> Optimum {
        match (self.change, self.of.optimum(family)) {
            (Change::StatedScale(shift), Optimum::Tilted(tilt)) => {
                let scale = tilt.scale;
                let changed = Box::new(move |number, progress| scale(number, progress) + shift);
                Optimum::Tilted(Tilt { scale: changed, ..tilt })
            }
            (_, optimum) => optimum,
        }
    }
    fn settles_at(&self) -> usize {
        self.of.settles_at()
    }
    fn check_process(&self, process: &dyn Process) -> Problems {
        self.of.check_process(process)
    }
    fn guidance_of_scale(&self, scale: f64) -> Option<f64> {
        match (self.change, self.of.guidance_of_scale(scale)) {
            (Change::StatedNumber(number), Some(guidance)) => Some(number.of(guidance)),
            (_, guidance) => guidance,
        }
    }
    fn scale_of_guidance(&self, guidance: f64) -> Option<f64> {
        match (self.change, self.of.scale_of_guidance(guidance)) {
            (Change::StatedInverse(number), Some(scale)) => Some(number.of(scale)),
            (_, scale) => scale,
        }
    }
    fn trained_scales(&self) -> Option<[f64; 2]> {
        match (self.change, self.of.trained_scales()) {
            (Change::StatedRange(factor), Some([low, high])) => Some([low, high * factor]),
            (Change::StatedPart, Some([low, high])) if high.is_finite() => Some([low, low + 0.5 * (high - low)]),
            (_, scales) => scales,
        }
    }
    fn extra_passes(&self) -> usize {
        self.of.extra_passes()
    }
}
