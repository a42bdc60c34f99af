//! Figures 16, 22, 23: how strongly the first layer's output depends on each token.

use crate::models::SequenceTransformer;
use crate::ops::sequence_transformer::{LaneBatch, pullback};
use crate::{Error, Result};

/// ‖∇_{s_{T−j}} f_{T,c}‖, f the first layer's output at the last token, averaged over its channels c and the batch, for the
/// token j back: `[T]`, newest first.
///
/// # Errors
/// [`Error::Invalid`] for a model without layers; as [`pullback`].
pub fn first_layer(model: &SequenceTransformer, tokens: &LaneBatch<f32>) -> Result<Vec<f64>> {
    let first = model.truncated(1)?;
    let (architecture, values) = (first.architecture(), first.values::<f32>());
    let ([batch, length, channels], width) = (tokens.shape(), architecture.width);
    let mut norms = vec![0.0; length];
    for channel in 0..width {
        let mut adjoint = vec![0.0; batch * length * width];
        adjoint.chunks_mut(length * width).for_each(|a| a[(length - 1) * width + channel] = 1.0);
        let adjoint = LaneBatch::new(batch, length, width, &adjoint)?;
        let gradient = pullback(architecture, &values, tokens, &adjoint)?.1.values();
        for sequence in gradient.chunks(length * channels) {
            for (t, g) in sequence.chunks(channels).enumerate() {
                norms[length - 1 - t] += g.iter().map(|v| v * v).sum::<f64>().sqrt() / (batch * width) as f64;
            }
        }
    }
    if norms.iter().any(|v| !v.is_finite()) {
        return Err(Error::numerical("sensitivity of the first layer", "a gradient is not finite"));
    }
    Ok(norms)
}
