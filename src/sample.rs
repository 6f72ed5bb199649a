//! `sample`: images from a checkpoint alone.

use crate::arguments::SampleOptions;
use crate::train::bar;
use crate::{Failure, Outcome, document, report, start};
use framework::burn::tensor::TensorData;
use framework::checkpoint::Checkpoint;
use framework::condition::ConditionKind;
use framework::dataset::{Dataset, Label};
use framework::error::Error;
use framework::pipeline::Pipeline;
use framework::sampling::{Request, draw};
use framework::{foreign, picture, weights};
use std::fs;

/// `count` samples of each class, class after class; of an unconditional network as many without condition.
pub fn class_labels(pipeline: &Pipeline, classes: &[usize], count: usize) -> Vec<Label> {
    let conditional = pipeline.backbone.accepts().condition == ConditionKind::Class;
    let label = |class: &usize| if conditional { Label::Class(*class) } else { Label::None };
    classes.iter().flat_map(|class| vec![label(class); count]).collect()
}

/// `count` samples over all classes in turn: what metrics are measured on.
pub fn metric_labels(pipeline: &Pipeline, classes: usize, count: usize) -> Vec<Label> {
    let turn: Vec<usize> = (0..count).map(|i| i % classes).collect();
    class_labels(pipeline, &turn, 1)
}

/// Draws images from a run or a checkpoint.
pub fn sample(options: &SampleOptions) -> Outcome {
    let device = document::device(options.device.as_deref())?;
    let checkpoint = Checkpoint::load(&start::file(&options.from)?)?;
    let mut overrides = options.set.clone();
    overrides.extend(options.scale.map(|scale| format!("/guidance/scale={scale}")));
    overrides.extend(options.steps.map(|steps| format!("/sampler/steps={steps}")));
    let name = format!("{} (its document)", options.from.display());
    if let Some(beta) = options.beta {
        let objective = document::from_text(&checkpoint.document, &[], &name)?.objective;
        let scale = objective.scale_of_guidance(beta).filter(|scale| scale.is_finite() && *scale > 0.0).ok_or_else(|| {
            Failure::Input(format!("error: --beta {beta} means nothing to a network trained with this objective\n  at       --beta\n  accepts  objectives with a guidance input (gft), and beta in (0, 1]\n  fix      use --scale"))
        })?;
        overrides.push(format!("/guidance/scale={scale}"));
    }
    let mut pipeline = document::from_text(&checkpoint.document, &overrides, &name)?;
    pipeline.load(&device)?;
    start::restore_tokenizer(&mut pipeline, &options.from, &device)?;
    let network = weights::restore(pipeline.init_backbone(&device), checkpoint.sampling_weights())?;
    let num_classes = pipeline.backbone.accepts().num_classes;
    if let Some(class) = options.classes.iter().find(|class| num_classes.is_none_or(|n| **class >= n)) {
        let accepts = num_classes
            .map_or("an unconditional network has no classes".to_string(), |n| format!("classes 0 to {}", n - 1));
        return Err(Failure::Input(format!("error: no class {class}\n  at       --classes\n  accepts  {accepts}")));
    }
    let classes = match (options.classes.is_empty(), num_classes) {
        (false, _) => options.classes.clone(),
        (true, Some(n)) => (0..n).collect(),
        (true, None) => vec![0],
    };
    let request = Request {
        labels: class_labels(&pipeline, &classes, options.count),
        seed: options.seed,
        batch_size: options.batch_size.max(1),
        sampler: &*pipeline.sampler,
        guidance: &*pipeline.guidance,
    };
    let bar = bar("sampling", 0);
    let drawn = draw(&pipeline, &network, &request, &device, &mut |done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    })?;
    bar.finish_and_clear();
    let shape = pipeline.image_shape();
    picture::save(&picture::grid(&drawn.images, shape, options.count), &options.output)?;
    if let Some(folder) = &options.images {
        fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        for i in 0..drawn.images.len() {
            let class = drawn.images.classes.get(i).map_or(String::new(), |class| format!("-class-{class}"));
            picture::save(&picture::image(drawn.images.row(i), shape), &folder.join(format!("{i:06}{class}.png")))?;
        }
    }
    if let Some(path) = &options.tensors {
        let [c, h, w] = shape;
        let mut tensors =
            vec![("x".to_string(), TensorData::new(drawn.images.values.clone(), [drawn.images.len(), c, h, w]))];
        if !drawn.images.classes.is_empty() {
            let classes: Vec<i64> = drawn.images.classes.iter().map(|class| *class as i64).collect();
            tensors.push(("y".to_string(), TensorData::new(classes, [drawn.images.len()])));
        }
        foreign::save_tensors(&tensors, path)?;
    }
    let mut measured = Vec::new();
    if options.metrics {
        let dataset: Box<dyn Dataset> = pipeline.open_data()?;
        let real = pipeline.real_images(&*dataset, &device)?;
        for metric in &pipeline.metrics {
            measured.extend(metric.measure(&drawn.images, &real)?);
        }
    }
    println!("{}", report::summary(&drawn, &measured));
    println!("{}", options.output.display());
    Ok(())
}
