//! Autoguidance in training: the network learns its own prediction, guided away from a weak network.
//!
//!   m    = f(c~, scale) - (scale - 1) sg[f_ema(c, 1) - r(c)],   scale ~ U(1, scale_max)
//!   loss = L(m, y)
//!
//! where r is the reference, the weak network: smaller, or trained for fewer steps. Samples that are not guided, and
//! dropped ones, are trained at scale 1 with the plain loss `L(f(c~, 1), y)`.
//! Source: arXiv:2406.02507, eq. 3, which guides at sampling. To train its guided prediction is our extension, along
//! the lines of model guidance with the scale as input (arXiv:2502.12154, eq. 21).
//! Optimum: one pass at `scale` samples `r + scale (p - r)`, with p the data's prediction for the same condition.

use framework::prelude::*;

/// Training of the prediction that autoguidance would compute from two networks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(
    example = framework::serde_json::json!({ "drop_probability": 0.0 }),
    example = framework::serde_json::json!({ "scale_max": 2.0, "guided_share": 0.2 })
)]
pub struct Autoguided {
    /// Largest scale in training, above 1 and at most 1000; the smallest is 1 = no guidance.
    #[schemars(extend("exclusiveMinimum" = 1), range(max = 1000.0))]
    pub scale_max: f64,
    /// Share of guided samples, above 0 and at most 1. The other samples train the teacher's own prediction at scale 1,
    /// so the sum with `drop_probability` must be below 1.
    #[schemars(extend("exclusiveMinimum" = 0), range(max = 1.0))]
    pub guided_share: f64,
    /// Probability per sample of dropping the condition, in [0, 1]. 0 = the network needs no null condition.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub drop_probability: f64,
}

impl Default for Autoguided {
    fn default() -> Self {
        Self { scale_max: 4.0, guided_share: 0.5, drop_probability: 0.1 }
    }
}

framework::register!(objective "autoguided" => Autoguided, "arXiv:2406.02507");

impl Objective for Autoguided {
    fn check(&self) -> Vec<Problem> {
        let Self { guided_share, drop_probability, .. } = self;
        if guided_share + drop_probability < 1.0 {
            return Vec::new();
        }
        let what = format!(
            "`guided_share` = {guided_share} and `drop_probability` = {drop_probability} leave no sample that trains the \
             teacher's prediction at scale 1"
        );
        vec![Problem::new("/guided_share", what).and_at("/drop_probability").accepts("a sum below 1")]
    }

    fn needs(&self) -> Needs {
        Needs {
            null_condition: self.drop_probability > 0.0,
            guidance_input: true,
            ema: true,
            reference: true,
            ..Needs::default()
        }
    }

    fn loss(&self, context: &Context<'_>) -> Tensor<1> {
        let shares = [self.drop_probability, self.guided_share, 1.0 - self.drop_probability - self.guided_share];
        let branch = context.choice("branch", &shares);
        let guided = |i: usize| branch[i] == 1;
        let scale = context.uniform("scale", 1.0, self.scale_max);
        let scale: Vec<f64> = (0..context.batch()).map(|i| if guided(i) { scale[i] } else { 1.0 }).collect();
        let one = vec![1.0; context.batch()];
        // The gradient-free passes come first: their activations are freed before the gradient tape grows.
        let own = context.model(Role::Ema, context.condition, Some(&one));
        let away = own - context.model(Role::Reference, context.condition, None);
        let dropped: Vec<bool> = branch.iter().map(|branch| *branch == 0).collect();
        let prediction = context.online(&context.condition.dropped(&dropped), Some(&scale));
        let weight = context.weights(&prediction, |i, _| scale[i] - 1.0);
        context.loss(prediction - away * weight)
    }

    fn extension(&self, _: Family) -> Option<&'static str> {
        Some("the paper guides with a weak network at sampling; here the guided prediction is trained")
    }

    fn null(&self) -> NullPrediction {
        if self.drop_probability > 0.0 {
            NullPrediction::TrainedAt(Some(1.0))
        } else {
            NullPrediction::Untrained("`drop_probability` is 0")
        }
    }

    fn optimum(&self, _: Family) -> Optimum {
        let tilt = Tilt::data("s", |scale, _| scale.unwrap_or(1.0));
        Optimum::Tilted(Tilt { against: Against::Reference, ..tilt })
    }

    fn guidance_of_scale(&self, scale: f64) -> Option<f64> {
        Some(scale)
    }

    fn scale_of_guidance(&self, guidance: f64) -> Option<f64> {
        Some(guidance)
    }

    fn trained_scales(&self) -> Option<[f64; 2]> {
        Some([1.0, self.scale_max])
    }

    fn extra_passes(&self) -> usize {
        2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_that_leave_no_plain_sample_are_refused() {
        assert!(Autoguided::default().check().is_empty());
        let problems = Autoguided { guided_share: 0.9, ..Autoguided::default() }.check();
        assert_eq!(problems[0].at, ["/guided_share", "/drop_probability"]);
        assert!(Autoguided { guided_share: 0.9, drop_probability: 0.05, ..Autoguided::default() }.check().is_empty());
    }
}
