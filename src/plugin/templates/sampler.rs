//! Deterministic steps from noise to data, at times spaced by a power law.
//!
//!   t_k = data + (noise - data) (1 - k / steps)^power,   x' = alpha' x_hat + sigma' eps_hat
//!
//! With power 1 this is DDIM (arXiv:2010.02502, eq. 12).

use framework::sampling::denoiser::Denoiser;
use framework::process::path::split;
use framework::prelude::*;
use framework::sampling::sampler::{ContinuousSampler, NoiseSource, Observer, Sampler, SamplerStep, Sampling};

/// Deterministic first-order sampler.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(crate = "framework::serde", default, deny_unknown_fields)]
#[schemars(crate = "framework::schemars", transform = Required(&["steps"]))]
pub struct MyPlugin {
    /// Number of steps, 1 to 100,000.
    #[schemars(range(min = 1, max = 100_000))]
    pub steps: usize,
    /// Exponent of the time spacing, 0.1 to 10; 1 = uniform, larger = smaller steps near the data.
    #[schemars(range(min = 0.1, max = 10.0))]
    pub power: f64,
}

impl Default for MyPlugin {
    fn default() -> Self {
        Self { steps: 0, power: 1.0 }
    }
}

framework::register!(sampler "my_plugin" => MyPlugin);

impl MyPlugin {
    /// Returns the `steps + 1` times, from noise to data.
    fn times(&self, [data, noise]: [f64; 2]) -> Vec<f64> {
        let left = |k: usize| 1.0 - k as f64 / self.steps as f64;
        (0..=self.steps).map(|k| data + (noise - data) * left(k).powf(self.power)).collect()
    }
}

impl Sampler for MyPlugin {
    fn is_stochastic(&self) -> bool {
        false
    }

    fn sampling(&self) -> Sampling<'_> {
        Sampling::Continuous(self)
    }

    fn evaluations(&self, _: &LatentShape) -> usize {
        self.steps
    }
}

impl ContinuousSampler for MyPlugin {
    fn run(
        &self,
        model: &mut Denoiser<'_>,
        path: &dyn NoisePath,
        noise: &mut dyn NoiseSource,
        observer: &mut dyn Observer,
    ) -> Tensor<3> {
        let (prediction, channels) = (model.process().prediction(), model.channels());
        let times = self.times(path.interval());
        let mut x_t = noise.normal(0);
        for (k, pair) in times.windows(2).enumerate() {
            let (t, at, next) = (pair[0], path.at(pair[0]), path.at(pair[1]));
            let input = Input::Noisy { x_t: x_t.clone(), t: vec![t; x_t.dims()[0]] };
            let guided = model.evaluate(&input, 1.0 - t).prediction.narrow(2, 0, channels);
            let hat = split(prediction, guided, x_t, at);
            x_t = hat.x * next.alpha + hat.eps * next.sigma;
            observer.step(&SamplerStep { step: k + 1, steps: self.steps, t, state: Some(&x_t) });
        }
        x_t
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_fall_from_noise_to_data() {
        for power in [0.5, 1.0, 2.0] {
            let times = MyPlugin { steps: 7, power }.times([0.001, 1.0]);
            assert_eq!((times[0], times[7]), (1.0, 0.001));
            assert!(times.windows(2).all(|pair| pair[0] > pair[1]));
        }
    }
}
