//! Registration: one `register!` line makes a type available under its JSON name.
//!
//! The registry crate looks up the entries. The linker drops a crate that only registers types unless some
//! code names it, so the binary keeps an explicit list of its linked plugins.

use crate::data::dataset::DatasetConfig;
use crate::data::tokenizer::Tokenizer;
use crate::evaluation::features::Features;
use crate::evaluation::metric::Metric;
use crate::network::backbone::BackboneConfig;
use crate::network::conditioner::Conditioner;
use crate::objective::Objective;
use crate::sampling::guidance::Guidance;
use crate::sampling::sampler::Sampler;

/// The slots of a pipeline document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `data`
    Data,
    /// `tokenizer`
    Tokenizer,
    /// `conditioner`
    Conditioner,
    /// `backbone`
    Backbone,
    /// `objective`
    Objective,
    /// `sampler`
    Sampler,
    /// `guidance`
    Guidance,
    /// `metrics`
    Metric,
    /// `features` of a metric
    Features,
}

impl Kind {
    /// All kinds, in the order of the document.
    pub const ALL: [Self; 9] = [
        Self::Data,
        Self::Tokenizer,
        Self::Conditioner,
        Self::Backbone,
        Self::Objective,
        Self::Sampler,
        Self::Guidance,
        Self::Metric,
        Self::Features,
    ];

    /// Returns the kind's name in messages and in the schema.
    pub fn name(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Tokenizer => "tokenizer",
            Self::Conditioner => "conditioner",
            Self::Backbone => "backbone",
            Self::Objective => "objective",
            Self::Sampler => "sampler",
            Self::Guidance => "guidance",
            Self::Metric => "metric",
            Self::Features => "features",
        }
    }
}

/// One registered plugin.
pub struct Entry {
    /// The slot that the plugin fills.
    pub kind: Kind,
    /// The plugin's name in documents.
    pub name: &'static str,
    /// The plugin's papers, e.g. "arXiv:2501.15420".
    pub papers: &'static [&'static str],
    /// The crate that registers the plugin.
    pub origin: &'static str,
    /// The contents of two sections of a library file, which are read before the library is opened:
    /// [`BUILD_ID`], and a record of this plugin's kind, name, crate, version and papers.
    pub sections: [&'static [u8]; 2],
    /// Returns the JSON Schema of the plugin's fields (without `type`).
    pub schema: fn() -> schemars::Schema,
}

inventory::collect!(Entry);

/// Identifies the build of this framework: compiler, target, version, features, processor, and hashes of the
/// dependencies and of the source. A library is compatible if it has the same id. The text ends with a zero
/// byte.
pub const BUILD_ID: &str = concat!(env!("UNGUIDED_BUILD_ID"), "\0");

/// Name of the section of a library file that holds [`BUILD_ID`].
pub const BUILD_ID_SECTION: &str = ".unguided.build_id";

/// Name of the section of a library file that holds one record per plugin: kind, name, crate, version and
/// papers, separated by tabs and followed by a zero byte.
pub const PLUGINS_SECTION: &str = ".unguided.plugins";

/// Returns the bytes of a text as an array, which a static in a section needs.
///
/// # Panics
/// If the text is shorter than `N`.
pub const fn bytes<const N: usize>(text: &str) -> [u8; N] {
    match text.as_bytes().first_chunk() {
        Some(bytes) => *bytes,
        None => panic!("the text is shorter than its array"),
    }
}

/// Returns every entry linked into the program, sorted by kind and name.
pub fn entries() -> Vec<&'static Entry> {
    let mut entries: Vec<&Entry> = inventory::iter::<Entry>.into_iter().collect();
    entries.sort_by_key(|entry| (entry.kind, entry.name));
    entries
}

macro_rules! slots {
    ($($(#[$doc:meta])* $plugin:ident: $base:ident, $clone:ident;)*) => {$(
        $(#[$doc])*
        #[typetag::serde(tag = "type")]
        pub trait $plugin: $base + $clone {}

        impl Clone for Box<dyn $plugin> {
            fn clone(&self) -> Self {
                (**self).clone_box()
            }
        }

        /// Clones a boxed entry. Every entry that is `Clone` implements it.
        pub trait $clone {
            /// Returns a boxed copy.
            fn clone_box(&self) -> Box<dyn $plugin>;
        }

        impl<T: $plugin + Clone + 'static> $clone for T {
            fn clone_box(&self) -> Box<dyn $plugin> {
                Box::new(self.clone())
            }
        }

        impl schemars::JsonSchema for Box<dyn $plugin> {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($base).to_lowercase().replace("config", "").into()
            }
            /// Returns a placeholder. The registry replaces it by a definition that lists every registered
            /// plugin.
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "object" })
            }
        }
    )*};
}

slots! {
    /// A registered dataset.
    DatasetPlugin: DatasetConfig, CloneDataset;
    /// A registered tokenizer.
    TokenizerPlugin: Tokenizer, CloneTokenizer;
    /// A registered conditioner.
    ConditionerPlugin: Conditioner, CloneConditioner;
    /// A registered backbone.
    BackbonePlugin: BackboneConfig, CloneBackbone;
    /// A registered objective.
    ObjectivePlugin: Objective, CloneObjective;
    /// A registered sampler.
    SamplerPlugin: Sampler, CloneSampler;
    /// A registered guidance rule.
    GuidancePlugin: Guidance, CloneGuidance;
    /// A registered metric.
    MetricPlugin: Metric, CloneMetric;
    /// A registered feature space.
    FeaturesPlugin: Features, CloneFeatures;
}

/// Makes a type available under its JSON name: `register!(objective "gft" => Gft, "arXiv:2501.15420");`
///
/// The type must implement `Serialize + Deserialize + JsonSchema + Clone` and the trait of the slot. This
/// line only needs `framework` and `serde` as dependencies of the crate.
#[macro_export]
macro_rules! register {
    (data $($rest:tt)*) => { $crate::register!(@ Data DatasetPlugin $($rest)*); };
    (tokenizer $($rest:tt)*) => { $crate::register!(@ Tokenizer TokenizerPlugin $($rest)*); };
    (conditioner $($rest:tt)*) => { $crate::register!(@ Conditioner ConditionerPlugin $($rest)*); };
    (backbone $($rest:tt)*) => { $crate::register!(@ Backbone BackbonePlugin $($rest)*); };
    (objective $($rest:tt)*) => { $crate::register!(@ Objective ObjectivePlugin $($rest)*); };
    (sampler $($rest:tt)*) => { $crate::register!(@ Sampler SamplerPlugin $($rest)*); };
    (guidance $($rest:tt)*) => { $crate::register!(@ Guidance GuidancePlugin $($rest)*); };
    (metric $($rest:tt)*) => { $crate::register!(@ Metric MetricPlugin $($rest)*); };
    (features $($rest:tt)*) => { $crate::register!(@ Features FeaturesPlugin $($rest)*); };
    (@ $kind:ident $plugin:ident $name:literal => $type:ty $(, $paper:literal)* $(,)?) => {
        const _: () = {
            // typetag's expansion refers to its own crate by name. This import spares the plugin that
            // dependency.
            use $crate::typetag;
            #[typetag::serde(name = $name)]
            impl $crate::plugin::$plugin for $type {}
        };

        const _: () = {
            const TEXT: &str = concat!(
                stringify!($kind), "\t", $name, "\t", env!("CARGO_PKG_NAME"), "\t", env!("CARGO_PKG_VERSION"),
                $("\t", $paper,)* "\0"
            );
            // The host reads both sections from a library file before opening it. `BUILD_ID_SECTION` and
            // `PLUGINS_SECTION` repeat these section names.
            #[used]
            #[cfg_attr(target_os = "linux", unsafe(link_section = ".unguided.build_id"))]
            static BUILD_ID: [u8; $crate::plugin::BUILD_ID.len()] = $crate::plugin::bytes($crate::plugin::BUILD_ID);
            #[used]
            #[cfg_attr(target_os = "linux", unsafe(link_section = ".unguided.plugins"))]
            static PLUGIN: [u8; TEXT.len()] = $crate::plugin::bytes(TEXT);

            $crate::inventory::submit! {
                $crate::plugin::Entry {
                    kind: $crate::plugin::Kind::$kind,
                    name: $name,
                    papers: &[$($paper),*],
                    origin: env!("CARGO_PKG_NAME"),
                    sections: [&BUILD_ID, &PLUGIN],
                    schema: || $crate::schemars::SchemaGenerator::default().into_root_schema_for::<$type>(),
                }
            }
        };
    };
}
