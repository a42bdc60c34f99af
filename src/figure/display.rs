//! Display in a notebook. evcxr calls `evcxr_display` on the value that ends a cell; blocks that follow one another are
//! one output with one content for each MIME type, of which a front end shows the richest that it knows.

use std::io::Write;

use super::{Claims, Figure, Table};
use crate::Result;

/// One block of evcxr's protocol. The frame's own last line must not be inside.
fn block(mime: &str, content: &str) -> String {
    let safe = content.replace("EVCXR_END_CONTENT", "EVCXR_END\u{2009}CONTENT");
    format!("EVCXR_BEGIN_CONTENT {mime}\n{}\nEVCXR_END_CONTENT\n", safe.trim_end_matches('\n'))
}

/// All blocks in one piece, so that nothing else that is printed comes between them.
fn print(blocks: &[String]) {
    // A notebook that is gone has no use for an error about it.
    let _ = std::io::stdout().lock().write_all(blocks.concat().as_bytes());
    let _ = std::io::stdout().flush();
}

impl Figure {
    /// Shows the figure in a notebook: interactive where Plotly is (JupyterLab, VS Code), as SVG elsewhere (GitHub,
    /// nbviewer), as text in a terminal. One that cannot be drawn shows why.
    ///
    /// There is no HTML among the contents on purpose: viewers that show no scripts would prefer it to the SVG.
    pub fn evcxr_display(&self) {
        print(&self.mime_bundle().unwrap_or_else(|error| {
            vec![block("text/plain", &format!("Figure '{}' cannot be drawn: {error}", self.id))]
        }));
    }

    /// The blocks of [`Figure::evcxr_display`].
    fn mime_bundle(&self) -> Result<Vec<String>> {
        let plotly = self.to_plotly_json()?.to_string();
        let mut blocks = vec![block("application/vnd.plotly.v1+json", &plotly)];
        // What a user made with Plotly may have traces that only Plotly draws; it is shown all the same.
        if let Ok(svg) = self.to_svg() {
            blocks.push(block("image/svg+xml", &svg));
        }
        blocks.push(block("text/plain", &self.to_string()));
        Ok(blocks)
    }
}

impl std::fmt::Display for Figure {
    /// Title, caption and claims as text: what is left of a figure where nothing can be drawn.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Figure {}: {}", self.id, super::text::plain(&self.title))?;
        if !self.caption.is_empty() {
            write!(f, "\n{}", super::text::plain(&self.caption))?;
        }
        if !self.claims.is_empty() {
            write!(f, "\n\n{}", self.claims)?;
        }
        Ok(())
    }
}

impl Claims {
    /// The claims as an HTML table with their count, verdicts in colour.
    pub fn to_html(&self) -> String {
        let mut html = self.table().to_html();
        for (word, color) in [("does not hold", "#b3261e"), ("holds", "#00795a")] {
            html = html.replace(
                &format!("text-align:left\">{word}</td>"),
                &format!("text-align:left;white-space:nowrap;font-weight:bold;color:{color}\">{word}</td>"),
            );
        }
        format!("{html}<p style=\"font-family:sans-serif;font-size:13px\">{}</p>", self.summary())
    }

    /// Shows the claims in a notebook as a table.
    pub fn evcxr_display(&self) {
        print(&[block("text/html", &self.to_html()), block("text/plain", &self.to_string())]);
    }
}

impl Table {
    /// Shows the table in a notebook.
    pub fn evcxr_display(&self) {
        print(&[block("text/html", &self.to_html()), block("text/plain", &self.to_string())]);
    }
}
