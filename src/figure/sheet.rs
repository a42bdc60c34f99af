//! The sheet: where everything of a figure is, in pixels. The static and the interactive form are drawn from the same
//! one, so that they agree, and what fits in one fits in the other.

use std::collections::BTreeMap;

use super::axis::{self, Plan, TICK};
use super::panel::{Color, Dash, Heatmap, Panel, Series};
use super::text::{shorten, width, wrap};
use super::{ControlKind, Figure};

/// Size of a figure's title.
const TITLE: f64 = 16.0;
/// Size of a panel's title.
const PANEL: f64 = 13.0;
/// Size of axis titles, the legend and the caption.
pub(super) const TEXT: f64 = 12.0;
/// Size of the claims.
const CLAIM: f64 = 12.0;
/// Size of a label at a line across a panel, and of a text in one.
pub(super) const LABEL: f64 = 11.0;
/// Distance between lines of text, relative to their size.
pub(super) const LEADING: f64 = 1.35;
/// Empty space around everything.
pub(super) const MARGIN: f64 = 16.0;
/// Space between neighbouring panels.
const GAP: f64 = 22.0;

/// Dark text.
pub(super) const DARK: &str = "#222222";
/// Text that is second in rank.
pub(super) const PALE: &str = "#666666";
/// A claim that holds.
pub(super) const HOLDS: &str = "#00795a";
/// A claim that does not.
pub(super) const FAILS: &str = "#b3261e";

/// A rectangle, from its upper left corner.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rect {
    pub x: f64,
    pub y: f64,
    pub w: f64,
    pub h: f64,
}

impl Rect {
    pub fn right(&self) -> f64 {
        self.x + self.w
    }

    pub fn bottom(&self) -> f64 {
        self.y + self.h
    }

    fn holds(&self, (x, y): (f64, f64)) -> bool {
        (self.x..=self.right()).contains(&x) && (self.y..=self.bottom()).contains(&y)
    }

    fn meets(&self, other: &Rect) -> bool {
        self.x < other.right() && other.x < self.right() && self.y < other.bottom() && other.y < self.bottom()
    }
}

/// Which point of a text its position is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// A line of text; `y` is its baseline.
#[derive(Clone, Debug)]
pub(super) struct Text {
    pub x: f64,
    pub y: f64,
    pub text: String,
    pub size: f64,
    pub bold: bool,
    pub anchor: Anchor,
    pub color: &'static str,
}

/// How a series looks in the legend.
#[derive(Clone, Debug)]
pub(super) enum Look {
    Line { dash: Dash, width: f64, markers: bool, band: bool },
    Dot,
    Square,
}

/// An entry of the legend; `x`, `y` are the left end and the middle of its mark.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub x: f64,
    pub y: f64,
    pub name: String,
    pub color: Color,
    pub look: Look,
}

/// The bar that explains a heat map's colours.
#[derive(Clone, Debug)]
pub(super) struct ColorBar {
    pub bar: Rect,
    pub ticks: Vec<(f64, String)>,
}

/// The label of a line across a panel, or a text in it.
#[derive(Clone, Debug)]
pub(super) struct Tag {
    /// The box it fills.
    pub at: Rect,
    pub text: String,
    /// The point it belongs to, on the axes; `None` along a line across the panel.
    pub values: (Option<f64>, Option<f64>),
}

/// A panel with its place.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// The area inside the axes.
    pub plot: Rect,
    pub x: Plan,
    pub y: Plan,
    /// The names on the two axes, if they are names.
    pub names: (Vec<String>, Vec<String>),
    pub x_title: Vec<String>,
    pub y_title: Vec<String>,
    /// Baseline of the first line of the horizontal axis' title.
    pub x_title_y: f64,
    /// Baseline of the first line of the vertical axis' title, which is read from below.
    pub y_title_x: f64,
    /// Ends of a heat map's colours.
    pub colors: Option<(f64, f64)>,
    pub bar: Option<ColorBar>,
}

impl Place {
    /// Pixels of a point.
    pub fn point(&self, x: f64, y: f64) -> (f64, f64) {
        (self.plot.x + self.x.place(x) * self.plot.w, self.plot.bottom() - self.y.place(y) * self.plot.h)
    }

    /// Pixels that lines and points cover, a few pixels apart.
    fn drawn(&self, panel: &Panel) -> Vec<(f64, f64)> {
        let mut drawn = Vec::new();
        for series in &panel.series {
            let (x, y, joined) = match series {
                Series::Line(s) => (&s.x, &s.y, true),
                Series::Scatter(s) => (&s.x, &s.y, false),
                Series::Bars(_) | Series::Heatmap(_) => continue,
            };
            let mut last: Option<(f64, f64)> = None;
            // Of a very long line, a part is enough to know where it is.
            for (x, y) in x.iter().zip(y).step_by(x.len().div_ceil(2000)) {
                let point = self.point(*x, *y);
                if !point.0.is_finite() || !point.1.is_finite() {
                    last = None;
                    continue;
                }
                if let Some(from) = last.filter(|_| joined) {
                    let steps = ((point.0 - from.0).hypot(point.1 - from.1) / 4.0).clamp(0.0, 200.0) as usize;
                    let part = |i: usize| i as f64 / (steps + 1) as f64;
                    let between = |t: f64| (from.0 + t * (point.0 - from.0), from.1 + t * (point.1 - from.1));
                    drawn.extend((1..=steps).map(|i| between(part(i))));
                }
                drawn.push(point);
                last = Some(point);
            }
        }
        drawn
    }

    /// Labels and texts of `panel`, moved so that they stay inside and apart: the rules' first, then the notes'.
    pub fn tags(&self, panel: &Panel) -> Vec<Tag> {
        if panel.rules.iter().all(|r| r.label.is_empty()) && panel.notes.is_empty() {
            return Vec::new();
        }
        let drawn = self.drawn(panel);
        let mut taken: Vec<Rect> = Vec::new();
        let mut tags = Vec::new();
        let inside = |r: Rect| Rect {
            x: r.x.min(self.plot.right() - r.w - 2.0).max(self.plot.x + 2.0),
            y: r.y.min(self.plot.bottom() - r.h - 1.0).max(self.plot.y + 1.0),
            ..r
        };
        let mut put = |text: String, values: (Option<f64>, Option<f64>), wanted: Vec<Rect>| {
            let moved: Vec<Rect> = wanted.iter().copied().map(inside).collect();
            // Of the places that are free of other texts, the one with the least drawn under it. One that had to be moved
            // to stay inside may lie on its own line, so it counts as covering something.
            let cost = |(r, w): &(&Rect, &Rect)| {
                let away = ((r.x - w.x).abs() + (r.y - w.y).abs()).round() as usize;
                drawn.iter().filter(|p| r.holds(**p)).count() + 10 * away
            };
            let open = moved.iter().zip(&wanted).filter(|(r, _)| !taken.iter().any(|t| t.meets(r)));
            let free = open.min_by_key(cost).map(|(r, _)| *r);
            // Where every wanted place is taken, the first free one below or above it.
            let shifted = || {
                let first = *moved.first()?;
                (1..40)
                    .flat_map(|i| [f64::from(i), -f64::from(i)])
                    .map(|i| inside(Rect { y: first.y + i * first.h, ..first }))
                    .find(|r| !taken.iter().any(|t| t.meets(r)))
            };
            if let Some(at) = free.or_else(shifted) {
                taken.push(at);
                tags.push(Tag { at, text, values });
            }
        };
        let seen = |plan: &Plan, v: f64| (-1e-9..=1.0 + 1e-9).contains(&plan.place(v));
        let h = LABEL * 1.3;
        let fitting = |text: &str| {
            let text = shorten(text, LABEL, self.plot.w - 10.0);
            let w = width(&text, LABEL, false) + 4.0;
            (text, w)
        };
        for rule in panel.rules.iter().filter(|r| !r.label.is_empty()) {
            let (text, w) = fitting(&rule.label);
            let (px, py) = self.point(rule.at, rule.at);
            let place = |x, y| Rect { x, y, w, h };
            if rule.horizontal && seen(&self.y, rule.at) {
                let (left, right) = (self.plot.x + 3.0, self.plot.right() - w - 3.0);
                let (above, below) = (py - h - 1.0, py + 1.0);
                let wanted = vec![place(right, above), place(right, below), place(left, above), place(left, below)];
                put(text, (None, Some(rule.at)), wanted);
            } else if !rule.horizontal && seen(&self.x, rule.at) {
                let (top, low) = (self.plot.y + 2.0, self.plot.bottom() - h - 2.0);
                let (after, before) = (px + 3.0, px - w - 3.0);
                let wanted = vec![place(after, top), place(before, top), place(after, low), place(before, low)];
                put(text, (Some(rule.at), None), wanted);
            }
        }
        for note in panel.notes.iter().filter(|n| seen(&self.x, n.x) && seen(&self.y, n.y)) {
            let (text, w) = fitting(&note.text);
            let (px, py) = self.point(note.x, note.y);
            let place = |y| Rect { x: px - w / 2.0, y, w, h };
            let wanted = vec![place(py - h / 2.0), place(py - h * 1.3), place(py + h * 0.3)];
            put(text, (Some(note.x), Some(note.y)), wanted);
        }
        tags
    }
}

/// A figure with the place of everything in it.
#[derive(Clone, Debug)]
pub(super) struct Sheet {
    pub width: f64,
    pub height: f64,
    /// Titles, caption, claims.
    pub texts: Vec<Text>,
    pub legend: Vec<Entry>,
    /// The legend's upper left corner.
    pub legend_at: (f64, f64),
    pub places: Vec<Place>,
    /// Where the slider or the buttons go.
    pub control: Option<Rect>,
    /// Middle of each claim's mark, and whether it holds.
    pub verdicts: Vec<(f64, f64, bool)>,
    /// Heights of the thin lines between claims.
    pub lines: Vec<f64>,
    /// The colour of each series name.
    pub colors: BTreeMap<String, Color>,
}

/// The panels that each place of the figure shows: one, or one a frame.
pub(super) fn states(figure: &Figure) -> Vec<Vec<&Panel>> {
    let mut states: Vec<Vec<&Panel>> = figure.panels.iter().map(|p| vec![p]).collect();
    if let Some(control) = &figure.control {
        let count = control.frames.first().map_or(0, |f| f.panels.len());
        states.extend((0..count).map(|i| control.frames.iter().filter_map(|f| f.panels.get(i)).collect()));
    }
    states
}

/// The panel that a place shows at `frame`.
pub(super) fn state<'a>(states: &[&'a Panel], frame: usize) -> Option<&'a Panel> {
    states.get(frame).or_else(|| states.first()).copied()
}

/// A colour for each series name: the one some series of that name was given, else the palette's next.
fn colors(states: &[Vec<&Panel>]) -> BTreeMap<String, Color> {
    let series = || states.iter().flatten().flat_map(|p| &p.series).filter(|s| !matches!(s, Series::Heatmap(_)));
    let own = |s: &Series| match s {
        Series::Line(s) => s.color,
        Series::Scatter(s) => s.color,
        Series::Bars(s) => s.color,
        Series::Heatmap(_) => None,
    };
    let mut colors: BTreeMap<String, Color> = BTreeMap::new();
    for s in series() {
        if let Some(color) = own(s) {
            colors.entry(s.name().to_owned()).or_insert(color);
        }
    }
    let mut free: Vec<Color> = Color::PALETTE.into_iter().filter(|c| !colors.values().any(|used| used == c)).collect();
    if free.is_empty() {
        free = Color::PALETTE.to_vec();
    }
    let mut next = free.iter().cycle();
    for s in series() {
        if !colors.contains_key(s.name()) {
            colors.insert(s.name().to_owned(), next.next().copied().unwrap_or(Color::BLUE));
        }
    }
    colors
}

/// The colour of a series that may name its own.
pub(super) fn color_of(own: Option<Color>, name: &str, colors: &BTreeMap<String, Color>) -> Color {
    own.or_else(|| colors.get(name).copied()).unwrap_or(Color::BLUE)
}

fn legend(states: &[Vec<&Panel>], colors: &BTreeMap<String, Color>) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    for series in states.iter().filter_map(|s| s.first()).flat_map(|p| &p.series) {
        let (listed, look, own) = match series {
            Series::Line(s) => {
                let look = Look::Line { dash: s.dash, width: s.width, markers: s.markers, band: s.band.is_some() };
                (s.legend, look, s.color)
            }
            Series::Scatter(s) => (s.legend, Look::Dot, s.color),
            Series::Bars(s) => (s.legend, Look::Square, s.color),
            Series::Heatmap(_) => continue,
        };
        let name = series.name();
        if listed && !name.is_empty() && !entries.iter().any(|e| e.name == name) {
            let color = color_of(own, name, colors);
            entries.push(Entry { x: 0.0, y: 0.0, name: name.to_owned(), color, look });
        }
    }
    entries
}

/// The heat map of a panel.
pub(super) fn heatmap(panel: &Panel) -> Option<&Heatmap> {
    panel.series.iter().find_map(|s| match s {
        Series::Heatmap(map) => Some(map),
        _ => None,
    })
}

/// The ends of the colours over all states.
fn color_ends(states: &[&Panel]) -> Option<(f64, f64)> {
    let maps = || states.iter().filter_map(|p| heatmap(p));
    let first = maps().next()?;
    let given = maps().filter_map(|m| m.range);
    if let Some(ends) = given.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1))) {
        return Some(ends);
    }
    let values = || maps().flat_map(|m| &m.z).copied().filter(|v| v.is_finite());
    let (low, high) = (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max));
    if first.diverging {
        let far = low.abs().max(high.abs());
        let far = if far > 0.0 { far } else { 1.0 };
        return Some((-far, far));
    }
    if high - low > 1e-12 * high.abs().max(low.abs()) { Some((low, high)) } else { Some((low - 0.5, high + 0.5)) }
}

/// What a panel needs around its plot.
struct Needs {
    left: f64,
    right: f64,
    bottom: f64,
    title: Vec<String>,
    x_title: Vec<String>,
    y_title: Vec<String>,
}

/// A panel while its place is being found.
struct Draft<'a> {
    states: &'a [&'a Panel],
    panel: &'a Panel,
    names: (Vec<String>, Vec<String>),
    x_ends: (f64, f64),
    y_ends: (f64, f64),
    colors: Option<(f64, f64)>,
}

impl<'a> Draft<'a> {
    fn new(states: &'a [&'a Panel], panel: &'a Panel) -> Self {
        Draft {
            names: axis::names(states),
            x_ends: axis::ends(states, true),
            y_ends: axis::ends(states, false),
            colors: color_ends(states),
            states,
            panel,
        }
    }

    fn x_plan(&self, w: f64) -> Plan {
        match self.names.0.is_empty() {
            true => axis::plan(&self.panel.x, self.x_ends, w, true),
            false => axis::plan_names(&self.names.0, w, true, false),
        }
    }

    fn y_plan(&self, h: f64) -> Plan {
        match self.names.1.is_empty() {
            true => axis::plan(&self.panel.y, self.y_ends, h, false),
            false => axis::plan_names(&self.names.1, h, false, self.colors.is_some()),
        }
    }

    fn bar_ticks(&self, h: f64) -> Vec<(f64, String)> {
        let most = move |_: &[(f64, String)]| ((h / 24.0) as usize).clamp(2, 5);
        self.colors.map_or(Vec::new(), |(low, high)| axis::linear_ticks(low, high, &most))
    }

    /// What is needed around a plot of about `w` by `h` in a cell `cell` wide.
    fn needs(&self, cell: f64, w: f64, h: f64) -> Needs {
        let y = self.y_plan(h);
        let y_title = wrap(&self.panel.y.title, TEXT, false, h.max(60.0));
        let x = self.x_plan(w);
        let slant = if x.slanted { x.widest() * 0.71 } else { 0.0 };
        let titles = if y_title.is_empty() { 0.0 } else { y_title.len() as f64 * TEXT * LEADING + 4.0 };
        // The first label below the axis may reach further left than those beside it, the last further right.
        let first = x.ticks.first().map_or(0.0, |(v, l)| {
            let reach = if x.slanted { width(l, TICK, false) * 0.71 } else { width(l, TICK, false) / 2.0 };
            reach - x.place(*v) * w
        });
        let last = x
            .ticks
            .last()
            .map_or(0.0, |(v, l)| if x.slanted { 0.0 } else { width(l, TICK, false) / 2.0 - (1.0 - x.place(*v)) * w });
        let bar = self.bar_ticks(h).iter().map(|(_, l)| width(l, TICK - 1.0, false)).fold(0.0, f64::max);
        let bar = if self.colors.is_some() { 10.0 + 12.0 + 5.0 + bar } else { 0.0 };
        let left = (y.widest() + 8.0 + titles).max(first);
        let right = last.max(2.0).max(bar);
        let x_title = wrap(&self.panel.x.title, TEXT, false, w.max(80.0));
        let labels = if x.slanted { slant + TICK } else { TICK * LEADING } + 6.0;
        Needs {
            left,
            right,
            bottom: labels + x_title.len() as f64 * TEXT * LEADING + if x_title.is_empty() { 0.0 } else { 4.0 },
            title: wrap(&self.panel.title, PANEL, true, (cell - left).max(60.0)),
            x_title,
            y_title,
        }
    }
}

/// Lays a figure out. `frame` is the frame shown; `interactive` leaves room for a slider or buttons, and otherwise a
/// line says which frame is shown.
pub(super) fn sheet(figure: &Figure, frame: usize, interactive: bool) -> Sheet {
    let states = states(figure);
    let colors = colors(&states);
    let columns = figure.columns.unwrap_or(match states.len() {
        0..=4 => states.len(),
        5 | 6 | 9 => 3,
        _ => 4,
    });
    let columns = columns.clamp(1, states.len().max(1));
    let total = match columns {
        1 => 620.0,
        2 => 800.0,
        3 => 940.0,
        4 => 1040.0,
        n => (n as f64 * 210.0).min(2400.0),
    };
    let mut sheet = Sheet {
        width: total,
        height: 0.0,
        texts: Vec::new(),
        legend: legend(&states, &colors),
        legend_at: (MARGIN, 0.0),
        places: Vec::new(),
        control: None,
        verdicts: Vec::new(),
        lines: Vec::new(),
        colors,
    };
    let inner = total - 2.0 * MARGIN;
    let mut y = MARGIN - 4.0;
    for line in wrap(&figure.title, TITLE, true, inner) {
        y += TITLE * LEADING;
        sheet.texts.push(text(MARGIN, y, line, TITLE, true, Anchor::Start, DARK));
    }
    if !figure.title.trim().is_empty() {
        y += 8.0;
    }
    if interactive && figure.control.as_ref().is_some_and(|c| c.kind == ControlKind::Buttons) {
        sheet.control = Some(Rect { x: MARGIN, y: y + 4.0, w: inner, h: 34.0 });
        y += 46.0;
    }
    y = sheet.place_legend(y, inner);
    y = sheet.place_panels(&states, frame, columns, y, interactive);
    if let Some(control) = &figure.control {
        if !interactive {
            let shown = control.frames.get(frame).map_or("", |f| f.label.as_str());
            let line = format!(
                "Shown: {} = {shown} (frame {} of {}; the interactive figure has them all)",
                control.name,
                frame + 1,
                control.frames.len()
            );
            y = sheet.paragraph(&line, y + 4.0, inner, PALE) + 2.0;
        } else if control.kind == ControlKind::Slider {
            sheet.control = Some(Rect { x: MARGIN, y, w: inner, h: 84.0 });
            y += 98.0;
        }
    }
    y = sheet.paragraph(&figure.caption, y, inner, DARK);
    y = sheet.place_claims(figure, y, inner);
    sheet.height = (y + MARGIN).ceil();
    sheet
}

fn text(x: f64, y: f64, text: String, size: f64, bold: bool, anchor: Anchor, color: &'static str) -> Text {
    Text { x, y, text, size, bold, anchor, color }
}

impl Sheet {
    /// The legend below `top`; returns where it ends.
    fn place_legend(&mut self, top: f64, inner: f64) -> f64 {
        if self.legend.is_empty() {
            return top;
        }
        let widths: Vec<f64> = self.legend.iter().map(|e| 36.0 + width(&e.name, TEXT, false) + 20.0).collect();
        let one_row = widths.iter().sum::<f64>() <= inner;
        let widest = widths.iter().copied().fold(0.0, f64::max);
        let columns = if one_row { widths.len() } else { ((inner / widest).floor() as usize).max(1) };
        let mut x = MARGIN;
        let mut y = top + 10.0;
        for (i, entry) in self.legend.iter_mut().enumerate() {
            if i > 0 && i % columns == 0 {
                x = MARGIN;
                y += 19.0;
            }
            (entry.x, entry.y) = (x, y);
            entry.name = shorten(&entry.name, TEXT, inner - 60.0);
            x += if one_row { widths[i] } else { widest };
        }
        self.legend_at = (MARGIN, top);
        y + 16.0
    }

    /// The panels in rows of `columns` below `top`; returns where they end.
    fn place_panels(
        &mut self,
        states: &[Vec<&Panel>],
        frame: usize,
        columns: usize,
        top: f64,
        interactive: bool,
    ) -> f64 {
        let inner = self.width - 2.0 * MARGIN;
        let cell = (inner - (columns as f64 - 1.0) * GAP) / columns as f64;
        let nominal = (cell * 0.64).clamp(150.0, 330.0);
        let drafts: Vec<Draft> =
            states.iter().filter_map(|s| state(s, frame).map(|p| Draft::new(s.as_slice(), p))).collect();
        // Two rounds: the room for labels depends on the plot's size, and that on the room for labels.
        let mut sizes: Vec<(f64, f64)> = vec![((cell - 60.0).max(60.0), nominal); drafts.len()];
        let mut needs: Vec<Needs> = Vec::new();
        for _ in 0..3 {
            needs = drafts.iter().zip(&sizes).map(|(d, &(w, h))| d.needs(cell, w, h)).collect();
            for column in 0..columns {
                let left = needs.iter().skip(column).step_by(columns).map(|n| n.left).fold(0.0, f64::max);
                let right = needs.iter().skip(column).step_by(columns).map(|n| n.right).fold(0.0, f64::max);
                for n in needs.iter_mut().skip(column).step_by(columns) {
                    (n.left, n.right) = (left, right);
                }
            }
            for ((size, draft), need) in sizes.iter_mut().zip(&drafts).zip(&needs) {
                let w = (cell - need.left - need.right).max(40.0);
                *size = match draft.states.first().and_then(|p| heatmap(p)) {
                    Some(map) => {
                        let shape = map.rows as f64 / map.columns as f64;
                        (w, if (0.3..=3.0).contains(&shape) { (w * shape).clamp(50.0, 420.0) } else { nominal })
                    }
                    None => (w, nominal),
                };
            }
        }
        // Matrices of one shape in a row have one size.
        for row in (0..drafts.len()).step_by(columns) {
            let shape = |i: usize| drafts[i].states.first().and_then(|p| heatmap(p)).map(|m| (m.rows, m.columns));
            let of_row = row..(row + columns).min(drafts.len());
            for i in of_row.clone().filter(|i| shape(*i).is_some()) {
                let alike = of_row.clone().filter(|j| shape(*j) == shape(i)).map(|j| sizes[j]);
                sizes[i] = alike.fold(sizes[i], |least, size| (least.0.min(size.0), least.1.min(size.1)));
            }
        }
        let mut y = top;
        for row in 0..drafts.len().div_ceil(columns) {
            let of_row = row * columns..((row + 1) * columns).min(drafts.len());
            let titles = needs[of_row.clone()].iter().map(|n| n.title.len()).max().unwrap_or(0) as f64;
            let plot_y = y + titles * PANEL * LEADING + if titles > 0.0 { 6.0 } else { 2.0 };
            let height = of_row.clone().map(|i| sizes[i].1).fold(0.0, f64::max);
            let mut bottom: f64 = 0.0;
            for i in of_row {
                let (need, draft) = (&needs[i], &drafts[i]);
                let x = MARGIN + (i % columns) as f64 * (cell + GAP) + need.left;
                let (w, h) = sizes[i];
                let is_map = draft.colors.is_some();
                // A matrix keeps its shape in a row with higher panels; curves share the row's height.
                let plot = Rect { x, y: plot_y, w, h: if is_map { h } else { height } };
                for (k, line) in need.title.iter().enumerate() {
                    let base = plot_y - 8.0 - (need.title.len() - 1 - k) as f64 * PANEL * LEADING;
                    self.texts.push(text(x, base, line.clone(), PANEL, true, Anchor::Start, DARK));
                }
                let x_plan = draft.x_plan(plot.w);
                let labels = if x_plan.slanted { x_plan.widest() * 0.71 + TICK } else { TICK * LEADING } + 6.0;
                let y_plan = draft.y_plan(plot.h);
                let bar = is_map.then(|| ColorBar {
                    bar: Rect { x: plot.right() + 10.0, y: plot.y, w: 12.0, h: plot.h },
                    ticks: draft.bar_ticks(plot.h),
                });
                bottom = bottom.max(plot.bottom() + need.bottom);
                self.places.push(Place {
                    plot,
                    x_title_y: plot.bottom() + labels + TEXT + 2.0,
                    y_title_x: x - 12.0 - y_plan.widest() - (need.y_title.len().max(1) - 1) as f64 * TEXT * LEADING,
                    x: x_plan,
                    y: y_plan,
                    names: draft.names.clone(),
                    x_title: need.x_title.clone(),
                    y_title: need.y_title.clone(),
                    colors: draft.colors,
                    bar,
                });
            }
            // Plotly puts an axis' title a little lower.
            y = bottom + if interactive { 20.0 } else { 12.0 };
        }
        y
    }

    /// Wrapped text below `top`; returns where it ends.
    fn paragraph(&mut self, words: &str, top: f64, inner: f64, color: &'static str) -> f64 {
        let mut y = top;
        for line in wrap(words, TEXT, false, inner) {
            y += TEXT * LEADING;
            self.texts.push(text(MARGIN, y, line, TEXT, false, Anchor::Start, color));
        }
        if y > top { y + 6.0 } else { y }
    }

    /// The claims as a table below `top`; returns where it ends.
    fn place_claims(&mut self, figure: &Figure, top: f64, inner: f64) -> f64 {
        if figure.claims.is_empty() {
            return top;
        }
        let rows: Vec<(String, String, String, bool)> =
            figure.claims.iter().map(|c| (c.statement.clone(), c.measured_text(), c.bound_text(), c.holds())).collect();
        let column = |cells: &mut dyn Iterator<Item = &String>, head: &str| {
            cells.map(|c| width(c, CLAIM, false)).fold(width(head, CLAIM, true), f64::max) + 22.0
        };
        let measured = column(&mut rows.iter().map(|r| &r.1), "measured");
        let bound = column(&mut rows.iter().map(|r| &r.2), "required");
        let (from, to) = (MARGIN + 22.0, MARGIN + inner);
        let statement = (to - from - measured - bound).max(140.0);
        let mut y = top + 10.0 + CLAIM;
        let heads = [
            (from, figure.claims.summary(), Anchor::Start),
            (to - bound, "measured".into(), Anchor::End),
            (to, "required".into(), Anchor::End),
        ];
        for (x, head, anchor) in heads {
            self.texts.push(text(x, y, head, CLAIM, true, anchor, DARK));
        }
        y += 6.0;
        for (words, value, limit, holds) in rows {
            self.lines.push(y);
            y += CLAIM + 5.0;
            self.verdicts.push((MARGIN + 8.0, y - CLAIM * 0.36, holds));
            let color = if holds { DARK } else { FAILS };
            self.texts.push(text(to - bound, y, value, CLAIM, false, Anchor::End, color));
            self.texts.push(text(to, y, limit, CLAIM, false, Anchor::End, DARK));
            for (k, line) in wrap(&words, CLAIM, false, statement).into_iter().enumerate() {
                y += if k > 0 { CLAIM * LEADING } else { 0.0 };
                self.texts.push(text(from, y, line, CLAIM, false, Anchor::Start, DARK));
            }
            y += 5.0;
        }
        y
    }
}
