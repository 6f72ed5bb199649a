//! Malicious files are refused. The message names the file, time and memory stay small, and no code in the file runs.

use unguided as _;

mod torch;

use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use torch::{Entry, dictionary, number, tensor, text, whole};

/// Limit on the command's address space, KiB. A reader that trusts a false length fails here instead of filling the
/// machine's memory.
const MEMORY: usize = 6 << 20;
/// Longest time that a refusal may take.
const TIME: Duration = Duration::from_secs(60);

fn unguided(arguments: &[&str]) -> Output {
    let limited = format!("ulimit -v {MEMORY} 2>/dev/null; exec \"$0\" \"$@\"");
    let mut command = match cfg!(unix) {
        true => Command::new("sh"),
        false => Command::new(env!("CARGO_BIN_EXE_unguided")),
    };
    if cfg!(unix) {
        command.args(["-c", &limited, env!("CARGO_BIN_EXE_unguided")]);
    }
    command.args(arguments).output().expect("the command starts")
}

/// Documents for the commands that read weights, in a temporary folder.
struct Documents {
    folder: tempfile::TempDir,
}

impl Documents {
    fn new() -> Self {
        let documents = Self { folder: tempfile::tempdir().unwrap() };
        let mut document: Value =
            serde_json::from_str(&fs::read_to_string("examples/pipelines/digits-dit-cfg-tiny.json").unwrap()).unwrap();
        document["metrics"] = json!([]);
        fs::write(documents.at("backbone.json"), document.to_string()).unwrap();
        document["data"] = json!({ "type": "latents", "path": "absent" });
        document["tokenizer"] = json!({ "type": "sd_vae", "path": "absent", "block_out_channels": [32, 32] });
        fs::write(documents.at("tokenizer.json"), document.to_string()).unwrap();
        document["conditioner"] = json!({
            "type": "clip_text", "path": "absent", "tokenizer": "absent", "hidden_size": 8, "num_heads": 2,
            "num_layers": 1, "intermediate_size": 8
        });
        document["backbone"] = json!({
            "type": "sd15", "sample_size": 8, "in_channels": 4, "block_out_channels": [8], "attention": [0],
            "num_heads": 2, "cross_attention_dim": 8, "norm_num_groups": 4
        });
        fs::write(documents.at("conditioner.json"), document.to_string()).unwrap();
        documents
    }

    fn at(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_string()
    }

    /// Passes the file to every command that reads weights. Checks that each one refuses it.
    /// Returns the last message.
    #[track_caller]
    fn refused(&self, name: &str) -> String {
        let (file, out) = (self.at(name), self.at("out.safetensors"));
        let [backbone, tokenizer, conditioner] =
            ["backbone.json", "tokenizer.json", "conditioner.json"].map(|document| self.at(document));
        let commands = [
            vec!["convert", "--pipeline", &backbone, &file, &out],
            vec!["forward", "--pipeline", &backbone, "--checkpoint", &file, "--input", "absent", "--output", &out],
            vec!["convert", "--pipeline", &tokenizer, "--tokenizer", &file, &out],
            vec!["convert", "--pipeline", &conditioner, "--conditioner", &file, &out],
        ];
        let mut said = String::new();
        for command in commands {
            let start = Instant::now();
            let output = unguided(&command);
            said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(matches!(output.status.code(), Some(1 | 2)), "{name}: {:?} {said}", output.status);
            assert!(said.contains(self.folder.path().to_str().unwrap()), "{name} is not named: {said}");
            assert!(said.len() < 4000 && !said.contains("panicked"), "{name}: {said}");
            assert!(start.elapsed() < TIME, "{name} took {:?}", start.elapsed());
            assert!(!Path::new(&out).exists() && !Path::new(&self.at("executed")).exists(), "{name}");
        }
        said
    }

    #[track_caller]
    fn refused_because(&self, name: &str, what: &str) {
        let said = self.refused(name);
        assert!(said.contains(what), "{name}: {said}");
    }

    /// Writes a safetensors file with this header. Its length field says `length`.
    fn safetensors(&self, name: &str, header: &[u8], length: u64, numbers: &[u8]) {
        fs::write(self.at(name), [&length.to_le_bytes(), header, numbers].concat()).unwrap();
    }
}

#[test]
fn contradictory_safetensors_are_refused() {
    let documents = Documents::new();
    let tensor = |shape: &str, from: u64, to: u64| {
        format!("{{\"dtype\":\"F32\",\"shape\":{shape},\"data_offsets\":[{from},{to}]}}")
    };
    let a = tensor("[2]", 0, 8);
    for (header, what) in [
        (format!("{{\"a\":{}}}", tensor("[4]", 0, 16)), "not fully covered"),
        (format!("{{\"a\":{a},\"b\":{}}}", tensor("[2]", 4, 12)), "invalid offset"),
        (format!("{{\"a\":{}}}", tensor("[2]", 8, 0)), "invalid"),
        (format!("{{\"a\":{}}}", tensor("[9223372036854775808,9223372036854775808]", 0, 8)), "overflow"),
        (format!("{{\"a\":{}}}", tensor("[3]", 0, 8)), "invalid shape"),
        (format!("{{\"a\":{}}}", tensor("[-2]", 0, 8)), "-2"),
        (format!("{{\"a\":{a},\"a\":{}}}", tensor("[1,2]", 0, 8)), "names `a` twice"),
        (format!("{{\"a\":{}}}", a.replace("F32", "X9")), "X9"),
        (format!("{{\"a\":{}", "[".repeat(100_000)), "header"),
        ("[]".to_string(), "header"),
        (String::new(), "header"),
    ] {
        documents.safetensors("a.safetensors", header.as_bytes(), header.len() as u64, &[0; 8]);
        documents.refused_because("a.safetensors", what);
    }
    let header = format!("{{\"a\":{a}}}");
    for length in [header.len() as u64 + 9, 99_999_999, 1 << 40, u64::MAX] {
        documents.safetensors("a.safetensors", header.as_bytes(), length, &[0; 8]);
        documents.refused_because("a.safetensors", "header");
    }
    documents.safetensors("a.safetensors", b"{\"\xff\":1}", 8, &[]);
    documents.refused_because("a.safetensors", "header");
    fs::write(documents.at("a.safetensors"), []).unwrap();
    documents.refused("a.safetensors");
}

#[test]
fn shard_indices_that_leave_their_folder_are_refused() {
    let documents = Documents::new();
    fs::write(documents.at("other.index.json"), json!({ "weight_map": { "a": "x" } }).to_string()).unwrap();
    for (shard, what) in [
        ("../a.safetensors", "not a plain file name"),
        ("/etc/passwd", "not a plain file name"),
        ("gone.safetensors", "no such file"),
        ("other.index.json", "not a tensor file"),
        ("", "not a plain file name"),
    ] {
        fs::write(documents.at("a.index.json"), json!({ "weight_map": { "a": shard } }).to_string()).unwrap();
        documents.refused_because("a.index.json", what);
    }
    fs::write(documents.at("a.index.json"), "{\"weight_map\":").unwrap();
    documents.refused_because("a.index.json", "not an index of shards");
    // A sparse file of 10 GiB.
    File::create(documents.at("a.index.json")).unwrap().set_len(10 << 30).unwrap();
    documents.refused_because("a.index.json", "has more than");
}

/// Returns a zip with these entries.
fn zip(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut file = std::io::Cursor::new(Vec::new());
    torch::zip(&mut file, entries).unwrap();
    file.into_inner()
}

fn stored<'a>(name: &str, bytes: &'a [u8]) -> Entry<'a> {
    Entry { name: name.into(), bytes, hole: 0, method: 0, says: bytes.len() as u32 }
}

/// Returns an entry that is marked as deflated, with `says` as its unpacked length.
fn deflated<'a>(name: &str, bytes: &'a [u8], says: u32) -> Entry<'a> {
    Entry { method: 8, says, ..stored(name, bytes) }
}

/// Returns a `torch.save` file with this pickle and one storage of four elements.
fn torch(pickle: &[u8]) -> Vec<u8> {
    zip(&[stored("m/data.pkl", pickle), stored("m/data/0", &[0; 16])])
}

/// Wraps an object in a Lightning container. Burn's reader refuses such a container, ours reads it.
fn lightning(object: &[u8]) -> Vec<u8> {
    let callbacks = [text("callbacks"), dictionary(b"clightning\nCallback\n", &number(1))].concat();
    whole(&dictionary(&[callbacks, text("state_dict")].concat(), object))
}

#[test]
fn pickles_never_run_what_they_name() {
    let documents = Documents::new();
    let touch = text(&format!("touch {}", documents.at("executed")));
    let call = [&b"cposix\nsystem\n"[..], &touch, b"\x85R"].concat();
    let state = dictionary(&text("x"), &number(1));
    let built = [&call[..], &state, b"b"].concat();
    let new = [&b"cos\nsystem\n"[..], &touch, b"\x85\x81"].concat();
    let stacked = [text("os"), text("system"), b"\x93".to_vec(), touch.clone(), b"\x85R".to_vec()].concat();
    let key = dictionary(&call, &number(1));
    let mut text_protocol = b"cos\nsystem\n(S'touch ".to_vec();
    text_protocol.extend([documents.at("executed").as_bytes(), b"'\ntR"].concat());
    for harm in [call, built, new, stacked, key, text_protocol] {
        let weights = dictionary(&text("a"), &harm);
        for pickle in
            [whole(&harm), whole(&weights), whole(&dictionary(&text("state_dict"), &weights)), lightning(&weights)]
        {
            fs::write(documents.at("a.pt"), torch(&pickle)).unwrap();
            documents.refused("a.pt");
            fs::write(documents.at("a.pt"), &pickle).unwrap();
            documents.refused_because("a.pt", "neither a zip nor a legacy file");
        }
    }
}

#[test]
fn pickles_that_would_fill_the_memory_are_refused() {
    let documents = Documents::new();
    let doubled = [&b"]q\0"[..], &b"h\0h\0\x86q\0".repeat(60)].concat();
    let deep = [&b"]"[..], &b"\x85".repeat(2_000_000)].concat();
    let long = [&b"X"[..], &u32::MAX.to_le_bytes(), b"abc"].concat();
    let longer = [&b"\x8e"[..], &u64::MAX.to_le_bytes(), b"abc"].concat();
    let class = [&b"clightning\nCallback\n"[..], &number(1)].concat();
    for growth in [doubled, deep, long, longer, b"tttt".to_vec(), b"h\x07".to_vec(), vec![0xff], b"(((uuu".to_vec()] {
        for pickle in [
            whole(&growth),
            whole(&dictionary(&text("a"), &growth)),
            lightning(&dictionary(&text("a"), &growth)),
            whole(&dictionary(&class, &growth)),
        ] {
            fs::write(documents.at("a.pt"), torch(&pickle)).unwrap();
            documents.refused("a.pt");
        }
    }
    // A pickle longer than any list of tensors, in a zip and in the legacy format (before 2020).
    let nothing = vec![b'N'; 9 << 20];
    fs::write(documents.at("a.pt"), torch(&nothing)).unwrap();
    documents.refused_because("a.pt", "the limit is");
    let magic = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.";
    fs::write(documents.at("a.pt"), [&magic[..], &nothing].concat()).unwrap();
    documents.refused_because("a.pt", "does not end");
}

#[test]
fn tensors_outside_their_storage_are_refused() {
    let documents = Documents::new();
    for wrong in [
        tensor("0", 4, 0, &[1 << 40, 1 << 40], &[1 << 40, 1]),
        tensor("0", 4, 0, &[i64::MAX, 4], &[4, 1]),
        tensor("0", 4, 0, &[1 << 15, 1 << 15], &[0, 0]),
        tensor("0", 4, 0, &[-2, -2], &[-2, 1]),
        tensor("0", 4, i64::MAX, &[2, 2], &[2, 1]),
        tensor("0", 4, 3, &[2, 2], &[2, 1]),
        tensor("0", 400, 0, &[20, 20], &[20, 1]),
        tensor("../0", 4, 0, &[2, 2], &[2, 1]),
        tensor("0", 4, 0, &[2, 2], &[1]),
        b"ctorch._utils\n_rebuild_tensor_v2\n)R".to_vec(),
    ] {
        // Use the name of a weight, so that the reader asks for the tensor.
        let weights = dictionary(&text("x_embedder.proj.weight"), &wrong);
        for pickle in [whole(&weights), lightning(&weights)] {
            fs::write(documents.at("a.pt"), torch(&pickle)).unwrap();
            documents.refused("a.pt");
        }
    }
}

#[test]
fn zips_with_false_headers_are_refused() {
    let documents = Documents::new();
    let pickle = whole(&dictionary(&text("a"), &tensor("0", 4, 0, &[2, 2], &[2, 1])));
    let good = torch(&pickle);
    let at = |name: &str| documents.at(name);
    for cut in [3, 30, good.len() / 2, good.len() - 10, good.len() - 1] {
        fs::write(at("a.pt"), &good[..cut]).unwrap();
        documents.refused_because("a.pt", "cannot be read");
    }
    // A zip bomb: 10 GiB of equal bytes, deflated to 68 MB.
    let mut bomb = flate(10 << 30);
    fs::write(at("a.pt"), zip(&[deflated("m/data.pkl", &bomb, u32::MAX), stored("m/data/0", &[0; 16])])).unwrap();
    documents.refused_because("a.pt", "compressed");
    bomb.truncate(1000);
    fs::write(at("a.pt"), zip(&[stored("m/data.pkl", &pickle), deflated("m/data/0", &bomb, 16)])).unwrap();
    documents.refused_because("a.pt", "compressed");
    // A stored entry with a false length, a duplicate name, and a zip without a pickle.
    fs::write(
        at("a.pt"),
        zip(&[Entry { says: u32::MAX, ..stored("m/data.pkl", &pickle) }, stored("m/data/0", &[0; 16])]),
    )
    .unwrap();
    documents.refused("a.pt");
    let twice = [stored("m/data.pkl", &pickle), stored("m/data/0", &[0; 16]), stored("m/data/0", &[1; 16])];
    fs::write(at("a.pt"), zip(&twice)).unwrap();
    documents.refused("a.pt");
    fs::write(at("a.pt"), zip(&[stored("m/other", &pickle)])).unwrap();
    documents.refused("a.pt");
    // A sparse tar container of 10 GiB, the oldest format of torch.
    let mut file = File::create(at("a.pt")).unwrap();
    file.write_all(&[b'a'; 257]).and_then(|()| file.write_all(b"ustar")).and_then(|()| file.set_len(10 << 30)).unwrap();
    documents.refused_because("a.pt", "it is a tar archive");
}

/// Returns a deflate stream of about `size` equal bytes.
fn flate(size: usize) -> Vec<u8> {
    // One block with fixed codes, bit by bit: the literal `N`, then matches of length 258 at distance 1.
    let mut bits: Vec<u8> = vec![1, 1, 0];
    let letter = 0x30 + u32::from(b'N');
    bits.extend((0..8).rev().map(|i| (letter >> i & 1) as u8));
    // Length 258 is symbol 285 (bits 11000101); distance 1 is 00000.
    let again = [1, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0];
    let mut out = Vec::with_capacity(size / 150);
    let (mut byte, mut filled) = (0_u8, 0);
    let mut push = |bit: u8| {
        byte |= bit << filled;
        filled += 1;
        if filled == 8 {
            out.push(byte);
            (byte, filled) = (0, 0);
        }
    };
    bits.into_iter().for_each(&mut push);
    (0..size / 258).flat_map(|_| again).for_each(&mut push);
    (0..16).for_each(|_| push(0));
    out
}

#[test]
fn damaged_vocabularies_are_refused() {
    let documents = Documents::new();
    let at = |name: &str| documents.at(name);
    let document: Value = serde_json::from_str(&fs::read_to_string(at("conditioner.json")).unwrap()).unwrap();
    let refused = |name: &str| {
        let mut document = document.clone();
        document["data"] = json!({ "type": "shapes", "image_size": 16 });
        document["tokenizer"] = json!({ "type": "pixels" });
        document["conditioner"]["tokenizer"] = json!(at(name));
        document["backbone"]["sample_size"] = json!(16);
        document["backbone"]["in_channels"] = json!(3);
        fs::write(at("a.json"), document.to_string()).unwrap();
        let _ = fs::remove_dir_all(at("run"));
        let output = unguided(&["train", &at("a.json"), "--run", &at("run")]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{name}: {said}");
        assert!(said.contains(name) && !said.contains("panicked") && said.len() < 4000, "{name}: {said}");
    };
    fs::create_dir(at("words")).unwrap();
    fs::write(at("words/merges.txt"), "#version: 0.2\na b\n").unwrap();
    for name in ["words/tokenizer.json", "words/vocab.json"] {
        for broken in [
            "",
            "{",
            "[]",
            "{\"a\": -1}",
            "{\"a\": 99999999999999999999}",
            "{\"model\": 1}",
            "{\"a\": 0, \"b\": 1, \"ab\": 2}",
        ] {
            fs::write(at(name), broken).unwrap();
            refused(name);
        }
        fs::write(at(name), "[".repeat(1 << 20)).unwrap();
        refused(name);
        File::create(at(name)).unwrap().set_len(10 << 30).unwrap();
        refused(name);
    }
    fs::write(at("words/bpe.gz"), "no gzip").unwrap();
    refused("words/bpe.gz");
}
