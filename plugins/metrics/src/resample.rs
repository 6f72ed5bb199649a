//! Seeded choices: subsets, and bootstrap intervals of a mean.

use framework::evaluation::metric::Measurement;
use framework::random::Random;

/// Returns `count` different indices below `total`, in random order. `index` counts the choices of one seed.
pub fn subset(random: &Random, index: usize, total: usize, count: usize) -> Vec<usize> {
    let uniform = random.uniform("subset", index as u64, 0, count);
    let mut all: Vec<usize> = (0..total).collect();
    for (i, u) in uniform.into_iter().enumerate() {
        let j = i + ((total - i) as f64 * u) as usize;
        all.swap(i, j.min(total - 1));
    }
    all.truncate(count);
    all
}

/// Returns a measurement of the mean of `values`, and the ends of its 95 % bootstrap interval from `resamples`
/// resampled means. Without resamples, there is no interval.
///
/// Source: B. Efron, "Bootstrap methods: another look at the jackknife", doi 10.1214/aos/1176344552.
pub fn mean_with_interval(name: &str, values: &[f64], meaning: &str, resamples: usize) -> Vec<Measurement> {
    let count = values.len();
    let mean = |sum: f64| sum / count as f64;
    let measurement =
        |suffix: &str, value: f64, meaning: String| Measurement { name: format!("{name}{suffix}"), value, meaning };
    let mut all = vec![measurement("", mean(values.iter().sum()), meaning.to_string())];
    if resamples == 0 {
        return all;
    }
    let random = Random::new(0);
    let resampled = |index: usize| {
        let uniform = random.uniform("bootstrap", index as u64, 0, count);
        mean(uniform.into_iter().map(|u| values[((count as f64 * u) as usize).min(count - 1)]).sum())
    };
    let mut means: Vec<f64> = (0..resamples).map(resampled).collect();
    means.sort_by(f64::total_cmp);
    let quantile = |share: f64| means[((resamples - 1) as f64 * share).round() as usize];
    all.push(measurement("_low", quantile(0.025), format!("lower end of the 95 % bootstrap interval of {name}")));
    all.push(measurement("_high", quantile(0.975), format!("upper end of the 95 % bootstrap interval of {name}")));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subsets_hold_different_indices_and_every_index_occurs() {
        let random = Random::new(3);
        let mut seen = [0; 10];
        for index in 0..200 {
            let chosen = subset(&random, index, 10, 4);
            chosen.iter().for_each(|i| seen[*i] += 1);
            let mut sorted = chosen.clone();
            sorted.sort_unstable();
            sorted.dedup();
            assert_eq!(sorted.len(), 4);
        }
        // Each index is expected 80 times, with a standard deviation of 7.
        assert!(seen.iter().all(|count| (45..115).contains(count)), "{seen:?}");
        let mut all = subset(&random, 0, 10, 10);
        all.sort_unstable();
        assert_eq!(all, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn the_interval_of_a_share_has_the_width_of_the_normal_approximation() {
        let values: Vec<f64> = (0..400).map(|i| f64::from(u8::from(i % 4 == 0))).collect();
        let measured = mean_with_interval("share", &values, "a share", 1000);
        let names: Vec<&str> = measured.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(names, ["share", "share_low", "share_high"]);
        // 0.25 +- 1.96 sqrt(0.25 0.75 / 400)
        for (m, expected) in measured.iter().zip([0.25, 0.2076, 0.2924]) {
            assert!((m.value - expected).abs() < 0.006, "{} {} {expected}", m.name, m.value);
        }
        assert_eq!(mean_with_interval("share", &values, "a share", 0).len(), 1);
    }
}
