//! Data that is drawn a step ahead.

/// Draws the data of the next step while this one's gradient is computed: to draw them takes one thread.
///
/// ```
/// use incontext::train::Ahead;
/// let mut squares = Ahead::default();
/// let draw = |step: u64| Ok::<_, incontext::Error>(step * step);
/// assert_eq!(squares.with(3, draw, |nine| nine + 1)?, 10);
/// // What was drawn for step 4 is used at step 4 alone.
/// assert_eq!(squares.with(4, draw, |sixteen| *sixteen)?, 16);
/// assert_eq!(squares.with(9, draw, |eighty_one| *eighty_one)?, 81);
/// # Ok::<(), incontext::Error>(())
/// ```
#[derive(Debug)]
pub struct Ahead<D> {
    next: Option<(u64, D)>,
}

impl<D> Default for Ahead<D> {
    fn default() -> Self {
        Ahead { next: None }
    }
}

impl<D: Send + Sync> Ahead<D> {
    /// What `work` makes of the data of `step`, which `draw` makes of nothing but the step.
    ///
    /// # Errors
    /// Those of `draw` at this step; at the next one it is asked again.
    pub fn with<R: Send, E: Send>(
        &mut self,
        step: u64,
        draw: impl Fn(u64) -> Result<D, E> + Sync,
        work: impl FnOnce(&D) -> R + Send,
    ) -> Result<R, E> {
        let now = match self.next.take() {
            Some((drawn_for, data)) if drawn_for == step => data,
            _ => draw(step)?,
        };
        let (result, next) = rayon::join(|| work(&now), || draw(step + 1));
        self.next = next.ok().map(|data| (step + 1, data));
        Ok(result)
    }
}
