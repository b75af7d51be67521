//! Guests that mean no good: they harm nobody but themselves.

use std::time::{Duration, Instant};

use super::Bed;

#[test]
fn a_flood_of_the_console_fills_no_disk_and_holds_up_nobody() {
    let bed = Bed::new();
    bed.create("pc", &["--log-opt", "max-size=64k", "--log-opt", "max-file=2"]);
    bed.ok(&["start", "pc"]);
    bed.expect("pc", "ready");
    let mut terminal = bed.attach("pc");
    terminal.send("f");
    terminal.expect("ready\r\nready\r\nready");
    // This terminal reads no more: the console waits for it, and nothing else does.
    let log = bed.media("pc").with_file_name("log.json");
    bed.proa.wait_for("files of the log to turn over", || log.with_extension("json.1").exists());
    let begun = Instant::now();
    bed.ok(&["pause", "pc"]);
    bed.ok(&["unpause", "pc"]);
    bed.ok(&["ps"]);
    bed.ok(&["kill", "pc"]);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    terminal.wait();
    let kept: u64 = std::fs::read_dir(log.parent().unwrap())
        .unwrap()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("log.json"))
        .map(|entry| entry.metadata().unwrap().len())
        .sum();
    assert!((1..256 * 1024).contains(&kept), "{kept} bytes of log");
    bed.ok(&["rm", "pc"]);
}

#[test]
fn a_loop_of_resets_is_slowed_down() {
    let bed = Bed::new();
    let tiny = bed.tiny();
    // The same disk, whose first deed is a reset.
    bed.sh(&format!("cp {tiny} loop.img"));
    bed.sh(
        "as --32 -o loop.o - <<'END'
.code16
    movb $6, %al
    movw $0xcf9, %dx
    outb %al, %dx
    cli
    hlt
END
ld -m elf_i386 -Ttext 0x7c00 --oformat binary -o loop.bin loop.o && dd if=loop.bin of=loop.img conv=notrunc status=none",
    );
    bed.ok(&["machine", "create", "--disk", &bed.path("loop.img"), "-m", "64m", "pc"]);
    let begun = Instant::now();
    bed.ok(&["start", "pc"]);
    bed.proa.wait_for("the loop to be seen", || {
        bed.proa.run(&["logs", "pc"]).stderr.contains("it is held for 4 s")
    });
    // Four are free; those after them wait for one, two and four seconds.
    assert!(begun.elapsed() >= Duration::from_secs(3), "{:?}", begun.elapsed());
    let boots = bed.ok(&["logs", "pc"]).matches("SeaBIOS").count();
    // A BIOS that finds itself running resets the board once more, which is not counted as another.
    assert!((7..=16).contains(&boots), "{boots} boots");
    assert_eq!(bed.state("pc"), "running 0");
    // Held or not, it can be halted, and ended.
    bed.ok(&["pause", "pc"]);
    bed.ok(&["unpause", "pc"]);
    bed.ok(&["stop", "-t", "1", "pc"]);
    assert_eq!(bed.state("pc"), "exited 137");
    bed.ok(&["rm", "pc"]);
}

#[test]
fn a_full_disk_is_the_guests_alone() {
    let bed = Bed::new();
    bed.create("pc", &[]);
    bed.ok(&["start", "pc"]);
    bed.expect("pc", "ready");
    let mut terminal = bed.attach("pc");
    terminal.send("d");
    terminal.expect("full");
    terminal.send("q");
    terminal.wait();
    let disk = std::fs::metadata(bed.media("pc").join("disk0.img")).unwrap();
    assert_eq!(disk.len(), 1 << 20);
    assert!(std::os::unix::fs::MetadataExt::blocks(&disk) * 512 <= (1 << 20) + 8192);
    bed.ok(&["rm", "pc"]);
}
