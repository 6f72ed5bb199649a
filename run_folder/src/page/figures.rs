//! The charts of a page: learning curves and sweeps.

use crate::page::chart::{Chart, Line};
use crate::page::curves::Point as Logged;
use crate::page::numbers::{tick, value};
use crate::page::record::Record;
use crate::page::sweep::{Point, Sweep, trade_offs};
use crate::page::view::{Cell, Figure, Rendered, Row, Sweeps, Table};

/// Returns the title of the y axis of a logged quantity.
fn titled(name: &str) -> String {
    match name {
        "grad_norm" => "gradient norm (L2, before clipping)".to_string(),
        "images_per_second" => "training speed (images/s)".to_string(),
        name => name.replace('_', " "),
    }
}

pub fn figures(runs: &[Record]) -> Vec<Figure> {
    let mut names: Vec<&str> = Vec::new();
    for curve in runs.iter().flat_map(|run| &run.curves) {
        if !names.contains(&curve.name.as_str()) {
            names.push(&curve.name);
        }
    }
    // The speed tells least about the result.
    names.sort_by_key(|name| *name == "images_per_second");
    let longest = runs.iter().map(|run| run.seconds).fold(0.0, f64::max);
    let (unit, per) = match longest {
        _ if longest < 180.0 => ("s", 1.0),
        _ if longest < 3.0 * 3600.0 => ("min", 60.0),
        _ => ("h", 3600.0),
    };
    type Of = Box<dyn Fn(&Logged) -> f64>;
    let axes: [(&str, String, Of); 3] = [
        ("step", "step".into(), Box::new(|point| point.step)),
        ("time", format!("training time ({unit})"), Box::new(move |point| point.seconds / per)),
        ("images", "training images".into(), Box::new(|point| point.images)),
    ];
    let figure = |name: &str| {
        let charts = axes.iter().filter_map(|(axis, title, of)| {
            let line = |(color, run): (usize, &Record)| {
                let curve = run.curves.iter().find(|curve| curve.name == name)?;
                let points = curve.points.iter().map(|point| (of(point), point.value)).collect();
                Some(Line { name: run.name.clone(), color, points, labels: Vec::new() })
            };
            let chart = Chart {
                x: title.clone(),
                y: titled(name),
                lines: runs.iter().enumerate().filter_map(line).collect(),
                // A schedule has no noise to smooth, and its shape shows on a linear axis.
                is_smoothed: name != "learning_rate",
                is_linear: name == "learning_rate",
            };
            Some(Rendered { axis, svg: chart.svg()? })
        });
        Figure { name: titled(name), charts: charts.collect() }
    };
    names.into_iter().map(figure).filter(|figure| !figure.charts.is_empty()).collect()
}

/// Returns the text next to a point: the value of the setting that varies, or all settings.
fn label(sweep: &Sweep, point: &Point) -> String {
    let number = sweep.varied().and_then(|pointer| point.settings.get(pointer)?.as_f64());
    number.map_or_else(|| point.label(), tick)
}

/// Returns the charts and the tables of sweeps. `first` is the colour of the first sweep.
pub fn sweeps(all: &[Sweep], first: usize) -> Sweeps {
    let mut charts = Vec::new();
    let mut render = |x: &str, y: &str, lines: Vec<Line>| {
        let chart = Chart { x: x.into(), y: y.into(), lines, is_smoothed: false, is_linear: false };
        charts.extend(chart.svg());
    };
    for (x, y) in trade_offs(all) {
        let line = |(i, sweep): (usize, &Sweep)| {
            let points = sweep
                .points
                .iter()
                .filter_map(|point| Some(((point.metric(&x)?, point.metric(&y)?), label(sweep, point))));
            let (points, labels) = points.unzip();
            Line { name: sweep.name.clone(), color: first + i, points, labels }
        };
        render(&x.replace('_', " "), &y.replace('_', " "), all.iter().enumerate().map(line).collect());
    }
    // Each metric by the setting that varies, for the sweeps that vary the same one.
    if let Some(pointer) = all.first().and_then(Sweep::varied) {
        let mut names: Vec<&String> = all.iter().flat_map(|s| &s.points).flat_map(|p| p.metrics.keys()).collect();
        names.sort();
        names.dedup();
        for name in names {
            let same = all.iter().enumerate().filter(|(_, sweep)| sweep.varied() == Some(pointer));
            let line = |(i, sweep): (usize, &Sweep)| {
                let at = |point: &Point| Some((point.settings.get(pointer)?.as_f64()?, point.metric(name)?));
                let points = sweep.points.iter().filter_map(at).collect();
                Line { name: sweep.name.clone(), color: first + i, points, labels: Vec::new() }
            };
            render(pointer, &name.replace('_', " "), same.map(line).collect());
        }
    }
    let labels = all.iter().filter_map(|sweep| sweep.varied()).next().map(String::from);
    Sweeps { charts, tables: all.iter().map(table_of_sweep).collect(), labels }
}

fn table_of_sweep(sweep: &Sweep) -> Table {
    let mut names: Vec<&String> = sweep.points.iter().flat_map(|point| point.metrics.keys()).collect();
    names.sort();
    names.dedup();
    let mut head = vec![sweep.name.clone()];
    head.extend(names.iter().map(|name| name.replace('_', " ")));
    head.extend(["NFE".to_string(), "seconds per image".to_string()]);
    let rows = sweep.points.iter().map(|point| {
        let values = names.iter().map(|name| point.metric(name));
        let values = values.chain([point.evaluations, point.seconds_per_image]);
        let cell = |v: Option<f64>| Cell { text: v.map_or("—".to_string(), value), is_best: false };
        Row { name: point.label(), meaning: String::new(), cells: values.map(cell).collect() }
    });
    Table { rows: rows.collect(), head }
}
