//! Official checkpoints: what a parameter is called there, and how it lies in the file.

/// How a parameter lies in the official file, seen from ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layout {
    /// The same shape.
    Same,
    /// A linear weight: theirs `[out, in]`, ours `[in, out]`.
    Transposed,
    /// A patch-embedding convolution: theirs `[out, C, p, p]`, ours `[p p C, out]` with the channel last.
    PatchConv,
    /// The same numbers in another shape (theirs).
    Reshaped(Vec<usize>),
}

/// The official name and layout of one parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignName {
    /// Name in the official file.
    pub name: String,
    /// Layout in the official file.
    pub layout: Layout,
}

/// The official files of one backbone or tokenizer.
#[derive(Clone)]
pub struct ForeignNames {
    /// The official name of the parameter at our path.
    pub of: fn(path: &str) -> ForeignName,
    /// Prefixes under which training containers nest the weights, best first, e.g. ``ema.`, `model.``.
    pub nesting: &'static [&'static str],
    /// Names in the file that are not weights, and why they are ignored.
    pub ignored: &'static [(&'static str, &'static str)],
    /// Parameters of ours that a file may lack: they keep their initial value (zero), e.g. a guidance input.
    pub optional: &'static [&'static str],
}
