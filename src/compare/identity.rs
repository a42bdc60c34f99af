//! How far a matrix is from a multiple of the identity.

use crate::linalg::Matrix;

/// Dist(M, I) = min_α ‖M − αI‖_F / ‖M‖_F, in [0, 1]; the best α is tr M / d (`pgd` section 4.3). NaN for M = 0, and for a
/// matrix that is not square.
///
/// ```
/// use incontext::compare::distance_to_identity;
/// use incontext::linalg::Matrix;
/// let m = Matrix::diagonal(&[1.0, 1.0, 4.0, 16.0, 1.0]);
/// assert!((distance_to_identity(&m) - 0.7844).abs() < 1e-4);
/// ```
pub fn distance_to_identity(m: &Matrix) -> f64 {
    if m.rows() != m.cols() {
        return f64::NAN;
    }
    let alpha = m.trace() / m.rows() as f64;
    m.plus(-alpha, &Matrix::identity(m.rows())).norm() / m.norm()
}
