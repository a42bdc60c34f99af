//! Figures: what is drawn, what is refused, and what is written.

use incontext::figure::{
    Axis, Bars, Bound, Claim, Claims, Color, Figure, Frame, Heatmap, Line, Panel, Scatter, Series, Table,
};
use incontext::fs::write_atomic;
use serde_json::{Value, json};

/// A figure with everything in it.
fn full() -> Figure {
    let steps: Vec<u32> = (0..50).map(|i| i * 10).collect();
    let loss: Vec<f32> = steps.iter().map(|s| 2.0 * (-(*s as f32) / 100.0).exp() + 0.01).collect();
    let low: Vec<f32> = loss.iter().map(|v| v - 0.02).collect();
    let high: Vec<f32> = loss.iter().map(|v| v + 0.02).collect();
    Figure::new("test.full", "Everything & <more>, in Σ^{1/2}")
        .caption("A caption with \"quotes\", <tags> & an A_{l}, long enough to be wrapped into several lines of text below the panels of the figure, whatever their number.")
        .columns(2)
        .panel(
            Panel::new("lines")
                .x(Axis::linear("step"))
                .y(Axis::log("loss <nats>"))
                .line(Line::new("GD", &steps, &loss).band(&low, &high).dashed())
                .line(Line::new("exact", [0.0, 490.0], [0.01, 0.01]).dotted().color(Color::BLACK).markers())
                .hline(0.02, "accepted")
                .vline(100.0, "halved")
                .text(250.0, 0.5, "a note"),
        )
        .panel(
            Panel::new("points")
                .x(Axis::log("n"))
                .y(Axis::linear("error").range(-1.0, 5.0).ticks([0, 2, 4]))
                .scatter(Scatter::new("GD", [1, 10, 100], [4.0, f64::NAN, 1.0]).error([3.5, 1.0, 0.5], [4.5, 3.0, 1.5])),
        )
        .panel(
            Panel::new("bars")
                .x(Axis::category("method"))
                .y(Axis::linear("loss"))
                .bars(Bars::new("TF", ["GD", "CG, with \"restarts\""], [1.0, -0.5]).error([0.9, -0.6], [1.1, -0.4]))
                .bars(Bars::new("exact", ["GD", "OLS"], [0.8, 0.1])),
        )
        .panel(
            Panel::new("matrix")
                .heatmap(Heatmap::new(2, 3, [1.0, -0.5, 0.0, f64::NAN, 0.25, -1.0]).annotate(2).diverging().labels(["a", "b"], [1, 2, 3])),
        )
        .with_claims(claims())
        .provenance(json!({"seed": 3}))
}

fn claims() -> Claims {
    Claims::new()
        .at_most("test.low", "the loss is < 0.02 & low", 0.01, 0.02)
        .within("test.in", "it is within", 5.0, -2.03, -1.99)
        .at_least("test.nan", "it is a number", f64::NAN, 0.0)
        .equals("test.eq", "it is what it should be", 0.4225, 0.42241, 0.001)
}

fn sliding() -> Figure {
    let frame = |k: usize| {
        let z = (0..4).map(|i| (i + k) as f64 / 4.0);
        let y = [1.0, 2.0, k as f64];
        Frame::new(
            k * 100,
            [
                Panel::new(format!("at {k}")).heatmap(Heatmap::new(2, 2, z).annotate(1)),
                Panel::new("curve")
                    .line(Line::new("y", [0, 1, 2], y).band([0.5, 1.5, 0.0], [1.5, 2.5, 9.0]))
                    .vline(k as f64 / 2.0, "now"),
            ],
        )
    };
    Figure::new("test.slider", "A slider")
        .panel(Panel::new("fixed").line(Line::new("loss", [0, 1], [1, 0])))
        .slider("step", (0..3).map(frame))
        .active(1)
}

#[test]
fn svg_is_well_formed_self_contained_and_the_same_every_time() {
    for figure in [full(), sliding(), Figure { columns: Some(1), ..full() }] {
        let svg = figure.to_svg().unwrap();
        let tree = roxmltree::Document::parse(&svg).expect("well-formed XML");
        let root = tree.root_element();
        assert_eq!((root.tag_name().name(), root.tag_name().namespace()), ("svg", Some("http://www.w3.org/2000/svg")));
        for element in tree.descendants() {
            for attribute in element.attributes() {
                assert!(!attribute.value().contains("http"), "{attribute:?}");
                assert!(!attribute.value().contains("NaN") && !attribute.value().contains("inf"), "{attribute:?}");
            }
        }
        assert_eq!(svg, figure.clone().to_svg().unwrap());
        assert!(svg.len() < 150_000, "{} bytes", svg.len());
    }
}

/// Text boxes of an SVG that are not turned, as drawn by a font no wider than the one measured with.
fn boxes(svg: &str) -> Vec<(String, [f64; 4])> {
    let tree = roxmltree::Document::parse(svg).unwrap();
    let texts = tree.descendants().filter(|e| e.has_tag_name("text") && e.attribute("transform").is_none());
    texts
        .map(|e| {
            let number = |name: &str| e.attribute(name).unwrap().parse::<f64>().unwrap();
            let words: String = e.descendants().filter_map(|d| d.text().filter(|_| d.is_text())).collect();
            let (x, y, size) = (number("x"), number("y"), number("font-size"));
            // Half the size a character is less than any sans-serif's average: a floor, so that no box is imagined.
            let w = words.chars().count() as f64 * size * 0.45;
            let left = match e.attribute("text-anchor") {
                Some("middle") => x - w / 2.0,
                Some("end") => x - w,
                _ => x,
            };
            (words, [left, y - 0.7 * size, left + w, y])
        })
        .collect()
}

#[test]
fn texts_neither_overlap_nor_leave_the_sheet() {
    for figure in [full(), sliding(), Figure { columns: Some(4), ..full() }] {
        let svg = figure.to_svg().unwrap();
        let tree = roxmltree::Document::parse(&svg).unwrap();
        let size = |name: &str| tree.root_element().attribute(name).unwrap().parse::<f64>().unwrap();
        let (width, height) = (size("width"), size("height"));
        let all = boxes(&svg);
        assert!(all.len() > 20);
        for (i, (words, a)) in all.iter().enumerate() {
            assert!(a[0] >= 0.0 && a[1] >= 0.0 && a[2] <= width && a[3] <= height, "'{words}' at {a:?}");
            for (others, b) in &all[i + 1..] {
                let apart = a[2] <= b[0] || b[2] <= a[0] || a[3] <= b[1] || b[3] <= a[1];
                assert!(apart, "'{words}' {a:?} meets '{others}' {b:?}");
            }
        }
    }
}

#[test]
fn a_static_figure_says_which_frame_it_shows() {
    let svg = sliding().to_svg().unwrap();
    assert!(svg.contains("Shown: step = 100 (frame 2 of 3"), "{svg}");
    assert_ne!(svg, sliding().active(2).to_svg().unwrap());
}

#[test]
fn long_and_large_data_stay_small() {
    let n = 100_000;
    let x: Vec<usize> = (0..n).collect();
    let y: Vec<f64> = x.iter().map(|i| ((i * 7919) % 1009) as f64 / 1009.0).collect();
    let mut panel = Panel::new("noise");
    for name in ["a", "b", "c", "d"] {
        panel = panel.line(Line::new(name, &x, &y).band(y.iter().map(|v| v - 0.1), y.iter().map(|v| v + 0.1)));
    }
    let figure = Figure::new("test.large", "Large").panel(panel);
    let svg = figure.to_svg().unwrap();
    assert!(svg.len() < 200_000, "{} bytes", svg.len());
    assert!(figure.to_plotly_json().unwrap().to_string().len() < 2_000_000);
    let map = Heatmap::new(300, 300, (0..90_000).map(|i| f64::from(i).sin())).annotate(2);
    let figure = Figure::new("test.map", "Large").panel(Panel::new("").heatmap(map));
    let svg = figure.to_svg().unwrap();
    assert!(svg.len() < 250_000, "{} bytes", svg.len());
}

fn one(panel: Panel) -> Figure {
    Figure::new("test.bad", "Bad").panel(panel)
}

#[test]
fn what_cannot_be_drawn_is_an_error_that_says_what_and_where() {
    let line = |x: &[f64], y: &[f64]| Panel::new("p").line(Line::new("s", x, y));
    let nan = f64::NAN;
    let cases: Vec<(Figure, &str)> = vec![
        (Figure::new("empty", "Empty"), "panels of figure 'empty': got shape [0]"),
        (one(Panel::new("p")), "series of panel 0 'p'"),
        (one(line(&[], &[])), "x of line 's' in panel 0 'p': got shape [0]"),
        (one(line(&[1.0, 2.0], &[1.0])), "y of line 's' in panel 0 'p': got shape [1], expected [2]"),
        (one(line(&[1.0], &[f64::INFINITY])), "y of line 's' in panel 0 'p'[0]: got inf"),
        (one(line(&[1.0, 2.0], &[nan, nan])), "NaN alone"),
        (one(line(&[1.0], &[0.0]).y(Axis::log("y"))), "above 0 on a log axis"),
        (one(line(&[-1.0], &[1.0]).x(Axis::log("x"))), "above 0 on a log axis"),
        (one(line(&[1.0], &[1.0]).y(Axis::linear("y").range(1.0, 1.0))), "range of the y axis"),
        (one(line(&[1.0], &[1.0]).y(Axis::linear("y").range(nan, 1.0))), "range of the y axis"),
        (one(line(&[1.0], &[1.0]).y(Axis::log("y").range(0.0, 1.0))), "range of the y axis"),
        (one(line(&[1.0], &[1.0]).hline(nan, "r")), "the line 'r' across"),
        (one(line(&[1.0], &[1.0]).y(Axis::log("y")).hline(0.0, "r")), "the line 'r' across"),
        (one(line(&[1.0], &[1.0]).text(1.0, nan, "t")), "y of the text 't'"),
        (one(Panel::new("p").line(Line::new("s", [1, 2], [1, 2]).band([1.0], [1.0, 2.0]))), "lower edge of the band"),
        (one(Panel::new("p").line(Line::new("s", [1], [1]).band([2.0], [1.0]))), "not above the upper one"),
        (one(Panel::new("p").line(Line::new("s", [1], [1]).width(nan))), "width of line 's'"),
        (one(Panel::new("p").bars(Bars::new("s", ["a", "b"], [1.0]))), "values of bars 's'"),
        (one(Panel::new("p").heatmap(Heatmap::new(2, 2, [1, 2, 3]))), "z of the heatmap in panel 0 'p': got shape [3]"),
        (one(Panel::new("p").heatmap(Heatmap::new(0, 2, [0.0; 0]))), "got shape [0, 2]"),
        (one(Panel::new("p").heatmap(Heatmap::new(usize::MAX, 2, [1.0]))), "z of the heatmap"),
        (one(Panel::new("p").heatmap(Heatmap::new(1, 1, [1.0]).labels(["a", "b"], ["c"]))), "row labels"),
        (one(Panel::new("p").heatmap(Heatmap::new(1, 1, [1.0]).range(1.0, 0.0))), "range of the heatmap"),
        (one(Panel::new("p").heatmap(Heatmap::new(1, 1, [1.0])).line(Line::new("s", [1], [1]))), "a heat map alone"),
        (Figure { columns: Some(0), ..full() }, "columns of the figure"),
        (Figure::new("f", "").slider("s", Vec::<Frame>::new()), "panels of figure 'f'"),
        (full().slider("s", Vec::<Frame>::new()), "frames of 's': got shape [0]"),
        (sliding().active(9), "active frame of 'step': got 9, expected a frame from 0 to 2"),
        (
            Figure::new("f", "").slider("s", [Frame::new(1, [line(&[1.0], &[1.0])]), Frame::new(2, [])]),
            "panels of frame '2' of 's': got shape [0]",
        ),
        (
            Figure::new("f", "").slider(
                "s",
                [
                    Frame::new(1, [line(&[1.0], &[1.0])]),
                    Frame::new(2, [Panel::new("p").scatter(Scatter::new("s", [1], [1]))]),
                ],
            ),
            "series [scatter 's'], expected [line 's'], as in the first frame",
        ),
        (
            // What the first frame draws would stand over the second one's cells.
            Figure::new("f", "").slider(
                "s",
                [["a", "b"], ["b", "a"]].map(|names| {
                    let map = Heatmap::new(2, 2, [1.0, 2.0, 3.0, 4.0]).labels(names, ["c", "d"]);
                    Frame::new(names[0], [Panel::new("p").heatmap(map)])
                }),
            ),
            "heatmap 2x2, rows b a, columns c d], expected [heatmap 2x2, rows a b",
        ),
        (
            Figure::new("f", "").slider(
                "s",
                [Heatmap::new(1, 1, [1.0]), Heatmap::new(1, 1, [1.0]).annotate(1)]
                    .map(|map| Frame::new(1, [Panel::new("p").heatmap(map)])),
            ),
            "1x1 with numbers], expected [",
        ),
        (one(Panel::new("p").bars(Bars::new("b", ["x"], [1])).bars(Bars::new("b", ["x"], [2]))), "two called 'b'"),
        (one(Panel::new("p").bars(Bars::new("b", ["x", "x"], [1, 2]))), "'x' twice"),
    ];
    for (figure, words) in cases {
        let errors = [
            figure.check().err(),
            figure.to_svg().err(),
            figure.to_plotly_json().err(),
            figure.to_plotly().err(),
            figure.to_json().err(),
            figure.to_csv().err(),
        ];
        for error in errors {
            let message = error.unwrap_or_else(|| panic!("no error: {words}")).to_string();
            assert!(message.contains(words), "'{message}' does not say '{words}'");
        }
        // In a notebook, the error is shown in the figure's place.
        figure.evcxr_display();
    }
}

#[test]
fn odd_data_are_drawn() {
    let nan = f64::NAN;
    let odd = [
        Panel::new("a point").line(Line::new("s", [1.0], [1.0])),
        Panel::new("a constant").line(Line::new("s", [1.0, 2.0], [0.0, 0.0])),
        Panel::new("gaps").line(Line::new("s", [1.0, nan, 3.0, 4.0], [1.0, 2.0, nan, 4.0]).band([nan; 4], [nan; 4])),
        Panel::new("huge").line(Line::new("s", [0.0, 1.0], [-1e300, 1e300])),
        Panel::new("tiny").line(Line::new("s", [0.0, 1e-300], [1e-300, 2e-300])),
        Panel::new("wide").y(Axis::log("y")).line(Line::new("s", [1, 2], [1e-300, 1e300])),
        Panel::new("below").y(Axis::log("y")).line(Line::new("s", [1, 2], [0.1, 0.2]).band([-1.0, 0.0], [0.3, 0.4])),
        Panel::new("backwards").x(Axis::linear("x").range(5.0, 0.0)).line(Line::new("s", [1, 2], [1, 2])),
        Panel::new("outside").x(Axis::linear("x").range(5.0, 9.0)).line(Line::new("s", [1, 2], [1, 2])).vline(1.0, "left"),
        Panel::new("rule alone").hline(1.0, "a rule with a label that is very much longer than any panel is wide, so that it is cut"),
        Panel::new("flat map").heatmap(Heatmap::new(1, 1, [0.0]).diverging().annotate(3)),
        Panel::new("thin map").heatmap(Heatmap::new(40, 1, (0..40).map(f64::from)).annotate(1)),
        Panel::new("places").x(Axis::category("x").names(["one", "two"])).scatter(Scatter::new("", [0, 1], [1, 2])),
        Panel::new("no names").x(Axis::category("x")).scatter(Scatter::new("", [0, 3], [1, 2])),
        Panel::new("a title that is a good deal longer than the panel below it, and so is wrapped").line(Line::new("a name that is far too long to stand in a legend of any figure, but has to be put somewhere all the same, shortened", [1, 2], [1, 2])),
    ];
    for panel in odd {
        let figure = one(panel);
        let svg = figure.to_svg().unwrap_or_else(|e| panic!("{}: {e}", figure.panels[0].title));
        roxmltree::Document::parse(&svg).unwrap();
        assert!(!svg.contains("NaN") && !svg.contains("inf "), "{}", figure.panels[0].title);
        let json = figure.to_plotly_json().unwrap();
        assert!(json["data"].is_array());
    }
}

#[test]
fn claims_hold_by_their_bounds_alone() {
    let claims = claims();
    let verdicts: Vec<bool> = claims.iter().map(Claim::holds).collect();
    assert_eq!(verdicts, [true, false, false, true]);
    assert_eq!(claims.failing().map(|c| c.id.as_str()).collect::<Vec<_>>(), ["test.in", "test.nan"]);
    assert!(!claims.all_hold() && Claims::new().all_hold());
    for bound in
        [Bound::AtMost(1.0), Bound::AtLeast(1.0), Bound::Within(0.5, 1.0), Bound::Equals { value: 1.0, tolerance: 0.0 }]
    {
        assert!(bound.holds(1.0) && !bound.holds(f64::NAN), "{bound}");
        assert_eq!(bound.to_string().parse::<Bound>().unwrap(), bound);
    }
    for bound in [Bound::AtMost(f64::NAN), Bound::AtLeast(f64::NAN), Bound::Within(f64::NAN, 1.0)] {
        assert!(!bound.holds(1.0), "{bound}");
    }
    assert!("about 3".parse::<Bound>().is_err());
    assert_eq!("[\u{2212}2.03, \u{2212}1.99]".parse::<Bound>().unwrap(), Bound::Within(-2.03, -1.99));
    let text = claims.to_string();
    assert!(text.contains("does not hold") && text.ends_with("2 of 4 claims hold"), "{text}");
}

#[test]
fn claims_have_the_json_that_was_agreed() {
    let json = serde_json::to_value(claims()).unwrap();
    assert_eq!(
        json[0],
        json!({"id": "test.low", "statement": "the loss is < 0.02 & low", "measured": 0.01, "bound": "<= 0.02", "holds": true})
    );
    assert_eq!(json[1]["bound"], "[-2.03, -1.99]");
    assert_eq!(json[2]["measured"], Value::Null);
    // A file that claims more than its numbers do is not believed.
    let forged = json!([{"id": "a", "statement": "b", "measured": 2.0, "bound": "<= 1", "holds": true}]);
    assert!(!serde_json::from_value::<Claims>(forged).unwrap().all_hold());
    let back: Claims = serde_json::from_value(json).unwrap();
    assert_eq!(back.iter().map(Claim::holds).collect::<Vec<_>>(), [true, false, false, true]);
}

#[test]
fn json_has_everything_and_reads_back() {
    for figure in [full(), sliding()] {
        let text = figure.to_json().unwrap();
        assert!(Figure::from_json(&text).unwrap().to_json().unwrap() == text, "{} changes", figure.id);
    }
    let json: Value = serde_json::from_str(&full().to_json().unwrap()).unwrap();
    assert_eq!(json["id"], "test.full");
    let line = &json["panels"][0]["series"][0];
    assert_eq!((&line["kind"], &line["name"]), (&json!("line"), &json!("GD")));
    assert_eq!(line["x"].as_array().unwrap().len(), 50);
    assert_eq!(line["band"]["lo"].as_array().unwrap().len(), 50);
    assert_eq!(json["panels"][0]["y"]["scale"], "log");
    assert_eq!(json["panels"][1]["series"][0]["y"], json!([4.0, null, 1.0]));
    assert_eq!(json["panels"][3]["series"][0]["z"], json!([1.0, -0.5, 0.0, null, 0.25, -1.0]));
    assert_eq!(json["claims"].as_array().unwrap().len(), 4);
    assert_eq!(json["provenance"]["seed"], 3);
    assert!(Figure::from_json("{}").is_err());
}

/// The fields of CSV as RFC 4180 has them.
fn csv(text: &str) -> Vec<Vec<String>> {
    let mut rows = vec![vec![String::new()]];
    let mut quoted = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let row = rows.last_mut().unwrap();
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => row.last_mut().unwrap().push(chars.next().unwrap()),
            '"' => quoted = !quoted,
            ',' if !quoted => row.push(String::new()),
            '\r' if !quoted => {}
            '\n' if !quoted => rows.push(vec![String::new()]),
            c => row.last_mut().unwrap().push(c),
        }
    }
    rows.pop();
    rows
}

#[test]
fn csv_has_a_row_for_each_point_and_quotes_what_it_must() {
    let rows = csv(&full().to_csv().unwrap());
    assert_eq!(rows[0], ["panel", "series", "kind", "frame", "x", "y", "lo", "hi", "z", "row", "column"]);
    assert!(rows.iter().all(|row| row.len() == 11));
    assert_eq!(rows.len(), 1 + 50 + 2 + 3 + 2 + 2 + 6);
    assert!(
        rows.contains(
            &["bars", "TF", "bars", "", "CG, with \"restarts\"", "-0.5", "-0.6", "-0.4", "", "", ""]
                .map(String::from)
                .to_vec()
        )
    );
    assert!(rows.contains(&["matrix", "", "heatmap", "", "", "", "", "", "0.25", "b", "2"].map(String::from).to_vec()));
    let rows = csv(&sliding().to_csv().unwrap());
    assert!(rows.contains(&["curve", "y", "line", "200", "2", "2", "0", "9", "", "", ""].map(String::from).to_vec()));
}

#[test]
fn plotly_json_is_what_its_renderer_takes() {
    let json = full().to_plotly_json().unwrap();
    for key in ["data", "layout", "frames", "config"] {
        assert!(!json[key].is_null(), "{key}");
    }
    let data = json["data"].as_array().unwrap();
    let kinds: Vec<&str> = data.iter().map(|t| t["type"].as_str().unwrap()).collect();
    // A band and two lines; points; two sets of bars; cells with dark and with white numbers.
    let scatter = "scatter";
    assert_eq!(kinds, [scatter, scatter, scatter, scatter, "bar", "bar", "heatmap", scatter, scatter]);
    assert_eq!(data[0]["fill"], "toself");
    assert_eq!(data[6]["yaxis"], "y4");
    assert_eq!(data[6]["z"][1][0], Value::Null);
    let layout = &json["layout"];
    assert_eq!(layout["yaxis"]["type"], "log");
    assert_eq!(layout["yaxis"]["title"]["text"], "loss &lt;nats&gt;");
    // A range on a log axis is one of exponents.
    assert!(layout["yaxis"]["range"][0].as_f64().unwrap() < -1.0);
    for axis in ["xaxis", "yaxis", "xaxis4", "yaxis4"] {
        let domain = layout[axis]["domain"].as_array().unwrap();
        let ends: Vec<f64> = domain.iter().map(|v| v.as_f64().unwrap()).collect();
        assert!(0.0 < ends[0] && ends[0] < ends[1] && ends[1] < 1.0, "{axis} {ends:?}");
    }
    let listed: Vec<&str> =
        data.iter().filter(|t| t["showlegend"] == true).map(|t| t["name"].as_str().unwrap()).collect();
    assert_eq!(listed, ["GD", "exact", "TF"], "each name once");
    // One name, one colour, in every panel.
    assert_eq!(data[1]["line"]["color"], data[3]["marker"]["color"]);
    assert_eq!(data[2]["line"]["color"], data[5]["marker"]["color"]);
    let texts = layout["annotations"].to_string();
    for words in ["accepted", "halved", "a note", "2 of 4 claims hold", "the loss is &lt; 0.02 &amp; low"] {
        assert!(texts.contains(words), "{words}");
    }
}

#[test]
fn frames_match_the_traces_they_move() {
    let json = sliding().to_plotly_json().unwrap();
    let data = json["data"].as_array().unwrap();
    let frames = json["frames"].as_array().unwrap();
    assert_eq!((data.len(), frames.len()), (6, 3));
    for frame in frames {
        assert_eq!(frame["traces"], json!([1, 2, 3, 4, 5]));
        let moved = frame["data"].as_array().unwrap();
        for (trace, base) in moved.iter().zip(&data[1..]) {
            for same in ["type", "xaxis", "yaxis", "showlegend", "mode"] {
                assert_eq!(trace[same], base[same], "{same}");
            }
        }
    }
    assert_eq!(frames[1]["data"].as_array().unwrap()[..], data[1..], "the active frame is what is drawn first");
    let slider = &json["layout"]["sliders"][0];
    assert_eq!(slider["active"], 1);
    let steps = slider["steps"].as_array().unwrap();
    let names: Vec<&str> = frames.iter().map(|f| f["name"].as_str().unwrap()).collect();
    for (step, name) in steps.iter().zip(&names) {
        assert_eq!((&step["method"], &step["args"][0]), (&json!("animate"), &json!([name])));
    }
    assert_eq!(steps.iter().map(|s| s["label"].as_str().unwrap()).collect::<Vec<_>>(), ["0", "100", "200"]);
    let buttons = Figure::new("b", "").buttons("task", [Frame::new("one", [Panel::new("").hline(1.0, "")])]);
    assert_eq!(buttons.to_plotly_json().unwrap()["layout"]["updatemenus"][0]["buttons"][0]["label"], "one");
}

#[test]
fn more_panels_than_the_crate_has_axes_are_drawn_as_json() {
    let panels = (0..10).map(|i| Panel::new(format!("{i}")).line(Line::new("s", [0, 1], [0, i])));
    let figure = Figure::new("many", "Many").columns(5).panels(panels);
    assert!(figure.to_plotly().err().unwrap().to_string().contains("at most 8"));
    let json = figure.to_plotly_json().unwrap();
    assert_eq!(json["data"][9]["xaxis"], "x10");
    assert!(json["layout"]["xaxis10"]["domain"].is_array());
    let few = full();
    let plot = few.to_plotly().unwrap();
    assert_eq!(serde_json::to_value(&plot).unwrap()["layout"], few.to_plotly_json().unwrap()["layout"]);
}

#[test]
fn a_plot_made_by_hand_is_kept_and_redrawn() {
    let mut plot = plotly::Plot::new();
    plot.add_trace(plotly::Scatter::new(vec![1, 2, 3], vec![1.0, 0.5, 0.25]).name("loss"));
    plot.add_trace(plotly::Bar::new(vec!["a", "b"], vec![1, 2]).x_axis("x2").y_axis("y2"));
    plot.add_trace(plotly::HeatMap::new_z(vec![vec![1.0, 2.0], vec![3.0, 4.0]]).x_axis("x3").y_axis("y3"));
    let given = serde_json::to_value(&plot).unwrap();
    let figure = Figure::from_plotly("mine", "Mine", plot).unwrap();
    assert_eq!(figure.to_plotly_json().unwrap(), given);
    let svg = figure.to_svg().unwrap();
    roxmltree::Document::parse(&svg).unwrap();
    assert!(svg.contains("loss"));
    // Plotly's first row is the lowest.
    let rows = csv(&figure.to_csv().unwrap());
    let cells: Vec<&str> = rows.iter().filter(|r| r[2] == "heatmap").map(|r| r[8].as_str()).collect();
    assert_eq!(cells, ["3", "4", "1", "2"]);
    let text = figure.to_json().unwrap();
    assert_eq!(Figure::from_json(&text).unwrap(), figure);

    // A line over bars of numbers is at the bars' places, whichever comes first.
    for bars_first in [true, false] {
        let mut plot = plotly::Plot::new();
        let bars = plotly::Bar::new(vec![2020, 2021, 2022], vec![1, 2, 3]);
        let line = plotly::Scatter::new(vec![2021, 2022], vec![5.0, 6.0]);
        if bars_first {
            plot.add_traces(vec![bars, line]);
        } else {
            plot.add_traces(vec![line, bars]);
        }
        let rows = csv(&Figure::from_plotly("both", "Both", plot).unwrap().to_csv().unwrap());
        let places: Vec<&str> = rows.iter().filter(|r| r[2] == "line").map(|r| r[4].as_str()).collect();
        assert_eq!(places, ["1", "2"]);
    }
    let mut plot = plotly::Plot::new();
    plot.add_trace(plotly::Bar::new(vec![10, 20], vec![1, 2]).orientation(plotly::common::Orientation::Horizontal));
    let error = Figure::from_plotly("h", "H", plot).unwrap().to_svg().unwrap_err().to_string();
    assert!(error.contains("horizontal bars"), "{error}");

    let mut plot = plotly::Plot::new();
    plot.add_trace(plotly::Pie::new(vec![1, 2]));
    let error = Figure::from_plotly("pie", "Pie", plot).unwrap().to_svg().unwrap_err().to_string();
    assert!(error.contains("trace 0 of figure 'pie'") && error.contains("pie"), "{error}");
    assert!(Figure::from_plotly("none", "None", plotly::Plot::new()).unwrap().to_svg().is_err());
}

#[test]
fn tables_show_themselves() {
    let table = Table::new(["name", "value"]).row(["<a>".into(), 0.5.into()]).row(["b".into(), 12.25.into()]);
    assert_eq!(table.to_string(), "name  value\n────  ─────\n<a>     0.5\nb     12.25");
    assert!(table.to_html().contains("&lt;a&gt;") && table.check().is_ok());
    let ragged = table.row(["c".into()]);
    assert!(ragged.check().unwrap_err().to_string().contains("row 2"));
    assert!(!ragged.to_html().is_empty() && !ragged.to_string().is_empty());
    roxmltree::Document::parse(&ragged.to_html()).expect("well-formed");
}

#[test]
fn series_are_of_four_kinds() {
    let kinds: Vec<&str> = full().panels.iter().flat_map(|p| &p.series).map(Series::kind).collect();
    assert_eq!(kinds, ["line", "line", "scatter", "bars", "bars", "heatmap"]);
}

#[test]
fn files_are_written_whole_or_not_at_all() {
    let folder = std::env::temp_dir().join(format!("incontext-atomic-{}", std::process::id()));
    let path = folder.join("deep").join("file.txt");
    write_atomic(&path, "one").unwrap();
    write_atomic(&path, "two").unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "two");
    let names = |folder: &std::path::Path| std::fs::read_dir(folder).unwrap().count();
    assert_eq!(names(&folder.join("deep")), 1);
    // What a killed process left of this file goes when it is old enough to be no one's; other files stay.
    for (name, seconds, stays) in [
        (".file.txt.4242-0.tmp", 7200, false),
        (".file.txt.4242-1.tmp", 60, true),
        (".file.txt.notes.tmp", 7200, true),
        (".other.txt.4242-0.tmp", 7200, true),
    ] {
        let left = folder.join("deep").join(name);
        let old = std::time::SystemTime::now() - std::time::Duration::from_secs(seconds);
        std::fs::File::create(&left).unwrap().set_modified(old).unwrap();
        write_atomic(&path, "two").unwrap();
        assert_eq!(left.exists(), stays, "{name}");
    }
    // Where a folder is, no file can be: the error names the path, and nothing is left beside it.
    let error = write_atomic(folder.join("deep"), "three").unwrap_err().to_string();
    assert!(error.contains("could not write") && error.contains("deep"), "{error}");
    assert_eq!(names(&folder), 1);
    // A file where a folder is needed.
    assert!(write_atomic(path.join("below"), "four").is_err());
    assert!(write_atomic("/", "five").is_err());
    // A folder that cannot be written to; whoever may write anywhere cannot be kept out of one.
    let locked = folder.join("locked");
    std::fs::create_dir(&locked).unwrap();
    let writable = std::fs::metadata(&locked).unwrap().permissions();
    let mut read_only = writable.clone();
    read_only.set_readonly(true);
    std::fs::set_permissions(&locked, read_only).unwrap();
    let written = write_atomic(locked.join("file"), "six");
    std::fs::set_permissions(&locked, writable).unwrap();
    assert_eq!(names(&locked), usize::from(written.is_ok()));
    std::fs::remove_dir_all(folder).unwrap();
}
