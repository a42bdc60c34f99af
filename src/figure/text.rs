//! Text of figures: numbers with enough digits and no noise, widths of strings, wrapping, and XML.

/// `v` with at most `digits` significant digits: no trailing zeros, a true minus sign left to the renderer, powers of
/// ten where the plain form would be long.
pub(crate) fn significant(v: f64, digits: usize) -> String {
    if v.is_nan() {
        return "NaN".to_owned();
    }
    if v.is_infinite() {
        return if v > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{v:.*e}", digits.saturating_sub(1));
    let exponent: i32 = scientific.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0);
    if v == 0.0 {
        return "0".to_owned();
    }
    if !(-4..7).contains(&exponent) {
        let (mantissa, _) = scientific.split_once('e').unwrap_or((&scientific, ""));
        return format!("{}e{exponent}", trim(mantissa));
    }
    let decimals = (digits as i32 - 1 - exponent).max(0) as usize;
    trim(&format!("{v:.decimals$}")).to_owned()
}

/// Without the zeros that end a decimal fraction.
fn trim(number: &str) -> &str {
    if number.contains('.') { number.trim_end_matches('0').trim_end_matches('.') } else { number }
}

/// Text that is safe inside XML and HTML, elements and attributes both. Characters that XML forbids are left out.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\t' | '\n' | '\r' => out.push(c),
            c if (c as u32) < 0x20 || matches!(c as u32, 0xfffe | 0xffff) => {}
            c => out.push(c),
        }
    }
    out
}

/// Widths of the printable ASCII characters in thousandths of the font size. They are those of a wide sans-serif
/// (DejaVu Sans), so that text measured with them is not wider in Arial, Helvetica or Liberation Sans.
const REGULAR: [u16; 95] = [
    318, 401, 460, 838, 636, 950, 780, 275, 390, 390, 500, 838, 318, 361, 318, 337, 636, 636, 636, 636, 636, 636, 636,
    636, 636, 636, 337, 337, 838, 838, 838, 531, 1000, 684, 686, 698, 770, 632, 575, 775, 752, 295, 295, 656, 557, 863,
    748, 787, 603, 787, 695, 635, 611, 732, 684, 989, 685, 611, 685, 390, 337, 390, 838, 500, 500, 613, 635, 550, 635,
    615, 352, 635, 634, 278, 278, 579, 278, 974, 634, 612, 635, 635, 411, 521, 392, 634, 592, 818, 592, 592, 525, 636,
    337, 636, 838,
];

/// The same for bold text.
const BOLD: [u16; 95] = [
    348, 456, 521, 838, 696, 1002, 872, 306, 457, 457, 523, 838, 380, 415, 380, 365, 696, 696, 696, 696, 696, 696, 696,
    696, 696, 696, 400, 400, 838, 838, 838, 580, 1000, 774, 762, 734, 830, 683, 683, 821, 837, 372, 372, 775, 637, 995,
    837, 850, 733, 850, 770, 720, 682, 812, 774, 1103, 771, 724, 725, 457, 365, 457, 838, 500, 500, 675, 716, 593, 716,
    678, 435, 716, 712, 343, 343, 665, 343, 1042, 712, 687, 716, 716, 493, 595, 478, 712, 652, 924, 645, 652, 582, 712,
    365, 712, 838,
];

/// The size of a raised or lowered part, relative to the text around it.
pub(crate) const SCRIPT: f64 = 0.7;

/// A part of a text: on the line, raised, or lowered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    Line,
    Raised,
    Lowered,
}

/// The parts of a text in which `^{…}` raises and `_{…}` lowers what is in the braces. Anything else is as it is.
pub(crate) fn parts(text: &str) -> Vec<(Level, &str)> {
    let mut parts = Vec::new();
    let mut rest = text;
    let mut plain = 0;
    while let Some(found) = rest[plain..].find(['^', '_']).map(|i| i + plain) {
        let level = if rest.as_bytes()[found] == b'^' { Level::Raised } else { Level::Lowered };
        let inside = rest[found + 1..].strip_prefix('{').and_then(|s| s.split_once('}'));
        match inside {
            Some((script, after)) => {
                if found > 0 {
                    parts.push((Level::Line, &rest[..found]));
                }
                parts.push((level, script));
                rest = after;
                plain = 0;
            }
            None => plain = found + 1,
        }
    }
    if !rest.is_empty() {
        parts.push((Level::Line, rest));
    }
    parts
}

/// The text without its marks for raised and lowered parts, `x^{2}` as `x^2`.
pub(crate) fn plain(text: &str) -> String {
    let mut out = String::new();
    for (level, part) in parts(text) {
        match level {
            Level::Line => {}
            Level::Raised => out.push('^'),
            Level::Lowered => out.push('_'),
        }
        out.push_str(part);
    }
    out
}

/// The text as HTML (which Plotly's texts are too), escaped, with `<sup>` and `<sub>`.
pub(crate) fn html(text: &str) -> String {
    let mut out = String::new();
    for (level, part) in parts(text) {
        match level {
            Level::Line => out += &escape(part),
            Level::Raised => out += &format!("<sup>{}</sup>", escape(part)),
            Level::Lowered => out += &format!("<sub>{}</sub>", escape(part)),
        }
    }
    out
}

/// An upper bound for the width of `text` in pixels at font size `size`.
pub(crate) fn width(text: &str, size: f64, bold: bool) -> f64 {
    let table = if bold { &BOLD } else { &REGULAR };
    let of = |c: char| match c {
        ' '..='~' => f64::from(table[c as usize - 32]),
        '\u{300}'..='\u{36f}' => 0.0,
        '·' | '¹' | '²' | '³' | '⁰'..='₎' => 440.0,
        '\u{a1}'..='\u{24f}' | '\u{370}'..='\u{3ff}' => 760.0,
        _ => 1000.0,
    };
    let wide = |part: &str| part.chars().map(of).sum::<f64>() * size / 1000.0;
    parts(text).iter().map(|(level, part)| wide(part) * if *level == Level::Line { 1.0 } else { SCRIPT }).sum()
}

/// Lines of at most `limit` pixels, broken at spaces; a word that is longer is broken inside. Line breaks in the text
/// are kept. No text gives no lines.
pub(crate) fn wrap(text: &str, size: f64, bold: bool, limit: f64) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in text.lines() {
        let mut line = String::new();
        for word in words(paragraph) {
            let longer = if line.is_empty() { word.to_owned() } else { format!("{line} {word}") };
            if width(&longer, size, bold) <= limit {
                line = longer;
                continue;
            }
            if !line.is_empty() {
                lines.push(std::mem::take(&mut line));
            }
            for c in word.chars() {
                let longer = format!("{line}{c}");
                if !line.is_empty() && width(&longer, size, bold) > limit {
                    lines.push(std::mem::take(&mut line));
                }
                line.push(c);
            }
        }
        lines.push(line);
    }
    if lines.iter().all(String::is_empty) { Vec::new() } else { lines }
}

/// Words between spaces; a space inside `^{…}` or `_{…}` separates none.
fn words(text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let (mut start, mut open) = (0, false);
    for (i, c) in text.char_indices() {
        match c {
            '{' => open = text[..i].ends_with(['^', '_']) && text[i..].contains('}'),
            '}' => open = false,
            c if c.is_whitespace() && !open => {
                words.push(&text[start..i]);
                start = i + c.len_utf8();
            }
            _ => {}
        }
    }
    words.push(&text[start..]);
    words.retain(|w| !w.is_empty());
    words
}

/// `text`, shortened with an ellipsis to at most `limit` pixels.
pub(crate) fn shorten(text: &str, size: f64, limit: f64) -> String {
    if width(text, size, false) <= limit {
        return text.to_owned();
    }
    let mut short = plain(text);
    while !short.is_empty() && width(&format!("{short}…"), size, false) > limit {
        short.pop();
    }
    format!("{}…", short.trim_end())
}

/// A number's hyphen as the minus sign it is.
pub(crate) fn minus(number: &str) -> String {
    number.replace('-', "\u{2212}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_enough_digits_and_no_noise() {
        let cases = [
            (0.0, "0"),
            (-0.0, "0"),
            (1.0, "1"),
            (0.1 + 0.2, "0.3"),
            (-2.01284, "-2.013"),
            (123456.0, "123456"),
            (0.000123, "0.000123"),
            (0.0000123, "1.23e-5"),
            (1.5e9, "1.5e9"),
            (9.9999e-5, "0.0001"),
            (99999.6, "100000"),
        ];
        for (value, text) in cases {
            assert_eq!(significant(value, 4), text, "{value}");
        }
        assert_eq!(significant(f64::NAN, 4), "NaN");
        assert_eq!(significant(f64::NEG_INFINITY, 4), "-inf");
    }

    #[test]
    fn scripts_are_found_only_in_braces() {
        assert_eq!(parts("10^{-3}"), [(Level::Line, "10"), (Level::Raised, "-3")]);
        assert_eq!(
            parts("w_{0}^{2} a_b"),
            [(Level::Lowered, "0"), (Level::Raised, "2"), (Level::Line, " a_b")].iter().fold(
                vec![(Level::Line, "w")],
                |mut v, p| {
                    v.push(*p);
                    v
                }
            )
        );
        assert_eq!(parts("^{open"), [(Level::Line, "^{open")]);
        assert_eq!(html("Σ^{1/2} < A_{l}"), "Σ<sup>1/2</sup> &lt; A<sub>l</sub>");
        assert_eq!(plain("x^{2}"), "x^2");
    }

    #[test]
    fn wrapped_lines_fit_and_lose_nothing() {
        let text = "A caption of some length with averyveryverylongwordthatfitsnowhere and an end.";
        let lines = wrap(text, 12.0, false, 90.0);
        assert!(lines.iter().all(|line| width(line, 12.0, false) <= 90.0), "{lines:?}");
        let letters = |s: &str| s.chars().filter(|c| !c.is_whitespace()).collect::<String>();
        assert_eq!(letters(&lines.concat()), letters(text));
        assert!(wrap("  ", 12.0, false, 90.0).is_empty());
        assert_eq!(wrap("one\ntwo", 12.0, false, 90.0), ["one", "two"]);
    }
}
