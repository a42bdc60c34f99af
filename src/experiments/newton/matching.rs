//! Which step of an algorithm each layer of a network matches best: what Figures 3, 8 to 12, 16 to 20 and 22 to 25 share.

use serde_json::json;

use super::analysis::{Probed, test_prompts};
use super::recipes::{self, Task, Trained};
use crate::algorithms::{Algorithm, GradientDescent, IterativeNewton, LeastSquares, Predictions, Run, predictions};
use crate::compare::{BestMatch, LinearFit, Measure, Similarity};
use crate::experiments::Settings;
use crate::figure::{Axis, Claims, Color, Heatmap, Line, Panel, greater, lesser};
use crate::tasks::Prompts;
use crate::{Error, Result};

/// Colours of the networks and of what they are compared with.
pub const MODEL: Color = Color::BLACK;
/// Iterative Newton.
pub const NEWTON: Color = Color::BLUE;
/// Gradient descent.
pub const DESCENT: Color = Color::RED;
/// Conjugate gradient.
pub const CONJUGATE: Color = Color::GREEN;
/// Online gradient descent.
pub const ONLINE: Color = Color::ORANGE;
/// The LSTM.
pub const LSTM: Color = Color::PURPLE;

/// Bootstrap resamples behind an interval of a best step.
const RESAMPLES: usize = 400;

/// The step of gradient descent that plays the role of the paper's 0.01 at another size: 1.17 / (√n + √d)², which is that
/// at d = 20, n = 40 (newton.md section 3).
pub fn descent_rate(dim: usize, context: usize) -> f64 {
    1.17 / ((context as f64).sqrt() + (dim as f64).sqrt()).powi(2)
}

/// The algorithms that a network trained on this task is compared with.
#[derive(Clone, Debug)]
pub struct Rivals {
    /// Iterative Newton with c = 1, on S + σ² I for noisy labels.
    pub newton: IterativeNewton,
    /// Gradient descent from w_0 = 0.
    pub descent: GradientDescent,
    /// Least squares, with the ridge σ².
    pub solved: LeastSquares,
}

impl Rivals {
    /// For the task of this network.
    ///
    /// # Errors
    /// Never, for the tasks of the recipes.
    pub fn of(network: &Trained) -> Result<Self> {
        let protocol = &network.protocol;
        let (ridge, slower) = match protocol.task {
            Task::Linear { noise } => (noise * noise, 1.0),
            // The largest eigenvalue of Σ is almost twice that of I, as at the paper's size (trap 6).
            Task::Skew { .. } => (0.0, 0.2),
            Task::Network { .. } => (0.0, 1.0),
        };
        Ok(Rivals {
            newton: IterativeNewton::new(1.0)?.with_ridge(ridge)?,
            descent: GradientDescent::new(vec![slower * descent_rate(protocol.dim, protocol.context)])?,
            solved: LeastSquares::ridge(ridge)?,
        })
    }
}

/// A network's layers on test prompts.
pub struct Layers {
    /// The run's name.
    pub name: String,
    /// The test prompts.
    pub prompts: Prompts,
    /// Prediction minus label of every layer's probe.
    pub residuals: Predictions,
    /// Mean squared error in units of d, `[layers][positions]`.
    pub errors: Vec<Vec<f64>>,
    /// The algorithms for its task.
    pub rivals: Rivals,
}

impl Layers {
    /// Probes the network and runs it on its test prompts.
    ///
    /// # Errors
    /// As [`Probed::fit`] and [`Probed::predictions`].
    pub fn of(network: &Trained, settings: &Settings<'_>) -> Result<Self> {
        let prompts = test_prompts(network, settings)?;
        let made = Probed::fit(network, settings)?.predictions(&prompts)?;
        let d = prompts.dim() as f64;
        let errors = (0..made.values.len())
            .map(|k| Ok(made.mse(k, &prompts)?.iter().map(|e| e / d).collect()))
            .collect::<Result<_>>()?;
        Ok(Layers {
            name: network.name.clone(),
            residuals: made.residuals(&prompts)?,
            errors,
            prompts,
            rivals: Rivals::of(network)?,
        })
    }

    /// The layers of every network of a recipe.
    ///
    /// # Errors
    /// As [`recipes::load`] and [`Layers::of`].
    pub fn load(id: &str, settings: &Settings<'_>) -> Result<Vec<Self>> {
        recipes::load(id, settings)?.iter().map(|network| Layers::of(network, settings)).collect()
    }

    /// Number of layers.
    pub fn count(&self) -> usize {
        self.errors.len()
    }

    /// The layers' numbers, from 1.
    pub fn numbers(&self) -> Vec<usize> {
        (1..=self.count()).collect()
    }

    /// Prediction minus label of an algorithm after these steps on the same prompts.
    ///
    /// # Errors
    /// As [`predictions`].
    pub fn run(&self, algorithm: &dyn Algorithm, at: &[usize]) -> Result<Predictions> {
        predictions(&[Run { algorithm, at }], &self.prompts)?.remove(0).residuals(&self.prompts)
    }

    /// SimE of every step of an algorithm (rows) with every layer (columns).
    ///
    /// # Errors
    /// As [`predictions`].
    pub fn similarity(&self, algorithm: &dyn Algorithm, at: &[usize]) -> Result<Similarity> {
        let positions = 0..self.residuals.positions;
        Similarity::of_errors(Measure::Cosine, &self.run(algorithm, at)?, &self.residuals, positions)
    }

    /// SimE of least squares with every layer.
    ///
    /// # Errors
    /// As [`predictions`].
    pub fn with_least_squares(&self) -> Result<Vec<f64>> {
        Ok(self.similarity(&self.rivals.solved, &[0])?.means())
    }

    /// The layers over which the trend is judged (newton.md section 7.2): from the first whose error after 2d examples, or
    /// all of them, is at most 0.6 d, to the first whose SimE with least squares is at least 0.97, or the last; from 0.
    ///
    /// # Errors
    /// As [`predictions`].
    pub fn span(&self) -> Result<(usize, usize)> {
        let last = self.count() - 1;
        let at = (2 * self.prompts.dim()).min(self.prompts.context());
        let first = self.errors.iter().position(|e| e[at] <= 0.6).unwrap_or(last);
        let solved = self.with_least_squares()?;
        Ok((first, solved.iter().position(|s| *s >= 0.97).unwrap_or(last).max(first)))
    }
}

/// The steps of gradient descent on the paper's logarithmic axis: 2⁰ … 2¹².
pub fn powers_of_two() -> Vec<usize> {
    (0..=12).map(|i| 1 << i).collect()
}

/// The steps of gradient descent on the paper's linear axis: 1, 50, …, 1300.
pub fn by_fifty() -> Vec<usize> {
    std::iter::once(1).chain((1..=26).map(|k| 50 * k)).collect()
}

/// Steps in words: `1 step`, `2 steps`.
pub fn steps_name(steps: usize) -> String {
    format!("{steps} {}", if steps == 1 { "step" } else { "steps" })
}

/// A heat map as the paper draws it: a column a layer, a row a step, the similarity written in the cell.
pub fn map(title: impl Into<String>, similarity: &Similarity, steps: &[usize], step_name: &str) -> Panel {
    means_map(title, &similarity.means(), steps, step_name, &(1..=similarity.columns).collect::<Vec<_>>(), "layer")
}

/// [`map`] of given means, `[rows, columns]`. All maps have the same colours, pale at 0.5 and below.
pub fn means_map(
    title: impl Into<String>,
    means: &[f64],
    rows: &[usize],
    row_name: &str,
    columns: &[usize],
    column_name: &str,
) -> Panel {
    Panel::new(title)
        .x(Axis::category(column_name))
        .y(Axis::category(row_name))
        .heatmap(Heatmap::new(rows.len(), columns.len(), means).labels(rows, columns).range(0.5, 1.0).annotate(2))
}

/// The trend of best-matching steps over the layers of one network.
#[derive(Clone, Debug)]
pub struct Trend {
    /// The best step of each layer: an index into the steps, with its interval.
    pub best: Vec<BestMatch>,
    /// First and last layer of the span, from 0.
    pub span: (usize, usize),
    /// The straight line of best steps, or of their log₂, over the span.
    pub fit: LinearFit,
    /// Neighbouring layers of the span whose best step does not increase.
    pub stalls: usize,
}

impl Trend {
    /// The trend of `similarity` (rows `steps`) over the layers, on a logarithmic scale of steps or not.
    ///
    /// # Errors
    /// As [`Layers::span`].
    pub fn of(layers: &Layers, similarity: &Similarity, steps: &[usize], log2: bool, seed: u64) -> Result<Self> {
        let best = similarity.best(RESAMPLES, seed);
        let span = layers.span()?;
        let value = |b: &BestMatch| {
            let step = steps[b.row] as f64;
            if log2 { step.log2() } else { step }
        };
        let y: Vec<f64> = best[span.0..=span.1].iter().map(value).collect();
        let x: Vec<f64> = (span.0..=span.1).map(|l| (l + 1) as f64).collect();
        let stalls = y.windows(2).filter(|w| w[1] <= w[0]).count();
        Ok(Trend { best, span, fit: LinearFit::of(&x, &y), stalls })
    }

    /// The least similarity at a best step over the span.
    pub fn least_similarity(&self) -> f64 {
        self.best[self.span.0..=self.span.1].iter().fold(1.0, |w, b| lesser(w, b.value))
    }

    /// The similarity of the last layer at its best step.
    pub fn last_similarity(&self) -> f64 {
        self.best.last().map_or(f64::NAN, |b| b.value)
    }

    /// For the configuration of a figure: best steps with their intervals, and the line.
    pub fn describe(&self, steps: &[usize]) -> serde_json::Value {
        let best = self
            .best
            .iter()
            .map(|b| json!({ "step": steps[b.row], "interval": [steps[b.low], steps[b.high]], "similarity": b.value }));
        json!({
            "best": best.collect::<Vec<_>>(), "layers": [self.span.0 + 1, self.span.1 + 1],
            "slope": self.fit.slope, "r_squared": self.fit.r_squared,
        })
    }
}

/// Best steps over the layers, with their intervals, of every network.
pub fn path_panel(title: &str, trends: &[(String, &Trend)], steps: &[usize], log: bool) -> Panel {
    let name = "best-matching step (95 % interval)";
    let y = if log { Axis::log(name) } else { Axis::linear(name) };
    let mut panel = Panel::new(title).x(Axis::linear("layer")).y(y);
    for (name, trend) in trends {
        let x: Vec<usize> = (1..=trend.best.len()).collect();
        let at = |row: fn(&BestMatch) -> usize| trend.best.iter().map(|b| steps[row(b)] as f64).collect::<Vec<f64>>();
        panel = panel.line(Line::new(name, x, at(|b| b.row)).band(at(|b| b.low), at(|b| b.high)).markers());
    }
    panel
}

/// What the trends of newton.md section 7.2 have to satisfy.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Least and greatest slope.
    pub slope: (f64, f64),
    /// Least R².
    pub r_squared: f64,
    /// Least similarity within the span and at the last layer.
    pub similarity: Option<(f64, f64)>,
}

/// The claims about trends over several networks: of each quantity, the worst network's.
pub fn trend_claims(id: &str, algorithm: &str, trends: &[Trend], bounds: Bounds) -> Claims {
    let over =
        |f: &dyn Fn(&Trend) -> f64, worst: fn(f64, f64) -> f64| trends.iter().map(f).reduce(worst).unwrap_or(f64::NAN);
    let (low, high) = bounds.slope;
    let slope = |t: &Trend| t.fit.slope;
    // The slope that is furthest from the middle of the interval.
    let middle = if high.is_finite() { 0.5 * (low + high) } else { f64::MAX };
    let extreme = trends.iter().map(slope).max_by(|a, b| (a - middle).abs().total_cmp(&(b - middle).abs()));
    let claims = Claims::new().at_least(
        format!("{id}.linear"),
        format!("{algorithm}: the trend over the layers is linear (R²)"),
        over(&|t| t.fit.r_squared, lesser),
        bounds.r_squared,
    );
    let statement = format!("{algorithm}: steps (or doublings) a layer");
    let claims = if high.is_finite() {
        claims.within(format!("{id}.slope"), statement, extreme.unwrap_or(f64::NAN), low, high)
    } else {
        claims.at_least(format!("{id}.slope"), statement, over(&slope, lesser), low)
    };
    let Some((inside, last)) = bounds.similarity else { return claims };
    claims
        .at_most(
            format!("{id}.increase"),
            format!("{algorithm}: layers of the span at which the best step does not increase"),
            over(&|t| t.stalls as f64, greater),
            1.0,
        )
        .at_least(
            format!("{id}.similarity"),
            format!("{algorithm}: least similarity at a best step within the span"),
            over(&Trend::least_similarity, lesser),
            inside,
        )
        .at_least(
            format!("{id}.last"),
            format!("{algorithm}: similarity of the last layer at its best step"),
            over(&Trend::last_similarity, lesser),
            last,
        )
}

/// Error against layer, one line for each number of examples (Figures 2a, 19, 20, 21 and 25).
pub fn error_panel(title: &str, layers: &Layers, examples: &[usize]) -> Panel {
    let mut panel = Panel::new(title).x(Axis::linear("layer")).y(Axis::log("squared error / d"));
    for t in examples {
        let y: Vec<f64> = layers.errors.iter().map(|e| e[*t]).collect();
        panel = panel.line(Line::new(format!("{t} examples"), layers.numbers(), y).markers());
    }
    panel
}

/// The first of several networks.
///
/// # Errors
/// [`Error::Invalid`] for none.
pub fn first(networks: &[Layers]) -> Result<&Layers> {
    networks.first().ok_or_else(|| Error::invalid("networks", 0, "at least 1"))
}
