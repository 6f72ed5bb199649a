//! Sinusoids equal those of diffusers, recorded in `shared/goldens` (`gft_sd_beta_embedding`, diffusers 0.32.2).

use framework::burn::store::bridge;
use framework::foreign;
use framework::nn::{guidance_sinusoid, sinusoid};
use framework_dylib as _;
use std::path::Path;

#[test]
fn guidance_embeddings_equal_diffusers() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/goldens/gft_sd_beta_embedding.safetensors");
    if !path.exists() {
        eprintln!("skipped: {} is absent", path.display());
        return;
    }
    let golden = foreign::open(&path).unwrap();
    let numbers = |name: &str| -> Vec<f64> {
        bridge::to_data(&golden[name]).unwrap().convert::<f64>().try_into_vec::<f64>().unwrap()
    };
    let close = |got: Vec<f64>, name: &str| {
        let expected = numbers(name);
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(expected) {
            // The manifest's bound: the reference takes sines of f32 arguments of up to 1e5.
            assert!((got - expected).abs() <= 1e-2, "{name}: {got} against {expected}");
        }
    };
    close(guidance_sinusoid(&numbers("w"), 512), "guidance_scale_embedding");
    close(sinusoid(&numbers("ts"), 512), "get_timestep_embedding");
}
