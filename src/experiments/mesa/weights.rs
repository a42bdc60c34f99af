//! Reading trained weights: products W_Kᵀ W_Q and P W_V by blocks of a token's channels, their compression to multiples of
//! the identity, and models made of products.

use crate::linalg::Matrix;
use crate::models::SequenceTransformer;
use crate::ops::sequence_transformer::{Architecture, Layer, Mixer};
use crate::{Error, Result};

/// W_Kᵀ W_Q and P W_V of every head of every layer.
pub type Products = Vec<Vec<[Matrix; 2]>>;

/// The products of a model.
///
/// # Errors
/// None for a model that exists.
pub fn products(model: &SequenceTransformer) -> Result<Products> {
    let layers = model.architecture().layers.iter().enumerate();
    let head = |l: usize, h: usize| Ok([model.key_query(l, h)?, model.projected_value(l, h)?]);
    layers.map(|(l, layer)| (0..layer.heads).map(|h| head(l, h)).collect()).collect()
}

/// Mean of the diagonal of block (i, j), blocks of size `n`.
pub fn mean_diagonal(m: &Matrix, n: usize, i: usize, j: usize) -> f64 {
    (0..n).map(|k| m[(i * n + k, j * n + k)]).sum::<f64>() / n as f64
}

/// Every n x n block replaced by its mean diagonal times the identity: what is left of a head in CompressedAlg-d, 16 + 16
/// numbers for tokens of four channels (the paper counts 16).
///
/// # Panics
/// Unless `m` is made of such blocks.
pub fn compressed(m: &Matrix, n: usize) -> Matrix {
    let fits = |side: usize| n > 0 && side.is_multiple_of(n);
    assert!(fits(m.rows()) && fits(m.cols()), "{} x {} is not made of blocks of {n}", m.rows(), m.cols());
    let means = |i: usize, j: usize| if i % n == j % n { mean_diagonal(m, n, i / n, j / n) } else { 0.0 };
    Matrix::from_fn(m.rows(), m.cols(), means)
}

/// The share of ‖M‖²_F that is in multiples of the identity, block by block.
pub fn block_fraction(m: &Matrix, n: usize) -> f64 {
    (compressed(m, n).norm() / m.norm()).powi(2)
}

/// `f` of every product.
pub fn map(products: &Products, f: impl Fn(&Matrix) -> Matrix + Copy) -> Products {
    let heads = |heads: &Vec<[Matrix; 2]>| heads.iter().map(|pair| [f(&pair[0]), f(&pair[1])]).collect();
    products.iter().map(heads).collect()
}

/// The mean of two sets of products, entry by entry: the paper's interpolation, in logits and in outputs.
pub fn halfway(a: &Products, b: &Products) -> Products {
    let pair = |(a, b): (&[Matrix; 2], &[Matrix; 2])| [0, 1].map(|k| a[k].plus(1.0, &b[k]).scaled(0.5));
    a.iter().zip(b).map(|(a, b)| a.iter().zip(b).map(pair).collect()).collect()
}

/// The model of linear attention whose heads have these products: W_Q holds W_Kᵀ W_Q, P holds P W_V, W_K and W_V are
/// identities. What else `model` has (an embedding, MLPs, a read-out) stays.
///
/// # Errors
/// [`Error::Invalid`] for a layer whose heads are not their products: of another mixer, with positions, features or unit keys;
/// [`Error::Shape`] for products that are not those of every head.
///
/// ```
/// use incontext::experiments::mesa::weights::{products, with_products};
/// use incontext::ops::sequence_transformer::{Architecture, Layer, Mixer};
/// use incontext::prelude::*;
/// let layer = Layer { mlp: Some(6), ..Layer::new(Mixer::Linear, 2, 4) };
/// let model = SequenceTransformer::init(Architecture::constructed(3, vec![layer; 2]), 0.3, 0)?;
/// let same = with_products(&model, &products(&model)?)?;
/// let tokens = Dynamics::linear(3, 6)?.sample(2, 0)?.inputs(TokenKind::Constructed)?;
/// let pairs = model.predict(&tokens)?.into_iter().zip(same.predict(&tokens)?);
/// assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() < 1e-5));
/// # Ok::<(), incontext::Error>(())
/// ```
pub fn with_products(model: &SequenceTransformer, products: &Products) -> Result<SequenceTransformer> {
    let a = model.architecture();
    let is_its_products = |l: &Layer| l.mixer == Mixer::Linear && !l.positions && !l.unit && l.features == 0;
    if let Some(layer) = a.layers.iter().find(|l| !is_its_products(l)) {
        let expected = "linear attention without positions, features and unit keys, whose heads are their products";
        return Err(Error::invalid("layer", format!("{layer:?}"), expected));
    }
    let width = a.width;
    let expected: Vec<usize> = a.layers.iter().map(|l| l.heads).collect();
    let given: Vec<usize> = products.iter().map(Vec::len).collect();
    if given != expected {
        return Err(Error::shape("products of every layer's heads", &given, format!("{expected:?}")));
    }
    let sizes = products.iter().flatten().flatten().map(|m| [m.rows(), m.cols()]);
    if let Some(given) = sizes.into_iter().find(|size| *size != [width; 2]) {
        return Err(Error::shape("product of a head", &given, format!("[{width}, {width}]")));
    }
    let layers = a.layers.iter().map(|l| Layer { key: width, ..*l }).collect();
    let wide = Architecture { layers, ..a.clone() };
    let zeros = vec![0.0_f32; wide.parameters()];
    let mut out = SequenceTransformer::from_values(wide, &zeros)?;
    let of_head = |name: &str| [".query", ".key", ".value", ".out"].iter().any(|end| name.ends_with(end));
    for slot in a.slots().iter().filter(|slot| !of_head(&slot.name)) {
        out.set_matrix(&slot.name, &model.matrix(&slot.name)?)?;
    }
    for (l, heads) in products.iter().enumerate() {
        let channels = heads.len() * width;
        let of = |c: usize, j: usize, which: usize| {
            let (h, c) = (c / width, c % width);
            match which {
                0 => heads[h][0][(c, j)],
                1 => f64::from(u8::from(c == j)),
                _ => heads[h][1][(j, c)],
            }
        };
        out.set_matrix(&format!("layer{l}.query"), &Matrix::from_fn(channels, width, |c, j| of(c, j, 0)))?;
        out.set_matrix(&format!("layer{l}.key"), &Matrix::from_fn(channels, width, |c, j| of(c, j, 1)))?;
        out.set_matrix(&format!("layer{l}.value"), &Matrix::from_fn(channels, width, |c, j| of(c, j, 1)))?;
        out.set_matrix(&format!("layer{l}.out"), &Matrix::from_fn(width, channels, |j, c| of(c, j, 2)))?;
    }
    Ok(out)
}
