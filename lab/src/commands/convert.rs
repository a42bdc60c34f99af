//! `cargo lab convert`: makes a safetensors file of a PyTorch one, for `Gpt2::load`.

use std::path::{Path, PathBuf};

use clap::Args;
use incontext::models::pretrained;

use crate::torch_file;
use crate::trouble::{Outcome, Subject};

/// From what to what.
#[derive(Args, Debug)]
pub struct Options {
    /// A file that torch.save wrote: a state dictionary, or a dictionary with one under `model_state_dict`
    from: PathBuf,
    /// The safetensors file to write; beside the other one if left out
    to: Option<PathBuf>,
}

/// Converts. What is in the file is read and never run.
pub fn run(options: &Options) -> Outcome<u8> {
    let from: &Path = &options.from;
    let file = std::fs::read(from).doing(|| format!("read {}", from.display()))?;
    let mut tensors = torch_file::tensors(&file)?;
    // Optimiser state is of no use to who loads a model.
    tensors.retain(|name, _| !name.starts_with("optimizer_state_dict."));
    let to = options.to.clone().unwrap_or_else(|| from.with_extension("safetensors"));
    pretrained::write(&to, &tensors)?;
    let values: usize = tensors.values().map(|(_, values)| values.len()).sum();
    println!("{}: {} tensors, {values} values", to.display(), tensors.len());
    Ok(0)
}
