//! Disks: forms, buses, sizes, snapshots.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use super::Bed;
use crate::harness::Registry;

#[test]
fn disks_of_every_form_boot_on_every_board() {
    let bed = Bed::new();
    let tiny = bed.tiny();
    let machines = [
        ("qcow2", &["--disk-bus", "sata"][..]),
        ("vmdk", &["--chipset", "i440fx", "--disk-bus", "ide", "--nic", "e1000"]),
        ("vdi", &["--chipset", "i440fx"]),
        ("vpc", &["--chipset", "i440fx", "--disk-bus", "sata"]),
        ("vhdx", &["--nic", "e1000"]),
    ];
    for (form, options) in machines {
        let image = bed.path(&format!("image.{form}"));
        bed.sh(&format!("qemu-img convert -f raw -O {form} {tiny} {image}"));
        bed.ok(&[&["machine", "create", "--disk", &image, "-m", "64m"], options, &[form]].concat());
        bed.ok(&["start", form]);
    }
    for (form, _) in machines {
        bed.expect(form, "ready");
        bed.ok(&["rm", "-f", form]);
    }
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_made() {
    let bed = Bed::new();
    let tiny = bed.tiny();
    bed.sh("qemu-img create -q -f qcow2 -F raw -b /etc/shadow backed.qcow2 1M");
    bed.sh("qemu-img create -q -f qcow2 -o data_file=data.raw,data_file_raw=on external.qcow2 1M");
    let create = |options: &[&str]| bed.refused(&[&["machine", "create"], options, &["pc"]].concat());
    let cases = [
        (vec!["--disk", "backed.qcow2"], "backing file"),
        (vec!["--disk", "external.qcow2"], "data in another file"),
        (vec!["--disk", "nothing.img"], "No such file"),
        (vec!["--disk", "tiny.img", "--disk-size", "64k"], "larger but not smaller"),
        (vec!["--disk", "tiny.img", "--format", "vhdx"], "cannot be read as vhdx"),
        (vec!["--disk", "tiny.img", "--format", "floppy"], "invalid --format"),
        (vec!["--disk", "tiny.img", "--chipset", "z80"], "invalid --chipset"),
        (vec!["--disk", "tiny.img", "--disk-bus", "ide"], "no IDE"),
        (vec!["--disk", "tiny.img", "--secure-boot", "--chipset", "i440fx"], "secure boot"),
        (vec!["--disk", "tiny.img", "--user", "Root!"], "invalid user"),
        (vec!["--cdrom", "nothing.iso"], "no such file"),
        (vec![], "something to boot"),
    ];
    for (options, words) in cases {
        let full: Vec<String> = options
            .iter()
            .map(|word| if word.contains('.') { bed.path(word) } else { (*word).to_owned() })
            .collect();
        let said = create(&full.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(said.contains(words), "{options:?}: {said}");
    }
    assert_eq!(bed.ok(&["ps", "-aq"]), "");
    assert_eq!(fs::read_dir(bed.proa.root().join("instances")).map_or(0, Iterator::count), 0);
    assert!(fs::metadata(tiny).unwrap().len() == 1 << 20);
}

#[test]
fn a_header_that_the_guest_wrote_is_data_and_a_snapshot_brings_back_what_was() {
    let bed = Bed::new();
    bed.create("pc", &[]);
    let media = bed.media("pc");
    let disk = media.join("disk0.img");
    let before = fs::read(&disk).unwrap();
    bed.ok(&["machine", "snapshot", "create", "pc", "clean"]);
    assert!(bed.refused(&["machine", "snapshot", "create", "pc", "clean"]).contains("already"));
    bed.ok(&["start", "pc"]);
    bed.expect("pc", "ready");
    // A qcow2 header whose backing file is the host's.
    let mut terminal = bed.attach("pc");
    terminal.send("w");
    terminal.expect("done");
    terminal.send("q");
    terminal.wait();
    let written = fs::read(&disk).unwrap();
    assert!(written.starts_with(b"QFI\xfb") && written.len() == before.len());
    // It runs, with a disk of the same size that nothing can be booted from.
    bed.ok(&["start", "pc"]);
    bed.expect("pc", "not a bootable disk");
    assert_eq!(bed.state("pc"), "running 0");
    bed.ok(&["kill", "pc"]);
    assert!(fs::read(&disk).unwrap() == written);
    bed.ok(&["machine", "snapshot", "create", "pc", "spoilt"]);
    assert_eq!(bed.ok(&["machine", "snapshot", "ls", "--format", "{{.Name}}", "pc"]), "clean\nspoilt");
    // What a killed command left is in nobody's way.
    let snapshots = media.with_file_name("snapshots");
    fs::create_dir(snapshots.join(".new")).unwrap();
    fs::write(snapshots.join(".new/disk0.img"), "half").unwrap();
    bed.ok(&["machine", "snapshot", "restore", "pc", "clean"]);
    assert!(fs::read(&disk).unwrap() == before);
    assert_eq!(fs::metadata(&disk).unwrap().mode() & 0o777, 0o600);
    bed.ok(&["start", "pc"]);
    bed.proa.wait_for("the boot", || bed.ok(&["logs", "pc"]).matches("ready").count() == 2);
    bed.ok(&["kill", "pc"]);
    assert!(bed.refused(&["machine", "snapshot", "restore", "pc", "other"]).contains("has no snapshot"));
    bed.ok(&["machine", "snapshot", "rm", "pc", "clean", "spoilt"]);
    assert_eq!(fs::read_dir(&snapshots).unwrap().count(), 0);
    bed.ok(&["rm", "pc"]);
}

/// What the system has counted to on a disk.
fn counted(disk: &Path) -> u32 {
    let mut bytes = [0; 4];
    File::open(disk).unwrap().read_exact_at(&mut bytes, 8 * 512).unwrap();
    u32::from_le_bytes(bytes)
}

#[test]
fn a_snapshot_of_a_machine_that_runs_has_all_disks_as_they_were_at_one_moment() {
    let bed = Bed::new();
    bed.sh("truncate -s 256M big.img && dd if=/dev/urandom of=big.img bs=1M count=64 seek=64 conv=notrunc status=none");
    bed.create("pc", &["--disk", &bed.path("big.img")]);
    let media = bed.media("pc");
    let snapshots = media.with_file_name("snapshots");
    let goes_on = |what: &str| {
        let before = counted(&media.join("disk1.img"));
        bed.proa.wait_for(what, || counted(&media.join("disk1.img")) > before);
    };
    bed.ok(&["start", "pc"]);
    bed.expect("pc", "ready");
    let mut terminal = bed.attach("pc");
    terminal.send("c");
    goes_on("the first numbers");
    for name in ["one", "two"] {
        bed.ok(&["machine", "snapshot", "create", "pc", name]);
        let [first, second] =
            ["disk0.img", "disk1.img"].map(|disk| counted(&snapshots.join(name).join(disk)));
        assert!(first == second || first == second + 1, "{name}: {first} and {second}");
        assert!(second > 0);
        goes_on("the guest to go on");
    }
    let metadata = fs::metadata(snapshots.join("two/disk1.img")).unwrap();
    assert_eq!((metadata.len(), metadata.mode() & 0o777), (256 << 20, 0o600));
    assert!(metadata.blocks() * 512 < 80 << 20, "{} blocks", metadata.blocks());
    // One that is halted by its user stays so.
    bed.ok(&["pause", "pc"]);
    bed.ok(&["machine", "snapshot", "create", "pc", "paused"]);
    let now = ["disk0.img", "disk1.img"].map(|disk| counted(&media.join(disk)));
    assert_eq!(now, ["disk0.img", "disk1.img"].map(|disk| counted(&snapshots.join("paused").join(disk))));
    assert!(bed.state("pc").starts_with("paused"));
    bed.ok(&["unpause", "pc"]);
    goes_on("the guest to go on when it may");
    // A command that is killed leaves nothing that is in the way, and the guest runs.
    let command = bed.proa.spawn(&["machine", "snapshot", "create", "pc", "three"]);
    bed.proa.wait_for("the copy", || snapshots.join(".new").exists() || snapshots.join("three").exists());
    crate::network::kill(command.pid());
    command.finish();
    bed.proa.wait_for("another copy", || {
        bed.proa.run(&["machine", "snapshot", "create", "pc", "four"]).code == 0
    });
    goes_on("the guest to go on without whoever wanted the copy");
    assert!(bed.refused(&["machine", "snapshot", "restore", "pc", "one"]).contains("is running"));
    bed.ok(&["machine", "snapshot", "rm", "pc", "two", "paused", "four"]);
    bed.ok(&["kill", "pc"]);
    drop(terminal);
    let last = counted(&media.join("disk0.img"));
    bed.ok(&["machine", "snapshot", "restore", "pc", "one"]);
    assert!(counted(&media.join("disk0.img")) < last);
    bed.ok(&["start", "pc"]);
    bed.proa.wait_for("the boot", || bed.ok(&["logs", "pc"]).matches("ready").count() == 2);
    bed.ok(&["rm", "-f", "pc"]);
}

#[test]
fn disks_grow_and_stay_sparse() {
    let bed = Bed::new();
    bed.create("pc", &["--disk-size", "2g"]);
    let disk = fs::metadata(bed.media("pc").join("disk0.img")).unwrap();
    assert!(disk.len() == 2 << 30 && disk.blocks() * 512 < 1 << 20, "{disk:?}");
    bed.ok(&["rm", "pc"]);
}

#[test]
fn disks_travel_as_images_and_a_second_version_sends_what_changed() {
    let bed = Bed::new();
    let registry = Registry::start();
    let name = |tag: &str| format!("{}/disks/tiny:{tag}", registry.address());
    // 41 MiB, of which four chunks hold something.
    let tiny = bed.tiny();
    bed.sh(&format!("cp {tiny} big.img && truncate -s 41M big.img"));
    for (place, text) in [("9437184", "one"), ("17825792", "two"), ("42000000", "end")] {
        bed.sh(&format!("printf {text} | dd of=big.img bs=1 seek={place} conv=notrunc status=none"));
    }
    bed.sh("qemu-img convert -f raw -O qcow2 -c big.img big.qcow2");
    bed.ok(&["machine", "import", &bed.path("big.qcow2"), &name("1")]);
    bed.ok(&["push", &name("1")]);
    let blobs = || {
        let directory = registry.storage().join("data/docker/registry/v2/blobs");
        let list = bed.sh(&format!("find {} -type f", directory.display()));
        list.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>()
    };
    let first = blobs();
    // Four chunks, config, manifest.
    assert_eq!(first.len(), 6, "{first:?}");
    bed.sh("printf TWO | dd of=big.img bs=1 seek=17825792 conv=notrunc status=none");
    bed.ok(&["machine", "import", &bed.path("big.img"), &name("2")]);
    bed.ok(&["push", &name("2")]);
    assert_eq!(blobs().difference(&first).count(), 3, "one chunk, config, manifest");
    // It is listed, is no image to run, and goes as images go.
    assert!(bed.ok(&["images", "--format", "{{.Tag}} {{.Size}}"]).contains("2 43MB"));
    assert!(bed.refused(&["run", &name("2")]).contains("proa machine create --disk"));
    assert!(bed.refused(&["save", "-o", &bed.path("x.tar"), &name("2")]).contains("proa push"));
    bed.ok(&["rmi", &name("1"), &name("2")]);
    assert_eq!(bed.ok(&["images", "-q"]), "");
    // Another host, as it were, pulls what it has not.
    bed.ok(&["machine", "create", "--disk", &name("2"), "--disk-size", "64m", "-m", "64m", "pc"]);
    let disk = bed.media("pc").join("disk0.img");
    let (made, wanted) = (fs::read(&disk).unwrap(), fs::read(bed.path("big.img")).unwrap());
    assert!(made.len() == 64 << 20 && made[..wanted.len()] == wanted[..]);
    assert!(fs::metadata(&disk).unwrap().blocks() * 512 < 2 << 20);
    bed.ok(&["start", "pc"]);
    bed.expect("pc", "ready");
    assert!(bed.refused(&["machine", "save", "pc", "mine:1"]).contains("running"));
    bed.ok(&["stop", "pc"]);
    bed.ok(&["machine", "save", "pc", "mine:1"]);
    bed.ok(&["machine", "create", "--disk", "mine:1", "-m", "64m", "twin"]);
    assert!(fs::read(bed.media("twin").join("disk0.img")).unwrap() == made);
    assert_eq!(bed.ok(&["system", "check", "--read"]), "");
    bed.ok(&["rm", "pc", "twin"]);
}
