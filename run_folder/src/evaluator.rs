//! The document's metrics during training.

use crate::samples::sample;
use crate::watcher::Watcher;
use crate::{labels, report};
use framework::burn::tensor::Device;
use framework::data::dataset::Dataset;
use framework::error::{Error, Result};
use framework::network::backbone::BoxBackbone;
use framework::pipeline::Pipeline;
use framework::training::events::Evaluator;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Measures samples of a network against the dataset.
pub struct MetricEvaluator<'a, 'b> {
    pub pipeline: Arc<Pipeline>,
    pub dataset: Arc<dyn Dataset>,
    pub device: Device,
    pub watcher: &'a RefCell<&'b mut (dyn Watcher + 'b)>,
}

impl Evaluator for MetricEvaluator<'_, '_> {
    fn evaluate(&mut self, network: &BoxBackbone, step: usize) -> Result<BTreeMap<String, f64>> {
        let count = self.pipeline.train.samples_to_measure(self.dataset.info().num_classes);
        let labels = labels::measured(&self.pipeline, &*self.dataset, count)?;
        let sampled = sample(&self.pipeline, network, labels, &self.device, &mut **self.watcher.borrow_mut())?;
        let compared = report::compare(&self.pipeline, &sampled.images, &*self.dataset, &self.device)?;
        for failure in &compared.failed {
            let what = format!("{} failed: {}", failure.name, failure.what);
            if self.pipeline.objective.needs().measurements {
                return Err(Error::Run(what));
            }
            self.watcher.borrow_mut().say(&format!("warning: step {step}  {what}"));
        }
        Ok(compared.measured.into_iter().map(|measurement| (measurement.name, measurement.value)).collect())
    }
}
