//! The promises of a backbone about the hook sites that it declares.

use super::bench::{Bench, values};

use burn::module::Module;
use burn::tensor::Tensor;
use framework::network::backbone::{Backbone, Control, HookSites};
use framework::nn::hooks::{AttentionCall, AttentionSite, BlockInput, Hooked, Hooks};
use framework::random::tensor;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

/// A place in a forward pass that hooks can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Site {
    Attention(AttentionSite),
    Input(usize),
    Skip(usize),
    Output(usize),
    Cached(usize),
}

/// Records the sites of a pass, and changes the values at one of them.
#[derive(Debug, Default)]
struct Probe {
    changed: Option<Site>,
    seen: Mutex<BTreeSet<Site>>,
}

impl Probe {
    /// Records the site. Returns the value, changed if this is the site to change.
    fn at<const D: usize>(&self, site: Site, value: Tensor<D>) -> Tensor<D> {
        self.seen.lock().expect("no thread panics while it holds this lock").insert(site);
        if self.changed == Some(site) { tilted(value) } else { value }
    }
}

/// Multiplies each channel by a factor of its own. A normalisation over the channels would undo a common factor or
/// shift, but not this.
fn tilted<const D: usize>(value: Tensor<D>) -> Tensor<D> {
    let width = value.dims()[D - 1];
    let factors: Vec<f64> = (0..width).map(|i| 1.0 + (i + 1) as f64 / width as f64).collect();
    let mut shape = [1; D];
    shape[D - 1] = width;
    value.clone() * tensor::<D>(&factors, shape, value.dtype(), &value.device())
}

impl Hooks for Probe {
    fn reads_attention(&self, site: AttentionSite) -> bool {
        self.changed.is_none_or(|changed| changed == Site::Attention(site))
    }
    fn attention(&self, site: AttentionSite, call: &AttentionCall) -> Tensor<4> {
        self.at(Site::Attention(site), call.output())
    }
    fn block_input(&self, block: usize, tokens: Tensor<3>) -> BlockInput {
        match self.changed == Some(Site::Skip(block)) {
            true => BlockInput::Skip(tokens),
            false => BlockInput::Run(self.at(Site::Input(block), tokens)),
        }
    }
    fn block_output(&self, block: usize, tokens: Tensor<3>) -> Tensor<3> {
        self.at(Site::Output(block), tokens)
    }
    fn cached(&self, block: usize, keys: Tensor<4>, values: Tensor<4>) -> [Tensor<4>; 2] {
        [keys, self.at(Site::Cached(block), values)]
    }
}

/// Returns the sites that a network with the sites `declared` has, except the sites of its decode cache.
fn sites(declared: HookSites) -> Vec<Site> {
    let of_block = |i: usize| {
        let text = declared.text_attention.then_some(Site::Attention(AttentionSite::text(i)));
        let all = [Some(Site::Attention(AttentionSite::own(i))), text, Some(Site::Input(i)), Some(Site::Output(i))];
        all.into_iter().flatten()
    };
    (0..declared.blocks).flat_map(of_block).collect()
}

/// Checks that hooks which record change nothing and see exactly the declared sites, and that a change at each site
/// changes the prediction.
pub(super) fn hooks(bench: &Bench, guidance: Option<f64>) -> Vec<String> {
    let declared = bench.config.accepts().hooks;
    let network = bench.online.valid();
    let predicted = |hooks: Hooked| {
        let input = &bench.example.input;
        let guidance = guidance.map(|number| vec![number; input.len()]);
        values(network.predict(input, &bench.condition, &Control { guidance, hooks, ..Control::default() }))
    };
    let mut failures = Vec::new();
    let mut all = sites(declared);
    failures.extend(failures_of(&all, &predicted));
    // Skipping a block is a change, but a recording pass does not see it as a site.
    let whole = predicted(Hooked::default());
    for i in 0..declared.blocks {
        if predicted(probe(Some(Site::Skip(i))).0) == whole {
            failures.push(format!("a hook that skips block {i} changes the prediction"));
        }
    }
    if declared.decode_cache {
        all.extend((0..declared.blocks).map(Site::Cached));
        failures.extend(failures_of(&all, &|hooks| bench.cached(guidance, &hooks)));
    }
    failures
}

fn probe(changed: Option<Site>) -> (Hooked, Arc<Probe>) {
    let probe = Arc::new(Probe { changed, ..Probe::default() });
    (Hooked(Some(probe.clone())), probe)
}

fn failures_of(sites: &[Site], predicted: &dyn Fn(Hooked) -> Vec<f64>) -> Vec<String> {
    let mut failures = Vec::new();
    let (whole, (recording, recorded)) = (predicted(Hooked::default()), probe(None));
    if predicted(recording) != whole {
        failures.push("hooks that only record leave the prediction unchanged to the bit".to_string());
    }
    let seen = recorded.seen.lock().expect("no thread panics while it holds this lock").clone();
    if seen != sites.iter().copied().collect() {
        failures.push(format!("hooks see exactly the declared sites {sites:?}; they see {seen:?}"));
    }
    let idle = sites.iter().filter(|site| predicted(probe(Some(**site)).0) == whole);
    failures.extend(idle.map(|site| format!("a hook that changes values at {site:?} changes the prediction")));
    failures
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{DType, Device};
    use framework::nn::Span;

    /// A network of two blocks: one matrix of attention each, on fixed tokens.
    fn network(calls: &[usize], hooks: Hooked) -> Vec<f64> {
        let tokens = tensor::<3>(&[0.3, -0.2, 0.5, 0.1], [1, 2, 2], DType::F32, &Device::flex());
        let block = |tokens: Tensor<3>, i: usize| {
            hooks.block(i, tokens, |x| {
                let heads = x.clone().reshape([1, 1, 2, 2]);
                let qkv = [heads.clone(), heads.clone(), heads];
                x + hooks.attend(AttentionSite::own(i), qkv, Span::All, None, None).reshape([1, 2, 2])
            })
        };
        values(calls.iter().fold(tokens, |tokens, i| block(tokens, *i)))
    }

    #[test]
    fn a_network_with_all_its_sites_passes_and_a_missing_site_is_found() {
        let two = sites(HookSites { blocks: 2, ..HookSites::default() });
        assert_eq!(failures_of(&two, &|hooks| network(&[0, 1], hooks)), Vec::<String>::new());
        // A network that never calls its second block: neither the recording nor the changes reach it.
        let missing = failures_of(&two, &|hooks| network(&[0], hooks));
        assert_eq!(missing.len(), 4, "{missing:?}");
        // A network with more blocks than it declares.
        let extra = failures_of(&two, &|hooks| network(&[0, 1, 2], hooks));
        assert!(extra.len() == 1 && extra[0].contains("exactly the declared sites"), "{extra:?}");
    }

    #[test]
    fn hooks_that_are_called_without_effect_are_found() {
        let deaf = |hooks: Hooked| {
            network(&[0], hooks);
            network(&[0], Hooked::default())
        };
        let one = sites(HookSites { blocks: 1, ..HookSites::default() });
        assert_eq!(failures_of(&one, &deaf).len(), 3);
    }
}
