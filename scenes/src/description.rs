//! Descriptions of scenes, and their conversion to and from captions.

use crate::{Color, Kind, MAX_COUNT, Relation, Shape, Size};
use rand::{Rng, RngExt};
use std::fmt;
use std::str::FromStr;

const COUNTS: [&str; MAX_COUNT] = ["one", "two", "three"];

/// One or more objects of the same kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group {
    /// Number of objects, 1 to [`MAX_COUNT`].
    pub count: usize,
    /// Kind of the objects.
    pub kind: Kind,
}

/// The content of a scene. `Display` writes it as a caption, and `FromStr` parses a caption.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Description {
    /// The group that the caption names first.
    pub first: Group,
    /// The other group, and the position of the first group relative to it.
    pub second: Option<(Relation, Group)>,
}

impl Description {
    /// Returns the groups, in the order of the caption.
    pub fn groups(&self) -> impl Iterator<Item = Group> {
        [Some(self.first), self.second.map(|(_, group)| group)].into_iter().flatten()
    }

    /// Returns the description of the same scene that uses "left of" or "above": "a right of b" becomes "b
    /// left of a".
    pub fn canonical(self) -> Self {
        let told = |relation, second| Self { first: second, second: Some((relation, self.first)) };
        match self.second {
            Some((Relation::RightOf, second)) => told(Relation::LeftOf, second),
            Some((Relation::Below, second)) => told(Relation::Above, second),
            _ => self,
        }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Kind { size, color, shape } = self.kind;
        let plural = if self.count > 1 { "s" } else { "" };
        write!(f, "{} {} {} {}{plural}", COUNTS[self.count - 1], size.word(), color.word(), shape.word())
    }
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first)?;
        match self.second {
            Some((relation, group)) => write!(f, " {} {group}", relation.word()),
            None => Ok(()),
        }
    }
}

impl FromStr for Description {
    type Err = String;

    /// Parses a caption.
    ///
    /// # Errors
    /// The first word that the grammar does not accept, and the words that it accepts there.
    fn from_str(caption: &str) -> Result<Self, String> {
        let mut rest = caption;
        let first = group(&mut rest)?;
        if rest.is_empty() {
            return Ok(Self { first, second: None });
        }
        let relation = take(&mut rest, Relation::ALL, |relation| relation.word().into())?;
        let second = group(&mut rest)?;
        if !rest.is_empty() {
            return Err(format!("expected the end of the caption, found \"{rest}\""));
        }
        Ok(Self { first, second: Some((relation, second)) })
    }
}

fn group(rest: &mut &str) -> Result<Group, String> {
    let count = take(rest, &[1, 2, 3], |count| COUNTS[count - 1].into())?;
    let size = take(rest, Size::ALL, |size| size.word().into())?;
    let color = take(rest, Color::ALL, |color| color.word().into())?;
    let plural = if count > 1 { "s" } else { "" };
    let shape = take(rest, Shape::ALL, |shape| format!("{}{plural}", shape.word()))?;
    Ok(Group { count, kind: Kind { size, color, shape } })
}

/// Finds the value of `all` whose word starts `rest`, and removes that word and the space after it from `rest`.
fn take<T: Copy>(rest: &mut &str, all: &[T], word: impl Fn(T) -> String) -> Result<T, String> {
    for it in all {
        let after = rest.strip_prefix(&*word(*it));
        if let Some(after) =
            after.and_then(|after| if after.is_empty() { Some(after) } else { after.strip_prefix(' ') })
        {
            *rest = after;
            return Ok(*it);
        }
    }
    let words: Vec<String> = all.iter().map(|it| word(*it)).collect();
    let found = rest.split(' ').next().filter(|word| !word.is_empty());
    let found = found.map_or("the end of the caption".to_string(), |word| format!("\"{word}\""));
    Err(format!("found {found}, expected one of {}", words.join(", ")))
}

/// The values that random descriptions are made of. Every list has at least one element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vocabulary {
    /// Shapes.
    pub shapes: Vec<Shape>,
    /// Colours.
    pub colors: Vec<Color>,
    /// Sizes.
    pub sizes: Vec<Size>,
    /// Most objects per group, 1 to [`MAX_COUNT`].
    pub max_count: usize,
    /// Most groups, 1 or 2. If it is 2 and there is more than one kind of object, half of the scenes have two
    /// groups, of different kinds.
    pub groups: usize,
}

impl Vocabulary {
    /// Returns the number of kinds of object.
    pub fn kinds(&self) -> usize {
        self.shapes.len() * self.colors.len() * self.sizes.len()
    }

    fn kind(&self, number: usize) -> Kind {
        let (rest, size) = (number / self.sizes.len(), self.sizes[number % self.sizes.len()]);
        let (shape, color) = (self.shapes[rest / self.colors.len()], self.colors[rest % self.colors.len()]);
        Kind { size, color, shape }
    }

    /// Returns a random description.
    pub fn describe(&self, random: &mut impl Rng) -> Description {
        let first = random.random_range(0..self.kinds());
        let group = |number: usize, random: &mut _| Group {
            count: RngExt::random_range(random, 1..=self.max_count),
            kind: self.kind(number),
        };
        let two = self.groups > 1 && self.kinds() > 1 && random.random_range(0..2) == 1;
        let second = two.then(|| {
            let relation = Relation::ALL[random.random_range(0..Relation::ALL.len())];
            let other = (first + random.random_range(1..self.kinds())) % self.kinds();
            (relation, group(other, random))
        });
        Description { first: group(first, random), second }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    fn everything() -> Vocabulary {
        let (shapes, colors, sizes) = (Shape::ALL.to_vec(), Color::ALL.to_vec(), Size::ALL.to_vec());
        Vocabulary { shapes, colors, sizes, max_count: 3, groups: 2 }
    }

    #[test]
    fn captions_are_parsed_to_what_they_were_written_from() {
        let mut random = ChaCha8Rng::seed_from_u64(0);
        for _ in 0..1000 {
            let description = everything().describe(&mut random);
            let caption = description.to_string();
            assert_eq!(caption.parse(), Ok(description), "{caption}");
            assert!(caption.split(' ').all(|word| !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase())));
            let kinds: Vec<Kind> = description.groups().map(|group| group.kind).collect();
            assert!(kinds.len() == 1 || kinds[0] != kinds[1], "{caption}");
        }
    }

    #[test]
    fn two_captions_of_one_scene_are_the_same_when_canonical() {
        let of = |caption: &str| caption.parse::<Description>().unwrap().canonical().to_string();
        let left = "two small red circles left of one large blue square";
        assert_eq!(of(left), left);
        assert_eq!(of("one large blue square right of two small red circles"), left);
        assert_eq!(
            of("one small red circle below one small red square"),
            "one small red square above one small red circle"
        );
    }

    #[test]
    fn what_is_no_caption_is_said() {
        let error = |caption: &str| caption.parse::<Description>().unwrap_err();
        assert_eq!(error("two red circles"), "found \"red\", expected one of small, large");
        assert_eq!(error("two small red circle"), "found \"circle\", expected one of circles, squares, triangles");
        assert_eq!(error("one small red circles"), "found \"circles\", expected one of circle, square, triangle");
        assert_eq!(error(""), "found the end of the caption, expected one of one, two, three");
        assert_eq!(
            error("one small red circle left one"),
            "found \"left\", expected one of left of, right of, above, below"
        );
        assert_eq!(
            error("one small red circle above one small red square now"),
            "expected the end of the caption, found \"now\""
        );
        assert!(error("One small red circle").starts_with("found \"One\""));
        assert!(error("one  small red circle").starts_with("found the end"));
    }
}
