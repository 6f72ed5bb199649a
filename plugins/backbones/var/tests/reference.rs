//! Forward, gradients, losses and greedy decoding equal those of the official code, recorded in `shared/goldens`
//! (FoundationVision/VAR 78b9539, thu-ml/CCA 7d5a073; tiny configurations, f32).

use framework::backbone::{Backbone, BackboneConfig, Control};
use framework::prelude::*;
use framework::process::Latent;
use framework::random::Random;
use framework::serde_json::from_str;
use framework::weights;
use goldens::{Golden, close, gradients, load, same_gradients, values};
use var::VarConfig;

fn tiny(more: &str) -> VarConfig {
    from_str(&format!(
        r#"{{"num_classes": 10, "depth": 3, "embed_dim": 64, "num_heads": 4, "patch_nums": [1, 2, 3, 4], "V": 64, "Cvae": 8{more}}}"#
    ))
    .unwrap()
}

/// The two recorded forms: a modulation for each block, and a shared one.
fn forms() -> [(&'static str, VarConfig); 2] {
    [("var", tiny("")), ("var_saln", tiny(r#", "shared_aln": true"#))]
}

/// Recorded features with a row for the first level, which is not read.
fn features(golden: &Golden, name: &str) -> Tensor<3> {
    let features: Tensor<3> = golden.tensor(name);
    let [batch, _, channels] = features.dims();
    Tensor::cat(vec![Tensor::zeros([batch, 1, channels], &features.device()), features], 1)
}

#[test]
fn forward_equals_the_official_code() {
    for (name, config) in forms() {
        let Some(golden) = Golden::open(&format!("{name}.safetensors")) else { return };
        let Some((network, report)) = load(&config, &format!("{name}_ckpt.pth"), &Device::flex()) else { return };
        assert_eq!(report.ignored.len(), 5, "{report}");
        let input = Input::Levels { features: features(&golden, "x_BLCv_wo_first_l") };
        let condition = golden.classes("label", 10);
        for (what, condition) in [("logits_null", condition.null()), ("logits_cond", condition)] {
            let got = values(network.predict(&input, &condition, &Control::default()));
            close(&format!("{name} {what}"), &got, &golden.numbers(what), 1e-4);
        }
    }
}

fn example(config: &VarConfig, ids: Tensor<2, Int>, features: Tensor<3>) -> Example {
    config.process().corrupt(&Latent::Levels { ids, features }, &Random::new(0), 0)
}

#[test]
fn gradients_equal_the_official_code() {
    for (name, config) in forms() {
        let Some(golden) = Golden::open(&format!("{name}.safetensors")) else { return };
        let device = Device::flex().autodiff();
        let Some((network, _)) = load(&config, &format!("{name}_ckpt.pth"), &device) else { return };
        let example = example(&config, golden.ids("gt_idx"), features(&golden, "x_BLCv_wo_first_l"));
        let prediction = network.predict(&example.input, &golden.classes("label", 10), &Control::default());
        let loss = config.process().loss(prediction, &example).mean();
        close("ce_mean", &values(loss.clone().inner()), &golden.numbers("ce_mean"), 1e-5);
        same_gradients("", &gradients(&config.foreign_names(), &network, loss), &golden, &|_| None, 53);
    }
}

#[test]
fn a_guided_network_starts_at_the_published_model() {
    let Some(golden) = Golden::open("var.safetensors") else { return };
    let config = tiny(r#", "guidance_input": "mlp""#);
    let Some((network, report)) = load(&config, "var_ckpt.pth", &Device::flex()) else { return };
    assert_eq!(report.fresh.len(), 4, "{report}");
    let input = Input::Levels { features: features(&golden, "x_BLCv_wo_first_l") };
    let control = Control::guided(Some(vec![0.3; 2]));
    let got = values(network.predict(&input, &golden.classes("label", 10), &control));
    close("logits", &got, &golden.numbers("logits_cond"), 1e-4);
}

#[test]
fn published_sizes_count_the_published_parameters() {
    // Source: arXiv:2404.02905 table 1 gives 310 M, 600 M, 1.0 B, 2.0 B and 2.3 B: as many digits as it prints. Width 64 d
    // and 18 width^2 a block (12 and 6 of the modulation) leave no other choice within half a percent.
    let published = [("d16", 310.0, 0.5), ("d20", 600.0, 1.0), ("d24", 1000.0, 50.0), ("d30", 2000.0, 50.0)];
    for (size, millions, rounding) in published.into_iter().chain([("d36-s", 2300.0, 51.0)]) {
        let config: VarConfig = from_str(&format!(r#"{{"size": "{size}"}}"#)).unwrap();
        assert!(config.check().is_empty());
        let parameters = weights::parameters(&config.init(&Device::flex()));
        let count: usize = parameters.iter().map(|(_, shape, _)| shape.iter().product::<usize>()).sum();
        assert!((count as f64 / 1e6 - millions).abs() <= rounding, "{size}: {count}");
    }
}
