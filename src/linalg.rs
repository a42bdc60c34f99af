//! Small dense linear algebra in `f64`: what the theory of d x d matrices needs, for d up to a few dozen.
//!
//! A general library would add more crates to every notebook than these few routines have lines.

use crate::{Error, Result};

/// A dense matrix, row-major.
///
/// Sums and products of matrices whose shapes do not fit panic, as indexing outside a slice does: they are written as
/// formulas. What depends on the entries (a factorisation, a solution) is a [`Result`].
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    rows: usize,
    cols: usize,
    data: Vec<f64>,
}

impl Matrix {
    /// The zero matrix.
    pub fn zeros(rows: usize, cols: usize) -> Self {
        Matrix { rows, cols, data: vec![0.0; rows * cols] }
    }

    /// The identity of size `d`.
    pub fn identity(d: usize) -> Self {
        Matrix::diagonal(&vec![1.0; d])
    }

    /// The diagonal matrix with these entries.
    pub fn diagonal(entries: &[f64]) -> Self {
        let d = entries.len();
        Matrix::from_fn(d, d, |i, j| if i == j { entries[i] } else { 0.0 })
    }

    /// The matrix with entry `f(i, j)` in row i, column j.
    pub fn from_fn(rows: usize, cols: usize, mut f: impl FnMut(usize, usize) -> f64) -> Self {
        let data = (0..rows * cols).map(|k| f(k / cols, k % cols)).collect();
        Matrix { rows, cols, data }
    }

    /// The matrix with these entries, row-major.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are not `rows * cols` of them.
    pub fn from_vec(rows: usize, cols: usize, data: Vec<f64>) -> Result<Self> {
        if data.len() != rows * cols {
            return Err(Error::shape("matrix", &[data.len()], format!("[{rows} x {cols}]")));
        }
        Ok(Matrix { rows, cols, data })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The entries, row-major.
    pub fn as_slice(&self) -> &[f64] {
        &self.data
    }

    /// The transpose.
    pub fn transpose(&self) -> Self {
        Matrix::from_fn(self.cols, self.rows, |i, j| self[(j, i)])
    }

    /// The diagonal's entries.
    pub fn diag(&self) -> Vec<f64> {
        (0..self.rows.min(self.cols)).map(|i| self[(i, i)]).collect()
    }

    /// Sum of the diagonal.
    pub fn trace(&self) -> f64 {
        self.diag().iter().sum()
    }

    /// Frobenius norm.
    pub fn norm(&self) -> f64 {
        self.data.iter().map(|v| v * v).sum::<f64>().sqrt()
    }

    /// Sum of the products of entries, `tr(AᵀB)`.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn dot(&self, other: &Matrix) -> f64 {
        self.same_shape(other);
        self.data.iter().zip(&other.data).map(|(a, b)| a * b).sum()
    }

    /// `self + scale * other`.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn plus(&self, scale: f64, other: &Matrix) -> Matrix {
        self.same_shape(other);
        Matrix { data: self.data.iter().zip(&other.data).map(|(a, b)| a + scale * b).collect(), ..*self }
    }

    /// `scale * self`.
    pub fn scaled(&self, scale: f64) -> Matrix {
        Matrix { data: self.data.iter().map(|a| scale * a).collect(), ..*self }
    }

    /// The product `self * other`.
    ///
    /// # Panics
    /// If `other` has not as many rows as `self` has columns.
    pub fn mul(&self, other: &Matrix) -> Matrix {
        assert_eq!(self.cols, other.rows, "columns of the left factor and rows of the right one");
        let mut out = Matrix::zeros(self.rows, other.cols);
        for i in 0..self.rows {
            for k in 0..self.cols {
                let a = self[(i, k)];
                for j in 0..other.cols {
                    out[(i, j)] += a * other[(k, j)];
                }
            }
        }
        out
    }

    /// The product with a vector.
    ///
    /// # Panics
    /// If the vector has not as many entries as the matrix has columns.
    pub fn mul_vec(&self, v: &[f64]) -> Vec<f64> {
        assert_eq!(self.cols, v.len(), "columns of the matrix and entries of the vector");
        (0..self.rows).map(|i| (0..self.cols).map(|j| self[(i, j)] * v[j]).sum()).collect()
    }

    /// The lower-triangular L with `L Lᵀ = self`.
    ///
    /// # Errors
    /// [`Error::Numerical`] if the matrix is not positive definite, [`Error::Shape`] if it is not square.
    pub fn cholesky(&self) -> Result<Matrix> {
        self.square("Cholesky factorisation")?;
        let d = self.rows;
        let mut l = Matrix::zeros(d, d);
        for j in 0..d {
            for i in j..d {
                let s = self[(i, j)] - (0..j).map(|k| l[(i, k)] * l[(j, k)]).sum::<f64>();
                if i > j {
                    l[(i, j)] = s / l[(j, j)];
                } else if s > 0.0 && s.is_finite() {
                    l[(j, j)] = s.sqrt();
                } else {
                    return Err(Error::numerical(
                        "Cholesky factorisation",
                        format!("pivot {j} of {d} is {s:e}: the matrix is not positive definite; add a ridge"),
                    ));
                }
            }
        }
        Ok(l)
    }

    /// The solution x of `self x = b` for a positive definite matrix.
    ///
    /// # Errors
    /// As [`Matrix::cholesky`]; [`Error::Shape`] if `b` has not one entry a row.
    pub fn solve_spd(&self, b: &[f64]) -> Result<Vec<f64>> {
        let l = self.cholesky()?;
        let d = self.rows;
        if b.len() != d {
            return Err(Error::shape("right-hand side", &[b.len()], format!("[{d}]")));
        }
        let mut x = b.to_vec();
        for i in 0..d {
            x[i] = (x[i] - (0..i).map(|k| l[(i, k)] * x[k]).sum::<f64>()) / l[(i, i)];
        }
        for i in (0..d).rev() {
            x[i] = (x[i] - (i + 1..d).map(|k| l[(k, i)] * x[k]).sum::<f64>()) / l[(i, i)];
        }
        Ok(x)
    }

    /// Eigenvalues (ascending) and the matrix whose columns are the eigenvectors of a symmetric matrix, by cyclic
    /// Jacobi rotations.
    ///
    /// # Errors
    /// [`Error::Shape`] if it is not square, [`Error::Numerical`] for entries that are not finite.
    pub fn eigen_symmetric(&self) -> Result<(Vec<f64>, Matrix)> {
        self.square("eigenvalues")?;
        if self.data.iter().any(|v| !v.is_finite()) {
            return Err(Error::numerical("eigenvalues", "the matrix has entries that are not finite"));
        }
        let d = self.rows;
        let mut a = self.clone();
        let mut v = Matrix::identity(d);
        for _ in 0..64 {
            let off: f64 = (0..d).flat_map(|i| (0..i).map(move |j| (i, j))).map(|ij| a[ij] * a[ij]).sum();
            if off <= f64::EPSILON * f64::EPSILON * a.dot(&a) {
                break;
            }
            for p in 0..d {
                for q in p + 1..d {
                    if a[(p, q)] == 0.0 {
                        continue;
                    }
                    let theta = (a[(q, q)] - a[(p, p)]) / (2.0 * a[(p, q)]);
                    let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
                    let t = if theta == 0.0 { 1.0 } else { t };
                    let c = 1.0 / (t * t + 1.0).sqrt();
                    let s = t * c;
                    for k in 0..d {
                        let (x, y) = (a[(k, p)], a[(k, q)]);
                        a[(k, p)] = c * x - s * y;
                        a[(k, q)] = s * x + c * y;
                    }
                    for k in 0..d {
                        let (x, y) = (a[(p, k)], a[(q, k)]);
                        a[(p, k)] = c * x - s * y;
                        a[(q, k)] = s * x + c * y;
                        let (x, y) = (v[(k, p)], v[(k, q)]);
                        v[(k, p)] = c * x - s * y;
                        v[(k, q)] = s * x + c * y;
                    }
                }
            }
        }
        let mut order: Vec<usize> = (0..d).collect();
        order.sort_by(|&i, &j| a[(i, i)].total_cmp(&a[(j, j)]));
        Ok((order.iter().map(|&i| a[(i, i)]).collect(), Matrix::from_fn(d, d, |i, j| v[(i, order[j])])))
    }

    /// `f` applied to the eigenvalues of a symmetric matrix: square root, inverse, ….
    ///
    /// # Errors
    /// As [`Matrix::eigen_symmetric`]; [`Error::Numerical`] if `f` of an eigenvalue is not finite.
    pub fn map_symmetric(&self, f: impl Fn(f64) -> f64) -> Result<Matrix> {
        let (values, v) = self.eigen_symmetric()?;
        let mapped: Vec<f64> = values.iter().map(|&x| f(x)).collect();
        if let Some(k) = mapped.iter().position(|x| !x.is_finite()) {
            return Err(Error::numerical("function of a matrix", format!("undefined at eigenvalue {:e}", values[k])));
        }
        Ok(v.mul(&Matrix::diagonal(&mapped)).mul(&v.transpose()))
    }

    /// The minimum-norm solution of least squares, `self⁺ b`, by the eigendecomposition of the smaller Gram matrix.
    ///
    /// Singular values below `1e-10` of the largest count as zero.
    ///
    /// # Errors
    /// [`Error::Shape`] if `b` has not one entry a row; as [`Matrix::eigen_symmetric`].
    pub fn least_squares(&self, b: &[f64]) -> Result<Vec<f64>> {
        if b.len() != self.rows {
            return Err(Error::shape("right-hand side", &[b.len()], format!("[{}]", self.rows)));
        }
        let pinv = |gram: &Matrix| {
            let largest = gram.eigen_symmetric()?.0.last().copied().unwrap_or(0.0);
            gram.map_symmetric(|v| if v > 1e-10 * largest { 1.0 / v } else { 0.0 })
        };
        let t = self.transpose();
        if self.rows >= self.cols {
            Ok(pinv(&t.mul(self))?.mul_vec(&t.mul_vec(b)))
        } else {
            Ok(t.mul_vec(&pinv(&self.mul(&t))?.mul_vec(b)))
        }
    }

    fn same_shape(&self, other: &Matrix) {
        assert_eq!((self.rows, self.cols), (other.rows, other.cols), "shapes of the two matrices");
    }

    fn square(&self, what: &str) -> Result<()> {
        if self.rows == self.cols && self.rows > 0 {
            Ok(())
        } else {
            Err(Error::shape(what, &[self.rows, self.cols], "a square matrix of size at least 1"))
        }
    }
}

impl std::ops::Index<(usize, usize)> for Matrix {
    type Output = f64;
    fn index(&self, (i, j): (usize, usize)) -> &f64 {
        &self.data[i * self.cols + j]
    }
}

impl std::ops::IndexMut<(usize, usize)> for Matrix {
    fn index_mut(&mut self, (i, j): (usize, usize)) -> &mut f64 {
        &mut self.data[i * self.cols + j]
    }
}

/// The solution of the square system `a x = b` by Gaussian elimination with partial pivoting.
///
/// # Errors
/// [`Error::Shape`] if the shapes do not fit, [`Error::Numerical`] if the matrix is singular.
pub fn solve(a: &Matrix, b: &[f64]) -> Result<Vec<f64>> {
    let d = b.len();
    if a.rows() != d || a.cols() != d {
        return Err(Error::shape("linear system", &[a.rows(), a.cols()], format!("[{d}, {d}]")));
    }
    let (mut a, mut b) = (a.clone(), b.to_vec());
    for k in 0..d {
        let pivot = (k..d).max_by(|&i, &j| a[(i, k)].abs().total_cmp(&a[(j, k)].abs())).unwrap_or(k);
        if a[(pivot, k)] == 0.0 || !a[(pivot, k)].is_finite() {
            return Err(Error::numerical("linear system", format!("singular at column {k} of {d}")));
        }
        for j in 0..d {
            let (x, y) = (a[(k, j)], a[(pivot, j)]);
            (a[(k, j)], a[(pivot, j)]) = (y, x);
        }
        b.swap(k, pivot);
        for i in k + 1..d {
            let f = a[(i, k)] / a[(k, k)];
            for j in k..d {
                a[(i, j)] -= f * a[(k, j)];
            }
            b[i] -= f * b[k];
        }
    }
    for i in (0..d).rev() {
        b[i] = (b[i] - (i + 1..d).map(|j| a[(i, j)] * b[j]).sum::<f64>()) / a[(i, i)];
    }
    Ok(b)
}

/// The real roots, ascending, of `c[0] + c[1] x + … + c[k] x^k`, all of whose roots are real and simple.
///
/// Between two roots of the derivative lies one root, found by bisection; the derivative's roots come from recursion.
///
/// # Errors
/// [`Error::Numerical`] if it has fewer real roots than its degree, or coefficients that are not finite.
pub fn real_roots(c: &[f64]) -> Result<Vec<f64>> {
    if c.iter().any(|v| !v.is_finite()) {
        return Err(Error::numerical("roots", "the polynomial has coefficients that are not finite"));
    }
    let degree = c.len().saturating_sub(1);
    let at = |x: f64| c.iter().rev().fold(0.0, |acc, &ci| acc * x + ci);
    if degree == 0 || c[degree] == 0.0 {
        return Err(Error::numerical("roots", "the leading coefficient is zero"));
    }
    if degree == 1 {
        return Ok(vec![-c[0] / c[1]]);
    }
    let derivative: Vec<f64> = c.iter().enumerate().skip(1).map(|(k, &v)| k as f64 * v).collect();
    let bound = 1.0 + c[..degree].iter().fold(0.0_f64, |m, v| m.max((v / c[degree]).abs()));
    let mut knots = vec![-bound];
    knots.extend(real_roots(&derivative)?);
    knots.push(bound);
    knots
        .windows(2)
        .map(|w| {
            let (mut lo, mut hi) = (w[0], w[1]);
            if at(lo) * at(hi) > 0.0 {
                return Err(Error::numerical("roots", "the polynomial has roots that are not real"));
            }
            for _ in 0..200 {
                let mid = 0.5 * (lo + hi);
                if at(lo) * at(mid) <= 0.0 {
                    hi = mid;
                } else {
                    lo = mid;
                }
            }
            Ok(0.5 * (lo + hi))
        })
        .collect()
}
