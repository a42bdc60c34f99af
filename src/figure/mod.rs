//! Figures: one description gives an interactive Plotly figure, a static SVG, and the data as JSON and CSV.
//!
//! A [`Figure`] is panels of lines with bands, points, bars and heat maps, with a caption, optionally a slider or
//! buttons over precomputed [`Frame`]s, and optionally the [`Claims`] it supports. It is plain data: it can be cloned,
//! compared and stored, and nothing is drawn before it is asked for. [`Figure::check`] says what is wrong with one;
//! everything that draws calls it first, so that wrong input is an error and never a panic or an empty picture.
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

mod check;
mod claims;
mod numbers;
mod panel;
mod table;
mod text;

use serde::{Deserialize, Serialize};

pub use claims::{Bound, Claim, Claims};
pub use numbers::Number;
pub use panel::{Axis, Band, Bars, Color, Dash, Heatmap, Line, Note, Panel, Rule, Scale, Scatter, Series};
pub use table::{Cell, Table};

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

    /// Adds several panels.
    #[must_use]
    pub fn panels(mut self, panels: impl IntoIterator<Item = Panel>) -> Self {
        self.panels.extend(panels);
        self
    }

    /// A slider over the frames, whose panels follow the figure's own. A figure has one slider or one row of buttons:
    /// the last given counts.
    #[must_use]
    pub fn slider(self, name: impl Into<String>, frames: impl IntoIterator<Item = Frame>) -> Self {
        self.control(ControlKind::Slider, name.into(), frames.into_iter().collect())
    }

    /// A button for each frame; otherwise as [`Figure::slider`].
    #[must_use]
    pub fn buttons(self, name: impl Into<String>, frames: impl IntoIterator<Item = Frame>) -> Self {
        self.control(ControlKind::Buttons, name.into(), frames.into_iter().collect())
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
    pub fn with_claims(mut self, claims: Claims) -> Self {
        self.claims.extend(claims);
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

    /// What made the figure: configuration, seed, versions. Exports carry it.
    #[must_use]
    pub fn provenance(mut self, provenance: serde_json::Value) -> Self {
        self.provenance = provenance;
        self
    }
}
