//! Compares guidance and samplers with the closed-form Gaussian world `p(x | c) = N(0, 1)`, `p(x) = N(0, 2)`.
//!
//! Let `y = x_t / alpha` and `r = sigma / alpha`. The noise predictions are `y r / (1 + r^2)` (conditional) and
//! `y r / (2 + r^2)` (unconditional). Guided at scale s, the ODE `dy / dr = eps` keeps
//! `y / sqrt((1 + r^2)^s (2 + r^2)^(1 - s))` constant. So the ODE samples variance 2^(1 - s), and the SDE samples
//! variance (2 - 2^(2 - 2s)) / (2s - 1). Neither is 2 / (1 + s), the variance of the powered law
//! `p(x | c)^s p(x)^(1 - s)`.

use framework::burn::tensor::DType;
use framework::network::backbone::{Backbone, Control};
use framework::network::condition::Condition;
use framework::plugin::{GuidancePlugin, SamplerPlugin};
use framework::prelude::{Deserialize, Device, JsonSchema, Serialize, Tensor};
use framework::process::diffusion::{Vp, VpConfig};
use framework::process::path::NoisePath;
use framework::process::{Input, Latent, LatentShape};
use framework::random::{per_sample, tensor};
use framework::sampling::denoiser::{Denoiser, GuidanceNumbers};
use framework::sampling::guidance::{Branch, Guidance, GuidanceNeeds, Guided, Moment, Trajectory, mix};
use framework::sampling::sampler::{NoiseSource, SamplerStep};
use serde_json::{Value, json};
use unguided as _;

/// The exact noise prediction of the world.
#[derive(Debug)]
struct Exact(Vp);

impl Backbone for Exact {
    fn predict(&self, input: &Input, condition: &Condition, _: &Control) -> Tensor<3> {
        let (Input::Noisy { x_t, t }, Condition::Class(classes)) = (input, condition) else { unreachable!() };
        let factor: Vec<f64> = t
            .iter()
            .zip(classes)
            .map(|(t, class)| {
                let at = self.0.at(*t);
                let variance = if class.is_some() { 1.0 } else { 2.0 };
                at.sigma / (variance * at.alpha * at.alpha + at.sigma * at.sigma)
            })
            .collect();
        x_t.clone() * per_sample(&factor, x_t)
    }
}

/// Noise that is 1 for sample i at draw index i, and 0 elsewhere. Sample i is the sampler's coefficient of noise i.
struct Impulses(usize);

impl NoiseSource for Impulses {
    fn normal(&mut self, draw: usize) -> Tensor<3> {
        let values: Vec<f64> = (0..self.0).map(|i| f64::from(u8::from(i == draw))).collect();
        tensor(&values, [self.0, 1, 1], DType::F64, &Device::flex())
    }
    fn uniform(&mut self, _: usize, _: usize) -> Vec<f64> {
        unreachable!("no sampler in this file calls it")
    }
    fn count(&self) -> usize {
        unreachable!("no sampler in this file calls it")
    }
    fn device(&self) -> Device {
        Device::flex()
    }
}

/// Guidance at another scale at each evaluation.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct PerStep {
    /// Scale of each evaluation.
    scales: Vec<f64>,
}

framework::register!(guidance "per_step" => PerStep);

impl Guidance for PerStep {
    fn needs(&self) -> GuidanceNeeds {
        GuidanceNeeds { null: true, ..GuidanceNeeds::branches(2) }
    }
    fn start(&self) -> Box<dyn Trajectory> {
        Box::new(self.clone())
    }
}

impl Trajectory for PerStep {
    fn branches(&mut self, _: &Moment) -> Vec<Branch> {
        vec![Branch::given(), Branch::null()]
    }
    fn combine(&mut self, moment: &Moment, predictions: Vec<Tensor<3>>) -> Guided {
        let [cond, null] = predictions.try_into().expect("two branches");
        mix(cond, null, self.scales[moment.evaluation], moment.channels).into()
    }
}

/// Returns the coefficient of each noise in the result, and the NFE.
fn coefficients(sampler: Value, guidance: Value, timesteps: usize, draws: usize) -> (Vec<f64>, usize) {
    coefficients_for(Some(0), sampler, guidance, timesteps, draws)
}

/// Returns the same for a class, or for the null condition.
fn coefficients_for(
    class: Option<usize>,
    sampler: Value,
    guidance: Value,
    timesteps: usize,
    draws: usize,
) -> (Vec<f64>, usize) {
    let sampler: Box<dyn SamplerPlugin> = serde_json::from_value(sampler).unwrap();
    let rule: Box<dyn GuidancePlugin> = serde_json::from_value(guidance).unwrap();
    let vp = VpConfig { timesteps, ..VpConfig::default() }.process();
    let network = Exact(vp.clone());
    let condition = Condition::Class(vec![class; draws]);
    let mut model =
        Denoiser::new(&network, &vp, &*rule, GuidanceNumbers::NONE, &condition, &LatentShape::values([1, 1], 1));
    let latent = sampler.sample(&mut model, &mut Impulses(draws), &mut |_: &SamplerStep<'_>| {});
    let Latent::Values(x) = latent else { unreachable!() };
    (x.into_data().try_into_vec::<f64>().unwrap(), model.nfe())
}

fn cfg(scale: f64) -> Value {
    json!({ "type": "cfg", "scale": scale })
}

#[test]
fn the_ode_ends_with_variance_two_to_the_one_minus_s() {
    for scale in [0.0, 1.0, 1.5, 2.0, 3.0] {
        let sampler = json!({ "type": "ddim", "steps": 1000 });
        let (x, nfe) = coefficients(sampler, cfg(scale), 1000, 1);
        let (got, stated) = (x[0] * x[0], 2.0_f64.powf(1.0 - scale));
        // A first-order solver with 1,000 steps is accurate to 1 %.
        assert!((got / stated - 1.0).abs() < 0.01, "scale {scale}: {got} against {stated}");
        assert_eq!(nfe, if scale == 0.0 || scale == 1.0 { 1000 } else { 2000 }, "scales 0 and 1 need one branch only");
    }
}

#[test]
fn the_sde_ends_with_its_own_variance() {
    for scale in [1.0, 1.5, 2.0, 3.0] {
        let sampler = json!({ "type": "ddpm", "steps": 1000 });
        let (x, _) = coefficients(sampler, cfg(scale), 1000, 1001);
        let (got, stated) =
            (x.iter().map(|x| x * x).sum::<f64>(), (2.0 - 2.0_f64.powf(2.0 - 2.0 * scale)) / (2.0 * scale - 1.0));
        assert!((got / stated - 1.0).abs() < 0.02, "scale {scale}: {got} against {stated}");
    }
}

/// Returns the order of convergence: the slope of the log error over the log step size.
fn order(scale: f64, order: usize) -> f64 {
    const TIMES: usize = 100_000;
    let vp = VpConfig { timesteps: TIMES, ..VpConfig::default() }.process();
    let exact = |t: f64| {
        let at = vp.at(t);
        let ratio = at.sigma / at.alpha;
        at.alpha * ((1.0 + ratio * ratio).powf(scale) * (2.0 + ratio * ratio).powf(1.0 - scale)).sqrt()
    };
    let stated = exact(1.0 / TIMES as f64) / exact(1.0);
    let points: Vec<(f64, f64)> = [40, 80, 160, 320]
        .into_iter()
        .map(|steps| {
            let sampler =
                json!({ "type": "dpm_solver_pp", "steps": steps, "order": order, "spacing": { "type": "log_snr" } });
            let (x, _) = coefficients(sampler, cfg(scale), TIMES, 1);
            (-(f64::from(steps)).ln(), (x[0] - stated).abs().ln())
        })
        .collect();
    let mean = |f: &dyn Fn(&(f64, f64)) -> f64| points.iter().map(f).sum::<f64>() / points.len() as f64;
    let (x, y) = (mean(&|p| p.0), mean(&|p| p.1));
    mean(&|p| (p.0 - x) * (p.1 - y)) / mean(&|p| (p.0 - x).powi(2))
}

#[test]
fn errors_fall_with_the_order_of_the_solver() {
    for scale in [1.0, 2.0] {
        for expected in [1, 2] {
            let found = order(scale, expected);
            assert!((found - expected as f64).abs() < 0.15, "order {expected} at scale {scale}: {found}");
        }
    }
}

#[test]
fn ddim_is_the_first_order_of_dpm_solver_pp() {
    for scale in [1.0, 2.5] {
        let ddim = json!({ "type": "ddim", "steps": 50, "end_at_first_time": true });
        let solver = json!({ "type": "dpm_solver_pp", "steps": 49, "order": 1 });
        let (a, _) = coefficients(ddim, cfg(scale), 50, 1);
        let (b, _) = coefficients(solver, cfg(scale), 50, 1);
        assert!((a[0] / b[0] - 1.0).abs() < 1e-12, "{} {}", a[0], b[0]);
    }
}

fn cfg_pp(lambda: f64) -> Value {
    json!({ "type": "cfg_pp", "lambda": lambda })
}

/// The samplers that use a rule's second prediction.
fn renoising() -> Vec<Value> {
    let k = |method: &str| json!({ "type": "k_diffusion", "steps": 8, "method": method });
    let solver = |order: usize| json!({ "type": "dpm_solver_pp", "steps": 8, "order": order });
    vec![
        json!({ "type": "ddim", "steps": 8 }),
        solver(1),
        solver(2),
        k("euler"),
        k("euler_ancestral"),
        k("dpmpp2m"),
        k("dpmpp2s_ancestral"),
    ]
}

/// Asserts that two lists of coefficients agree to rounding.
fn assert_same(got: &[f64], expected: &[f64], what: &str) {
    let apart = got.iter().zip(expected).map(|(got, expected)| (got - expected).abs()).fold(0.0, f64::max);
    assert!(apart < 1e-12, "{what}: {got:?} against {expected:?}");
}

#[test]
fn cfg_plus_plus_at_weight_zero_is_unconditional_and_stays_for_equal_predictions() {
    for sampler in renoising() {
        let of = |class, rule| coefficients_for(class, sampler.clone(), rule, 1000, 9).0;
        assert_same(&of(Some(0), cfg_pp(0.0)), &of(Some(0), cfg(0.0)), &sampler.to_string());
        // Without a class, both predictions are the unconditional one.
        assert_same(&of(None, cfg_pp(0.7)), &of(None, json!({ "type": "none" })), &sampler.to_string());
        // At weight 1 the clean latent is the conditional one, but not the noise.
        let (one, conditional) = (of(Some(0), cfg_pp(1.0)), of(Some(0), cfg(1.0)));
        let apart = one.iter().zip(&conditional).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(apart > 1e-3, "{sampler}: {one:?} against {conditional:?}");
    }
}

#[test]
fn cfg_plus_plus_is_first_order_guidance_at_a_scale_per_step() {
    let lambda = 0.6;
    let euler = json!({ "type": "k_diffusion", "steps": 12, "method": "euler" });
    let path = VpConfig { timesteps: 1000, ..VpConfig::default() }.process();
    let sampler: samplers::KDiffusion = serde_json::from_value(json!({ "steps": 12, "method": "euler" })).unwrap();
    let sigmas = sampler.sigmas(&path);
    // The scale is lambda s / (s - s'); at the last step s' is 0.
    let scales: Vec<f64> = sigmas.windows(2).map(|pair| lambda * pair[0] / (pair[0] - pair[1])).collect();
    assert_eq!(scales.last(), Some(&lambda));
    let (expected, _) = coefficients(euler.clone(), json!({ "type": "per_step", "scales": scales }), 1000, 1);
    let (got, nfe) = coefficients(euler, cfg_pp(lambda), 1000, 1);
    assert!((got[0] / expected[0] - 1.0).abs() < 1e-12, "{} against {}", got[0], expected[0]);
    assert_eq!(nfe, 24);
}
