//! Pictures of points in the plane: the exact density, the samples of each class, and the trajectories that lead to them.

use crate::picture;
use framework::error::{Error, Result};
use image::RgbImage;
use plotters::prelude::*;
use plotters::style::register_font;
use std::path::Path;
use std::sync::Once;

/// Side of the picture, in pixels.
const SIDE: u32 = 900;
/// Cells of the density per side.
const CELLS: usize = 150;
/// Bands of equal density that are shaded alike.
const BANDS: f64 = 8.0;

/// The samples of one class.
#[derive(Clone, Debug)]
pub struct Samples {
    /// Name in the legend.
    pub name: String,
    /// The samples.
    pub points: Vec<[f64; 2]>,
    /// States from noise to data of some of the samples.
    pub trajectories: Vec<Vec<[f64; 2]>>,
}

/// Draws samples and trajectories over shaded bands of `density`, on the square from -`reach` to `reach`.
///
/// # Errors
/// If the file cannot be written.
pub fn save(
    path: &Path,
    title: &str,
    reach: f64,
    density: &dyn Fn([f64; 2]) -> f64,
    samples: &[Samples],
) -> Result<()> {
    embedded_font();
    draw(path, title, reach, density, samples).map_err(|e| Error::file(path, format!("cannot write the picture: {e}")))
}

/// Registers the font of the picture. It is embedded in the binary, so no system font is needed.
fn embedded_font() {
    static FONT: Once = Once::new();
    FONT.call_once(|| {
        let font = epaint_default_fonts::UBUNTU_LIGHT;
        assert!(register_font("sans-serif", FontStyle::Normal, font).is_ok(), "the embedded font is valid");
    });
}

fn draw(
    path: &Path,
    title: &str,
    reach: f64,
    density: &dyn Fn([f64; 2]) -> f64,
    samples: &[Samples],
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let mut pixels = vec![0; 3 * (SIDE * SIDE) as usize];
    let root = BitMapBackend::with_buffer(&mut pixels, (SIDE, SIDE)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut builder = ChartBuilder::on(&root);
    builder.caption(title, ("sans-serif", 24)).margin(16).x_label_area_size(40).y_label_area_size(56);
    let mut chart = builder.build_cartesian_2d(-reach..reach, -reach..reach)?;
    chart.configure_mesh().disable_mesh().label_style(("sans-serif", 16)).draw()?;
    let width = 2.0 * reach / CELLS as f64;
    let corner = |i: usize| -reach + i as f64 * width;
    let value = |i: usize| density([corner(i % CELLS) + width / 2.0, corner(i / CELLS) + width / 2.0]);
    let values: Vec<f64> = (0..CELLS * CELLS).map(value).collect();
    let highest = values.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    chart.draw_series(values.iter().enumerate().filter_map(|(i, value)| {
        let band = (value / highest * BANDS).ceil() / BANDS;
        let at = [(corner(i % CELLS), corner(i / CELLS)), (corner(i % CELLS) + width, corner(i / CELLS) + width)];
        (value / highest > 0.01).then(|| Rectangle::new(at, RGBColor(70, 90, 130).mix(0.45 * band).filled()))
    }))?;
    for (i, class) in samples.iter().enumerate() {
        let color = Palette99::pick(i).to_rgba();
        for trajectory in &class.trajectories {
            let line = trajectory.iter().map(|[x, y]| (*x, *y));
            chart.draw_series(LineSeries::new(line, color.mix(0.6).stroke_width(1)))?;
        }
        let dots = class.points.iter().map(|[x, y]| Circle::new((*x, *y), 2, color.mix(0.8).filled()));
        chart.draw_series(dots)?.label(&class.name).legend(move |(x, y)| Circle::new((x + 9, y), 4, color.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .label_font(("sans-serif", 16))
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    root.present()?;
    drop(chart);
    drop(root);
    let picture = RgbImage::from_raw(SIDE, SIDE, pixels).ok_or("the picture has the wrong size")?;
    Ok(picture::save(&picture, path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_picture_shows_density_samples_and_trajectories() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plane.png");
        let normal = |[x, y]: [f64; 2]| (-(x * x + y * y) / 0.1).exp();
        let samples = Samples {
            name: "class 0".into(),
            points: vec![[0.5, 0.5]],
            trajectories: vec![vec![[-0.8, -0.8], [-0.8, 0.8]]],
        };
        save(&path, "a test", 1.0, &normal, &[samples]).unwrap();
        let picture = image::open(&path).unwrap().to_rgb8();
        assert_eq!(picture.dimensions(), (SIDE, SIDE));
        // Colours of the first class and of the shaded centre appear.
        let coloured = |pixel: &image::Rgb<u8>| pixel.0.iter().max().unwrap() - pixel.0.iter().min().unwrap() > 60;
        assert!(picture.pixels().filter(|pixel| coloured(pixel)).count() > 100);
        let centre = picture.get_pixel(SIDE / 2 + 20, SIDE / 2);
        assert!(centre.0[0] < 200, "{centre:?}");
    }
}
