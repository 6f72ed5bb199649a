//! The check phase: each entry alone, then pairs of entries. It opens no file and no device. A check of a new pair is
//! added as a function in this folder alone.

mod conditions;
mod guidance;
mod words;

use crate::document::Document;
use framework::burn::tensor::Device;
use framework::data::dataset::{DatasetInfo, ItemKind};
use framework::error::{Problem, Problems};
use framework::network::condition::ConditionShape;
use framework::nn::parameters;
use framework::optimization::trainable;
use framework::plugin::{Kind, MetricPlugin};
use framework::process::LatentShape;
use words::{describe, words};

/// Returns all problems of a document that its schema cannot express.
pub(crate) fn check(document: &Document) -> Problems {
    let mut problems = Problems::new();
    if document.version != 1 {
        problems.push(Problem::new("/version", format!("unknown version {}", document.version)).accepts("1"));
    }
    // Check each entry alone. A pair is checked only if both entries are valid.
    let sound = |problems: &mut Problems, at: &str, found: Problems| {
        let sound = found.is_empty();
        problems.extend(found.into_iter().map(|problem| problem.under(at)));
        sound
    };
    let data = sound(&mut problems, "/data", document.data.check());
    let tokenizer = sound(&mut problems, "/tokenizer", document.tokenizer.check());
    let backbone = sound(&mut problems, "/backbone", document.backbone.check());
    let objective = sound(&mut problems, "/objective", document.objective.check());
    let sampler = sound(&mut problems, "/sampler", document.sampler.check());
    let rule = sound(&mut problems, "/guidance", document.guidance.check());
    sound(&mut problems, "/train", document.train.check());
    if let Some(conditioner) = &document.conditioner {
        sound(&mut problems, "/conditioner", conditioner.check());
    }
    for (i, metric) in document.metrics.iter().enumerate() {
        if sound(&mut problems, &format!("/metrics/{i}"), metric.check()) && backbone && tokenizer {
            problems.extend(measured(document, &**metric).into_iter().map(|p| p.under(&format!("/metrics/{i}"))));
        }
    }

    let info = data.then(|| document.data.info()).flatten();
    if tokenizer && backbone {
        problems.extend(info.as_ref().and_then(|info| shapes(document, info).err()).unwrap_or_default());
    }
    if backbone {
        problems.extend(conditions::check(document, info.as_ref()));
    }
    if backbone && objective {
        problems.extend(training(document));
    }
    if backbone && rule {
        problems.extend(guidance::needs(document));
    }
    if objective && rule {
        problems.extend(guidance::training(document));
    }
    if backbone && sampler {
        let family = document.backbone.process().family();
        if !document.sampler.serves(family) {
            problems.push(
                Problem::new(
                    "/sampler",
                    format!(
                        "sampler \"{}\" cannot sample from backbone \"{}\", which has {}",
                        document.sampler.typetag_name(),
                        document.backbone.typetag_name(),
                        describe(family)
                    ),
                )
                .and_at("/backbone")
                .accepts(format!("a sampler for {}", describe(family))),
            );
        } else {
            let process = document.backbone.process();
            let shape = document.backbone.latent_shape();
            let found =
                document.sampler.check_process(&*process).into_iter().chain(document.sampler.check_shape(&shape));
            problems.extend(found.map(|problem| problem.under("/sampler")));
        }
        if let Some(field) = document.sampler.needs_variance()
            && !document.backbone.accepts().variance
        {
            problems.push(
                Problem::new(
                    format!("/sampler{field}"),
                    format!(
                        "sampler \"{}\" needs a learned variance; backbone \"{}\" predicts none",
                        document.sampler.typetag_name(),
                        document.backbone.typetag_name()
                    ),
                )
                .and_at("/backbone")
                .accepts("a backbone with \"learn_sigma\": true"),
            );
        }
    }
    problems
}

/// Checks a metric against the samples that it will measure. Pointers are relative to the metric.
fn measured(document: &Document, metric: &dyn MetricPlugin) -> Problems {
    let mut problems = Problems::new();
    let (name, data) = (metric.typetag_name(), document.data.typetag_name());
    let info = document.data.info();
    if metric.needs_classes() && info.as_ref().is_some_and(|info| info.num_classes.is_none()) {
        problems.push(
            Problem::new("", format!("metric \"{name}\" needs classes; dataset \"{data}\" has none"))
                .accepts("a dataset with classes, or a metric that needs none"),
        );
    }
    if metric.needs_captions() && info.as_ref().is_some_and(|info| !info.captions) {
        problems.push(
            Problem::new("", format!("metric \"{name}\" needs captions; dataset \"{data}\" has none"))
                .accepts("a dataset with captions, or a metric that needs none"),
        );
    }
    let count = document.train.samples_to_measure(info.and_then(|info| info.num_classes));
    let image = document.tokenizer.image_shape(document.backbone.latent_shape());
    problems.extend(metric.check_image(image));
    let least = metric.least_samples(image);
    if count < least {
        problems.push(
            Problem::new("", format!("metric \"{name}\" needs at least {least} samples; the run generates {count}"))
                .accepts(format!("at least {least} samples"))
                .fix(format!("set /train/metric_samples to {least}")),
        );
    }
    problems
}

/// Checks that the latents of dataset and tokenizer fit the backbone.
fn shapes(document: &Document, info: &DatasetInfo) -> Result<(), Problems> {
    let (maker, at, latent) = match &info.items {
        ItemKind::Images(image) => {
            let latent = document.tokenizer.latent_shape(*image).map_err(|problems| {
                problems.into_iter().map(|problem| problem.under("/tokenizer").and_at("/data")).collect::<Problems>()
            })?;
            (format!("tokenizer \"{}\" produces", document.tokenizer.typetag_name()), "/tokenizer", latent)
        }
        ItemKind::Latents { grid, channels } => {
            let latent = LatentShape::values(*grid, *channels);
            (format!("dataset \"{}\" has", document.data.typetag_name()), "/data", latent)
        }
        ItemKind::Tokens(latent) => {
            (format!("dataset \"{}\" has", document.data.typetag_name()), "/data", latent.clone())
        }
    };
    let wanted = document.backbone.latent_shape();
    if latent == wanted {
        return Ok(());
    }
    let what = format!(
        "{maker} latents with {}; backbone \"{}\" models latents with {}",
        words(&latent),
        document.backbone.typetag_name(),
        words(&wanted)
    );
    Err(vec![Problem::new(at, what).and_at("/backbone").accepts("the same latent shape on both sides")])
}

/// Checks that objective, `train` entry and backbone are compatible.
fn training(document: &Document) -> Problems {
    let (needs, accepts) = (document.objective.needs(), document.backbone.accepts());
    let (objective, backbone) = (document.objective.typetag_name(), document.backbone.typetag_name());
    let field = format!("/backbone{}", accepts.guidance_field);
    let mut problems = Problems::new();
    if needs.guidance_input && !accepts.guidance_input {
        problems.push(
            Problem::new(
                "/objective",
                format!("objective \"{objective}\" needs a guidance input; backbone \"{backbone}\" has none"),
            )
            .and_at(&field)
            .accepts("a backbone with a guidance input")
            .fix(match accepts.guidance_field {
                "" => "choose a backbone with a guidance input".to_string(),
                inner => match words::accepted(Kind::Backbone, backbone, inner) {
                    Some(value) => format!("set {field} to \"{value}\""),
                    None => format!("enable {field}"),
                },
            }),
        );
    }
    if accepts.guidance_input && !needs.guidance_input {
        problems.push(
            Problem::new(
                &field,
                format!(
                    "the guidance input of backbone \"{backbone}\" has no effect: objective \"{objective}\" does not \
                     train it"
                ),
            )
            .and_at("/objective")
            .accepts("no guidance input, or an objective that trains it")
            .fix(match accepts.guidance_field {
                "" => "choose a backbone without a guidance input".to_string(),
                _ => format!("remove {field}"),
            }),
        );
    }
    if needs.ema && document.train.ema.is_none() {
        problems.push(
            Problem::new(
                "/train/ema",
                format!("objective \"{objective}\" needs an average of the weights; the document has none"),
            )
            .and_at("/objective")
            .accepts("an average of the weights")
            .fix("set /train/ema to {\"decay\": 0.9999}"),
        );
    }
    if needs.measurements && (document.train.sample_every.is_none() || document.metrics.is_empty()) {
        problems.push(
            Problem::new(
                "/train/sample_every",
                format!("objective \"{objective}\" follows a metric on samples; no metric is measured during training"),
            )
            .and_at("/metrics")
            .accepts("a number of steps between measurements, and a metric"),
        );
    }
    let train = &document.train;
    if train.evaluate_every.is_some() && document.metrics.is_empty() {
        let what = "`evaluate_every` has no effect: the document has no metrics";
        let problem = Problem::new("/train/evaluate_every", what).and_at("/metrics");
        problems.push(problem.accepts("null, or at least one metric"));
    }
    if train.lora.is_some() || !train.frozen.is_empty() || !train.weight_decay_groups.is_empty() {
        let parameters = parameters::parameters(&document.backbone.init(&Device::flex()));
        problems
            .extend(trainable::check(document.train.trainable(), &parameters).into_iter().map(|p| p.under("/train")));
    }
    for (name, source) in [("from", &document.train.from), ("reference", &document.train.reference)] {
        let Some(format) = source.as_ref().and_then(|source| source.format.as_ref()) else { continue };
        let known: Vec<&str> = document.backbone.formats().iter().map(|names| names.format).collect();
        if !known.contains(&format.as_str()) {
            let what = format!("backbone \"{backbone}\" has no published format \"{format}\"");
            let problem = Problem::new(format!("/train/{name}/format"), what).and_at("/backbone");
            problems.push(problem.accepts(known.join(", ")));
        }
    }
    if needs.reference && document.train.from.is_none() && document.train.reference.is_none() {
        problems.push(
            Problem::new(
                "/train/from",
                format!("objective \"{objective}\" needs a trained reference; this run starts from random weights"),
            )
            .and_at("/train/reference")
            .accepts("a run folder, a checkpoint or an official file in one of the two")
            .fix("train this document with objective \"cfg\" first, and set /train/from/checkpoint to its run folder"),
        );
    }
    if !needs.reference && document.train.reference.is_some() {
        problems.push(
            Problem::new(
                "/train/reference",
                format!("the reference has no effect: objective \"{objective}\" does not use one"),
            )
            .and_at("/objective")
            .accepts("null, or an objective that needs a reference"),
        );
    }
    if needs.classes && accepts.num_classes().is_none_or(|n| n < 2) {
        problems.push(
            Problem::new(
                "/objective",
                format!("objective \"{objective}\" selects other classes; backbone \"{backbone}\" has fewer than two"),
            )
            .and_at("/backbone")
            .accepts("a backbone with at least two classes"),
        );
    }
    if needs.negatives && (accepts.condition == ConditionShape::None || document.train.batch_size < 2) {
        problems.push(
            Problem::new(
                "/objective",
                format!(
                    "objective \"{objective}\" contrasts each sample with another sample's condition; there is none"
                ),
            )
            .and_at("/backbone")
            .and_at("/train/batch_size")
            .accepts("a backbone that reads a class or a text, and a batch size of at least 2"),
        );
    }
    problems.extend(
        document.objective.check_process(&*document.backbone.process()).into_iter().map(|p| p.under("/objective")),
    );
    if needs.null_condition && accepts.condition == ConditionShape::None {
        problems.push(
            Problem::new(
                "/objective",
                format!(
                    "objective \"{objective}\" needs the null condition; backbone \"{backbone}\" reads no condition"
                ),
            )
            .and_at("/backbone")
            .accepts("a backbone that reads a class or a text"),
        );
    }
    problems
}
