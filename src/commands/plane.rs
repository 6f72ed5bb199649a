//! `plane`: draws the samples and trajectories of a network that was trained on points in the plane.

use crate::arguments::PlaneOptions;
use crate::{Outcome, console, device, outputs};
use data::points::{Density, GaussianMixture, PlaneConfig, Spirals, TwoMoons};
use framework::burn::tensor::{DType, Device, Tensor};
use framework::error::{Error, Problem, Result};
use framework::network::backbone::BoxBackbone;
use framework::network::condition::Condition;
use framework::pipeline::Pipeline;
use framework::process::Latent;
use framework::random::Random;
use framework::sampling::denoiser::{Denoiser, GuidanceNumbers};
use framework::sampling::sampler::{NoiseSource, SamplerStep, SeededNoise};
use run_folder::plane::Samples;
use run_folder::{document, frozen, plane, weights};
use serde_json::Value;

/// Half the side of the drawn square, as a multiple of the largest coordinate of the data.
const MARGIN: f64 = 1.6;

/// Draws the plane of a run.
pub fn plane(options: &PlaneOptions) -> Outcome {
    let device = device::named(options.device.as_deref())?;
    outputs::file("--output", &options.output, Some("png"))?;
    let (_, checkpoint) = weights::checkpoint(&options.from)?;
    let mut overrides = options.set.clone();
    overrides.extend(options.scale.map(|scale| format!("/guidance/scale={scale}")));
    let name = format!("{} (its document)", options.from.display());
    let mut pipeline = document::from_text(&checkpoint.document, &overrides, &name)?;
    let shape = shape(&pipeline)?;
    let density = shape.density();
    pipeline.load(&device)?;
    frozen::load_weak(&mut pipeline, &device)?;
    if pipeline.weak.is_some() {
        let problem = Problem::new("/guidance", "the picture cannot show a rule of two networks");
        return Err(problem.accepts("a rule of one network").into());
    }
    let network = pipeline.restore(checkpoint.model, &device)?;
    let samples = (0..shape.num_classes())
        .map(|class| samples(&pipeline, &network, class, options, &device))
        .collect::<Result<Vec<Samples>>>()?;
    let reach = MARGIN * largest(&density_points(&*shape));
    let title = format!(
        "{} steps, samples over the density of the data",
        pipeline.sampler.evaluations(&pipeline.latent_shape())
    );
    plane::save(&options.output, &title, reach, &|x| density.density(None, x, [1.0, 0.0]), &samples)?;
    for (class, samples) in samples.iter().enumerate() {
        console::report(&format!("{:<10} mean log density {:.3}", samples.name, mean_log(&density, class, samples)));
    }
    console::report(&options.output.display().to_string());
    Ok(())
}

/// Returns the shape in the plane that the document trains on.
fn shape(pipeline: &Pipeline) -> Result<Box<dyn PlaneConfig>> {
    let document: Value = serde_json::from_str(&pipeline.document).map_err(|e| Error::Run(e.to_string()))?;
    let mut entry = document["data"].clone();
    let name = entry.as_object_mut().and_then(|entry| entry.shift_remove("type")).unwrap_or_default();
    let wrong = |e: serde_json::Error| Error::Run(e.to_string());
    match name.as_str() {
        Some("gaussian_mixture") => Ok(Box::new(serde_json::from_value::<GaussianMixture>(entry).map_err(wrong)?)),
        Some("two_moons") => Ok(Box::new(serde_json::from_value::<TwoMoons>(entry).map_err(wrong)?)),
        Some("spirals") => Ok(Box::new(serde_json::from_value::<Spirals>(entry).map_err(wrong)?)),
        _ => {
            let problem = Problem::new("/data/type", format!("dataset {name} has no points in the plane"));
            Err(problem.accepts("a run on gaussian_mixture, two_moons or spirals").into())
        }
    }
}

/// Returns some centres of every class.
fn density_points(shape: &dyn PlaneConfig) -> Vec<[f64; 2]> {
    (0..shape.num_classes()).flat_map(|class| (0..64).map(move |i| shape.centre(class, f64::from(i) / 64.0))).collect()
}

fn largest(points: &[[f64; 2]]) -> f64 {
    points.iter().flatten().fold(1e-3, |largest, value| largest.max(value.abs()))
}

/// Returns the mean over the samples of the log density of their class. The entropy of the class bounds it for samples
/// that have its density; guided samples may exceed it.
fn mean_log(density: &Density, class: usize, samples: &Samples) -> f64 {
    let log = |x: &[f64; 2]| density.density(Some(class), *x, [1.0, 0.0]).max(f64::MIN_POSITIVE).ln();
    samples.points.iter().map(log).sum::<f64>() / samples.points.len() as f64
}

/// Samples one class and records the first trajectories.
fn samples(
    pipeline: &Pipeline,
    network: &BoxBackbone,
    class: usize,
    options: &PlaneOptions,
    device: &Device,
) -> Result<Samples> {
    let (process, shape) = (pipeline.process(), pipeline.latent_shape());
    let of_scale = |scale: f64| pipeline.objective.guidance_of_scale(scale);
    let numbers = GuidanceNumbers { of_scale: &of_scale, null: pipeline.objective.null().number() };
    let count = options.count.get();
    let condition = Condition::Class(vec![Some(class); count]);
    let mut model = Denoiser::new(network, &*process, &*pipeline.guidance, numbers, &condition, &shape);
    let mut noise = SeededNoise {
        random: Random::new(options.seed),
        first: class * count,
        count,
        shape: shape.clone(),
        dtype: DType::F32,
        device: device.clone(),
    };
    let shown = options.trajectories.min(count);
    // Draw 0 is the initial noise.
    let mut trajectories: Vec<Vec<[f64; 2]>> =
        points(noise.normal(0)).into_iter().take(shown).map(|x| vec![x]).collect();
    let mut observer = |at: &SamplerStep<'_>| {
        if let Some(state) = at.state {
            trajectories.iter_mut().zip(points(state.clone())).for_each(|(trajectory, point)| trajectory.push(point));
        }
    };
    let latent = pipeline.sampler.sample(&mut model, &mut noise, &mut observer);
    let Latent::Values(x) = latent else { unreachable!("points in the plane are continuous") };
    let points = points(x);
    if points.iter().flatten().any(|value| !value.is_finite()) {
        return Err(Error::Run(format!("a sample of class {class} is not finite: the weights have diverged")));
    }
    Ok(Samples { name: format!("class {class}"), points, trajectories })
}

/// Returns the points of latents `[B, 1, 2]`.
fn points(x: Tensor<3>) -> Vec<[f64; 2]> {
    let values: Vec<f64> = x.into_data().iter::<f64>().collect();
    values.chunks_exact(2).map(|pair| [pair[0], pair[1]]).collect()
}
