//! CLIP's byte-pair encoding, through the `tokenizers` crate.
//!
//! Source: arXiv:2103.00020 sec. 2.4 and the released code; the fast tokenizer of `transformers` is built the same way.

use framework::error::{Error, Result};
use std::fs;
use std::io::Read;
use std::path::Path;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer};

/// Begins every text.
const START: &str = "<|startoftext|>";
/// Ends every text, and fills it up.
const END: &str = "<|endoftext|>";
/// Merges of the published vocabulary: 49,408 tokens less two times 256 bytes and the two marks above.
const MERGES: usize = 49_152 - 256 - 2;
/// Most bytes of a vocabulary file that are read: the published one has three million.
const LARGEST: u64 = 1 << 26;

/// Text to ids of a fixed length.
#[derive(Clone, Debug)]
pub struct Bpe {
    tokenizer: Tokenizer,
    start: u32,
    end: u32,
}

impl Bpe {
    /// Reads `tokenizer.json`, `vocab.json` with `merges.txt` beside it, or OpenAI's `bpe_simple_vocab_16e6.txt.gz`; of a
    /// folder, the first of them that is there.
    ///
    /// # Errors
    /// If no such file is there, or it is not what it should be.
    pub fn open(path: &Path) -> Result<Self> {
        const NAMES: [&str; 3] = ["tokenizer.json", "vocab.json", "bpe_simple_vocab_16e6.txt.gz"];
        let file = match path.is_dir() {
            false => path.to_path_buf(),
            true => {
                // The folder itself, or tokenizer/ in the folder of a whole pipeline.
                let folders = [path.join("tokenizer"), path.to_path_buf()];
                let files = folders.iter().flat_map(|folder| NAMES.map(|name| folder.join(name)));
                files.into_iter().find(|file| file.exists()).ok_or_else(|| {
                    Error::file(path, format!("the folder holds no tokenizer; it would be one of {NAMES:?}"))
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
            Tokenizer::from_file(&file).map_err(|e| wrong(format!("is no tokenizer: {e}")))?
        };
        let id = |token: &str| {
            tokenizer
                .token_to_id(token)
                .ok_or_else(|| wrong(format!("has no token `{token}`: it is no CLIP tokenizer")))
        };
        let (start, end) = (id(START)?, id(END)?);
        Ok(Self { tokenizer, start, end })
    }

    /// Number of distinct tokens.
    pub fn vocabulary(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// Ids of a text: the start, its tokens as far as there is room, the end, and the end again up to `length`.
    ///
    /// # Errors
    /// If the tokenizer refuses the text.
    pub fn ids(&self, caption: &str, length: usize) -> Result<Vec<usize>> {
        let encoding = self
            .tokenizer
            .encode(cleaned(caption), false)
            .map_err(|e| Error::Run(format!("the caption \"{caption}\" cannot be read: {e}")))?;
        let tokens = encoding.get_ids().iter().copied().filter(|id| *id != self.start && *id != self.end);
        let mut ids = vec![self.start as usize];
        ids.extend(tokens.map(|id| id as usize).take(length.saturating_sub(2)));
        ids.resize(length, self.end as usize);
        Ok(ids)
    }
}

/// Curly quotes as straight ones, ligatures as their letters, full-width letters as plain ones: what the published code
/// does to captions before it encodes them.
///
/// Source: `ftfy`, of which these are the rules that act on well-formed text.
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
                text.push(char::from_u32(u32::from(letter) - 0xfee0).expect("a letter of ASCII"));
            }
            '\u{3000}' => text.push(' '),
            _ => text.push(letter),
        }
    }
    text
}

fn text(path: &Path) -> Result<String> {
    path.to_str().map(str::to_string).ok_or_else(|| Error::file(path, "the path is no UTF-8"))
}

/// Refuses a file that is larger than any vocabulary.
fn bounded(path: &Path) -> Result<()> {
    match fs::metadata(path).map_err(|e| Error::io(path, e))?.len() {
        0..=LARGEST => Ok(()),
        bytes => Err(Error::file(path, format!("has {bytes} bytes, more than the {LARGEST} of any vocabulary"))),
    }
}

fn gzipped(path: &Path) -> Result<String> {
    let file = fs::File::open(path).map_err(|e| Error::io(path, e))?;
    let mut text = String::new();
    let mut reader = flate2::read::GzDecoder::new(file).take(LARGEST);
    reader.read_to_string(&mut text).map_err(|e| Error::file(path, format!("is no gzip of UTF-8 text: {e}")))?;
    Ok(text)
}

/// The tokenizer of OpenAI's list of merges, whose vocabulary follows from it: bytes, bytes that end a word, merges, marks.
fn built(list: &str) -> std::result::Result<Tokenizer, String> {
    let merges: Vec<(String, String)> = list
        .lines()
        .skip(1)
        .take(MERGES)
        .map(|line| {
            let (a, b) = line.split_once(' ').ok_or_else(|| format!("`{line}` is no pair of tokens"))?;
            Ok((a.to_string(), b.to_string()))
        })
        .collect::<std::result::Result<_, String>>()?;
    let bytes = byte_letters();
    let ends = bytes.iter().map(|letter| format!("{letter}</w>"));
    let merged = merges.iter().map(|(a, b)| format!("{a}{b}"));
    let all = bytes.iter().cloned().chain(ends).chain(merged).chain([START, END].map(String::from));
    let vocabulary: Vocab = all.enumerate().map(|(id, token)| (token, id as u32)).collect();
    let bpe =
        BPE::builder().vocab_and_merges(vocabulary, merges).unk_token(END.into()).end_of_word_suffix("</w>".into());
    with_text_rules(bpe.build().map_err(|e| e.to_string())?)
}

/// The letters that stand for the bytes 0 to 255, in the order of the published vocabulary: printable ones first.
fn byte_letters() -> Vec<String> {
    let printable: Vec<u32> = (33..=126).chain(161..=172).chain(174..=255).collect();
    let others = (0..256_u32).filter(|byte| !printable.contains(byte)).count() as u32;
    let letter = |code: u32| char::from_u32(code).expect("a letter").to_string();
    printable.iter().map(|code| letter(*code)).chain((256..256 + others).map(letter)).collect()
}

/// How text is cut into words before its bytes are paired.
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
