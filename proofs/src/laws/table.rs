//! All cases of a set of worlds as one weighted batch, and a network that is a table.

use super::world::{CHANNELS, CONDITIONS, World};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use framework::network::backbone::Control;
use framework::network::condition::Condition;
use framework::objective::Objective;
use framework::objective::context::{Context, Models, RandomChoices, Role};
use framework::process::path::Prediction;
use framework::process::{Example, Family, Input, Latent, Likelihood, Process, Progress, Target, score};
use framework::random::{Random, tensor};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};

/// The process of finite worlds. The laws use only its scores and enumerate the examples themselves.
#[derive(Debug)]
pub struct Scores {
    /// Family of the process.
    pub family: Family,
    /// Whether the logits are the log-probabilities, without normalisation.
    pub free: bool,
}

impl Process for Scores {
    fn family(&self) -> Family {
        self.family
    }

    fn prediction(&self) -> Prediction {
        if self.family.has_logits() { Prediction::Logits } else { Prediction::Eps }
    }

    fn corrupt(&self, _: &Latent, _: &Random, _: u64) -> Example {
        unreachable!("the laws enumerate the examples of a finite world")
    }

    fn likelihood(&self) -> Likelihood {
        if self.family.has_logits() { Likelihood::Exact } else { Likelihood::Bound }
    }

    fn log_likelihood(&self, prediction: Tensor<3>, example: &Example) -> Tensor<1> {
        let [batch, positions, width] = prediction.dims();
        match &example.target {
            Target::Ids(ids) if self.free => {
                prediction.gather(2, ids.clone().unsqueeze_dim(2)).sum_dim(1).reshape([batch])
            }
            Target::Ids(_) => score(prediction, example) * -(positions as f64),
            Target::Values(_) => score(prediction, example) * (-0.5 * (positions * width) as f64),
        }
    }
}

/// A random choice that a loss requests.
#[derive(Clone, Debug, PartialEq)]
enum Asked {
    Uniform(f64, f64),
    Choice(Vec<f64>),
    Negative,
}

/// Records the random choices that a loss requests. Answers each with its first possibility.
#[derive(Default)]
struct Recorder(RefCell<Vec<(String, Asked)>>);

impl Recorder {
    fn note(&self, purpose: &str, asked: Asked) {
        let mut all = self.0.borrow_mut();
        if !all.iter().any(|(known, _)| known == purpose) {
            all.push((purpose.to_string(), asked));
        }
    }
}

impl RandomChoices for Recorder {
    fn uniform(&self, purpose: &str, low: f64, high: f64, n: usize) -> Vec<f64> {
        self.note(purpose, Asked::Uniform(low, high));
        vec![low; n]
    }
    fn choice(&self, purpose: &str, probabilities: &[f64], n: usize) -> Vec<usize> {
        self.note(purpose, Asked::Choice(probabilities.to_vec()));
        vec![0; n]
    }
    fn negative(&self, purpose: &str, condition: &Condition) -> Condition {
        self.note(purpose, Asked::Negative);
        condition.clone()
    }
}

/// Answers to every random choice, by purpose: one per sample.
#[derive(Default)]
struct Answers(BTreeMap<String, Vec<f64>>);

impl Answers {
    fn of(&self, purpose: &str) -> &[f64] {
        self.0.get(purpose).unwrap_or_else(|| {
            panic!(
                "the loss requests \"{purpose}\" only in some cases; its random choices must not depend on each other"
            )
        })
    }
}

impl RandomChoices for Answers {
    fn uniform(&self, purpose: &str, _: f64, _: f64, _: usize) -> Vec<f64> {
        self.of(purpose).to_vec()
    }
    fn choice(&self, purpose: &str, _: &[f64], _: usize) -> Vec<usize> {
        self.of(purpose).iter().map(|index| *index as usize).collect()
    }
    fn negative(&self, purpose: &str, _: &Condition) -> Condition {
        Condition::Class(self.of(purpose).iter().map(|class| Some(*class as usize)).collect())
    }
}

/// Key of one row of the table: the prediction at an input, for a condition and a guidance number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Row {
    /// Index of the world.
    pub world: usize,
    /// Index of the input within the world.
    pub input: usize,
    /// Index of the condition; `None` = null.
    pub condition: Option<usize>,
    /// Bits of the guidance number, if the network reads one.
    guidance: Option<u64>,
}

impl Row {
    /// Returns the guidance number, if the network reads one.
    pub fn number(&self) -> Option<f64> {
        self.guidance.map(f64::from_bits)
    }
}

/// All cases of a set of worlds under one objective.
pub struct Cases<'a> {
    objective: &'a dyn Objective,
    worlds: &'a [World],
    process: Scores,
    example: Example,
    condition: Condition,
    answers: Answers,
    /// Probability of each case within its world.
    weights: Tensor<1>,
    /// Inputs of all cases as (world, input), row-major `[B, position]`.
    places: Vec<(usize, usize)>,
    positions: usize,
    /// Sorted keys of all rows that the loss reads.
    pub rows: Vec<Row>,
    /// Number of trainable elements per row.
    pub free: usize,
}

/// Training step that the laws assume: late enough that every warm-up of an objective is over.
const STEP: usize = usize::MAX / 4;

impl<'a> Cases<'a> {
    /// Enumerates all cases of `objective` in `worlds`, which have the same family and length. With `free`, token
    /// models need not be normalised.
    pub fn new(objective: &'a dyn Objective, worlds: &'a [World], free: bool) -> Self {
        let family = worlds[0].family;
        let process = Scores { family, free };
        // First, one case per outcome and condition, to record the random choices that the loss requests.
        let plain: Vec<Case> = worlds
            .iter()
            .enumerate()
            .flat_map(|(world, w)| {
                (0..CONDITIONS).flat_map(move |condition| {
                    (0..w.outcomes()).map(move |outcome| Case {
                        world,
                        condition,
                        outcome,
                        weight: 1.0,
                        answers: Vec::new(),
                    })
                })
            })
            .map(|mut case| {
                case.weight = worlds[case.world].probability(case.condition, case.outcome);
                case
            })
            .collect();
        let recorder = Recorder::default();
        let few: Vec<Case> = plain.iter().take(2).cloned().collect();
        let heard = Self::assemble(objective, worlds, process, &few, &[]);
        heard.loss_with(&Listener::new(&heard), &recorder);
        let asked = recorder.0.into_inner();
        // Then, one case per combination of answers to these choices.
        let mut cases = plain;
        for (_, asked) in &asked {
            cases = cases.into_iter().flat_map(|case| case.answered(asked, worlds)).collect();
        }
        let purposes: Vec<String> = asked.into_iter().map(|(purpose, _)| purpose).collect();
        let process = Scores { family, free };
        let mut cases = Self::assemble(objective, worlds, process, &cases, &purposes);
        cases.rows = {
            let listener = Listener::new(&cases);
            cases.loss_with(&listener, &cases.answers);
            listener.rows.into_inner()
        };
        cases
    }

    fn assemble(
        objective: &'a dyn Objective,
        worlds: &'a [World],
        process: Scores,
        cases: &[Case],
        purposes: &[String],
    ) -> Self {
        let device = Device::flex();
        let (batch, positions) = (cases.len(), worlds[0].positions());
        let tokens = worlds[0].tokens();
        let world = |case: &Case| &worlds[case.world];
        let places: Vec<(usize, usize)> = cases
            .iter()
            .flat_map(|case| world(case).inputs_of(case.outcome).into_iter().map(|input| (case.world, input)))
            .collect();
        let example = if tokens {
            let ids: Vec<i64> =
                cases.iter().flat_map(|case| world(case).tokens_of(case.outcome)).map(|token| token as i64).collect();
            let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [batch, positions]), &device);
            let (first, at) = (&worlds[0], |input: usize| worlds[0].progress_at(input));
            Example {
                input: Input::Tokens { ids: ids.clone() },
                target: Target::Ids(ids),
                progress: Progress::PerPosition(first.inputs_of(0).into_iter().map(at).collect()),
                scored: None,
            }
        } else {
            let targets: Vec<f64> = cases
                .iter()
                .flat_map(|case| {
                    (0..positions).flat_map(|position| world(case).target_of(case.outcome, position).to_vec())
                })
                .collect();
            let first = places.iter().step_by(positions);
            let progress: Vec<f64> = first.map(|(world, input)| worlds[*world].progress_at(*input)).collect();
            let zeros = Tensor::zeros([batch, positions, CHANNELS], (&device, DType::F64));
            let scored = |(world, input): &(usize, usize)| f64::from(u8::from(worlds[*world].scored_at(*input)));
            let scored: Vec<f64> = places.iter().map(scored).collect();
            Example {
                input: Input::Noisy { x_t: zeros, t: progress.iter().map(|progress| 1.0 - progress).collect() },
                target: Target::Values(tensor(&targets, [batch, positions, CHANNELS], DType::F64, &device)),
                progress: Progress::PerSample(progress),
                scored: (positions > 1).then(|| tensor(&scored, [batch, positions], DType::F64, &device)),
            }
        };
        let answers = purposes
            .iter()
            .enumerate()
            .map(|(i, purpose)| (purpose.clone(), cases.iter().map(|case| case.answers[i]).collect()))
            .collect();
        let weights: Vec<f64> = cases.iter().map(|case| case.weight).collect();
        // A constant added to all logits of a normalised model has no effect, so fix the last logit at zero.
        let free = worlds[0].width() - usize::from(tokens && !process.free);
        Self {
            objective,
            worlds,
            process,
            example,
            condition: Condition::Class(cases.iter().map(|case| Some(case.condition)).collect()),
            answers: Answers(answers),
            weights: tensor(&weights, [batch], DType::F64, &device),
            places,
            positions,
            rows: Vec::new(),
            free,
        }
    }

    fn loss_with(&self, models: &dyn Models, draw: &dyn RandomChoices) -> Tensor<1> {
        let condition = (&self.condition, Some(CONDITIONS));
        let context = Context::new(&self.example, condition, &self.process, models, draw, (STEP, STEP));
        self.objective.loss(&context)
    }

    /// Computes the gradient of the expected loss with respect to the table `values`, row-major.
    pub fn gradient(&self, values: &[f64], lookups: &Lookups) -> Vec<f64> {
        let device = Device::flex().autodiff();
        let shape = [self.rows.len(), self.free];
        let online =
            Tensor::<2>::from_data(TensorData::new(values.to_vec(), shape), (&device, DType::F64)).require_grad();
        let table =
            Table { cases: self, stopped: online.clone().inner(), online: online.clone(), lookups, call: Cell::new(0) };
        let loss = self.loss_with(&table, &self.answers);
        let total = (loss * self.weights.clone()).sum();
        let gradient = online.grad(&total.backward());
        gradient.map_or(vec![0.0; values.len()], |g| g.into_data().try_into_vec::<f64>().expect("the gradient is f64"))
    }

    /// Returns the row keys of one call, row-major `[B, position]`.
    fn rows_of(&self, condition: &Condition, control: &Control) -> Vec<Row> {
        let Condition::Class(classes) = condition else { panic!("the conditions of a world are classes") };
        (0..self.places.len())
            .map(|place| {
                let sample = place / self.positions;
                let (world, input) = self.places[place];
                // Adding 0 turns -0 into 0, so that both have the same bits.
                let guidance = control.guidance.as_ref().map(|numbers| (numbers[sample] + 0.0).to_bits());
                Row { world, input, condition: classes[sample], guidance }
            })
            .collect()
    }

    /// Returns the reference's predictions for one call, `[B, position, width]`.
    fn referred(&self, condition: &Condition) -> Tensor<3> {
        let Condition::Class(classes) = condition else { panic!("the conditions of a world are classes") };
        let values: Vec<f64> = self
            .places
            .iter()
            .enumerate()
            .flat_map(|(place, (world, input))| {
                self.worlds[*world].referred(classes[place / self.positions], *input).iter().copied()
            })
            .collect();
        let shape = [classes.len(), self.positions, self.worlds[0].width()];
        tensor(&values, shape, DType::F64, &Device::flex())
    }
}

#[derive(Clone)]
struct Case {
    world: usize,
    condition: usize,
    outcome: usize,
    weight: f64,
    answers: Vec<f64>,
}

impl Case {
    /// Splits this case by the possible answers to one more random choice.
    fn answered(self, asked: &Asked, worlds: &[World]) -> Vec<Self> {
        let world = &worlds[self.world];
        let answers: Vec<(f64, f64)> = match asked {
            Asked::Uniform(low, high) if low == high => vec![(*low, 1.0)],
            Asked::Uniform(low, high) => world.quantiles.iter().map(|q| (low + (high - low) * q, 0.5)).collect(),
            Asked::Choice(all) => {
                all.iter().enumerate().map(|(i, p)| (i as f64, *p)).filter(|(_, p)| *p > 0.0).collect()
            }
            Asked::Negative => (0..CONDITIONS).map(|c| (c as f64, world.prior(c))).collect(),
        };
        let with = |(answer, probability): (f64, f64)| {
            let mut case = self.clone();
            case.answers.push(answer);
            case.weight *= probability;
            case
        };
        answers.into_iter().map(with).collect()
    }
}

/// Models that predict zeros and record the rows that the loss reads.
struct Listener<'c, 'a> {
    cases: &'c Cases<'a>,
    rows: RefCell<Vec<Row>>,
}

impl<'c, 'a> Listener<'c, 'a> {
    fn new(cases: &'c Cases<'a>) -> Self {
        Self { cases, rows: RefCell::default() }
    }
}

impl Models for Listener<'_, '_> {
    fn predict(&self, role: Role, _: &Input, condition: &Condition, control: &Control) -> Tensor<3> {
        if role == Role::Reference {
            return self.cases.referred(condition);
        }
        let mut rows = self.rows.borrow_mut();
        rows.extend(self.cases.rows_of(condition, control));
        rows.sort_unstable();
        rows.dedup();
        let shape = [condition.len(), self.cases.positions, self.cases.worlds[0].width()];
        Tensor::zeros(shape, (&Device::flex(), DType::F64))
    }
}

/// Cache of the lookups of each model call. A loss makes the same calls in the same order, whatever the table contains.
#[derive(Default)]
pub struct Lookups(RefCell<Vec<Looked>>, RefCell<HashMap<Row, i64>>);

#[derive(Clone)]
enum Looked {
    Rows(Tensor<1, Int>),
    Reference(Tensor<3>),
}

/// A network that can represent any prediction.
struct Table<'c, 'a> {
    cases: &'c Cases<'a>,
    online: Tensor<2>,
    stopped: Tensor<2>,
    lookups: &'c Lookups,
    call: Cell<usize>,
}

impl Table<'_, '_> {
    fn looked(&self, role: Role, condition: &Condition, control: &Control) -> Looked {
        let call = self.call.replace(self.call.get() + 1);
        if let Some(known) = self.lookups.0.borrow().get(call) {
            return known.clone();
        }
        let looked = if role == Role::Reference {
            Looked::Reference(self.cases.referred(condition))
        } else {
            let mut index = self.lookups.1.borrow_mut();
            if index.is_empty() {
                index.extend(self.cases.rows.iter().enumerate().map(|(i, row)| (*row, i as i64)));
            }
            let rows: Vec<i64> = self.cases.rows_of(condition, control).iter().map(|row| index[row]).collect();
            let count = rows.len();
            Looked::Rows(Tensor::from_data(TensorData::new(rows, [count]), &Device::flex()))
        };
        self.lookups.0.borrow_mut().push(looked.clone());
        looked
    }
}

impl Models for Table<'_, '_> {
    fn predict(&self, role: Role, _: &Input, condition: &Condition, control: &Control) -> Tensor<3> {
        let rows = match self.looked(role, condition, control) {
            Looked::Reference(values) => return values,
            Looked::Rows(rows) => rows,
        };
        // At rest, the moving average of the weights equals the weights.
        let table = if role == Role::Online { self.online.clone() } else { self.stopped.clone() };
        let (batch, width) = (condition.len(), self.cases.worlds[0].width());
        let values = table.select(0, rows).reshape([batch, self.cases.positions, self.cases.free]);
        if self.cases.free == width {
            return values;
        }
        let fixed =
            Tensor::zeros([batch, self.cases.positions, width - self.cases.free], (&Device::flex(), DType::F64));
        Tensor::cat(vec![values, fixed], 2)
    }
}
