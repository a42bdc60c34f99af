//! The static form: a self-contained SVG, written without a browser and the same byte for byte for the same figure.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::Figure;
use super::axis::TICK;
use super::panel::{Band, Bars, Color, Dash, Heatmap, Line, Panel, Scatter, Series};
use super::sheet::{
    self, Anchor, DARK, Entry, FAILS, HOLDS, LABEL, LEADING, Look, PALE, Place, Rect, Sheet, TEXT, Text, color_of,
};
use super::text::{Level, SCRIPT, escape, html, parts, plain, width};

/// Fonts that are as wide as, or narrower than, what text was measured with.
const FONTS: &str = "'DejaVu Sans', Verdana, Helvetica, Arial, 'Liberation Sans', sans-serif";

/// The most points that the lines of a figure have together before they are thinned further.
const POINTS: usize = 7000;

/// A cell without a value.
const MISSING: Color = Color(217, 217, 217);

/// The most cells a heat map shows along an axis; beyond it, neighbours are averaged.
const CELLS: usize = 100;

/// See [`Figure::to_svg`]. `frame` is the frame shown.
pub(super) fn render(figure: &Figure, frame: usize) -> String {
    let sheet = sheet::sheet(figure, frame, false);
    let states = sheet::states(figure);
    let shown: Vec<&Panel> = states.iter().filter_map(|s| sheet::state(s, frame)).collect();
    let mut svg = Svg { out: String::new(), id: identifier(&figure.id), colors: &sheet.colors, step: 1.0 };
    svg.step = svg.thinning(&shown, &sheet);
    svg.open(figure, &sheet);
    for (i, (panel, place)) in shown.iter().zip(&sheet.places).enumerate() {
        svg.panel(panel, place, i);
    }
    for entry in &sheet.legend {
        svg.entry(entry);
    }
    for text in &sheet.texts {
        svg.text(text);
    }
    for y in &sheet.lines {
        let (from, to) = (n(sheet::MARGIN), n(sheet.width - sheet::MARGIN));
        svg.put(format_args!("<path d=\"M{from} {y}H{to}\" stroke=\"#dddddd\"/>", y = n(*y)));
    }
    for &(x, y, holds) in &sheet.verdicts {
        svg.verdict(x, y, holds);
    }
    svg.out + "</svg>\n"
}

/// What of an id can be part of an XML id.
fn identifier(id: &str) -> String {
    id.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
}

/// A coordinate: two decimals are a hundredth of a pixel.
fn n(v: f64) -> String {
    let text = format!("{v:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

/// Colours of a heat map from its low to its high end.
pub(super) fn stops(diverging: bool) -> &'static [(f64, Color)] {
    const DIVERGING: [(f64, Color); 7] = [
        (0.0, Color(33, 80, 150)),
        (0.2, Color(88, 146, 199)),
        (0.4, Color(195, 219, 236)),
        (0.5, Color(250, 250, 250)),
        (0.6, Color(250, 208, 186)),
        (0.8, Color(222, 119, 88)),
        (1.0, Color(160, 28, 40)),
    ];
    const SEQUENTIAL: [(f64, Color); 5] = [
        (0.0, Color(247, 251, 255)),
        (0.25, Color(198, 219, 239)),
        (0.5, Color(107, 174, 214)),
        (0.75, Color(33, 113, 181)),
        (1.0, Color(8, 48, 107)),
    ];
    if diverging { &DIVERGING } else { &SEQUENTIAL }
}

/// The colour of `v` between the two ends.
pub(super) fn shade(v: f64, (low, high): (f64, f64), diverging: bool) -> Color {
    let t = ((v - low) / (high - low)).clamp(0.0, 1.0);
    let stops = stops(diverging);
    let i = stops.iter().rposition(|(at, _)| *at <= t).unwrap_or(0).min(stops.len() - 2);
    let ((a, from), (b, to)) = (stops[i], stops[i + 1]);
    let mix = |x: u8, y: u8| (f64::from(x) + (f64::from(y) - f64::from(x)) * (t - a) / (b - a)).round() as u8;
    Color(mix(from.0, to.0), mix(from.1, to.1), mix(from.2, to.2))
}

/// Whether white text is easier to read on `color` than dark text, by relative luminance.
pub(super) fn wants_white(color: Color) -> bool {
    let linear = |c: u8| {
        let c = f64::from(c) / 255.0;
        if c <= 0.04045 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) }
    };
    let luminance = 0.2126 * linear(color.0) + 0.7152 * linear(color.1) + 0.0722 * linear(color.2);
    // The text's own luminance (#222) is 0.016.
    1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.066
}

/// The size of the numbers in cells of `w` by `h` pixels, or `None` where they would be too small to read.
pub(super) fn number_size(map: &Heatmap, w: f64, h: f64) -> Option<f64> {
    let decimals = map.decimals?;
    let widest = map.z.iter().map(|v| width(&cell_text(*v, decimals), 1.0, false)).fold(0.1, f64::max);
    let size = (0.88 * w / widest).min(0.6 * h).min(12.0);
    (size >= 6.0).then_some(size)
}

/// The number in a cell.
pub(super) fn cell_text(v: f64, decimals: usize) -> String {
    if v.is_nan() {
        return String::new();
    }
    let text = format!("{v:.decimals$}");
    // A rounded-off negative number is plain zero.
    let zero = text.trim_start_matches('-').chars().all(|c| matches!(c, '0' | '.'));
    super::text::minus(if zero { text.trim_start_matches('-') } else { &text })
}

/// Dash pattern as SVG wants it.
fn dashes(dash: Dash, width: f64) -> String {
    match dash {
        Dash::Solid => String::new(),
        Dash::Dashed => format!(" stroke-dasharray=\"{} {}\"", n(width * 3.6), n(width * 2.2)),
        Dash::Dotted => format!(" stroke-dasharray=\"{} {}\"", n(width * 0.9), n(width * 1.7)),
    }
}

struct Svg<'a> {
    out: String,
    /// Prefix of ids, so that several figures can share a page.
    id: String,
    colors: &'a BTreeMap<String, Color>,
    /// Lines keep at most four points in so many pixels.
    step: f64,
}

impl Svg<'_> {
    fn put(&mut self, what: std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = self.out.write_fmt(what);
        self.out.push('\n');
    }

    fn open(&mut self, figure: &Figure, sheet: &Sheet) {
        let (w, h) = (n(sheet.width), n(sheet.height));
        self.put(format_args!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{w}\" height=\"{h}\" viewBox=\"0 0 {w} {h}\" \
             role=\"img\" font-family=\"{FONTS}\">"
        ));
        self.put(format_args!("<title>{}</title>", escape(&plain(&figure.title))));
        if !figure.caption.is_empty() {
            self.put(format_args!("<desc>{}</desc>", escape(&plain(&figure.caption))));
        }
        self.put(format_args!("<rect width=\"{w}\" height=\"{h}\" fill=\"#ffffff\"/>"));
    }

    fn text(&mut self, t: &Text) {
        let anchor = match t.anchor {
            Anchor::Start => "",
            Anchor::Middle => " text-anchor=\"middle\"",
            Anchor::End => " text-anchor=\"end\"",
        };
        let weight = if t.bold { " font-weight=\"bold\"" } else { "" };
        let body = rich(&t.text, t.size);
        let (x, y, size, color) = (n(t.x), n(t.y), n(t.size), t.color);
        self.put(format_args!(
            "<text x=\"{x}\" y=\"{y}\" font-size=\"{size}\"{weight}{anchor} fill=\"{color}\">{body}</text>"
        ));
    }

    fn label(&mut self, x: f64, y: f64, words: &str, size: f64, anchor: Anchor, color: &'static str) {
        self.text(&Text { x, y, text: words.to_owned(), size, bold: false, anchor, color });
    }

    fn verdict(&mut self, x: f64, y: f64, holds: bool) {
        let (x, y) = (|d: f64| n(x + d), |d: f64| n(y + d));
        let (path, color) = if holds {
            (format!("M{} {}L{} {}L{} {}", x(-4.0), y(0.5), x(-1.0), y(3.5), x(4.5), y(-4.0)), HOLDS)
        } else {
            let (a, b) = (-3.5, 3.5);
            (format!("M{} {}L{} {}M{} {}L{} {}", x(a), y(a), x(b), y(b), x(a), y(b), x(b), y(a)), FAILS)
        };
        let word = if holds { "holds" } else { "does not hold" };
        self.put(format_args!(
            "<path d=\"{path}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"><title>{word}</title></path>"
        ));
    }

    fn entry(&mut self, e: &Entry) {
        let color = e.color.hex();
        let (x, y, middle, end) = (n(e.x), n(e.y), n(e.x + 14.0), n(e.x + 28.0));
        match &e.look {
            Look::Line { dash, width, markers, band } => {
                if *band {
                    let top = n(e.y - 5.0);
                    self.put(format_args!("<rect x=\"{x}\" y=\"{top}\" width=\"28\" height=\"10\" fill=\"{color}\" fill-opacity=\"0.18\"/>"));
                }
                let dash = dashes(*dash, *width);
                self.put(format_args!(
                    "<path d=\"M{x} {y}H{end}\" stroke=\"{color}\" stroke-width=\"{}\"{dash}/>",
                    n(*width)
                ));
                if *markers {
                    self.put(format_args!("<circle cx=\"{middle}\" cy=\"{y}\" r=\"2.8\" fill=\"{color}\"/>"));
                }
            }
            Look::Dot => self.put(format_args!("<circle cx=\"{middle}\" cy=\"{y}\" r=\"3.4\" fill=\"{color}\"/>")),
            Look::Square => {
                let (left, top) = (n(e.x + 8.0), n(e.y - 5.5));
                self.put(format_args!("<rect x=\"{left}\" y=\"{top}\" width=\"12\" height=\"11\" fill=\"{color}\"/>"));
            }
        }
        self.label(e.x + 35.0, e.y + TEXT * 0.36, &e.name, TEXT, Anchor::Start, DARK);
    }

    fn panel(&mut self, panel: &Panel, place: &Place, index: usize) {
        let Rect { x, y, w, h } = place.plot;
        let clip = format!("{}-{index}", self.id);
        self.put(format_args!(
            "<clipPath id=\"{clip}\"><rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"/></clipPath>",
            n(x),
            n(y),
            n(w),
            n(h)
        ));
        let map = sheet::heatmap(panel);
        if map.is_none() {
            self.grid(place);
        }
        self.put(format_args!("<g clip-path=\"url(#{clip})\">"));
        match (map, place.colors) {
            (Some(map), Some(ends)) => self.heatmap(map, place, ends),
            _ => {
                let bars: Vec<&Bars> =
                    panel.series.iter().filter_map(|s| if let Series::Bars(b) = s { Some(b) } else { None }).collect();
                for (i, b) in bars.iter().enumerate() {
                    self.bars(b, place, i, bars.len());
                }
                // Bands lie under every line, or one would hide another's line.
                for series in &panel.series {
                    if let Series::Line(s) = series {
                        self.band(s, place);
                    }
                }
                for series in &panel.series {
                    match series {
                        Series::Line(s) => self.line(s, place),
                        Series::Scatter(s) => self.scatter(s, place),
                        Series::Bars(_) | Series::Heatmap(_) => {}
                    }
                }
            }
        }
        for rule in &panel.rules {
            let (px, py) = place.point(rule.at, rule.at);
            let path = if rule.horizontal {
                format!("M{} {}h{}", n(x), n(py), n(w))
            } else {
                format!("M{} {}v{}", n(px), n(y), n(h))
            };
            self.put(format_args!(
                "<path d=\"{path}\" stroke=\"#555555\" stroke-width=\"1.1\" stroke-dasharray=\"5 3\"/>"
            ));
        }
        for tag in place.tags(panel) {
            let (left, top) = (n(tag.at.x), n(tag.at.y));
            let (w, h) = (n(tag.at.w), n(tag.at.h));
            self.put(format_args!(
                "<rect x=\"{left}\" y=\"{top}\" width=\"{w}\" height=\"{h}\" fill=\"#ffffff\" fill-opacity=\"0.8\"/>"
            ));
            self.label(tag.at.x + tag.at.w / 2.0, tag.at.y + LABEL, &tag.text, LABEL, Anchor::Middle, DARK);
        }
        self.put(format_args!("</g>"));
        self.axes(place, map.is_some());
        if let Some(map) = map {
            self.color_bar(place, map.diverging);
        }
    }

    /// Faint lines at the ticks.
    fn grid(&mut self, place: &Place) {
        let Rect { x, y, w, h } = place.plot;
        let mut paths = [String::new(), String::new()];
        let lines = |path: &mut String, plan: &super::axis::Plan, values: &[f64], horizontal: bool| {
            for &v in values {
                let at = plan.place(v);
                if (-1e-9..=1.0 + 1e-9).contains(&at) {
                    if horizontal {
                        *path += &format!("M{} {}v{}", n(x + at * w), n(y), n(h));
                    } else {
                        *path += &format!("M{} {}h{}", n(x), n(y + h - at * h), n(w));
                    }
                }
            }
        };
        let values = |plan: &super::axis::Plan| plan.ticks.iter().map(|(v, _)| *v).collect::<Vec<f64>>();
        let vertical_lines = place.x.scale != super::Scale::Category;
        if vertical_lines {
            lines(&mut paths[0], &place.x, &place.x.minor, true);
            lines(&mut paths[1], &place.x, &values(&place.x), true);
        }
        lines(&mut paths[0], &place.y, &place.y.minor, false);
        lines(&mut paths[1], &place.y, &values(&place.y), false);
        for (path, color) in paths.iter().zip(["#f3f3f3", "#e4e4e4"]) {
            if !path.is_empty() {
                self.put(format_args!("<path d=\"{path}\" stroke=\"{color}\" stroke-width=\"1\"/>"));
            }
        }
    }

    fn axes(&mut self, place: &Place, map: bool) {
        let Rect { x, y, w, h } = place.plot;
        let mut path = if map {
            format!("M{} {}h{}v{}h{}z", n(x), n(y), n(w), n(h), n(-w))
        } else {
            format!("M{} {}v{}h{}", n(x), n(y), n(h), n(w))
        };
        for (v, _) in place.x.ticks.iter().filter(|_| !map) {
            path += &format!("M{} {}v4", n(x + place.x.place(*v) * w), n(y + h));
        }
        for (v, _) in place.y.ticks.iter().filter(|_| !map) {
            path += &format!("M{} {}h-4", n(x), n(y + h - place.y.place(*v) * h));
        }
        self.put(format_args!("<path d=\"{path}\" fill=\"none\" stroke=\"#444444\" stroke-width=\"1\"/>"));
        for (v, label) in &place.x.ticks {
            let px = x + place.x.place(*v) * w;
            if place.x.slanted {
                let (px, py) = (n(px + 3.0), n(y + h + 13.0));
                let words = rich(label, TICK);
                self.put(format_args!(
                    "<text transform=\"translate({px} {py}) rotate(-45)\" font-size=\"{TICK}\" text-anchor=\"end\" fill=\"{DARK}\">{words}</text>"
                ));
            } else {
                self.label(px, y + h + 6.0 + TICK, label, TICK, Anchor::Middle, DARK);
            }
        }
        for (v, label) in &place.y.ticks {
            let py = y + h - place.y.place(*v) * h;
            self.label(x - 7.0, py + TICK * 0.36, label, TICK, Anchor::End, DARK);
        }
        for (k, line) in place.x_title.iter().enumerate() {
            let py = place.x_title_y + k as f64 * TEXT * LEADING;
            self.label(x + w / 2.0, py, line, TEXT, Anchor::Middle, DARK);
        }
        for (k, line) in place.y_title.iter().enumerate() {
            let px = place.y_title_x + k as f64 * TEXT * LEADING;
            let (px, py) = (n(px), n(y + h / 2.0));
            let words = rich(line, TEXT);
            self.put(format_args!(
                "<text transform=\"translate({px} {py}) rotate(-90)\" font-size=\"{TEXT}\" text-anchor=\"middle\" fill=\"{DARK}\">{words}</text>"
            ));
        }
    }

    fn band(&mut self, line: &Line, place: &Place) {
        let Some(band) = &line.band else { return };
        let color = color_of(line.color, &line.name, self.colors).hex();
        let edges = |v: &[f64]| pixels(place, &line.x, v);
        let mut path = String::new();
        for (low, high) in runs(&edges(&floored(&band.lo, place)), &edges(&floored(&band.hi, place))) {
            let (low, high) = (thin(&low, self.step), thin(&high, self.step));
            polyline(&mut path, high.iter());
            let mut back = String::new();
            polyline(&mut back, low.iter().rev());
            path += &back.replacen('M', "L", 1);
            path.push('z');
        }
        if !path.is_empty() {
            self.put(format_args!("<path d=\"{path}\" fill=\"{color}\" fill-opacity=\"0.18\"/>"));
        }
    }

    fn line(&mut self, line: &Line, place: &Place) {
        let color = color_of(line.color, &line.name, self.colors).hex();
        let points = pixels(place, &line.x, &line.y);
        let mut path = String::new();
        for (run, _) in runs(&points, &points) {
            if run.len() == 1 && !line.markers {
                // A point between two gaps: a stroke of no length with round ends is a dot.
                path += &format!("M{} {}h0", n(run[0].0), n(run[0].1));
            } else {
                polyline(&mut path, thin(&run, self.step).iter());
            }
        }
        let (w, dash) = (n(line.width), dashes(line.dash, line.width));
        let cap = if line.dash == Dash::Solid { " stroke-linecap=\"round\"" } else { "" };
        self.put(format_args!("<path d=\"{path}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"{w}\"{dash}{cap} stroke-linejoin=\"round\"/>"));
        if line.markers {
            self.dots(&points, line.width * 1.6, &color);
        }
    }

    fn dots(&mut self, points: &[(f64, f64)], radius: f64, color: &str) {
        // Dots are strokes of no length with round ends: one short path for all of them. Those that would cover one
        // another exactly are drawn once.
        let mut seen = std::collections::BTreeSet::new();
        let mut path = String::new();
        for (x, y) in points.iter().filter(|(x, y)| x.is_finite() && y.is_finite()) {
            if seen.insert(((x * 2.0).round() as i64, (y * 2.0).round() as i64)) {
                path += &format!("M{} {}h0", n(*x), n(*y));
            }
        }
        let diameter = n(2.0 * radius);
        self.put(format_args!(
            "<path d=\"{path}\" stroke=\"{color}\" stroke-width=\"{diameter}\" stroke-linecap=\"round\"/>"
        ));
    }

    fn errors(&mut self, x: &[f64], error: &Band, place: &Place, color: &str) {
        let (low, high) = (pixels(place, x, &floored(&error.lo, place)), pixels(place, x, &floored(&error.hi, place)));
        let mut path = String::new();
        for ((x, a), (_, b)) in
            low.iter().zip(&high).filter(|(l, h)| l.0.is_finite() && l.1.is_finite() && h.1.is_finite())
        {
            path += &format!("M{} {}V{}M{} {}h6M{} {}h6", n(*x), n(*a), n(*b), n(x - 3.0), n(*a), n(x - 3.0), n(*b));
        }
        self.put(format_args!("<path d=\"{path}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"1.2\"/>"));
    }

    fn scatter(&mut self, s: &Scatter, place: &Place) {
        let color = color_of(s.color, &s.name, self.colors).hex();
        if let Some(error) = &s.error {
            self.errors(&s.x, error, place, &color);
        }
        self.dots(&pixels(place, &s.x, &s.y), s.size / 2.0, &color);
    }

    fn bars(&mut self, bars: &Bars, place: &Place, index: usize, of: usize) {
        let color = color_of(bars.color, &bars.name, self.colors).hex();
        let wide = 0.78 / of as f64;
        let offset = -0.39 + (index as f64 + 0.5) * wide;
        let names: Vec<f64> = bars.labels.iter().map(|l| place_of(l, place)).collect();
        let foot = if place.y.scale == super::Scale::Log { place.plot.bottom() } else { place.point(0.0, 0.0).1 };
        let pixel = place.plot.w / (place.x.high - place.x.low).abs();
        let mut path = String::new();
        let middles: Vec<f64> = names.iter().map(|at| at + offset).collect();
        for (x, y) in pixels(place, &middles, &bars.values).iter().filter(|(x, y)| x.is_finite() && y.is_finite()) {
            let w = wide * pixel * 0.94;
            path += &format!("M{} {}h{}V{}h{}z", n(x - w / 2.0), n(foot), n(w), n(*y), n(-w));
        }
        self.put(format_args!("<path d=\"{path}\" fill=\"{color}\"/>"));
        if let Some(error) = &bars.error {
            self.errors(&middles, error, place, DARK);
        }
        let zero = n(foot);
        if foot < place.plot.bottom() - 0.5 {
            let (from, to) = (n(place.plot.x), n(place.plot.right()));
            self.put(format_args!("<path d=\"M{from} {zero}H{to}\" stroke=\"#444444\" stroke-width=\"1\"/>"));
        }
    }

    fn heatmap(&mut self, map: &Heatmap, place: &Place, ends: (f64, f64)) {
        let small = reduced(map);
        let Rect { x, y, w, h } = place.plot;
        // Cells of one colour are one path, and neighbours of one colour one rectangle. In units of cells all edges are
        // whole numbers, so that neighbours share them exactly.
        let mut paths: BTreeMap<String, String> = BTreeMap::new();
        for (row, cells) in small.z.chunks(small.columns).enumerate() {
            let mut start = 0;
            while start < cells.len() {
                let color = |v: f64| if v.is_nan() { MISSING } else { shade(v, ends, map.diverging) };
                let this = color(cells[start]);
                let run = cells[start..].iter().take_while(|v| color(**v) == this).count();
                paths.entry(this.hex()).or_default().push_str(&format!("M{start} {row}h{run}v1h-{run}z"));
                start += run;
            }
        }
        let scale = format!("{:.5} {:.5}", w / small.columns as f64, h / small.rows as f64);
        self.put(format_args!(
            "<g shape-rendering=\"crispEdges\" transform=\"translate({} {}) scale({scale})\">",
            n(x),
            n(y)
        ));
        for (color, path) in paths {
            self.put(format_args!("<path d=\"{path}\" fill=\"{color}\"/>"));
        }
        self.put(format_args!("</g>"));
        let (w, h) = (place.plot.w / map.columns as f64, place.plot.h / map.rows as f64);
        let (Some(size), Some(decimals)) = (number_size(map, w, h), map.decimals) else { return };
        for (i, v) in map.z.iter().enumerate().filter(|(_, v)| !v.is_nan()) {
            let (row, column) = ((i / map.columns) as f64, (i % map.columns) as f64);
            let color = if wants_white(shade(*v, ends, map.diverging)) { "#ffffff" } else { DARK };
            let (cx, cy) = (x + (column + 0.5) * w, y + (row + 0.5) * h + size * 0.36);
            self.label(cx, cy, &cell_text(*v, decimals), size, Anchor::Middle, color);
        }
    }

    fn color_bar(&mut self, place: &Place, diverging: bool) {
        let (Some(bar), Some((low, high))) = (&place.bar, place.colors) else { return };
        let Rect { x, y, w, h } = bar.bar;
        let id = format!("{}-bar-{}-{}", self.id, n(x).replace('.', "_"), n(y).replace('.', "_"));
        let mut stops_xml = String::new();
        for (at, color) in stops(diverging) {
            stops_xml += &format!("<stop offset=\"{}\" stop-color=\"{}\"/>", n(*at), color.hex());
        }
        self.put(format_args!(
            "<linearGradient id=\"{id}\" x1=\"0\" y1=\"1\" x2=\"0\" y2=\"0\">{stops_xml}</linearGradient>"
        ));
        let (px, py, pw, ph) = (n(x), n(y), n(w), n(h));
        self.put(format_args!("<rect x=\"{px}\" y=\"{py}\" width=\"{pw}\" height=\"{ph}\" fill=\"url(#{id})\" stroke=\"#444444\" stroke-width=\"0.8\"/>"));
        for (v, label) in &bar.ticks {
            let at = y + h - (v - low) / (high - low) * h;
            let (from, at_y) = (n(x + w), n(at));
            self.put(format_args!("<path d=\"M{from} {at_y}h3\" stroke=\"#444444\"/>"));
            self.label(x + w + 5.0, at + (TICK - 1.0) * 0.36, label, TICK - 1.0, Anchor::Start, PALE);
        }
    }

    /// How far lines have to be thinned for all of them together to stay within [`POINTS`].
    fn thinning(&self, panels: &[&Panel], sheet: &Sheet) -> f64 {
        let count = |step: f64| -> usize {
            let of = |panel: &Panel, place: &Place| -> usize {
                let lines = panel.series.iter().filter_map(|s| if let Series::Line(l) = s { Some(l) } else { None });
                lines
                    .map(|line| {
                        let points = pixels(place, &line.x, &line.y);
                        let kept: usize = runs(&points, &points).iter().map(|(run, _)| thin(run, step).len()).sum();
                        kept * if line.band.is_some() { 3 } else { 1 }
                    })
                    .sum()
            };
            panels.iter().zip(&sheet.places).map(|(panel, place)| of(panel, place)).sum()
        };
        [0.5, 1.0, 2.0, 4.0].into_iter().find(|&step| count(step) <= POINTS).unwrap_or(8.0)
    }
}

/// The place of a name on the horizontal axis.
pub(super) fn place_of(name: &str, place: &Place) -> f64 {
    place.names.0.iter().position(|n| n == name).map_or(f64::NAN, |i| i as f64)
}

/// On a log axis, values at or below 0 become the smallest there is: far below the axis, where the panel cuts it off.
pub(super) fn floored(values: &[f64], place: &Place) -> Vec<f64> {
    if place.y.scale != super::Scale::Log {
        return values.to_vec();
    }
    let least = place.y.low.min(place.y.high) * 1e-3;
    values.iter().map(|v| if *v < least { least } else { *v }).collect()
}

/// Points in pixels; NaN where a value is.
fn pixels(place: &Place, x: &[f64], y: &[f64]) -> Vec<(f64, f64)> {
    // Far outside, exact places do not matter, but long numbers would.
    let near = |v: f64| v.clamp(-20_000.0, 20_000.0);
    x.iter().zip(y).map(|(x, y)| place.point(*x, *y)).map(|(x, y)| (near(x), near(y))).collect()
}

type Points = Vec<(f64, f64)>;

/// The stretches in which both lists have numbers.
fn runs(a: &[(f64, f64)], b: &[(f64, f64)]) -> Vec<(Points, Points)> {
    let mut runs: Vec<(Points, Points)> = Vec::new();
    let mut open = false;
    for (p, q) in a.iter().zip(b) {
        if p.0.is_finite() && p.1.is_finite() && q.1.is_finite() {
            if !open {
                runs.push(Default::default());
            }
            if let Some((first, second)) = runs.last_mut() {
                first.push(*p);
                second.push(*q);
            }
            open = true;
        } else {
            open = false;
        }
    }
    runs
}

/// The points that matter for a line drawn `step` pixels fine: in each stretch of `step` pixels the first, the last, the
/// lowest and the highest, and of these none that lies on the line between its neighbours.
fn thin(points: &[(f64, f64)], step: f64) -> Points {
    let forward = points.windows(2).all(|w| w[1].0 >= w[0].0);
    let mut kept: Points = Vec::new();
    if forward && points.len() > 2 {
        let column = |p: &(f64, f64)| (p.0 / step).floor() as i64;
        for group in points.chunk_by(|a, b| column(a) == column(b)) {
            let by_height = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
            let extremes =
                [group.first(), group.iter().min_by(by_height), group.iter().max_by(by_height), group.last()];
            let mut chosen: Points = extremes.into_iter().flatten().copied().collect();
            chosen.sort_by(|a, b| a.0.total_cmp(&b.0));
            chosen.dedup();
            kept.extend(chosen);
        }
    } else {
        kept = points.to_vec();
    }
    straighten(&kept, 0.08 * step.max(0.5))
}

/// Leaves out points that are within `slack` pixels of the line that remains (Douglas and Peucker's way, with a stack).
fn straighten(points: &[(f64, f64)], slack: f64) -> Points {
    if points.len() < 3 {
        return points.to_vec();
    }
    let mut keep = vec![false; points.len()];
    (keep[0], keep[points.len() - 1]) = (true, true);
    let mut open = vec![(0, points.len() - 1)];
    while let Some((a, b)) = open.pop() {
        let (p, q) = (points[a], points[b]);
        let (dx, dy) = (q.0 - p.0, q.1 - p.1);
        let length = dx.hypot(dy);
        let distance = |r: (f64, f64)| {
            if length < 1e-9 {
                (r.0 - p.0).hypot(r.1 - p.1)
            } else {
                // Beyond the segment's ends, the distance is to the end.
                let t = ((r.0 - p.0) * dx + (r.1 - p.1) * dy) / (length * length);
                let t = t.clamp(0.0, 1.0);
                (r.0 - p.0 - t * dx).hypot(r.1 - p.1 - t * dy)
            }
        };
        let far = (a + 1..b).map(|i| (i, distance(points[i]))).max_by(|x, y| x.1.total_cmp(&y.1));
        if let Some((i, _)) = far.filter(|(_, d)| *d > slack) {
            keep[i] = true;
            open.push((a, i));
            open.push((i, b));
        }
    }
    points.iter().zip(keep).filter(|(_, k)| *k).map(|(p, _)| *p).collect()
}

/// `M…L…` through the points, as small steps.
fn polyline<'p>(path: &mut String, points: impl Iterator<Item = &'p (f64, f64)>) {
    for (i, (x, y)) in points.enumerate() {
        path.push(if i == 0 { 'M' } else { 'L' });
        path.push_str(&n(*x));
        path.push(' ');
        path.push_str(&n(*y));
    }
}

/// A map of at most [`CELLS`] cells each way, by the mean of neighbours.
fn reduced(map: &Heatmap) -> Heatmap {
    let (by_row, by_column) = (map.rows.div_ceil(CELLS), map.columns.div_ceil(CELLS));
    if by_row == 1 && by_column == 1 {
        return map.clone();
    }
    let (rows, columns) = (map.rows.div_ceil(by_row), map.columns.div_ceil(by_column));
    let mut z = Vec::with_capacity(rows * columns);
    for row in 0..rows {
        for column in 0..columns {
            let cells = (row * by_row..((row + 1) * by_row).min(map.rows))
                .flat_map(|r| (column * by_column..((column + 1) * by_column).min(map.columns)).map(move |c| (r, c)))
                .map(|(r, c)| map.z[r * map.columns + c])
                .filter(|v| !v.is_nan());
            let (sum, count) = cells.fold((0.0, 0usize), |(s, n), v| (s + v, n + 1));
            z.push(if count > 0 { sum / count as f64 } else { f64::NAN });
        }
    }
    Heatmap { rows, columns, z, decimals: None, ..map.clone() }
}

/// A text with its raised and lowered parts as SVG.
fn rich(text: &str, size: f64) -> String {
    let all = parts(text);
    if all.iter().all(|(level, _)| *level == Level::Line) {
        return html(text);
    }
    let mut out = String::new();
    let mut offset = 0.0;
    for (level, part) in all {
        let wanted = match level {
            Level::Line => 0.0,
            Level::Raised => -0.38 * size,
            Level::Lowered => 0.22 * size,
        };
        let small = if level == Level::Line { String::new() } else { format!(" font-size=\"{}\"", n(size * SCRIPT)) };
        out += &format!("<tspan dy=\"{}\"{small}>{}</tspan>", n(wanted - offset), escape(part));
        offset = wanted;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinning_keeps_ends_and_extremes() {
        let points: Points = (0..10_000).map(|i| (f64::from(i) * 0.03, (f64::from(i) * 0.7).sin() * 50.0)).collect();
        let kept = thin(&points, 1.0);
        assert!(kept.len() < 1300, "{}", kept.len());
        assert_eq!((kept.first(), kept.last()), (points.first(), points.last()));
        let highest = |p: &[(f64, f64)]| p.iter().map(|p| p.1).fold(f64::MIN, f64::max);
        assert!((highest(&kept) - highest(&points)).abs() < 0.1);
        assert_eq!(thin(&(0..100).map(|i| (f64::from(i), 2.0 * f64::from(i))).collect::<Points>(), 0.5).len(), 2);
    }

    #[test]
    fn a_cell_has_readable_text() {
        assert!(wants_white(Color(8, 48, 107)) && !wants_white(Color(250, 250, 250)));
        assert_eq!(cell_text(-0.001, 2), "0.00");
        assert_eq!(cell_text(-0.69, 2), "−0.69");
    }
}
