//! Scenes of coloured shapes: what they are called ([`Description`]), how they are drawn ([`Scene`]), and how a picture is
//! read back ([`read()`]). Dataset and metric speak of scenes through this crate; it knows neither.
//!
//!   caption  = group | group relation group
//!   group    = count size color shape              "two small red circles"
//!   count    = one | two | three                   a shape takes an s after two and three
//!   relation = left of | right of | above | below
//!
//! Captions are lower-case words with single spaces between them.

mod description;
mod read;
mod scene;

pub use description::{Description, Group, Vocabulary};
pub use read::{Reading, read};
pub use scene::{Object, Scene};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Most objects of one group.
pub const MAX_COUNT: usize = 3;

/// An enum whose variants are words of the grammar.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$each:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$each])* $variant),+ }

        impl $name {
            /// All of them, in order.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// What captions call it.
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
        /// A triangle that stands on its base.
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
    /// Where the first group lies, seen from the second.
    Relation {
        /// On its left.
        LeftOf = "left of",
        /// On its right.
        RightOf = "right of",
        /// Above it.
        Above = "above",
        /// Below it.
        Below = "below",
    }
}

/// What one object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    /// Its size.
    pub size: Size,
    /// Its colour.
    pub color: Color,
    /// Its shape.
    pub shape: Shape,
}

impl Shape {
    /// Width and height of its box, in units of its size.
    fn extent(self) -> [f64; 2] {
        match self {
            Self::Circle | Self::Square => [1.0, 1.0],
            Self::Triangle => [1.1, 1.0],
        }
    }

    /// Whether the point (x, y), in units of its size from the centre of its box, y downwards, is inside.
    fn holds(self, x: f64, y: f64) -> bool {
        match self {
            Self::Circle => x * x + y * y <= 0.25,
            Self::Square => x.abs().max(y.abs()) <= 0.5,
            Self::Triangle => y.abs() <= 0.5 && x.abs() <= 0.55 * (y + 0.5),
        }
    }

    /// How far its centre of mass lies below the centre of its box, in units of its size.
    fn sag(self) -> f64 {
        if self == Self::Triangle { 1.0 / 6.0 } else { 0.0 }
    }
}

impl Color {
    /// Red, green, blue, in [-1, 1].
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
    /// In units of the picture's side.
    fn side(self) -> f64 {
        match self {
            Self::Small => 0.15,
            Self::Large => 0.25,
        }
    }
}

impl Relation {
    /// The axis it speaks of: 0 = x, 1 = y.
    fn axis(self) -> usize {
        usize::from(matches!(self, Self::Above | Self::Below))
    }

    /// Whether the first group is the one with the smaller coordinate.
    fn first_is_near(self) -> bool {
        matches!(self, Self::LeftOf | Self::Above)
    }
}
