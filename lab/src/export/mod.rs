//! Export: what a reproduction leaves in a folder.
//!
//! For each figure, `<id>.json` (title, axes, every series, claims, provenance), `<id>.svg`, `<id>.html` (interactive,
//! with everything it needs inside) and `<id>.run.json`; for all of them `index.html`, the gallery with the verdicts.
//! [`write`] also makes PNG, PDF and CSV.
//!
//! `<id>.json` is a function of the configuration and the seed: the same run gives the same bytes, for any number of
//! threads and on any day. What differs from run to run (how long it took, on what) is therefore not in it but in
//! `<id>.run.json`, on the page and in the gallery.

mod page;
mod picture;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use incontext::experiments::Reproduction;
use incontext::figure::{Claims, Figure};
use incontext::fs::write_atomic;
use incontext::{Error, Result};
use serde_json::json;

/// A form in which a figure can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Static, as vectors, for the web.
    Svg,
    /// Static, as pixels, two for each of the SVG's.
    Png,
    /// Static, as vectors with selectable text, for papers.
    Pdf,
    /// Interactive, with everything it needs inside.
    Html,
    /// The data with axes, claims and provenance.
    Json,
    /// The data alone, a row a point.
    Csv,
}

impl Format {
    /// Every format.
    pub const ALL: [Format; 6] = [Format::Svg, Format::Png, Format::Pdf, Format::Html, Format::Json, Format::Csv];

    /// Its name, which is also its file extension.
    pub fn extension(self) -> &'static str {
        match self {
            Format::Svg => "svg",
            Format::Png => "png",
            Format::Pdf => "pdf",
            Format::Html => "html",
            Format::Json => "json",
            Format::Csv => "csv",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.extension())
    }
}

impl FromStr for Format {
    type Err = Error;

    /// Reads a format's name, in upper or lower case, with or without a dot before it.
    ///
    /// # Errors
    /// [`Error::Unknown`] that lists the formats.
    fn from_str(name: &str) -> Result<Self> {
        let plain = name.trim().trim_start_matches('.').to_ascii_lowercase();
        let found = Format::ALL.into_iter().find(|f| f.extension() == plain);
        found.ok_or_else(|| Error::unknown("export format", name, Format::ALL.map(Format::extension)))
    }
}

/// A figure that was made, with what is known about its making.
#[derive(Clone, Copy, Debug)]
pub struct Made<'a> {
    /// The figure's id, `paper.figure`.
    pub id: &'a str,
    /// The figure, its claims, and the configuration that made them.
    pub reproduction: &'a Reproduction,
    /// The seed of the run.
    pub seed: u64,
    /// How long it took.
    pub seconds: f64,
}

impl Made<'_> {
    /// The figure with its claims under it and its provenance: configuration, seed and versions.
    fn figure(&self) -> Figure {
        let mut figure = self.reproduction.figure.clone();
        figure.claims = self.claims().clone();
        figure.provenance = json!({
            "config": self.reproduction.config,
            "seed": self.seed,
            "versions": {"incontext": env!("CARGO_PKG_VERSION")},
        });
        figure
    }

    /// The claims of the reproduction, or those the figure brought along.
    fn claims(&self) -> &Claims {
        let own = &self.reproduction.claims;
        if own.is_empty() { &self.reproduction.figure.claims } else { own }
    }

    /// What differs from run to run.
    fn run(&self) -> serde_json::Value {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        json!({
            "id": self.id,
            "seconds": (self.seconds * 1000.0).round() / 1000.0,
            "threads": threads,
            "system": format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH),
        })
    }
}

/// One figure in the gallery: what is left of it when the figure itself is gone.
#[derive(Clone, Debug)]
pub struct Card {
    id: String,
    title: String,
    caption: String,
    thumbnail: String,
    claims: Claims,
    seconds: f64,
    seed: u64,
}

impl Card {
    /// The card of a figure.
    ///
    /// # Errors
    /// Those of drawing it.
    pub fn new(made: &Made<'_>) -> Result<Self> {
        let figure = made.figure();
        let (title, caption) = (figure.title.clone(), figure.caption.clone());
        // The card says what else there is to say; the thumbnail is the panels.
        let bare = Figure { title: String::new(), caption: String::new(), claims: Claims::new(), ..figure };
        Ok(Card {
            id: made.id.to_owned(),
            title,
            caption,
            thumbnail: bare.to_svg()?,
            claims: made.claims().clone(),
            seconds: made.seconds,
            seed: made.seed,
        })
    }
}

/// The bytes of a figure in one format.
///
/// # Errors
/// Those of drawing it: see [`Figure::check`]; [`Error::Numerical`] if it is too large for a bitmap.
pub fn bytes(made: &Made<'_>, format: Format) -> Result<Vec<u8>> {
    let figure = made.figure();
    Ok(match format {
        Format::Svg => figure.to_svg()?.into_bytes(),
        Format::Png => picture::png(&figure.to_svg()?, 2.0)?,
        Format::Pdf => picture::pdf(&figure.to_svg()?)?,
        Format::Html => page::figure(&figure, &made.run())?.into_bytes(),
        Format::Json => figure.to_json()?.into_bytes(),
        Format::Csv => figure.to_csv()?.into_bytes(),
    })
}

/// Writes a figure in one format to `path`, whole or not at all.
///
/// # Errors
/// Those of [`bytes`], and [`Error::File`] if the file cannot be written.
pub fn write(made: &Made<'_>, format: Format, path: &Path) -> Result<()> {
    write_atomic(path, bytes(made, format)?)
}

/// Writes `<id>.json`, `<id>.run.json`, `<id>.svg` and `<id>.html` into `folder`, and says what it wrote.
///
/// # Errors
/// Those of [`write()`].
pub fn write_all(folder: &Path, made: &Made<'_>) -> Result<Vec<PathBuf>> {
    let mut written = Vec::new();
    for format in [Format::Json, Format::Svg, Format::Html] {
        let path = folder.join(format!("{}.{format}", made.id));
        write(made, format, &path)?;
        written.push(path);
    }
    let run =
        serde_json::to_string_pretty(&made.run()).map_err(|e| Error::numerical("JSON of the run", e.to_string()))?;
    let path = folder.join(format!("{}.run.json", made.id));
    write_atomic(&path, run + "\n")?;
    written.push(path);
    Ok(written)
}

/// Writes `index.html` into `folder`: a card for each figure, with its verdicts, linked to its page.
///
/// # Errors
/// [`Error::File`] if it cannot be written.
pub fn gallery(folder: &Path, cards: &[Card]) -> Result<PathBuf> {
    let path = folder.join("index.html");
    write_atomic(&path, page::gallery(cards))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use incontext::figure::{Axis, Heatmap, Line, Panel};

    fn reproduction() -> Reproduction {
        let figure = Figure::new("test.fig1", "A <title> & more")
            .caption("What \"it\" shows.")
            .panel(Panel::new("curve").x(Axis::linear("step")).y(Axis::log("loss")).line(Line::new(
                "GD",
                [1, 2],
                [1.0, 0.1],
            )))
            .panel(Panel::new("matrix").heatmap(Heatmap::new(2, 2, [1, 0, 0, 1]).annotate(2)));
        let claims = Claims::new().at_most("test.fig1.low", "it is low", 0.1, 0.2).at_least(
            "test.fig1.no",
            "it is high",
            0.1,
            0.9,
        );
        Reproduction { figure, claims, config: json!({"n": 20, "tag": "</script><b>"}) }
    }

    fn folder(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("incontext-export-{name}-{}", std::process::id()))
    }

    #[test]
    fn formats_have_names() {
        for format in Format::ALL {
            assert_eq!(format.to_string().to_uppercase().parse::<Format>().unwrap(), format);
        }
        let message = "gif".parse::<Format>().unwrap_err().to_string();
        assert_eq!(message, "no export format is called 'gif'; there are: svg, png, pdf, html, json, csv");
    }

    #[test]
    fn every_format_is_what_it_says() {
        let reproduction = reproduction();
        let made = Made { id: "test.fig1", reproduction: &reproduction, seed: 7, seconds: 1.5 };
        let start = |format| bytes(&made, format).unwrap();
        assert!(start(Format::Svg).starts_with(b"<svg "));
        assert!(start(Format::Png).starts_with(b"\x89PNG\r\n\x1a\n"));
        assert!(start(Format::Pdf).starts_with(b"%PDF-"));
        assert!(start(Format::Csv).starts_with(b"panel,series,kind,frame,x,y,lo,hi,z,row,column\r\n"));
        let json: serde_json::Value = serde_json::from_slice(&start(Format::Json)).unwrap();
        assert_eq!(json["provenance"]["seed"], 7);
        assert_eq!(json["claims"][1]["holds"], false);
        assert_eq!(json["panels"][0]["series"][0]["y"], json!([1.0, 0.1]));
    }

    #[test]
    fn the_data_do_not_depend_on_how_long_it_took() {
        let reproduction = reproduction();
        let made = |seconds| Made { id: "test.fig1", reproduction: &reproduction, seed: 7, seconds };
        assert_eq!(bytes(&made(1.0), Format::Json).unwrap(), bytes(&made(2.0), Format::Json).unwrap());
        assert_eq!(bytes(&made(1.0), Format::Svg).unwrap(), bytes(&made(2.0), Format::Svg).unwrap());
    }

    #[test]
    fn a_folder_is_complete_and_needs_no_network() {
        let reproduction = reproduction();
        let made = Made { id: "test.fig1", reproduction: &reproduction, seed: 7, seconds: 1.5 };
        let folder = folder("all");
        write_all(&folder, &made).unwrap();
        gallery(&folder, &[Card::new(&made).unwrap()]).unwrap();
        let mut names: Vec<String> =
            std::fs::read_dir(&folder).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["index.html", "test.fig1.html", "test.fig1.json", "test.fig1.run.json", "test.fig1.svg"]);
        for name in ["index.html", "test.fig1.html"] {
            let page = std::fs::read_to_string(folder.join(name)).unwrap();
            for loads in ["<link", "<script src", "<iframe", "@import", "src=\"http", "src='http"] {
                // plotly.js itself writes some of these words; what is ours does not.
                let ours = page.replace(page::plotly_js(), "");
                assert!(!ours.contains(loads), "{name} has {loads}");
            }
            assert!(page.contains("does not hold") && page.contains("A &lt;title&gt; &amp; more"));
            assert!(!page.contains("</script><b>"), "{name} lets data end its script");
        }
        std::fs::remove_dir_all(folder).unwrap();
    }
}
