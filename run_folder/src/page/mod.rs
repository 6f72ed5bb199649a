//! Pages about runs: one self-contained HTML file for one run (`report.html`) or for several runs and sweeps next to
//! each other, and the same content as JSON and CSV. The layout and the style can be changed in `page.html` and
//! `page.css` alone, and the look of the charts in `chart.rs` and `page.css`.

pub mod chart;
pub mod content;
mod curves;
pub mod differences;
pub mod export;
mod figures;
pub mod numbers;
pub mod record;
mod render;
pub mod samples;
pub mod sweep;
mod view;

pub use content::Content;
