//! Networks of other runs: the frozen reference of an objective, and the weak network of a guidance rule.

use crate::document;
use crate::folder::RunFolder;
use crate::watcher::Watcher;
use crate::weights::{native, weights};
use framework::burn::module::Module;
use framework::burn::tensor::Device;
use framework::checkpoint::Checkpoint;
use framework::checkpoint::official::CheckpointSource;
use framework::error::{Error, Problem, Result};
use framework::network::backbone::BoxBackbone;
use framework::nn::parameters;
use framework::objective::{NullPrediction, Objective};
use framework::pipeline::Pipeline;
use framework::pipeline::weak::{WeakNetwork, interpolate};
use framework::training::networks::Reference;
use std::path::Path;

/// Keys in the memory of a reference's file: the guidance numbers with which it was trained.
const CONDITIONAL: &str = "reference guidance number";
const NULL: &str = "reference guidance number of null";

/// Returns the guidance numbers of a network that `objective` trained: without guidance, and for null.
fn numbers(objective: &dyn Objective) -> [Option<f64>; 2] {
    [objective.guidance_of_scale(1.0), objective.null().number()]
}

/// Returns the frozen reference of a run. The run folder keeps a copy, so the run can resume after the original was
/// deleted.
///
/// # Errors
/// If the reference cannot be read, does not match the network, or does not train a prediction that the objective
/// reads.
pub fn reference(
    pipeline: &Pipeline,
    run: &RunFolder,
    device: &Device,
    online: &BoxBackbone,
    resumed: bool,
    watcher: &mut dyn Watcher,
) -> Result<Reference> {
    let kept = run.path.join("reference.safetensors");
    if resumed || kept.exists() {
        let checkpoint = Checkpoint::load_for_sampling(&kept)?;
        let [conditional, null] = [CONDITIONAL, NULL].map(|name| checkpoint.memory.get(name).copied());
        let network = own(pipeline, &kept, checkpoint, "/train/reference", device)?.0;
        return Ok(Reference { network, conditional, null });
    }
    let source = pipeline.train.reference.as_ref().or(pipeline.train.from.as_ref());
    let theirs = match source {
        Some(source) => native(&source.checkpoint)?,
        None => None,
    };
    let objective = match &theirs {
        Some((path, checkpoint)) => Some(document_of(path, checkpoint)?.objective),
        None => None,
    };
    if let (Some(objective), Some(source)) = (&objective, source)
        && pipeline.objective.needs().reference_null
        && let NullPrediction::Untrained(why) = objective.null()
    {
        let what = format!(
            "the objective reads the null prediction of {}, which its run did not train: {why}",
            source.checkpoint.display()
        );
        let at = if pipeline.train.reference.is_some() { "/train/reference" } else { "/train/from" };
        return Err(Problem::new(at, what).accepts("a reference whose objective trains the null prediction").into());
    }
    let [conditional, null] = objective.map_or([None; 2], |objective| numbers(&*objective));
    let memory = [(CONDITIONAL, conditional), (NULL, null)];
    let memory = memory.into_iter().filter_map(|(name, number)| Some((name.to_string(), number?))).collect();
    let pipeline_document = pipeline.document.clone();
    let (document, model) = match (&pipeline.train.reference, theirs) {
        // The weights that the run starts from.
        (None, _) => (pipeline_document, parameters::export(&online.valid())),
        (Some(_), Some((_, found))) => (found.document, found.model),
        (Some(source), None) => {
            let (network, report) = weights(&*pipeline.backbone, pipeline.train.seed, source, device)?;
            watcher.say(&format!("reference {}: {report}", source.checkpoint.display()));
            (pipeline_document, parameters::export(&network))
        }
    };
    let checkpoint = Checkpoint { document, model, memory, ..Checkpoint::default() };
    checkpoint.save(&kept)?;
    let network = match &pipeline.train.reference {
        None => online.valid(),
        Some(source) => own(pipeline, &source.checkpoint, checkpoint, "/train/reference", device)?.0,
    };
    Ok(Reference { network, conditional, null })
}

/// Loads the weak network of the guidance rule, if the document names one.
///
/// # Errors
/// If a network cannot be read, does not match the network that is sampled, or lacks the null prediction that the rule
/// needs.
pub fn load_weak(pipeline: &mut Pipeline, device: &Device) -> Result<()> {
    let Some(config) = &pipeline.weak_source else { return Ok(()) };
    let mut loaded =
        config.sources().iter().map(|source| weak(pipeline, source, device)).collect::<Result<Vec<_>>>()?;
    let WeakNetwork { network, objective } = loaded.remove(0);
    let network = match (&config.interpolate, loaded.pop()) {
        (Some(other), Some(found)) => interpolate(network, &found.network, other.weight)?,
        _ => network,
    };
    let null = objective.as_ref().map(|objective| objective.null());
    if let (true, Some(NullPrediction::Untrained(why))) = (pipeline.guidance.needs().weak_null, null) {
        let what = format!("the rule needs the null prediction of the weak network, which was not trained: {why}");
        let problem = Problem::new("/guidance/weak", what).and_at("/guidance");
        return Err(problem.accepts("a network trained with the null condition, or no null branch").into());
    }
    pipeline.weak = Some(WeakNetwork { network, objective });
    Ok(())
}

fn weak(pipeline: &Pipeline, source: &CheckpointSource, device: &Device) -> Result<WeakNetwork> {
    match native(&source.checkpoint)? {
        Some((path, checkpoint)) => {
            let (network, objective) = own(pipeline, &path, checkpoint, "/guidance/weak", device)?;
            Ok(WeakNetwork { network, objective: Some(objective) })
        }
        None => Ok(WeakNetwork {
            network: weights(&*pipeline.backbone, pipeline.train.seed, source, device)?.0,
            objective: None,
        }),
    }
}

fn document_of(path: &Path, checkpoint: &Checkpoint) -> Result<Pipeline> {
    document::from_text(&checkpoint.document, &[], &format!("{} (its document)", path.display()))
}

/// Builds the network of the checkpoint's own document, and returns it with its objective. Its latents, process and
/// conditions must match the pipeline's.
fn own(
    pipeline: &Pipeline,
    path: &Path,
    checkpoint: Checkpoint,
    at: &str,
    device: &Device,
) -> Result<(BoxBackbone, Box<dyn Objective>)> {
    let theirs = document_of(path, &checkpoint)?;
    let (a, b) = (&pipeline.backbone, &theirs.backbone);
    let differs = [
        ("latents", a.latent_shape() != b.latent_shape()),
        ("process", format!("{:?}", a.process()) != format!("{:?}", b.process())),
        ("conditions", a.accepts().condition != b.accepts().condition),
    ];
    if let Some((what, _)) = differs.iter().find(|(_, differs)| *differs) {
        let what = format!("the network of {} differs from the document's network in its {what}", path.display());
        let problem = Problem::new(at, what).and_at("/backbone");
        return Err(problem.accepts("a network with the same latents, process and conditions").into());
    }
    let network = theirs.restore(checkpoint.model, device).map_err(|e| Error::file(path, e.to_string()))?;
    Ok((network, theirs.objective))
}
