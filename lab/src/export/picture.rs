//! Bitmaps and PDF from the SVG, without a browser and with our own font: the same picture on a machine without any.

use std::sync::{Arc, OnceLock};

use incontext::{Error, Result};
use resvg::usvg::{self, fontdb};
use resvg::{render, tiny_skia};

/// DejaVu Sans, the font that figures are measured with.
fn fonts() -> Arc<fontdb::Database> {
    static FONTS: OnceLock<Arc<fontdb::Database>> = OnceLock::new();
    let load = || {
        let mut fonts = fontdb::Database::new();
        fonts.load_font_data(dejavu::sans::regular().to_vec());
        fonts.load_font_data(dejavu::sans::bold().to_vec());
        fonts.set_sans_serif_family("DejaVu Sans");
        Arc::new(fonts)
    };
    FONTS.get_or_init(load).clone()
}

fn tree(svg: &str) -> Result<usvg::Tree> {
    let options = usvg::Options { fontdb: fonts(), font_family: "DejaVu Sans".to_owned(), ..usvg::Options::default() };
    usvg::Tree::from_str(svg, &options).map_err(|e| Error::numerical("reading the figure's SVG", e.to_string()))
}

/// A PNG of the SVG, `scale` pixels for each of its units.
///
/// # Errors
/// [`Error::Numerical`] if the picture is too large to be held in memory.
pub(super) fn png(svg: &str, scale: f32) -> Result<Vec<u8>> {
    let tree = tree(svg)?;
    let (w, h) = ((tree.size().width() * scale).ceil(), (tree.size().height() * scale).ceil());
    let too_large =
        || Error::numerical("PNG of the figure", format!("{w} x {h} pixels are too many; export it as svg"));
    if w * h > 400e6 {
        return Err(too_large());
    }
    let mut pixels = tiny_skia::Pixmap::new(w as u32, h as u32).ok_or_else(too_large)?;
    render(&tree, tiny_skia::Transform::from_scale(scale, scale), &mut pixels.as_mut());
    pixels.encode_png().map_err(|e| Error::numerical("PNG of the figure", e.to_string()))
}

/// A PDF of one page as large as the SVG, its texts as text in an embedded font.
///
/// # Errors
/// [`Error::Numerical`] if the conversion fails.
pub(super) fn pdf(svg: &str) -> Result<Vec<u8>> {
    let page = svg2pdf::PageOptions::default();
    svg2pdf::to_pdf(&tree(svg)?, svg2pdf::ConversionOptions::default(), page)
        .map_err(|e| Error::numerical("PDF of the figure", e.to_string()))
}
