//! Kernels K(u, v): what generates the labels of [`super::KernelRegression`], and what functional gradient descent uses.

use std::fmt;
use std::sync::Arc;

use crate::error::all_finite;
use crate::linalg::Matrix;
use crate::{Error, Result};

/// A function of an inner product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// s.
    Linear,
    /// max(s, 0). Not positive semi-definite as a kernel.
    Relu,
    /// eˢ.
    Exp,
}

impl Profile {
    /// Its value at s.
    pub fn at(self, s: f64) -> f64 {
        match self {
            Profile::Linear => s,
            Profile::Relu => s.max(0.0),
            Profile::Exp => s.exp(),
        }
    }
}

/// One term α φ(c ⟨G u, G v⟩) of a kernel, with G diagonal.
#[derive(Clone, Debug, PartialEq)]
pub struct Term {
    /// α.
    pub weight: f64,
    /// φ.
    pub profile: Profile,
    /// c.
    pub scale: f64,
    /// The diagonal of G; missing entries are 0. The identity if `None`.
    pub coordinates: Option<Vec<f64>>,
}

impl Term {
    /// φ(c ⟨u, v⟩), on all coordinates.
    pub fn new(profile: Profile, scale: f64) -> Self {
        Term { weight: 1.0, profile, scale, coordinates: None }
    }

    /// The same with ⟨G u, G v⟩, G the diagonal matrix with these entries.
    #[must_use]
    pub fn on(self, coordinates: &[f64]) -> Self {
        Term { coordinates: Some(coordinates.to_vec()), ..self }
    }

    /// The same times α.
    #[must_use]
    pub fn weighted(self, weight: f64) -> Self {
        Term { weight, ..self }
    }

    /// c ⟨G u, G v⟩, what φ is applied to.
    pub fn inner(&self, u: &[f64], v: &[f64]) -> f64 {
        // By index: this is the inner loop of sampling prompts.
        let mut sum = 0.0;
        match &self.coordinates {
            Some(g) => {
                for k in 0..g.len().min(u.len()).min(v.len()) {
                    sum += g[k] * g[k] * u[k] * v[k];
                }
            }
            None => {
                for k in 0..u.len().min(v.len()) {
                    sum += u[k] * v[k];
                }
            }
        }
        self.scale * sum
    }
}

type Own = Arc<dyn Fn(&[f64], &[f64]) -> f64 + Send + Sync>;

#[derive(Clone)]
enum Form {
    Sum(Vec<Term>),
    Own(Own),
}

/// The sources' definitions of the combination kernel, which differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Combination {
    /// exp(½⟨u_{1:2}, v_{1:2}⟩) + ⟨u_{3:4}, v_{3:4}⟩: the authors' code, whose slice drops the fifth coordinate.
    Code,
    /// The same with the fifth coordinate: exp(½⟨u_{1:2}, v_{1:2}⟩) + ⟨u_{3:5}, v_{3:5}⟩.
    AllCoordinates,
    /// ½⟨u_{1:2}, v_{1:2}⟩ + ½ exp(½⟨u_{3:5}, v_{3:5}⟩): a reproduction's reading of the paper, with the blocks' roles
    /// exchanged.
    Exchanged,
}

/// A symmetric kernel K(u, v) with a name: a sum of [`Term`]s, or a function of your own.
///
/// ```
/// use incontext::tasks::Kernel;
/// let (u, v) = ([0.6, 0.8], [1.0, 0.0]);
/// assert_eq!(Kernel::relu().at(&u, &v), 0.6);
/// let cubic = Kernel::own("cubic", |u, v| u.iter().zip(v).map(|(a, b)| a * b).sum::<f64>().powi(3));
/// assert!((cubic.at(&u, &v) - 0.216).abs() < 1e-15);
/// ```
#[derive(Clone)]
pub struct Kernel {
    name: String,
    form: Form,
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.form {
            Form::Sum(terms) => f.debug_struct("Kernel").field("name", &self.name).field("terms", terms).finish(),
            Form::Own(_) => f.debug_struct("Kernel").field("name", &self.name).finish_non_exhaustive(),
        }
    }
}

impl Kernel {
    /// ⟨u, v⟩.
    pub fn linear() -> Self {
        Kernel { name: "linear".to_owned(), form: Form::Sum(vec![Term::new(Profile::Linear, 1.0)]) }
    }

    /// max(⟨u, v⟩, 0), which is **not** positive semi-definite.
    pub fn relu() -> Self {
        Kernel { name: "ReLU".to_owned(), form: Form::Sum(vec![Term::new(Profile::Relu, 1.0)]) }
    }

    /// exp(c ⟨u, v⟩). The paper's equation has c = 1, its authors' code c = ½ (which our figures use).
    ///
    /// # Errors
    /// [`Error::Invalid`] unless c is positive and finite.
    pub fn exp(c: f64) -> Result<Self> {
        if !(c.is_finite() && c > 0.0) {
            return Err(Error::invalid("scale c of the exponential kernel", c, "a positive finite number"));
        }
        let name = if c == 0.5 { "exp".to_owned() } else { format!("exp, c = {c}") };
        Ok(Kernel { name, form: Form::Sum(vec![Term::new(Profile::Exp, c)]) })
    }

    /// The paper's combination of a linear and an exponential kernel on different coordinates, d = 5.
    pub fn combination(which: Combination) -> Self {
        let (low, high) = (&[1.0, 1.0][..], &[0.0, 0.0, 1.0, 1.0, 1.0][..]);
        let terms = match which {
            Combination::Code => {
                vec![Term::new(Profile::Exp, 0.5).on(low), Term::new(Profile::Linear, 1.0).on(&high[..4])]
            }
            Combination::AllCoordinates => {
                vec![Term::new(Profile::Exp, 0.5).on(low), Term::new(Profile::Linear, 1.0).on(high)]
            }
            Combination::Exchanged => vec![
                Term::new(Profile::Linear, 1.0).on(low).weighted(0.5),
                Term::new(Profile::Exp, 0.5).on(high).weighted(0.5),
            ],
        };
        Kernel { name: "combination".to_owned(), form: Form::Sum(terms) }
    }

    /// Σ of terms: what Proposition 3 of `fgd` builds with one head a term.
    ///
    /// # Errors
    /// [`Error::Invalid`] for no terms, or numbers in them that are not finite.
    pub fn sum(name: impl Into<String>, terms: &[Term]) -> Result<Self> {
        if terms.is_empty() {
            return Err(Error::invalid("terms of the kernel", "none", "at least one"));
        }
        for term in terms {
            let of = term.coordinates.iter().flatten().copied();
            all_finite("terms of the kernel", of.chain([term.weight, term.scale]))?;
        }
        Ok(Kernel { name: name.into(), form: Form::Sum(terms.to_vec()) })
    }

    /// Any symmetric function of two covariates of the same dimension.
    pub fn own(name: impl Into<String>, f: impl Fn(&[f64], &[f64]) -> f64 + Send + Sync + 'static) -> Self {
        Kernel { name: name.into(), form: Form::Own(Arc::new(f)) }
    }

    /// Its name, as legends show it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its terms, if it is a sum of them.
    pub fn terms(&self) -> Option<&[Term]> {
        match &self.form {
            Form::Sum(terms) => Some(terms),
            Form::Own(_) => None,
        }
    }

    /// K(u, v).
    pub fn at(&self, u: &[f64], v: &[f64]) -> f64 {
        match &self.form {
            Form::Sum(terms) => {
                let mut sum = 0.0;
                for term in terms {
                    sum += term.weight * term.profile.at(term.inner(u, v));
                }
                sum
            }
            Form::Own(f) => f(u, v),
        }
    }

    /// The matrix K(x_i, x_j) of covariates `[m, d]`, row-major: m x m.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are no covariates or d does not divide their number, [`Error::Numerical`] if the
    /// kernel is not finite or not symmetric there.
    pub fn gram(&self, x: &[f64], d: usize) -> Result<Matrix> {
        if d == 0 || x.is_empty() || !x.len().is_multiple_of(d) {
            return Err(Error::shape("covariates", &[x.len(), d], "[m >= 1, d >= 1]"));
        }
        let (m, row) = (x.len() / d, |i: usize| &x[i * d..][..d]);
        let gram = Matrix::from_fn(m, m, |i, j| self.at(row(i), row(j)));
        for i in 0..m {
            for j in 0..=i {
                let (lower, upper) = (gram[(i, j)], gram[(j, i)]);
                // A difference that is not at most the bound, NaN included.
                let symmetric = (lower - upper).abs() <= 1e-9 * (1.0 + lower.abs());
                if !symmetric {
                    return Err(Error::numerical(
                        format!("kernel '{}'", self.name),
                        format!(
                            "K(x_{i}, x_{j}) = {lower}, K(x_{j}, x_{i}) = {upper}: it must be symmetric and finite"
                        ),
                    ));
                }
            }
        }
        Ok(gram)
    }

    /// Whether it is known to be positive semi-definite: sums of linear and exponential terms with positive weights.
    pub fn is_positive(&self) -> bool {
        self.terms()
            .is_some_and(|terms| terms.iter().all(|t| t.profile != Profile::Relu && t.weight >= 0.0 && t.scale >= 0.0))
    }
}
