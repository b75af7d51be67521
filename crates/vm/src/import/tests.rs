//! Imports, with QEMU as it is on the host. They need root, as all jails do.

use super::*;
use std::os::unix::fs::MetadataExt;

/// A directory with a disk of 8 MiB in it that is mostly holes.
struct Bed {
    directory: tempfile::TempDir,
}

impl Bed {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let disk = File::create(directory.path().join("disk.raw")).unwrap();
        disk.set_len(8 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&disk, b"the beginning", 0).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&disk, &[7; 70_000], 5 << 20).unwrap();
        Self { directory }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    fn img(&self, arguments: &[&str]) {
        let output = Command::new("qemu-img").args(arguments).current_dir(self.directory.path()).output();
        let output = output.expect("qemu-img is needed: apt-get install qemu-utils");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn import(&self, name: &str, format: Option<DiskFormat>, size: u64) -> Result<DiskImported, VmError> {
        run(&DiskImport {
            id: "ab".repeat(32),
            view: self.directory.path().to_owned(),
            source: self.path(name),
            format,
            target: self.path("made.img"),
            size,
        })
    }

    fn refusal(&self, name: &str) -> String {
        let refusal = self.import(name, None, 0).unwrap_err().to_string();
        assert!(!self.path("made.img").exists() && !self.path("made.new").exists());
        refusal
    }
}

#[test]
fn every_form_becomes_the_same_sparse_disk() {
    let bed = Bed::new();
    let original = fs::read(bed.path("disk.raw")).unwrap();
    let forms = [
        ("raw", "raw", &[][..]),
        ("qcow2", "qcow2", &["-c"]),
        ("vmdk", "vmdk", &["-o", "subformat=streamOptimized"]),
        ("vmdk", "vmdk", &[]),
        ("vdi", "vdi", &[]),
        ("vpc", "vhd", &["-o", "force_size=on"]),
        ("vhdx", "vhdx", &[]),
    ];
    for (qemu, ours, options) in forms {
        bed.img(&[&["convert", "-f", "raw", "-O", qemu], options, &["disk.raw", "image"]].concat());
        // Whatever its owner lets others do.
        fs::set_permissions(bed.path("image"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let made = bed.import("image", None, 0).unwrap_or_else(|error| panic!("{qemu}: {error}"));
        assert_eq!((made.format.as_str(), made.size), (ours, 8 << 20), "{qemu}");
        assert!(fs::read(bed.path("made.img")).unwrap() == original, "{qemu} {options:?}");
        let metadata = fs::metadata(bed.path("made.img")).unwrap();
        // Some forms keep a whole MiB where there is a byte.
        assert!(metadata.blocks() * 512 < 3 << 20, "{qemu}: {} blocks", metadata.blocks());
        assert_eq!(metadata.mode() & 0o777, 0o600);
    }
}

#[test]
fn images_that_ask_for_other_files_are_refused() {
    let bed = Bed::new();
    bed.img(&["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "/etc/shadow", "image", "1M"]);
    assert!(bed.refusal("image").contains("backing file"));
    bed.img(&["create", "-q", "-f", "qcow2", "-o", "data_file=other,data_file_raw=on", "image", "1M"]);
    assert!(bed.refusal("image").contains("data in another file"));
    bed.img(&["convert", "-O", "vmdk", "-o", "subformat=monolithicFlat", "disk.raw", "image"]);
    assert!(bed.refusal("image").contains("other files"));
}

#[test]
fn damaged_and_huge_images_are_refused_with_a_reason() {
    let bed = Bed::new();
    bed.img(&["create", "-q", "-f", "qcow2", "image", "60T"]);
    assert!(bed.refusal("image").contains("more than the"), "{}", bed.refusal("image"));
    let mut head = fs::read(bed.path("image")).unwrap();
    head[40] = 0xff;
    fs::write(bed.path("image"), &head).unwrap();
    assert!(bed.refusal("image").contains("cannot be read as qcow2"), "{}", bed.refusal("image"));
    fs::write(bed.path("image"), b"KDMV").unwrap();
    assert!(bed.refusal("image").contains("not whole"));
    let missing = bed.import("nothing", None, 0).unwrap_err().to_string();
    assert!(missing.contains("nothing: No such file"), "{missing}");
}

#[test]
fn a_named_form_is_believed_and_a_disk_can_only_grow() {
    let bed = Bed::new();
    bed.img(&["create", "-q", "-f", "qcow2", "image", "1M"]);
    let made = bed.import("image", Some(DiskFormat::Raw), 0).unwrap();
    assert_eq!(made.format, DiskFormat::Raw);
    assert!(fs::read(bed.path("made.img")).unwrap().starts_with(b"QFI"));
    let made = bed.import("disk.raw", None, 9_000_001).unwrap();
    assert_eq!(made.size, 9_000_448);
    let smaller = bed.import("disk.raw", None, 4096).unwrap_err().to_string();
    assert!(smaller.contains("can be made larger"), "{smaller}");
}
