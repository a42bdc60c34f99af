//! Checkpoints: named arrays and a manifest in one safetensors file that checks itself.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::fs::write_atomic;
use crate::{Error, Result};

/// A named array's shape and values.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    shape: Vec<usize>,
    values: Values,
}

/// Single precision for parameters and optimiser state, double for histories.
#[derive(Clone, Debug, PartialEq)]
enum Values {
    F32(Vec<f32>),
    F64(Vec<f64>),
}

impl Array {
    /// A single-precision array.
    ///
    /// # Errors
    /// [`Error::Shape`] if the shape does not hold the values.
    pub fn f32(shape: &[usize], values: Vec<f32>) -> Result<Self> {
        check(shape, values.len())?;
        Ok(Array { shape: shape.to_vec(), values: Values::F32(values) })
    }

    /// A double-precision array.
    ///
    /// # Errors
    /// [`Error::Shape`] if the shape does not hold the values.
    pub fn f64(shape: &[usize], values: Vec<f64>) -> Result<Self> {
        check(shape, values.len())?;
        Ok(Array { shape: shape.to_vec(), values: Values::F64(values) })
    }

    fn dtype(&self) -> Dtype {
        match self.values {
            Values::F32(_) => Dtype::F32,
            Values::F64(_) => Dtype::F64,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        match &self.values {
            Values::F32(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Values::F64(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    }
}

fn check(shape: &[usize], len: usize) -> Result<()> {
    // A product that wraps around would let a shape stand for a length that it has not.
    if shape.iter().try_fold(1_usize, |len, side| len.checked_mul(*side)) == Some(len) {
        Ok(())
    } else {
        Err(Error::shape("array", &[len], format!("{shape:?}")))
    }
}

/// Named arrays with a manifest: what was trained, how, and what came out.
///
/// The file is a safetensors file that other tools read; its metadata holds the manifest and a checksum over names,
/// shapes, values and manifest, so that a damaged file is an error and never a slightly different model.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Checkpoint {
    /// The arrays.
    pub arrays: BTreeMap<String, Array>,
    /// Configuration, seed, steps, loss, and the command that makes it.
    pub manifest: serde_json::Value,
}

impl Checkpoint {
    /// Writes the checkpoint: aside, synced and renamed.
    ///
    /// # Errors
    /// [`Error::File`] if that fails; a file that was there before stays.
    pub fn save(&self, path: &Path) -> Result<()> {
        let failed = |e: String| Error::file(path, "write", e);
        let manifest = self.manifest.to_string();
        let bytes: BTreeMap<&String, Vec<u8>> = self.arrays.iter().map(|(name, a)| (name, a.bytes())).collect();
        let mut views = Vec::with_capacity(bytes.len());
        for (name, array) in &self.arrays {
            let view = TensorView::new(array.dtype(), array.shape.clone(), &bytes[name]);
            views.push((name.as_str(), view.map_err(|e| failed(e.to_string()))?));
        }
        // One key only: the order of several would change from run to run.
        let guarded = serde_json::json!({ "crc32": self.checksum(&manifest), "manifest": manifest });
        let metadata = HashMap::from([("incontext".to_owned(), guarded.to_string())]);
        let file = safetensors::serialize(views, Some(metadata)).map_err(|e| failed(e.to_string()))?;
        write_atomic(path, &file)
    }

    /// Reads and verifies a checkpoint.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read, [`Error::Corrupt`] if it is damaged or of another kind.
    pub fn load(path: &Path) -> Result<Self> {
        let file = std::fs::read(path).map_err(|e| Error::file(path, "read", e))?;
        let corrupt = |why: String| Error::corrupt(path, format!("{why}; train it anew or restore the file"));
        let (_, header) =
            SafeTensors::read_metadata(&file).map_err(|e| corrupt(format!("no safetensors file: {e}")))?;
        let guarded = header.metadata().as_ref().and_then(|m| m.get("incontext"));
        let guarded = guarded.ok_or_else(|| corrupt("its header holds no manifest of this crate".to_owned()))?;
        let guarded: serde_json::Value = serde_json::from_str(guarded).map_err(|e| corrupt(e.to_string()))?;
        let manifest = guarded["manifest"].as_str().ok_or_else(|| corrupt("its manifest is no text".to_owned()))?;
        let tensors = SafeTensors::deserialize(&file).map_err(|e| corrupt(e.to_string()))?;
        let mut arrays = BTreeMap::new();
        for (name, view) in tensors.iter() {
            let values = match view.dtype() {
                Dtype::F32 => Values::F32(from_bytes(view.data(), f32::from_le_bytes)),
                Dtype::F64 => Values::F64(from_bytes(view.data(), f64::from_le_bytes)),
                other => return Err(corrupt(format!("'{name}' has values of type {other:?}, expected F32 or F64"))),
            };
            arrays.insert(name.to_owned(), Array { shape: view.shape().to_vec(), values });
        }
        let parsed = serde_json::from_str(manifest).map_err(|e| corrupt(e.to_string()))?;
        let checkpoint = Checkpoint { arrays, manifest: parsed };
        if guarded["crc32"].as_u64() != Some(u64::from(checkpoint.checksum(manifest))) {
            return Err(corrupt("its checksum does not fit its content".to_owned()));
        }
        Ok(checkpoint)
    }

    /// The single-precision array `name` and its shape, which must be `shape` (0 stands for any length).
    ///
    /// # Errors
    /// [`Error::Unknown`] if there is none, [`Error::Shape`] if its shape or type is another.
    pub fn f32(&self, name: &str, shape: &[usize]) -> Result<(&[usize], &[f32])> {
        match self.array(name, shape)? {
            Array { shape, values: Values::F32(v) } => Ok((shape, v)),
            Array { shape, .. } => Err(Error::shape(name, shape, "single precision")),
        }
    }

    /// The double-precision array `name` and its shape, which must be `shape` (0 stands for any length).
    ///
    /// # Errors
    /// As [`Checkpoint::f32`].
    pub fn f64(&self, name: &str, shape: &[usize]) -> Result<(&[usize], &[f64])> {
        match self.array(name, shape)? {
            Array { shape, values: Values::F64(v) } => Ok((shape, v)),
            Array { shape, .. } => Err(Error::shape(name, shape, "double precision")),
        }
    }

    fn array(&self, name: &str, shape: &[usize]) -> Result<&Array> {
        let array = self.arrays.get(name);
        let array = array.ok_or_else(|| Error::unknown("array of the checkpoint", name, self.arrays.keys()))?;
        let fits = array.shape.len() == shape.len() && array.shape.iter().zip(shape).all(|(a, s)| *s == 0 || a == s);
        if fits { Ok(array) } else { Err(Error::shape(name, &array.shape, format!("{shape:?} (0: any length)"))) }
    }

    fn checksum(&self, manifest: &str) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(manifest.as_bytes());
        for (name, array) in &self.arrays {
            hasher.update(format!("{name}{:?}{:?}", array.dtype(), array.shape).as_bytes());
            hasher.update(&array.bytes());
        }
        hasher.finalize()
    }
}

fn from_bytes<const N: usize, T>(bytes: &[u8], read: fn([u8; N]) -> T) -> Vec<T> {
    let (chunks, _) = bytes.as_chunks::<N>();
    chunks.iter().map(|chunk| read(*chunk)).collect()
}
