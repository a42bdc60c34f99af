//! Figures: one description gives an interactive Plotly figure, a static SVG, and the data as JSON and CSV.
//!
//! A [`Figure`] is panels of lines with bands, points, bars and heat maps, with a caption, optionally a slider or
//! buttons over precomputed [`Frame`]s, and optionally the [`Claims`] it supports. It is plain data: it can be cloned,
//! compared and stored, and nothing is drawn before it is asked for. [`Figure::check`] says what is wrong with one;
//! everything that draws calls it first, so that wrong input is an error and never a panic or an empty picture.
//!
//! Texts may have raised and lowered parts, written `Σ^{1/2}` and `A_{l}`.
//!
//! In a notebook, a value of [`Figure`], [`Claims`] or [`Table`] at the end of a cell displays itself.
//!
//! ```
//! use incontext::figure::{Axis, Figure, Line, Panel};
//! let steps = [1, 2, 3, 4];
//! let figure = Figure::new("demo.loss", "Loss of gradient descent")
//!     .caption("The loss halves with every step.")
//!     .panel(
//!         Panel::new("quadratic")
//!             .x(Axis::linear("step"))
//!             .y(Axis::log("loss"))
//!             .line(Line::new("GD", steps, [1.0, 0.5, 0.25, 0.125])),
//!     );
//! figure.check()?;
//! # Ok::<(), incontext::Error>(())
//! ```

mod axis;
mod check;
mod claims;
mod data;
mod display;
mod foreign;
mod numbers;
mod panel;
mod plotly;
mod sheet;
mod svg;
mod table;
mod text;

use serde::{Deserialize, Serialize};

pub use claims::{Bound, Claim, Claims, Extremes, greater, lesser};
pub use numbers::Number;
pub use panel::{Axis, Band, Bars, Color, Dash, Heatmap, Line, Note, Panel, Rule, Scale, Scatter, Series};
pub use table::{Cell, Table};

/// A text of a figure as HTML, escaped: titles, captions, names and labels write raised and lowered parts as `x^{2}` and
/// `A_{l}`, and every form of a figure shows them so.
///
/// ```
/// assert_eq!(incontext::figure::rich_html("Σ^{1/2} < A_{l}"), "Σ<sup>1/2</sup> &lt; A<sub>l</sub>");
/// ```
pub fn rich_html(text: &str) -> String {
    text::html(text)
}

/// One state of a figure with a slider or buttons: its label, and the panels as they are then.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Frame {
    /// What the slider or the button shows (`"1000"`).
    pub label: String,
    /// The panels; every frame of a figure has the same number of panels with the same series in them.
    pub panels: Vec<Panel>,
}

impl Frame {
    /// The state `label`, in which the panels are these.
    pub fn new(label: impl ToString, panels: impl IntoIterator<Item = Panel>) -> Self {
        Frame { label: label.to_string(), panels: panels.into_iter().collect() }
    }
}

/// A copy, so that a notebook's figure can be made of variables that the notebook keeps.
macro_rules! from_reference {
    ($($kind:ty),*) => {$(
        impl From<&$kind> for $kind {
            fn from(value: &$kind) -> Self {
                value.clone()
            }
        }
    )*};
}
from_reference!(Frame, Panel, Claims);

/// How a reader goes from frame to frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ControlKind {
    /// A slider with a place for each frame.
    Slider,
    /// A button for each frame.
    Buttons,
}

/// A precomputed parameter that a reader can change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Control {
    /// A slider or buttons.
    pub kind: ControlKind,
    /// The parameter's name (`"training step"`).
    pub name: String,
    /// Its values, with the panels at each.
    pub frames: Vec<Frame>,
    /// The frame shown first, and the one that static forms show: its place in `frames`.
    pub active: usize,
}

/// A figure of a paper, or of a notebook.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// `paper.figure`, e.g. `pgd.fig1`.
    pub id: String,
    /// The title above it.
    pub title: String,
    /// What it shows, in sentences, below it.
    pub caption: String,
    /// Panels in a row; chosen from their number if `None`.
    pub columns: Option<usize>,
    /// The panels that no control changes; they come before those of the frames.
    pub panels: Vec<Panel>,
    /// A slider or buttons.
    pub control: Option<Control>,
    /// What the figure is evidence for; shown under it.
    pub claims: Claims,
    /// What made the figure: configuration, seed, versions. Exports carry it; `null` for none.
    pub provenance: serde_json::Value,
    /// A figure made with the `plotly` crate by hand, as JSON; it has no panels of its own then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plotly: Option<serde_json::Value>,
}

impl Figure {
    /// The figure `id` (`paper.figure`) with this title and nothing in it.
    pub fn new(id: impl Into<String>, title: impl Into<String>) -> Self {
        Figure { id: id.into(), title: title.into(), ..Figure::default() }
    }

    /// What the figure shows, in sentences.
    #[must_use]
    pub fn caption(mut self, caption: impl Into<String>) -> Self {
        self.caption = caption.into();
        self
    }

    /// Panels in a row.
    #[must_use]
    pub fn columns(mut self, columns: usize) -> Self {
        self.columns = Some(columns);
        self
    }

    /// Adds a panel.
    #[must_use]
    pub fn panel(mut self, panel: Panel) -> Self {
        self.panels.push(panel);
        self
    }

    /// Adds several panels. In a notebook give variables by reference (`&panels`), here and to [`Figure::slider`] and
    /// [`Figure::with_claims`]: a cell that ends with a figure made of what it moves shows text instead of the figure.
    #[must_use]
    pub fn panels(mut self, panels: impl IntoIterator<Item: Into<Panel>>) -> Self {
        self.panels.extend(panels.into_iter().map(Into::into));
        self
    }

    /// A slider over the frames, whose panels follow the figure's own. A figure has one slider or one row of buttons:
    /// the last given counts.
    #[must_use]
    pub fn slider(self, name: impl Into<String>, frames: impl IntoIterator<Item: Into<Frame>>) -> Self {
        self.control(ControlKind::Slider, name.into(), frames.into_iter().map(Into::into).collect())
    }

    /// A button for each frame; otherwise as [`Figure::slider`].
    #[must_use]
    pub fn buttons(self, name: impl Into<String>, frames: impl IntoIterator<Item: Into<Frame>>) -> Self {
        self.control(ControlKind::Buttons, name.into(), frames.into_iter().map(Into::into).collect())
    }

    fn control(mut self, kind: ControlKind, name: String, frames: Vec<Frame>) -> Self {
        self.control = Some(Control { kind, name, frames, active: 0 });
        self
    }

    /// The frame shown first, and by static forms, counted from 0; the first if not given. Call it after
    /// [`Figure::slider`] or [`Figure::buttons`].
    #[must_use]
    pub fn active(mut self, frame: usize) -> Self {
        if let Some(control) = &mut self.control {
            control.active = frame;
        }
        self
    }

    /// Adds the claims the figure is evidence for; they are shown under it.
    #[must_use]
    pub fn with_claims(mut self, claims: impl Into<Claims>) -> Self {
        self.claims.extend(claims.into());
        self
    }

    /// Whether the figure can be drawn; everything that draws asks this first.
    ///
    /// A NaN is a gap, not an error, where there are other numbers. On a log axis, a band's edge at or below 0 is cut
    /// off where the axis ends.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for lists of different lengths, empty ones, a heat map whose values do
    /// not fill it, and frames with different panels; [`Error::Invalid`](crate::Error::Invalid) for infinite values,
    /// nothing but NaN, values at or below 0 on a log axis, and ranges that are none. Both name the panel and the
    /// series.
    pub fn check(&self) -> crate::Result<()> {
        check::figure(self)
    }

    /// The figure as a self-contained SVG on white, drawn without a browser: panels, legend, caption and claims. Of a
    /// figure with a slider or buttons it shows the active frame, and says so. The same figure gives the same bytes.
    ///
    /// Lines are thinned to what can be seen (a quarter of a megabyte of points is a few kilobytes of picture), numbers
    /// in cells too small for them are left out, and of a heat map with more than 120 cells along an axis, neighbours
    /// are averaged.
    ///
    /// # Errors
    /// Those of [`Figure::check`]; for a figure made by [`Figure::from_plotly`] also
    /// [`Error::Invalid`](crate::Error::Invalid) if it has kinds of traces that only Plotly draws.
    pub fn to_svg(&self) -> crate::Result<String> {
        self.check()?;
        let translated = self.translated()?;
        let figure = translated.as_ref().unwrap_or(self);
        Ok(svg::render(figure, figure.control.as_ref().map_or(0, |c| c.active)))
    }

    /// A figure made with the [`plotly`](https://docs.rs/plotly) crate by hand. It displays and exports like any other;
    /// its interactive form is what was handed in. Its static form is a redrawing of its scatter, bar and heat-map
    /// traces, one panel for each pair of axes: fills, annotations, shapes and templates are not in it.
    ///
    /// ```
    /// use incontext::figure::Figure;
    /// let mut plot = plotly::Plot::new();
    /// plot.add_trace(plotly::Scatter::new(vec![1, 2, 3], vec![1.0, 0.5, 0.25]).name("loss"));
    /// let figure = Figure::from_plotly("mine.loss", "My loss", plot)?;
    /// assert!(figure.to_svg()?.contains("loss"));
    /// # Ok::<(), incontext::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Numerical`](crate::Error::Numerical) if the plot cannot be written as JSON.
    pub fn from_plotly(id: impl Into<String>, title: impl Into<String>, plot: ::plotly::Plot) -> crate::Result<Self> {
        let json = serde_json::to_value(&plot).map_err(|e| crate::Error::numerical("Plotly JSON", e.to_string()))?;
        Ok(Figure { plotly: Some(json), ..Figure::new(id, title) })
    }

    /// The figure as a [`plotly::Plot`](https://docs.rs/plotly), to be changed further by hand: panels are pairs of axes,
    /// a band is a filled trace below its line, numbers in cells are text traces, the caption and the claims are
    /// annotations below the panels, frames are Plotly's.
    ///
    /// # Errors
    /// Those of [`Figure::check`]; [`Error::Invalid`](crate::Error::Invalid) for more than eight panels, which the crate
    /// has no axes for ([`Figure::to_plotly_json`] has no such limit), and for a figure that came from
    /// [`Figure::from_plotly`]: its plot is where it was.
    pub fn to_plotly(&self) -> crate::Result<::plotly::Plot> {
        self.check()?;
        if self.plotly.is_some() {
            let expected = "a figure made of panels; this one was handed in as a plot, and to_plotly_json returns it";
            return Err(crate::Error::invalid(format!("figure '{}'", self.id), "a Plotly plot", expected));
        }
        plotly::plot(self)
    }

    /// The figure as Plotly JSON, `{data, layout, frames, config}`: what the MIME type `application/vnd.plotly.v1+json`
    /// stands for. Lines longer than a few thousand points keep their extremes in equal stretches; [`Figure::to_json`]
    /// has every point.
    ///
    /// # Errors
    /// Those of [`Figure::check`].
    pub fn to_plotly_json(&self) -> crate::Result<serde_json::Value> {
        self.check()?;
        match &self.plotly {
            Some(given) => Ok(given.clone()),
            None => plotly::json(self),
        }
    }

    /// The figure's data as JSON, indented: id, title, caption, panels with their axes and every series with all its
    /// points, bands and cells, frames, claims, provenance. Numbers that are not finite are `null`. The same figure
    /// gives the same bytes, and [`Figure::from_json`] reads them back.
    ///
    /// # Errors
    /// Those of [`Figure::check`].
    pub fn to_json(&self) -> crate::Result<String> {
        self.check()?;
        data::json(self)
    }

    /// Reads what [`Figure::to_json`] wrote.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) if the text is not the JSON of a figure, and those of
    /// [`Figure::check`].
    pub fn from_json(text: &str) -> crate::Result<Self> {
        let figure: Figure = serde_json::from_str(text)
            .map_err(|e| crate::Error::invalid("JSON of a figure", e, "what Figure::to_json writes"))?;
        figure.check()?;
        Ok(figure)
    }

    /// The figure's data as CSV (RFC 4180), one row a point: panel, series, kind, frame, x, y, lo, hi, z, row, column.
    /// Empty fields are what a point has not: `z`, `row` and `column` belong to heat maps, the others to the rest; bars
    /// have their label as `x`; `frame` is empty for panels that no slider changes.
    ///
    /// # Errors
    /// Those of [`Figure::check`], and for a figure from [`Figure::from_plotly`] those of [`Figure::to_svg`].
    pub fn to_csv(&self) -> crate::Result<String> {
        self.check()?;
        let translated = self.translated()?;
        Ok(data::csv(translated.as_ref().unwrap_or(self)))
    }

    /// What made the figure: configuration, seed, versions. Exports carry it.
    #[must_use]
    pub fn provenance(mut self, provenance: serde_json::Value) -> Self {
        self.provenance = provenance;
        self
    }
}
