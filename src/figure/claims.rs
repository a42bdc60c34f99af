//! Claims: a paper's statements made checkable, with the number that was measured and the bound it must meet.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::table::Table;
use super::text::{minus, significant};
use crate::{Error, Result};

/// What a measured value must satisfy. Every bound includes its ends, and no bound is met by NaN.
///
/// Its text form, which JSON uses, is read back by [`str::parse`]:
/// ```
/// use incontext::figure::Bound;
/// let bound = Bound::Within(-2.03, -1.99);
/// assert_eq!(bound.to_string(), "[-2.03, -1.99]");
/// assert_eq!("[-2.03, -1.99]".parse::<Bound>()?, bound);
/// assert!(bound.holds(-2.0128) && !bound.holds(f64::NAN));
/// # Ok::<(), incontext::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// `measured <= bound`; written `<= 0.02`.
    AtMost(f64),
    /// `measured >= bound`; written `>= 0.9`.
    AtLeast(f64),
    /// `low <= measured <= high`; written `[-2.03, -1.99]`.
    Within(f64, f64),
    /// `|measured - value| <= tolerance`; written `0.4224 ± 0.001`.
    Equals {
        /// The value expected.
        value: f64,
        /// The greatest absolute difference from it.
        tolerance: f64,
    },
}

impl Bound {
    /// Whether `measured` meets the bound; what is not finite meets none.
    pub fn holds(&self, measured: f64) -> bool {
        let met = match *self {
            Bound::AtMost(high) => measured <= high,
            Bound::AtLeast(low) => measured >= low,
            Bound::Within(low, high) => low <= measured && measured <= high,
            Bound::Equals { value, tolerance } => (measured - value).abs() <= tolerance,
        };
        met && measured.is_finite()
    }
}

/// The shortest decimal that reads back as the same number, in scientific form where that is what people write.
fn exact(v: f64) -> String {
    let size = v.abs();
    if v != 0.0 && v.is_finite() && !(1e-4..1e7).contains(&size) { format!("{v:e}") } else { format!("{v}") }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Bound::AtMost(high) => write!(f, "<= {}", exact(high)),
            Bound::AtLeast(low) => write!(f, ">= {}", exact(low)),
            Bound::Within(low, high) => write!(f, "[{}, {}]", exact(low), exact(high)),
            Bound::Equals { value, tolerance } => write!(f, "{} ± {}", exact(value), exact(tolerance)),
        }
    }
}

impl FromStr for Bound {
    type Err = Error;

    /// Reads the text form of a bound; a typographic minus sign is as good as a hyphen.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the text is none of the four forms.
    fn from_str(text: &str) -> Result<Self> {
        let plain = text.replace('\u{2212}', "-");
        let number = |s: &str| s.trim().parse::<f64>().ok();
        let parsed = if let Some(high) = plain.strip_prefix("<=") {
            number(high).map(Bound::AtMost)
        } else if let Some(low) = plain.strip_prefix(">=") {
            number(low).map(Bound::AtLeast)
        } else if let Some(ends) = plain.strip_prefix('[').and_then(|s| s.strip_suffix(']')) {
            ends.split_once(',').and_then(|(low, high)| Some(Bound::Within(number(low)?, number(high)?)))
        } else {
            plain.split_once('±').and_then(|(value, tolerance)| {
                Some(Bound::Equals { value: number(value)?, tolerance: number(tolerance)? })
            })
        };
        parsed.ok_or_else(|| {
            Error::invalid(
                "bound",
                format!("'{text}'"),
                "a form like '<= 0.02', '>= 0.9', '[-2.03, -1.99]' or '0.42 ± 0.01'",
            )
        })
    }
}

impl Serialize for Bound {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Bound {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The greater of two; NaN if one of them is. [`f64::max`] drops NaN, and a claim about the greatest of many would hold without
/// those that could not be measured.
///
/// ```
/// use incontext::figure::{greater, lesser};
/// assert_eq!((greater(1.0, 2.0), lesser(1.0, 2.0)), (2.0, 1.0));
/// assert!(greater(1.0, f64::NAN).is_nan() && lesser(f64::NAN, 1.0).is_nan());
/// ```
pub fn greater(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

/// The lesser of two; NaN if one of them is, as for [`greater`].
pub fn lesser(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.min(b) }
}

/// What a claim about the worst of many values measures.
///
/// ```
/// use incontext::figure::Extremes;
/// assert_eq!([1.0, 3.0, 2.0].into_iter().greatest(), 3.0);
/// assert!([1.0, f64::NAN].into_iter().least().is_nan() && std::iter::empty().least().is_nan());
/// ```
pub trait Extremes: Iterator<Item = f64> + Sized {
    /// The greatest; NaN if one is, or if there is none.
    fn greatest(self) -> f64 {
        self.reduce(greater).unwrap_or(f64::NAN)
    }

    /// The least; NaN if one is, or if there is none.
    fn least(self) -> f64 {
        self.reduce(lesser).unwrap_or(f64::NAN)
    }
}

impl<I: Iterator<Item = f64>> Extremes for I {}

/// A statement of a paper made checkable.
///
/// Its JSON form is `{"id", "statement", "measured", "bound", "holds"}`, where `bound` is text and a measured value
/// that is not finite is `null`. Whether it holds is computed whenever it is asked for, so it cannot be out of date;
/// what a JSON file says about it is not believed.
///
/// ```
/// use incontext::figure::{Bound, Claim};
/// let claim = Claim::new("pgd.fig1.blue", "the learnt matrix is the identity", 0.012, Bound::AtMost(0.02));
/// assert!(claim.holds());
/// let json = serde_json::to_string(&claim).unwrap();
/// assert!(json.ends_with(r#""measured":0.012,"bound":"<= 0.02","holds":true}"#));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Claim {
    /// `paper.figure.name`, e.g. `pgd.fig1.blue`.
    pub id: String,
    /// The statement, in words.
    pub statement: String,
    /// The value that was measured, in the statement's unit.
    pub measured: f64,
    /// What it must satisfy.
    pub bound: Bound,
}

impl Claim {
    /// The claim `id`: `statement` holds if `measured` meets `bound`.
    pub fn new(id: impl Into<String>, statement: impl Into<String>, measured: f64, bound: Bound) -> Self {
        Claim { id: id.into(), statement: statement.into(), measured, bound }
    }

    /// Whether the measured value meets the bound.
    pub fn holds(&self) -> bool {
        self.bound.holds(self.measured)
    }

    /// The measured value for people: four significant digits and a true minus sign.
    pub fn measured_text(&self) -> String {
        minus(&significant(self.measured, 4))
    }

    /// The bound for people: `≤ 0.02`, `[−2.03, −1.99]`.
    pub fn bound_text(&self) -> String {
        minus(&self.bound.to_string()).replace("<=", "≤").replace(">=", "≥")
    }

    /// `holds` or `does not hold`.
    pub fn verdict(&self) -> &'static str {
        if self.holds() { "holds" } else { "does not hold" }
    }
}

/// The JSON form of a claim.
#[derive(Serialize, Deserialize)]
struct ClaimForm {
    id: String,
    statement: String,
    measured: Option<f64>,
    bound: Bound,
    #[serde(default)]
    holds: bool,
}

impl Serialize for Claim {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        ClaimForm {
            id: self.id.clone(),
            statement: self.statement.clone(),
            measured: self.measured.is_finite().then_some(self.measured),
            bound: self.bound,
            holds: self.holds(),
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Claim {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let form = ClaimForm::deserialize(deserializer)?;
        Ok(Claim::new(form.id, form.statement, form.measured.unwrap_or(f64::NAN), form.bound))
    }
}

/// A list of claims, in the order they were made. It displays itself as a table.
///
/// ```
/// use incontext::figure::Claims;
/// let claims = Claims::new()
///     .at_most("pgd.fig1.blue", "whitened matrices become the identity", 0.012, 0.02)
///     .within("pgd.fig1.loss", "the loss reaches the optimum", -1.9, -2.03, -1.99);
/// assert_eq!((claims.len(), claims.all_hold()), (2, false));
/// assert_eq!(claims.failing().next().unwrap().id, "pgd.fig1.loss");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Claims {
    list: Vec<Claim>,
}

impl Claims {
    /// No claims yet.
    pub fn new() -> Self {
        Claims::default()
    }

    /// Adds: `measured <= bound`.
    #[must_use]
    pub fn at_most(self, id: impl Into<String>, statement: impl Into<String>, measured: f64, bound: f64) -> Self {
        self.with(Claim::new(id, statement, measured, Bound::AtMost(bound)))
    }

    /// Adds: `measured >= bound`.
    #[must_use]
    pub fn at_least(self, id: impl Into<String>, statement: impl Into<String>, measured: f64, bound: f64) -> Self {
        self.with(Claim::new(id, statement, measured, Bound::AtLeast(bound)))
    }

    /// Adds: `low <= measured <= high`.
    #[must_use]
    pub fn within(
        self,
        id: impl Into<String>,
        statement: impl Into<String>,
        measured: f64,
        low: f64,
        high: f64,
    ) -> Self {
        self.with(Claim::new(id, statement, measured, Bound::Within(low, high)))
    }

    /// Adds: `|measured - value| <= tolerance`.
    #[must_use]
    pub fn equals(
        self,
        id: impl Into<String>,
        statement: impl Into<String>,
        measured: f64,
        value: f64,
        tolerance: f64,
    ) -> Self {
        self.with(Claim::new(id, statement, measured, Bound::Equals { value, tolerance }))
    }

    /// Adds a claim to a chain.
    #[must_use]
    pub fn with(mut self, claim: Claim) -> Self {
        self.list.push(claim);
        self
    }

    /// Adds a claim in place.
    pub fn push(&mut self, claim: Claim) {
        self.list.push(claim);
    }

    /// Whether every claim holds (also true of no claims).
    pub fn all_hold(&self) -> bool {
        self.list.iter().all(Claim::holds)
    }

    /// The claims that do not hold.
    pub fn failing(&self) -> impl Iterator<Item = &Claim> {
        self.list.iter().filter(|claim| !claim.holds())
    }

    /// The claims, in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Claim> {
        self.list.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The claims as a table: verdict, statement, measured, bound, id.
    pub fn table(&self) -> Table {
        let mut table = Table::new(["", "claim", "measured", "bound", "id"]);
        for claim in &self.list {
            table.push([
                claim.verdict().into(),
                claim.statement.as_str().into(),
                claim.measured_text().into(),
                claim.bound_text().into(),
                super::Cell::from(claim.id.as_str()),
            ]);
        }
        table
    }

    /// `7 of 9 claims hold`.
    pub fn summary(&self) -> String {
        let held = self.list.iter().filter(|c| c.holds()).count();
        match (held, self.list.len()) {
            (_, 0) => "no claims".to_owned(),
            (1, 1) => "the claim holds".to_owned(),
            (0, 1) => "the claim does not hold".to_owned(),
            (held, all) if held == all => format!("all {all} claims hold"),
            (held, all) => format!("{held} of {all} claims hold"),
        }
    }
}

impl Extend<Claim> for Claims {
    fn extend<I: IntoIterator<Item = Claim>>(&mut self, claims: I) {
        self.list.extend(claims);
    }
}

impl FromIterator<Claim> for Claims {
    fn from_iter<I: IntoIterator<Item = Claim>>(claims: I) -> Self {
        Claims { list: claims.into_iter().collect() }
    }
}

impl IntoIterator for Claims {
    type Item = Claim;
    type IntoIter = std::vec::IntoIter<Claim>;
    fn into_iter(self) -> Self::IntoIter {
        self.list.into_iter()
    }
}

impl<'a> IntoIterator for &'a Claims {
    type Item = &'a Claim;
    type IntoIter = std::slice::Iter<'a, Claim>;
    fn into_iter(self) -> Self::IntoIter {
        self.list.iter()
    }
}

impl fmt::Display for Claims {
    /// The table of the claims and a line that counts them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}", self.table(), self.summary())
    }
}
