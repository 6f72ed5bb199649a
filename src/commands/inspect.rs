//! `check`, `schema` and `list`: print a document with its costs, the schema, or the plugins.

use crate::Outcome;
use crate::arguments::CheckOptions;
use crate::console::{self, bytes};
use framework::burn::tensor::Device;
use framework::error::Error;
use framework::nn::parameters;
use framework::optimization::trainable;
use framework::plugin::Kind;
use framework::process::Family;
use registry::{Registry, library};
use run_folder::document;
use run_folder::page::numbers::thousands;

/// Prints the resolved document and its costs. Allocates no weights.
pub fn check(options: &CheckOptions) -> Outcome {
    let pipeline = document::read(&options.document.pipeline, &options.document.set)?;
    console::print(&pipeline.document)?;
    let network = pipeline.backbone.init(&Device::flex());
    let parameters = parameters::parameters(&network);
    if options.parameters {
        for (path, shape, _) in &parameters {
            console::print(&format!("{path:<60} {shape:?}"))?;
        }
    }
    let count = parameters::count(&network);
    let needs = pipeline.objective.needs();
    let train = &pipeline.train;
    let trained = trainable::trained(train.trainable(), &parameters, &pipeline.is_new());
    let copies = [train.ema.is_some() || needs.ema, needs.reference].iter().filter(|copy| **copy).count();
    // Everything is f32: the weights and their copies, and for each trained weight its gradient and optimizer state.
    let state = 4.0 * (count * (1 + copies) + trained * (1 + train.optimizer.kept())) as f64;
    let batch = train.batch_size * train.workers;
    let activations = pipeline.backbone.activations() * batch as f64 * 4.0;
    let evaluations = pipeline.sampler.evaluations(&pipeline.latent_shape());
    console::say(&format!("parameters   {}", thousands(count)));
    if trained < count {
        console::say(&format!("             {} of them are trained", thousands(trained)));
    }
    let conditioner = pipeline.conditioner.as_ref().map_or(0, |conditioner| conditioner.parameters());
    for (part, frozen) in [("tokenizer", pipeline.tokenizer.parameters()), ("conditioner", conditioner)] {
        if frozen > 0 {
            console::say(&format!("             {} in the frozen {part}", thousands(frozen)));
        }
    }
    console::say(&format!(
        "memory       about {} to train (weights and optimizer {}, activations of a batch of {} {}), {} to sample",
        bytes(state + activations),
        bytes(state),
        batch,
        bytes(activations),
        bytes(count as f64 * 4.0),
    ));
    console::say(&format!(
        "compute      {:.3} GFLOP per forward pass and sample; {} extra passes per training step",
        pipeline.backbone.flops() / 1e9,
        pipeline.objective.extra_passes(),
    ));
    console::say(&format!(
        "NFE          at most {} per image: {evaluations} evaluations x {} branches",
        evaluations * pipeline.guidance.needs().most_branches,
        pipeline.guidance.needs().most_branches,
    ));
    for warning in pipeline.objective.warnings() {
        console::say(&format!("warning: {warning}"));
    }
    let family = pipeline.backbone.process().family();
    if let Some(why) = pipeline.objective.extension(family) {
        console::say(&format!("extension    no paper defines this objective on a {} process: {why}", family.name()));
    }
    Ok(())
}

/// Prints the JSON Schema.
pub fn schema() -> Outcome {
    let text = serde_json::to_string_pretty(Registry::linked().schema());
    console::print(&text.map_err(|e| Error::Run(e.to_string()))?)
}

/// Prints all plugins, and the pairs that no paper defines.
pub fn list() -> Outcome {
    let registry = Registry::linked();
    let row = |kind: &str, name: &str, from: &str, papers: &str| {
        console::print(format!("{kind:<12} {name:<18} {from:<20} {papers}").trim_end())
    };
    row("kind", "type", "from", "papers")?;
    for entry in registry.entries() {
        let library = library::origin(entry.kind, entry.name).map(|path| path.display().to_string());
        row(entry.kind.name(), entry.name, library.as_deref().unwrap_or(entry.origin), &entry.papers.join(", "))?;
    }
    if !cfg!(feature = "shared") {
        console::print("\nThis build has no feature `shared`: it cannot load plugin libraries.")?;
    }
    console::print("\nextensions that the papers do not define")?;
    for entry in registry.entries().iter().filter(|entry| entry.kind == Kind::Objective) {
        let Ok(objective) = registry.objective(serde_json::json!({ "type": entry.name })) else { continue };
        for family in Family::ALL {
            if let Some(why) = objective.extension(family) {
                console::print(&format!("{:<12} on {:<15} {why}", entry.name, family.name()))?;
            }
        }
    }
    Ok(())
}
