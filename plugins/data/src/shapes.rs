//! Pictures of coloured shapes with captions or classes. Each picture is rendered on demand; no file is read.
//!
//!   caption = group | group relation group          "two small red circles left of one large blue square"
//!   group   = count size color shape
//!   class   = color shape, by shape, then color     "red circle"; one object of any size, anywhere
//!
//! The crate `scenes` defines the grammar and the layout of a picture. The metric `caption_accuracy`
//! recognises the objects in a picture. An item depends only on the seed and its index.

use framework::data::dataset::{Dataset, DatasetConfig, DatasetInfo, Item, ItemKind, Label};
use framework::error::{Problems, Result};
use framework::prelude::*;
use framework::random::Random;
use scenes::{Color, MAX_COUNT, Scene, Shape, Size, Vocabulary};

/// Circles, squares and triangles on black, three channels, each picture with a caption or a class.
///
/// A captioned picture shows one group of equal objects or, with probability 1/2, two groups in a relation:
/// left of, right of, above or below. Objects never touch. Shapes and sizes are distinct from 24 pixels on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(example = framework::serde_json::json!({ "condition": "class", "image_size": 16 }))]
pub struct Shapes {
    /// Height and width of a picture, 8 to 1,024 pixels.
    #[schemars(range(min = 8, max = 1024))]
    pub image_size: usize,
    /// Number of pictures per epoch, at least 1.
    #[schemars(range(min = 1))]
    pub count: usize,
    /// Seed of the random scenes.
    pub seed: u64,
    /// Condition of each picture.
    pub condition: ConditionOf,
    /// Largest number of objects per group, 1 to 3. Only with captions. Omitted = 3.
    #[schemars(range(min = 1, max = 3))]
    pub max_count: Option<usize>,
    /// Largest number of groups per picture, 1 or 2. Only with captions. Omitted = 2.
    #[schemars(range(min = 1, max = 2))]
    pub groups: Option<usize>,
    /// Shapes that appear, each listed once. Default: all.
    pub shapes: Vec<Shape>,
    /// Colours that appear, each listed once. Default: all.
    pub colors: Vec<Color>,
    /// Sizes that appear, each listed once. Default: both.
    pub sizes: Vec<Size>,
}

impl Default for Shapes {
    fn default() -> Self {
        Self {
            image_size: 32,
            count: 10_000,
            seed: 0,
            condition: ConditionOf::default(),
            max_count: None,
            groups: None,
            shapes: Shape::ALL.to_vec(),
            colors: Color::ALL.to_vec(),
            sizes: Size::ALL.to_vec(),
        }
    }
}

/// The condition of a picture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ConditionOf {
    /// A caption.
    #[default]
    Caption,
    /// A class: the shape and colour of the only object.
    Class,
}

framework::register!(data "shapes" => Shapes);

impl DatasetConfig for Shapes {
    fn check(&self) -> Problems {
        let mut problems = Problems::new();
        let mut between = |at: &str, number: Option<usize>, least: usize, most: usize| {
            if let Some(number) = number.filter(|number| !(least..=most).contains(number)) {
                let what = format!("`{}` is {number}", &at[1..]);
                problems.push(Problem::new(at, what).accepts(format!("{least} to {most}")));
            }
        };
        between("/image_size", Some(self.image_size), 8, 1024);
        between("/max_count", self.max_count, 1, MAX_COUNT);
        between("/groups", self.groups, 1, 2);
        if self.count == 0 {
            problems.push(Problem::new("/count", "`count` is 0").accepts("1 or more pictures"));
        }
        problems.extend(listed("/shapes", &self.shapes, Shape::ALL, Shape::word));
        problems.extend(listed("/colors", &self.colors, Color::ALL, Color::word));
        problems.extend(listed("/sizes", &self.sizes, Size::ALL, Size::word));
        if self.condition == ConditionOf::Class {
            for (at, number) in [("/max_count", self.max_count), ("/groups", self.groups)] {
                if number.is_some() {
                    let what = format!("`{}` has no effect: a picture with a class shows one object", &at[1..]);
                    problems.push(Problem::new(at, what).and_at("/condition").fix("omit it, or use captions"));
                }
            }
        }
        if problems.is_empty() && self.condition == ConditionOf::Caption {
            let vocabulary = self.vocabulary();
            if vocabulary.groups == 2 && vocabulary.kinds() == 1 {
                let what = "two groups must differ in shape, colour or size, but the document lists one of each";
                problems.push(Problem::new("/groups", what).fix("set /data/groups to 1, or list a second shape"));
            }
        }
        problems
    }

    fn info(&self) -> Option<DatasetInfo> {
        Some(self.known())
    }

    fn open(&self) -> Result<Box<dyn Dataset>> {
        Ok(Box::new(OpenShapes { config: self.clone(), vocabulary: self.vocabulary() }))
    }
}

/// Returns the problem with a list of words, if there is one.
fn listed<T: PartialEq + Copy>(at: &str, chosen: &[T], all: &[T], word: fn(T) -> &'static str) -> Option<Problem> {
    let name = &at[1..];
    let twice = chosen.iter().enumerate().find(|(i, it)| chosen[..*i].contains(it));
    let what = match twice {
        Some((_, it)) => format!("`{name}` lists {} twice", word(*it)),
        None if chosen.is_empty() => format!("`{name}` is empty"),
        None => return None,
    };
    let words: Vec<&str> = all.iter().map(|it| word(*it)).collect();
    Some(Problem::new(at, what).accepts(format!("one or more of {}, each once", words.join(", "))))
}

impl Shapes {
    fn known(&self) -> DatasetInfo {
        let classes = self.condition == ConditionOf::Class;
        DatasetInfo {
            items: ItemKind::Images([3, self.image_size, self.image_size]),
            num_classes: classes.then_some(self.shapes.len() * self.colors.len()),
            captions: !classes,
        }
    }

    fn vocabulary(&self) -> Vocabulary {
        let one = self.condition == ConditionOf::Class;
        Vocabulary {
            shapes: self.shapes.clone(),
            colors: self.colors.clone(),
            sizes: self.sizes.clone(),
            max_count: if one { 1 } else { self.max_count.unwrap_or(MAX_COUNT) },
            groups: if one { 1 } else { self.groups.unwrap_or(2) },
        }
    }
}

#[derive(Debug)]
struct OpenShapes {
    config: Shapes,
    vocabulary: Vocabulary,
}

impl Dataset for OpenShapes {
    fn info(&self) -> DatasetInfo {
        self.config.known()
    }

    fn len(&self) -> usize {
        self.config.count
    }

    fn get(&self, index: usize, _: &Random, _: u64) -> Result<Item> {
        self.plain(index)
    }

    fn plain(&self, index: usize) -> Result<Item> {
        let Shapes { shapes, colors, seed, image_size, condition, .. } = &self.config;
        let mut random = Random::new(*seed).stream("shapes", index as u64, 0);
        let description = self.vocabulary.describe(&mut random);
        let label = match condition {
            ConditionOf::Caption => Label::Caption(description.to_string()),
            ConditionOf::Class => {
                let kind = description.first.kind;
                let shape = shapes.iter().position(|shape| *shape == kind.shape).expect("scenes use only listed words");
                let color = colors.iter().position(|color| *color == kind.color).expect("scenes use only listed words");
                Label::Class(shape * colors.len() + color)
            }
        };
        Ok(Item { values: Scene::place(description, &mut random).render(*image_size), label })
    }

    fn class_names(&self) -> Option<Vec<String>> {
        let Shapes { shapes, colors, condition, .. } = &self.config;
        let of_shape = |shape: &Shape| {
            let shape = shape.word();
            colors.iter().map(move |color| format!("{} {shape}", color.word()))
        };
        (*condition == ConditionOf::Class).then(|| shapes.iter().flat_map(of_shape).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use scenes::{Description, read};

    fn config(json: serde_json::Value) -> Shapes {
        serde_json::from_value(json).unwrap()
    }

    fn pointers(json: serde_json::Value) -> Vec<String> {
        config(json).check().into_iter().map(|problem| problem.at[0].clone()).collect()
    }

    #[test]
    fn captions_say_what_the_pictures_show() {
        let shapes = config(serde_json::json!({ "count": 200 }));
        assert!(shapes.check().is_empty());
        let data = shapes.open().unwrap();
        assert_eq!(data.len(), 200);
        assert_eq!(Some(data.info()), shapes.info());
        let mut captions = Vec::new();
        for index in 0..200 {
            let item = data.get(index, &Random::new(index as u64), 7).unwrap();
            assert!(item.values.iter().all(|value| (-1.0..=1.0).contains(value)));
            let Label::Caption(caption) = item.label else { panic!("{:?}", item.label) };
            let description: Description = caption.parse().unwrap();
            assert_eq!(read(&item.values, 32).description(), Some(description.canonical()), "{caption}");
            captions.push(caption);
        }
        assert!(captions.iter().any(|caption| caption.contains(" left of ")));
        captions.sort();
        captions.dedup();
        assert!(captions.len() > 150);
    }

    #[test]
    fn classes_are_shape_and_color_and_bear_their_names() {
        let data = config(serde_json::json!({
            "condition": "class", "shapes": ["triangle", "circle"], "colors": ["blue", "red", "green"], "count": 300
        }));
        let data = data.open().unwrap();
        let names = data.class_names().unwrap();
        assert_eq!(names[..4], ["blue triangle", "red triangle", "green triangle", "blue circle"]);
        assert_eq!(data.info().num_classes, Some(6));
        let mut seen = [0; 6];
        for index in 0..300 {
            let item = data.plain(index).unwrap();
            let Label::Class(class) = item.label else { panic!("{:?}", item.label) };
            let caption = read(&item.values, 32).description().unwrap().to_string();
            assert!(caption.starts_with("one ") && caption.ends_with(&names[class]), "{caption} {}", names[class]);
            seen[class] += 1;
        }
        assert!(seen.iter().all(|count| *count > 20), "{seen:?}");
    }

    #[test]
    fn a_picture_is_a_function_of_seed_and_index() {
        let open =
            |seed: u64, count: usize| config(serde_json::json!({ "seed": seed, "count": count })).open().unwrap();
        let (a, longer, other) = (open(3, 10), open(3, 20), open(4, 10));
        assert_eq!(a.plain(7).unwrap().values, longer.plain(7).unwrap().values);
        assert_ne!(a.plain(7).unwrap().values, a.plain(8).unwrap().values);
        assert_ne!(a.plain(7).unwrap().values, other.plain(7).unwrap().values);
    }

    #[test]
    fn impossible_settings_are_reported_together() {
        let wrong = serde_json::json!({
            "image_size": 4, "count": 0, "max_count": 4, "groups": 3, "shapes": [], "colors": ["red", "red"]
        });
        assert_eq!(pointers(wrong), ["/image_size", "/max_count", "/groups", "/count", "/shapes", "/colors"]);
        let one = serde_json::json!({ "shapes": ["circle"], "colors": ["red"], "sizes": ["small"] });
        assert_eq!(pointers(one), ["/groups"]);
        assert_eq!(
            pointers(serde_json::json!({ "condition": "class", "max_count": 2, "groups": 1 })),
            ["/max_count", "/groups"]
        );
        let alone = serde_json::json!({
            "shapes": ["circle"], "colors": ["red"], "sizes": ["small"], "groups": 1, "max_count": 1, "count": 5
        });
        let alone = config(alone);
        assert!(alone.check().is_empty());
        assert_eq!(alone.open().unwrap().plain(4).unwrap().label, Label::Caption("one small red circle".into()));
    }
}
