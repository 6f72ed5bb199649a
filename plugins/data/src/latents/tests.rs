//! Tests of the dataset `latents`.

use super::*;
use framework::data::latent_file::{CAPTION_ENDS, CAPTIONS};
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};
use tempfile::TempDir;

type Entry = (&'static str, Dtype, Vec<usize>, Vec<u8>);

fn f32s(name: &'static str, shape: &[usize], values: &[f32]) -> Entry {
    (name, Dtype::F32, shape.into(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

fn i64s(name: &'static str, values: &[i64]) -> Entry {
    (name, Dtype::I64, vec![values.len()], values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

fn write(path: &FilePath, entries: &[Entry]) {
    let views = entries
        .iter()
        .map(|(name, dtype, shape, bytes)| (*name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    serialize_to_file(views, None, path).unwrap();
}

fn latents(path: &FilePath) -> Latents {
    serde_json::from_value(serde_json::json!({ "path": path })).unwrap()
}

fn message(config: &Latents) -> String {
    config.open().unwrap_err().to_string()
}

#[test]
fn items_are_position_by_channel_and_scaled() {
    let root = TempDir::new().unwrap();
    let path = root.path().join("a.safetensors");
    // Two latents of two channels on a 1x3 grid.
    let x: Vec<f32> = (0..12).map(|v| v as f32).collect();
    write(&path, &[f32s("x", &[2, 2, 1, 3], &x), i64s("y", &[4, 0])]);
    let data = Latents { scaling_factor: 0.5, allow_empty_classes: true, ..latents(&path) }.open().unwrap();
    // Latent 1 has the channels 6 7 8 and 9 10 11, so its positions are (6, 9), (7, 10), (8, 11), halved.
    let item = data.plain(1).unwrap();
    assert_eq!(item.values, [3.0, 4.5, 3.5, 5.0, 4.0, 5.5]);
    assert_eq!(item.label, Label::Class(0));
    let expected = ItemKind::Latents { grid: [1, 3], channels: 2 };
    assert_eq!(data.info(), DatasetInfo { items: expected, num_classes: Some(5), captions: false });
}

#[test]
fn half_precision_is_read_exactly() {
    let root = TempDir::new().unwrap();
    let values = [0.5_f32, -3.0, 0.25, 96.0];
    let f16s: Vec<u8> = values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
    let bf16s: Vec<u8> = values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
    for (dtype, bytes) in [(Dtype::F16, f16s), (Dtype::BF16, bf16s)] {
        let path = root.path().join(format!("{dtype:?}.safetensors"));
        write(&path, &[("x", dtype, vec![1, 1, 2, 2], bytes)]);
        assert_eq!(latents(&path).open().unwrap().plain(0).unwrap().values, values);
    }
}

#[test]
fn shards_follow_in_order_of_name() {
    let root = TempDir::new().unwrap();
    write(&root.path().join("b.safetensors"), &[f32s("x", &[1, 1, 1, 1], &[3.0]), i64s("y", &[2])]);
    write(&root.path().join("a.safetensors"), &[f32s("x", &[2, 1, 1, 1], &[1.0, 2.0]), i64s("y", &[0, 1])]);
    let data = latents(root.path()).open().unwrap();
    let items: Vec<Item> = (0..data.len()).map(|i| data.plain(i).unwrap()).collect();
    assert_eq!(items.iter().map(|item| item.values[0]).collect::<Vec<_>>(), [1.0, 2.0, 3.0]);
    assert_eq!(items[2].label, Label::Class(2));
    assert_eq!(data.info().num_classes, Some(3));
}

#[test]
fn mirrored_latents_are_drawn_half_the_time_and_never_when_plain() {
    let root = TempDir::new().unwrap();
    let path = root.path().join("a.safetensors");
    write(&path, &[f32s("x", &[1, 1, 1, 1], &[1.0]), f32s("x_flip", &[1, 1, 1, 1], &[-1.0])]);
    let data = latents(&path).open().unwrap();
    let random = Random::new(2);
    let drawn = |epoch| data.get(0, &random, epoch).unwrap().values[0];
    let mirrored = (0..64).filter(|epoch| drawn(*epoch) == -1.0).count();
    assert!((16..=48).contains(&mirrored), "{mirrored}");
    assert!((0..64).all(|epoch| drawn(epoch) == drawn(epoch)));
    assert_eq!(data.plain(0).unwrap().values, [1.0]);
    assert_eq!(data.plain(0).unwrap().label, Label::None);
}

#[test]
fn captions_are_read_where_the_document_says_so() {
    let root = TempDir::new().unwrap();
    let path = root.path().join("a.safetensors");
    let text = |bytes: &[u8]| (CAPTIONS, Dtype::U8, vec![bytes.len()], bytes.to_vec());
    let ends = |values: &[i64]| i64s(CAPTION_ENDS, values);
    let x = || f32s("x", &[3, 1, 1, 1], &[1.0, 2.0, 3.0]);
    let config = Latents { captions: true, input_size: Some(1), channels: Some(1), ..latents(&path) };
    // The second caption is empty. `y` must be ignored.
    write(&path, &[x(), i64s("y", &[1, 2, 3]), text("a cät".as_bytes()), ends(&[2, 2, 6])]);
    let data = config.open().unwrap();
    assert_eq!(config.info(), Some(data.info()));
    for (i, caption) in ["a ", "", "cät"].iter().enumerate() {
        assert_eq!(data.label(i).unwrap(), Label::Caption((*caption).into()));
        assert_eq!(data.plain(i).unwrap().label, Label::Caption((*caption).into()));
    }
    let classes = Latents { allow_empty_classes: true, ..latents(&path) };
    assert_eq!(classes.open().unwrap().label(0).unwrap(), Label::Class(1));
    // An end that cuts a caption within a character, and invalid tables of ends.
    write(&path, &[x(), text("ä".as_bytes()), ends(&[1, 1, 2])]);
    assert!(config.open().unwrap().label(0).unwrap_err().to_string().contains("caption 0 is not UTF-8"));
    for wrong in [&[0, 3, 2][..], &[0, 1, 1], &[-1, 1, 2], &[0, 1, i64::MAX], &[1, 2]] {
        write(&path, &[x(), text(b"ab"), ends(wrong)]);
        assert!(message(&config).contains("ending at the text's length"), "{wrong:?}: {}", message(&config));
    }
    write(&path, &[x()]);
    assert!(message(&config).contains("has no tensors `captions`"));
    let both = Latents { num_classes: Some(3), ..config };
    assert_eq!(both.check()[0].at, ["/num_classes", "/captions"]);
}

#[test]
fn what_is_declared_must_agree_with_the_file() {
    let root = TempDir::new().unwrap();
    let path = root.path().join("a.safetensors");
    write(&path, &[f32s("x", &[1, 2, 1, 1], &[1.0, 2.0]), i64s("y", &[3])]);
    let declared = Latents { num_classes: Some(10), input_size: Some(1), channels: Some(2), ..latents(&path) };
    assert!(message(&declared).contains("the class numbers of the dataset start at 3, not at 0"));
    let right = Latents { allow_empty_classes: true, ..declared };
    assert_eq!(right.info(), Some(right.open().unwrap().info()));
    assert_eq!(latents(&path).info(), None);
    for (wrong, expected) in [
        (
            Latents { num_classes: Some(3), ..right.clone() },
            "`y` holds class 3, but the document says `num_classes` = 3",
        ),
        (
            Latents { input_size: Some(4), ..right.clone() },
            "[C, H, W] = [2, 1, 1], but the document says `input_size` = 4",
        ),
        (Latents { channels: Some(4), ..right.clone() }, "[C, H, W] = [2, 1, 1], but the document says `channels` = 4"),
    ] {
        assert!(message(&wrong).contains(expected), "{}", message(&wrong));
    }
    write(&path, &[f32s("x", &[1, 2, 1, 1], &[1.0, 2.0])]);
    assert!(message(&right).contains("has no tensor `y`, but the document says `num_classes` = 10"));
}

#[test]
fn errors_name_the_file_the_tensor_and_what_is_accepted() {
    let root = TempDir::new().unwrap();
    let path = root.path().join("a.safetensors");
    assert!(message(&latents(&path)).contains("a.safetensors: No such file"));
    assert!(message(&latents(root.path())).contains("the folder holds no .safetensors file"));
    std::fs::write(&path, "something else").unwrap();
    assert!(message(&latents(&path)).contains("a.safetensors: is not a complete safetensors file"));

    let x = || f32s("x", &[2, 1, 1, 1], &[1.0, 2.0]);
    for (entries, expected) in [
        (vec![i64s("y", &[1])], "has no tensor `x` (float [N, C, H, W]); it holds y"),
        (vec![i64s("x", &[1])], "`x` is I64 [1]; it must be F32, F16 or BF16 [N, C, H, W]"),
        (vec![f32s("x", &[1, 2], &[1.0, 2.0])], "`x` is F32 [1, 2]; it must be"),
        (vec![x(), i64s("y", &[1])], "`y` is I64 [1]; it must be I64 [2], one per latent"),
        (vec![x(), i64s("y", &[0, -1])], "`y`[1] is -1; classes start at 0"),
        (vec![x(), f32s("x_flip", &[1, 1, 1, 1], &[1.0])], "`x_flip` is [1, 1, 1, 1], but `x` is [2, 1, 1, 1]"),
    ] {
        write(&path, &entries);
        assert!(message(&latents(&path)).contains(expected), "{}", message(&latents(&path)));
    }

    write(&path, &[f32s("x", &[2, 1, 1, 1], &[1.0, f32::NAN])]);
    let error = latents(&path).open().unwrap().plain(1).unwrap_err().to_string();
    assert!(error.contains("`x`[1] holds NaN"), "{error}");

    write(&root.path().join("b.safetensors"), &[x(), i64s("y", &[0, 1])]);
    assert!(message(&latents(root.path())).contains("in having a tensor `y`"));
    write(&root.path().join("b.safetensors"), &[f32s("x", &[1, 2, 1, 1], &[1.0, 2.0])]);
    assert!(message(&latents(root.path())).contains("all files must have the same shape"));
}

#[test]
fn impossible_settings_are_reported_together() {
    let config = Latents { scaling_factor: 0.0, channels: Some(0), ..latents(FilePath::new("x")) };
    let problems = config.check();
    assert_eq!(problems.iter().map(|p| p.at[0].as_str()).collect::<Vec<_>>(), ["/scaling_factor", "/channels"]);
    assert!(latents(FilePath::new("x")).check().is_empty());
}

#[test]
fn classes_that_start_at_one_or_skip_one_are_refused_with_their_table() {
    let root = TempDir::new().unwrap();
    let path = root.path().join("a.safetensors");
    for (classes, expected) in [
        ([1, 2, 2], "start at 1, not at 0\n  at       /data/num_classes\n  differs  class 1: 1 item(s)"),
        ([0, 2, 2], "skip class 1"),
    ] {
        write(&path, &[f32s("x", &[3, 1, 1, 1], &[1.0, 2.0, 3.0]), i64s("y", &classes)]);
        assert!(message(&latents(&path)).contains(expected), "{}", message(&latents(&path)));
        assert_eq!(latents(&path).open().unwrap_err().exit_code(), 2);
        let allowed = Latents { allow_empty_classes: true, ..latents(&path) };
        assert_eq!(allowed.open().unwrap().info().num_classes, Some(3));
    }
    let both = Latents { captions: true, allow_empty_classes: true, ..latents(&path) };
    assert_eq!(both.check()[0].at, ["/allow_empty_classes", "/captions"]);
}

#[test]
fn a_path_that_is_not_a_regular_file_is_never_opened() {
    let root = TempDir::new().unwrap();
    let path = root.path().join("a.safetensors");
    let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
    assert!(message(&latents(&path)).contains("is a socket; only regular files are read"));
}

#[test]
fn other_files_in_the_folder_are_counted() {
    let root = TempDir::new().unwrap();
    write(&root.path().join("a.safetensors"), &[f32s("x", &[1, 1, 1, 1], &[1.0])]);
    std::fs::write(root.path().join("._a.safetensors"), "resource fork").unwrap();
    std::fs::write(root.path().join("notes.txt"), "notes").unwrap();
    std::os::unix::fs::symlink("gone", root.path().join("b.safetensors")).unwrap();
    let data = latents(root.path()).open().unwrap();
    assert_eq!((data.len(), data.warnings().len()), (1, 3));
    let warnings = data.warnings().join("\n");
    for says in
        ["1 skipped: a hidden file", "1 skipped: an ending that is not read: .txt", "1 skipped: a link that leads"]
    {
        assert!(warnings.contains(says), "{says} is missing in\n{warnings}");
    }
}
