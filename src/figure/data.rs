//! The data of a figure: JSON and CSV.

use super::panel::{Band, Panel, Series};
use super::{Figure, Frame};
use crate::{Error, Result};

/// See [`Figure::to_json`].
pub(super) fn json(figure: &Figure) -> Result<String> {
    let text =
        serde_json::to_string_pretty(figure).map_err(|e| Error::numerical("JSON of the figure", e.to_string()))?;
    Ok(text + "\n")
}

/// A field by RFC 4180: quoted where it has to be, with its quotes doubled.
fn field(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

fn number(v: f64) -> String {
    if v.is_nan() { String::new() } else { v.to_string() }
}

/// See [`Figure::to_csv`].
pub(super) fn csv(figure: &Figure) -> String {
    let mut out = String::from("panel,series,kind,frame,x,y,lo,hi,z,row,column\r\n");
    let name =
        |panel: &Panel, i: usize| if panel.title.is_empty() { format!("{}", i + 1) } else { panel.title.clone() };
    for (i, panel) in figure.panels.iter().enumerate() {
        rows(&mut out, panel, &name(panel, i), "");
    }
    let frames: &[Frame] = figure.control.as_ref().map_or(&[], |c| &c.frames);
    for frame in frames {
        for (i, panel) in frame.panels.iter().enumerate() {
            rows(&mut out, panel, &name(panel, figure.panels.len() + i), &frame.label);
        }
    }
    out
}

fn rows(out: &mut String, panel: &Panel, name: &str, frame: &str) {
    for series in &panel.series {
        let head = [name, series.name(), series.kind(), frame].map(field).join(",");
        let mut row = |cells: [String; 7]| *out += &format!("{head},{}\r\n", cells.join(","));
        let edge = |band: &Option<Band>, i: usize| match band {
            Some(b) => (number(b.lo[i]), number(b.hi[i])),
            None => Default::default(),
        };
        let none = String::new;
        match series {
            Series::Line(s) => {
                for (i, (x, y)) in s.x.iter().zip(&s.y).enumerate() {
                    let (lo, hi) = edge(&s.band, i);
                    row([number(*x), number(*y), lo, hi, none(), none(), none()]);
                }
            }
            Series::Scatter(s) => {
                for (i, (x, y)) in s.x.iter().zip(&s.y).enumerate() {
                    let (lo, hi) = edge(&s.error, i);
                    row([number(*x), number(*y), lo, hi, none(), none(), none()]);
                }
            }
            Series::Bars(s) => {
                for (i, (label, y)) in s.labels.iter().zip(&s.values).enumerate() {
                    let (lo, hi) = edge(&s.error, i);
                    row([field(label), number(*y), lo, hi, none(), none(), none()]);
                }
            }
            Series::Heatmap(s) => {
                let label =
                    |labels: &[String], i: usize| labels.get(i).map_or_else(|| (i + 1).to_string(), |l| field(l));
                for (i, z) in s.z.iter().enumerate() {
                    let (r, c) = (i / s.columns, i % s.columns);
                    let (r, c) = (label(&s.row_labels, r), label(&s.column_labels, c));
                    row([none(), none(), none(), none(), number(*z), r, c]);
                }
            }
        }
    }
}
