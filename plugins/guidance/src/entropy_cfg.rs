//! Classifier-free guidance of uncertain tokens only.
//!
//!   prediction = f_null + s (f_cond - f_null)   where H(softmax(f_cond)) >= threshold
//!              = f_cond                         elsewhere
//!   s = 1 + (scale - 1) schedule(progress),     H(p) = -sum_v p_v log p_v
//!
//! The gate is separate for each sample and position. It depends on the conditional prediction, but both predictions of
//! a step are computed together. So the gate saves no pass.
//!
//! Source: arXiv:2510.13940 (selective guidance of Minimal Test-Time Intervention).

use framework::burn::tensor::activation::log_softmax;
use framework::prelude::*;
use framework::sampling::guidance::{Branch, Guidance, GuidanceNeeds, Guided, Moment, Trajectory, mix};
use framework::schedule::Schedule;

/// Classifier-free guidance of the logits of uncertain tokens. Two passes per step, or one where the scale is 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EntropyCfg {
    /// Guidance scale of uncertain tokens, 0 to 1000; 1 = no guidance, 0 = unconditional.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub scale: f64,
    /// Schedule of the scale over the progress.
    #[serde(default)]
    pub schedule: Schedule,
    /// Smallest entropy of a guided token, in nats, 0 to 100; 0 = every token. The largest possible entropy is the
    /// natural logarithm of the vocabulary size.
    #[schemars(range(min = 0.0, max = 100.0))]
    pub threshold: f64,
}

framework::register!(guidance "entropy_cfg" => EntropyCfg, "arXiv:2510.13940");

impl EntropyCfg {
    fn scale_at(&self, moment: &Moment) -> f64 {
        1.0 + (self.scale - 1.0) * self.schedule.at(moment.progress)
    }
}

impl Guidance for EntropyCfg {
    fn check(&self) -> Vec<Problem> {
        let mut problems: Vec<Problem> =
            self.schedule.check().into_iter().map(|problem| problem.under("/schedule")).collect();
        if self.scale == 1.0 {
            let what = "`threshold` has no effect at scale 1";
            problems.push(Problem::new("/threshold", what).and_at("/scale").accepts("a scale other than 1"));
        }
        problems
    }

    fn needs(&self) -> GuidanceNeeds {
        GuidanceNeeds { null: true, space: Some(Prediction::Logits), ..GuidanceNeeds::branches(2) }
    }

    fn start(&self) -> Box<dyn Trajectory> {
        Box::new(self.clone())
    }
}

impl Trajectory for EntropyCfg {
    fn branches(&mut self, moment: &Moment) -> Vec<Branch> {
        match self.scale_at(moment) {
            1.0 => vec![Branch::given()],
            _ => vec![Branch::given(), Branch::null()],
        }
    }

    fn combine(&mut self, moment: &Moment, predictions: Vec<Tensor<3>>) -> Guided {
        let [cond, null] = match <[Tensor<3>; 2]>::try_from(predictions) {
            Ok(both) => both,
            Err(mut one) => return one.remove(0).into(),
        };
        let uncertain = entropy(cond.clone()).greater_equal_elem(self.threshold).expand(cond.dims());
        let guided = mix(cond.clone(), null, self.scale_at(moment), moment.channels);
        cond.mask_where(uncertain, guided).into()
    }
}

/// Computes the entropy of each token in nats. Shapes: `[B, L, V]` to `[B, L, 1]`.
fn entropy(logits: Tensor<3>) -> Tensor<3> {
    let log_p = log_softmax(logits, 2);
    -(log_p.clone().exp() * log_p).sum_dim(2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{close, moment, values};
    use framework::burn::tensor::DType;
    use framework::random::tensor;
    use proptest::prelude::*;

    fn rule(scale: f64, threshold: f64) -> EntropyCfg {
        EntropyCfg { scale, schedule: Schedule::Constant, threshold }
    }

    /// Logits of two samples with two tokens of a vocabulary of four.
    fn logits(numbers: &[f64]) -> Tensor<3> {
        tensor(numbers, [2, 2, 4], DType::F64, &Device::flex())
    }

    fn combined(rule: &EntropyCfg, cond: &Tensor<3>, null: &Tensor<3>) -> Vec<f64> {
        values(rule.start().combine(&moment(0.5), vec![cond.clone(), null.clone()]).prediction)
    }

    fn numbers() -> impl Strategy<Value = Vec<f64>> {
        proptest::collection::vec(-3.0..3.0f64, 16)
    }

    proptest! {
        #[test]
        fn threshold_zero_is_cfg_and_a_high_one_is_the_conditional(a in numbers(), b in numbers(), scale in 1.5..8.0f64) {
            let (cond, null) = (logits(&a), logits(&b));
            close(&combined(&rule(scale, 0.0), &cond, &null), &values(mix(cond.clone(), null.clone(), scale, 4)));
            // The largest entropy of four tokens is log 4 = 1.39.
            prop_assert_eq!(combined(&rule(scale, 1.4), &cond, &null), a);
        }

        #[test]
        fn a_constant_on_a_branch_moves_no_gate(a in numbers(), b in numbers(), shift in -5.0..5.0f64) {
            let (cond, null) = (logits(&a), logits(&b));
            let probabilities = |out: Vec<f64>| values(log_softmax(logits(&out), 2));
            // Skip cases in which the entropy of a token is within rounding of the threshold 1.
            let entropies = values(entropy(cond.clone()));
            prop_assume!(entropies.iter().all(|h| (h - 1.0).abs() > 1e-6));
            let plain = combined(&rule(3.0, 1.0), &cond, &null);
            let moved = combined(&rule(3.0, 1.0), &(cond + shift), &(null - shift));
            close(&probabilities(moved), &probabilities(plain));
        }

        #[test]
        fn a_batch_equals_its_samples(a in numbers(), b in numbers()) {
            let (cond, null, rule) = (logits(&a), logits(&b), rule(3.0, 1.0));
            let alone = |i| combined(&rule, &cond.clone().narrow(0, i, 1), &null.clone().narrow(0, i, 1));
            prop_assert_eq!(combined(&rule, &cond, &null), [alone(0), alone(1)].concat());
        }
    }

    #[test]
    fn only_uncertain_tokens_are_guided() {
        // Entropy log 4 = 1.386 for equal logits. A logit of 20 leaves almost none.
        let cond = logits(&[0.0, 0.0, 0.0, 0.0, 20.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 20.0, 0.0]);
        let null = logits(&[1.0; 16]);
        let expected = [[-2.0; 4], [20.0, 0.0, 0.0, 0.0], [-2.0; 4], [0.0, 0.0, 20.0, 0.0]].concat();
        assert_eq!(combined(&rule(3.0, 1.0), &cond, &null), expected);
        close(&values(entropy(cond))[..1], &[4.0_f64.ln()]);
    }

    #[test]
    fn scale_one_takes_one_pass() {
        assert_eq!(rule(1.0, 1.0).start().branches(&moment(0.5)).len(), 1);
        assert_eq!(rule(1.0, 1.0).check()[0].at[0], "/threshold");
        let late = EntropyCfg { schedule: Schedule::Interval { from: 0.8, to: 1.0 }, ..rule(3.0, 1.0) };
        assert_eq!(late.start().branches(&moment(0.5)).len(), 1);
    }
}
