//! The sigmas that the methods step through: one table, from noise to data.

use framework::prelude::*;

/// Spacing of the sigmas s. The last step continues from the lowest sigma to clean data.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Spacing {
    /// Evenly spaced in s^(1 / rho).
    Karras(Karras),
    /// Evenly spaced in log s.
    Exponential,
    /// As exponential, but with the remaining share of the way in log s raised to rho.
    Polyexponential(Polyexponential),
    /// Evenly spaced in the time of the variance-preserving diffusion, from 1 to 0.001.
    Vp(VpRates),
    /// Evenly spaced over the training times of a table, both ends included.
    Table,
}

impl Default for Spacing {
    fn default() -> Self {
        Self::Karras(Karras::default())
    }
}

/// Settings of the Karras spacing.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Karras {
    /// Exponent. Published: 7.
    #[schemars(range(min = 0.1, max = 100.0))]
    pub rho: f64,
}

impl Default for Karras {
    fn default() -> Self {
        Self { rho: 7.0 }
    }
}

/// Settings of the polyexponential spacing.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Polyexponential {
    /// Exponent; 1 = exponential.
    #[schemars(range(min = 0.1, max = 100.0))]
    pub rho: f64,
}

impl Default for Polyexponential {
    fn default() -> Self {
        Self { rho: 1.0 }
    }
}

/// Noise rates of the variance-preserving diffusion.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct VpRates {
    /// Slope of the diffusion's noise rate.
    #[schemars(range(min = 0.001, max = 1000.0))]
    pub beta_d: f64,
    /// Noise rate of the diffusion at data.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub beta_min: f64,
}

impl Default for VpRates {
    fn default() -> Self {
        Self { beta_d: 19.9, beta_min: 0.1 }
    }
}

/// Distance of the first and last time from the ends of a path without a table.
const MARGIN: f64 = 1e-3;

/// Returns the lowest and the highest sigma of a path.
fn range(path: &dyn NoisePath) -> [f64; 2] {
    let (first, last) = match path.table() {
        Some(table) => (1.0 / table as f64, 1.0),
        None => (MARGIN, 1.0 - MARGIN),
    };
    [first, last].map(|t| (-path.lambda(t)).exp())
}

impl Spacing {
    /// Returns the `n + 1` sigmas from noise to data, within `[least, greatest]` or the path's own range. The last one
    /// is 0.
    ///
    /// # Panics
    /// If the spacing needs a table of training times and the path has none; the check phase refuses that.
    pub fn sigmas(self, path: &dyn NoisePath, n: usize, [least, greatest]: [Option<f64>; 2]) -> Vec<f64> {
        let [lowest, highest] = range(path);
        let (least, greatest) = (least.unwrap_or(lowest), greatest.unwrap_or(highest));
        // 0 at noise, 1 at data. A single step starts at noise.
        let share = |k: usize| if n == 1 { 0.0 } else { k as f64 / (n - 1) as f64 };
        let sigma = |k: usize| match self {
            Self::Karras(Karras { rho }) => {
                let root = |s: f64| s.powf(1.0 / rho);
                (root(greatest) + share(k) * (root(least) - root(greatest))).powf(rho)
            }
            Self::Exponential => (greatest.ln() + share(k) * (least / greatest).ln()).exp(),
            Self::Polyexponential(Polyexponential { rho }) => {
                ((1.0 - share(k)).powf(rho) * (greatest / least).ln() + least.ln()).exp()
            }
            Self::Vp(VpRates { beta_d, beta_min }) => {
                let t = 1.0 + share(k) * (MARGIN - 1.0);
                (0.5 * beta_d * t * t + beta_min * t).exp_m1().sqrt()
            }
            Self::Table => {
                let last = path.table().expect("the check phase refuses processes without a table") - 1;
                table_sigma(path, last as f64 * (1.0 - share(k)))
            }
        };
        (0..n).map(sigma).chain([0.0]).collect()
    }
}

/// Returns the sigma at a fractional training time. log s is linear between training times, as in k-diffusion's code.
fn table_sigma(path: &dyn NoisePath, index: f64) -> f64 {
    let table = path.table().expect("the check phase refuses processes without a table");
    let log = |i: usize| -path.lambda((i + 1) as f64 / table as f64);
    let low = (index.floor() as usize).min(table - 1);
    let (high, share) = ((low + 1).min(table - 1), index - low as f64);
    (log(low) * (1.0 - share) + log(high) * share).exp()
}
