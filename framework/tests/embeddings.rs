//! Sinusoids equal those of diffusers, recorded in `shared/goldens` (`gft_sd_beta_embedding`, diffusers 0.32.2).

use framework::nn::{guidance_sinusoid, sinusoid};
use framework_dylib as _;
use goldens::Golden;

#[test]
fn guidance_embeddings_equal_diffusers() {
    let Some(golden) = Golden::open("gft_sd_beta_embedding.safetensors") else { return };
    let close = |got: Vec<f64>, name: &str| {
        let expected = golden.numbers(name);
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(expected) {
            // The manifest's bound: the reference takes sines of f32 arguments of up to 1e5.
            assert!((got - expected).abs() <= 1e-2, "{name}: {got} against {expected}");
        }
    };
    close(guidance_sinusoid(&golden.numbers("w"), 512), "guidance_scale_embedding");
    close(sinusoid(&golden.numbers("ts"), 512), "get_timestep_embedding");
}
