//! Whether samples look like their requested class, judged by a k-nearest-neighbour classifier.
//!
//!   c_hat(x) = majority class of the k real images nearest to x;  a tie goes to the class with the nearest image
//!   accuracy = share of samples with c_hat(x) = c
//!
//! Source: T. Cover and P. Hart, "Nearest neighbor pattern classification", doi 10.1109/TIT.1967.1053964. The accuracy
//! is the counterpart of the classification accuracy score, arXiv:1905.10887.

use crate::neighbours::{Neighbour, comparable, nearest, nearest_others};
use framework::error::{Error, Problems, Result};
use framework::evaluation::collected::{CollectedReference, CollectedSamples};
use framework::evaluation::images::Images;
use framework::evaluation::metric::{Accumulator, Measurement, Metric, Reference};
use framework::evaluation::statistics::Statistics;
use framework::prelude::*;
use std::sync::Arc;

/// Share of samples that a nearest-neighbour classifier, fitted on the real images, assigns to their requested
/// class.
///
/// The metric also measures the classifier: its accuracy on each real image, when fitted on all other real
/// images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ClassAccuracy {
    /// Number of nearest real images that vote on the class of a sample, at least 1 and less than the number
    /// of real images.
    #[schemars(range(min = 1))]
    pub neighbours: usize,
}

impl Default for ClassAccuracy {
    fn default() -> Self {
        Self { neighbours: 3 }
    }
}

framework::register!(metric "class_accuracy" => ClassAccuracy, "doi:10.1109/TIT.1967.1053964");

impl Metric for ClassAccuracy {
    fn check(&self) -> Problems {
        if self.neighbours > 0 {
            return Problems::new();
        }
        vec![Problem::new("/neighbours", "`neighbours` is 0").accepts("1 or more")]
    }

    fn needs_classes(&self) -> bool {
        true
    }

    fn reference(&self) -> Box<dyn Reference> {
        Box::new(CollectedReference::new("class_accuracy"))
    }

    fn start(&self, reference: Arc<Statistics>) -> Result<Box<dyn Accumulator>> {
        reference.expect("class_accuracy")?;
        let metric = self.clone();
        let compare = move |samples: &Images, real: &Images| metric.compare(samples, real);
        Ok(Box::new(CollectedSamples::new(reference.images()?, compare)))
    }
}

impl ClassAccuracy {
    fn compare(&self, samples: &Images, real: &Images) -> Result<Vec<Measurement>> {
        comparable("class_accuracy", samples, real, 1, self.neighbours + 1)?;
        let num_classes = classes(samples, real)?;

        let judged = |near: Vec<Vec<Neighbour>>| near.iter().map(|near| vote(near, &real.classes)).collect::<Vec<_>>();
        let of_samples = Shares::new(&judged(nearest(samples, real, self.neighbours)), &samples.classes, num_classes);
        let of_real = Shares::new(&judged(nearest_others(real, self.neighbours)), &real.classes, num_classes);

        let k = self.neighbours;
        let (worst, least) = of_samples.worst();
        let measurement = |name: &str, value, meaning: String| Measurement { name: name.into(), value, meaning };
        Ok(vec![
            measurement(
                "class_accuracy",
                of_samples.total(),
                format!("share of samples that the {k} nearest real images give their class, higher is better"),
            ),
            measurement(
                "class_accuracy_worst_class",
                least,
                format!("the same share among the samples of class {worst}, the worst class, higher is better"),
            ),
            measurement(
                "class_accuracy_of_real",
                of_real.total(),
                "share of real images classified correctly when fitted on the others, the reference value".into(),
            ),
        ])
    }
}

/// Checks that every image has a class and that the classifier knows every class of the samples. Returns the
/// number of classes.
fn classes(samples: &Images, real: &Images) -> Result<usize> {
    for (name, images) in [("samples", samples), ("real images", real)] {
        if images.classes.len() != images.len() {
            let what = format!("{} of {} {name} have one", images.classes.len(), images.len());
            return Err(Error::Run(format!("metric \"class_accuracy\" needs a class for every image; {what}")));
        }
    }
    let mut known = vec![false; real.classes.iter().max().map_or(0, |class| class + 1)];
    for class in &real.classes {
        known[*class] = true;
    }
    match samples.classes.iter().find(|class| !known.get(**class).is_some_and(|known| *known)) {
        Some(class) => Err(Error::Run(format!(
            "metric \"class_accuracy\" got a sample of class {class}, but no real image has this class, so the \
             classifier cannot predict it"
        ))),
        None => Ok(known.len()),
    }
}

/// Returns the majority class of the neighbours, which are sorted by distance. A tie goes to the class with
/// the nearest image.
fn vote(near: &[Neighbour], classes: &[usize]) -> usize {
    let votes = |class: usize| near.iter().filter(|n| classes[n.index] == class).count();
    let mut winner = classes[near[0].index];
    for class in near.iter().map(|n| classes[n.index]) {
        if votes(class) > votes(winner) {
            winner = class;
        }
    }
    winner
}

/// Number of correct answers and of questions per class.
struct Shares {
    right: Vec<usize>,
    asked: Vec<usize>,
}

impl Shares {
    fn new(answers: &[usize], truth: &[usize], num_classes: usize) -> Self {
        let mut shares = Self { right: vec![0; num_classes], asked: vec![0; num_classes] };
        for (answer, class) in answers.iter().zip(truth) {
            shares.asked[*class] += 1;
            shares.right[*class] += usize::from(answer == class);
        }
        shares
    }

    fn total(&self) -> f64 {
        self.right.iter().sum::<usize>() as f64 / self.asked.iter().sum::<usize>() as f64
    }

    /// Returns the class with the smallest share, and its share. The first one wins a tie.
    fn worst(&self) -> (usize, f64) {
        (0..self.asked.len())
            .filter(|class| self.asked[*class] > 0)
            .map(|class| (class, self.right[class] as f64 / self.asked[class] as f64))
            .min_by(|a, b| a.1.total_cmp(&b.1))
            .expect("there is at least one sample")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images(values: &[f32], classes: &[usize]) -> Images {
        Images { values: values.to_vec(), classes: classes.to_vec(), ..Images::none([1, 1, 1]) }
    }

    fn values(config: &ClassAccuracy, samples: &Images, real: &Images) -> Vec<f64> {
        config.measure(samples, real).unwrap().iter().map(|m| m.value).collect()
    }

    #[test]
    fn accuracy_by_hand() {
        // Class 0 is at 0 1 2, class 1 at 10 11 12.
        let real = images(&[0.0, 1.0, 2.0, 10.0, 11.0, 12.0], &[0, 0, 0, 1, 1, 1]);
        // The first sample of class 0 is near class 0, the second is near class 1. Both samples of class 1 are
        // near class 1.
        let samples = images(&[0.5, 10.5, 9.0, 13.0], &[0, 0, 1, 1]);
        let config = ClassAccuracy { neighbours: 3 };
        assert_eq!(values(&config, &samples, &real), [0.75, 0.5, 1.0]);
        let measurements = config.measure(&samples, &real).unwrap();
        assert!(measurements[1].meaning.contains("class 0, the worst"), "{}", measurements[1].meaning);
    }

    #[test]
    fn tied_classes_go_to_the_nearest_image() {
        let near = |places: &[usize]| -> Vec<Neighbour> {
            places.iter().enumerate().map(|(i, index)| Neighbour { index: *index, distance: i as f64 }).collect()
        };
        let classes = [2, 0, 1, 0, 1];
        assert_eq!(vote(&near(&[0, 1, 2]), &classes), 2);
        assert_eq!(vote(&near(&[2, 1, 3, 4]), &classes), 1);
        assert_eq!(vote(&near(&[0, 1, 3]), &classes), 0);
    }

    #[test]
    fn classifier_is_not_judged_on_what_it_was_fitted_on() {
        // The nearest other image of each image has the other class, so every image is wrong when left out.
        let real = images(&[0.0, 1.0, 10.0, 11.0], &[0, 1, 0, 1]);
        assert_eq!(values(&ClassAccuracy { neighbours: 1 }, &real, &real), [1.0, 1.0, 0.0]);
    }

    #[test]
    fn errors_say_what_is_needed() {
        let config = ClassAccuracy { neighbours: 3 };
        let real = images(&[0.0, 1.0, 2.0, 3.0], &[0, 0, 2, 2]);
        let message = |samples: &Images, real: &Images| config.measure(samples, real).unwrap_err().to_string();
        let few = images(&[0.0, 1.0, 2.0], &[0, 0, 1]);
        assert_eq!(message(&real, &few), "metric \"class_accuracy\" needs at least 4 real image(s) and got 3");
        assert!(message(&images(&[], &[]), &real).contains("at least 1 sample(s) and got 0"));
        assert!(message(&images(&[1.0], &[]), &real).contains("a class for every image; 0 of 1 samples have one"));
        assert!(message(&images(&[1.0], &[1]), &real).contains("a sample of class 1, but no real image has"));
        assert!(message(&images(&[f32::NAN], &[0]), &real).contains("sample 0 holds NaN"));
        let wide = Images { values: vec![0.0, 1.0], classes: vec![0], ..Images::none([1, 1, 2]) };
        assert!(message(&wide, &real).contains("a sample has 2 values and a real image 1"));
    }

    #[test]
    fn neighbours_default_to_three_and_zero_is_refused() {
        let config: ClassAccuracy = serde_json::from_str("{}").unwrap();
        assert_eq!(config.neighbours, 3);
        assert!(config.check().is_empty());
        assert_eq!(ClassAccuracy { neighbours: 0 }.check().len(), 1);
    }
}
