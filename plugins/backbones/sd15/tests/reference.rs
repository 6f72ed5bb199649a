//! Compares the U-Net, its gradients, and the losses and gradients of GFT and distillation with recordings of the
//! official code: diffusers 0.32.2, CompVis/stable-diffusion 21f890f and thu-ml/GFT 9bf5ee4, tiny configurations, f32.
//! `tests/goldens/data/MANIFEST.md` describes the recordings.

use framework::burn::tensor::{DType, TensorData};
use framework::checkpoint::official::{self, CheckpointSource};
use framework::checkpoint::open;
use framework::network::backbone::{Backbone, BackboneConfig, BoxBackbone, Control};
use framework::nn::parameters;
use framework::nn::{from_positions, to_positions};
use framework::prelude::*;
use framework_dylib as _;
use goldens::{Draws, Golden, Gradients, Recorded, close, gradients, load, values};
use sd15::Sd15Config;

fn config(more: &str) -> Sd15Config {
    framework::serde_json::from_str(&format!(
        r#"{{"sample_size": 8, "block_out_channels": [32, 64], "layers_per_block": 1, "attention": [0],
            "num_heads": 8, "cross_attention_dim": 24, "norm_num_groups": 16{more}}}"#
    ))
    .unwrap()
}

fn text(golden: &Golden, features: &str, null: &str) -> Condition {
    let features = golden.tensor::<3>(features);
    let dropped = vec![false; features.dims()[0]];
    Condition::Text { features, null: golden.tensor::<3>(null).narrow(0, 0, 1), dropped }
}

fn run(config: &Sd15Config, network: &BoxBackbone, golden: &Golden, condition: &Condition) -> Vec<f64> {
    let t = golden.numbers("t").into_iter().map(|t| config.t_of_native(t)).collect();
    let input = Input::Noisy { x_t: to_positions(golden.tensor("x")), t };
    values(from_positions(network.predict(&input, condition, &Control::default()), [8, 8]))
}

#[test]
fn forward_equals_the_official_codes_from_every_format() {
    let (config, golden) = (config(""), Golden::open("sd15_unet.safetensors"));
    let (condition, null) = (text(&golden, "context", "context_null"), text(&golden, "context_null", "context_null"));
    for (file, format, nesting, tolerance) in [
        ("sd15_diffusers_unet.safetensors", "diffusers", "", 1e-4),
        ("sd15_compvis.ckpt", "compvis", "state_dict.model.diffusion_model", 1e-4),
        // This file stores the weights in 16 bits.
        ("sd15_compvis_fp16.safetensors", "compvis", "model.diffusion_model", 5e-3),
    ] {
        let (network, report) = load(&config, file, &Device::flex());
        assert_eq!((report.format.as_str(), report.nesting.as_str()), (format, nesting), "{file}");
        assert_eq!((report.used.len(), report.fresh.len()), (208, 0), "{file}: {report}");
        close(file, &run(&config, &network, &golden, &condition), &golden.numbers("out"), tolerance);
        close(file, &run(&config, &network, &golden, &null), &golden.numbers("out_null"), tolerance);
        close(file, &run(&config, &network, &golden, &condition), &golden.numbers("out_compvis"), tolerance);
    }
}

#[test]
fn every_format_is_written_as_it_is_read() {
    let config = config("");
    let folder = tempfile::tempdir().unwrap();
    for (file, format) in
        [("sd15_diffusers_unet.safetensors", "compvis"), ("sd15_compvis_fp16.safetensors", "diffusers")]
    {
        let path = goldens::path(file);
        let (there, back) = (folder.path().join("there.safetensors"), folder.path().join("back.safetensors"));
        let network = || config.init(&Device::flex());
        let report = official::convert(network(), &config.formats(), [&path, &there], Some(format)).unwrap();
        let again = official::convert(network(), &config.formats(), [&there, &back], Some(&report.format)).unwrap();
        assert_eq!((again.format.as_str(), again.ignored.len()), (format, 0));
        let (theirs, ours) = (open::open(&path).unwrap(), open::open(&back).unwrap());
        assert_eq!(ours.len(), 208);
        for (name, tensor) in ours {
            let original = theirs.get(&format!("model.diffusion_model.{name}")).unwrap_or_else(|| &theirs[&name]);
            let read = |tensor| goldens::numbers(framework::burn::store::bridge::to_data(tensor).unwrap());
            assert_eq!((tensor.shape.to_vec(), read(&tensor)), (original.shape.to_vec(), read(original)), "{name}");
        }
    }
}

#[test]
fn a_format_that_is_named_is_the_only_one_tried() {
    let (config, path) = (config(""), goldens::path("sd15_compvis.ckpt"));
    let load = |format: &str| {
        let source = CheckpointSource { checkpoint: path.clone(), format: Some(format.to_string()) };
        let init = |path: &str, shape: &[usize]| config.initializer(path, shape);
        official::load(
            config.init(&Device::flex()),
            &config.formats(),
            &source,
            (&framework::random::Random::new(0), &init),
        )
    };
    assert!(load("compvis").is_ok());
    let refusal = load("diffusers").unwrap_err().to_string();
    assert!(refusal.contains("`time_embedding.linear_1.weight`"), "{refusal}");
    let refusal = load("ldm").unwrap_err().to_string();
    assert!(refusal.contains("no format `ldm`") && refusal.contains("compvis"), "{refusal}");
}

/// Compares the gradients. For a name that ends in `.rows0to4`, only the first four rows are recorded.
#[track_caller]
fn same_gradients(got: &Gradients, golden: &Golden, least: usize) {
    let part = |name: &str| {
        let whole = name.strip_suffix(".rows0to4")?;
        Some(got[whole][..4 * 512].to_vec())
    };
    goldens::same_gradients("", got, golden, &part, least);
}

#[test]
fn gradients_equal_the_official_code() {
    let (config, golden) = (config(""), Golden::open("sd15_unet.safetensors"));
    let (network, _) = load(&config, "sd15_diffusers_unet.safetensors", &Device::flex().autodiff());
    let t = golden.numbers("t").into_iter().map(|t| config.t_of_native(t)).collect();
    let input = Input::Noisy { x_t: to_positions(golden.tensor("x")), t };
    let out = network.predict(&input, &text(&golden, "context", "context_null"), &Control::default());
    let error = out - Tensor::from_inner(to_positions(golden.tensor("target")));
    let loss = (error.clone() * error).mean();
    close("mse", &values(loss.clone().inner()), &golden.numbers("mse"), 1e-5);
    same_gradients(&gradients(&config.formats()[0], &network, loss), &golden, 208);
}

/// Builds the recorded training example, with its times converted to ours.
fn example(config: &Sd15Config, golden: &Golden) -> Example {
    let t = golden.numbers("timesteps").iter().map(|t| config.t_of_native(*t)).collect();
    let [x, noise] = ["latents", "noise"].map(|name| to_positions(golden.tensor(name)));
    config.process.process().example(x, noise, t)
}

/// Returns the guided network with the recorded guidance projection, and the plain network for all other roles.
fn networks(form: &str) -> (Sd15Config, Recorded) {
    let projection = Golden::open("gft_sd_objective_gft.safetensors");
    let guided = config(&format!(r#", "guidance_input": "{form}""#));
    let device = Device::flex().autodiff();
    let (online, report) = load(&guided, "sd15_diffusers_unet.safetensors", &device);
    assert_eq!(report.fresh.len(), 1, "{report}");
    let name = "time_embedding.cond_proj.weight";
    let theirs = projection.data(name).clone();
    let mut all = parameters::export(&online);
    let [first, inputs] = [32, 512];
    let values = theirs.convert_dtype(DType::F32).try_into_vec::<f32>().unwrap();
    let ours: Vec<f32> = (0..inputs).flat_map(|i| values.iter().skip(i).step_by(inputs).copied()).collect();
    all.insert(name.to_string(), TensorData::new(ours, [inputs, first]));
    let online = parameters::restore(online, all).unwrap();
    // The official code gives no guidance number to the null branch and to the teacher. Both are the plain network.
    let (other, _) = load(&config(""), "sd15_diffusers_unet.safetensors", &Device::flex());
    (guided, Recorded { online, other })
}

#[test]
fn gft_has_the_official_losses_and_gradients() {
    for (file, form) in [
        ("gft_sd_objective_gft.safetensors", "scale_of_beta"),
        ("gft_sd_objective_gft_drop.safetensors", "scale_of_beta"),
        ("gft_sd_objective_ourbeta.safetensors", "linear"),
    ] {
        let (golden, (config, models)) = (Golden::open(file), networks(form));
        let (example, process) = (example(&config, &golden), config.process.process());
        let condition = text(&golden, "encoder_hidden_states", "uncond_embeds");
        let draws = Draws { uniform: golden.numbers("beta"), dropped: golden.flags("drop_ids"), negative: None };
        let context = Context::new(&example, (&condition, None), &process, &models, &draws, (0, 1));
        let losses = framework::serde_json::from_str::<objectives::Gft>("{}").unwrap().loss(&context);
        let loss = losses.mean();
        close(file, &values(loss.clone().inner()), &golden.numbers("loss"), 1e-5);
        same_gradients(&gradients(&config.formats()[0], &models.online, loss), &golden, 209);
    }
}

#[test]
fn distillation_has_the_official_loss_and_gradients() {
    let file = "gft_sd_objective_distill.safetensors";
    let (golden, (config, models)) = (Golden::open(file), networks("scale"));
    let (example, process) = (example(&config, &golden), config.process.process());
    let condition = text(&golden, "encoder_hidden_states", "uncond_embeds");
    let draws = Draws { uniform: golden.numbers("beta"), ..Draws::default() };
    let context = Context::new(&example, (&condition, None), &process, &models, &draws, (0, 1));
    let loss = framework::serde_json::from_str::<objectives::Distill>("{}").unwrap().loss(&context).mean();
    close(file, &values(loss.clone().inner()), &golden.numbers("loss"), 1e-5);
    same_gradients(&gradients(&config.formats()[0], &models.online, loss), &golden, 209);
}

#[test]
fn a_new_guidance_input_starts_at_the_published_model() {
    let golden = Golden::open("sd15_unet.safetensors");
    let condition = text(&golden, "context", "context_null");
    for form in ["linear", "scale_of_beta", "scale"] {
        let config = config(&format!(r#", "guidance_input": "{form}""#));
        let (network, _) = load(&config, "sd15_compvis.ckpt", &Device::flex());
        let t: Vec<f64> = golden.numbers("t").into_iter().map(|t| config.t_of_native(t)).collect();
        for beta in [0.0, 0.2, 0.5, 1.0] {
            let input = Input::Noisy { x_t: to_positions(golden.tensor("x")), t: t.clone() };
            let out = network.predict(&input, &condition, &Control::guided(Some(vec![beta; 3])));
            close(form, &values(from_positions(out, [8, 8])), &golden.numbers("out"), 1e-4);
        }
    }
}

#[test]
fn the_published_size_counts_the_published_parameters() {
    let config: Sd15Config = framework::serde_json::from_str("{}").unwrap();
    let parameters = parameters::parameters(&config.init(&Device::flex()));
    let count: usize = parameters.iter().map(|(_, shape, _)| shape.iter().product::<usize>()).sum();
    assert_eq!(count, 859_520_964);
}
