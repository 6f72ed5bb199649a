//! Differences between DiT and SiT: the process, and the time and sign conventions of the official networks.

use framework::checkpoint::component::Component;
use framework::error::Problems;
use framework::prelude::*;
use framework::process::diffusion::VpConfig;
use framework::process::flow::{FlowPrediction, InterpolantConfig, Weighting};
use std::fmt::Debug;

/// Process of a published network, with the conversions between the official conventions and ours.
pub trait Clock: Clone + Debug + Send + Sync + 'static {
    /// Whether the second half of the output channels is a variance that samplers may use.
    const HAS_VARIANCE: bool;

    /// Checks the process entry. Pointers are relative to the backbone entry.
    fn check(&self, learn_sigma: bool) -> Problems;

    /// Builds the process, which uses our time (0 = data, 1 = noise).
    fn process(&self) -> Box<dyn Process>;

    /// Converts our times to official times. The network embeds the sinusoids of the official times.
    fn native_of_t(&self, t: &[f64]) -> Vec<f64>;

    /// Converts an official time to ours.
    fn t_of_native(&self, native: f64) -> f64;

    /// Returns the scheduler of `diffusers` that samples this process; `None` if it has no pipeline for it.
    fn scheduler(&self) -> Option<Component>;

    /// Whether the official network's output and our prediction have opposite signs.
    fn is_reversed(&self) -> bool;
}

/// The official time of DiT is an index into its noise table.
impl Clock for VpConfig {
    const HAS_VARIANCE: bool = true;

    fn check(&self, learn_sigma: bool) -> Problems {
        let mut problems: Problems = self.check().into_iter().map(|problem| problem.under("/process")).collect();
        if self.variance_loss && !learn_sigma {
            let what = "`variance_loss` trains channels that the network does not have";
            let problem = Problem::new("/process/variance_loss", what).and_at("/learn_sigma");
            problems.push(problem.accepts("`variance_loss` with \"learn_sigma\": true"));
        }
        problems
    }

    fn process(&self) -> Box<dyn Process> {
        Box::new(self.process())
    }

    fn native_of_t(&self, t: &[f64]) -> Vec<f64> {
        let process = self.process();
        t.iter().map(|t| process.index_of_t(*t)).collect()
    }

    fn t_of_native(&self, native: f64) -> f64 {
        self.process().t_of_index(native)
    }

    fn scheduler(&self) -> Option<Component> {
        Some(VpConfig::scheduler(self))
    }

    fn is_reversed(&self) -> bool {
        false
    }
}

/// The official time of SiT runs from 0 (noise) to 1 (data): it equals 1 - t, and the velocity changes sign.
impl Clock for InterpolantConfig {
    const HAS_VARIANCE: bool = false;

    fn check(&self, _: bool) -> Problems {
        if self.prediction != FlowPrediction::Velocity || self.weighting == Weighting::None {
            return Problems::new();
        }
        let what = "`weighting` applies to the errors of noise and score, but this network predicts the velocity";
        let problem = Problem::new("/process/weighting", what).and_at("/process/prediction");
        vec![problem.accepts("\"none\", or another `prediction`")]
    }

    fn process(&self) -> Box<dyn Process> {
        Box::new(self.process())
    }

    fn native_of_t(&self, t: &[f64]) -> Vec<f64> {
        t.iter().map(|t| 1.0 - t).collect()
    }

    fn t_of_native(&self, native: f64) -> f64 {
        1.0 - native
    }

    fn scheduler(&self) -> Option<Component> {
        None
    }

    fn is_reversed(&self) -> bool {
        self.prediction == FlowPrediction::Velocity
    }
}
