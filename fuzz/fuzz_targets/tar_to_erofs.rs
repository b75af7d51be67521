//! A layer's tar as an image may hold it: refused, or an image that reads back whole, the same each time.
//!
//! The first byte chooses between bytes taken as a tar whose sums are put right, and a tar made of names that
//! meet: links, whiteouts, replaced directories. The other bytes are what it is made of.
#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use proa_image::layer::{self, LayerForm, LayerInfo, Limits};
use tempfile::TempDir;

/// In memory where that can be had, since each input writes files.
static SCRATCH: LazyLock<TempDir> = LazyLock::new(|| {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() }.expect("a place for images")
});

const LIMITS: Limits = Limits {
    max_entries: 3000,
    max_uncompressed: 32 << 20,
    max_path: 4096,
    max_xattr_bytes: 64 << 10,
    max_memory: 16 << 20,
};

/// Names that get in each other's way.
const NAMES: [&str; 24] = [
    "a",
    "b",
    "a/b",
    "a/b/c",
    "b/a",
    "a/../b",
    "./a",
    "/a/c",
    "c/",
    "l",
    "l/x",
    "l/x/y",
    ".wh.a",
    "a/.wh.b",
    "a/.wh..wh..opq",
    ".wh..wh..opq",
    ".wh..wh.plnk/1",
    "m",
    "m/n",
    "../a",
    ".",
    "a//c/",
    "b/.wh.a",
    "c/l/m",
];
const KINDS: &[u8] = b"0012345567xLKgS";

fuzz_target!(|data: &[u8]| {
    let Some((mode, data)) = data.split_first() else { return };
    let tar = if mode % 2 == 0 { with_sums(data) } else { of_names(data) };
    let (first, second) = (SCRATCH.path().join("first"), SCRATCH.path().join("second"));
    let info = convert(&tar, &first);
    if let Some(info) = info {
        assert_eq!(info.uncompressed_size, tar.len() as u64);
        let summary = layer::erofs::check(&first).expect("an image that was made is whole");
        assert_eq!((summary.inodes, summary.opaque_root), (info.entries, info.opaque_root));
        assert_eq!(convert(&tar, &second), Some(info));
        same(&first, &second);
    }
    assert_eq!(std::fs::read_dir(SCRATCH.path()).unwrap().count(), usize::from(info.is_some()) * 2);
    for path in [first, second] {
        let _ = std::fs::remove_file(path);
    }
});

fn convert(tar: &[u8], path: &Path) -> Option<LayerInfo> {
    layer::convert(tar, path, LayerForm::Erofs, &LIMITS).inspect_err(|error| drop(error.to_string())).ok()
}

fn same(one: &Path, other: &Path) {
    // Sparse ones are long to compare and hold nothing more.
    if one.metadata().unwrap().len() < 4 << 20 {
        assert!(std::fs::read(one).unwrap() == std::fs::read(other).unwrap(), "two images of one tar differ");
    }
}

/// The bytes, each block that is not empty given the sum of a header.
fn with_sums(data: &[u8]) -> Vec<u8> {
    let mut tar = data.to_vec();
    tar.chunks_exact_mut(512).filter(|block| block.iter().any(|&byte| byte != 0)).for_each(set_sum);
    tar
}

fn set_sum(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}

/// Four bytes an entry: type, name, target, size.
fn of_names(data: &[u8]) -> Vec<u8> {
    let mut tar = Vec::new();
    for entry in data.chunks_exact(4) {
        let kind = KINDS[usize::from(entry[0]) % KINDS.len()];
        let (name, target) = (NAMES[usize::from(entry[1]) % 24], NAMES[usize::from(entry[2]) % 24]);
        let content = content(kind, name, target, entry[3]);
        let mut block = [0; 512];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[100..107].copy_from_slice(b"0000755");
        block[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        block[136..147].copy_from_slice(format!("{:011o}", entry[2] / 64).as_bytes());
        block[156] = kind;
        block[157..157 + target.len()].copy_from_slice(target.as_bytes());
        block[257..265].copy_from_slice(b"ustar\x0000");
        if kind == b'S' {
            let size = content.len() + usize::from(entry[2]) * 1000;
            let numbers = [(386, size - content.len()), (398, content.len()), (483, size)];
            for (at, number) in numbers {
                block[at..at + 11].copy_from_slice(format!("{number:011o}").as_bytes());
            }
        }
        set_sum(&mut block);
        tar.extend(block);
        tar.extend(&content);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar
}

fn content(kind: u8, name: &str, target: &str, size: u8) -> Vec<u8> {
    match kind {
        b'x' => {
            let records = [
                format!("path={name}/{}", "n/".repeat(usize::from(size))),
                format!("SCHILY.xattr.user.{target}={}", "v".repeat(usize::from(size) * 20)),
                format!("GNU.sparse.map={size},{size}"),
            ];
            let record = &records[usize::from(size) % 3];
            // The length counts its own digits; four are always enough here.
            format!("{:04} {record}\n", record.len() + 6).into_bytes()
        }
        b'L' | b'K' => format!("{target}/{}\0", "k".repeat(usize::from(size))).into_bytes(),
        b'0' | b'7' | b'S' => vec![size | 1; usize::from(size) * 40],
        _ => Vec::new(),
    }
}
