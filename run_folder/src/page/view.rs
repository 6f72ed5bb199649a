//! The values that the template shows, as texts.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

/// Widest image of a grid, in pixels, that is shown enlarged, with sharp pixels.
const SMALL: u32 = 56;

/// A run or a sweep in the legend.
#[derive(Serialize)]
pub struct Entry {
    pub name: String,
    pub color: usize,
    pub note: String,
}

#[derive(Serialize)]
pub struct Fact {
    pub name: &'static str,
    pub value: String,
    pub detail: String,
    pub links: Vec<Link>,
}

#[derive(Serialize)]
pub struct Link {
    pub text: String,
    pub address: String,
}

#[derive(Serialize)]
pub struct Picture {
    pub title: String,
    pub address: String,
    pub width: u32,
    pub height: u32,
    pub is_small: bool,
    pub rows: Vec<String>,
    /// Whether the labels of the rows are short enough to be next to the rows.
    pub is_beside: bool,
}

#[derive(Serialize)]
pub struct StripView {
    pub label: String,
    pub rows: Vec<StripRow>,
}

#[derive(Serialize)]
pub struct StripRow {
    pub name: String,
    pub scale: Option<String>,
    pub color: usize,
    pub images: Vec<Picture>,
}

#[derive(Serialize, Default)]
pub struct Table {
    pub head: Vec<String>,
    pub rows: Vec<Row>,
}

#[derive(Serialize)]
pub struct Row {
    pub name: String,
    pub meaning: String,
    pub cells: Vec<Cell>,
}

#[derive(Serialize)]
pub struct Cell {
    pub text: String,
    pub is_best: bool,
}

/// One logged quantity by each x axis.
#[derive(Serialize)]
pub struct Figure {
    pub name: String,
    pub charts: Vec<Rendered>,
}

#[derive(Serialize)]
pub struct Rendered {
    pub axis: &'static str,
    pub svg: String,
}

#[derive(Serialize)]
pub struct Sweeps {
    pub charts: Vec<String>,
    pub tables: Vec<Table>,
    /// Setting whose values are next to the points of the charts.
    pub labels: Option<String>,
}

/// Returns a PNG as a picture of `columns` images per row with `gap` pixels around each.
pub fn picture(title: String, png: &[u8], columns: u32, has_gaps: bool) -> Picture {
    // Bytes 16 to 24 of a PNG are its width and height.
    let size = |at: usize| png.get(at..at + 4).map_or(0, |b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]));
    let (width, height) = (size(16), size(20));
    let gap = if has_gaps { 4 } else { 0 };
    let side = (width.saturating_sub(gap) / columns.max(1)).saturating_sub(gap);
    // A row of few small images is widened by its heading.
    let is_small = side <= 2 * SMALL;
    let factor = if is_small { (SMALL / side.max(1)).max(1) } else { 1 };
    let address = format!("data:image/png;base64,{}", STANDARD.encode(png));
    Picture {
        title,
        address,
        width: width * factor,
        height: height * factor,
        is_small,
        rows: Vec::new(),
        is_beside: false,
    }
}
