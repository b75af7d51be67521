//! What an instance does not need any more goes back to the host: memory, and room on the disk.

use std::fs;
use std::os::unix::fs::MetadataExt;

use super::{Bed, at_both_levels};

at_both_levels!(room_of_deleted_files; free_memory);

const FILLED: u64 = 200 << 20;

/// Bytes of the host's memory that the instance alone holds.
fn memory(bed: &Bed) -> u64 {
    if bed.is_vm() {
        let pid = bed.ok(&["inspect", "--format", "{{.State.Pid}}", "giver"]);
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        let line = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:")).unwrap();
        return line.trim_end_matches("kB").trim().parse::<u64>().unwrap() << 10;
    }
    let metrics = bed.ok(&["metrics"]);
    let mut lines = metrics.lines();
    let line = lines.find(|line| line.starts_with("proa_memory_usage_bytes{")).unwrap();
    line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64
}

fn free_memory(bed: &Bed) {
    bed.detach("giver", &["-m", "400m", "--tmpfs", "/big:size=300m"], &["sleep", "1000"]);
    let before = memory(bed);
    bed.ok(&["exec", "giver", "dd", "if=/dev/urandom", "of=/big/file", "bs=1M", "count=200"]);
    let filled = memory(bed);
    assert!(filled > before + FILLED * 9 / 10, "{before} {filled}");
    bed.ok(&["exec", "giver", "rm", "/big/file"]);
    bed.proa.wait_for("the memory", || memory(bed) < before + FILLED / 4);
    // What is used again is as good as before.
    let sums =
        "head -c 100M /dev/zero > /big/zeros; sha256sum < /big/zeros; head -c 100M /dev/zero | sha256sum";
    let sums = bed.ok(&["exec", "giver", "sh", "-c", sums]);
    let mut sums = sums.lines();
    assert_eq!(sums.next(), sums.next());
    bed.ok(&["rm", "-f", "giver"]);
}

/// Bytes on the host's disk that hold what the instance has written.
fn room(bed: &Bed, id: &str) -> u64 {
    let directory = bed.proa.root().join("instances").join(id);
    if bed.is_vm() {
        return fs::metadata(directory.join("rw.img")).unwrap().blocks() * 512;
    }
    fs::metadata(directory.join("upper/file")).map_or(0, |file| file.blocks() * 512)
}

fn room_of_deleted_files(bed: &Bed) {
    let id = bed.detach("giver", &[], &["sleep", "1000"]);
    let before = room(bed, &id);
    bed.ok(&["exec", "giver", "dd", "if=/dev/urandom", "of=/file", "bs=1M", "count=200", "conv=fsync"]);
    assert!(room(bed, &id) > before + FILLED * 9 / 10);
    bed.ok(&["exec", "giver", "sh", "-c", "rm /file; sync"]);
    bed.proa.wait_for("the room", || room(bed, &id) < before + FILLED / 10);
    bed.ok(&["rm", "-f", "giver"]);
}
