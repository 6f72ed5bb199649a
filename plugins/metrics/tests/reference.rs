//! Metrics on features equal the results of pytorch-fid, torch-fidelity, clean-fid and prdc, recorded in
//! `tests/goldens/data` (see MANIFEST.md there).

use features as _;
use framework::burn::tensor::TensorData;
use framework::data::tokenizer::ImageShape;
use framework::evaluation::features::{Extracted, Extractor, FeatureWidths, Features};
use framework::evaluation::images::Images;
use framework::evaluation::metric::Metric;
use framework::evaluation::published;
use framework::evaluation::space::Spaces;
use framework::evaluation::statistics::Statistics;
use framework::plugin::MetricPlugin;
use framework::prelude::*;
use framework::serde_json::{self, Value, json};
use framework_dylib as _;
use goldens::Golden;
use metrics as _;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A space whose logits and spatial features are the values of the image.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
struct Recorded {}

framework::register!(features "recorded" => Recorded);

impl Features for Recorded {
    fn space(&self) -> String {
        "recorded".into()
    }
    fn widths(&self, image: ImageShape) -> FeatureWidths {
        let width = image.iter().product();
        FeatureWidths { vector: width, spatial: Some(width), classes: Some(width) }
    }
    fn load(&self, _: &Device) -> framework::error::Result<Box<dyn Extractor>> {
        Ok(Box::new(Self {}))
    }
}

impl Extractor for Recorded {
    fn extract(&self, images: Tensor<4>) -> framework::error::Result<Extracted> {
        let values: Tensor<2> = images.flatten(1, 3);
        Ok(Extracted { vectors: values.clone(), spatial: Some(values.clone()), logits: Some(values) })
    }
}

fn images(golden: &Golden, name: &str) -> Images {
    let shape = golden.data(name).shape().to_vec();
    let values = golden.numbers(name).into_iter().map(|value| value as f32).collect();
    Images { values, ..Images::none([1, 1, shape[1]]) }
}

fn metric(mut entry: Value) -> Box<dyn MetricPlugin> {
    entry["features"] = json!({ "type": "recorded" });
    let mut metric: Box<dyn MetricPlugin> = serde_json::from_value(entry).unwrap();
    assert!(metric.check().is_empty() && metric.check_image([1, 1, 24]).is_empty());
    metric.load(&mut Spaces::new(&Device::flex())).unwrap();
    metric
}

/// Measures in batches of 32, and returns the values by name.
fn measured(entry: Value, samples: &Images, real: &Images) -> BTreeMap<String, f64> {
    let metric = metric(entry);
    let mut reference = metric.reference();
    real.batches(32).for_each(|batch| reference.update(&batch).unwrap());
    let mut accumulator = metric.start(Arc::new(reference.finish().unwrap())).unwrap();
    samples.batches(32).for_each(|batch| accumulator.update(&batch).unwrap());
    accumulator.finish().unwrap().into_iter().map(|m| (m.name, m.value)).collect()
}

#[test]
fn metrics_equal_the_official_codes_on_the_same_features() {
    let golden = Golden::open("evaluation_metrics.safetensors");
    let (samples, real, logits) = (images(&golden, "samples"), images(&golden, "real"), images(&golden, "logits"));
    let mut results = BTreeMap::new();
    for entry in [
        json!({ "type": "frechet" }),
        json!({ "type": "spatial_frechet" }),
        json!({ "type": "kernel_distance", "subsets": 2 }),
        json!({ "type": "precision_recall", "resamples": 0 }),
        json!({ "type": "density_coverage" }),
    ] {
        results.extend(measured(entry, &samples, &real));
    }
    results.extend(measured(json!({ "type": "inception_score", "splits": 1 }), &logits, &real));
    for (ours, theirs) in [
        ("frechet_recorded", "fid.pytorch_fid"),
        ("frechet_recorded", "fid.torch_fidelity"),
        ("spatial_frechet_recorded", "fid.pytorch_fid"),
        ("kernel_distance_recorded", "kid.torch_fidelity"),
        ("kernel_distance_recorded", "kid.clean_fid"),
        ("inception_score_recorded", "isc.torch_fidelity"),
        ("precision_recorded", "precision.torch_fidelity"),
        ("recall_recorded", "recall.torch_fidelity"),
        ("density_recorded", "density.prdc"),
        ("coverage_recorded", "coverage.prdc"),
    ] {
        let (got, expected) = (results[ours], golden.numbers(theirs)[0]);
        assert!((got - expected).abs() <= 1e-6 * expected.abs(), "{ours} {got}, {theirs} {expected}");
    }
}

#[test]
fn statistics_equal_the_official_codes_and_travel_as_npz() {
    let golden = Golden::open("evaluation_metrics.safetensors");
    let (samples, real) = (images(&golden, "samples"), images(&golden, "real"));
    let metrics = [metric(json!({ "type": "frechet" })), metric(json!({ "type": "spatial_frechet" }))];
    let of_real = |metric: &dyn MetricPlugin| -> Statistics {
        let mut reference = metric.reference();
        real.batches(32).for_each(|batch| reference.update(&batch).unwrap());
        reference.finish().unwrap()
    };
    let statistics: Vec<Statistics> = metrics.iter().map(|metric| of_real(&**metric)).collect();
    let close = |data: &TensorData, name: &str| {
        let expected = golden.numbers(name);
        let largest = expected.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
        let same = data.iter::<f64>().zip(&expected).all(|(a, b)| (a - b).abs() <= 1e-6 * largest);
        assert!(same && data.num_elements() == expected.len(), "{name}");
    };
    close(statistics[0].tensor("mean").unwrap(), "real.mu");
    close(statistics[0].tensor("covariance").unwrap(), "real.sigma");

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("statistics.npz");
    let plain: Vec<(&dyn Metric, &Statistics)> =
        metrics.iter().zip(&statistics).map(|(metric, statistics)| (&**metric as &dyn Metric, statistics)).collect();
    published::write(&path, &plain).unwrap();
    let arrays = published::read(&path).unwrap();
    assert_eq!(arrays.keys().collect::<Vec<_>>(), ["mu", "mu_s", "sigma", "sigma_s"]);
    for (metric, of_real) in metrics.iter().zip(statistics) {
        let value = |statistics: Statistics| {
            let mut accumulator = metric.start(Arc::new(statistics)).unwrap();
            accumulator.update(&samples).unwrap();
            accumulator.finish().unwrap()[0].value
        };
        assert_eq!(value(published::statistics_of(&**metric, &arrays).unwrap()), value(of_real));
    }
}
