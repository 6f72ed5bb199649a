//! What the published networks differ in: their process, and the time and sign that they speak in.

use framework::error::Problems;
use framework::interpolant::{FlowPrediction, InterpolantConfig, Weighting};
use framework::prelude::*;
use framework::vp::VpConfig;
use std::fmt::Debug;

/// The process of a published network, in its own clock.
pub trait Clock: Clone + Debug + Send + Sync + 'static {
    /// Whether the second half of the channels is a variance that samplers may ask for.
    const HAS_VARIANCE: bool;

    /// Problems of the entry; pointers are relative to the backbone's.
    fn check(&self, learn_sigma: bool) -> Problems;

    /// The process on our clock.
    fn process(&self) -> Box<dyn Process>;

    /// The numbers whose sinusoids the network reads, of our times.
    fn native_of_t(&self, t: &[f64]) -> Vec<f64>;

    /// Our time of such a number.
    fn t_of_native(&self, native: f64) -> f64;

    /// Whether what the network answers has the other sign.
    fn is_reversed(&self) -> bool;
}

/// DiT counts the steps of its table.
impl Clock for VpConfig {
    const HAS_VARIANCE: bool = true;

    fn check(&self, learn_sigma: bool) -> Problems {
        if !self.variance_loss || learn_sigma {
            return Problems::new();
        }
        let what = "`variance_loss` trains channels that the network does not have";
        let problem = Problem::new("/process/variance_loss", what).and_at("/learn_sigma");
        vec![problem.accepts("`variance_loss` with \"learn_sigma\": true")]
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

    fn is_reversed(&self) -> bool {
        false
    }
}

/// SiT runs from noise at 0 to data at 1: its time is 1 - t, and its velocity points the other way.
impl Clock for InterpolantConfig {
    const HAS_VARIANCE: bool = false;

    fn check(&self, _: bool) -> Problems {
        if self.prediction != FlowPrediction::Velocity || self.weighting == Weighting::None {
            return Problems::new();
        }
        let what = "`weighting` weighs the errors of noise and score; this network predicts the velocity";
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

    fn is_reversed(&self) -> bool {
        self.prediction == FlowPrediction::Velocity
    }
}
