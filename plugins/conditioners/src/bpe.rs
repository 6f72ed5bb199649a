//! CLIP's byte-pair encoding, built on the `tokenizers` crate.
//!
//! Source: arXiv:2103.00020 sec. 2.4 and the released code. The fast tokenizer of `transformers` has the same parts.

use framework::checkpoint::file_kind::regular;
use framework::error::{Error, Result};
use framework::serde_json::{self, Value};
use std::fs;
use std::io::Read;
use std::path::Path;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer};

/// The token that starts every text.
pub const START: &str = "<|startoftext|>";
/// The token that ends every text, and pads it.
pub const END: &str = "<|endoftext|>";
/// Number of merges in the published vocabulary: 49,408 tokens minus two times 256 bytes and the two tokens
/// above.
const MERGES: usize = 49_152 - 256 - 2;
/// Largest vocabulary file that is read, in bytes. The published file has three million.
const LARGEST: u64 = 1 << 26;

/// Encodes text to token ids of a fixed length.
#[derive(Clone, Debug)]
pub struct Bpe {
    tokenizer: Tokenizer,
    start: u32,
    end: u32,
}

impl Bpe {
    /// Reads `tokenizer.json`, `vocab.json` with `merges.txt` next to it, or OpenAI's
    /// `bpe_simple_vocab_16e6.txt.gz`. If `path` is a folder, reads the first of these files in it.
    ///
    /// # Errors
    /// If none of the files exists, or the file is not a CLIP tokenizer.
    pub fn open(path: &Path) -> Result<Self> {
        const NAMES: [&str; 3] = ["tokenizer.json", "vocab.json", "bpe_simple_vocab_16e6.txt.gz"];
        let file = match path.is_dir() {
            false => path.to_path_buf(),
            true => {
                // The folder of a whole pipeline keeps the tokenizer in tokenizer/.
                let folders = [path.join("tokenizer"), path.to_path_buf()];
                let files = folders.iter().flat_map(|folder| NAMES.map(|name| folder.join(name)));
                files.into_iter().find(|file| file.exists()).ok_or_else(|| {
                    Error::file(path, format!("the folder holds no tokenizer; supported files are {NAMES:?}"))
                })?
            }
        };
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let wrong = |what: String| Error::file(&file, what);
        let tokenizer = if name.ends_with(".gz") {
            built(&gzipped(&file)?).map_err(wrong)?
        } else if name == "vocab.json" {
            let merges = file.with_file_name("merges.txt");
            bounded(&file)?;
            bounded(&merges)?;
            let bpe = BPE::from_file(&text(&file)?, &text(&merges)?).unk_token(END.into());
            with_text_rules(bpe.end_of_word_suffix("</w>".into()).build().map_err(|e| wrong(e.to_string()))?)
                .map_err(wrong)?
        } else {
            bounded(&file)?;
            Tokenizer::from_file(&file).map_err(|e| wrong(format!("is not a tokenizer: {e}")))?
        };
        let id = |token: &str| {
            tokenizer
                .token_to_id(token)
                .ok_or_else(|| wrong(format!("has no token `{token}`, so it is not a CLIP tokenizer")))
        };
        let (start, end) = (id(START)?, id(END)?);
        Ok(Self { tokenizer, start, end })
    }

    /// Returns the content of `vocab.json` and of `merges.txt`.
    ///
    /// # Errors
    /// If the tokenizer is not a byte-pair encoding.
    pub fn files(&self) -> Result<[Vec<u8>; 2]> {
        let failed = |what: String| Error::Run(format!("the tokenizer cannot be written: {what}"));
        let model = serde_json::to_value(self.tokenizer.get_model()).map_err(|e| failed(e.to_string()))?;
        let missing = |part: &str| failed(format!("it has no {part}, so it is not a byte-pair encoding"));
        let vocabulary = model.get("vocab").filter(|vocabulary| vocabulary.is_object());
        let vocabulary = vocabulary.ok_or_else(|| missing("vocabulary"))?.to_string();
        let mut lines = String::from("#version: 0.2\n");
        for merge in model.get("merges").and_then(Value::as_array).ok_or_else(|| missing("merges"))? {
            // Releases of the crate write a merge as one string or as a pair.
            let line = match merge {
                Value::String(line) => line.clone(),
                pair => match (pair[0].as_str(), pair[1].as_str()) {
                    (Some(a), Some(b)) => format!("{a} {b}"),
                    _ => return Err(missing("pairs of merges")),
                },
            };
            lines.push_str(&line);
            lines.push('\n');
        }
        Ok([vocabulary.into_bytes(), lines.into_bytes()])
    }

    /// Returns the number of distinct tokens.
    pub fn vocabulary(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// Returns the tokens of a text, without start and end.
    ///
    /// # Errors
    /// If the tokenizer cannot encode the text.
    pub fn tokens(&self, caption: &str) -> Result<Vec<usize>> {
        let encoding = self
            .tokenizer
            .encode(cleaned(caption), false)
            .map_err(|e| Error::Run(format!("cannot tokenize the caption \"{caption}\": {e}")))?;
        let tokens = encoding.get_ids().iter().filter(|id| **id != self.start && **id != self.end);
        Ok(tokens.map(|id| *id as usize).collect())
    }

    /// Encodes a text as the start token, as many of its tokens as fit, the end token, and more end tokens up
    /// to `length`.
    ///
    /// # Errors
    /// If the tokenizer cannot encode the text.
    pub fn ids(&self, caption: &str, length: usize) -> Result<Vec<usize>> {
        let mut ids = vec![self.start as usize];
        ids.extend(self.tokens(caption)?.into_iter().take(length.saturating_sub(2)));
        ids.resize(length, self.end as usize);
        Ok(ids)
    }
}

/// Replaces curly quotes by straight ones, ligatures by their letters, and full-width characters by ASCII. The
/// published code does the same before it encodes a caption.
///
/// Source: `ftfy`, reduced to the rules that apply to well-formed text.
fn cleaned(caption: &str) -> String {
    let mut text = String::with_capacity(caption.len());
    for letter in caption.chars() {
        match letter {
            '\u{2bc}' | '\u{2018}'..='\u{201b}' => text.push('\''),
            '\u{201c}'..='\u{201f}' => text.push('"'),
            'ﬀ' => text.push_str("ff"),
            'ﬁ' => text.push_str("fi"),
            'ﬂ' => text.push_str("fl"),
            'ﬃ' => text.push_str("ffi"),
            'ﬄ' => text.push_str("ffl"),
            'ﬅ' | 'ﬆ' => text.push_str("st"),
            '\u{ff01}'..='\u{ff5e}' => {
                text.push(char::from_u32(u32::from(letter) - 0xfee0).expect("an ASCII letter"));
            }
            '\u{3000}' => text.push(' '),
            _ => text.push(letter),
        }
    }
    text
}

fn text(path: &Path) -> Result<String> {
    path.to_str().map(str::to_string).ok_or_else(|| Error::file(path, "the path is not UTF-8"))
}

/// Rejects a file that is larger than any vocabulary.
fn bounded(path: &Path) -> Result<()> {
    regular(path)?;
    match fs::metadata(path).map_err(|e| Error::io(path, e))?.len() {
        0..=LARGEST => Ok(()),
        bytes => Err(Error::file(path, format!("has {bytes} bytes; a vocabulary has at most {LARGEST}"))),
    }
}

/// Reads a gzip of UTF-8 text to its end, with its checksum.
fn gzipped(path: &Path) -> Result<String> {
    regular(path)?;
    let file = fs::File::open(path).map_err(|e| Error::io(path, e))?;
    let mut text = String::new();
    let mut reader = flate2::read::MultiGzDecoder::new(file).take(LARGEST + 1);
    reader.read_to_string(&mut text).map_err(|e| Error::file(path, format!("is not gzip of UTF-8 text: {e}")))?;
    // The decoder verifies the checksum only at the end.
    if text.len() as u64 > LARGEST {
        return Err(Error::file(path, format!("has more than {LARGEST} bytes; a vocabulary has fewer")));
    }
    Ok(text)
}

/// Builds the tokenizer from OpenAI's list of merges. The list determines the vocabulary: bytes, bytes that
/// end a word, merges, start and end token.
fn built(list: &str) -> std::result::Result<Tokenizer, String> {
    let merges: Vec<(String, String)> = list
        .lines()
        .skip(1)
        .take(MERGES)
        .map(|line| {
            let (a, b) = line.split_once(' ').ok_or_else(|| format!("`{line}` is not a pair of tokens"))?;
            Ok((a.to_string(), b.to_string()))
        })
        .collect::<std::result::Result<_, String>>()?;
    // With fewer merges, the tokens after them would have other ids.
    if merges.len() < MERGES {
        return Err(format!("has {} merges; the published list has {MERGES}, so the file is incomplete", merges.len()));
    }
    let bytes = byte_letters();
    let ends = bytes.iter().map(|letter| format!("{letter}</w>"));
    let merged = merges.iter().map(|(a, b)| format!("{a}{b}"));
    let all = bytes.iter().cloned().chain(ends).chain(merged).chain([START, END].map(String::from));
    let vocabulary: Vocab = all.enumerate().map(|(id, token)| (token, id as u32)).collect();
    let bpe =
        BPE::builder().vocab_and_merges(vocabulary, merges).unk_token(END.into()).end_of_word_suffix("</w>".into());
    with_text_rules(bpe.build().map_err(|e| e.to_string())?)
}

/// Returns the characters that represent the bytes 0 to 255, in the order of the published vocabulary:
/// printable bytes first.
fn byte_letters() -> Vec<String> {
    let printable: Vec<u32> = (33..=126).chain(161..=172).chain(174..=255).collect();
    let others = (0..256_u32).filter(|byte| !printable.contains(byte)).count() as u32;
    let letter = |code: u32| char::from_u32(code).expect("a character").to_string();
    printable.iter().map(|code| letter(*code)).chain((256..256 + others).map(letter)).collect()
}

/// Adds the rules that normalise text and split it into words before its bytes are merged.
fn with_text_rules(bpe: BPE) -> std::result::Result<Tokenizer, String> {
    const WORDS: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
    let mut tokenizer = Tokenizer::new(bpe);
    let spaces = Replace::new(tokenizers::normalizers::replace::ReplacePattern::Regex(r"\s+".into()), " ");
    let normalizers: Vec<NormalizerWrapper> =
        vec![NFC.into(), spaces.map_err(|e| e.to_string())?.into(), Lowercase.into()];
    tokenizer.with_normalizer(Some(Normalizers::new(normalizers))).map_err(|e| e.to_string())?;
    let split = Split::new(SplitPattern::Regex(WORDS.into()), SplitDelimiterBehavior::Removed, true);
    let words: Vec<PreTokenizerWrapper> = vec![
        split.map_err(|e| e.to_string())?.into(),
        ByteLevel::default().add_prefix_space(false).use_regex(false).into(),
    ];
    tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(words)));
    Ok(tokenizer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::io::Write;

    fn compressed(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn read(bytes: &[u8]) -> Result<String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("list.gz");
        fs::write(&path, bytes).unwrap();
        gzipped(&path)
    }

    #[test]
    fn a_gzip_is_read_whole_or_refused() {
        let text = "#version\n".to_string() + &"a b\n".repeat(1000);
        let bytes = compressed(text.as_bytes());
        assert_eq!(read(&bytes).unwrap(), text);
        // A gzip may have several members.
        assert_eq!(read(&[&bytes[..], &bytes].concat()).unwrap(), text.repeat(2));
        for cut in 1..bytes.len() {
            assert!(read(&bytes[..cut]).is_err(), "cut at {cut} of {}", bytes.len());
        }
        // The last eight bytes are checksum and length.
        for place in bytes.len() - 8..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[place] ^= 1;
            assert!(read(&flipped).is_err(), "byte {place}");
        }
        let zeros = compressed(&vec![b'a'; LARGEST as usize + 1]);
        assert!(read(&zeros).unwrap_err().to_string().contains("has more than"));
    }

    #[test]
    fn a_list_with_too_few_merges_is_refused() {
        let said = built("#version\na b\n").unwrap_err();
        assert!(said.contains("has 1 merges; the published list has 48894"), "{said}");
    }
}
