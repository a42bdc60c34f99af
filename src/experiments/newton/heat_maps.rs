//! Layers against the steps of Newton and of gradient descent: Figures 3, 8, 10, 16, 19, 22 and 24.

use serde_json::json;

use super::matching::{
    Bounds, Layers, Trend, by_fifty, error_panel, first, map, means_map, path_panel, powers_of_two, trend_claims,
};
use crate::Result;
use crate::algorithms::Algorithm;
use crate::compare::{Measure, Similarity, similarity_at};
use crate::experiments::{Reproduction, Settings};
use crate::figure::{Claims, Extremes, Figure, Frame, Panel};

/// The networks of a figure and what is claimed of them.
#[derive(Clone, Copy, Debug)]
pub struct Subject {
    /// The figure.
    pub id: &'static str,
    /// Its title.
    pub title: &'static str,
    /// The checkpoint.
    pub checkpoint: &'static str,
    /// What the trend of Newton steps has to satisfy; nothing is claimed if `None`.
    pub newton: Option<Bounds>,
    /// What the trend of log₂ of gradient-descent steps has to satisfy.
    pub descent: Option<Bounds>,
}

/// The bounds of newton.md section 7.2 for Newton, with this interval for the slope.
pub const fn newton_bounds(low: f64, high: f64) -> Option<Bounds> {
    Some(Bounds { slope: (low, high), r_squared: 0.95, similarity: Some((0.88, 0.97)) })
}

/// … for gradient descent on a logarithmic scale.
pub const DESCENT: Option<Bounds> = Some(Bounds { slope: (0.8, f64::INFINITY), r_squared: 0.9, similarity: None });

/// Newton steps that are compared.
pub fn newton_steps() -> Vec<usize> {
    (0..=24).collect()
}

/// The networks of a recipe with one algorithm: its similarity and its trend over the layers, network by network.
pub struct Matches {
    /// The networks.
    pub networks: Vec<Layers>,
    /// The steps.
    pub steps: Vec<usize>,
    /// Rows are steps, columns layers.
    pub similarity: Vec<Similarity>,
    /// Best steps over the layers.
    pub trends: Vec<Trend>,
}

impl Matches {
    /// Compares every network with the algorithm that `choose` picks from its rivals.
    ///
    /// # Errors
    /// As [`Layers::similarity`].
    pub fn of(
        networks: Vec<Layers>,
        steps: Vec<usize>,
        log2: bool,
        settings: &Settings<'_>,
        choose: impl Fn(&Layers) -> Box<dyn Algorithm>,
    ) -> Result<Self> {
        let similarity =
            networks.iter().map(|l| l.similarity(&*choose(l), &steps)).collect::<Result<Vec<Similarity>>>()?;
        let trends = networks
            .iter()
            .zip(&similarity)
            .map(|(l, s)| Trend::of(l, s, &steps, log2, settings.seed))
            .collect::<Result<_>>()?;
        Ok(Matches { networks, steps, similarity, trends })
    }

    /// The same networks with another algorithm.
    ///
    /// # Errors
    /// As [`Matches::of`].
    pub fn with(
        self,
        steps: Vec<usize>,
        log2: bool,
        settings: &Settings<'_>,
        choose: impl Fn(&Layers) -> Box<dyn Algorithm>,
    ) -> Result<Self> {
        Matches::of(self.networks, steps, log2, settings, choose)
    }

    /// The heat map of the first network.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] without networks.
    pub fn map(&self, title: &str, step_name: &str) -> Result<Panel> {
        first(&self.networks)?;
        Ok(map(title, &self.similarity[0], &self.steps, step_name))
    }

    /// The best steps of all networks.
    pub fn paths(&self, title: &str, log: bool) -> Panel {
        let named: Vec<(String, &Trend)> =
            self.networks.iter().zip(&self.trends).map(|(l, t)| (format!("seed {}", &l.name[1..]), t)).collect();
        path_panel(title, &named, &self.steps, log)
    }

    /// For the configuration of a figure.
    pub fn describe(&self) -> serde_json::Value {
        let of = |(l, t): (&Layers, &Trend)| (l.name.clone(), t.describe(&self.steps));
        self.networks.iter().zip(&self.trends).map(of).collect::<serde_json::Map<_, _>>().into()
    }
}

/// Newton on the left, gradient descent on a logarithmic scale on the right; heat maps of the first network, below them
/// the best steps of all with their intervals. Gives the networks' layers too.
///
/// # Errors
/// As [`Layers::load`] and [`Matches::of`].
pub fn newton_and_descent(subject: Subject, settings: &Settings<'_>) -> Result<(Reproduction, Vec<Layers>)> {
    let newton = Matches::of(Layers::load(subject.checkpoint, settings)?, newton_steps(), false, settings, |l| {
        Box::new(l.rivals.newton.clone())
    })?;
    let upper = newton.map("SimE with Newton", "Newton steps")?;
    let lower = newton.paths("best-matching Newton steps", false);
    let mut claims = Claims::new();
    let mut config = json!({ "checkpoint": subject.checkpoint, "newton": newton.describe() });
    if let Some(bounds) = subject.newton {
        claims.extend(trend_claims(&format!("{}.newton", subject.id), "Newton", &newton.trends, bounds));
    }
    let descent = newton.with(powers_of_two(), true, settings, |l| Box::new(l.rivals.descent.clone()))?;
    if let Some(bounds) = subject.descent {
        claims.extend(trend_claims(&format!("{}.gd", subject.id), "gradient descent, log2", &descent.trends, bounds));
    }
    config["gd"] = descent.describe();
    let shown = first(&descent.networks)?;
    let figure = Figure::new(subject.id, subject.title)
        .caption(format!(
            "Similarity of errors (eq. 6) between the layers of a transformer, read out by linear probes, and the steps of \
             an algorithm; d = {}, n = {}, {} prompts, {} network(s). Below: the step that matches each layer best, with \
             its paired bootstrap interval over prompts.",
            shown.prompts.dim(),
            shown.prompts.context(),
            shown.prompts.len(),
            descent.networks.len(),
        ))
        .columns(2)
        .panel(upper)
        .panel(descent.map("SimE with gradient descent", "gradient-descent steps")?)
        .panel(lower)
        .panel(descent.paths("best-matching gradient-descent steps", true));
    Ok((Reproduction { figure, claims, config }, descent.networks))
}

/// Figure 3: layers against Newton and gradient descent.
///
/// # Errors
/// As [`newton_and_descent`].
pub fn fig3(settings: &Settings<'_>) -> Result<Reproduction> {
    let subject = Subject {
        id: "newton.fig3",
        title: "Layers match Newton linearly and gradient descent exponentially",
        checkpoint: "newton-s",
        newton: newton_bounds(1.5, 5.0),
        descent: DESCENT,
    };
    Ok(newton_and_descent(subject, settings)?.0)
}

/// Figures 2a and 3 at M: d = 10, n = 20.
///
/// # Errors
/// As [`newton_and_descent`].
pub fn medium(settings: &Settings<'_>) -> Result<Reproduction> {
    with_errors("newton.medium", "Layers against Newton and gradient descent at d = 10", "newton-m", settings)
}

/// Figures 2a and 3 at L, the paper's d = 20, n = 40 and 12 layers.
///
/// # Errors
/// As [`newton_and_descent`].
pub fn large(settings: &Settings<'_>) -> Result<Reproduction> {
    with_errors("newton.large", "Layers against Newton and gradient descent at d = 20", "newton-l", settings)
}

/// Figure 3 of another network, with the error over its layers as in Figure 2a.
fn with_errors(
    id: &'static str,
    title: &'static str,
    checkpoint: &'static str,
    settings: &Settings<'_>,
) -> Result<Reproduction> {
    let subject = Subject { id, title, checkpoint, newton: newton_bounds(1.5, 5.0), descent: DESCENT };
    let (made, networks) = newton_and_descent(subject, settings)?;
    let shown = first(&networks)?;
    let (d, n) = (shown.prompts.dim(), shown.prompts.context());
    let errors = error_panel("error over the layers", shown, &[d / 2, d, 5 * d / 4, 3 * d / 2, n]);
    let last = shown.errors[shown.count() - 1][n];
    let fall = shown.errors[shown.span()?.0][n] / last;
    let claims = made
        .claims
        .at_least(format!("{id}.fall"), "2d examples: error of the first useful layer over the last one's", fall, 10.0)
        .at_most(format!("{id}.error"), "… error of the last layer over d", last, 1e-2);
    Ok(Reproduction { figure: made.figure.panel(errors), claims, config: made.config })
}

/// Figure 8: the numbers of Figure 3, over the number of examples, and the same match by a measure that sees magnitudes.
///
/// # Errors
/// As [`newton_and_descent`].
pub fn fig8(settings: &Settings<'_>) -> Result<Reproduction> {
    let newton = Matches::of(Layers::load("newton-s", settings)?, newton_steps(), false, settings, |l| {
        Box::new(l.rivals.newton.clone())
    })?;
    let shown = first(&newton.networks)?;
    let (by_newton, by_descent) =
        (shown.run(&shown.rivals.newton, &newton.steps)?, shown.run(&shown.rivals.descent, &by_fifty())?);
    let layers = shown.numbers();
    let mut frames = vec![Frame::new(
        "all",
        [
            newton.map("SimE with Newton", "Newton steps")?,
            map(
                "SimE with gradient descent",
                &shown.similarity(&shown.rivals.descent, &by_fifty())?,
                &by_fifty(),
                "gradient-descent steps",
            ),
        ],
    )];
    let d = shown.prompts.dim();
    // With one example every algorithm's estimate is a multiple of the same vector.
    for t in 1..=shown.prompts.context() {
        let at = |made| similarity_at(Measure::Cosine, made, &shown.residuals, t);
        let panel = |title: &str, means: &[f64], steps: &[usize], name: &str| {
            means_map(title, means, steps, name, &layers, "layer")
        };
        frames.push(Frame::new(
            t,
            [
                panel("SimE with Newton", &at(&by_newton)?, &newton.steps, "Newton steps"),
                panel("SimE with gradient descent", &at(&by_descent)?, &by_fifty(), "gradient-descent steps"),
            ],
        ));
    }
    // Does the match hold for few, about d and many examples on their own?
    let parts = [
        ("few", "t < d", 0..d),
        ("about", "d ≤ t ≤ d + 1", d..d + 2),
        ("many", "t > d + 1", d + 2..shown.residuals.positions),
    ];
    let mut claims = Claims::new();
    let mut config = json!({ "checkpoint": "newton-s", "newton": newton.describe() });
    for (name, words, positions) in parts {
        let part = Similarity::of_errors(Measure::Cosine, &by_newton, &shown.residuals, positions)?;
        let best = part.best(200, settings.seed);
        let last = best.last().map_or(f64::NAN, |b| b.value);
        claims = claims.at_least(
            format!("newton.fig8.{name}"),
            format!("last layer, positions {words} alone: SimE with its best Newton step"),
            last,
            0.9,
        );
        config[name] = json!(best.iter().map(|b| (newton.steps[b.row], b.value)).collect::<Vec<_>>());
    }
    let positions = 0..shown.residuals.positions;
    let distance = Similarity::of_errors(Measure::RelativeDistance, &by_newton, &shown.residuals, positions)?;
    let by_distance: Vec<usize> = distance.best(200, settings.seed).iter().map(|b| newton.steps[b.row]).collect();
    let trend = &newton.trends[0];
    let moved = (trend.span.0..=trend.span.1)
        .map(|l| newton.steps[trend.best[l].row].abs_diff(by_distance[l]) as f64)
        .greatest();
    config["best_by_relative_distance"] = json!(by_distance);
    let bounds = Bounds { slope: (1.5, 5.0), r_squared: 0.95, similarity: Some((0.88, 0.97)) };
    claims.extend(trend_claims("newton.fig8.newton", "Newton", &newton.trends, bounds));
    let claims = claims.at_most(
        "newton.fig8.magnitude",
        "best Newton steps by cosine and by relative distance differ, over the span, by at most",
        moved,
        2.0,
    );
    let figure = Figure::new("newton.fig8", "Layers against Newton and gradient descent, by the number of examples")
        .caption(format!(
            "The heat maps of Figure 3 with their numbers, gradient descent on the paper's linear axis. The slider shows the \
             cosine at one number of examples t alone, between the errors of all {} prompts there. From t = d on both errors are \
             small and have little to do with one another: the similarity of late layers is made at t < d.",
            shown.prompts.len()
        ))
        .columns(2)
        .slider("examples t", frames);
    Ok(Reproduction { figure, claims, config })
}

/// Figure 10: layers against gradient descent on a logarithmic scale.
///
/// # Errors
/// As [`newton_and_descent`].
pub fn fig10(settings: &Settings<'_>) -> Result<Reproduction> {
    let descent = Matches::of(Layers::load("newton-s", settings)?, powers_of_two(), true, settings, |l| {
        Box::new(l.rivals.descent.clone())
    })?;
    let mut claims = Claims::new();
    if let Some(bounds) = DESCENT {
        claims.extend(trend_claims("newton.fig10", "gradient descent, log2", &descent.trends, bounds));
    }
    let figure = Figure::new("newton.fig10", "Layers against gradient descent: exponentially many steps")
        .caption(
            "SimE with gradient descent after 1, 2, 4, … steps, and the best-matching steps of all seeds with their intervals. \
             The paper has 1.4 doublings a layer.",
        )
        .columns(2)
        .panel(descent.map("SimE with gradient descent", "gradient-descent steps")?)
        .panel(descent.paths("best-matching steps", true));
    let config = json!({ "checkpoint": "newton-s", "gd": descent.describe() });
    Ok(Reproduction { figure, claims, config })
}

/// Figure 16: as Figure 8 on ill-conditioned data.
///
/// # Errors
/// As [`newton_and_descent`].
pub fn fig16(settings: &Settings<'_>) -> Result<Reproduction> {
    let subject = Subject {
        id: "newton.fig16",
        title: "Ill-conditioned data: layers still match Newton linearly",
        checkpoint: "newton-s-skew",
        newton: newton_bounds(2.0, 6.0),
        descent: None,
    };
    let (made, _) = newton_and_descent(subject, settings)?;
    super::ill_conditioned::with_paper_scale(made, "newton.fig16", settings)
}

/// Figure 22: one head.
///
/// # Errors
/// As [`newton_and_descent`].
pub fn fig22(settings: &Settings<'_>) -> Result<Reproduction> {
    let subject = Subject {
        id: "newton.fig22",
        title: "One head a layer",
        checkpoint: "newton-s-one-head",
        newton: newton_bounds(1.0, 5.0),
        descent: DESCENT,
    };
    Ok(newton_and_descent(subject, settings)?.0)
}
