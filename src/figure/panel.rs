//! What a figure is made of: panels with axes, and the series drawn in them.

use serde::{Deserialize, Serialize};

use super::numbers::{self, Number};
use crate::compare::Interval;
use crate::linalg::Matrix;

/// A colour, as red, green and blue.
///
/// The named ones are the default palette: they stay apart for every common kind of colour blindness and are dark
/// enough on white.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Color(pub u8, pub u8, pub u8);

impl Color {
    /// Blue.
    pub const BLUE: Color = Color(0, 114, 178);
    /// Vermilion, the palette's red.
    pub const RED: Color = Color(213, 94, 0);
    /// Bluish green.
    pub const GREEN: Color = Color(0, 158, 115);
    /// Reddish purple.
    pub const PURPLE: Color = Color(204, 121, 167);
    /// Orange.
    pub const ORANGE: Color = Color(230, 159, 0);
    /// Sky blue.
    pub const SKY: Color = Color(86, 180, 233);
    /// Brown.
    pub const BROWN: Color = Color(121, 77, 41);
    /// Grey: for what is not the point of the figure.
    pub const GREY: Color = Color(128, 128, 128);
    /// Black: for exact and reference values.
    pub const BLACK: Color = Color(30, 30, 30);

    /// The colours that series get, in order, when they name none.
    pub const PALETTE: [Color; 9] = [
        Color::BLUE,
        Color::RED,
        Color::GREEN,
        Color::PURPLE,
        Color::ORANGE,
        Color::SKY,
        Color::BROWN,
        Color::BLACK,
        Color::GREY,
    ];

    /// `#0072b2`.
    pub fn hex(self) -> String {
        format!("#{:02x}{:02x}{:02x}", self.0, self.1, self.2)
    }
}

/// How an axis maps values to places.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scale {
    /// Equal differences are equal lengths.
    #[default]
    Linear,
    /// Equal ratios are equal lengths; values must be above 0.
    Log,
    /// Names side by side; a number `i` on this axis is the place of name `i`, from 0.
    Category,
}

/// An axis: its title, scale, and optionally its range and ticks.
///
/// ```
/// use incontext::figure::Axis;
/// let axis = Axis::log("loss").range(1e-3, 1.0);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Axis {
    /// What the axis shows, with its unit.
    pub title: String,
    /// Linear, logarithmic or names.
    pub scale: Scale,
    /// The ends, low and high; from the data if `None`.
    pub range: Option<(f64, f64)>,
    /// Where the ticks are; chosen if `None`.
    pub ticks: Option<Vec<f64>>,
    /// The names on a category axis, in order; from the bars or the heat map if empty.
    pub categories: Vec<String>,
}

impl Axis {
    /// A linear axis.
    pub fn linear(title: impl Into<String>) -> Self {
        Axis { title: title.into(), ..Axis::default() }
    }

    /// A logarithmic axis: values at or below 0 are an error (a band's lower edge may be there: it is cut off).
    pub fn log(title: impl Into<String>) -> Self {
        Axis { title: title.into(), scale: Scale::Log, ..Axis::default() }
    }

    /// An axis of names. The bars' labels or the heat map's are its names, unless [`Axis::names`] gives them.
    pub fn category(title: impl Into<String>) -> Self {
        Axis { title: title.into(), scale: Scale::Category, ..Axis::default() }
    }

    /// Names for a category axis, in order.
    #[must_use]
    pub fn names<S: ToString>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.scale = Scale::Category;
        self.categories = names.into_iter().map(|n| n.to_string()).collect();
        self
    }

    /// The ends of the axis. `low > high` draws it backwards.
    #[must_use]
    pub fn range(mut self, low: f64, high: f64) -> Self {
        self.range = Some((low, high));
        self
    }

    /// Ticks at these values and nowhere else.
    #[must_use]
    pub fn ticks<N: Number>(mut self, at: impl IntoIterator<Item = N>) -> Self {
        self.ticks = Some(numbers::collect(at));
        self
    }
}

/// A lower and an upper edge: of a band around a line, or of error bars.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Band {
    /// The lower edge, in the axis' unit (not a distance from the value).
    #[serde(with = "numbers")]
    pub lo: Vec<f64>,
    /// The upper edge.
    #[serde(with = "numbers")]
    pub hi: Vec<f64>,
}

impl Band {
    fn new<A: Number, B: Number>(lo: impl IntoIterator<Item = A>, hi: impl IntoIterator<Item = B>) -> Self {
        Band { lo: numbers::collect(lo), hi: numbers::collect(hi) }
    }
}

/// How a line is stroked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dash {
    /// Unbroken.
    #[default]
    Solid,
    /// Dashes.
    Dashed,
    /// Dots.
    Dotted,
}

/// A line through points, in the order given. A NaN in `x` or `y` is a gap.
///
/// ```
/// use incontext::figure::{Color, Line};
/// let steps: Vec<u32> = vec![0, 100, 200];
/// let line = Line::new("whitened", &steps, [1.0, 0.1, 0.01]).band([0.9, 0.08, 0.0], [1.1, 0.12, 0.02]).color(Color::BLUE);
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// The name in the legend. Lines of one name have one colour and one legend entry.
    pub name: String,
    /// `[points]`.
    #[serde(with = "numbers")]
    pub x: Vec<f64>,
    /// `[points]`.
    #[serde(with = "numbers")]
    pub y: Vec<f64>,
    /// A shaded band around it, `[points]` each edge.
    pub band: Option<Band>,
    /// Unbroken, dashed or dotted.
    pub dash: Dash,
    /// Whether each point gets a mark.
    pub markers: bool,
    /// Its colour; from the palette, by its name, if `None`.
    pub color: Option<Color>,
    /// Its width in pixels.
    pub width: f64,
    /// Whether the legend lists it.
    pub legend: bool,
}

impl Line {
    /// The line `name` through `(x, y)`.
    pub fn new<A: Number, B: Number>(
        name: impl Into<String>,
        x: impl IntoIterator<Item = A>,
        y: impl IntoIterator<Item = B>,
    ) -> Self {
        Line {
            name: name.into(),
            x: numbers::collect(x),
            y: numbers::collect(y),
            band: None,
            dash: Dash::Solid,
            markers: false,
            color: None,
            width: 1.8,
            legend: true,
        }
    }

    /// The mean over seeds, with a band of one standard deviation to either side: `seeds` has a curve `[points]` of each.
    ///
    /// ```
    /// use incontext::figure::Line;
    /// let line = Line::mean("loss", [1, 2], &[vec![1.0, 0.2], vec![3.0, 0.4]]);
    /// assert_eq!(line.y, [2.0, 0.30000000000000004]);
    /// ```
    pub fn mean<A: Number, C: AsRef<[f64]>>(
        name: impl Into<String>,
        x: impl IntoIterator<Item = A>,
        seeds: &[C],
    ) -> Self {
        // Curves of different lengths end with the shortest; against x, that is an error when the figure is drawn.
        let points = seeds.iter().map(|c| c.as_ref().len()).min().unwrap_or(0);
        let at = |k: usize| Interval::of(&seeds.iter().map(|c| c.as_ref()[k]).collect::<Vec<_>>());
        let over: Vec<Interval> = (0..points).map(at).collect();
        Line::new(name, x, over.iter().map(|i| i.mean))
            .band(over.iter().map(|i| i.mean - i.std), over.iter().map(|i| i.mean + i.std))
    }

    /// A shaded band between `lo` and `hi` (the edges themselves, not distances from the line).
    #[must_use]
    pub fn band<A: Number, B: Number>(
        mut self,
        lo: impl IntoIterator<Item = A>,
        hi: impl IntoIterator<Item = B>,
    ) -> Self {
        self.band = Some(Band::new(lo, hi));
        self
    }

    /// Draws it with dashes.
    #[must_use]
    pub fn dashed(mut self) -> Self {
        self.dash = Dash::Dashed;
        self
    }

    /// Draws it with dots.
    #[must_use]
    pub fn dotted(mut self) -> Self {
        self.dash = Dash::Dotted;
        self
    }

    /// Marks every point.
    #[must_use]
    pub fn markers(mut self) -> Self {
        self.markers = true;
        self
    }

    /// Its colour, and that of every series with its name that has none of its own.
    #[must_use]
    pub fn color(mut self, color: Color) -> Self {
        self.color = Some(color);
        self
    }

    /// Its width in pixels (1.8 if not given).
    #[must_use]
    pub fn width(mut self, pixels: f64) -> Self {
        self.width = pixels;
        self
    }

    /// Leaves it out of the legend.
    #[must_use]
    pub fn unlisted(mut self) -> Self {
        self.legend = false;
        self
    }
}

/// Points, each on its own. One with a NaN is left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scatter {
    /// The name in the legend.
    pub name: String,
    /// `[points]`.
    #[serde(with = "numbers")]
    pub x: Vec<f64>,
    /// `[points]`.
    #[serde(with = "numbers")]
    pub y: Vec<f64>,
    /// Error bars, `[points]` each end.
    pub error: Option<Band>,
    /// Its colour; from the palette, by its name, if `None`.
    pub color: Option<Color>,
    /// The marks' diameter in pixels.
    pub size: f64,
    /// Whether the legend lists it.
    pub legend: bool,
}

impl Scatter {
    /// The points `(x, y)` called `name`.
    pub fn new<A: Number, B: Number>(
        name: impl Into<String>,
        x: impl IntoIterator<Item = A>,
        y: impl IntoIterator<Item = B>,
    ) -> Self {
        Scatter {
            name: name.into(),
            x: numbers::collect(x),
            y: numbers::collect(y),
            error: None,
            color: None,
            size: 6.0,
            legend: true,
        }
    }

    /// Error bars from `lo` to `hi` (the ends themselves, not distances from the point).
    #[must_use]
    pub fn error<A: Number, B: Number>(
        mut self,
        lo: impl IntoIterator<Item = A>,
        hi: impl IntoIterator<Item = B>,
    ) -> Self {
        self.error = Some(Band::new(lo, hi));
        self
    }

    /// Its colour, and that of every series with its name that has none of its own.
    #[must_use]
    pub fn color(mut self, color: Color) -> Self {
        self.color = Some(color);
        self
    }

    /// The marks' diameter in pixels (6 if not given).
    #[must_use]
    pub fn size(mut self, pixels: f64) -> Self {
        self.size = pixels;
        self
    }

    /// Leaves it out of the legend.
    #[must_use]
    pub fn unlisted(mut self) -> Self {
        self.legend = false;
        self
    }
}

/// Bars over names. Several in one panel stand side by side; a NaN is a bar left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bars {
    /// The name in the legend.
    pub name: String,
    /// `[bars]`: what stands below each bar.
    pub labels: Vec<String>,
    /// `[bars]`: the heights.
    #[serde(with = "numbers")]
    pub values: Vec<f64>,
    /// Error bars, `[bars]` each end.
    pub error: Option<Band>,
    /// Its colour; from the palette, by its name, if `None`.
    pub color: Option<Color>,
    /// Whether the legend lists it.
    pub legend: bool,
}

impl Bars {
    /// Bars of heights `values` over `labels`.
    pub fn new<S: ToString, N: Number>(
        name: impl Into<String>,
        labels: impl IntoIterator<Item = S>,
        values: impl IntoIterator<Item = N>,
    ) -> Self {
        Bars {
            name: name.into(),
            labels: labels.into_iter().map(|l| l.to_string()).collect(),
            values: numbers::collect(values),
            error: None,
            color: None,
            legend: true,
        }
    }

    /// Error bars from `lo` to `hi` (the ends themselves, not distances from the value).
    #[must_use]
    pub fn error<A: Number, B: Number>(
        mut self,
        lo: impl IntoIterator<Item = A>,
        hi: impl IntoIterator<Item = B>,
    ) -> Self {
        self.error = Some(Band::new(lo, hi));
        self
    }

    /// Its colour, and that of every series with its name that has none of its own.
    #[must_use]
    pub fn color(mut self, color: Color) -> Self {
        self.color = Some(color);
        self
    }

    /// Leaves it out of the legend.
    #[must_use]
    pub fn unlisted(mut self) -> Self {
        self.legend = false;
        self
    }
}

/// A matrix as coloured cells, row 0 on top. A NaN is an empty cell. A panel holds one, and nothing else.
///
/// ```
/// use incontext::figure::Heatmap;
/// let identity = [1.0, 0.0, 0.0, 1.0];
/// let map = Heatmap::new(2, 2, identity).annotate(2).diverging();
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Heatmap {
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub columns: usize,
    /// `[rows * columns]`, row by row.
    #[serde(with = "numbers")]
    pub z: Vec<f64>,
    /// `[rows]` names; the row numbers, from 1, if empty.
    pub row_labels: Vec<String>,
    /// `[columns]` names; the column numbers, from 1, if empty.
    pub column_labels: Vec<String>,
    /// Writes each value in its cell, with so many decimals.
    pub decimals: Option<usize>,
    /// Blue below 0, white at 0, red above, the same distance being equally dark; otherwise pale to dark blue.
    pub diverging: bool,
    /// The values of the two ends of the colours; from the data of all frames if `None`.
    pub range: Option<(f64, f64)>,
}

impl Heatmap {
    /// The matrix `z` (`rows * columns` values, row by row).
    pub fn new<N: Number>(rows: usize, columns: usize, z: impl IntoIterator<Item = N>) -> Self {
        Heatmap {
            rows,
            columns,
            z: numbers::collect(z),
            row_labels: Vec::new(),
            column_labels: Vec::new(),
            decimals: None,
            diverging: false,
            range: None,
        }
    }

    /// A learnt matrix as the papers show it: its entries written out with two decimals, on diverging colours.
    ///
    /// ```
    /// use incontext::{figure::Heatmap, linalg::Matrix};
    /// let map = Heatmap::matrix(&Matrix::identity(3));
    /// assert_eq!((map.rows, map.columns, map.z[4]), (3, 3, 1.0));
    /// ```
    pub fn matrix(matrix: &Matrix) -> Self {
        Heatmap::new(matrix.rows(), matrix.cols(), matrix.as_slice()).annotate(2).diverging()
    }

    /// Names for the rows and the columns.
    #[must_use]
    pub fn labels<R: ToString, C: ToString>(
        mut self,
        rows: impl IntoIterator<Item = R>,
        columns: impl IntoIterator<Item = C>,
    ) -> Self {
        self.row_labels = rows.into_iter().map(|l| l.to_string()).collect();
        self.column_labels = columns.into_iter().map(|l| l.to_string()).collect();
        self
    }

    /// Writes each value in its cell, with so many decimals.
    #[must_use]
    pub fn annotate(mut self, decimals: usize) -> Self {
        self.decimals = Some(decimals);
        self
    }

    /// Blue below 0, white at 0, red above.
    #[must_use]
    pub fn diverging(mut self) -> Self {
        self.diverging = true;
        self
    }

    /// The values of the two ends of the colours; values outside get the end's colour.
    #[must_use]
    pub fn range(mut self, low: f64, high: f64) -> Self {
        self.range = Some((low, high));
        self
    }
}

/// Something drawn in a panel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Series {
    /// A line.
    Line(Line),
    /// Points.
    Scatter(Scatter),
    /// Bars.
    Bars(Bars),
    /// A heat map.
    Heatmap(Heatmap),
}

impl Series {
    /// `line`, `scatter`, `bars` or `heatmap`.
    pub fn kind(&self) -> &'static str {
        match self {
            Series::Line(_) => "line",
            Series::Scatter(_) => "scatter",
            Series::Bars(_) => "bars",
            Series::Heatmap(_) => "heatmap",
        }
    }

    /// Its name; a heat map has none.
    pub fn name(&self) -> &str {
        match self {
            Series::Line(s) => &s.name,
            Series::Scatter(s) => &s.name,
            Series::Bars(s) => &s.name,
            Series::Heatmap(_) => "",
        }
    }
}

/// A straight line across the whole panel at one value, with a label.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rule {
    /// Whether it is horizontal (`y = at`) or vertical (`x = at`).
    pub horizontal: bool,
    /// The value.
    #[serde(with = "numbers::one")]
    pub at: f64,
    /// What stands beside it; empty for nothing.
    pub label: String,
}

/// Text at a point of a panel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Note {
    /// The point's x.
    #[serde(with = "numbers::one")]
    pub x: f64,
    /// The point's y.
    #[serde(with = "numbers::one")]
    pub y: f64,
    /// The text, one line, centred on the point and moved inside the panel if it would leave it.
    pub text: String,
}

/// One set of axes with what is drawn in them.
///
/// ```
/// use incontext::figure::{Axis, Line, Panel};
/// let panel = Panel::new("Layer 0")
///     .x(Axis::linear("iteration"))
///     .y(Axis::log("Dist"))
///     .line(Line::new("whitened", [0, 1, 2], [1.0, 0.1, 0.01]))
///     .hline(0.02, "accepted");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Panel {
    /// The title above it.
    pub title: String,
    /// The horizontal axis.
    pub x: Axis,
    /// The vertical axis.
    pub y: Axis,
    /// What is drawn, the first at the back.
    pub series: Vec<Series>,
    /// Lines across the panel.
    pub rules: Vec<Rule>,
    /// Text at points.
    pub notes: Vec<Note>,
}

impl Panel {
    /// An empty panel with this title and two linear axes.
    pub fn new(title: impl Into<String>) -> Self {
        Panel { title: title.into(), ..Panel::default() }
    }

    /// The horizontal axis.
    #[must_use]
    pub fn x(mut self, axis: Axis) -> Self {
        self.x = axis;
        self
    }

    /// The vertical axis.
    #[must_use]
    pub fn y(mut self, axis: Axis) -> Self {
        self.y = axis;
        self
    }

    /// Adds a line.
    #[must_use]
    pub fn line(self, line: Line) -> Self {
        self.series(Series::Line(line))
    }

    /// Adds points.
    #[must_use]
    pub fn scatter(self, scatter: Scatter) -> Self {
        self.series(Series::Scatter(scatter))
    }

    /// Adds bars.
    #[must_use]
    pub fn bars(self, bars: Bars) -> Self {
        self.series(Series::Bars(bars))
    }

    /// Adds a heat map.
    #[must_use]
    pub fn heatmap(self, heatmap: Heatmap) -> Self {
        self.series(Series::Heatmap(heatmap))
    }

    /// Adds a series of any kind.
    #[must_use]
    pub fn series(mut self, series: Series) -> Self {
        self.series.push(series);
        self
    }

    /// A horizontal line at `y`, with a label beside it (empty for none).
    #[must_use]
    pub fn hline(mut self, y: f64, label: impl Into<String>) -> Self {
        self.rules.push(Rule { horizontal: true, at: y, label: label.into() });
        self
    }

    /// A vertical line at `x`, with a label beside it (empty for none).
    #[must_use]
    pub fn vline(mut self, x: f64, label: impl Into<String>) -> Self {
        self.rules.push(Rule { horizontal: false, at: x, label: label.into() });
        self
    }

    /// Text at the point `(x, y)`.
    #[must_use]
    pub fn text(mut self, x: f64, y: f64, text: impl Into<String>) -> Self {
        self.notes.push(Note { x, y, text: text.into() });
        self
    }
}
