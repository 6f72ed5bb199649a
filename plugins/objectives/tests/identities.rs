//! Identities between objectives on one batch, in values and gradients.

use framework::burn::tensor::{DType, Device, Tensor};
use framework::network::backbone::Control;
use framework::network::condition::Condition;
use framework::objective::Objective;
use framework::objective::context::{Context, Models, RandomChoices, Role};
use framework::process::diffusion::VpConfig;
use framework::process::{Example, Input, Process, Progress, Target};
use framework::random::{Random, tensor};
use framework_dylib as _;
use objectives::{Cfg, Gft, Mg};

/// A network that predicts fixed values, plus a constant offset for the null condition.
struct Numbers(Tensor<3>);

impl Models for Numbers {
    fn predict(&self, role: Role, _: &Input, condition: &Condition, _: &Control) -> Tensor<3> {
        let Condition::Class(classes) = condition else { unreachable!("conditions here are classes") };
        let offset = if classes.iter().all(Option::is_none) { 0.7 } else { 0.0 };
        if role == Role::Online { self.0.clone() + offset } else { self.0.clone().inner() + offset }
    }
}

/// Random choices that return the upper bound and drop no condition.
struct Highest;

impl RandomChoices for Highest {
    fn uniform(&self, _: &str, _: f64, high: f64, n: usize) -> Vec<f64> {
        vec![high; n]
    }
    fn choice(&self, _: &str, _: &[f64], n: usize) -> Vec<usize> {
        vec![1; n]
    }
    fn negative(&self, _: &str, condition: &Condition) -> Condition {
        condition.clone()
    }
}

#[test]
fn gft_at_beta_one_is_the_plain_conditional_loss() {
    const SHAPE: [usize; 3] = [4, 2, 3];
    let normal = |name: &str| {
        let numbers: Vec<f64> = Random::new(0).normal(name, 0, 0, 24).into_iter().map(f64::from).collect();
        tensor::<3>(&numbers, SHAPE, DType::F64, &Device::flex())
    };
    let example = Example {
        input: Input::Noisy { x_t: normal("x"), t: vec![0.5; 4] },
        target: Target::Values(normal("y")),
        progress: Progress::PerSample(vec![0.5; 4]),
        scored: None,
    };
    let condition = Condition::Class(vec![Some(0), Some(1), Some(2), Some(0)]);
    let process = VpConfig::default().process();
    let value_and_gradient = |objective: &dyn Objective| {
        let data = normal("f").into_data();
        let f = Tensor::<3>::from_data(data, (&Device::flex().autodiff(), DType::F64)).require_grad();
        let models = Numbers(f.clone());
        let context = Context::new(&example, (&condition, Some(3)), &process, &models, &Highest, (0, 1));
        let loss = objective.loss(&context);
        let values = loss.clone().inner().into_data().try_into_vec::<f64>().unwrap();
        let gradient = f.grad(&loss.mean().backward()).unwrap().into_data().try_into_vec::<f64>().unwrap();
        (values, gradient)
    };
    let gft: Gft = framework::serde_json::from_str(r#"{"beta_min": 1.0, "beta_max": 1.0}"#).unwrap();
    let cfg: Cfg = framework::serde_json::from_str("{}").unwrap();
    let ((a, da), (b, db)) = (value_and_gradient(&gft), value_and_gradient(&cfg));
    let apart =
        |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, framework::numbers::larger);
    assert!(apart(&a, &b) < 1e-12 && apart(&da, &db) < 1e-12, "{a:?} {b:?}");
    // Below beta = 1 the two losses differ.
    let half: Gft = framework::serde_json::from_str(r#"{"beta_min": 0.5, "beta_max": 0.5}"#).unwrap();
    assert!(apart(&value_and_gradient(&half).0, &b) > 1e-3);
}

#[test]
fn channels_of_a_learned_variance_are_those_of_the_conditional_prediction() {
    let normal = |name: &str, width: usize| {
        let numbers: Vec<f64> = Random::new(0).normal(name, 0, 0, 8 * width).into_iter().map(f64::from).collect();
        tensor::<3>(&numbers, [4, 2, width], DType::F64, &Device::flex())
    };
    let example = Example {
        input: Input::Noisy { x_t: normal("x", 3), t: vec![0.5; 4] },
        target: Target::Values(normal("y", 3)),
        progress: Progress::PerSample(vec![0.5; 4]),
        scored: None,
    };
    let condition = Condition::Class(vec![Some(0), Some(1), Some(2), Some(0)]);
    let process = VpConfig { variance_loss: true, ..VpConfig::default() }.process();
    // Three channels of the latent and three of its variance. The null prediction is 0.7 larger in all six.
    let f = normal("f", 6);
    let models = Numbers(Tensor::from_data(f.clone().into_data(), (&Device::flex().autodiff(), DType::F64)));
    let loss = |objective: &dyn Objective| {
        let context = Context::new(&example, (&condition, Some(3)), &process, &models, &Highest, (0, 1));
        objective.loss(&context).inner().into_data().try_into_vec::<f64>().unwrap()
    };
    let shifted = |shift: f64| {
        let latent = f.clone().narrow(2, 0, 3) + shift;
        let prediction = Tensor::cat(vec![latent, f.clone().narrow(2, 3, 3)], 2);
        process.loss(prediction, &example).into_data().try_into_vec::<f64>().unwrap()
    };
    let near = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12);
    // 0.5 f + 0.5 (f + 0.7) on the latent; with and without gradient of the second term.
    for stop_gradient in [true, false] {
        let gft = Gft { beta: Some(0.5), stop_gradient, ..Gft::default() };
        assert!(near(&loss(&gft), &shifted(0.35)), "stop_gradient {stop_gradient}");
    }
    // f - w (f - (f + 0.7)) with w = 0.45 on the latent.
    assert!(near(&loss(&Mg::default()), &shifted(0.45 * 0.7)));
}
