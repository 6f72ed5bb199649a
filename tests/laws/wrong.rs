//! Objectives that are wrong on purpose: written by hand, and derived from right ones by one change each.

use crate::{FAMILIES, contrast, objective};
use framework::prelude::{Condition, Context, Family, Needs, NullPrediction, Objective, Optimum, Role, Tensor};
use framework::random::tensor;
use proofs::laws;
use proofs::laws::{Mutation, mutants};
use serde_json::{Value, json};

/// An objective that is wrong on purpose and states another objective's optimum.
struct Wrong {
    name: &'static str,
    of: Box<dyn framework::plugin::ObjectivePlugin>,
    loss: fn(&Context<'_>) -> Tensor<1>,
    family: Family,
}

impl std::fmt::Debug for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl Objective for Wrong {
    fn needs(&self) -> Needs {
        self.of.needs()
    }
    fn loss(&self, context: &Context<'_>) -> Tensor<1> {
        (self.loss)(context)
    }
    fn null(&self) -> NullPrediction {
        self.of.null()
    }
    fn optimum(&self, family: Family) -> Optimum {
        self.of.optimum(family)
    }
    fn guidance_of_scale(&self, scale: f64) -> Option<f64> {
        self.of.guidance_of_scale(scale)
    }
    fn scale_of_guidance(&self, guidance: f64) -> Option<f64> {
        self.of.scale_of_guidance(guidance)
    }
    fn trained_scales(&self) -> Option<[f64; 2]> {
        self.of.trained_scales()
    }
    fn extra_passes(&self) -> usize {
        self.of.extra_passes()
    }
}

/// Computes gft's loss with `mixture` in place of its own mixture of branches. The wrong losses are built from it.
fn gft(context: &Context<'_>, mixture: fn(Tensor<3>, Tensor<3>, Tensor<3>) -> Tensor<3>) -> Tensor<1> {
    let (condition, dropped) = context.drop_condition(0.1);
    let beta = context.uniform("beta", 0.0, 1.0);
    let input: Vec<f64> = beta.iter().zip(&dropped).map(|(beta, dropped)| if *dropped { 1.0 } else { *beta }).collect();
    let conditional = context.online(&condition, Some(&input));
    let unconditional = context.stopped(&context.condition.null(), Some(&vec![1.0; context.batch()]));
    let beta = context.weights(&conditional, |i, _| beta[i]);
    context.loss(mixture(conditional, unconditional, beta))
}

fn scale_aware_mg(context: &Context<'_>, null_input: f64, change: fn(f64) -> f64) -> Tensor<1> {
    let branch = context.choice("branch", &[0.1, 0.2, 0.7]);
    let scale = context.uniform("scale", 1.0, 5.0);
    let input: Vec<f64> = (0..branch.len()).map(|i| [0.0, scale[i], 1.0][branch[i]]).collect();
    let condition = context.condition.dropped(&branch.iter().map(|b| *b == 0).collect::<Vec<_>>());
    let ones = vec![1.0; branch.len()];
    let toward = context.model(Role::Ema, context.condition, Some(&ones))
        - context.model(Role::Ema, &context.condition.null(), Some(&vec![null_input; branch.len()]));
    let prediction = context.online(&condition, Some(&input));
    let weight = context.weights(&prediction, |i, _| if branch[i] == 1 { change(scale[i]) } else { 0.0 });
    context.loss(prediction - toward * weight)
}

fn cca(context: &Context<'_>, own_negatives: bool, of_gaps: fn(Tensor<1>, Tensor<1>) -> Tensor<1>) -> Tensor<1> {
    let negative = if own_negatives { context.condition.clone() } else { context.negative("negative") };
    let gap = |condition: &Condition| {
        context.log_likelihood(context.online(condition, None))
            - context.log_likelihood(context.model(Role::Reference, condition, None))
    };
    of_gaps(gap(context.condition), gap(&negative))
}

fn log_sigmoid(x: Tensor<1>) -> Tensor<1> {
    framework::burn::tensor::activation::log_sigmoid(x)
}

#[test]
fn wrong_objectives_fail_their_law() {
    let both = |name, of: Value, loss: fn(&Context<'_>) -> Tensor<1>| {
        FAMILIES.map(|family| Wrong { name, of: objective(of.clone()), loss, family }).into_iter().collect::<Vec<_>>()
    };
    let one = |name, family, of: Value, loss: fn(&Context<'_>) -> Tensor<1>| {
        vec![Wrong { name, of: objective(of), loss, family }]
    };
    let aware = json!({ "type": "mg", "scale": { "type": "input" }, "t_high": 1.0 });
    let contrastive = contrast(1.0, 1.0);
    let mutants: Vec<Wrong> = [
        both("sign flipped", json!({ "type": "gft" }), |c| -gft(c, |f, u, b| f * b.clone() + u * (b.neg() + 1.0))),
        both("beta swapped for 1 - beta", json!({ "type": "gft" }), |c| {
            gft(c, |f, u, b| f * (b.clone().neg() + 1.0) + u * b)
        }),
        both("null branch added whole", json!({ "type": "gft" }), |c| gft(c, |f, u, b| f * b + u)),
        both("gradient stopped on the wrong branch", json!({ "type": "gft" }), |c| {
            let (condition, dropped) = c.drop_condition(0.1);
            let beta = c.uniform("beta", 0.0, 1.0);
            let input: Vec<f64> = beta.iter().zip(&dropped).map(|(b, d)| if *d { 1.0 } else { *b }).collect();
            let conditional = c.stopped(&condition, Some(&input));
            let unconditional = c.online(&c.condition.null(), Some(&vec![1.0; c.batch()]));
            let beta = c.weights(&conditional, |i, _| beta[i]);
            c.loss(conditional * beta.clone() + unconditional * (beta.neg() + 1.0))
        }),
        both("dropped samples keep their beta as input", json!({ "type": "gft" }), |c| {
            let (condition, _) = c.drop_condition(0.1);
            let beta = c.uniform("beta", 0.0, 1.0);
            let conditional = c.online(&condition, Some(&beta));
            let unconditional = c.stopped(&c.condition.null(), Some(&vec![1.0; c.batch()]));
            let weight = c.weights(&conditional, |i, _| beta[i]);
            c.loss(conditional * weight.clone() + unconditional * (weight.neg() + 1.0))
        }),
        both("another's condition in place of null", json!({ "type": "cfg" }), |c| {
            let (_, dropped) = c.drop_condition(0.5);
            let negative = c.negative("negative");
            let (own, other) = (c.loss(c.online(c.condition, None)), c.loss(c.online(&negative, None)));
            let weight = tensor(
                &dropped.iter().map(|d| f64::from(u8::from(*d))).collect::<Vec<_>>(),
                [dropped.len()],
                own.dtype(),
                &own.device().inner(),
            );
            own * (weight.clone().neg() + 1.0) + other * weight
        }),
        both("null is never trained", json!({ "type": "cfg" }), |c| c.loss(c.online(c.condition, None))),
        both("scale off by one", aware.clone(), |c| scale_aware_mg(c, 0.0, |scale| scale)),
        both("guided away", aware.clone(), |c| scale_aware_mg(c, 0.0, |scale| 1.0 - scale)),
        both("null read at scale 1, where it is not trained", aware, |c| scale_aware_mg(c, 1.0, |scale| scale - 1.0)),
        both("scale added to the conditional", json!({ "type": "distill" }), |c| {
            let scale = c.uniform("scale", 1.0, 5.0);
            let (cond, null) =
                (c.model(Role::Reference, c.condition, None), c.model(Role::Reference, &c.condition.null(), None));
            let weight = c.weights(&cond, |i, _| scale[i]);
            c.squared_error(c.online(c.condition, Some(&scale)), cond.clone() + (cond - null) * weight)
        }),
        both("teacher's branches swapped", json!({ "type": "distill" }), |c| {
            let scale = c.uniform("scale", 1.0, 5.0);
            let (cond, null) =
                (c.model(Role::Reference, c.condition, None), c.model(Role::Reference, &c.condition.null(), None));
            let weight = c.weights(&cond, |i, _| scale[i]);
            c.squared_error(c.online(c.condition, Some(&scale)), cond.clone() + (null - cond) * weight)
        }),
        both("target space mixed up", json!({ "type": "distill" }), |c| {
            let scale = c.uniform("scale", 1.0, 5.0);
            let (cond, null) =
                (c.model(Role::Reference, c.condition, None), c.model(Role::Reference, &c.condition.null(), None));
            let weight = c.weights(&cond, |i, _| scale[i]);
            // The score is the noise up to sign and scale. Here the student predicts one and is taught the other.
            c.squared_error(c.online(c.condition, Some(&scale)).neg(), null.clone() + (cond - null) * weight)
        }),
        one("negatives count as positives", Family::NextToken, contrastive.clone(), |c| {
            cca(c, false, |own, other| -log_sigmoid(own) - log_sigmoid(other))
        }),
        one("wrong negatives: one's own condition", Family::NextToken, contrastive.clone(), |c| {
            cca(c, true, |own, other| -log_sigmoid(own) - log_sigmoid(-other))
        }),
        one("beta inverted", Family::NextToken, contrast(2.0, 1.0), |c| {
            cca(c, false, |own, other| -log_sigmoid(own * 0.5) - log_sigmoid(other * -0.5))
        }),
        one("first step away from guidance", Family::Continuous, contrastive, |c| {
            cca(c, false, |own, other| -log_sigmoid(-own) - log_sigmoid(other))
        }),
    ]
    .into_iter()
    .flatten()
    .collect();
    assert!(mutants.len() >= 12);
    for mutant in &mutants {
        let verdict = laws::verify(mutant, mutant.family, 10, 3);
        let found = verdict.counterexample.unwrap_or_else(|| panic!("{} passes on {:?}", mutant.name, mutant.family));
        assert!(found.contains("outcome"), "{found}");
    }
}

/// The four objectives that passed every law while worlds had the input 0, one step and unchecked conversions.
#[derive(Debug)]
enum Fooling {
    /// Adds half of the input to the prediction that it scores.
    Input,
    /// Converts scales to guidance numbers wrongly.
    Conversion,
    /// Has another loss up to this step.
    Step(usize),
    /// Trains one guidance number and claims every scale.
    OneNumber,
}

impl Objective for Fooling {
    fn needs(&self) -> Needs {
        Needs { null_condition: true, guidance_input: !matches!(self, Self::Input | Self::Step(_)), ..Needs::default() }
    }
    fn loss(&self, c: &Context<'_>) -> Tensor<1> {
        let mixture = |f: Tensor<3>, u: Tensor<3>, b: Tensor<3>| f * b.clone() + u * (b.neg() + 1.0);
        match self {
            Self::Input => {
                let (condition, _) = c.drop_condition(0.1);
                let prediction = c.online(&condition, None);
                match &c.example.input {
                    framework::process::Input::Noisy { x_t, .. } => c.loss(prediction + x_t.clone() * 0.5),
                    _ => c.loss(prediction),
                }
            }
            Self::Conversion => gft(c, mixture),
            Self::Step(step) => {
                let (condition, _) = c.drop_condition(0.1);
                let loss = c.loss(c.online(&condition, None));
                if c.step < *step { -loss } else { loss }
            }
            Self::OneNumber => {
                let (condition, dropped) = c.drop_condition(0.1);
                let number = |i: usize| if dropped[i] { 1.0 } else { 0.5 };
                let input: Vec<f64> = (0..c.batch()).map(number).collect();
                let conditional = c.online(&condition, Some(&input));
                let unconditional = c.stopped(&c.condition.null(), Some(&vec![1.0; c.batch()]));
                let beta = c.weights(&conditional, |i, _| input[i]);
                c.loss(mixture(conditional, unconditional, beta))
            }
        }
    }
    fn null(&self) -> NullPrediction {
        NullPrediction::TrainedAt(self.needs().guidance_input.then_some(1.0))
    }
    fn optimum(&self, _: Family) -> Optimum {
        if !self.needs().guidance_input {
            return Optimum::Conditional;
        }
        let scale = |beta: Option<f64>, _| 1.0 / beta.expect("the network reads a number");
        Optimum::Tilted(framework::objective::optimum::Tilt::data("1 / beta", scale))
    }
    fn guidance_of_scale(&self, scale: f64) -> Option<f64> {
        let wrong = if matches!(self, Self::Conversion) { 2.0 } else { 1.0 };
        self.needs().guidance_input.then_some(wrong / scale)
    }
    fn scale_of_guidance(&self, guidance: f64) -> Option<f64> {
        self.guidance_of_scale(guidance)
    }
    fn trained_scales(&self) -> Option<[f64; 2]> {
        self.needs().guidance_input.then_some([1.0, f64::INFINITY])
    }
    fn extra_passes(&self) -> usize {
        1
    }
}

#[test]
fn objectives_that_fooled_the_laws_are_refuted_with_a_small_world() {
    let refuted = |objective: Fooling, why: &str| {
        let family = Family::Continuous;
        let found = laws::verify(&objective, family, 10, 0).counterexample;
        let found = found.unwrap_or_else(|| panic!("{objective:?} passes"));
        assert!(found.contains(why), "{objective:?}: {found}");
        let outcomes = found.lines().skip_while(|line| !line.contains("outcome")).count() - 1;
        assert!(found.lines().count() < 12 && outcomes <= 4, "{found}");
    };
    refuted(Fooling::Input, "trained to");
    refuted(Fooling::Conversion, "`scale_of_guidance` returns");
    refuted(Fooling::Step(100), "at step 0 of");
    refuted(Fooling::Step(50_000), "at step 0 of");
    refuted(Fooling::OneNumber, "`trained_scales` states 1.0000 to inf, but the loss trains 2.0000");
}

/// Fewest mutants that the laws refute.
const MUTANTS: usize = 120;

#[test]
fn every_mutant_is_refuted_or_equivalent() {
    let entries = [
        json!({ "type": "cfg" }),
        json!({ "type": "gft" }),
        json!({ "type": "gft", "beta_min": 0.25, "schedule": { "type": "linear" } }),
        json!({ "type": "mg", "scale": { "type": "input" } }),
        json!({ "type": "mg", "t_high": 1.0 }),
        json!({ "type": "distill" }),
        json!({ "type": "distill", "distance": "kullback_leibler" }),
        json!({ "type": "autoguided" }),
        contrast(1.0, 2.0),
    ];
    let (mut refuted, mut equivalent, mut survivors) = (0, 0, Vec::new());
    let mut table =
        vec!["| objective | mutants refuted | equivalent | surviving |".to_string(), "|---|---|---|---|".to_string()];
    for entry in entries {
        let before = (refuted, equivalent, survivors.len());
        let objective = objective(entry.clone());
        for mutation in Mutation::all() {
            let mut tried = Vec::new();
            for family in FAMILIES {
                let towards = matches!(objective.optimum(family), Optimum::Towards);
                if !towards && mutants::differs(&*objective, &mutation, family) {
                    tried.extend(mutants::refuted(&*objective, &mutation, family, 5).map(|refuted| (family, refuted)));
                }
            }
            if tried.iter().any(|(_, refuted)| *refuted) {
                refuted += 1;
            } else if !tried.is_empty() {
                // The loss is another one. It reaches every row of the original's optimum, so it is the same objective.
                let same = tried.iter().all(|(family, _)| mutants::equivalent(&*objective, &mutation, *family));
                equivalent += usize::from(same);
                if !same {
                    survivors.push(format!("{entry}: {}", mutation.name()));
                }
            }
        }
        let counts = (refuted - before.0, equivalent - before.1, survivors.len() - before.2);
        table.push(format!("| {} | {} | {} | {} |", super::label(&entry), counts.0, counts.1, counts.2));
    }
    table.push(format!("| all | {refuted} | {equivalent} | {} |", survivors.len()));
    super::page::section("Mutants", &table);
    println!("{refuted} mutants refuted, {equivalent} equivalent, {} survive", survivors.len());
    assert!(survivors.is_empty(), "{survivors:#?}");
    assert!(refuted >= MUTANTS, "only {refuted} mutants were refuted");
}
