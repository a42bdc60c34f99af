//! Pages: one for a figure, with plotly.js inside, and the gallery of all. Neither loads anything.

use std::fmt::Write;
use std::sync::OnceLock;

use incontext::figure::{Claims, Figure};
use incontext::progress::duration;
use incontext::{Error, Result};
use serde_json::Value;

use super::Card;

const STYLE: &str = "\
body{font-family:'DejaVu Sans',Verdana,Helvetica,Arial,sans-serif;font-size:14px;line-height:1.5;color:#222;\
background:#fff;margin:24px auto;padding:0 20px;max-width:1080px}\
h1{font-size:20px;margin:0 0 4px}h2{font-size:15px;margin:0 0 6px}p{margin:6px 0}\
a{color:#0060a0}.pale{color:#666;font-size:12px}\
table{border-collapse:collapse;font-size:13px;width:100%;margin:8px 0}\
th,td{text-align:left;vertical-align:top;padding:3px 14px 3px 0;border-bottom:1px solid #ddd}\
th{border-bottom:1px solid #222}td.n,th.n{text-align:right;white-space:nowrap}\
.holds,.fails{white-space:nowrap;font-weight:bold}.holds{color:#00795a}.fails{color:#b3261e}\
pre{background:#f6f6f6;padding:10px;overflow:auto;font-size:12px}summary{cursor:pointer}\
.plot{overflow-x:auto}\
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(480px,1fr));gap:18px;align-items:start}\
.card{border:1px solid #ddd;border-radius:6px;padding:14px;min-width:0}\
.card a.thumb{display:block}.card svg{width:100%;height:auto;max-height:330px}\
.bad{border-color:#b3261e}";

/// Text as HTML.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}

/// plotly.js, as the `plotly` crate carries it. The crate hands it out together with MathJax, which figures do not need:
/// the library is what is in the first script.
pub(super) fn plotly_js() -> &'static str {
    static LIBRARY: OnceLock<String> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let scripts = plotly::Plot::offline_js_sources();
        let first = scripts.split_once("</script>").map_or("", |(first, _)| first);
        first.split_once('>').map_or("", |(_, library)| library).to_owned()
    })
}

/// JSON that can stand in a script: nothing in it can end the script.
fn inline(json: &Value) -> String {
    json.to_string().replace('<', "\\u003c").replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029")
}

fn head(title: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{}</title>\n<style>{STYLE}</style>\n",
        escape(title)
    )
}

fn claims_table(claims: &Claims) -> String {
    if claims.is_empty() {
        return String::new();
    }
    let mut html = String::from(
        "<table><thead><tr><th>verdict</th><th>claim</th><th class=\"n\">measured</th><th class=\"n\">required</th></tr></thead><tbody>\n",
    );
    for claim in claims {
        let class = if claim.holds() { "holds" } else { "fails" };
        let _ = writeln!(
            html,
            "<tr><td class=\"{class}\">{}</td><td>{}<br><span class=\"pale\">{}</span></td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
            claim.verdict(),
            incontext::figure::rich_html(&claim.statement),
            escape(&claim.id),
            escape(&claim.measured_text()),
            escape(&claim.bound_text()),
        );
    }
    html + "</tbody></table>\n"
}

/// The page of a figure: title, the interactive figure, caption, claims, provenance and `run`.
///
/// # Errors
/// Those of drawing the figure.
pub(super) fn figure(figure: &Figure, run: &Value) -> Result<String> {
    // The page has these as text of its own, where they can be selected and wrap to the window.
    let bare = Figure { title: String::new(), caption: String::new(), claims: Claims::new(), ..figure.clone() };
    let plot = bare.to_plotly_json()?;
    let pretty =
        |v: &Value| serde_json::to_string_pretty(v).map_err(|e| Error::numerical("JSON of the run", e.to_string()));
    let mut html = head(&figure.title);
    let _ = write!(
        html,
        "<script>{}</script>\n</head>\n<body>\n<h1>{}</h1>\n<p class=\"pale\">{}</p>\n<div class=\"plot\"><div id=\"plot\"></div></div>\n",
        plotly_js(),
        incontext::figure::rich_html(&figure.title),
        escape(&figure.id)
    );
    if !figure.caption.is_empty() {
        let _ = writeln!(html, "<p>{}</p>", incontext::figure::rich_html(&figure.caption));
    }
    if !figure.claims.is_empty() {
        let _ = writeln!(html, "<h2>{}</h2>", escape(&figure.claims.summary()));
    }
    html += &claims_table(&figure.claims);
    let _ = write!(
        html,
        "<details><summary>Provenance</summary>\n<pre>{}\n{}</pre>\n</details>\n",
        escape(&pretty(&figure.provenance)?),
        escape(&pretty(run)?)
    );
    let _ = write!(
        html,
        "<script>\nconst figure = {};\nPlotly.newPlot('plot', figure).then(() => document.body.dataset.drawn = 'yes');\n</script>\n</body>\n</html>\n",
        inline(&plot)
    );
    Ok(html)
}

/// The gallery: totals, then a card for each figure.
pub(super) fn gallery(cards: &[Card]) -> String {
    let claims: Claims = cards.iter().flat_map(|c| c.claims.iter().cloned()).collect();
    let mut html = head("Reproduced figures");
    let seconds: f64 = cards.iter().map(|c| c.seconds).sum();
    let many = if cards.len() == 1 { "figure" } else { "figures" };
    let took = duration(std::time::Duration::try_from_secs_f64(seconds).unwrap_or_default());
    let _ = write!(
        html,
        "</head>\n<body>\n<h1>Reproduced figures</h1>\n<p>{} {many}, {}; made in {took} by incontext {}.</p>\n",
        cards.len(),
        escape(&claims.summary()),
        env!("CARGO_PKG_VERSION")
    );
    if !claims.all_hold() {
        html += "<h2>Claims that do not hold</h2>\n";
        let failing: Claims = claims.failing().cloned().collect();
        html += &claims_table(&failing);
    }
    html += "<div class=\"cards\">\n";
    for card in cards {
        let bad = if card.claims.all_hold() { "" } else { " bad" };
        let id = escape(&card.id);
        let took = duration(std::time::Duration::try_from_secs_f64(card.seconds).unwrap_or_default());
        let _ = writeln!(
            html,
            "<section class=\"card{bad}\" id=\"{id}\">\n<h2><a href=\"{id}.html\">{}</a></h2>\n<a class=\"thumb\" href=\"{id}.html\">{}</a>\n<p>{}</p>",
            incontext::figure::rich_html(&card.title),
            card.thumbnail,
            incontext::figure::rich_html(&card.caption)
        );
        html += &claims_table(&card.claims);
        let _ = writeln!(
            html,
            "<p class=\"pale\">{id} · {} · seed {} · {took} · <a href=\"{id}.json\">data</a> · <a href=\"{id}.svg\">svg</a></p>\n</section>",
            escape(&card.claims.summary()),
            card.seed
        );
    }
    html + "</div>\n</body>\n</html>\n"
}
