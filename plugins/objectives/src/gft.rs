//! Guidance-free training (GFT).
//!
//!   m    = beta_p f(x_t, c~, beta) + (1 - beta_p) sg[f(x_t, null, 1)],   beta = beta_min + (beta_max - beta_min) u^pho
//!   loss = L(m, y),   1 / beta_p = 1 + (1 / beta - 1) schedule(p) at progress p,   u ~ U(0, 1)
//!
//! At a fixed `beta` (eq. 7) the network reads no guidance number. Without `stop_gradient`, sg[..] is the identity
//! (eq. 8); theorem 1 says that the optimum is the same. Channels of a learned variance are those of the conditional
//! prediction: the objective acts on the mean alone.
//! Source: arXiv:2501.15420, algorithm 1.  Optimum: one pass at `beta` samples at guidance scale 1 / beta_p.

use framework::prelude::*;
use framework::schedule::Schedule;

/// Loss of a sample whose condition was dropped. The network reads `beta` = 1 in both cases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DroppedSample {
    /// The mixture at the sample's random `beta`, as in the released code. The unconditional gradient is scaled by
    /// `beta`.
    #[default]
    Mixed,
    /// The plain unconditional loss, as for `beta` = 1.
    Plain,
}

/// Training of one network that samples at any guidance scale in one pass.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(
    example = framework::serde_json::json!({ "dropped_sample": "plain" }),
    example = framework::serde_json::json!({ "beta": 0.4 }),
    example = framework::serde_json::json!({ "stop_gradient": false }),
    example = framework::serde_json::json!({ "schedule": { "type": "power", "exponent": 1.5 } }),
    example = framework::serde_json::json!({ "schedule": { "type": "power_cosine", "power": 1.0 } })
)]
#[serde(default, deny_unknown_fields)]
pub struct Gft {
    /// Fixed `beta`, above 0 and at most 1: the network learns scale 1 / `beta` alone and reads no guidance number.
    /// null = `beta` is random, and the network reads it.
    #[schemars(extend("exclusiveMinimum" = 0), range(max = 1.0))]
    pub beta: Option<f64>,
    /// Smallest `beta` in training, in [0, 1]. Unitless; `beta = 1 / scale`.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub beta_min: f64,
    /// Largest `beta` in training, in [0, 1].
    #[schemars(range(min = 0.0, max = 1.0))]
    pub beta_max: f64,
    /// Exponent of the density of `beta` between its bounds, above 0 and at most 100; 1 = uniform. A larger exponent
    /// trains more on small `beta`, which are large scales. The released code has the same name for it.
    #[schemars(extend("exclusiveMinimum" = 0), range(max = 100.0))]
    pub pho: f64,
    /// Whether the unconditional prediction of the mixture is computed without gradient, as published. `false` trains
    /// both predictions of the mixture: the same optimum, for about the time and the memory of a doubled batch.
    pub stop_gradient: bool,
    /// Probability per sample of dropping the condition, in [0, 1].
    #[schemars(range(min = 0.0, max = 1.0))]
    pub drop_probability: f64,
    /// Loss of a sample whose condition was dropped.
    pub dropped_sample: DroppedSample,
    /// Share of the guidance over progress.
    pub schedule: Schedule,
}

impl Default for Gft {
    fn default() -> Self {
        Self {
            beta: None,
            beta_min: 0.0,
            beta_max: 1.0,
            pho: 1.0,
            stop_gradient: true,
            drop_probability: 0.1,
            dropped_sample: DroppedSample::default(),
            schedule: Schedule::default(),
        }
    }
}

framework::register!(objective "gft" => Gft, "arXiv:2501.15420");

/// Returns `beta_p` of `beta` at progress `p`: `1 / beta_p = 1 + (1 / beta - 1) schedule(p)`.
///
/// Source: arXiv:2501.15420 app. B (VAR and MAR).
fn beta_at(schedule: Schedule, beta: f64, progress: f64) -> f64 {
    if schedule == Schedule::Constant {
        return beta;
    }
    let share = schedule.at(progress);
    // The formula, rearranged so that it is defined at beta = 0.
    if beta == 0.0 && share == 0.0 { 1.0 } else { beta / (beta + (1.0 - beta) * share) }
}

impl Gft {
    /// Moves values that are uniform between the bounds to the density of the exponent `pho`.
    fn shaped(&self, uniform: Vec<f64>) -> Vec<f64> {
        let (least, width) = (self.beta_min, self.beta_max - self.beta_min);
        if self.pho == 1.0 || width == 0.0 {
            return uniform;
        }
        uniform.into_iter().map(|beta| least + width * ((beta - least) / width).powf(self.pho)).collect()
    }

    /// Returns whether the network reads `beta`.
    fn reads_beta(&self) -> bool {
        self.beta.is_none()
    }
}

impl Objective for Gft {
    fn check(&self) -> Vec<Problem> {
        let mut problems: Vec<Problem> =
            self.schedule.check().into_iter().map(|problem| problem.under("/schedule")).collect();
        if self.beta_min > self.beta_max {
            let what = format!("`beta_min` = {} is larger than `beta_max` = {}", self.beta_min, self.beta_max);
            problems.push(Problem::new("/beta_min", what).and_at("/beta_max").accepts("beta_min <= beta_max"));
        }
        let random = Self::default();
        for (name, changed) in [
            ("beta_min", self.beta_min != random.beta_min),
            ("beta_max", self.beta_max != random.beta_max),
            ("pho", self.pho != random.pho),
        ] {
            if changed && self.beta.is_some() {
                let problem = Problem::new(format!("/{name}"), format!("`{name}` has no effect at a fixed `beta`"));
                problems.push(problem.and_at("/beta").accepts("either `beta`, or `beta_min`, `beta_max` and `pho`"));
            }
        }
        if self.pho != random.pho && self.beta.is_none() && self.beta_min == self.beta_max {
            let problem = Problem::new("/pho", "`pho` has no effect: `beta_min` and `beta_max` are equal");
            problems.push(problem.and_at("/beta_min").accepts("beta_min < beta_max").fix("remove `pho`"));
        }
        problems
    }

    fn needs(&self) -> Needs {
        Needs { null_condition: true, guidance_input: self.reads_beta(), ..Needs::default() }
    }

    fn loss(&self, context: &Context<'_>) -> Tensor<1> {
        let (condition, dropped) = context.drop_condition(self.drop_probability);
        let drawn = match self.beta {
            Some(beta) => vec![beta; context.batch()],
            None => self.shaped(context.uniform("beta", self.beta_min, self.beta_max)),
        };
        let one_if_dropped = |beta: &[f64]| -> Vec<f64> {
            beta.iter().zip(&dropped).map(|(beta, dropped)| if *dropped { 1.0 } else { *beta }).collect()
        };
        let input = self.reads_beta().then(|| one_if_dropped(&drawn));
        let mixing = match self.dropped_sample {
            DroppedSample::Mixed => drawn,
            DroppedSample::Plain => one_if_dropped(&drawn),
        };
        // Only these samples need the unconditional pass. For a dropped sample, the tracked pass is already
        // unconditional. At `beta` = 1 the mixture has no unconditional part.
        let wanted: Vec<bool> = mixing.iter().zip(&dropped).map(|(beta, dropped)| !dropped && *beta < 1.0).collect();
        let (null, ones) = (context.condition.null(), self.reads_beta().then(|| vec![1.0; context.batch()]));
        let stopped = self.stop_gradient.then(|| context.stopped_where(&wanted, &null, ones.as_deref()));
        let conditional = context.online(&condition, input.as_deref());
        let unconditional = match stopped {
            Some(unconditional) => unconditional.or(&conditional),
            None => context.online(&null, ones.as_deref()),
        };
        let beta = context.weights(&conditional, |i, progress| beta_at(self.schedule, mixing[i], progress));
        context.loss(context.combine(conditional, unconditional, |conditional, unconditional| {
            conditional * beta.clone() + unconditional * (beta.neg() + 1.0)
        }))
    }

    fn null(&self) -> NullPrediction {
        if self.drop_probability > 0.0 {
            NullPrediction::TrainedAt(self.reads_beta().then_some(1.0))
        } else {
            NullPrediction::Untrained("`drop_probability` is 0")
        }
    }

    fn optimum(&self, _: Family) -> Optimum {
        if self.drop_probability == 0.0 {
            return Optimum::Unstated("the null prediction is never trained and keeps its initial value");
        }
        let schedule = self.schedule;
        let fixed = self.beta;
        let text = if schedule == Schedule::Constant { "1 / beta" } else { "1 / beta_p" };
        Optimum::Tilted(Tilt::data(text, move |beta, progress| {
            1.0 / beta_at(schedule, fixed.or(beta).expect("the network reads a beta"), progress)
        }))
    }

    fn guidance_of_scale(&self, scale: f64) -> Option<f64> {
        self.reads_beta().then_some(1.0 / scale)
    }

    fn scale_of_guidance(&self, guidance: f64) -> Option<f64> {
        self.reads_beta().then_some(1.0 / guidance)
    }

    fn trained_scales(&self) -> Option<[f64; 2]> {
        self.reads_beta().then_some([1.0 / self.beta_max, 1.0 / self.beta_min])
    }

    fn extra_passes(&self) -> usize {
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponent_moves_beta_toward_its_lower_bound() {
        let uniform = vec![0.2, 0.4, 0.7, 1.0];
        let shaped = |pho: f64| Gft { beta_min: 0.2, pho, ..Gft::default() }.shaped(uniform.clone());
        assert_eq!(shaped(1.0), uniform);
        // u = 0, 0.25, 0.625, 1; beta = 0.2 + 0.8 u^2.
        let expected = [0.2, 0.25, 0.5125, 1.0];
        assert!(shaped(2.0).iter().zip(expected).all(|(got, wanted)| (got - wanted).abs() < 1e-12));
    }

    #[test]
    fn settings_of_a_random_beta_are_refused_at_a_fixed_one() {
        let fixed = Gft { beta: Some(0.5), pho: 2.0, ..Gft::default() };
        assert_eq!(fixed.check()[0].at, ["/pho", "/beta"]);
        let point = Gft { beta_min: 0.5, beta_max: 0.5, pho: 2.0, ..Gft::default() };
        assert_eq!(point.check()[0].at, ["/pho", "/beta_min"]);
    }
}
