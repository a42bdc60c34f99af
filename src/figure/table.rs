//! A table that displays itself: HTML in a notebook, aligned text elsewhere.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::text::{escape, significant};
use crate::{Error, Result};

/// A cell of a [`Table`]: text, or a number (shown with six significant digits, aligned right).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Cell {
    /// Text as it is.
    Text(String),
    /// A number; JSON has `null` for one that is not finite.
    Number(#[serde(with = "super::numbers::one")] f64),
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Cell::Text(text.to_owned())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Cell::Text(text)
    }
}

impl From<&String> for Cell {
    fn from(text: &String) -> Self {
        Cell::Text(text.clone())
    }
}

macro_rules! number_cells {
    ($($kind:ty)*) => {$(
        impl From<$kind> for Cell {
            fn from(number: $kind) -> Self {
                Cell::Number(number as f64)
            }
        }
    )*};
}
number_cells!(f64 f32 usize u64 u32 i64 i32);

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cell::Text(text) => f.write_str(text),
            Cell::Number(number) => f.write_str(&significant(*number, 6)),
        }
    }
}

/// Headers and rows of cells.
///
/// ```
/// use incontext::figure::Table;
/// let table = Table::new(["layer", "step size"]).row(["first".into(), 0.42241.into()]).row(["last".into(), 1.71422.into()]);
/// assert_eq!(table.to_string(), "layer  step size\n─────  ─────────\nfirst    0.42241\nlast     1.71422");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// A line above the table; empty for none.
    pub title: String,
    /// The columns' names.
    pub headers: Vec<String>,
    /// The rows, each with as many cells as there are headers.
    pub rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table with these columns and no rows.
    pub fn new<S: Into<String>>(headers: impl IntoIterator<Item = S>) -> Self {
        Table { headers: headers.into_iter().map(Into::into).collect(), ..Table::default() }
    }

    /// A line above the table.
    #[must_use]
    pub fn title(mut self, title: impl Into<String>) -> Self {
        self.title = title.into();
        self
    }

    /// Adds a row to a chain.
    #[must_use]
    pub fn row(mut self, cells: impl IntoIterator<Item = Cell>) -> Self {
        self.push(cells);
        self
    }

    /// Adds a row in place.
    pub fn push(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Whether every row has one cell for each header.
    ///
    /// # Errors
    /// [`Error::Shape`] naming the first row that has not.
    pub fn check(&self) -> Result<()> {
        match self.rows.iter().enumerate().find(|(_, row)| row.len() != self.headers.len()) {
            Some((i, row)) => {
                Err(Error::shape(format!("row {i} of the table"), &[row.len()], format!("[{}]", self.headers.len())))
            }
            None => Ok(()),
        }
    }

    /// The table as HTML that carries its own style; a row that is too short ends early, one that is too long is
    /// shown whole.
    pub fn to_html(&self) -> String {
        let cell = "padding:3px 12px 3px 0;border-bottom:1px solid #ddd;vertical-align:top;";
        let mut html = String::from(
            "<table style=\"border-collapse:collapse;font-family:sans-serif;font-size:13px;color:#222;background:#fff\">",
        );
        if !self.title.is_empty() {
            html += &format!(
                "<caption style=\"text-align:left;font-weight:bold;padding:4px 0\">{}</caption>",
                escape(&self.title)
            );
        }
        html += "<thead><tr>";
        for (i, header) in self.headers.iter().enumerate() {
            let align = if self.numeric(i) { "right" } else { "left" };
            html +=
                &format!("<th style=\"{cell}text-align:{align};border-bottom:1px solid #222\">{}</th>", escape(header));
        }
        html += "</tr></thead><tbody>";
        for row in &self.rows {
            html += "<tr>";
            for value in row {
                let align = if matches!(value, Cell::Number(_)) { "right" } else { "left" };
                html += &format!("<td style=\"{cell}text-align:{align}\">{}</td>", escape(&value.to_string()));
            }
            html += "</tr>";
        }
        html + "</tbody></table>"
    }

    /// Whether column `i` holds numbers alone.
    fn numeric(&self, i: usize) -> bool {
        !self.rows.is_empty() && self.rows.iter().all(|row| matches!(row.get(i), Some(Cell::Number(_))))
    }
}

impl fmt::Display for Table {
    /// Columns aligned by their widest cell, text to the left and numbers to the right.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).chain([self.headers.len()]).max().unwrap_or(0);
        let text: Vec<Vec<String>> =
            self.rows.iter().map(|row| row.iter().map(|c| c.to_string().replace('\n', " ")).collect()).collect();
        let wide = |s: &String| s.chars().count();
        let widths: Vec<usize> = (0..columns)
            .map(|i| text.iter().filter_map(|row| row.get(i)).chain(self.headers.get(i)).map(wide).max().unwrap_or(0))
            .collect();
        let mut lines = Vec::new();
        if !self.title.is_empty() {
            lines.push(self.title.clone());
        }
        let mut line = |cells: &[String], right: &dyn Fn(usize) -> bool| {
            let parts = widths.iter().enumerate().map(|(i, &width)| {
                let cell = cells.get(i).map_or("", String::as_str);
                if right(i) { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
            });
            lines.push(parts.collect::<Vec<_>>().join("  ").trim_end().to_owned());
        };
        line(&self.headers, &|i| self.numeric(i));
        line(&widths.iter().map(|&w| "─".repeat(w)).collect::<Vec<_>>(), &|_| false);
        for (cells, row) in text.iter().zip(&self.rows) {
            line(cells, &|i| matches!(row.get(i), Some(Cell::Number(_))));
        }
        f.write_str(&lines.join("\n"))
    }
}
