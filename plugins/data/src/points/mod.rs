//! Points in the plane: mixtures, moons and spirals with exact densities and scores at every noise level.
//! A new shape is one file here; what all shapes share is in `plane`.

mod gaussian_mixture;
mod plane;
mod spirals;
mod two_moons;

pub use gaussian_mixture::GaussianMixture;
pub use plane::{Density, PlaneConfig};
pub use spirals::Spirals;
pub use two_moons::TwoMoons;
