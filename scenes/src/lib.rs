//! Scenes of coloured shapes: their captions ([`Description`]), their pictures ([`Scene`]), and the
//! recognition of objects in a picture ([`read()`]). The dataset "shapes" and the metric "caption_accuracy"
//! share this crate, which depends on neither.
//!
//!   caption  = group | group relation group
//!   group    = count size color shape              "two small red circles"
//!   count    = one | two | three                   the shape is plural after two and three
//!   relation = left of | right of | above | below
//!
//! Captions are lower-case words, separated by single spaces.

mod description;
mod read;
mod scene;

pub use description::{Description, Group, Vocabulary};
pub use read::{Reading, read};
pub use scene::{Object, Scene};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Most objects per group.
pub const MAX_COUNT: usize = 3;

/// Declares an enum whose variants are words of the grammar.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$each:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$each])* $variant),+ }

        impl $name {
            /// All values, in order.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// Returns the word for this value in captions.
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }
    };
}

words! {
    /// The shape of an object.
    Shape {
        /// A disc.
        Circle = "circle",
        /// An upright square.
        Square = "square",
        /// A triangle with its base at the bottom.
        Triangle = "triangle",
    }
}

words! {
    /// The colour of an object; the background is black.
    Color {
        /// Red.
        Red = "red",
        /// Green.
        Green = "green",
        /// Blue.
        Blue = "blue",
        /// Yellow.
        Yellow = "yellow",
        /// Purple.
        Purple = "purple",
        /// Cyan.
        Cyan = "cyan",
    }
}

words! {
    /// The size of an object.
    Size {
        /// 0.15 of the picture's side.
        Small = "small",
        /// 0.25 of the picture's side.
        Large = "large",
    }
}

words! {
    /// Position of the first group relative to the second.
    Relation {
        /// To the left.
        LeftOf = "left of",
        /// To the right.
        RightOf = "right of",
        /// Above.
        Above = "above",
        /// Below.
        Below = "below",
    }
}

/// Size, colour and shape of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    /// The size.
    pub size: Size,
    /// The colour.
    pub color: Color,
    /// The shape.
    pub shape: Shape,
}

impl Shape {
    /// Returns width and height of the bounding box, in units of the object's size.
    fn extent(self) -> [f64; 2] {
        match self {
            Self::Circle | Self::Square => [1.0, 1.0],
            Self::Triangle => [1.1, 1.0],
        }
    }

    /// Returns whether the point (x, y) is inside the shape. Coordinates are in units of the object's size,
    /// relative to the centre of the bounding box, with y downwards.
    fn holds(self, x: f64, y: f64) -> bool {
        match self {
            Self::Circle => x * x + y * y <= 0.25,
            Self::Square => x.abs().max(y.abs()) <= 0.5,
            Self::Triangle => y.abs() <= 0.5 && x.abs() <= 0.55 * (y + 0.5),
        }
    }

    /// Returns the distance of the centre of mass below the centre of the bounding box, in units of the
    /// object's size.
    fn sag(self) -> f64 {
        if self == Self::Triangle { 1.0 / 6.0 } else { 0.0 }
    }
}

impl Color {
    /// Returns red, green and blue in [-1, 1].
    fn rgb(self) -> [f32; 3] {
        match self {
            Self::Red => [0.9, -0.8, -0.8],
            Self::Green => [-0.7, 0.6, -0.6],
            Self::Blue => [-0.6, -0.3, 1.0],
            Self::Yellow => [0.9, 0.7, -0.8],
            Self::Purple => [0.4, -0.6, 0.8],
            Self::Cyan => [-0.6, 0.8, 0.9],
        }
    }
}

impl Size {
    /// Returns the size in units of the picture's side.
    fn side(self) -> f64 {
        match self {
            Self::Small => 0.15,
            Self::Large => 0.25,
        }
    }
}

impl Relation {
    /// Returns the axis of the relation: 0 = x, 1 = y.
    fn axis(self) -> usize {
        usize::from(matches!(self, Self::Above | Self::Below))
    }

    /// Returns whether the first group has the smaller coordinate on that axis.
    fn first_is_near(self) -> bool {
        matches!(self, Self::LeftOf | Self::Above)
    }
}
