//! Registration: one `register!` line makes a type known by its JSON name.
//!
//! The registry crate looks the entries up. A crate that only registers is dropped by the linker unless
//! some code names it, so the binary keeps one visible list of its linked plugins.

use crate::{
    backbone::BackboneConfig, conditioner::Conditioner, dataset::DatasetConfig, guidance::Guidance, metric::Metric,
    objective::Objective, sampler::Sampler, tokenizer::Tokenizer,
};

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
}

impl Kind {
    /// All kinds, in the order of the document.
    pub const ALL: [Self; 8] = [
        Self::Data,
        Self::Tokenizer,
        Self::Conditioner,
        Self::Backbone,
        Self::Objective,
        Self::Sampler,
        Self::Guidance,
        Self::Metric,
    ];

    /// The word for it in messages and in the schema.
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
        }
    }
}

/// One registered plugin.
pub struct Entry {
    /// The slot it fills.
    pub kind: Kind,
    /// Its name in documents.
    pub name: &'static str,
    /// Its sources, e.g. "arXiv:2501.15420".
    pub papers: &'static [&'static str],
    /// The crate it comes from.
    pub origin: &'static str,
    /// What a library says about itself in sections of its file, to be read before it is opened: [`BUILD_ID`], and kind,
    /// name, crate, version and papers of this plugin.
    pub sections: [&'static [u8]; 2],
    /// The JSON Schema of its fields (without `type`).
    pub schema: fn() -> schemars::Schema,
}

inventory::collect!(Entry);

/// What this framework was built from: compiler, target, version, features, processor, and hashes of the dependencies
/// and of the source. A library fits if its own is the same. Ends with a zero byte.
pub const BUILD_ID: &str = concat!(env!("UNGUIDED_BUILD_ID"), "\0");

/// The section of a library's file that holds [`BUILD_ID`].
pub const BUILD_ID_SECTION: &str = ".unguided.build_id";

/// The section of a library's file that holds one record a plugin: kind, name, crate, version and papers, separated by
/// tabs, and a zero byte.
pub const PLUGINS_SECTION: &str = ".unguided.plugins";

/// The bytes of a text, as a static of a section holds them.
///
/// # Panics
/// If the text is shorter than `N`.
pub const fn bytes<const N: usize>(text: &str) -> [u8; N] {
    match text.as_bytes().first_chunk() {
        Some(bytes) => *bytes,
        None => panic!("the text is as long as its array"),
    }
}

/// Every entry linked into the program, sorted by kind and name.
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

        /// Cloning of the boxed entry; implemented for every entry that is `Clone`.
        pub trait $clone {
            /// A boxed copy.
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
            /// A reference to the slot's definition, which the registry fills with everything registered.
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
}

/// Makes a type known by its JSON name: `register!(objective "gft" => Gft, "arXiv:2501.15420");`
///
/// The type must be `Serialize + Deserialize + JsonSchema + Clone` and implement the slot's trait. The crate
/// needs `framework` and `serde` as dependencies, nothing else for this line.
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
    (@ $kind:ident $plugin:ident $name:literal => $type:ty $(, $paper:literal)* $(,)?) => {
        const _: () = {
            // typetag's expansion names its own crate; the plugin need not depend on it.
            use $crate::typetag;
            #[typetag::serde(name = $name)]
            impl $crate::plugin::$plugin for $type {}
        };

        const _: () = {
            const TEXT: &str = concat!(
                stringify!($kind), "\t", $name, "\t", env!("CARGO_PKG_NAME"), "\t", env!("CARGO_PKG_VERSION"),
                $("\t", $paper,)* "\0"
            );
            // Read from the file of a shared library before it is opened; the names are those of the constants.
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
