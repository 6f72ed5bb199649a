//! Sinusoids equal the ones that diffusers computes, recorded in `tests/goldens/data`
//! (`gft_sd_beta_embedding`, diffusers 0.32.2).

use framework::nn::{guidance_sinusoid, sinusoid};
use framework_dylib as _;
use goldens::Golden;

#[test]
fn guidance_embeddings_equal_diffusers() {
    let golden = Golden::open("gft_sd_beta_embedding.safetensors");
    let close = |got: Vec<f64>, name: &str| {
        let expected = golden.numbers(name);
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(expected) {
            // The tolerance of the manifest: the reference computes sines of f32 arguments as large as 1e5.
            assert!((got - expected).abs() <= 1e-2, "{name}: {got}, expected {expected}");
        }
    };
    close(guidance_sinusoid(&golden.numbers("w"), 512), "guidance_scale_embedding");
    close(sinusoid(&golden.numbers("ts"), 512), "get_timestep_embedding");
}
