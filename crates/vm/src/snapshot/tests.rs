//! Snapshots of machines that nobody runs: raw copies by hand, packed and read again.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use proa_protocol::snapshot::{
    BASE_FILE, GuestShape, INFO_FILE, Pack, RAW_DISK, RAW_MEMORY, RAW_STATE, SHAPE_FILE,
};

use super::pack::pack;
use super::resume::Snapshot;
use super::{INDEX_FILE, PACK_PREFIX, PAGE, STATE_FILE};

const MEMORY_PAGES: u64 = 512;

type Pages = BTreeMap<u64, [u8; PAGE]>;

/// A page that does not compress.
fn noise(seed: u64) -> [u8; PAGE] {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::array::from_fn(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    })
}

/// The base has a byte in each page, which says which it is.
fn base_page(number: u64) -> [u8; PAGE] {
    [(number % 251) as u8 + 1; PAGE]
}

/// What a capture would leave, with these pages of memory and the disk.
fn raw(directory: &Path, memory: &Pages, disk: &Pages) {
    fs::create_dir(directory).unwrap();
    let base = File::create(directory.join(BASE_FILE)).unwrap();
    (0..MEMORY_PAGES).for_each(|number| base.write_all_at(&base_page(number), number * PAGE as u64).unwrap());
    let mut head: Vec<u8> = (memory.len() as u64).to_le_bytes().to_vec();
    memory.keys().for_each(|number| head.extend(number.to_le_bytes()));
    head.resize(head.len().next_multiple_of(PAGE), 0);
    memory.values().for_each(|page| head.extend(page));
    fs::write(directory.join(RAW_MEMORY), head).unwrap();
    let file = File::create(directory.join(RAW_DISK)).unwrap();
    file.set_len(1 << 30).unwrap();
    disk.iter().for_each(|(number, page)| file.write_all_at(page, number * PAGE as u64).unwrap());
    fs::write(directory.join(RAW_STATE), b"state of the devices").unwrap();
    let shape = GuestShape { memory: MEMORY_PAGES * PAGE as u64, ..GuestShape::default() };
    fs::write(directory.join(SHAPE_FILE), serde_json::to_vec(&shape).unwrap()).unwrap();
}

fn packed(directory: &Path, parent: Option<&Path>, memory: &Pages, disk: &Pages) -> Snapshot {
    raw(directory, memory, disk);
    pack(&Pack { directory: directory.to_owned(), parent: parent.map(Path::to_owned) }).unwrap();
    Snapshot::open(directory).unwrap()
}

fn read(snapshot: &Snapshot, runs: impl Fn(&super::index::Index) -> &Vec<super::index::Run>) -> Pages {
    let mut pages = Pages::new();
    let take = |page: u64, bytes: &[u8]| {
        let parts = bytes.chunks_exact(PAGE).zip(page..);
        parts.for_each(|(bytes, page)| _ = pages.insert(page, bytes.try_into().unwrap()));
        Ok(())
    };
    snapshot.each(runs(&snapshot.index), take).unwrap();
    pages
}

#[test]
fn what_differs_from_the_base_is_kept_and_nothing_else() {
    let scratch = tempfile::tempdir().unwrap();
    let mut memory: Pages = (10..200).map(|number| (number, noise(number))).collect();
    memory.insert(300, base_page(300));
    memory.insert(301, [0; PAGE]);
    memory.insert(302, [0; PAGE]);
    // A file that was read or written is in memory as well.
    let disk: Pages = (0..150).map(|number| (1000 + number, noise(number + 20))).collect();
    let directory = scratch.path().join("one");
    let snapshot = packed(&directory, None, &memory, &disk);
    memory.remove(&300);
    assert_eq!(read(&snapshot, |index| &index.memory), memory);
    assert_eq!(read(&snapshot, |index| &index.disk), disk);
    assert_eq!((snapshot.info.memory_pages, snapshot.info.disk_pages), (192, 150));
    let mut names: Vec<String> = fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names.len(), 5, "{names:?}");
    assert!(names.contains(&INFO_FILE.to_owned()) && names.contains(&STATE_FILE.to_owned()));
    let size = pack_size(&directory);
    assert!(size < 191 * PAGE as u64, "190 pages of noise in {size} bytes");
}

fn pack_size(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).unwrap().flatten();
    let packs = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PACK_PREFIX));
    packs.map(|entry| entry.metadata().unwrap()).filter(|data| data.nlink() == 1).map(|data| data.len()).sum()
}

#[test]
fn a_second_snapshot_keeps_what_is_new_and_outlives_the_first() {
    let scratch = tempfile::tempdir().unwrap();
    let (one, two) = (scratch.path().join("one"), scratch.path().join("two"));
    let mut memory: Pages = (0..150).map(|number| (number, noise(number))).collect();
    drop(packed(&one, None, &memory, &Pages::new()));
    memory.extend((40..50).map(|number| (number, noise(number + 5000))));
    let snapshot = packed(&two, Some(&one), &memory, &Pages::new());
    assert!(pack_size(&two) < 11 * PAGE as u64);
    fs::remove_dir_all(&one).unwrap();
    assert_eq!(read(&snapshot, |index| &index.memory), memory);
    // A parent that is damaged is no help, and no harm.
    fs::write(two.join(INDEX_FILE), "nonsense").unwrap();
    let three = packed(&scratch.path().join("three"), Some(&two), &memory, &Pages::new());
    assert_eq!(read(&three, |index| &index.memory), memory);
}

#[test]
fn what_is_not_what_it_was_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let memory: Pages = (0..9).map(|number| (number, noise(number))).collect();
    let mut number = 0;
    let mut refusal = |change: &dyn Fn(&Path)| {
        number += 1;
        let directory = scratch.path().join(number.to_string());
        drop(packed(&directory, None, &memory, &Pages::new()));
        change(&directory);
        let used = Snapshot::open(&directory).and_then(|snapshot| {
            snapshot.state()?;
            snapshot.each(&snapshot.index.memory, |_, _| Ok(()))
        });
        used.err().map(|error| error.to_string()).unwrap_or_default()
    };
    let set = |name: &'static str, at: u64, length: Option<u64>| {
        move |directory: &Path| {
            let file = File::options().write(true).open(directory.join(name)).unwrap();
            file.write_all_at(b"?", at).unwrap();
            length.map(|length| file.set_len(length).unwrap()).unwrap_or_default();
        }
    };
    let in_pack = |act: fn(&File)| {
        move |directory: &Path| {
            let mut entries = fs::read_dir(directory).unwrap().flatten();
            let found = entries.find(|entry| entry.file_name().to_string_lossy().starts_with(PACK_PREFIX));
            act(&File::options().write(true).open(found.unwrap().path()).unwrap());
        }
    };
    assert_eq!(refusal(&|_| {}), "");
    assert!(refusal(&set(BASE_FILE, 9, None)).contains("was changed or replaced"));
    assert!(refusal(&set(BASE_FILE, 0, Some(PAGE as u64))).contains("was changed or replaced"));
    assert!(refusal(&set(INDEX_FILE, 30, None)).contains("its index was changed or replaced"));
    assert!(refusal(&set(STATE_FILE, 5, None)).contains("its state was changed or replaced"));
    assert!(refusal(&set(INFO_FILE, 0, None)).contains("snapshot.json"));
    assert!(
        refusal(&in_pack(|pack| pack.write_all_at(b"??", 70).unwrap())).contains("a page of it is damaged")
    );
    assert!(refusal(&in_pack(|pack| pack.set_len(100).unwrap())).contains("a page of it is damaged"));
    let describe = |change: fn(&mut serde_json::Value)| {
        move |directory: &Path| {
            let path = directory.join(INFO_FILE);
            let mut info = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            change(&mut info);
            fs::write(&path, info.to_string()).unwrap();
        }
    };
    let version = refusal(&describe(|info| info["format"] = 0.into()));
    assert!(version.contains("another version"), "{version}");
    let smaller = refusal(&describe(|info| info["shape"]["memory"] = PAGE.into()));
    assert!(smaller.contains("changed or replaced"), "{smaller}");
}
