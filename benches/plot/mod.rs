//! Line plots as PNG files, for the record of the benchmarks.

use framework::error::{Error, Result};
use image::RgbImage;
use plotters::prelude::*;
use plotters::style::register_font;
use run_folder::picture;
use std::path::Path;
use std::sync::Once;

/// Size of a plot, in pixels.
const WIDTH: u32 = 960;
const HEIGHT: u32 = 540;

/// One curve of a plot.
#[derive(Clone, Debug)]
pub struct Curve {
    /// Name in the legend.
    pub name: String,
    /// Points (x, y).
    pub points: Vec<(f64, f64)>,
}

/// Plots curves over a common x axis. The y axis is logarithmic if all values are positive and span more than two
/// decades. Writes no file if no curve has a finite value.
///
/// # Errors
/// If the file cannot be written.
pub fn lines(path: &Path, title: &str, x_name: &str, y_name: &str, curves: &[Curve]) -> Result<()> {
    embedded_font();
    draw(path, title, x_name, y_name, curves).map_err(|e| Error::file(path, format!("cannot write the plot: {e}")))
}

/// Registers the font of all plots. It is embedded in the binary, so no system font is needed.
pub(crate) fn embedded_font() {
    static FONT: Once = Once::new();
    FONT.call_once(|| {
        let font = epaint_default_fonts::UBUNTU_LIGHT;
        assert!(register_font("sans-serif", FontStyle::Normal, font).is_ok(), "the embedded font is valid");
    });
}

type Outcome = std::result::Result<(), Box<dyn std::error::Error>>;

fn draw(path: &Path, title: &str, x_name: &str, y_name: &str, curves: &[Curve]) -> Outcome {
    let points = || curves.iter().flat_map(|c| c.points.iter()).filter(|(_, y)| y.is_finite());
    if points().next().is_none() {
        return Ok(());
    }
    let range = |values: Vec<f64>| {
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if high > low { (low, high) } else { (low - 0.5 * low.abs().max(1.0), high + 0.5 * high.abs().max(1.0)) }
    };
    let (x_low, x_high) = range(points().map(|p| p.0).collect());
    let (y_low, y_high) = range(points().map(|p| p.1).collect());
    let mut pixels = vec![0; 3 * (WIDTH * HEIGHT) as usize];
    let root = BitMapBackend::with_buffer(&mut pixels, (WIDTH, HEIGHT)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut builder = ChartBuilder::on(&root);
    builder.caption(title, ("sans-serif", 24)).margin(16).x_label_area_size(44).y_label_area_size(72);
    macro_rules! chart {
        ($y:expr) => {{
            let mut chart = builder.build_cartesian_2d(x_low..x_high, $y)?;
            chart
                .configure_mesh()
                .x_desc(x_name)
                .y_desc(y_name)
                .label_style(("sans-serif", 16))
                .light_line_style(BLACK.mix(0.05))
                .draw()?;
            for (i, curve) in curves.iter().enumerate() {
                let color = Palette99::pick(i).to_rgba();
                let visible = curve.points.iter().copied().filter(|(_, y)| y.is_finite());
                chart
                    .draw_series(LineSeries::new(visible, color.stroke_width(2)))?
                    .label(&curve.name)
                    .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], color.stroke_width(2)));
            }
            chart
                .configure_series_labels()
                .label_font(("sans-serif", 16))
                .background_style(WHITE.mix(0.85))
                .border_style(BLACK.mix(0.3))
                .draw()?;
        }};
    }
    if y_low > 0.0 && y_high / y_low > 100.0 {
        chart!((y_low..y_high).log_scale());
    } else {
        let margin = 0.05 * (y_high - y_low);
        chart!(y_low - margin..y_high + margin);
    }
    root.present()?;
    drop(root);
    let picture = RgbImage::from_raw(WIDTH, HEIGHT, pixels).ok_or("the plot has the wrong size")?;
    Ok(picture::save(&picture, path)?)
}
