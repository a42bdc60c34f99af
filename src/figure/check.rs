//! What is wrong with a figure, said before it is drawn.

use super::panel::{Axis, Band, Heatmap, Panel, Scale, Series};
use super::{Control, Figure};
use crate::{Error, Result};

/// The most panels a figure draws, and the most frames: beyond it, what was wanted is not a figure.
const MOST: usize = 1000;

/// Numbers of greater size have no place on an axis: its length would not be a number any more. On a log axis, numbers
/// below its inverse have none either.
const HUGE: f64 = 1e300;

/// See [`Figure::check`].
pub(super) fn figure(figure: &Figure) -> Result<()> {
    if figure.columns == Some(0) {
        return Err(Error::invalid("columns of the figure", 0, "at least 1"));
    }
    if figure.plotly.is_some() {
        return Ok(());
    }
    let frames = figure.control.as_ref().map_or(&[][..], |c| &c.frames);
    let all = figure.panels.len() + frames.first().map_or(0, |f| f.panels.len());
    if all == 0 {
        return Err(Error::shape(format!("panels of figure '{}'", figure.id), &[0], "at least one panel"));
    }
    if all > MOST || frames.len() > MOST {
        let given = format!("{all} panels, {} frames", frames.len());
        return Err(Error::invalid(format!("figure '{}'", figure.id), given, format!("at most {MOST} of each")));
    }
    for (i, p) in figure.panels.iter().enumerate() {
        panel(p, &place(p, i))?;
    }
    figure.control.as_ref().map_or(Ok(()), |c| control(c, figure.panels.len()))
}

/// Where a panel is, for messages.
fn place(panel: &Panel, i: usize) -> String {
    if panel.title.is_empty() { format!("panel {i}") } else { format!("panel {i} '{}'", panel.title) }
}

fn control(control: &Control, fixed: usize) -> Result<()> {
    let what = format!("frames of '{}'", control.name);
    let Some(first) = control.frames.first() else {
        return Err(Error::shape(what, &[0], "at least one frame"));
    };
    if control.active >= control.frames.len() {
        let expected = format!("a frame from 0 to {}", control.frames.len() - 1);
        return Err(Error::invalid(format!("active frame of '{}'", control.name), control.active, expected));
    }
    for frame in &control.frames {
        let at = format!("frame '{}' of '{}'", frame.label, control.name);
        if frame.panels.len() != first.panels.len() {
            let expected = format!("[{}], as the first frame", first.panels.len());
            return Err(Error::shape(format!("panels of {at}"), &[frame.panels.len()], expected));
        }
        for (i, (p, model)) in frame.panels.iter().zip(&first.panels).enumerate() {
            let at = format!("{at}, {}", place(p, fixed + i));
            panel(p, &at)?;
            same_structure(p, model, &at)?;
        }
    }
    Ok(())
}

/// A frame changes numbers and texts, not what there is.
fn same_structure(panel: &Panel, model: &Panel, at: &str) -> Result<()> {
    let kinds = |p: &Panel| p.series.iter().map(shape_of).collect::<Vec<_>>().join(", ");
    let (given, expected) = (kinds(panel), kinds(model));
    if given != expected {
        return Err(Error::invalid(at, format!("series [{given}]"), format!("[{expected}], as in the first frame")));
    }
    let scales = |p: &Panel| (scale(&p.x), scale(&p.y));
    if scales(panel) != scales(model) {
        let words = |(x, y)| format!("{x} x and {y} y");
        return Err(Error::invalid(
            format!("axes of {at}"),
            words(scales(panel)),
            words(scales(model)) + ", as in the first frame",
        ));
    }
    Ok(())
}

fn scale(axis: &Axis) -> &'static str {
    match axis.scale {
        Scale::Linear => "linear",
        Scale::Log => "log",
        Scale::Category => "category",
    }
}

/// What about a series has to be the same in every frame, in words.
fn shape_of(series: &Series) -> String {
    let detail = match series {
        Series::Line(s) if s.band.is_some() => " with a band".to_owned(),
        Series::Scatter(s) if s.error.is_some() => " with error bars".to_owned(),
        Series::Bars(s) if s.error.is_some() => " with error bars".to_owned(),
        Series::Heatmap(s) => {
            let numbers = s.decimals.map_or("", |_| " with numbers");
            let names = [("rows", &s.row_labels), ("columns", &s.column_labels)].map(|(what, labels)| {
                if labels.is_empty() { String::new() } else { format!(", {what} {}", labels.join(" ")) }
            });
            format!(" {}x{}{numbers}{}", s.rows, s.columns, names.concat())
        }
        _ => String::new(),
    };
    let name = if series.name().is_empty() { String::new() } else { format!(" '{}'", series.name()) };
    format!("{}{name}{detail}", series.kind())
}

fn panel(panel: &Panel, at: &str) -> Result<()> {
    axis(&panel.x, &format!("x axis of {at}"))?;
    axis(&panel.y, &format!("y axis of {at}"))?;
    if panel.series.is_empty() && panel.rules.is_empty() && panel.notes.is_empty() {
        return Err(Error::shape(format!("series of {at}"), &[0], "at least one series"));
    }
    let maps = panel.series.iter().filter(|s| matches!(s, Series::Heatmap(_))).count();
    if maps > 0 && panel.series.len() > 1 {
        return Err(Error::invalid(
            format!("series of {at}"),
            format!("{} series with a heat map among them", panel.series.len()),
            "a heat map alone; give the others panels of their own",
        ));
    }
    if maps > 0 && (panel.x.scale == Scale::Log || panel.y.scale == Scale::Log) {
        return Err(Error::invalid(format!("axes of {at}"), "a log axis", "no log axis: a heat map's cells are names"));
    }
    let bars = panel.series.iter().filter_map(|s| if let Series::Bars(bars) = s { Some(bars) } else { None });
    let mut names: Vec<&str> = Vec::new();
    for bars in bars {
        if names.contains(&bars.name.as_str()) {
            return Err(Error::invalid(
                format!("bars in {at}"),
                format!("two called '{}'", bars.name),
                "a name for each",
            ));
        }
        names.push(&bars.name);
        if let Some(k) = (0..bars.labels.len()).find(|k| bars.labels[..*k].contains(&bars.labels[*k])) {
            let what = format!("labels of the bars '{}' in {at}", bars.name);
            return Err(Error::invalid(what, format!("'{}' twice", bars.labels[k]), "a label for each bar"));
        }
    }
    for s in &panel.series {
        let at = match s.name() {
            "" => format!("the {} in {at}", s.kind()),
            name => format!("{} '{name}' in {at}", s.kind()),
        };
        series(s, panel, &at)?;
    }
    for rule in &panel.rules {
        let along = if rule.horizontal { &panel.y } else { &panel.x };
        coordinate(rule.at, along, &format!("the line '{}' across {at}", rule.label))?;
    }
    for note in &panel.notes {
        coordinate(note.x, &panel.x, &format!("x of the text '{}' in {at}", note.text))?;
        coordinate(note.y, &panel.y, &format!("y of the text '{}' in {at}", note.text))?;
    }
    Ok(())
}

/// A place that has to exist on the axis.
fn coordinate(v: f64, axis: &Axis, what: &str) -> Result<()> {
    if !v.is_finite() || v.abs() > HUGE {
        return Err(Error::invalid(what, v, "a finite number of at most 1e300 in size"));
    }
    if axis.scale == Scale::Log && v < 1.0 / HUGE {
        return Err(Error::invalid(what, v, "a number above 0 on a log axis"));
    }
    Ok(())
}

fn axis(axis: &Axis, at: &str) -> Result<()> {
    if let Some((low, high)) = axis.range {
        if !low.is_finite() || !high.is_finite() || low.abs().max(high.abs()) > HUGE || low == high {
            return Err(Error::invalid(
                format!("range of the {at}"),
                format!("{low} to {high}"),
                "two different finite numbers of at most 1e300 in size",
            ));
        }
        coordinate(low.min(high), axis, &format!("range of the {at}"))?;
    }
    for &tick in axis.ticks.iter().flatten() {
        coordinate(tick, axis, &format!("tick of the {at}"))?;
    }
    if axis.ticks.as_ref().is_some_and(|t| t.len() > MOST) {
        return Err(Error::invalid(format!("ticks of the {at}"), "too many", format!("at most {MOST}")));
    }
    Ok(())
}

fn series(series: &Series, panel: &Panel, at: &str) -> Result<()> {
    let positive = |v: f64, what: &str, unit: &str| {
        if v.is_finite() && v > 0.0 {
            Ok(())
        } else {
            Err(Error::invalid(format!("{what} of {at}"), v, format!("a number of {unit} above 0")))
        }
    };
    match series {
        Series::Line(s) => {
            points(&s.x, &s.y, panel, at)?;
            positive(s.width, "width", "pixels")?;
            band(s.band.as_ref(), s.x.len(), "band", at)
        }
        Series::Scatter(s) => {
            points(&s.x, &s.y, panel, at)?;
            positive(s.size, "size", "pixels")?;
            band(s.error.as_ref(), s.x.len(), "error", at)
        }
        Series::Bars(s) => {
            if s.labels.len() != s.values.len() {
                return Err(Error::shape(
                    format!("values of {at}"),
                    &[s.values.len()],
                    format!("[{}], one for each label", s.labels.len()),
                ));
            }
            values(&s.values, &panel.y, &format!("values of {at}"))?;
            if panel.x.scale != Scale::Category && panel.series.iter().any(|s| !matches!(s, Series::Bars(_))) {
                return Err(Error::invalid(
                    format!("x axis below {at}"),
                    format!("a {} axis with other series on it", scale(&panel.x)),
                    "Axis::category, on which other series use the places 0, 1, … of the names",
                ));
            }
            band(s.error.as_ref(), s.values.len(), "error", at)
        }
        Series::Heatmap(s) => heatmap(s, at),
    }
}

fn points(x: &[f64], y: &[f64], panel: &Panel, at: &str) -> Result<()> {
    if x.len() != y.len() {
        return Err(Error::shape(format!("y of {at}"), &[y.len()], format!("[{}], as many as x", x.len())));
    }
    values(x, &panel.x, &format!("x of {at}"))?;
    values(y, &panel.y, &format!("y of {at}"))
}

/// NaN is a gap; there must be something between the gaps, and it must have a place on the axis.
fn values(v: &[f64], axis: &Axis, what: &str) -> Result<()> {
    if v.is_empty() {
        return Err(Error::shape(what, &[0], "at least one value"));
    }
    if let Some(i) = v.iter().position(|v| v.abs() > HUGE) {
        let expected = "a finite number of at most 1e300 in size, or NaN for a gap";
        return Err(Error::invalid(format!("{what}[{i}]"), v[i], expected));
    }
    if v.iter().all(|v| v.is_nan()) {
        return Err(Error::invalid(what, "NaN alone", "at least one number"));
    }
    match v.iter().position(|v| axis.scale == Scale::Log && *v < 1.0 / HUGE) {
        Some(i) => Err(Error::invalid(
            format!("{what}[{i}]"),
            v[i],
            "a number above 0 on a log axis (NaN for a gap, or Axis::linear)",
        )),
        None => Ok(()),
    }
}

/// An edge may be NaN (no band there); on a log axis, one at or below 0 is cut off where the axis ends.
fn band(band: Option<&Band>, points: usize, word: &str, at: &str) -> Result<()> {
    let Some(band) = band else { return Ok(()) };
    for (edge, v) in [("lower", &band.lo), ("upper", &band.hi)] {
        let what = format!("{edge} edge of the {word} of {at}");
        if v.len() != points {
            return Err(Error::shape(what, &[v.len()], format!("[{points}], one for each point")));
        }
        if let Some(i) = v.iter().position(|v| v.abs() > HUGE) {
            let expected = "a finite number of at most 1e300 in size, or NaN for none";
            return Err(Error::invalid(format!("{what}, [{i}]"), v[i], expected));
        }
    }
    match band.lo.iter().zip(&band.hi).position(|(lo, hi)| lo > hi) {
        Some(i) => Err(Error::invalid(
            format!("{word} of {at}, [{i}]"),
            format!("from {} to {}", band.lo[i], band.hi[i]),
            "a lower edge that is not above the upper one",
        )),
        None => Ok(()),
    }
}

fn heatmap(map: &Heatmap, at: &str) -> Result<()> {
    if map.rows == 0 || map.columns == 0 {
        return Err(Error::shape(at, &[map.rows, map.columns], "at least one row and one column"));
    }
    if map.rows.checked_mul(map.columns) != Some(map.z.len()) {
        let expected = format!("[{} * {}]: a value for each cell, row by row", map.rows, map.columns);
        return Err(Error::shape(format!("z of {at}"), &[map.z.len()], expected));
    }
    for (word, labels, cells) in [("row", &map.row_labels, map.rows), ("column", &map.column_labels, map.columns)] {
        if !labels.is_empty() && labels.len() != cells {
            let what = format!("{word} labels of {at}");
            return Err(Error::shape(what, &[labels.len()], format!("[{cells}], one for each {word}")));
        }
    }
    let sound = |(low, high): (f64, f64)| low < high && low.abs().max(high.abs()) <= HUGE;
    if let Some((low, high)) = map.range.filter(|range| !sound(*range)) {
        let expected = "two finite numbers of at most 1e300 in size, the lower first";
        return Err(Error::invalid(format!("range of {at}"), format!("{low} to {high}"), expected));
    }
    values(&map.z, &Axis::default(), &format!("z of {at}"))
}
