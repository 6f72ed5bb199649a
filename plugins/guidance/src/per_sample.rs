//! Arithmetic per sample, and settings that several rules share.

use framework::prelude::*;
use framework::sampling::guidance::{Branch, GuidanceNeeds, Guided};

/// Computes the inner product per sample, `[B, 1, 1]`.
pub(crate) fn dot(a: &Tensor<3>, b: &Tensor<3>) -> Tensor<3> {
    (a.clone() * b.clone()).sum_dim(1).sum_dim(2)
}

/// Computes the Euclidean norm per sample, `[B, 1, 1]`.
pub(crate) fn norm(a: &Tensor<3>) -> Tensor<3> {
    dot(a, a).sqrt()
}

/// Computes `numerator / denominator`, and `otherwise` where the denominator is 0.
pub(crate) fn ratio(numerator: Tensor<3>, denominator: Tensor<3>, otherwise: f64) -> Tensor<3> {
    let zero = denominator.clone().equal_elem(0.0);
    (numerator / denominator.mask_fill(zero.clone(), 1.0)).mask_fill(zero, otherwise)
}

/// Applies `rule` to the first `channels` channels of the predictions. The other channels (a learned variance) come
/// from the first prediction, which must be the conditional one.
pub(crate) fn on_latent<const N: usize>(
    predictions: [Tensor<3>; N],
    channels: usize,
    rule: impl FnOnce([Tensor<3>; N]) -> Tensor<3>,
) -> Tensor<3> {
    let total = predictions[0].dims()[2];
    if channels >= total {
        return rule(predictions);
    }
    let rest = predictions[0].clone().narrow(2, channels, total - channels);
    Tensor::cat(vec![rule(predictions.map(|prediction| prediction.narrow(2, 0, channels))), rest], 2)
}

/// Returns the conditional branch, and the null branch if the rule `guides`.
pub(crate) fn branches(guides: bool) -> Vec<Branch> {
    if guides { vec![Branch::given(), Branch::null()] } else { vec![Branch::given()] }
}

/// Applies `rule` to the conditional and the null prediction, as in [`on_latent`]. A single prediction is the result
/// itself.
pub(crate) fn combined(
    predictions: Vec<Tensor<3>>,
    channels: usize,
    rule: impl FnOnce([Tensor<3>; 2]) -> Tensor<3>,
) -> Guided {
    match <[Tensor<3>; 2]>::try_from(predictions) {
        Ok(both) => on_latent(both, channels, rule).into(),
        Err(mut one) => one.remove(0).into(),
    }
}

/// Returns the needs of a rule that combines whole conditional and null predictions in `space`. `guides` is false if
/// the rule returns the conditional prediction alone, as at scale 1.
pub(crate) fn two_predictions(guides: bool, space: Option<Prediction>) -> GuidanceNeeds {
    let (space, most_branches) = if guides { (space, 2) } else { (None, 1) };
    GuidanceNeeds { null: guides, space, path: true, ..GuidanceNeeds::branches(most_branches) }
}

/// Refuses logits as the prediction space `field` of a rule.
pub(crate) fn no_logits(field: &str, space: Option<Prediction>) -> Vec<Problem> {
    if space != Some(Prediction::Logits) {
        return Vec::new();
    }
    let what = format!("`{field}` is \"logits\", which no noise path has");
    vec![Problem::new(format!("/{field}"), what).accepts("null, \"eps\", \"v\", \"x\", \"velocity\" or \"score\"")]
}

/// Refuses the settings in `changed` that differ from their defaults although the scale is 1.
pub(crate) fn no_effect_at_scale_one(scale: f64, changed: &[(&str, bool)]) -> Vec<Problem> {
    changed
        .iter()
        .filter(|(_, changed)| scale == 1.0 && *changed)
        .map(|(name, _)| {
            Problem::new(format!("/{name}"), format!("`{name}` has no effect at scale 1")).and_at("/scale")
        })
        .collect()
}
