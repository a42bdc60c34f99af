//! The interactive form: a [`plotly::Plot`] on the same sheet as the static one, so that both have the same panels,
//! texts and colours at the same places.
//!
//! The `plotly` crate names eight pairs of axes. A figure with more panels has no [`plotly::Plot`], but has Plotly
//! JSON: [`json`] is the one place where JSON is written past the crate.

use plotly::color::Rgba;
use plotly::common::{
    Anchor, ColorBar, ColorScale, ColorScaleElement, DashType, ErrorData, ErrorType, Fill, Font, HoverInfo, Marker,
    Mode, Orientation, Position, ThicknessMode, TickMode, Title,
};
use plotly::configuration::{Configuration, DoubleClick};
use plotly::layout::update_menu::{ButtonBuilder, UpdateMenu, UpdateMenuDirection, UpdateMenuType};
use plotly::layout::{
    Animation, AnimationMode, AnimationOptions, Annotation, Axis, AxisRange, AxisType, BarMode, FrameSettings,
    HoverMode, Layout, Legend, Margin, Shape, ShapeLine, ShapeType, Slider, SliderCurrentValue, SliderStepBuilder,
    TicksDirection, TransitionSettings,
};
use plotly::{Plot, Trace, Traces};

use super::axis::TICK;
use super::panel::{Band, Bars, Color, Dash, Heatmap, Line, Panel, Scale, Scatter, Series};
use super::sheet::{self, DARK, FAILS, HOLDS, LABEL, PALE, Place, Rect, Sheet, TEXT, color_of};
use super::svg::{cell_text, floored, number_size, place_of, shade, stops, wants_white};
use super::text::{html, width};
use super::{Control, ControlKind, Figure};
use crate::{Error, Result};

/// Pairs of axes that the crate's layout has.
const AXES: usize = 8;

/// The most points a line keeps; of longer ones the extremes of equal stretches.
const POINTS: usize = 4000;

/// Fonts, as in the static form.
const FONTS: &str = "DejaVu Sans, Verdana, Helvetica, Arial, Liberation Sans, sans-serif";

/// A figure as Plotly has it, before it is known whether the crate's layout can hold its axes.
struct Drawn {
    plot: Plot,
    layout: Layout,
    axes: Vec<(Axis, Axis)>,
}

/// See [`Figure::to_plotly`].
pub(super) fn plot(figure: &Figure) -> Result<Plot> {
    let Drawn { mut plot, mut layout, axes } = draw(figure)?;
    if axes.len() > AXES {
        return Err(Error::invalid(
            format!("panels of figure '{}'", figure.id),
            axes.len(),
            format!("at most {AXES}, which the plotly crate has axes for; to_plotly_json has no such limit"),
        ));
    }
    for (i, (x, y)) in axes.into_iter().enumerate() {
        layout = match i {
            0 => layout.x_axis(x).y_axis(y),
            1 => layout.x_axis2(x).y_axis2(y),
            2 => layout.x_axis3(x).y_axis3(y),
            3 => layout.x_axis4(x).y_axis4(y),
            4 => layout.x_axis5(x).y_axis5(y),
            5 => layout.x_axis6(x).y_axis6(y),
            6 => layout.x_axis7(x).y_axis7(y),
            _ => layout.x_axis8(x).y_axis8(y),
        };
    }
    plot.set_layout(layout);
    Ok(plot)
}

/// See [`Figure::to_plotly_json`]: what the crate writes, with the axes past its eighth pair.
pub(super) fn json(figure: &Figure) -> Result<serde_json::Value> {
    let failed = |e: serde_json::Error| Error::numerical("Plotly JSON", e.to_string());
    let Drawn { mut plot, layout, axes } = draw(figure)?;
    plot.set_layout(layout);
    let mut json = serde_json::to_value(&plot).map_err(failed)?;
    for (i, (x, y)) in axes.iter().enumerate() {
        json["layout"][format!("xaxis{}", suffix(i))] = serde_json::to_value(x).map_err(failed)?;
        json["layout"][format!("yaxis{}", suffix(i))] = serde_json::to_value(y).map_err(failed)?;
    }
    if json["frames"].is_null() {
        json["frames"] = serde_json::Value::Array(Vec::new());
    }
    Ok(json)
}

/// Plotly's names count from nothing: x, x2, x3.
fn suffix(i: usize) -> String {
    if i == 0 { String::new() } else { (i + 1).to_string() }
}

fn draw(figure: &Figure) -> Result<Drawn> {
    let active = figure.control.as_ref().map_or(0, |c| c.active);
    let sheet = sheet::sheet(figure, active, true);
    let states = sheet::states(figure);
    let mut plot = Plot::new();
    let mut listed = Vec::new();
    let mut traces: Vec<Box<dyn Trace>> = Vec::new();
    let mut moving = Vec::new();
    // The names that the panels before the moving ones have put in the legend: each frame lists the same as the plot.
    let mut listed_before = None;
    for (i, (state, place)) in states.iter().zip(&sheet.places).enumerate() {
        let Some(panel) = sheet::state(state, active) else { continue };
        if state.len() > 1 {
            listed_before.get_or_insert_with(|| listed.clone());
        }
        let drawn = panel_traces(panel, place, &sheet, i, &mut listed);
        if state.len() > 1 {
            moving.extend(traces.len()..traces.len() + drawn.len());
        }
        traces.extend(drawn);
    }
    plot.add_traces(traces);
    plot.set_configuration(Configuration::new().display_logo(false).double_click(DoubleClick::Reset).responsive(false));
    let mut layout = layout(figure, &sheet, &states, active);
    if let Some(control) = &figure.control {
        for frame in 0..control.frames.len() {
            let mut data = Traces::new();
            let mut listed = listed_before.clone().unwrap_or_default();
            for (i, (state, place)) in states.iter().zip(&sheet.places).enumerate() {
                if let (true, Some(panel)) = (state.len() > 1, sheet::state(state, frame)) {
                    for trace in panel_traces(panel, place, &sheet, i, &mut listed) {
                        data.push(trace);
                    }
                }
            }
            let changed = Layout::new()
                .annotations(annotations(figure, &sheet, &states, frame))
                .shapes(shapes(&sheet, &states, frame));
            let frame = plotly::layout::Frame::new().name(frame_name(frame)).traces(moving.clone());
            plot.add_frame(frame.data(data).layout(changed));
        }
        layout = with_control(layout, control, &sheet)?;
    }
    let axes = states.iter().zip(&sheet.places).enumerate();
    let axes = axes.filter_map(|(i, (s, place))| Some(axis_pair(sheet::state(s, active)?, place, &sheet, i))).collect();
    Ok(Drawn { plot, layout, axes })
}

/// Frames are called by their number: labels need not differ.
fn frame_name(frame: usize) -> String {
    format!("frame-{frame}")
}

/// Pixels from the left, as a fraction of the sheet.
fn across(x: f64, sheet: &Sheet) -> f64 {
    x / sheet.width
}

/// Pixels from the top, as a fraction of the sheet from its bottom.
fn up(y: f64, sheet: &Sheet) -> f64 {
    1.0 - y / sheet.height
}

fn layout(figure: &Figure, sheet: &Sheet, states: &[Vec<&Panel>], frame: usize) -> Layout {
    let (x, y) = sheet.legend_at;
    Layout::new()
        .width(sheet.width as usize)
        .height(sheet.height as usize)
        .auto_size(false)
        // The whole sheet is the plotting area: fractions of it are fractions of the picture.
        .margin(Margin::new().left(0).right(0).top(0).bottom(0).pad(0).auto_expand(false))
        .font(font(TEXT, DARK))
        .paper_background_color("#ffffff")
        .plot_background_color("#ffffff")
        .hover_mode(HoverMode::Closest)
        .bar_mode(BarMode::Group)
        .bar_gap(0.22)
        .bar_group_gap(0.06)
        .show_legend(!sheet.legend.is_empty())
        .legend(
            Legend::new()
                .orientation(Orientation::Horizontal)
                .x(across(x - 3.0, sheet))
                .x_anchor(Anchor::Left)
                .y(up(y - 4.0, sheet))
                .y_anchor(Anchor::Top)
                .background_color("rgba(0,0,0,0)")
                .font(font(TEXT, DARK)),
        )
        .annotations(annotations(figure, sheet, states, frame))
        .shapes(shapes(sheet, states, frame))
}

fn font(size: f64, color: &'static str) -> Font {
    Font::new().family(FONTS).size(size.round() as usize).color(color)
}

fn axis_pair(panel: &Panel, place: &Place, sheet: &Sheet, i: usize) -> (Axis, Axis) {
    let Rect { x, y, w, h } = place.plot;
    let map = sheet::heatmap(panel).is_some();
    let axis = |plan: &super::axis::Plan, title: &[String], horizontal: bool| {
        let (name, domain) = if horizontal {
            ("y", [across(x, sheet), across(x + w, sheet)])
        } else {
            ("x", [up(y + h, sheet), up(y, sheet)])
        };
        let log = plan.scale == Scale::Log;
        let end = |v: f64| if log { v.log10() } else { position(v, plan.scale) };
        let mut axis = Axis::new()
            .type_(if log { AxisType::Log } else { AxisType::Linear })
            .range(AxisRange::new(end(plan.low), end(plan.high)))
            .domain(&domain)
            .anchor(format!("{name}{}", suffix(i)))
            .show_line(true)
            .line_color("#444444")
            .mirror(map)
            .show_grid(!map && (!horizontal || plan.scale != Scale::Category))
            .grid_color("#e4e4e4")
            .zero_line(false)
            .tick_font(font(TICK, DARK));
        if !title.is_empty() {
            let text = title.iter().map(|l| html(l)).collect::<Vec<_>>().join("<br>");
            axis = axis.title(Title::with_text(text).font(font(TEXT, DARK)));
        }
        axis = axis.ticks(TicksDirection::Outside).tick_length(if map { 0 } else { 4 }).tick_color("#444444");
        // On log axes, Plotly's own labels have another size for each kind; zoomed in, these are still true.
        if plan.fixed || log {
            axis = axis
                .tick_mode(TickMode::Array)
                .tick_values(plan.ticks.iter().map(|(v, _)| position(*v, plan.scale)).collect())
                .tick_text(plan.ticks.iter().map(|(_, l)| html(l)).collect())
                .tick_angle(if plan.slanted { -45.0 } else { 0.0 });
        } else {
            axis = axis.n_ticks(plan.ticks.len().max(2) + 1).tick_angle(0.0);
        }
        axis
    };
    (axis(&place.x, &place.x_title, true), axis(&place.y, &place.y_title, false))
}

/// Names are at 1, 2, … on Plotly's axes, so that what a reader sees when hovering counts as people do.
fn position(v: f64, scale: Scale) -> f64 {
    if scale == Scale::Category { v + 1.0 } else { v }
}

fn positions(values: &[f64], scale: Scale) -> Vec<Option<f64>> {
    values.iter().map(|v| v.is_finite().then(|| position(*v, scale))).collect()
}

fn plain_text(words: &str, size: f64, color: &'static str) -> Annotation {
    Annotation::new().text(html(words)).font(font(size, color)).show_arrow(false).border_pad(0.0)
}

/// Every text that is not an axis' own: titles, labels in panels, caption, claims.
fn annotations(figure: &Figure, sheet: &Sheet, states: &[Vec<&Panel>], frame: usize) -> Vec<Annotation> {
    let mut all = Vec::new();
    let at = |a: Annotation, x: f64, y: f64| {
        a.x_ref("paper").y_ref("paper").x(across(x, sheet)).y(up(y, sheet)).y_anchor(Anchor::Middle)
    };
    // The first texts on a sheet are its own; panel titles change with the frame, so the sheet of that frame has them.
    let framed;
    let texts = if frame == figure.control.as_ref().map_or(0, |c| c.active) {
        &sheet.texts
    } else {
        framed = sheet::sheet(figure, frame, true);
        &framed.texts
    };
    for text in texts {
        let mut a = plain_text(&text.text, text.size, text.color);
        if text.bold {
            a = a.text(format!("<b>{}</b>", html(&text.text)));
        }
        let anchor = match text.anchor {
            sheet::Anchor::Start => Anchor::Left,
            sheet::Anchor::Middle => Anchor::Center,
            sheet::Anchor::End => Anchor::Right,
        };
        all.push(at(a, text.x, text.y - 0.36 * text.size).x_anchor(anchor));
    }
    for &(x, y, holds) in &sheet.verdicts {
        let (mark, color) = if holds { ("✓", HOLDS) } else { ("✗", FAILS) };
        all.push(at(plain_text(mark, TEXT + 2.0, color), x, y).x_anchor(Anchor::Center));
    }
    for (i, (state, place)) in states.iter().zip(&sheet.places).enumerate() {
        let Some(panel) = sheet::state(state, frame) else { continue };
        for tag in place.tags(panel) {
            let (cx, cy) = (tag.at.x + tag.at.w / 2.0, tag.at.y + tag.at.h / 2.0);
            let a = plain_text(&tag.text, LABEL, DARK).background_color("rgba(255,255,255,0.8)");
            let (px, py) = place.point(tag.values.0.unwrap_or(1.0), tag.values.1.unwrap_or(1.0));
            // On a log axis, Plotly places annotations by the exponent.
            let value = |v: f64, scale: Scale| if scale == Scale::Log { v.log10() } else { position(v, scale) };
            let a = match tag.values.0 {
                Some(v) => a.x_ref(format!("x{}", suffix(i))).x(value(v, place.x.scale)).x_shift(cx - px),
                None => a.x_ref(format!("x{} domain", suffix(i))).x((cx - place.plot.x) / place.plot.w),
            };
            let a = match tag.values.1 {
                Some(v) => a.y_ref(format!("y{}", suffix(i))).y(value(v, place.y.scale)).y_shift(py - cy),
                None => a.y_ref(format!("y{} domain", suffix(i))).y((place.plot.bottom() - cy) / place.plot.h),
            };
            all.push(a.x_anchor(Anchor::Center).y_anchor(Anchor::Middle));
        }
    }
    let buttons = figure.control.as_ref().filter(|c| c.kind == ControlKind::Buttons);
    if let (Some(control), Some(rect)) = (buttons, sheet.control) {
        let name = plain_text(&format!("{}:", control.name), TEXT, PALE);
        all.push(at(name, rect.x, rect.y + 15.0).x_anchor(Anchor::Left));
    }
    all
}

/// Lines across panels, and those between claims.
fn shapes(sheet: &Sheet, states: &[Vec<&Panel>], frame: usize) -> Vec<Shape> {
    let mut all = Vec::new();
    for (i, (state, place)) in states.iter().zip(&sheet.places).enumerate() {
        let Some(panel) = sheet::state(state, frame) else { continue };
        for rule in &panel.rules {
            let line = ShapeLine::new().color("#555555").width(1.1).dash(DashType::Dash);
            let shape = Shape::new().shape_type(ShapeType::Line).line(line);
            all.push(if rule.horizontal {
                let at = position(rule.at, place.y.scale);
                let refs = (format!("x{} domain", suffix(i)), format!("y{}", suffix(i)));
                shape.x_ref(refs.0).y_ref(refs.1).x0(0.0).x1(1.0).y0(at).y1(at)
            } else {
                let at = position(rule.at, place.x.scale);
                let refs = (format!("x{}", suffix(i)), format!("y{} domain", suffix(i)));
                shape.x_ref(refs.0).y_ref(refs.1).x0(at).x1(at).y0(0.0).y1(1.0)
            });
        }
    }
    for y in &sheet.lines {
        let (from, to) = (across(sheet::MARGIN, sheet), across(sheet.width - sheet::MARGIN, sheet));
        let line = ShapeLine::new().color("#dddddd").width(1.0);
        let shape = Shape::new().shape_type(ShapeType::Line).line(line).x_ref("paper").y_ref("paper");
        all.push(shape.x0(from).x1(to).y0(up(*y, sheet)).y1(up(*y, sheet)));
    }
    all
}

fn with_control(layout: Layout, control: &Control, sheet: &Sheet) -> Result<Layout> {
    let Some(rect) = sheet.control else { return Ok(layout) };
    let failed = |e: plotly::layout::ControlBuilderError| Error::numerical("Plotly controls", e.to_string());
    let jump = |frame: usize| {
        let options = AnimationOptions::new()
            .mode(AnimationMode::Immediate)
            .frame(FrameSettings::new().duration(0).redraw(true))
            .transition(TransitionSettings::new().duration(0));
        Animation::frames(vec![frame_name(frame)]).options(options)
    };
    let active = control.active as i32;
    if control.kind == ControlKind::Slider {
        let steps = control.frames.iter().enumerate().map(|(i, frame)| {
            SliderStepBuilder::new().label(html(&frame.label)).value(frame.label.as_str()).animation(jump(i)).build()
        });
        let slider = Slider::new()
            .active(active)
            .steps(steps.collect::<std::result::Result<_, _>>().map_err(failed)?)
            .current_value(
                SliderCurrentValue::new().prefix(format!("{}: ", html(&control.name))).font(font(TEXT, DARK)),
            )
            .font(font(TICK, DARK))
            .x(across(rect.x, sheet))
            .x_anchor(Anchor::Left)
            .length(rect.w / sheet.width)
            .y(up(rect.y, sheet))
            .y_anchor(Anchor::Top);
        return Ok(layout.sliders(vec![slider]));
    }
    let buttons = control
        .frames
        .iter()
        .enumerate()
        .map(|(i, frame)| ButtonBuilder::new().label(html(&frame.label)).animation(jump(i)).build());
    let name = width(&control.name, TEXT, false) + 16.0;
    let row: f64 = control.frames.iter().map(|f| width(&f.label, TEXT, false) + 26.0).sum();
    // What does not fit side by side becomes a list to choose from.
    let kind = if row + name <= rect.w { UpdateMenuType::Buttons } else { UpdateMenuType::Dropdown };
    let direction = if row + name <= rect.w { UpdateMenuDirection::Right } else { UpdateMenuDirection::Down };
    let menu = UpdateMenu::new()
        .active(active)
        .ty(kind)
        .direction(direction)
        .show_active(true)
        .buttons(buttons.collect::<std::result::Result<_, _>>().map_err(failed)?)
        .font(font(TEXT, DARK))
        .x(across(rect.x + name, sheet))
        .x_anchor(Anchor::Left)
        .y(up(rect.y, sheet))
        .y_anchor(Anchor::Top);
    Ok(layout.update_menus(vec![menu]))
}

/// The traces of a panel: always as many, in the same order, for panels of the same structure.
fn panel_traces(
    panel: &Panel,
    place: &Place,
    sheet: &Sheet,
    i: usize,
    listed: &mut Vec<String>,
) -> Vec<Box<dyn Trace>> {
    let mut pen = Pen { panel, place, sheet, axes: (format!("x{}", suffix(i)), format!("y{}", suffix(i))), listed };
    let mut traces: Vec<Box<dyn Trace>> = Vec::new();
    for series in &panel.series {
        if let Series::Line(Line { band: Some(band), .. }) = series {
            traces.push(pen.band(series, band));
        }
    }
    for series in &panel.series {
        match series {
            Series::Line(line) => traces.push(pen.line(line)),
            Series::Scatter(scatter) => traces.push(pen.scatter(scatter)),
            Series::Bars(bars) => traces.push(pen.bars(bars)),
            Series::Heatmap(map) => traces.extend(pen.heatmap(map)),
        }
    }
    traces
}

/// Draws the series of one panel.
struct Pen<'a> {
    panel: &'a Panel,
    place: &'a Place,
    sheet: &'a Sheet,
    axes: (String, String),
    /// Names that the legend has already.
    listed: &'a mut Vec<String>,
}

type Curve = plotly::Scatter<Option<f64>, Option<f64>>;

impl Pen<'_> {
    /// Whether the legend lists this one; it lists each name once.
    fn list(&mut self, name: &str, wanted: bool) -> bool {
        let new = wanted && !name.is_empty() && !self.listed.iter().any(|n| n == name);
        if new {
            self.listed.push(name.to_owned());
        }
        new
    }

    fn curve(&self, x: Vec<Option<f64>>, y: Vec<Option<f64>>, name: &str) -> Box<Curve> {
        plotly::Scatter::new(x, y).x_axis(&self.axes.0).y_axis(&self.axes.1).name(html(name)).legend_group(html(name))
    }

    /// What appears when a point is pointed at.
    fn hover(&self, name: &str) -> String {
        let title =
            |axis: &super::Axis, or: &str| if axis.title.is_empty() { or.to_owned() } else { html(&axis.title) };
        let head = if name.is_empty() { String::new() } else { format!("<b>{}</b><br>", html(name)) };
        let (x, y) = (title(&self.panel.x, "x"), title(&self.panel.y, "y"));
        format!("{head}{x}: %{{x}}<br>{y}: %{{y:.4~g}}<extra></extra>")
    }

    fn band(&self, series: &Series, band: &Band) -> Box<dyn Trace> {
        let Series::Line(line) = series else { return self.curve(Vec::new(), Vec::new(), series.name()) };
        let (low, high) = (floored(&band.lo, self.place), floored(&band.hi, self.place));
        let kept = few(&line.x, &[&high, &low]);
        // One outline for each stretch without a gap: along the upper edge and back along the lower.
        let (mut x, mut y) = (Vec::new(), Vec::new());
        let whole = |i: &usize| line.x[*i].is_finite() && low[*i].is_finite() && high[*i].is_finite();
        for run in kept.split(|i| !whole(i)).filter(|run| !run.is_empty()) {
            if !x.is_empty() {
                x.push(None);
                y.push(None);
            }
            let at = |i: &usize| Some(position(line.x[*i], self.place.x.scale));
            x.extend(run.iter().map(at).chain(run.iter().rev().map(at)));
            y.extend(run.iter().map(|i| Some(high[*i])).chain(run.iter().rev().map(|i| Some(low[*i]))));
        }
        let color = color_of(line.color, &line.name, &self.sheet.colors);
        self.curve(x, y, &line.name)
            .mode(Mode::Lines)
            .fill(Fill::ToSelf)
            .fill_color(Rgba::new(color.0, color.1, color.2, 0.18))
            .line(plotly::common::Line::new().width(0.0).color("rgba(0,0,0,0)"))
            .hover_info(HoverInfo::Skip)
            .show_legend(false)
    }

    fn line(&mut self, line: &Line) -> Box<dyn Trace> {
        let color = color_of(line.color, &line.name, &self.sheet.colors).hex();
        let kept = few(&line.x, &[&line.y]);
        let of = |v: &[f64]| kept.iter().map(|i| v[*i]).collect::<Vec<f64>>();
        let dash = match line.dash {
            Dash::Solid => DashType::Solid,
            Dash::Dashed => DashType::Dash,
            Dash::Dotted => DashType::Dot,
        };
        let (x, y) = (positions(&of(&line.x), self.place.x.scale), positions(&of(&line.y), self.place.y.scale));
        let listed = self.list(&line.name, line.legend);
        let mut curve = self
            .curve(x, y, &line.name)
            .mode(if line.markers { Mode::LinesMarkers } else { Mode::Lines })
            .line(plotly::common::Line::new().width(line.width).dash(dash).color(color.clone()))
            .hover_template(self.hover(&line.name))
            .show_legend(listed);
        if line.markers {
            curve = curve.marker(Marker::new().size((line.width * 3.2).round().max(1.0) as usize).color(color));
        }
        curve
    }

    fn error(&self, values: &[f64], error: &Band, color: String) -> ErrorData {
        let away = |edge: &[f64], sign: f64| {
            let edge = floored(edge, self.place);
            values.iter().zip(edge).map(|(v, e)| sign * (e - v)).map(|d| if d.is_finite() { d } else { 0.0 }).collect()
        };
        ErrorData::new(ErrorType::Data)
            .symmetric(false)
            .array(away(&error.hi, 1.0))
            .array_minus(away(&error.lo, -1.0))
            .color(color)
            .thickness(1.2)
            .width(3)
    }

    fn scatter(&mut self, s: &Scatter) -> Box<dyn Trace> {
        let color = color_of(s.color, &s.name, &self.sheet.colors).hex();
        let (x, y) = (positions(&s.x, self.place.x.scale), positions(&s.y, self.place.y.scale));
        let listed = self.list(&s.name, s.legend);
        let mut points = self
            .curve(x, y, &s.name)
            .mode(Mode::Markers)
            .marker(Marker::new().size(s.size.round().max(1.0) as usize).color(color.clone()))
            .hover_template(self.hover(&s.name))
            .show_legend(listed);
        if let Some(error) = &s.error {
            points = points.error_y(self.error(&s.y, error, color));
        }
        points
    }

    fn bars(&mut self, bars: &Bars) -> Box<dyn Trace> {
        let color = color_of(bars.color, &bars.name, &self.sheet.colors).hex();
        let places: Vec<f64> = bars.labels.iter().map(|l| place_of(l, self.place)).collect();
        let listed = self.list(&bars.name, bars.legend);
        let head = if bars.name.is_empty() { String::new() } else { format!("<b>{}</b><br>", html(&bars.name)) };
        let mut trace =
            plotly::Bar::new(positions(&places, Scale::Category), positions(&bars.values, self.place.y.scale))
                .x_axis(&self.axes.0)
                .y_axis(&self.axes.1)
                .name(html(&bars.name))
                .legend_group(html(&bars.name))
                .offset_group(html(&bars.name))
                .marker(Marker::new().color(color))
                .hover_text_array(bars.labels.iter().map(|l| html(l)).collect::<Vec<String>>())
                .hover_template(format!("{head}%{{hovertext}}: %{{y:.4~g}}<extra></extra>"))
                .show_legend(listed);
        if let Some(error) = &bars.error {
            trace = trace.error_y(self.error(&bars.values, error, DARK.to_owned()));
        }
        trace
    }

    /// The cells, and two traces with the numbers in them: those in dark and those in white, either of which may be
    /// empty. As traces, they follow the frames.
    fn heatmap(&self, map: &Heatmap) -> Vec<Box<dyn Trace>> {
        let ends = self.place.colors.unwrap_or((0.0, 1.0));
        let count = |n: usize| (1..=n).map(|i| i as f64).collect::<Vec<f64>>();
        let z: Vec<Vec<Option<f64>>> =
            map.z.chunks(map.columns).map(|row| row.iter().map(|v| v.is_finite().then_some(*v)).collect()).collect();
        let scale = stops(map.diverging).iter().map(|(at, c)| ColorScaleElement(*at, c.hex())).collect();
        let mut cells = plotly::HeatMap::new(count(map.columns), count(map.rows), z)
            .x_axis(&self.axes.0)
            .y_axis(&self.axes.1)
            .zauto(false)
            .zmin(ends.0)
            .zmax(ends.1)
            .color_scale(ColorScale::Vector(scale))
            .hover_template("row %{y}, column %{x}: %{z:.4~g}<extra></extra>")
            .show_legend(false);
        if let Some(bar) = &self.place.bar {
            cells = cells.color_bar(
                ColorBar::new()
                    .x(across(bar.bar.x, self.sheet))
                    .x_anchor(Anchor::Left)
                    .x_pad(0.0)
                    .y(up(bar.bar.y + bar.bar.h / 2.0, self.sheet))
                    .y_anchor(Anchor::Middle)
                    .y_pad(0.0)
                    .len_mode(ThicknessMode::Pixels)
                    .len(bar.bar.h.round() as usize)
                    .thickness_mode(ThicknessMode::Pixels)
                    .thickness(bar.bar.w.round() as usize)
                    .outline_color("#444444")
                    .outline_width(1)
                    .tick_mode(TickMode::Array)
                    .tick_vals(bar.ticks.iter().map(|(v, _)| *v).collect())
                    .tick_text(bar.ticks.iter().map(|(_, l)| html(l)).collect())
                    .tick_font(font(TICK - 1.0, PALE)),
            );
        }
        let mut traces: Vec<Box<dyn Trace>> = vec![cells];
        let Some(decimals) = map.decimals else { return traces };
        let (w, h) = (self.place.plot.w / map.columns as f64, self.place.plot.h / map.rows as f64);
        // As many traces with numbers as without: frames must match. Too small to read means none are shown.
        let size = number_size(map, w, h);
        for white in [false, true] {
            let chosen: Vec<usize> = (0..map.z.len())
                .filter(|&i| size.is_some() && !map.z[i].is_nan())
                .filter(|&i| wants_white(shade(map.z[i], ends, map.diverging)) == white)
                .collect();
            let x = chosen.iter().map(|i| Some((i % map.columns + 1) as f64)).collect();
            let y = chosen.iter().map(|i| Some((i / map.columns + 1) as f64)).collect();
            let words: Vec<String> = chosen.iter().map(|i| cell_text(map.z[*i], decimals)).collect();
            let color = if white { "#ffffff" } else { DARK };
            traces.push(
                self.curve(x, y, "")
                    .mode(Mode::Text)
                    .text_array(words)
                    .text_position(Position::MiddleCenter)
                    .text_font(font(size.unwrap_or(6.0).floor(), color))
                    .hover_info(HoverInfo::Skip)
                    .show_legend(false),
            );
        }
        traces
    }
}

/// Which points to keep of a long line: of each of equal stretches the first, the last, and where each of `ys` is lowest
/// and highest. Gaps are kept.
fn few(x: &[f64], ys: &[&[f64]]) -> Vec<usize> {
    let n = x.len();
    if n <= POINTS {
        return (0..n).collect();
    }
    let stretch = n.div_ceil(POINTS / (2 + 2 * ys.len()));
    let mut kept = Vec::new();
    for start in (0..n).step_by(stretch) {
        let all = start..(start + stretch).min(n);
        kept.push(all.start);
        kept.push(all.end - 1);
        for y in ys {
            let numbers = || all.clone().filter(|i| y[*i].is_finite());
            kept.extend(numbers().min_by(|a, b| y[*a].total_cmp(&y[*b])));
            kept.extend(numbers().max_by(|a, b| y[*a].total_cmp(&y[*b])));
            kept.extend(all.clone().find(|i| !y[*i].is_finite()));
        }
    }
    kept.sort_unstable();
    kept.dedup();
    kept
}

/// The colour a Plotly text names, if it is `#rrggbb`.
pub(super) fn parse_color(text: &str) -> Option<Color> {
    let digits = text.strip_prefix('#').filter(|d| d.len() == 6 && d.is_ascii())?;
    let byte = |i: usize| u8::from_str_radix(&digits[i..i + 2], 16).ok();
    Some(Color(byte(0)?, byte(2)?, byte(4)?))
}
