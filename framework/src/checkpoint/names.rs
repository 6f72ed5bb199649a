//! Official names and layouts of the parameters in a published format.

use crate::error::{Problem, Result};
use burn::tensor::TensorData;
use std::sync::Arc;

/// Layout of a parameter in the official file, relative to our layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layout {
    /// The same layout.
    Same,
    /// A linear weight: `[out, in]` in the file, `[in, out]` here.
    Transposed,
    /// A patch-embedding convolution: `[out, C, p, p]` in the file, `[p p C, out]` with the channel last
    /// here.
    PatchConv {
        /// Side length of a patch.
        patch: usize,
    },
    /// The same values in another shape, given as in the file.
    Reshaped(Vec<usize>),
    /// One of `of` equal parts of a tensor in the file. The tensor concatenates several of our parameters
    /// along its first dimension (fused queries, keys and values).
    Part {
        /// Index of the part, from 0.
        index: usize,
        /// Number of parts.
        of: usize,
    },
}

/// The official name and layout of one parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfficialName {
    /// Name in the official file.
    pub name: String,
    /// Layout in the official file.
    pub layout: Layout,
}

/// One published format of a backbone, a tokenizer or a text encoder. If a network has several formats, a
/// file is recognised by its tensor names.
#[derive(Clone)]
pub struct OfficialNames {
    /// The format's name in documents and in `convert`.
    pub format: &'static str,
    /// The folder of this network in a pipeline folder; empty if the format has no pipeline folder.
    pub folder: &'static str,
    /// Returns the official name of the parameter at our path.
    pub of: Arc<dyn Fn(&str) -> OfficialName + Send + Sync>,
    /// Prefixes under which training containers nest the weights, best first, e.g. `ema.`, `model.`.
    pub nesting: &'static [&'static str],
    /// Prefixes or suffixes of names in the file that are not weights, and why they are ignored.
    pub ignored: &'static [(&'static str, &'static str)],
    /// Path prefixes of our parameters that a file may lack (a guidance input), and their initial values. The
    /// first match applies.
    pub optional: &'static [(&'static str, Fresh)],
}

/// Initial values of a parameter that the file lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fresh {
    /// Zeros: for the last layer of a new term, so that the network starts as the published one.
    Zero,
    /// The network's own initialization: for the layers before the last, which could not learn from zeros.
    Initialized,
}

/// Contents of a latent-diffusion container other than the network that is loaded.
pub const BESIDE_LATENT_DIFFUSION: &[(&str, &str)] = &[
    ("model.diffusion_model.", "the backbone"),
    ("state_dict.model.diffusion_model.", "the backbone"),
    ("first_stage_model.", "the autoencoder"),
    ("state_dict.first_stage_model.", "the autoencoder"),
    ("cond_stage_model.", "the text encoder"),
    ("state_dict.cond_stage_model.", "the text encoder"),
    ("model_ema.", "averaged weights, under names without dots"),
    ("state_dict.model_ema.", "averaged weights, under names without dots"),
    ("loss.", "networks of the training loss"),
    ("text_model.embeddings.position_ids", "the indices from 0"),
    ("betas", SCHEDULE),
    ("alphas_cumprod", SCHEDULE),
    ("alphas_cumprod_prev", SCHEDULE),
    ("posterior_variance", SCHEDULE),
    ("posterior_log_variance_clipped", SCHEDULE),
    ("posterior_mean_coef1", SCHEDULE),
    ("posterior_mean_coef2", SCHEDULE),
    ("optimizer_states", "optimizer state"),
];
const SCHEDULE: &str = "the noise schedule, which is recomputed";

/// Name of the format of a network that was published in one format only.
pub const OFFICIAL: &str = "official";

/// Returns the format with the given name, or the first format if there is no name.
///
/// # Errors
/// If no format has this name. The error lists the known names.
pub fn format<'a>(formats: &'a [OfficialNames], name: Option<&str>) -> Result<&'a OfficialNames> {
    let Some(name) = name else { return Ok(&formats[0]) };
    formats.iter().find(|names| names.format == name).ok_or_else(|| {
        let known: Vec<&str> = formats.iter().map(|names| names.format).collect();
        Problem::new("", format!("these weights have no format `{name}`")).accepts(known.join(", ")).into()
    })
}

impl OfficialNames {
    /// Returns the initial values of the parameter at `path` if a file may lack it; `None` if a file must
    /// contain it.
    pub fn fresh(&self, path: &str) -> Option<Fresh> {
        self.optional.iter().find(|(prefix, _)| path.starts_with(prefix)).map(|(_, fresh)| *fresh)
    }
}

impl Fresh {
    /// Returns the values that replace the network's own initialization; `None` keeps the initialization.
    pub(crate) fn values(self, shape: &[usize]) -> Option<TensorData> {
        let zeros = || TensorData::new(vec![0.0_f32; shape.iter().product()], shape.to_vec());
        (self == Self::Zero).then(zeros)
    }
}

impl Layout {
    /// Converts the file's tensor into our layout.
    ///
    /// # Errors
    /// If the file's shape differs from the shape that this layout gives for `shape`.
    pub fn to_own(&self, data: TensorData, shape: &[usize]) -> std::result::Result<TensorData, String> {
        let (theirs, expected) = (data.shape().to_vec(), self.foreign_shape(shape));
        if theirs != expected {
            return Err(format!("is {theirs:?}; the document asks for {expected:?}"));
        }
        let values = data.try_into_vec::<f32>().map_err(|e| format!("{e:?}"))?;
        let values = match self {
            Self::Same | Self::Reshaped(_) => values,
            Self::Part { index, of } => {
                let count = values.len() / of;
                values[index * count..(index + 1) * count].to_vec()
            }
            Self::Transposed => transpose(&values, theirs[0], theirs[1]),
            Self::PatchConv { patch } => {
                let (out, channels, places) = (theirs[0], theirs[1], patch * patch);
                let at = |o: usize, channel: usize, place: usize| values[(o * channels + channel) * places + place];
                let rows = (0..places).flat_map(|place| (0..channels).map(move |channel| (place, channel)));
                rows.flat_map(|(place, channel)| (0..out).map(move |o| at(o, channel, place))).collect()
            }
        };
        Ok(TensorData::new(values, shape.to_vec()))
    }

    /// Returns the shape of the file's tensor for our parameter of the given shape.
    pub(crate) fn foreign_shape(&self, shape: &[usize]) -> Vec<usize> {
        match self {
            Self::Same => shape.to_vec(),
            Self::Transposed => vec![shape[1], shape[0]],
            Self::PatchConv { patch } => vec![shape[1], shape[0] / (patch * patch), *patch, *patch],
            Self::Reshaped(theirs) => theirs.clone(),
            Self::Part { of, .. } => [&[shape[0] * of], &shape[1..]].concat(),
        }
    }

    /// Converts our tensor into the file's layout. For a part, it returns that part only.
    ///
    /// # Panics
    /// If the values are not f32.
    pub fn to_foreign(&self, data: TensorData) -> TensorData {
        let shape = data.shape().to_vec();
        match self {
            Self::Same | Self::Part { .. } => data,
            Self::Reshaped(theirs) => {
                TensorData::new(data.try_into_vec::<f32>().expect("weights are f32"), theirs.clone())
            }
            Self::Transposed => {
                let values = data.try_into_vec::<f32>().expect("weights are f32");
                TensorData::new(transpose(&values, shape[0], shape[1]), [shape[1], shape[0]])
            }
            Self::PatchConv { patch } => {
                let (places, out) = (patch * patch, shape[1]);
                let channels = shape[0] / places;
                let values = data.try_into_vec::<f32>().expect("weights are f32");
                let at = |o: usize, channel: usize, place: usize| values[(place * channels + channel) * out + o];
                let rows = (0..out).flat_map(|o| (0..channels).map(move |channel| (o, channel)));
                let theirs =
                    rows.flat_map(|(o, channel)| (0..places).map(move |place| at(o, channel, place))).collect();
                TensorData::new::<f32, _>(theirs, [out, channels, *patch, *patch])
            }
        }
    }
}

fn transpose(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len());
    for column in 0..columns {
        out.extend((0..rows).map(|row| values[row * columns + column]));
    }
    out
}
