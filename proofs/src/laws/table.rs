//! All cases of a set of worlds as one weighted batch, and a network that is a table.

use super::choices::{Answers, Case, Points, Recorder};
use super::mutation::Mutation;
use super::world::{CHANNELS, CONDITIONS, World};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use framework::network::backbone::Control;
use framework::network::condition::Condition;
use framework::objective::Objective;
use framework::objective::context::{Context, Memory, Models, RandomChoices, Role};
use framework::process::path::Prediction;
use framework::process::{Example, Family, Input, Latent, Likelihood, Process, Progress, Target, score};
use framework::random::{Random, tensor};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::sync::Mutex;

/// The process of finite worlds. The laws use only its scores and enumerate the examples themselves.
#[derive(Debug)]
pub struct Scores {
    /// Family of the process.
    pub family: Family,
    /// Whether the logits are the log-probabilities, without normalisation.
    pub free: bool,
    /// The predictions that were scored; `None` = they are not recorded.
    pub scored: Mutex<Option<Vec<Tensor<3>>>>,
}

impl Scores {
    /// Creates the process of a family; with `free`, token models need not be normalised.
    pub fn new(family: Family, free: bool) -> Self {
        Self { family, free, scored: Mutex::new(None) }
    }

    fn record(&self, prediction: &Tensor<3>) {
        if let Some(all) = &mut *self.scored.lock().expect("no thread panics while it records") {
            all.push(prediction.clone());
        }
    }
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

    fn loss(&self, prediction: Tensor<3>, example: &Example) -> Tensor<1> {
        self.record(&prediction);
        score(prediction, example)
    }

    fn likelihood(&self) -> Likelihood {
        if self.family.has_logits() { Likelihood::Exact } else { Likelihood::Bound }
    }

    fn log_likelihood(&self, prediction: Tensor<3>, example: &Example) -> Tensor<1> {
        self.record(&prediction);
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

/// The circumstances in which a loss is evaluated.
#[derive(Clone, Debug)]
pub struct Setting<'m> {
    /// Optimizer steps done, and steps of the whole training.
    pub steps: (usize, usize),
    /// Values that the objective remembers.
    pub memory: Memory,
    /// Values that replace uniform random numbers.
    pub points: Points,
    /// Whether token models may be unnormalised.
    pub free: bool,
    /// A change that makes the loss wrong on purpose.
    pub mutation: Option<&'m Mutation>,
}

/// Training step that the laws assume first. Every warm-up of an objective is over at this step.
const LATE: usize = usize::MAX / 4;

impl<'m> Setting<'m> {
    /// Creates the setting at the end of a long training, with an empty memory.
    pub fn late(free: bool, mutation: Option<&'m Mutation>) -> Self {
        Self { steps: (LATE, LATE), memory: Memory::new(), points: Points::Interior, free, mutation }
    }
}

/// All cases of a set of worlds under one objective.
pub struct Cases<'a> {
    objective: &'a dyn Objective,
    worlds: &'a [World],
    setting: Setting<'a>,
    process: Scores,
    example: Example,
    condition: Condition,
    answers: Answers,
    all: Vec<Case>,
    purposes: Vec<String>,
    /// Probability of each case within its world.
    weights: Tensor<1>,
    /// Inputs of all cases as (world, input), row-major `[B, position]`.
    places: Vec<(usize, usize)>,
    positions: usize,
    /// Sorted keys of all rows that the loss reads.
    pub rows: Vec<Row>,
    /// The rows that the network in training reads on the gradient tape.
    pub trained: BTreeSet<Row>,
    /// Number of trainable elements per row.
    pub free: usize,
    /// Names that the loss looks up in the memory.
    pub remembered: BTreeSet<String>,
    /// A fault that the rows themselves show.
    pub fault: Option<&'static str>,
}

impl<'a> Cases<'a> {
    /// Enumerates all cases of `objective` in `worlds`, which have the same family and length.
    pub fn new(objective: &'a dyn Objective, worlds: &'a [World], setting: &Setting<'a>) -> Self {
        // First, one case per outcome and condition, to record the random choices that the loss requests.
        let mut cases = Vec::new();
        for (world, contents) in worlds.iter().enumerate() {
            for (condition, outcome) in
                (0..CONDITIONS).flat_map(|c| (0..contents.outcomes()).map(move |outcome| (c, outcome)))
            {
                let weight = contents.probability(condition, outcome);
                cases.push(Case { world, condition, outcome, weight, answers: Vec::new() });
            }
        }
        let recorder = Recorder::default();
        let heard = Self::assemble(objective, worlds, setting, cases[..2].to_vec(), Vec::new());
        heard.loss_with(&Listener::new(&heard), &recorder);
        let asked = recorder.0.into_inner();
        // Then, one case per combination of answers to these choices.
        for (_, asked) in &asked {
            cases = cases.into_iter().flat_map(|case| case.answered(asked, worlds, &setting.points)).collect();
        }
        let purposes: Vec<String> = asked.into_iter().map(|(purpose, _)| purpose).collect();
        let mut cases = Self::assemble(objective, worlds, setting, cases, purposes);
        (cases.rows, cases.trained, cases.fault, cases.remembered) = {
            let listener = Listener::new(&cases);
            let (_, remembered) = cases.loss_with(&listener, &cases.answers);
            (listener.rows.into_inner(), listener.trained.into_inner(), listener.fault.get(), remembered)
        };
        cases
    }

    /// Returns the cases with the given indices, in this order, with the rows of all cases.
    pub fn subset(&self, order: &[usize]) -> Self {
        let cases = order.iter().map(|i| self.all[*i].clone()).collect();
        let mut subset = Self::assemble(self.objective, self.worlds, &self.setting, cases, self.purposes.clone());
        subset.rows = self.rows.clone();
        subset
    }

    /// Returns the number of cases.
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// Returns what a prediction at a place may depend on: the input, the condition and the random choices, but not the
    /// outcome.
    fn known_at(&self, place: usize) -> (usize, usize, usize, Vec<u64>) {
        let case = &self.all[place / self.positions];
        let (world, input) = self.places[place];
        (world, input, case.condition, case.answers.iter().map(|answer| answer.to_bits()).collect())
    }

    fn assemble(
        objective: &'a dyn Objective,
        worlds: &'a [World],
        setting: &Setting<'a>,
        cases: Vec<Case>,
        purposes: Vec<String>,
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
            let values: Vec<f64> =
                places.iter().flat_map(|(world, input)| worlds[*world].values_at(*input).to_vec()).collect();
            let x_t = tensor(&values, [batch, positions, CHANNELS], DType::F64, &device);
            let scored = |(world, input): &(usize, usize)| f64::from(u8::from(worlds[*world].scored_at(*input)));
            let scored: Vec<f64> = places.iter().map(scored).collect();
            Example {
                input: Input::Noisy { x_t, t: progress.iter().map(|progress| 1.0 - progress).collect() },
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
        let free = worlds[0].width() - usize::from(tokens && !setting.free);
        Self {
            objective,
            worlds,
            setting: setting.clone(),
            process: Scores::new(worlds[0].family, setting.free),
            example,
            condition: Condition::Class(cases.iter().map(|case| Some(case.condition)).collect()),
            answers: Answers(answers),
            all: cases,
            purposes,
            weights: tensor(&weights, [batch], DType::F64, &device),
            places,
            positions,
            rows: Vec::new(),
            trained: BTreeSet::new(),
            free,
            remembered: BTreeSet::new(),
            fault: None,
        }
    }

    /// Returns the loss per case, `[B]`, and the names that the loss looked up in the memory.
    fn loss_with(&self, models: &dyn Models, choices: &dyn RandomChoices) -> (Tensor<1>, BTreeSet<String>) {
        let evaluate = |example: &Example, models: &dyn Models, choices: &dyn RandomChoices, process: &dyn Process| {
            let condition = (&self.condition, Some(CONDITIONS));
            let context = Context::new(example, condition, process, models, choices, self.setting.steps)
                .with_memory(&self.setting.memory);
            let loss = self.objective.loss(&context);
            (loss, context.names_remembered())
        };
        match self.setting.mutation {
            None => evaluate(&self.example, models, choices, &self.process),
            Some(mutation) => {
                mutation.apply(&self.example, models, choices, &self.process, self.setting.steps, &evaluate)
            }
        }
    }

    /// Computes the loss of each case under the table `values`, row-major.
    pub fn losses(&self, values: &[f64]) -> Vec<f64> {
        // A loss may read no row. The table then has one that nothing reads.
        let shape = [self.rows.len().max(1), self.free];
        let mut values = values.to_vec();
        values.resize(shape[0] * shape[1], 0.0);
        let online = Tensor::<2>::from_data(TensorData::new(values, shape), (&Device::flex(), DType::F64));
        let lookups = Lookups::default();
        let table = Table { cases: self, stopped: online.clone(), online, lookups: &lookups, call: Cell::new(0) };
        self.loss_with(&table, &self.answers).0.into_data().try_into_vec::<f64>().expect("the loss is f64")
    }

    /// Returns whether a scored prediction depends on the outcome other than through the table.
    pub fn leaks(&self, values: &[f64]) -> bool {
        *self.process.scored.lock().expect("no thread panics while it records") = Some(Vec::new());
        self.losses(values);
        let scored = self.process.scored.lock().expect("no thread panics while it records").take();
        let width = self.worlds[0].width();
        scored.unwrap_or_default().into_iter().any(|prediction| {
            let values = prediction.into_data().try_into_vec::<f64>().expect("predictions are f64");
            let mut known = HashMap::<_, &[f64]>::new();
            values.chunks(width).enumerate().any(|(place, values)| {
                let first = known.entry(self.known_at(place)).or_insert(values);
                first.iter().zip(values).any(|(a, b)| (a - b).abs() > 1e-9)
            })
        })
    }

    /// Computes the gradient of the expected loss with respect to the table `values`, row-major.
    pub fn gradient(&self, values: &[f64], lookups: &Lookups) -> Vec<f64> {
        if self.rows.is_empty() {
            return Vec::new();
        }
        let device = Device::flex().autodiff();
        let shape = [self.rows.len(), self.free];
        let online =
            Tensor::<2>::from_data(TensorData::new(values.to_vec(), shape), (&device, DType::F64)).require_grad();
        let table =
            Table { cases: self, stopped: online.clone().inner(), online: online.clone(), lookups, call: Cell::new(0) };
        let (loss, _) = self.loss_with(&table, &self.answers);
        // A loss that reads the table only through detached predictions has the gradient 0.
        let total = (loss * self.weights.clone()).sum() + (online.clone() * 0.0).sum();
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

/// Models that predict zeros and record the rows that the loss reads.
struct Listener<'c, 'a> {
    cases: &'c Cases<'a>,
    rows: RefCell<Vec<Row>>,
    trained: RefCell<BTreeSet<Row>>,
    fault: Cell<Option<&'static str>>,
}

impl<'c, 'a> Listener<'c, 'a> {
    fn new(cases: &'c Cases<'a>) -> Self {
        Self { cases, rows: RefCell::default(), trained: RefCell::default(), fault: Cell::default() }
    }
}

impl Models for Listener<'_, '_> {
    fn predict(&self, role: Role, _: &Input, condition: &Condition, control: &Control) -> Tensor<3> {
        if role == Role::Reference {
            return self.cases.referred(condition);
        }
        let mut rows = self.rows.borrow_mut();
        let asked = self.cases.rows_of(condition, control);
        let mut known = HashMap::new();
        for (place, row) in asked.iter().enumerate() {
            if *known.entry(self.cases.known_at(place)).or_insert(*row) != *row {
                self.fault.set(Some("the condition or the guidance number of a prediction depends on its target"));
            }
        }
        if role == Role::Online {
            self.trained.borrow_mut().extend(asked.iter().copied());
        }
        rows.extend(asked);
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
