//! Tests for plugins: [`laws`] checks which distribution an objective's optimum samples, and [`conformance`] checks the
//! properties that every plugin of a kind must have. The framework does not depend on this crate, and plugins use it
//! only in tests, so you can change it alone.

pub mod conformance;
pub mod laws;
