//! A user's own Plotly figure: kept as it is for the interactive form, and read back into panels, as far as they have
//! those traces, for the static one.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Figure;
use super::panel::{Axis, Bars, Heatmap, Line, Panel, Scale, Scatter, Series};
use super::plotly::parse_color;
use crate::{Error, Result};

/// The panels of a Plotly figure: a panel for each pair of axes that traces name, in the order of their first trace.
///
/// # Errors
/// [`Error::Invalid`] for a trace that is not a scatter, bar or heat-map trace, or whose data are not plain lists.
pub(super) fn panels(id: &str, plot: &Value) -> Result<Vec<Panel>> {
    let empty = Vec::new();
    let mut panels: Vec<((String, String), Panel)> = Vec::new();
    // Traces whose x are numbers, which bars in their panel make places: the panel and the number of its series.
    let mut numeric = Vec::new();
    for (i, trace) in plot["data"].as_array().unwrap_or(&empty).iter().enumerate() {
        if trace["visible"] == Value::Bool(false) {
            continue;
        }
        let name = |axis: &str, or: &str| trace[axis].as_str().unwrap_or(or).to_owned();
        let axes = (name("xaxis", "x"), name("yaxis", "y"));
        let at = match panels.iter().position(|(a, _)| *a == axes) {
            Some(at) => at,
            None => {
                let panel = Panel::new("").x(axis(plot, &axes.0)).y(axis(plot, &axes.1));
                panels.push((axes, panel));
                panels.len() - 1
            }
        };
        let what = format!("trace {i} of figure '{id}'");
        let panel = &mut panels[at].1;
        let series = read(trace, panel, &what)?;
        if !matches!(series, Series::Bars(_)) && texts(&trace["x"]).is_none() {
            numeric.push((at, panel.series.len()));
        }
        panel.series.push(series);
    }
    for (at, k) in numeric {
        to_places(&mut panels[at].1, k);
    }
    if panels.is_empty() {
        return Err(Error::shape(format!("traces of figure '{id}'"), &[0], "at least one visible trace"));
    }
    Ok(panels.into_iter().map(|(_, panel)| panel).collect())
}

/// The axis called `x`, `x2`, `y`, … in the layout.
fn axis(plot: &Value, name: &str) -> Axis {
    let (kind, number) = name.split_at(name.chars().next().map_or(0, char::len_utf8));
    let given = &plot["layout"][format!("{kind}axis{number}")];
    let title = given["title"]["text"].as_str().or_else(|| given["title"].as_str()).unwrap_or_default();
    let log = given["type"] == "log";
    let mut axis = if log { Axis::log(title) } else { Axis::linear(title) };
    if let [Some(low), Some(high)] = [0, 1].map(|i| given["range"][i].as_f64()) {
        let end = |v: f64| if log { 10f64.powf(v) } else { v };
        axis = axis.range(end(low), end(high));
    }
    axis
}

/// Puts the x of series `k`, which are numbers, where the panel's bars of these numbers are.
fn to_places(panel: &mut Panel, k: usize) {
    let bars = panel.series.iter().filter_map(|s| if let Series::Bars(bars) = s { Some(&bars.labels) } else { None });
    let labels: Vec<String> = bars.flatten().cloned().collect();
    if labels.is_empty() {
        return;
    }
    places(&mut panel.x, &labels);
    if let Some(Series::Line(Line { x, .. }) | Series::Scatter(Scatter { x, .. })) = panel.series.get_mut(k) {
        let own: Vec<String> = x.iter().map(f64::to_string).collect();
        *x = places(&mut panel.x, &own);
    }
}

fn read(trace: &Value, panel: &mut Panel, what: &str) -> Result<Series> {
    let kind = trace["type"].as_str().unwrap_or("scatter");
    let name = trace["name"].as_str().unwrap_or_default();
    let listed = trace["showlegend"] != Value::Bool(false);
    let color = |of: &Value| of["color"].as_str().and_then(parse_color);
    match kind {
        "scatter" | "scattergl" => {
            let y = numbers(&trace["y"], &format!("y of {what}"))?;
            let x = match &trace["x"] {
                Value::Null => (0..y.len()).map(|i| i as f64).collect(),
                x if texts(x).is_some() => {
                    let labels = texts(x).unwrap_or_default();
                    places(&mut panel.x, &labels)
                }
                x => numbers(x, &format!("x of {what}"))?,
            };
            if trace["mode"].as_str() == Some("markers") {
                let points = Scatter { legend: listed, color: color(&trace["marker"]), ..Scatter::new(name, x, y) };
                return Ok(Series::Scatter(points));
            }
            let mut line = Line { legend: listed, color: color(&trace["line"]), ..Line::new(name, x, y) };
            line.markers = trace["mode"].as_str().is_some_and(|m| m.contains("markers"));
            line.width = trace["line"]["width"].as_f64().filter(|w| *w > 0.0).unwrap_or(line.width);
            line = match trace["line"]["dash"].as_str() {
                Some("dash" | "longdash") => line.dashed(),
                Some("dot" | "dashdot") => line.dotted(),
                _ => line,
            };
            Ok(Series::Line(line))
        }
        "bar" if trace["orientation"] == "h" => Err(Error::invalid(
            what,
            "horizontal bars",
            "vertical ones, which the static form draws (the interactive form draws both)",
        )),
        "bar" => {
            let values = numbers(&trace["y"], &format!("y of {what}"))?;
            let labels = match texts(&trace["x"]) {
                Some(labels) => labels,
                None => numbers(&trace["x"], &format!("x of {what}"))?.iter().map(f64::to_string).collect(),
            };
            panel.x.scale = Scale::Category;
            Ok(Series::Bars(Bars { legend: listed, color: color(&trace["marker"]), ..Bars::new(name, labels, values) }))
        }
        "heatmap" => {
            let rows = trace["z"].as_array().filter(|rows| !rows.is_empty());
            let rows = rows.ok_or_else(|| Error::invalid(format!("z of {what}"), "no rows", "a list of rows"))?;
            let mut z = Vec::new();
            for row in rows {
                z.push(numbers(row, &format!("a row of z of {what}"))?);
            }
            let columns = z[0].len();
            if let Some(ragged) = z.iter().find(|row| row.len() != columns) {
                return Err(Error::shape(
                    format!("a row of z of {what}"),
                    &[ragged.len()],
                    format!("[{columns}], as the first"),
                ));
            }
            let labels = |of: &Value| {
                texts(of).or_else(|| numbers(of, "labels").ok().map(|v| v.iter().map(f64::to_string).collect()))
            };
            let (mut x, mut y) = (labels(&trace["x"]).unwrap_or_default(), labels(&trace["y"]).unwrap_or_default());
            // Labels that do not fit the cells are edges or offsets, which are not drawn here.
            x = if x.len() == columns { x } else { Vec::new() };
            y = if y.len() == z.len() { y } else { Vec::new() };
            // Plotly's first row is at the bottom unless the axis runs down.
            let down = panel.y.range.is_some_and(|(low, high)| low > high);
            if !down {
                z.reverse();
                if y.is_empty() {
                    y = (0..z.len()).map(|i| i.to_string()).collect();
                }
                y.reverse();
            }
            (panel.x.range, panel.y.range) = (None, None);
            let mut map = Heatmap::new(z.len(), columns, z.concat());
            (map.row_labels, map.column_labels) = (y, x);
            if let (Some(low), Some(high)) = (trace["zmin"].as_f64(), trace["zmax"].as_f64()) {
                map = map.range(low, high);
            }
            Ok(Series::Heatmap(map))
        }
        other => Err(Error::invalid(
            what,
            format!("a trace of type '{other}'"),
            "scatter, bar or heatmap, which the static form draws (the interactive form draws them all)",
        )),
    }
}

/// A list of numbers; `null` is a gap.
fn numbers(value: &Value, what: &str) -> Result<Vec<f64>> {
    let list = value.as_array().ok_or_else(|| Error::invalid(what, "no list", "a list of numbers"))?;
    let number = |v: &Value| match v {
        Value::Null => Ok(f64::NAN),
        v => v.as_f64().ok_or_else(|| Error::invalid(what, v, "numbers (or null for a gap)")),
    };
    list.iter().map(number).collect()
}

/// A list of texts, if it is one.
fn texts(value: &Value) -> Option<Vec<String>> {
    let list = value.as_array().filter(|l| l.iter().any(Value::is_string))?;
    Some(list.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned)).collect())
}

/// Names on an axis, and their places; names that are new to it are added.
fn places(axis: &mut Axis, labels: &[String]) -> Vec<f64> {
    axis.scale = Scale::Category;
    let mut known: BTreeMap<String, usize> = axis.categories.iter().cloned().zip(0..).collect();
    labels
        .iter()
        .map(|label| {
            let next = known.len();
            let at = *known.entry(label.clone()).or_insert(next);
            if at == next {
                axis.categories.push(label.clone());
            }
            at as f64
        })
        .collect()
}

impl Figure {
    /// The figure to draw statically in place of one that was handed in as Plotly JSON.
    pub(super) fn translated(&self) -> Result<Option<Figure>> {
        let Some(plot) = &self.plotly else { return Ok(None) };
        let figure = Figure { plotly: None, panels: panels(&self.id, plot)?, control: None, ..self.clone() };
        figure.check()?;
        Ok(Some(figure))
    }
}
