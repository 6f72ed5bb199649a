//! The statement of an objective's optimum: what its minimiser samples. The laws check it.

/// The distribution that the minimiser of an objective samples. The laws check it.
pub enum Optimum {
    /// The network learns `p(x | c)` and `p(x)`. Any rule can guide it at sampling.
    Conditional,
    /// One pass samples a tilted distribution.
    Tilted(Tilt),
    /// Gradient descent from the conditional reference starts exactly along `conditional - unconditional`.
    /// The end point has no closed form.
    Towards,
    /// There is no minimiser, for the given reason.
    Unbounded(&'static str),
    /// The minimiser has no known formula, for the given reason. The laws cannot check it, so the
    /// documentation must say so.
    Unstated(&'static str),
}

impl Optimum {
    /// Returns the statement as text.
    pub fn statement(&self) -> String {
        match self {
            Self::Conditional => "conditional and unconditional".into(),
            Self::Tilted(tilt) => {
                let of = if tilt.from == Of::Reference { "the reference" } else { "the data" };
                let against = match tilt.against {
                    Against::Null => String::new(),
                    Against::MeanOfClasses => ", against the mean of all classes".into(),
                    Against::MeanOfOtherClasses => ", against the mean of all other classes".into(),
                    Against::Others => ", against all other conditions".into(),
                    Against::Reference => ", against the reference".into(),
                    Against::Made { text, .. } => format!(", against {text}"),
                };
                let free = if tilt.free_normaliser { ", up to a factor that depends on c" } else { "" };
                format!("{of} at scale {}{against}{free}", tilt.text)
            }
            Self::Towards => "descends from the reference along guidance".into(),
            Self::Unbounded(why) => format!("none: {why}"),
            Self::Unstated(why) => format!("no closed form: {why}"),
        }
    }
}

/// The distribution that a tilt starts from, or whose difference it adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// The training data.
    Data,
    /// The frozen reference.
    Reference,
}

/// The contrast of a condition.
#[derive(Clone, Copy, Debug)]
pub enum Against {
    /// The unconditional prediction.
    Null,
    /// The unweighted mean of the predictions for all classes.
    MeanOfClasses,
    /// The unweighted mean of the predictions for all other classes.
    MeanOfOtherClasses,
    /// The prediction for everything except the condition: `p(x | not c)`.
    Others,
    /// The reference's prediction for the same condition: the tilt has another distribution at each of its two ends.
    Reference,
    /// A contrast that the objective computes from the conditional and the unconditional prediction of a
    /// sample.
    Made {
        /// The contrast in words; it follows "against ".
        text: &'static str,
        /// Computes the contrast from (conditional, unconditional).
        from: fn(&[f64], &[f64]) -> Vec<f64>,
    },
}

/// A scale as a function of the guidance number (if the network reads one) and of progress.
pub type ScaleAt = Box<dyn Fn(Option<f64>, f64) -> f64 + Send + Sync>;

/// `from(c) + (scale - 1) (of(c) - of(against))` in prediction space.
pub struct Tilt {
    /// The scale.
    pub scale: ScaleAt,
    /// The scale in words, for example `1 / beta`.
    pub text: String,
    /// The distribution that is tilted.
    pub from: Of,
    /// The distribution whose conditional-minus-contrast difference is added.
    pub of: Of,
    /// The contrast of the condition.
    pub against: Against,
    /// Whether the statement holds only for a model whose log-probabilities need not be normalised. The
    /// optimum is then known up to one factor per condition.
    pub free_normaliser: bool,
}

impl Tilt {
    /// States that one pass samples the data distribution, tilted at the scale that `scale` returns.
    pub fn data(text: impl Into<String>, scale: impl Fn(Option<f64>, f64) -> f64 + Send + Sync + 'static) -> Self {
        Self {
            scale: Box::new(scale),
            text: text.into(),
            from: Of::Data,
            of: Of::Data,
            against: Against::Null,
            free_normaliser: false,
        }
    }
}
