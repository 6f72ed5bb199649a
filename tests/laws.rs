//! The laws for every registered objective, laws across objectives, and objectives that are wrong on purpose.

use framework::plugin::Kind;
use framework::prelude::{Condition, Context, Device, Family, Needs, NullPrediction, Objective, Optimum, Role, Tensor};
use framework::random::tensor;
use framework::sampling::guidance::mix;
use proofs::laws::{self, CONDITIONS, Reached, World};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use registry::Registry;
use serde_json::{Value, json};
use unguided as _;

/// One family per kind of loss: squared error and cross-entropy.
const FAMILIES: [Family; 2] = [Family::Continuous, Family::NextToken];

fn objective(entry: Value) -> Box<dyn framework::plugin::ObjectivePlugin> {
    Registry::linked().objective(entry).unwrap_or_else(|problems| panic!("{problems:?}"))
}

/// Returns a CCA entry that contrasts with the unconditional distribution.
fn contrast(beta: f64, lambda: f64) -> Value {
    json!({
        "type": "cca", "drop_probability": 0.0,
        "variant": { "type": "contrast", "beta": beta, "negatives": { "lambda": lambda, "same_condition": "negative" } }
    })
}

fn worlds(family: Family, length: usize, count: usize) -> Vec<World> {
    let mut runner = TestRunner::deterministic();
    let strategy = World::strategy(family, length);
    (0..count).map(|_| strategy.new_tree(&mut runner).unwrap().current().pretrained()).collect()
}

#[test]
fn every_objective_reaches_its_optimum() {
    let registry = Registry::linked();
    let mut proven = 0;
    for entry in registry.entries().iter().filter(|entry| entry.kind == Kind::Objective) {
        for variant in registry.variants(entry) {
            let objective = registry.objective(variant.clone()).unwrap();
            for family in Family::ALL {
                let verdict = laws::verify(&*objective, family, 30, 7);
                let wrong = verdict.counterexample.unwrap_or_default();
                assert!(wrong.is_empty(), "{variant} on {family:?}: not {}\n{wrong}", verdict.statement);
                proven += usize::from(verdict.worlds > 0);
            }
        }
    }
    // The five objectives on all families.
    assert!(proven >= 20, "only {proven} statements were proven");
}

/// A prediction with its key (world, input, condition).
type Prediction = ((usize, usize, usize), Vec<f64>);

/// Returns the predictions of the rows with a condition, sorted by key.
fn conditional(rows: Vec<Reached>) -> Vec<Prediction> {
    let mut all: Vec<_> = rows
        .into_iter()
        .filter_map(|row| {
            row.rests.unwrap_or_else(|why| panic!("{why}"));
            Some(((row.world, row.input, row.condition?), row.prediction))
        })
        .collect();
    all.sort_by_key(|(key, _)| *key);
    all
}

#[track_caller]
fn same(family: Family, name: &str, a: &[Prediction], b: &[Prediction]) {
    assert_eq!(a.len(), b.len(), "{name}");
    for ((at, a), (also, b)) in a.iter().zip(b) {
        assert_eq!(at, also);
        let probabilities = |p: &[f64]| match family {
            Family::Continuous => p.to_vec(),
            _ => laws::log_softmax(p).iter().map(|v| v.exp()).collect(),
        };
        for (a, b) in probabilities(a).iter().zip(probabilities(b)) {
            assert!((a - b).abs() <= laws::TOLERANCE * b.abs().max(1.0), "{name} at {at:?}: {a} against {b}");
        }
    }
}

#[test]
fn all_objectives_reach_what_guidance_samples() {
    for scale in [1.3, 2.0, 4.5] {
        for (family, length) in [(Family::Continuous, 1), (Family::NextToken, 2), (Family::NextToken, 1)] {
            let worlds = worlds(family, length, 40);
            // cfg's optimum, guided at sampling with the arithmetic of the guidance rule.
            let learned = laws::reached(&*objective(json!({ "type": "cfg" })), &worlds, false);
            let guided: Vec<_> = conditional(learned.clone())
                .into_iter()
                .map(|((world, input, condition), cond)| {
                    let null =
                        learned.iter().find(|r| (r.world, r.input, r.condition) == (world, input, None)).unwrap();
                    let at = |p: &[f64]| {
                        tensor::<3>(p, [1, 1, p.len()], framework::burn::tensor::DType::F64, &Device::flex())
                    };
                    let mixed = mix(at(&cond), at(&null.prediction), scale, cond.len());
                    ((world, input, condition), mixed.into_data().try_into_vec::<f64>().unwrap())
                })
                .collect();
            let beta = 1.0 / scale;
            for (name, entry) in [
                ("gft", json!({ "type": "gft", "beta_min": beta, "beta_max": beta })),
                ("distill", json!({ "type": "distill", "scale_min": scale, "scale_max": scale })),
            ] {
                same(family, name, &conditional(laws::reached(&*objective(entry), &worlds, false)), &guided);
            }
            let mg = json!({ "type": "mg", "scale": { "type": "input", "min": scale, "max": scale }, "t_high": 1.0 });
            let rows = laws::reached(&*objective(mg), &worlds, false);
            let rows = rows.into_iter().filter(|row| row.guidance == Some(scale)).collect();
            // The first token of a sequence is sampled at t = 1, where mg teaches no guidance.
            if family == Family::Continuous {
                same(family, "mg", &conditional(rows), &guided);
            } else if length == 2 {
                let later = |rows: Vec<Prediction>| -> Vec<_> {
                    rows.into_iter().filter(|((_, input, _), _)| *input > 0).collect()
                };
                same(family, "mg", &later(conditional(rows)), &later(guided.clone()));
            }
            if length == 1 && family == Family::NextToken {
                let cca = contrast(1.0 / (scale - 1.0), 2.0);
                same(family, "cca", &conditional(laws::reached(&*objective(cca), &worlds, true)), &guided);
            }
        }
    }
}

#[test]
fn plain_mg_has_the_fixed_point_one_over_one_minus_w_and_repels_from_w_one_on() {
    let worlds = worlds(Family::Continuous, 1, 20);
    for w in [0.2, 0.5, 0.9] {
        let mg = objective(json!({ "type": "mg", "scale": { "type": "fixed", "scale": 1.0 + w }, "t_high": 1.0 }));
        for row in laws::reached(&*mg, &worlds, false) {
            let Some(condition) = row.condition else { continue };
            assert_eq!(row.rests, Ok(()));
            let world = &worlds[row.world];
            if world.progress_at(row.input) > 0.0 {
                let (c, u) = (world.data(Some(condition), row.input), world.data(None, row.input));
                for i in 0..c.len() {
                    let stated = u[i] + (c[i] - u[i]) / (1.0 - w);
                    assert!((row.prediction[i] - stated).abs() < 1e-6 * stated.abs().max(1.0));
                }
            }
        }
    }
    // The check phase refuses these scales. The law states the reason.
    for w in [1.0, 1.5, 3.0] {
        let verdict = laws::verify(&mg(1.0 + w), Family::Continuous, 20, 0);
        assert!(verdict.statement.contains("repels") && verdict.counterexample.is_none(), "{verdict:?}");
    }
}

fn mg(scale: f64) -> objectives::Mg {
    let scale = objectives::Scale::Fixed(objectives::FixedScale { scale });
    objectives::Mg { scale, t_high: 1.0, ..objectives::Mg::default() }
}

#[test]
fn a_normalised_model_stays_short_of_ccas_optimum() {
    // SPEC.md states that no scale describes CCA's optimum for models whose probabilities must sum to one.
    let worlds = worlds(Family::NextToken, 1, 40);
    let cca = contrast(1.0, 1.0);
    let (free, normalised) = (
        conditional(laws::reached(&*objective(cca.clone()), &worlds, true)),
        conditional(laws::reached(&*objective(cca), &worlds, false)),
    );
    let probabilities = |p: &[f64]| laws::log_softmax(p).into_iter().map(f64::exp).collect::<Vec<_>>();
    let mut worst = 0.0_f64;
    let (mut toward, mut all) = (0, 0);
    for ((at, free), (_, normalised)) in free.iter().zip(&normalised) {
        let data: Vec<f64> = worlds[at.0].data(Some(at.2), at.1).into_iter().map(f64::exp).collect();
        let (free, normalised) = (probabilities(free), probabilities(normalised));
        worst = free.iter().zip(&normalised).map(|(a, b)| (a - b).abs()).fold(worst, f64::max);
        let step: Vec<f64> = normalised.iter().zip(&data).map(|(n, d)| n - d).collect();
        let tilt: Vec<f64> = free.iter().zip(&data).map(|(f, d)| f - d).collect();
        all += 1;
        toward += usize::from(step.iter().zip(&tilt).map(|(a, b)| a * b).sum::<f64>() > 0.0);
    }
    println!("normalised CCA: at most {worst:.3} from the tilt; {toward} of {all} rows moved toward it");
    assert!(worst > 1e-3, "normalised models reach the tilt: the largest difference is {worst}");
    assert!(toward * 10 >= all * 9, "only {toward} of {all} rows moved toward the tilt");
}

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
        assert!(found.contains("probability"), "{found}");
    }
}

#[test]
fn a_missing_stop_gradient_is_seen_where_it_matters() {
    // Below w = 1, both losses have the same fixed point. From w = 1 on, only the loss with stop-gradient diverges.
    #[derive(Debug)]
    struct TwoSided(objectives::Mg, f64);
    impl Objective for TwoSided {
        fn needs(&self) -> Needs {
            self.0.needs()
        }
        fn loss(&self, c: &Context<'_>) -> Tensor<1> {
            let (condition, dropped) = c.drop_condition(0.1);
            let toward = c.online(c.condition, None) - c.online(&c.condition.null(), None);
            let prediction = c.online(&condition, None);
            let weight = c.weights(&prediction, |i, _| if dropped[i] { 0.0 } else { self.1 - 1.0 });
            c.loss(prediction - toward * weight)
        }
        fn null(&self) -> NullPrediction {
            self.0.null()
        }
        fn optimum(&self, family: Family) -> Optimum {
            self.0.optimum(family)
        }
        fn extra_passes(&self) -> usize {
            2
        }
    }
    assert!(laws::verify(&TwoSided(mg(1.5), 1.5), Family::Continuous, 10, 0).counterexample.is_none());
    assert!(laws::verify(&mg(2.5), Family::Continuous, 10, 0).counterexample.is_none());
    assert!(laws::verify(&TwoSided(mg(2.5), 2.5), Family::Continuous, 10, 0).counterexample.is_some());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn relabelled_conditions_are_learned_under_their_new_names(world in World::strategy(Family::Continuous, 1)) {
        let outcomes = world.outcomes();
        let mut turned = world.clone();
        turned.joint.rotate_left(outcomes);
        for entry in [json!({ "type": "cfg" }), json!({ "type": "gft" }), json!({ "type": "mg" })] {
            let objective = objective(entry);
            let find = |rows: &[Reached], row: &Reached, condition: usize| {
                rows.iter()
                    .find(|r| (r.input, r.condition, r.guidance) == (row.input, Some(condition), row.guidance))
                    .map(|r| r.prediction.clone())
                    .unwrap()
            };
            let (a, b) = (
                laws::reached(&*objective, std::slice::from_ref(&world), false),
                laws::reached(&*objective, std::slice::from_ref(&turned), false),
            );
            for row in b.iter().filter(|row| row.condition.is_some()) {
                let old = find(&a, row, (row.condition.unwrap() + 1) % CONDITIONS);
                for (new, old) in row.prediction.iter().zip(old) {
                    prop_assert!((new - old).abs() < 1e-9, "{new} against {old}");
                }
            }
        }
    }
}
