//! Checks class numbers when a dataset is opened: they start at 0, and every class up to the largest one has an item.

use framework::error::{Error, Problem, Result};
use std::collections::BTreeMap;

/// Maximum number of classes that a message lists.
const LISTED: usize = 20;

/// The number of items of each class.
#[derive(Clone, Debug, Default)]
pub struct ClassTable(BTreeMap<usize, usize>);

impl ClassTable {
    /// Counts one more item of a class.
    pub fn add(&mut self, class: usize) {
        *self.0.entry(class).or_default() += 1;
    }

    /// Returns the largest class plus 1; 0 if there are no items.
    pub fn number(&self) -> usize {
        self.0.last_key_value().map_or(0, |(class, _)| class.saturating_add(1))
    }

    /// Returns the number of items, and how many of them have a class of `number` or above.
    pub fn outside(&self, number: usize) -> (usize, usize) {
        (self.0.values().sum(), self.0.range(number..).map(|(_, count)| count).sum())
    }

    /// Refuses class numbers that start above 0 or skip a number, unless `allow_empty` is set.
    ///
    /// # Errors
    /// If a class has no item.
    pub fn check(&self, allow_empty: bool) -> Result<()> {
        let missing: Vec<usize> = (0..self.number()).filter(|class| !self.0.contains_key(class)).take(LISTED).collect();
        let (Some(first), Some(smallest)) = (missing.first(), self.0.keys().next()) else { return Ok(()) };
        if allow_empty {
            return Ok(());
        }
        let what = match first {
            0 => format!("the class numbers of the dataset start at {smallest}, not at 0"),
            first => format!("the class numbers of the dataset skip class {first}"),
        };
        let fix = match (first, self.number() - smallest == self.0.len()) {
            (0, true) => format!("subtract {smallest} from every class number"),
            _ => "renumber the classes".into(),
        };
        Err(self.refused(what, &format!("{fix}, or set `allow_empty_classes` if a class may be without items")))
    }

    /// Returns an error about the class numbers, with the table.
    pub fn refused(&self, what: impl Into<String>, fix: &str) -> Error {
        let mut table: Vec<String> =
            self.0.iter().take(LISTED).map(|(class, count)| format!("class {class}: {count} item(s)")).collect();
        if self.0.len() > LISTED {
            table.push(format!("and {} more classes, up to class {}", self.0.len() - LISTED, self.number() - 1));
        }
        let mut problem = Problem::new("/data/num_classes", what)
            .accepts("class numbers from 0 to `num_classes` - 1, each with at least one item")
            .fix(fix);
        problem.differs = table;
        problem.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(classes: &[usize]) -> Option<String> {
        let mut table = ClassTable::default();
        classes.iter().for_each(|class| table.add(*class));
        assert!(table.check(true).is_ok());
        table.check(false).err().map(|error| error.to_string())
    }

    #[test]
    fn classes_count_from_zero_and_skip_none() {
        assert_eq!(message(&[]), None);
        assert_eq!(message(&[1, 0, 2, 2]), None);
        let one = message(&[1, 2, 2]).unwrap();
        assert!(one.contains("start at 1, not at 0") && one.contains("subtract 1 from every class number"), "{one}");
        assert!(one.contains("class 1: 1 item(s)") && one.contains("class 2: 2 item(s)"), "{one}");
        let skipped = message(&[0, 1, 3]).unwrap();
        assert!(skipped.contains("skip class 2") && skipped.contains("renumber the classes"), "{skipped}");
        assert!(message(&[0, usize::MAX]).unwrap().contains("skip class 1"));
        let many: Vec<usize> = (1..30).collect();
        assert!(message(&many).unwrap().contains("and 9 more classes, up to class 29"));
    }

    #[test]
    fn items_outside_are_counted() {
        let mut table = ClassTable::default();
        [0, 1, 1, 5].iter().for_each(|class| table.add(*class));
        assert_eq!((table.number(), table.outside(2), table.outside(6)), (6, (4, 1), (4, 0)));
    }
}
