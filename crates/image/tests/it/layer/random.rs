//! Random stacks of layers: overlayfs over what we make, against what umoci unpacks.
//!
//! umoci applies one layer after the other to one directory; we mount each by itself and let the kernel merge
//! them. Both must look the same. Not compared is what must differ: the count of links where a stack broke a
//! group of names up.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use proa_image::layer::LayerForm;
use sha2::{Digest, Sha256};

use super::mounted::{Bench, Made, differing, look};
use super::tarball::{Item, SparseFormat, What, tar};

/// A small random generator, so that a failure can be had again by its seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides
    }

    fn one_in(&mut self, sides: u64) -> bool {
        self.below(sides) == 0
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize].clone()
    }
}

/// What the stack so far shows: paths, and whether they are directories.
type State = BTreeMap<String, bool>;

/// A layer on top of `state`. Like real ones it names each directory before what is in it.
fn layer(dice: &mut Dice, state: &mut State) -> Vec<Item> {
    let mut items = vec![dress(dice, Item::dir("./"))];
    let mut named = BTreeSet::new();
    // Names this layer made that a hard link may have.
    let mut files: Vec<String> = Vec::new();
    for _ in 0..dice.below(25) + 3 {
        let dirs: Vec<String> = state.iter().filter(|(_, dir)| **dir).map(|(path, _)| path.clone()).collect();
        let parent = if dice.one_in(3) || dirs.is_empty() { String::new() } else { dice.pick(&dirs) };
        name_parents(dice, &parent, &mut named, &mut items);
        let prefix = if parent.is_empty() { String::new() } else { format!("{parent}/") };
        let path = format!("{prefix}{}", dice.pick(&["a", "b", "c", "d", "e", "long-".repeat(40).as_str()]));
        let below = |path: &str| format!("{path}/");
        let touched =
            named.contains(&path) || items.iter().any(|i| i.path.starts_with(below(&path).as_bytes()));
        if touched || files.contains(&path) {
            continue;
        }
        if state.contains_key(&path) && dice.one_in(3) {
            items.push(Item::file(&format!("{prefix}.wh.{}", &path[prefix.len()..]), ""));
            forget(state, &path);
            if dice.one_in(2) {
                named.insert(path);
                continue;
            }
        }
        let item = node(dice, &path, &files);
        let is_dir = item.what == What::Dir;
        if is_dir {
            named.insert(path.clone());
            items.push(dress(dice, item));
            if dice.one_in(4) {
                items.push(Item::file(&format!("{path}/.wh..wh..opq"), ""));
                forget(state, &path);
            }
            if state.get(&path) == Some(&false) {
                forget(state, &path);
            }
        } else {
            forget(state, &path);
            files.push(path.clone());
            items.push(if matches!(item.what, What::HardLink(_)) { item } else { dress(dice, item) });
        }
        state.insert(path, is_dir);
    }
    items
}

fn name_parents(dice: &mut Dice, path: &str, named: &mut BTreeSet<String>, items: &mut Vec<Item>) {
    let mut at = 0;
    while at < path.len() {
        at = path[at + 1..].find('/').map_or(path.len(), |slash| at + 1 + slash);
        if named.insert(path[..at].to_owned()) {
            items.push(dress(dice, Item::dir(&path[..at])));
        }
    }
}

fn forget(state: &mut State, path: &str) {
    let below = format!("{path}/");
    state.retain(|known, _| known != path && !known.starts_with(&below));
}

fn node(dice: &mut Dice, path: &str, files: &[String]) -> Item {
    let what = match dice.below(12) {
        0..4 => What::Dir,
        4 => What::Symlink(dice.pick(&["a", "../b", "/c/d", "nowhere"]).into()),
        5 => What::Char(dice.below(4095) as u32 + 1, dice.below(1 << 20) as u32),
        6 => What::Fifo,
        7 if !files.is_empty() => What::HardLink(dice.pick(files)),
        8 => sparse(dice),
        _ => {
            let size = dice.pick(&[0, 1, 100, 2048, 4096, 5000, 9000, 70_000]);
            What::File((0..size).map(|_| dice.below(256) as u8).collect())
        }
    };
    Item::new(path, what)
}

/// Not in the old GNU way, which umoci refuses.
fn sparse(dice: &mut Dice) -> What {
    let mut at = 0;
    let pieces = (0..dice.below(30) + 1).map(|_| {
        let offset = at + dice.below(40_000);
        let bytes = vec![dice.below(256) as u8; dice.below(6000) as usize + 1];
        at = offset + bytes.len() as u64;
        (offset, bytes)
    });
    let pieces: Vec<_> = pieces.collect();
    let size = at + dice.below(100_000);
    What::Sparse(pieces, size, dice.pick(&[SparseFormat::Pax00, SparseFormat::Pax01, SparseFormat::Pax10]))
}

fn dress(dice: &mut Dice, item: Item) -> Item {
    let modes = [0o755, 0o644, 0o600, 0o4711, 0o2755, 0o1777, 0o000];
    let mode = dice.pick(&modes);
    let owner = dice.pick(&[0, 1, 1000, 65_535, 70_000, 3_000_000]);
    let nanos = dice.pick(&[0, 1, 999_999_999]);
    let plain = matches!(item.what, What::Dir | What::File(_));
    let mut item =
        item.mode(mode).owner(owner, owner / 2).time(1_500_000_000 + dice.below(1000) as i64, nanos);
    if plain && dice.one_in(4) {
        item = item.xattr("user.x", vec![b'v'; dice.below(200) as usize + 1]);
    }
    if plain && dice.one_in(6) {
        item = item.xattr("trusted.y", "t");
    }
    item
}

/// An OCI layout with one image of these layers, as umoci wants it.
fn oci_layout(dir: &Path, layers: &[Vec<u8>]) {
    let blobs = dir.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let digest = format!("{:x}", Sha256::digest(bytes));
        std::fs::write(blobs.join(&digest), bytes).unwrap();
        format!("sha256:{digest}")
    };
    let ids: Vec<String> = layers.iter().map(|layer| put(layer)).collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": ids}
    });
    let config = config.to_string();
    let describe = |kind: &str, digest: &str, size: usize| {
        let media_type = format!("application/vnd.oci.image.{kind}");
        serde_json::json!({"mediaType": media_type, "digest": digest, "size": size})
    };
    let parts: Vec<_> =
        layers.iter().zip(&ids).map(|(l, id)| describe("layer.v1.tar", id, l.len())).collect();
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "config": describe("config.v1+json", &put(config.as_bytes()), config.len()),
        "layers": parts
    });
    let manifest = manifest.to_string();
    let mut entry = describe("manifest.v1+json", &put(manifest.as_bytes()), manifest.len());
    entry["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": "it"});
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [entry]});
    std::fs::write(dir.join("index.json"), index.to_string()).unwrap();
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

fn umoci(bench: &mut Bench, layers: &[Vec<u8>]) -> std::path::PathBuf {
    let (layout, rootfs) = (bench.path("layout"), bench.path("rootfs"));
    std::fs::create_dir(&layout).unwrap();
    oci_layout(&layout, layers);
    let image = format!("{}:it", layout.display());
    let out = Command::new("umoci").args(["raw", "unpack", "--image", &image]).arg(&rootfs).output();
    let out = out.expect("umoci is needed");
    assert!(out.status.success(), "umoci: {}", String::from_utf8_lossy(&out.stderr));
    rootfs
}

fn without_links(seen: BTreeMap<String, String>) -> BTreeMap<String, String> {
    let drop_links = |line: String| {
        let words: Vec<&str> = line.split(' ').collect();
        match words.iter().position(|word| *word == "links") {
            Some(at) => [&words[..at], &words[at + 2..]].concat().join(" "),
            None => line,
        }
    };
    seen.into_iter().map(|(path, line)| (path, drop_links(line))).collect()
}

fn compare(seed: u64) {
    let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let mut state = State::new();
    let stack: Vec<Vec<Item>> = (0..dice.below(4) + 1).map(|_| layer(&mut dice, &mut state)).collect();
    let tars: Vec<Vec<u8>> = stack.iter().map(|items| tar(items)).collect();
    let mut bench = Bench::new();
    let flat = look(&umoci(&mut bench, &tars));
    for form in [LayerForm::Erofs, LayerForm::Directory] {
        let made: Vec<Made> = tars.iter().map(|tar| bench.layer(tar, form).unwrap()).collect();
        let merged = look(&bench.overlay(&made.iter().collect::<Vec<_>>()));
        let single = tars.len() == 1;
        let (one, other) = if single {
            (merged, flat.clone())
        } else {
            (without_links(merged), without_links(flat.clone()))
        };
        let differing = differing(&one, &other);
        assert!(differing.is_empty(), "seed {seed}, {form:?}, ours then umoci's:\n{}", differing.join("\n"));
    }
}

#[test]
fn stacks_look_as_umoci_unpacks_them() {
    for seed in 1..=30 {
        compare(seed);
    }
}
