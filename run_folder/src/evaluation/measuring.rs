//! Metrics that measure side by side. If one fails, it takes no further part, and the others go on.

use framework::blame;
use framework::error::{Error, Result};
use framework::evaluation::images::Images;
use framework::evaluation::metric::{Accumulator, Measurement, Metric, Reference};
use framework::evaluation::statistics::Statistics;
use framework::pipeline::Pipeline;
use framework::plugin::Kind;
use registry::library;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A metric, with its name in messages.
#[derive(Clone, Copy, Debug)]
pub struct Named<'a> {
    /// Name in messages: `metric "frechet"`, followed by its library, if any.
    pub name: &'a str,
    /// The metric.
    pub metric: &'a dyn Metric,
}

/// A metric that could not be measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Name in messages.
    pub name: String,
    /// Reason.
    pub what: String,
}

/// Returns the name in messages of a metric of this type.
pub fn name(kind: &str) -> String {
    let from = library::origin(Kind::Metric, kind).map(|path| format!(" of {}", path.display())).unwrap_or_default();
    format!("metric \"{kind}\"{from}")
}

/// Returns the name in messages of each metric of a pipeline.
pub fn names(pipeline: &Pipeline) -> Vec<String> {
    let document: Value = serde_json::from_str(&pipeline.document).unwrap_or_default();
    let kind = |i: usize| document["metrics"][i]["type"].as_str().unwrap_or_default().to_string();
    (0..pipeline.metrics.len()).map(|i| name(&kind(i))).collect()
}

/// Pairs the metrics of a pipeline with their names.
pub fn named<'a>(pipeline: &'a Pipeline, names: &'a [String]) -> Vec<Named<'a>> {
    names.iter().zip(&pipeline.metrics).map(|(name, metric)| Named { name, metric: &**metric }).collect()
}

/// Runs the code of a metric. A request to stop is an error; any other failure is a result.
fn attempt<T>(name: &str, run: impl FnOnce() -> Result<T>) -> Result<Result<T, Failure>> {
    match blame::caught(name, run).flatten() {
        Ok(value) => Ok(Ok(value)),
        Err(Error::Interrupted) => Err(Error::Interrupted),
        Err(error) => Ok(Err(Failure { name: name.to_string(), what: error.to_string() })),
    }
}

/// Lets each part receive a batch. A part that fails becomes its failure.
fn feed<T>(
    parts: &mut [(String, Result<T, Failure>)],
    update: impl Fn(&mut T, &Images) -> Result<()>,
    images: &Images,
) -> Result<()> {
    for (name, part) in parts {
        let failure = match part {
            Ok(part) => attempt(name, || update(part, images))?.err(),
            Err(_) => None,
        };
        if let Some(failure) = failure {
            *part = Err(failure);
        }
    }
    Ok(())
}

/// What takes part of each metric, by its name in messages, or why it takes no further part.
type Parts<T> = Vec<(String, Result<T, Failure>)>;

/// Accumulates real images for several metrics. Metrics with the same statistics share one copy.
pub struct References {
    parts: Parts<Box<dyn Reference>>,
    /// Index of the part of each metric.
    of: Vec<usize>,
}

impl References {
    /// Starts one reference per kind of statistics.
    ///
    /// # Errors
    /// If a training that measures is asked to stop.
    pub fn new(metrics: &[Named<'_>]) -> Result<Self> {
        let (mut parts, mut of) = (Vec::new(), Vec::new());
        let mut known: BTreeMap<String, usize> = BTreeMap::new();
        for m in metrics {
            let statistics = m.metric.statistics();
            if let Some(index) = statistics.as_ref().and_then(|name| known.get(name)) {
                of.push(*index);
                continue;
            }
            known.extend(statistics.map(|name| (name, parts.len())));
            of.push(parts.len());
            parts.push((m.name.to_string(), attempt(m.name, || Ok(m.metric.reference()))?));
        }
        Ok(Self { parts, of })
    }

    /// Adds a batch of real images.
    ///
    /// # Errors
    /// If a training that measures is asked to stop.
    pub fn update(&mut self, images: &Images) -> Result<()> {
        feed(&mut self.parts, |reference, images| reference.update(images), images)
    }

    /// Returns the statistics for each metric.
    ///
    /// # Errors
    /// If a training that measures is asked to stop.
    pub fn finish(self) -> Result<Vec<Result<Arc<Statistics>, Failure>>> {
        let finish = |(name, part): (String, Result<Box<dyn Reference>, Failure>)| match part {
            Ok(reference) => attempt(&name, || Ok(Arc::new(reference.finish()?))),
            Err(failure) => Ok(Err(failure)),
        };
        let finished = self.parts.into_iter().map(finish).collect::<Result<Vec<_>>>()?;
        Ok(self.of.into_iter().map(|index| finished[index].clone()).collect())
    }
}

/// Accumulates samples for several metrics.
pub struct Accumulators {
    parts: Parts<Box<dyn Accumulator>>,
}

impl Accumulators {
    /// Starts one accumulator per metric, with the statistics of the real images for each.
    ///
    /// # Errors
    /// If a training that measures is asked to stop.
    pub fn new(metrics: &[Named<'_>], statistics: Vec<Result<Arc<Statistics>, Failure>>) -> Result<Self> {
        let start = |(m, statistics): (&Named<'_>, Result<Arc<Statistics>, Failure>)| {
            let accumulator = match statistics {
                Ok(statistics) => attempt(m.name, || m.metric.start(statistics))?,
                Err(failure) => Err(failure),
            };
            Ok((m.name.to_string(), accumulator))
        };
        Ok(Self { parts: metrics.iter().zip(statistics).map(start).collect::<Result<_>>()? })
    }

    /// Adds a batch of samples.
    ///
    /// # Errors
    /// If a training that measures is asked to stop.
    pub fn update(&mut self, images: &Images) -> Result<()> {
        feed(&mut self.parts, |accumulator, images| accumulator.update(images), images)
    }

    /// Returns the results, and the metrics that failed.
    ///
    /// # Errors
    /// If a training that measures is asked to stop.
    pub fn finish(self) -> Result<(Vec<Measurement>, Vec<Failure>)> {
        let (mut measured, mut failed) = (Vec::new(), Vec::new());
        for (name, part) in self.parts {
            match part {
                Ok(accumulator) => match attempt(&name, || accumulator.finish())? {
                    Ok(results) => measured.extend(results),
                    Err(failure) => failed.push(failure),
                },
                Err(failure) => failed.push(failure),
            }
        }
        Ok((measured, failed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A metric that measures the number of samples, or fails at one of its steps.
    #[derive(Debug)]
    struct Count(&'static str);

    impl Count {
        fn fail_at(&self, step: &str) -> Result<()> {
            if self.0 == "panic" && step == "finish" {
                panic!("out of luck");
            }
            if self.0 == step { Err(Error::Run(format!("failed at {step}"))) } else { Ok(()) }
        }
    }

    struct Real(&'static str);

    impl Reference for Real {
        fn update(&mut self, _: &Images) -> Result<()> {
            Count(self.0).fail_at("reference")
        }
        fn finish(self: Box<Self>) -> Result<Statistics> {
            Ok(Statistics::default())
        }
    }

    struct Samples(&'static str, usize);

    impl Accumulator for Samples {
        fn update(&mut self, images: &Images) -> Result<()> {
            self.1 += images.len();
            Count(self.0).fail_at("update")
        }
        fn finish(self: Box<Self>) -> Result<Vec<Measurement>> {
            Count(self.0).fail_at("finish")?;
            Ok(vec![Measurement { name: "count".into(), value: self.1 as f64, meaning: String::new() }])
        }
    }

    impl Metric for Count {
        fn reference(&self) -> Box<dyn Reference> {
            Box::new(Real(self.0))
        }
        fn start(&self, _: Arc<Statistics>) -> Result<Box<dyn Accumulator>> {
            self.fail_at("start")?;
            Ok(Box::new(Samples(self.0, 0)))
        }
    }

    #[test]
    fn a_metric_that_fails_leaves_the_others_alone() {
        let metrics: Vec<Count> =
            ["", "reference", "start", "update", "finish", "panic", ""].into_iter().map(Count).collect();
        let named: Vec<Named<'_>> = metrics.iter().map(|m| Named { name: m.0, metric: m }).collect();
        let images = Images { values: vec![0.0; 3], ..Images::none([1, 1, 1]) };
        let mut references = References::new(&named).unwrap();
        references.update(&images).unwrap();
        let mut accumulators = Accumulators::new(&named, references.finish().unwrap()).unwrap();
        accumulators.update(&images).unwrap();
        accumulators.update(&images).unwrap();
        let (measured, failed) = accumulators.finish().unwrap();
        assert_eq!(measured.iter().map(|m| m.value).collect::<Vec<_>>(), [6.0, 6.0]);
        let said: Vec<&str> = failed.iter().map(|failure| failure.what.as_str()).collect();
        assert_eq!(
            said,
            [
                "failed at reference",
                "failed at start",
                "failed at update",
                "failed at finish",
                "panic panicked: out of luck"
            ]
        );
    }
}
