//! Weights that others trained: safetensors files under Hugging Face's names for GPT-2 and under those of Garg et al.
//!
//! `cargo lab convert` makes such a file of a PyTorch one.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors};

use super::{Gpt2, Gpt2Config, Positions};
use crate::ops::attention::Attention;
use crate::ops::sequence::Architecture;
use crate::{Error, Result};

/// Tensors by name, with their shapes.
pub type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

impl Gpt2 {
    /// A GPT-2 from a safetensors file, with the architecture that its shapes tell and `heads` heads, which they do not; of a file
    /// that [`Gpt2::save`] wrote, with the architecture that is stored in it.
    ///
    /// Names are Hugging Face's (`h.0.attn.c_attn.weight`, …, with or without `transformer.` before them), with
    /// `read_in` and `read_out` for the affine maps at the ends, or those of the checkpoints of Garg et al.
    /// (`_backbone.h.0.…`, `_read_in.weight`, `_read_out.weight`). Word embeddings and stored masks are left out. Without
    /// a read-in, tokens are what `transformers` calls `inputs_embeds`, and predictions are the last hidden state.
    ///
    /// # Errors
    /// [`Error::File`] if the file cannot be read; [`Error::Corrupt`] if it is no sound safetensors file of `f32` or
    /// `f64` values, or if tensors are missing, have other shapes than the architecture, or are not part of it;
    /// [`Error::Invalid`] for heads that do not divide the width, or are not the stored architecture's. Nothing is loaded in part.
    pub fn load(path: &Path, heads: usize) -> Result<Gpt2> {
        let corrupt = |why: String| Error::corrupt(path, why);
        let file = std::fs::read(path).map_err(|e| Error::file(path, "read", e))?;
        let tensors = SafeTensors::deserialize(&file).map_err(|e| corrupt(format!("no safetensors file: {e}")))?;
        let mut named = Tensors::new();
        for (name, view) in tensors.iter() {
            let Some(name) = canonical(name) else { continue };
            let values = match view.dtype() {
                Dtype::F32 => view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
                Dtype::F64 => view.data().as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
                other => return Err(corrupt(format!("'{name}' has values of type {other:?}, expected F32 or F64"))),
            };
            if named.insert(name.to_owned(), (view.shape().to_vec(), values)).is_some() {
                return Err(corrupt(format!("it has two tensors that are '{name}', under different prefixes")));
            }
        }
        let config = match saved_config(&file).map_err(corrupt)? {
            Some(config) if config.heads == heads => config,
            Some(config) => return Err(Error::invalid("heads", heads, format!("the file's {}", config.heads))),
            None => architecture(&named, heads).map_err(|e| match e {
                Error::Invalid { .. } => e,
                other => corrupt(other.to_string()),
            })?,
        };
        config.check().map_err(|e| corrupt(e.to_string()))?;
        let mut values = Vec::new();
        for entry in config.tensors() {
            let (shape, tensor) =
                named.remove(&entry.name).ok_or_else(|| corrupt(format!("it has no tensor '{}'", entry.name)))?;
            if shape != entry.shape {
                return Err(corrupt(format!("'{}' has shape {shape:?}, expected {:?}", entry.name, entry.shape)));
            }
            values.extend(tensor);
        }
        if let Some(name) = named.keys().next() {
            return Err(corrupt(format!("'{name}' is no tensor of the architecture {config:?}")));
        }
        Gpt2::from_values(config, values).map_err(|e| corrupt(e.to_string()))
    }

    /// Writes the tensors under their names to a safetensors file, which [`Gpt2::load`] and `transformers` read, and in its metadata
    /// the architecture, of which the shapes tell a part.
    ///
    /// # Errors
    /// [`Error::File`] if that fails.
    pub fn save(&self, path: &Path) -> Result<()> {
        let values = self.values();
        let tensors = self.config().tensors().into_iter();
        let config = serde_json::to_string(self.config())
            .map_err(|e| Error::invalid("architecture", format!("{:?}", self.config()), e.to_string()))?;
        let tensors = tensors.map(|e| (e.name, (e.shape, values[e.at].to_vec()))).collect();
        write_with(path, &tensors, HashMap::from([(CONFIG.to_owned(), config)]))
    }
}

/// The name of the architecture in the metadata.
const CONFIG: &str = "incontext.gpt2";

/// The architecture in a file's metadata, if it has one.
fn saved_config(file: &[u8]) -> std::result::Result<Option<Gpt2Config>, String> {
    let (_, header) = SafeTensors::read_metadata(file).map_err(|e| format!("no safetensors file: {e}"))?;
    let stored = header.metadata().as_ref().and_then(|m| m.get(CONFIG));
    stored
        .map(|text| serde_json::from_str(text).map_err(|e| format!("its architecture cannot be read: {e}")))
        .transpose()
}

/// Writes tensors to a safetensors file.
///
/// # Errors
/// [`Error::Shape`] for a tensor whose values do not fit its shape, [`Error::File`] if writing fails.
pub fn write(path: &Path, tensors: &Tensors) -> Result<()> {
    write_with(path, tensors, HashMap::new())
}

fn write_with(path: &Path, tensors: &Tensors, mut metadata: HashMap<String, String>) -> Result<()> {
    // Without it `transformers` refuses the file.
    metadata.insert("format".to_owned(), "pt".to_owned());
    let bytes: Vec<Vec<u8>> = tensors.values().map(|(_, v)| v.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
    let mut views = Vec::with_capacity(tensors.len());
    for ((name, (shape, values)), bytes) in tensors.iter().zip(&bytes) {
        let view = safetensors::tensor::TensorView::new(Dtype::F32, shape.clone(), bytes);
        views.push((name.as_str(), view.map_err(|_| Error::shape(name, &[values.len()], format!("{shape:?}")))?));
    }
    let file = safetensors::serialize(views, Some(metadata)).map_err(|e| Error::file(path, "write", e))?;
    crate::fs::write_atomic(path, file)
}

/// The name of a tensor here, or `None` for one that is not a parameter of the models here.
fn canonical(name: &str) -> Option<&str> {
    let mut name = name;
    for prefix in ["module.", "_backbone.", "transformer.", "_"] {
        name = name.strip_prefix(prefix).unwrap_or(name);
    }
    let mask = name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias");
    (!mask && name != "wte.weight" && name != "lm_head.weight").then_some(name)
}

/// The architecture that the shapes tell.
fn architecture(tensors: &Tensors, heads: usize) -> Result<Gpt2Config> {
    let side = |name: &str, axis: usize| -> Result<usize> {
        let (shape, _) = tensors.get(name).ok_or_else(|| Error::unknown("tensor", name, tensors.keys()))?;
        shape.get(axis).copied().ok_or_else(|| Error::shape(name, shape, "a matrix"))
    };
    let width = side("h.0.attn.c_attn.weight", 0)?;
    if heads == 0 || !width.is_multiple_of(heads) {
        return Err(Error::invalid("heads", heads, format!("a divisor of the width, {width}")));
    }
    let layers = (0..).take_while(|l| tensors.contains_key(&format!("h.{l}.attn.c_attn.weight"))).count();
    let read = tensors.contains_key("read_in.weight");
    Ok(Gpt2Config {
        inputs: if read { side("read_in.weight", 1)? } else { width },
        outputs: if read { side("read_out.weight", 0)? } else { width },
        layers,
        width,
        heads,
        key: width / heads,
        mlp: if tensors.contains_key("h.0.mlp.c_fc.weight") { side("h.0.mlp.c_fc.weight", 1)? } else { 0 },
        attention: Attention::default(),
        positions: Positions::Learned(side("wpe.weight", 0)?),
        layer_norm: tensors.contains_key("ln_f.weight"),
        biases: tensors.contains_key("h.0.attn.c_attn.bias"),
        read,
        clamp: None,
    })
}
