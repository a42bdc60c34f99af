//! Axes resolved against data: where they begin and end, and which ticks they show.

use super::panel::{Axis, Panel, Scale, Series};
use super::text::{minus, significant, width};

/// A value with its label.
pub(super) type Tick = (f64, String);

/// How many of these ticks have room on an axis.
pub(super) type Room = dyn Fn(&[Tick]) -> usize;

/// Size of tick labels in pixels.
pub(super) const TICK: f64 = 11.0;

/// An axis that is ready to draw.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub scale: Scale,
    /// The value where the axis begins (left, bottom).
    pub low: f64,
    /// The value where it ends; below `low` for an axis that runs backwards.
    pub high: f64,
    /// Values with their labels (which may have raised parts).
    pub ticks: Vec<Tick>,
    /// Values with a faint line and no label.
    pub minor: Vec<f64>,
    /// Whether the labels below the axis are slanted because they would not fit side by side.
    pub slanted: bool,
    /// Whether the user placed the ticks or they are names: then no renderer may choose others.
    pub fixed: bool,
}

impl Plan {
    /// Where `v` is along the axis: 0 at its beginning, 1 at its end.
    pub fn place(&self, v: f64) -> f64 {
        match self.scale {
            Scale::Log => (v.log10() - self.low.log10()) / (self.high.log10() - self.low.log10()),
            _ => (v - self.low) / (self.high - self.low),
        }
    }

    /// The width of the widest tick label.
    pub fn widest(&self) -> f64 {
        self.ticks.iter().map(|(_, label)| width(label, TICK, false)).fold(0.0, f64::max)
    }
}

/// The names on the horizontal and on the vertical axis of the panels that one place in the figure shows in turn
/// (one, or one a frame); empty for an axis of numbers.
pub(super) fn names(states: &[&Panel]) -> (Vec<String>, Vec<String>) {
    let (mut x, mut y) = (Vec::new(), Vec::new());
    let Some(first) = states.first() else { return (x, y) };
    x.clone_from(&first.x.categories);
    y.clone_from(&first.y.categories);
    for series in states.iter().flat_map(|p| &p.series) {
        match series {
            Series::Bars(bars) => {
                for label in &bars.labels {
                    if !x.contains(label) {
                        x.push(label.clone());
                    }
                }
            }
            Series::Heatmap(map) => {
                let named = |given: &[String], labels: &[String], cells: usize| match (given.len(), labels.len()) {
                    (g, _) if g == cells => given.to_vec(),
                    (_, l) if l == cells => labels.to_vec(),
                    _ => (1..=cells).map(|i| i.to_string()).collect(),
                };
                (x, y) = (named(&x, &map.column_labels, map.columns), named(&y, &map.row_labels, map.rows));
            }
            Series::Line(_) | Series::Scatter(_) => {}
        }
    }
    // A category axis without names has the numbers of its places.
    let places = |horizontal| {
        let (_, high) = extent(states, horizontal, Scale::Linear).unwrap_or((0.0, 0.0));
        (0..=high.clamp(0.0, 999.0) as usize).map(|i| i.to_string()).collect()
    };
    if x.is_empty() && first.x.scale == Scale::Category {
        x = places(true);
    }
    if y.is_empty() && first.y.scale == Scale::Category {
        y = places(false);
    }
    (x, y)
}

/// The least and the greatest value that has to be seen, or `None` if there is no data.
fn extent(states: &[&Panel], horizontal: bool, scale: Scale) -> Option<(f64, f64)> {
    let mut all: Vec<f64> = Vec::new();
    let mut edges: Vec<f64> = Vec::new();
    for panel in states {
        for series in &panel.series {
            match (series, horizontal) {
                (Series::Line(s), true) => all.extend(&s.x),
                (Series::Scatter(s), true) => all.extend(&s.x),
                (Series::Line(s), false) => {
                    all.extend(&s.y);
                    edges.extend(s.band.iter().flat_map(|b| b.lo.iter().chain(&b.hi)));
                }
                (Series::Scatter(s), false) => {
                    all.extend(&s.y);
                    edges.extend(s.error.iter().flat_map(|b| b.lo.iter().chain(&b.hi)));
                }
                (Series::Bars(s), false) => {
                    all.extend(&s.values);
                    edges.extend(s.error.iter().flat_map(|b| b.lo.iter().chain(&b.hi)));
                    if scale == Scale::Linear {
                        all.push(0.0);
                    }
                }
                _ => {}
            }
        }
        all.extend(panel.rules.iter().filter(|r| r.horizontal != horizontal).map(|r| r.at));
        all.extend(panel.notes.iter().map(|n| if horizontal { n.x } else { n.y }));
    }
    let ends = |values: &mut dyn Iterator<Item = f64>| {
        values.filter(|v| v.is_finite()).fold(None, |ends: Option<(f64, f64)>, v| {
            Some(ends.map_or((v, v), |(low, high)| (low.min(v), high.max(v))))
        })
    };
    let (low, high) = ends(&mut all.iter().copied())?;
    // On a log axis, a band that reaches far down (mean minus deviation, close to 0) must not press the rest together.
    let floor = if scale == Scale::Log { low / 3.0 } else { f64::NEG_INFINITY };
    ends(&mut edges.iter().map(|v| v.max(floor)).chain([low, high]))
}

/// The ends of an axis of numbers.
pub(super) fn ends(states: &[&Panel], horizontal: bool) -> (f64, f64) {
    let axis = |p: &Panel| if horizontal { p.x.clone() } else { p.y.clone() };
    let scale = states.first().map_or(Scale::Linear, |p| axis(p).scale);
    if let Some(range) = states.iter().find_map(|p| axis(p).range) {
        return range;
    }
    let (low, high) = extent(states, horizontal, scale).unwrap_or((if scale == Scale::Log { 0.1 } else { 0.0 }, 1.0));
    let marks = states.iter().flat_map(|p| &p.series).any(|s| match s {
        Series::Line(line) => line.markers,
        _ => true,
    });
    let share = match (horizontal, marks) {
        (true, false) => 0.0,
        (true, true) => 0.04,
        (false, _) => 0.05,
    };
    if scale == Scale::Log {
        let (a, b) = (low.log10(), high.log10());
        if b - a < 1e-9 {
            return (low / 2.0, high * 2.0);
        }
        let pad = (b - a) * share;
        // The ends stay numbers, however far apart the data are.
        return (10f64.powf((a - pad).max(-305.0)), 10f64.powf((b + pad).min(305.0)));
    }
    if high - low <= 1e-12 * low.abs().max(high.abs()) {
        let pad = if low == 0.0 { 1.0 } else { low.abs() * 0.1 };
        return (low - pad, high + pad);
    }
    let pad = (high - low) * share;
    // Space beyond 0 would suggest values of the other sign; dots on 0 still need a little.
    let low = if low >= 0.0 && low - pad < 0.0 {
        if horizontal && marks { low - pad / 2.0 } else { 0.0f64.min(low) }
    } else {
        low - pad
    };
    let high = if high <= 0.0 && high + pad > 0.0 { 0.0 } else { high + pad };
    (low, high)
}

/// The axis over `ends`, `pixels` long.
pub(super) fn plan(axis: &Axis, ends: (f64, f64), pixels: f64, horizontal: bool) -> Plan {
    let (low, high) = ends;
    let mut plan =
        Plan { scale: axis.scale, low, high, ticks: Vec::new(), minor: Vec::new(), slanted: false, fixed: false };
    let (a, b) = (low.min(high), low.max(high));
    if let Some(at) = &axis.ticks {
        let slack = 1e-9 * (b - a);
        let inside = at.iter().copied().filter(|t| (a - slack..=b + slack).contains(t));
        plan.ticks = inside.map(|t| (t, minus(&significant(t, 6)))).collect();
        plan.fixed = true;
        return plan;
    }
    let most = move |labels: &[Tick]| {
        let widest = labels.iter().map(|(_, l)| width(l, TICK, false)).fold(0.0, f64::max);
        let room = if horizontal { pixels / (widest + 14.0) } else { pixels / 26.0 };
        (room.floor() as usize).clamp(2, 7)
    };
    if axis.scale == Scale::Log {
        let (ticks, minor) = log_ticks(a, b, &most);
        (plan.ticks, plan.minor) = (ticks, minor);
    } else {
        plan.ticks = linear_ticks(a, b, &most);
    }
    plan
}

/// An axis of names, `pixels` long. `down` puts the first name at the top.
pub(super) fn plan_names(names: &[String], pixels: f64, horizontal: bool, down: bool) -> Plan {
    let n = names.len().max(1) as f64;
    let (low, high) = if down { (n - 0.5, -0.5) } else { (-0.5, n - 0.5) };
    let longest = if horizontal { 140.0 } else { 150.0 };
    let labels: Vec<String> = names.iter().map(|l| super::text::shorten(l, TICK, longest)).collect();
    let widest = labels.iter().map(|l| width(l, TICK, false)).fold(0.0, f64::max);
    let step = pixels / n;
    let slanted = horizontal && widest + 6.0 > step && widest > 24.0;
    // What one label needs along the axis, and so how many names share one.
    let needs = if horizontal && !slanted { widest + 6.0 } else { TICK * 1.25 };
    let every = (needs / step).ceil().max(1.0) as usize;
    // Of numbers, the round ones are shown: 10, 20, 30.
    let counted = names.iter().enumerate().all(|(i, name)| *name == (i + 1).to_string());
    let every = match counted && every > 1 {
        true => [2, 5, 10, 20, 50, 100, 200, 500, 1000].into_iter().find(|e| *e >= every).unwrap_or(every),
        false => every,
    };
    let first = if counted && every > 1 { every - 1 } else { 0 };
    let ticks = labels.into_iter().enumerate().skip(first).step_by(every).map(|(i, l)| (i as f64, l)).collect();
    Plan { scale: Scale::Category, low, high, ticks, minor: Vec::new(), slanted, fixed: true }
}

/// Ticks at multiples of 1, 2, 2.5 or 5 times a power of ten, as many as have room.
pub(super) fn linear_ticks(low: f64, high: f64, most: &Room) -> Vec<Tick> {
    let span = high - low;
    let base = 10f64.powf((span / 8.0).log10().floor());
    let mut last = Vec::new();
    // From many ticks to few: the first step whose labels have room.
    for factor in [1.0, 2.0, 2.5, 5.0, 10.0, 20.0, 25.0, 50.0, 100.0] {
        let step = base * factor;
        let (from, to) = ((low / step - 1e-9).ceil(), (high / step + 1e-9).floor());
        let count = (to - from + 1.0).max(0.0) as usize;
        if count > 60 {
            continue;
        }
        let ticks: Vec<f64> =
            (0..count).map(|i| (from + i as f64) * step).map(|t| if t.abs() < step * 1e-9 { 0.0 } else { t }).collect();
        let labels = linear_labels(&ticks, step);
        if count < 2 {
            break;
        }
        let fits = count <= most(&labels);
        last = labels;
        if fits {
            break;
        }
    }
    last
}

/// Labels with the decimals that `step` needs; powers of ten for very large and very small numbers.
fn linear_labels(ticks: &[f64], step: f64) -> Vec<Tick> {
    let largest = ticks.iter().fold(0.0f64, |m, t| m.max(t.abs()));
    let label = |t: f64| {
        if t == 0.0 {
            return "0".to_owned();
        }
        if (1e-3..1e5).contains(&largest) && step >= 1e-5 {
            let decimals = (0..8)
                .find(|&d| {
                    let s = step * 10f64.powi(d);
                    (s - s.round()).abs() < 1e-6 * s
                })
                .unwrap_or(8);
            return minus(&format!("{t:.*}", decimals as usize));
        }
        power(t, (largest / step).log10().ceil().max(0.0) as usize + 2)
    };
    ticks.iter().map(|&t| (t, label(t))).collect()
}

/// `2.5×10^{5}`.
fn power(v: f64, digits: usize) -> String {
    let text = format!("{v:.*e}", digits);
    let Some((mantissa, exponent)) = text.split_once('e') else { return text };
    let mantissa = if mantissa.contains('.') { mantissa.trim_end_matches('0').trim_end_matches('.') } else { mantissa };
    match mantissa {
        "1" => format!("10^{{{}}}", minus(exponent)),
        "-1" => format!("\u{2212}10^{{{}}}", minus(exponent)),
        m => format!("{}×10^{{{}}}", minus(m), minus(exponent)),
    }
}

/// Decades, or 1-2-5 where there are fewer than two of them; minor ticks at the other digits.
fn log_ticks(low: f64, high: f64, most: &Room) -> (Vec<Tick>, Vec<f64>) {
    let (a, b) = (low.log10(), high.log10());
    let inside = |v: f64| (a - 1e-9..=b + 1e-9).contains(&v.log10());
    let exponents: Vec<i32> = ((a - 1e-9).ceil() as i32..=(b + 1e-9).floor() as i32).collect();
    let digits = |which: &[i32]| -> Vec<f64> {
        (a.floor() as i32..=b.ceil() as i32)
            .flat_map(|k| which.iter().map(move |&m| f64::from(m) * 10f64.powi(k)))
            .filter(|v| inside(*v))
            .collect()
    };
    let minor = if b - a <= 8.0 { digits(&[2, 3, 4, 5, 6, 7, 8, 9]) } else { Vec::new() };
    if exponents.len() >= 2 {
        let plain = exponents.iter().all(|k| (-2..=3).contains(k));
        let label = |&k: &i32| {
            let v = 10f64.powi(k);
            (v, if plain { significant(v, 6) } else { format!("10^{{{}}}", minus(&k.to_string())) })
        };
        let all: Vec<Tick> = exponents.iter().map(label).collect();
        let every = all.len().div_ceil(most(&all));
        let kept = all.into_iter().zip(&exponents).filter(|(_, k)| k.rem_euclid(every as i32) == 0).map(|(t, _)| t);
        return (kept.collect(), minor);
    }
    let labelled = |values: Vec<f64>| -> Vec<Tick> {
        let large = values.iter().any(|v| !(1e-3..1e5).contains(v));
        values.into_iter().map(|v| (v, if large { power(v, 2) } else { significant(v, 6) })).collect()
    };
    for which in [&[1, 2, 3, 4, 5, 6, 7, 8, 9][..], &[1, 2, 3, 5, 7], &[1, 2, 5], &[1, 3], &[1, 5], &[1]] {
        let ticks = labelled(digits(which));
        if (2..=most(&ticks)).contains(&ticks.len()) {
            return (ticks, minor);
        }
    }
    (linear_ticks(low, high, most), minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(ticks: &[Tick]) -> Vec<&str> {
        ticks.iter().map(|(_, l)| l.as_str()).collect()
    }

    #[test]
    fn linear_ticks_are_round_and_their_labels_short() {
        let few = |_: &[Tick]| 6;
        assert_eq!(labels(&linear_ticks(0.0, 1.0, &few)), ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(labels(&linear_ticks(-2.1, 1.7, &few)), ["−2", "−1", "0", "1"]);
        assert_eq!(
            labels(&linear_ticks(0.0, 30000.0, &few)),
            ["0", "5000", "10000", "15000", "20000", "25000", "30000"][..0]
                .iter()
                .copied()
                .chain(["0", "10000", "20000", "30000"])
                .collect::<Vec<_>>()
        );
        assert_eq!(labels(&linear_ticks(0.0, 4e5, &few)), ["0", "10^{5}", "2×10^{5}", "3×10^{5}", "4×10^{5}"]);
        for (low, high) in [(1e-12, 3e-12), (-1e300, 1e300), (5.0, 5.0001), (1e9, 1e9 + 1.0)] {
            let ticks = linear_ticks(low, high, &few);
            assert!(ticks.len() >= 2, "{low} {high}: {ticks:?}");
            let mut texts = labels(&ticks);
            texts.dedup();
            assert_eq!(texts.len(), ticks.len(), "{low} {high}: {texts:?}");
        }
    }

    #[test]
    fn log_ticks_are_decades_or_digits() {
        let few = |_: &[Tick]| 6;
        assert_eq!(labels(&log_ticks(1e-3, 1.0, &few).0), ["10^{−3}", "10^{−2}", "10^{−1}", "10^{0}"]);
        assert_eq!(labels(&log_ticks(0.5, 200.0, &few).0), ["1", "10", "100"]);
        assert_eq!(labels(&log_ticks(1.0, 8.0, &few).0), ["1", "2", "3", "5", "7"]);
        assert!(log_ticks(1e-300, 1e300, &few).0.len() <= 7);
        assert!(log_ticks(1.10, 1.13, &few).0.len() >= 2);
    }
}
