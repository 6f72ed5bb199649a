//! Shared code of the rules that read both the requested and the null text in one attention layer.
//!
//!   prediction = f_null + scale (f_blend - f_null)
//!
//! In the pass f_blend, the guided layers that attend to the text return a blend of the outputs for both texts.
//!
//! The keys and values of the null text do not depend on the latent. One pass records them at the first evaluation,
//! and every evaluation with CFG records them again. Other evaluations take one pass.

use crate::text;
use framework::error::Problems;
use framework::nn::hooks::{AttentionCall, AttentionSite, Hooked, Hooks};
use framework::prelude::*;
use framework::sampling::guidance::{Branch, GuidanceNeeds, Guided, Moment, Trajectory, mix};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};

/// A rule that blends the attention to both texts.
pub trait Blend: Clone + Debug + Send + Sync + 'static {
    /// Name of the blended branch.
    const NAME: &'static str;

    /// Returns the scale of classifier-free guidance; 1 = none.
    fn scale(&self) -> f64;

    /// Returns the scale for the network's guidance input; 1 = none.
    fn input_scale(&self) -> f64;

    /// Returns the indices of the guided blocks; `None` = all.
    fn blocks(&self) -> Option<&[usize]>;

    /// Returns the output of a layer, `[B, heads, L, d]`. `null` has the queries of `given`, and the keys and values
    /// of the null text.
    fn blend(&self, given: &AttentionCall, null: &AttentionCall) -> Tensor<4>;
}

/// Returns the problems of a list of blocks.
pub fn check(blend: &impl Blend) -> Problems {
    text::check(blend.blocks())
}

/// Returns the needs of a blend.
pub fn needs(blend: &impl Blend) -> GuidanceNeeds {
    GuidanceNeeds { null: true, hooks: text::hooks(blend.blocks()), ..GuidanceNeeds::branches(2) }
}

/// Creates the state of a blend.
pub fn start(blend: impl Blend) -> Box<dyn Trajectory> {
    Box::new(State { blend, recorded: Recorded::default() })
}

/// The recorded attention calls of the pass with the null text, by block index.
type Recorded = Arc<Mutex<BTreeMap<usize, AttentionCall>>>;

struct State<B> {
    blend: B,
    recorded: Recorded,
}

impl<B: Blend> State<B> {
    fn hooks(&self, blends: bool) -> Hooked {
        Hooked(Some(Arc::new(Layers { blend: self.blend.clone(), recorded: self.recorded.clone(), blends })))
    }
}

impl<B: Blend> Trajectory for State<B> {
    fn branches(&mut self, _: &Moment) -> Vec<Branch> {
        let known = !self.recorded.lock().expect("no thread panics while it holds this lock").is_empty();
        let scale = Some(self.blend.input_scale());
        let blended = Branch { name: B::NAME, scale, hooks: self.hooks(true), ..Branch::given() };
        if known && self.blend.scale() == 1.0 {
            return vec![blended];
        }
        // Branches with hooks run in order, so the null text is recorded first.
        vec![Branch { hooks: self.hooks(false), ..Branch::null() }, blended]
    }

    fn combine(&mut self, moment: &Moment, mut predictions: Vec<Tensor<3>>) -> Guided {
        let blended = predictions.pop().expect("the blended branch is evaluated at every step");
        match predictions.pop() {
            Some(null) if self.blend.scale() != 1.0 => mix(blended, null, self.blend.scale(), moment.channels).into(),
            _ => blended.into(),
        }
    }
}

/// The hooks of a pass. A pass with the null text records, and a pass with the requested text blends.
#[derive(Debug)]
struct Layers<B> {
    blend: B,
    recorded: Recorded,
    blends: bool,
}

impl<B: Blend> Hooks for Layers<B> {
    fn reads_attention(&self, site: AttentionSite) -> bool {
        text::is_guided(self.blend.blocks(), site)
    }

    fn attention(&self, site: AttentionSite, call: &AttentionCall) -> Tensor<4> {
        let mut recorded = self.recorded.lock().expect("no thread panics while it holds this lock");
        if !self.blends {
            recorded.insert(site.block, call.clone());
            return call.output();
        }
        let null = recorded.get(&site.block).expect("the pass with the null text ran before").clone();
        drop(recorded);
        self.blend.blend(call, &AttentionCall { queries: call.queries.clone(), ..null })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fake, close, evaluated, moment, predicted};
    use framework::burn::tensor::DType;
    use framework::nn::Span;
    use framework::random::tensor;
    use framework::sampling::guidance::Guidance;

    /// A blend that ignores one of the texts.
    #[derive(Clone, Debug)]
    struct Only {
        null: bool,
        scale: f64,
    }

    impl Blend for Only {
        const NAME: &'static str = "only";
        fn scale(&self) -> f64 {
            self.scale
        }
        fn input_scale(&self) -> f64 {
            1.0
        }
        fn blocks(&self) -> Option<&[usize]> {
            None
        }
        fn blend(&self, given: &AttentionCall, null: &AttentionCall) -> Tensor<4> {
            if self.null { null.output() } else { given.output() }
        }
    }

    impl Guidance for Only {
        fn needs(&self) -> GuidanceNeeds {
            needs(self)
        }
        fn start(&self) -> Box<dyn Trajectory> {
            start(self.clone())
        }
    }

    #[test]
    fn the_recorded_text_is_the_null_text() {
        let network = Fake::new(0);
        let cfg = |scale: f64| -> crate::cfg::Cfg {
            framework::serde_json::from_value(framework::serde_json::json!({ "scale": scale })).unwrap()
        };
        let only = |null, scale| evaluated(&Only { null, scale }, &network, None);
        close(&only(false, 1.0), &predicted(&network));
        close(&only(false, 2.5), &evaluated(&cfg(2.5), &network, None));
        // A pass that reads the null text in every layer returns the null prediction, so guidance has no effect.
        for scale in [1.0, 2.5] {
            close(&only(true, scale), &evaluated(&cfg(0.0), &network, None));
        }
    }

    #[test]
    fn the_null_text_is_recorded_once_per_trajectory_or_at_every_step_of_cfg() {
        let x = || tensor::<4>(&[1.0, 2.0], [1, 2, 1, 1], DType::F32, &Device::flex());
        let call = AttentionCall { queries: x(), keys: x(), values: x(), scale: 1.0, span: Span::All, mask: None };
        for (scale, later) in [(1.0, 1), (2.0, 2)] {
            let mut state = Only { null: false, scale }.start();
            let first = state.branches(&moment(0.0));
            assert_eq!(first.len(), 2);
            first[0].hooks.0.as_ref().unwrap().attention(AttentionSite::text(0), &call);
            assert_eq!(state.branches(&moment(0.5)).len(), later);
        }
    }
}
