//! Words as tokens, from a list in the document.
//!
//!   ids = [1 + index of each word in the list], then zeros up to `length`; the null caption is all zeros
//!
//! Meant for captions with a small vocabulary, such as the dataset `shapes`. The backbone trains its own text
//! encoder.

use framework::error::{Error, Problems, Result};
use framework::network::condition::ConditionShape;
use framework::network::conditioner::Conditioner;
use framework::prelude::*;

/// Words as tokens: each word of a fixed list is one token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Words {
    /// The words, in lower case and each listed once. A caption with any other word is an error.
    #[schemars(length(min = 1, max = 1_000_000))]
    pub words: Vec<String>,
    /// Length of the longest caption, in words. Shorter captions are padded.
    #[schemars(range(min = 1, max = 65_536))]
    pub length: usize,
}

framework::register!(conditioner "words" => Words);

/// The token that pads captions. The null caption consists of this token only.
const PADDING: usize = 0;

impl Words {
    fn id(&self, word: &str) -> Option<usize> {
        self.words.iter().position(|known| known == word).map(|place| place + 1)
    }

    /// Encodes one caption.
    ///
    /// # Errors
    /// If the caption is too long, or has a word that is not in the list.
    fn ids(&self, caption: &str) -> Result<Vec<usize>> {
        let refuse = |what: String| Error::Run(format!("cannot tokenize the caption \"{caption}\": {what}"));
        let mut ids = caption
            .split_whitespace()
            .map(|word| {
                let word = word.to_lowercase();
                self.id(&word).ok_or_else(|| {
                    let nearest = self
                        .words
                        .iter()
                        .max_by(|a, b| strsim::jaro_winkler(a, &word).total_cmp(&strsim::jaro_winkler(b, &word)));
                    let nearest = nearest.map(String::as_str).unwrap_or_default();
                    refuse(format!(
                        "`{word}` is not among the {} words of /conditioner/words; the nearest is `{nearest}`",
                        self.words.len()
                    ))
                })
            })
            .collect::<Result<Vec<usize>>>()?;
        if ids.len() > self.length {
            return Err(refuse(format!("it has {} words, but /conditioner/length is {}", ids.len(), self.length)));
        }
        ids.resize(self.length, PADDING);
        Ok(ids)
    }
}

impl Conditioner for Words {
    fn check(&self) -> Problems {
        let mut problems = Problems::new();
        for (i, word) in self.words.iter().enumerate() {
            let at = || format!("/words/{i}");
            if word.is_empty() || word.chars().any(char::is_whitespace) || *word != word.to_lowercase() {
                problems.push(Problem::new(at(), format!("`{word}` is not a word")).accepts("lower case, no spaces"));
            }
            if self.words[..i].contains(word) {
                problems.push(Problem::new(at(), format!("`{word}` is listed twice")).accepts("each word once"));
            }
        }
        problems
    }

    fn produces(&self) -> ConditionShape {
        ConditionShape::Tokens { length: Some(self.length), vocabulary: self.words.len() + 1 }
    }

    fn load(&mut self, _: &Device) -> Result<()> {
        Ok(())
    }

    fn check_caption(&self, caption: &str) -> Result<Option<String>> {
        self.ids(caption).map(|_| None)
    }

    fn encode(&self, captions: &[Option<String>]) -> Result<Condition> {
        let null = vec![PADDING; self.length];
        let row = |caption: &Option<String>| caption.as_ref().map_or_else(|| Ok(null.clone()), |text| self.ids(text));
        Ok(Condition::Tokens { ids: captions.iter().map(row).collect::<Result<_>>()?, null })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words() -> Words {
        Words { words: ["one", "red", "circle"].map(String::from).to_vec(), length: 4 }
    }

    #[test]
    fn captions_are_places_in_the_list() {
        let captions = [Some("one Red  circle".to_string()), None, Some(String::new())];
        let Condition::Tokens { ids, null } = words().encode(&captions).unwrap() else { panic!("tokens") };
        assert_eq!(ids, [[1, 2, 3, 0], [0; 4], [0; 4]]);
        assert_eq!((null, words().produces()), (vec![0; 4], ConditionShape::Tokens { length: Some(4), vocabulary: 4 }));
    }

    #[test]
    fn other_words_and_long_captions_are_refused() {
        let refused = |caption: &str| words().encode(&[Some(caption.to_string())]).unwrap_err().to_string();
        assert!(refused("one rad circle").contains("`rad`") && refused("one rad circle").contains("`red`"));
        assert!(refused("red red red red red").contains("5 words"));
        assert!(words().check_caption("one rad circle").is_err());
        assert_eq!(words().check_caption("one red circle").unwrap(), None);
        let twice = Words { words: vec!["red".into(), "red".into(), "Two".into()], length: 1 };
        assert_eq!(twice.check().len(), 2);
    }
}
