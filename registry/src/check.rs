//! The check phase: every entry on its own, then the pairs. It touches no file and no device.

use crate::document::Document;
use framework::adapt;
use framework::burn::tensor::Device;
use framework::condition::ConditionKind;
use framework::dataset::{DatasetInfo, ItemKind};
use framework::error::{Problem, Problems};
use framework::plugin::MetricPlugin;
use framework::process::{Family, LatentShape};
use framework::weights;

/// Every problem of a document that its schema does not show.
pub(crate) fn check(document: &Document) -> Problems {
    let mut problems = Problems::new();
    if document.version != 1 {
        problems.push(Problem::new("/version", format!("version {} is not known", document.version)).accepts("1"));
    }
    // Each entry on its own. A pair is looked at only if both halves are sound.
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
    let guidance = sound(&mut problems, "/guidance", document.guidance.check());
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
        problems.extend(conditions(document, info.as_ref()));
    }
    if backbone && objective {
        problems.extend(training(document));
    }
    if backbone && guidance {
        problems.extend(guided(document));
    }
    if objective && guidance {
        problems.extend(scale(document));
    }
    if backbone && sampler {
        let family = document.backbone.process().family();
        if !document.sampler.serves(family) {
            problems.push(
                Problem::new(
                    "/sampler",
                    format!(
                        "sampler \"{}\" cannot draw from backbone \"{}\", {}",
                        document.sampler.typetag_name(),
                        document.backbone.typetag_name(),
                        describe(family)
                    ),
                )
                .and_at("/backbone")
                .accepts(format!("a sampler that serves {}", describe(family))),
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
                        "sampler \"{}\" asks for a learned variance; \"{}\" as configured predicts none",
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

fn describe(family: Family) -> &'static str {
    match family {
        Family::Continuous => "a continuous process (diffusion or flow)",
        Family::NextToken => "a next-token process",
        Family::NextLevel => "a next-level process",
        Family::Masked => "a masked process",
    }
}

fn words(shape: &LatentShape) -> String {
    let [height, width] = shape.grid;
    match shape.vocabulary {
        Some(vocabulary) if !shape.levels.is_empty() => {
            let (levels, channels) = (&shape.levels, shape.channels);
            format!("levels of sides {levels:?} of a vocabulary of {vocabulary}, fed by {channels} channels")
        }
        Some(vocabulary) => format!("{height}x{width} tokens of a vocabulary of {vocabulary}"),
        None => format!("{height}x{width} positions of {} channels", shape.channels),
    }
}

/// One metric and the samples it will be given; the first pointer of a problem is relative to the metric.
fn measured(document: &Document, metric: &dyn MetricPlugin) -> Problems {
    let mut problems = Problems::new();
    let (name, data) = (metric.typetag_name(), document.data.typetag_name());
    let info = document.data.info();
    if metric.needs_classes() && info.as_ref().is_some_and(|info| info.num_classes.is_none()) {
        problems.push(
            Problem::new("", format!("metric \"{name}\" needs the class of each sample; dataset \"{data}\" has none"))
                .accepts("a dataset with classes, or a metric without"),
        );
    }
    if metric.needs_captions() && info.as_ref().is_some_and(|info| !info.captions) {
        problems.push(
            Problem::new(
                "",
                format!("metric \"{name}\" needs the caption of each sample; dataset \"{data}\" has none"),
            )
            .accepts("a dataset with captions, or a metric without"),
        );
    }
    let count = document.train.samples_to_measure(info.and_then(|info| info.num_classes));
    let image = document.tokenizer.image_shape(document.backbone.latent_shape());
    problems.extend(metric.check_image(image));
    let least = metric.least_samples(image.iter().product());
    if count < least {
        problems.push(
            Problem::new("", format!("metric \"{name}\" needs at least {least} samples; the run draws {count}"))
                .accepts(format!("{least} samples or more"))
                .fix(format!("set /train/metric_samples to {least}")),
        );
    }
    problems
}

/// Data to tokenizer to backbone.
fn shapes(document: &Document, info: &DatasetInfo) -> Result<(), Problems> {
    let (maker, at, latent) = match info.items {
        ItemKind::Images(image) => {
            let latent = document.tokenizer.latent_shape(image).map_err(|problems| {
                problems.into_iter().map(|problem| problem.under("/tokenizer").and_at("/data")).collect::<Problems>()
            })?;
            (format!("tokenizer \"{}\" makes", document.tokenizer.typetag_name()), "/tokenizer", latent)
        }
        ItemKind::Latents { grid, channels } => {
            let latent = LatentShape::values(grid, channels);
            (format!("dataset \"{}\" holds", document.data.typetag_name()), "/data", latent)
        }
    };
    let wanted = document.backbone.latent_shape();
    if latent == wanted {
        return Ok(());
    }
    let what = format!(
        "{maker} latents of {}; \"{}\" as configured models {}",
        words(&latent),
        document.backbone.typetag_name(),
        words(&wanted)
    );
    Err(vec![Problem::new(at, what).and_at("/backbone").accepts("the same latent on both sides")])
}

/// What a picture is asked to show: dataset, conditioner and backbone agree on it.
fn conditions(document: &Document, info: Option<&DatasetInfo>) -> Problems {
    let accepts = document.backbone.accepts();
    let (backbone, data) = (document.backbone.typetag_name(), document.data.typetag_name());
    let reads = match accepts.condition {
        ConditionKind::None => "no condition",
        ConditionKind::Class => "a class",
        ConditionKind::Text => "the features of a text",
        ConditionKind::Tokens => "the tokens of a text",
    };
    let text = accepts.condition.is_text();
    let mut problems = Problems::new();
    match &document.conditioner {
        Some(conditioner) if !text => problems.push(
            Problem::new(
                "/conditioner",
                format!(
                    "conditioner \"{}\" would have no effect: \"{backbone}\" as configured reads {reads}",
                    conditioner.typetag_name()
                ),
            )
            .and_at("/backbone")
            .accepts("a conditioner only with a backbone that reads a text")
            .fix("remove /conditioner"),
        ),
        Some(conditioner) => {
            let [length, width] = conditioner.text_shape();
            if accepts.text_length.is_some_and(|most| length > most) {
                let most = accepts.text_length.unwrap_or_default();
                let what = format!(
                    "conditioner \"{}\" makes texts of {length} tokens; \"{backbone}\" as configured reads {most}",
                    conditioner.typetag_name()
                );
                let problem = Problem::new("/conditioner", what).and_at("/backbone");
                problems.push(problem.accepts(format!("at most {most} tokens")));
            }
            if conditioner.kind() != accepts.condition {
                let what = format!(
                    "conditioner \"{}\" makes {}; \"{backbone}\" as configured reads {reads}",
                    conditioner.typetag_name(),
                    if conditioner.kind() == ConditionKind::Tokens { "tokens" } else { "features" },
                );
                let problem = Problem::new("/conditioner", what).and_at("/backbone");
                problems
                    .push(problem.accepts("tokens with a backbone that trains its text encoder, features with others"));
            } else if accepts.text_width.is_some_and(|wanted| wanted != width) {
                let wanted = accepts.text_width.unwrap_or_default();
                problems.push(
                    Problem::new(
                        "/conditioner",
                        format!(
                            "conditioner \"{}\" makes texts of width {width}; \"{backbone}\" as configured reads width {wanted}",
                            conditioner.typetag_name()
                        ),
                    )
                    .and_at("/backbone")
                    .accepts(format!("a conditioner of width {wanted}")),
                );
            }
        }
        None if text => problems.push(
            Problem::new(
                "/backbone",
                format!("\"{backbone}\" reads a text, and there is no conditioner to make its features"),
            )
            .accepts("a text-conditional backbone with a conditioner")
            .fix("add /conditioner"),
        ),
        None => {}
    }
    let Some(info) = info else { return problems };
    let pair = |what: String, accepts: &str| Problem::new("/data", what).and_at("/backbone").accepts(accepts);
    match accepts.condition {
        ConditionKind::Text | ConditionKind::Tokens if !info.captions => problems.push(pair(
            format!("\"{backbone}\" reads a text; dataset \"{data}\" has no captions"),
            "a dataset with captions",
        )),
        ConditionKind::None | ConditionKind::Class if info.captions => problems.push(pair(
            format!("dataset \"{data}\" has captions; \"{backbone}\" as configured reads {reads}"),
            "captions with a conditioner and a backbone that reads a text",
        )),
        ConditionKind::Class if info.num_classes != accepts.num_classes => {
            let count = |n: Option<usize>| n.map_or("no classes".to_string(), |n| format!("{n} classes"));
            problems.push(pair(
                format!(
                    "dataset \"{data}\" has {}; \"{backbone}\" as configured has {}",
                    count(info.num_classes),
                    count(accepts.num_classes)
                ),
                "the same number of classes on both sides",
            ));
        }
        _ => {}
    }
    problems
}

/// Objective and backbone.
fn training(document: &Document) -> Problems {
    let (needs, accepts) = (document.objective.needs(), document.backbone.accepts());
    let (objective, backbone) = (document.objective.typetag_name(), document.backbone.typetag_name());
    let field = format!("/backbone{}", accepts.guidance_field);
    let mut problems = Problems::new();
    if needs.guidance_input && !accepts.guidance_input {
        problems.push(
            Problem::new(
                "/objective",
                format!("objective \"{objective}\" feeds the backbone a guidance number; \"{backbone}\" as configured takes none"),
            )
            .and_at(&field)
            .accepts("a backbone with a guidance input")
            .fix(match accepts.guidance_field {
                "" => "choose a backbone that has a guidance input".to_string(),
                _ => format!("switch {field} on"),
            }),
        );
    }
    if accepts.guidance_input && !needs.guidance_input {
        problems.push(
            Problem::new(
                &field,
                format!("the guidance input of \"{backbone}\" would have no effect: objective \"{objective}\" never trains it"),
            )
            .and_at("/objective")
            .accepts("a guidance input only with an objective that trains it")
            .fix(match accepts.guidance_field {
                "" => "choose a backbone without a guidance input".to_string(),
                _ => format!("switch {field} off"),
            }),
        );
    }
    if needs.ema && document.train.ema.is_none() {
        problems.push(
            Problem::new(
                "/train/ema",
                format!("objective \"{objective}\" is taught by the average of the weights, and there is none"),
            )
            .and_at("/objective")
            .accepts("an average, e.g. {\"decay\": 0.9999}"),
        );
    }
    if needs.measurements && (document.train.sample_every.is_none() || document.metrics.is_empty()) {
        problems.push(
            Problem::new(
                "/train/sample_every",
                format!("objective \"{objective}\" as configured follows a metric on samples, and none is measured while training"),
            )
            .and_at("/metrics")
            .accepts("a number of steps, and the metric"),
        );
    }
    let train = &document.train;
    if train.lora.is_some() || !train.frozen.is_empty() || !train.weight_decay_groups.is_empty() {
        let parameters = weights::parameters(&document.backbone.init(&Device::flex()));
        problems.extend(adapt::check(&document.train, &parameters).into_iter().map(|p| p.under("/train")));
    }
    for (name, source) in [("from", &document.train.from), ("reference", &document.train.reference)] {
        let Some(format) = source.as_ref().and_then(|source| source.format.as_ref()) else { continue };
        let known: Vec<&str> = document.backbone.formats().iter().map(|names| names.format).collect();
        if !known.contains(&format.as_str()) {
            let what = format!("\"{backbone}\" was published in no format \"{format}\"");
            let problem = Problem::new(format!("/train/{name}/format"), what).and_at("/backbone");
            problems.push(problem.accepts(known.join(", ")));
        }
    }
    if needs.reference && document.train.from.is_none() && document.train.reference.is_none() {
        problems.push(
            Problem::new(
                "/train/from",
                format!(
                    "objective \"{objective}\" compares with a trained network; this run starts from random weights"
                ),
            )
            .and_at("/train/reference")
            .accepts("a run's folder, a checkpoint, or an official file in one of them"),
        );
    }
    if !needs.reference && document.train.reference.is_some() {
        problems.push(
            Problem::new(
                "/train/reference",
                format!("objective \"{objective}\" compares with no reference: this has no effect"),
            )
            .and_at("/objective")
            .accepts("null, or an objective that needs a reference"),
        );
    }
    if needs.classes && accepts.num_classes.is_none_or(|n| n < 2) {
        problems.push(
            Problem::new(
                "/objective",
                format!("objective \"{objective}\" as configured chooses other classes; \"{backbone}\" as configured has none to choose from"),
            )
            .and_at("/backbone")
            .accepts("a backbone with two classes or more"),
        );
    }
    if needs.negatives && (accepts.condition == ConditionKind::None || document.train.batch_size < 2) {
        problems.push(
            Problem::new(
                "/objective",
                format!("objective \"{objective}\" contrasts each sample with the condition of another; there is none"),
            )
            .and_at("/backbone")
            .and_at("/train/batch_size")
            .accepts("a backbone that reads a class or a text, and batches of 2 or more"),
        );
    }
    problems.extend(
        document.objective.check_process(&*document.backbone.process()).into_iter().map(|p| p.under("/objective")),
    );
    if needs.null_condition && accepts.condition == ConditionKind::None {
        problems.push(
            Problem::new(
                "/objective",
                format!(
                    "objective \"{objective}\" needs a null condition; \"{backbone}\" as configured reads no condition"
                ),
            )
            .and_at("/backbone")
            .accepts("a backbone that reads a class or a text"),
        );
    }
    problems
}

/// Guidance rule and backbone.
fn guided(document: &Document) -> Problems {
    let (guidance, backbone) = (document.guidance.typetag_name(), document.backbone.typetag_name());
    let mut problems = Problems::new();
    if document.guidance.needs_null() && document.backbone.accepts().condition == ConditionKind::None {
        problems.push(
            Problem::new(
                "/guidance",
                format!("guidance \"{guidance}\" asks for the null condition; \"{backbone}\" as configured reads no condition"),
            )
            .and_at("/backbone")
            .accepts("guidance without a null branch, or a backbone that reads a class or a text"),
        );
    }
    let process = document.backbone.process();
    let path = process.path().or_else(|| process.head()?.process.path());
    if path.is_none() && document.guidance.space().is_some_and(|space| space != process.prediction()) {
        problems.push(
            Problem::new(
                "/guidance",
                format!(
                    "guidance \"{guidance}\" works in another prediction space; \"{backbone}\" has {}",
                    describe(process.family())
                ),
            )
            .and_at("/backbone")
            .accepts("guidance in the backbone's own space, or a continuous process"),
        );
    }
    problems
}

/// Guidance rule and objective.
fn scale(document: &Document) -> Problems {
    let Some(scale) = document.guidance.input_scale() else { return Problems::new() };
    let (guidance, objective) = (document.guidance.typetag_name(), document.objective.typetag_name());
    let (what, accepts) = match document.objective.trained_scales() {
        _ if document.objective.guidance_of_scale(1.0).is_none() => (
            format!(
                "guidance \"{guidance}\" asks the backbone's guidance input for a scale; objective \"{objective}\" trains no such input"
            ),
            "guidance by branches, or an objective that trains a guidance input".to_string(),
        ),
        Some([low, high]) if !(low..=high).contains(&scale) => (
            format!("guidance \"{guidance}\" asks for scale {scale}, which objective \"{objective}\" does not train"),
            if high.is_finite() { format!("scales from {low} to {high}") } else { format!("scales from {low} on") },
        ),
        _ => return Problems::new(),
    };
    vec![Problem::new("/guidance", what).and_at("/objective").accepts(accepts)]
}
