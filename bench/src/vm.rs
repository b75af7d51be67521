//! Start of a virtual machine, from a template and by booting: the whole command, beside Docker's start of a container
//! and bare QEMU with the same kernel.
//!
//! Bare QEMU gets the machine, accelerator, memory and kernel command line that ours has (read from a running
//! VMM), twice: once with an initramfs whose only file switches the machine off at once, and once with our modules
//! and disks and a program that does by hand what it takes to run `true` from the image.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::measure::{Contender, interleave, output, print};
use crate::memory::{field, private};
use crate::setup::{Docker, Setup};

/// Where our VMM has its memory from; the bare one has it of no file.
const BACKEND: &str = ",memory-backend=memory";
/// Options of our VMM that the bare one shares.
const SHARED: [&str; 7] = ["-M", "-machine", "-accel", "-cpu", "-m", "-smp", "-append"];
/// The disks of an instance of one layer, in the order in which our VMM has them.
const DISKS: [&str; 2] = ["rw", "layer0"];

/// How long the making of a template may take.
const TEMPLATE_LIMIT: Duration = Duration::from_secs(120);

/// How often it is looked whether a machine stands by.
const LOOK: Duration = Duration::from_millis(10);

/// Machines whose memory is looked at.
const CLONES: usize = 10;
/// How long they are left alone before.
const REST: Duration = Duration::from_secs(5);

/// Runs the comparison.
pub fn bench(setup: &Setup, rounds: usize) -> Result<()> {
    let root = setup.text("proa");
    let config = setup.text("config.toml");
    let run = [&setup.proa, "--root", &root, "--config", &config, "run", "--rm", "--network", "none"];
    let (by_hand, bare) = bare_commands(setup)?;
    make_templates(setup)?;
    let vm = ["--isolation", "vm"];
    let shared = setup.text("shared");
    fs::create_dir(&shared)?;
    let share = ["-v", &format!("{shared}:/shared")];
    make_template(setup, &share, 3)?;
    let (template, cold) = (["busybox", "true"], ["--no-template", "busybox", "true"]);
    let mut contenders = vec![
        Contender::new("proa vm, template", &[&run[..], &vm, &template].concat()),
        Contender::new("proa vm, booted", &[&run[..], &vm, &cold].concat()),
        Contender::new("the same with a share", &[&run[..], &vm, &share, &template].concat()),
        Contender::new("the same booted", &[&run[..], &vm, &share, &cold].concat()),
        Contender::of("bare QEMU, true by hand", by_hand),
        Contender::of("bare QEMU, nothing run", bare),
        Contender::new("proa container", &[&run[..], &["busybox", "true"]].concat()),
    ];
    let docker = Docker::with_image(setup)?;
    if let Some(docker) = &docker {
        let argv = docker.argv(&["run", "--rm", "--network", "none", "busybox", "true"]);
        contenders.push(Contender::of("docker container", argv));
    }
    contenders.push(standby(setup, &template)?);
    interleave(&mut contenders, rounds)?;
    print("run --rm --isolation vm busybox true", &contenders);
    // Nothing stands by any more.
    setup.proa(&["system", "stop"])?;
    at_once(&[&run[..], &vm, &template].concat())?;
    execs(setup, rounds)?;
    clones(setup)
}

/// The same where a machine stands by, as it does unless a configuration says otherwise; the next one is waited for.
fn standby(setup: &Setup, image: &[&str]) -> Result<Contender> {
    let root = setup.text("proa");
    let places = Path::new(&setup.proa(&["info", "-f", "{{.RunRoot}}"])?).join("standby");
    let run = [&setup.proa, "--root", &root, "run", "--rm", "--network", "none", "--isolation", "vm"];
    let settle = move || {
        let deadline = Instant::now() + TEMPLATE_LIMIT;
        let is_there = |entry: fs::DirEntry| entry.path().join("socket").exists();
        while !fs::read_dir(&places).is_ok_and(|entries| entries.flatten().any(is_there)) {
            anyhow::ensure!(Instant::now() < deadline, "no virtual machine stands by");
            std::thread::sleep(LOOK);
        }
        Ok(())
    };
    let contender = Contender::new("proa vm, stood by", &[&run[..], image].concat());
    Ok(Contender { settle: Some(Box::new(settle)), ..contender })
}

/// Machines that are started from a template at once, against as many one after the other.
fn at_once(command: &[&str]) -> Result<()> {
    let start =
        || Command::new(command[0]).args(&command[1..]).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let begun = Instant::now();
    let started = (0..CLONES).map(|_| start()).collect::<Result<Vec<_>, _>>()?;
    for mut child in started {
        anyhow::ensure!(child.wait()?.success(), "a machine did not start");
    }
    let together = begun.elapsed();
    let begun = Instant::now();
    for _ in 0..CLONES {
        anyhow::ensure!(start()?.wait()?.success(), "a machine did not start");
    }
    let alone = begun.elapsed();
    let (together, alone) = (together.as_secs_f64(), alone.as_secs_f64());
    println!("\n{CLONES} machines: at once {together:.2} s, one after the other {alone:.2} s");
    Ok(())
}

/// `exec` at both levels, and `top`, in which nothing is run: the way there and back.
fn execs(setup: &Setup, rounds: usize) -> Result<()> {
    let root = setup.text("proa");
    let mut contenders = Vec::new();
    for level in ["vm", "container"] {
        let run = ["run", "-d", "--network", "none", "--isolation", level, "--name", level];
        setup.proa(&[&run[..], &["busybox", "sleep", "100000"]].concat())?;
        let tool = [&setup.proa, "--root", &root];
        contenders
            .push(Contender::new(&format!("exec, {level}"), &[&tool[..], &["exec", level, "true"]].concat()));
        contenders.push(Contender::new(&format!("top, {level}"), &[&tool[..], &["top", level]].concat()));
    }
    let done = interleave(&mut contenders, rounds);
    setup.proa(&["rm", "-f", "vm", "container"])?;
    done?;
    print("exec of true, and top, in an instance that idles", &contenders);
    Ok(())
}

/// What the first and the last of several machines from one template hold of the host's memory, and how much of that
/// is private: of the guest's own memory, and of the VMM's.
fn clones(setup: &Setup) -> Result<()> {
    println!("\nmemory of {CLONES} idle machines from one template");
    println!("{:<12} {:>12} {:>14} {:>12}", "", "PSS", "guest, private", "VMM, private");
    for number in 1..=CLONES {
        let run =
            ["run", "-d", "--network", "none", "--isolation", "vm", "--name", &format!("clone-{number}")];
        setup.proa(&[&run[..], &["busybox", "sleep", "100000"]].concat())?;
        if number != 1 && number != CLONES {
            continue;
        }
        // Whoever runs for a moment is no longer at its start.
        std::thread::sleep(REST);
        let pid = setup.proa(&["inspect", "--format", "{{.State.Pid}}", &format!("clone-{number}")])?;
        let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}"));
        let (rollup, maps) = (read("smaps_rollup")?, read("smaps")?);
        let guest: u64 = mappings(&maps)
            .filter(|(name, _)| name.ends_with("/memory"))
            .map(|(_, text)| private(text))
            .sum();
        let kilobytes = |bytes: u64| format!("{} kB", bytes / 1024);
        println!(
            "{:<12} {:>12} {:>14} {:>12}",
            format!("clone {number}"),
            kilobytes(field(&rollup, "Pss:")),
            kilobytes(guest),
            kilobytes(private(&rollup) - guest)
        );
    }
    for number in 1..=CLONES {
        setup.proa(&["rm", "-f", &format!("clone-{number}")])?;
    }
    Ok(())
}

/// The mappings of a process: what each is of, and what is told of it.
fn mappings(smaps: &str) -> impl Iterator<Item = (&str, &str)> {
    smaps.split("VmFlags:").filter_map(|text| {
        // Behind the flags of the one before.
        let head = text.lines().find(|line| line.contains('-') && line.contains(':'))?;
        Some((head.rsplit(' ').next()?, text))
    })
}

/// Runs a machine that boots and one that starts from the template made of it, and waits until there is one of their
/// kind as well.
pub fn make_templates(setup: &Setup) -> Result<()> {
    (1..=2).try_for_each(|count| make_template(setup, &[], count))
}

/// Runs a machine with these options, and waits until there are so many templates.
fn make_template(setup: &Setup, options: &[&str], count: usize) -> Result<()> {
    let run = ["run", "--rm", "--network", "none", "--isolation", "vm"];
    setup.proa(&[&run[..], options, &["busybox", "true"]].concat())?;
    let deadline = Instant::now() + TEMPLATE_LIMIT;
    while setup.proa(&["template", "ls", "-q"])?.lines().count() < count {
        if Instant::now() > deadline {
            bail!("{count} templates were not made");
        }
    }
    Ok(())
}

/// Our VMM's options without what is ours, with the program run by hand and without any.
fn bare_commands(setup: &Setup) -> Result<(Vec<String>, Vec<String>)> {
    let run = ["run", "-d", "--name", "probe", "--isolation", "vm", "--network", "none"];
    setup.proa(&[&run[..], &["busybox", "sleep", "1000"]].concat())?;
    let pid = setup.proa(&["inspect", "--format", "{{.State.Pid}}", "probe"])?;
    let line =
        fs::read_to_string(format!("/proc/{pid}/cmdline")).context("cannot read the VMM's command line")?;
    let words: Vec<&str> = line.trim_end_matches('\0').split('\0').collect();
    let mut shared = vec!["qemu-system-x86_64".to_owned()];
    for pair in words.windows(2) {
        // What the VMM has as a descriptor is reachable through it as long as it lives, so it is copied first.
        match pair[0] {
            "-kernel" => copy(&pid, pair[1], &setup.text("kernel"))?,
            "-initrd" => copy(&pid, pair[1], &setup.text("ours.cpio"))?,
            option if SHARED.contains(&option) => {
                let value = pair[1].replace(BACKEND, "");
                shared.extend([option.to_owned(), value]);
            }
            _ => {}
        }
    }
    copy_disks(setup, &pid)?;
    setup.proa(&["rm", "-f", "probe"])?;
    let rest = ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-snapshot"];
    shared.extend(rest.map(String::from));
    shared.extend(["-kernel".to_owned(), setup.text("kernel"), "-initrd".to_owned()]);
    pack_initramfs(setup)?;
    let mut by_hand = [&shared[..], &[setup.text("by-hand.cpio")]].concat();
    for name in DISKS {
        let drive = format!("if=none,format=raw,id={name},file={}", setup.text(name));
        let device = format!("virtio-blk-pci,drive={name},num-queues=1,disable-legacy=on");
        by_hand.extend(["-drive".to_owned(), drive, "-device".to_owned(), device]);
    }
    Ok((by_hand, [&shared[..], &[setup.text("bare.cpio")]].concat()))
}

/// The disks are known by their places below our root.
fn copy_disks(setup: &Setup, pid: &str) -> Result<()> {
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let path = entry?.path();
        let Ok(target) = fs::read_link(&path) else { continue };
        let Ok(below) = target.strip_prefix(setup.path("proa")) else { continue };
        let name = if below.starts_with("instances") { DISKS[0] } else { DISKS[1] };
        output(&["cp", "--sparse=always", &path.to_string_lossy(), &setup.text(name)])?;
    }
    Ok(())
}

/// One with our program alone, one with our modules as well.
fn pack_initramfs(setup: &Setup) -> Result<()> {
    let script = "set -e; cd \"$0\"; echo init | busybox cpio -o -H newc > bare.cpio; mkdir by-hand; cd by-hand; \
                  busybox cpio -idm < ../ours.cpio; cp ../init init; find . | busybox cpio -o -H newc > ../by-hand.cpio";
    output(&["sh", "-c", script, &setup.text("")]).map(drop)
}

fn copy(pid: &str, path: &str, to: &str) -> Result<()> {
    let from = format!("/proc/{pid}/root{}", resolve(pid, path));
    fs::copy(&from, to).map(drop).with_context(|| format!("cannot copy {from}"))
}

/// Where a path of the VMM's command line leads, seen from its own root.
fn resolve(pid: &str, path: &str) -> String {
    let own = path.strip_prefix("/proc/self/");
    own.map_or_else(|| path.to_owned(), |rest| format!("/proc/{pid}/{rest}"))
}
