//! `proa kernel`, and virtual machines that boot what is kept by it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::harness::{Output, Proa, workspace};

/// A root with the kernels that all tests share, and room for names of its own.
fn proa() -> Proa {
    let proa = Proa::with_busybox();
    let shared = workspace().join("target/test-cache/vm/kernels");
    if !shared.exists() {
        // The first guest ever fetches a kernel, into the store that all tests share.
        assert_eq!(run(&proa, &["--no-template"], &["true"]).code, 0);
    }
    let own = proa.root().join("vm");
    fs::remove_file(&own).unwrap();
    fs::create_dir_all(own.join("kernels")).unwrap();
    for kernel in fs::read_dir(shared).unwrap().map(|entry| entry.unwrap()) {
        symlink(kernel.path(), own.join("kernels").join(kernel.file_name())).unwrap();
    }
    proa
}

/// A kernel as a file, with a directory of its modules: what the tests' store has of the one they boot.
fn kernel_with_modules(proa: &Proa, scratch: &Path) -> (PathBuf, PathBuf, String) {
    let ready = proa.run(&["run", "--rm", "--isolation", "vm", "busybox", "uname", "-r"]);
    assert_eq!(ready.code, 0, "{ready:?}");
    let release = ready.stdout.trim().to_owned();
    let store = workspace().join("target/test-cache/vm/kernels");
    // Others of its release are copies that tests gave as files, without modules.
    let of_release = |directory: &PathBuf| {
        let text = fs::read_to_string(directory.join("kernel.json")).unwrap_or_default();
        text.contains(&format!("\"{release}\"")) && !text.contains("\"modules\": []")
    };
    let directories = fs::read_dir(store).unwrap().map(|entry| entry.unwrap().path());
    let kept = directories.into_iter().find(of_release).expect("the kernel that has just run");
    let modules = scratch.join("modules");
    let drivers = modules.join(&release).join("kernel");
    fs::create_dir_all(&drivers).unwrap();
    let mut built_in = String::new();
    for name in ["virtio_pci", "virtio_console", "virtio_blk", "virtio_net", "erofs", "overlay", "ext4"] {
        if !kept.join("modules").join(name).exists() {
            built_in.push_str(&format!("kernel/{name}.ko\n"));
        }
    }
    for module in fs::read_dir(kept.join("modules")).unwrap().map(|entry| entry.unwrap().path()) {
        let name = module.file_name().unwrap().to_str().unwrap();
        fs::copy(&module, drivers.join(format!("{name}.ko"))).unwrap();
    }
    fs::write(modules.join(&release).join("modules.builtin"), built_in).unwrap();
    fs::write(modules.join(&release).join("config"), "").unwrap();
    (kept.join("image"), modules, release)
}

fn run(proa: &Proa, options: &[&str], command: &[&str]) -> Output {
    let words = [&["run", "--rm", "--isolation", "vm", "--network", "none"], options, &["busybox"], command];
    proa.run(&words.concat())
}

fn listed(proa: &Proa) -> Vec<String> {
    let list = proa.run(&["kernel", "ls", "--format", "{{.Name}} {{.Release}} {{.Default}}"]);
    assert_eq!(list.code, 0, "{list:?}");
    list.stdout
        .lines()
        .filter(|line| !line.starts_with("<none>"))
        .map(|line| line.trim().to_owned())
        .collect()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_kernel_is_kept_booted_made_the_default_and_removed() {
    let (proa, scratch) = (proa(), tempfile::tempdir().unwrap());
    let (image, modules, release) = kernel_with_modules(&proa, scratch.path());
    let add = ["kernel", "add", "own", "--modules", text(&modules), text(&image)];
    let added = proa.run(&add);
    assert_eq!((added.code, added.stdout.as_str()), (0, "own\n"), "{added:?}");
    assert_eq!(listed(&proa), [format!("own {release}")]);
    let again = proa.run(&add);
    assert!(again.code != 0 && again.stderr.contains("there is a kernel own"), "{again:?}");

    // What it was made of is not needed any more.
    fs::remove_dir_all(&modules).unwrap();
    let words = run(&proa, &["--kernel", "own", "--kernel-arg", "proa.test=1"], &["cat", "/proc/cmdline"]);
    assert!(words.code == 0 && words.stdout.contains(" proa.test=1"), "{words:?}");

    assert_eq!(proa.run(&["kernel", "use", "own"]).code, 0);
    assert_eq!(listed(&proa), [format!("own {release} yes")]);
    let default = run(&proa, &[], &["uname", "-r"]);
    assert_eq!((default.code, default.stdout.trim()), (0, release.as_str()), "{default:?}");
    let refused = proa.run(&["kernel", "rm", "own"]);
    assert!(refused.code != 0 && refused.stderr.contains("is the default"), "{refused:?}");

    assert_eq!(proa.run(&["kernel", "use", "auto"]).code, 0);
    let create =
        ["create", "--name", "vm", "--isolation", "vm", "--network", "none", "--kernel", "own", "busybox"];
    assert_eq!(proa.run(&create).code, 0);
    let refused = proa.run(&["kernel", "rm", "own"]);
    assert!(refused.code != 0 && refused.stderr.contains("instance vm boots kernel own"), "{refused:?}");
    assert_eq!(proa.run(&["rm", "vm"]).code, 0);
    let removed = proa.run(&["kernel", "rm", "own"]);
    assert_eq!((removed.code, removed.stdout.as_str()), (0, "own\n"), "{removed:?}");
    assert!(listed(&proa).is_empty());
}

#[test]
fn what_is_no_kernel_and_what_is_not_there_is_told() {
    let (proa, empty) = (proa(), tempfile::tempdir().unwrap());
    let cases: &[(&[&str], &str)] = &[
        (&["kernel", "add", "x1", "/etc/passwd"], "neither a vmlinux nor a bzImage"),
        (&["kernel", "add", "x1", "/no/such"], "missing kernel /no/such"),
        (&["kernel", "add", "../x", "/etc/passwd"], "invalid"),
        (&["kernel", "add", "auto", "/etc/passwd"], "no name"),
        (&["kernel", "use", "nobody"], "no kernel is called nobody"),
        (&["kernel", "rm", "nobody"], "no kernel is called nobody"),
        (&["kernel", "build", "--source", text(empty.path())], "make failed"),
        (
            &["run", "--isolation", "vm", "--kernel", "nobody", "busybox", "true"],
            "no kernel is called nobody",
        ),
        (&["run", "--isolation", "vm", "--kernel-arg", "a b", "busybox", "true"], "one word"),
        (&["run", "--kernel-arg", "a", "busybox", "true"], "use --isolation vm"),
    ];
    for (line, expected) in cases {
        let output = proa.run(line);
        assert!(output.code != 0 && output.stderr.contains(expected), "{line:?}: {output:?}");
        // A build tells what it does before it tells why it does not.
        let lines = if line[1] == "build" { 4 } else { 2 };
        assert!(output.stderr.lines().count() <= lines, "{line:?}: {output:?}");
    }
    let left = fs::read_dir(proa.root().join("vm/kernels")).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = left.filter(|name| name.to_string_lossy().starts_with(".build-")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn pruning_takes_what_nothing_needs_and_guests_start_as_before() {
    let (proa, scratch) = (proa(), tempfile::tempdir().unwrap());
    let (image, modules, release) = kernel_with_modules(&proa, scratch.path());
    assert_eq!(proa.run(&["kernel", "add", "own", "--modules", text(&modules), text(&image)]).code, 0);
    let store = proa.root().join("vm");
    let own: String = fs::read_to_string(store.join("kernels/named/own")).unwrap();
    let format = own.split("\"directory\": \"").nth(1).unwrap().split('-').next().unwrap().to_owned();
    let keep = |name: &str, origin: &str| {
        let directory = store.join("kernels").join(name);
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("image"), [7; 8192]).unwrap();
        let info = format!(r#"{{"origin":"{origin}","release":"1","modules":[],"share_modules":[]}}"#);
        fs::write(directory.join("kernel.json"), info).unwrap();
    };
    let gone = [format!("kernels/{format}-named-0123456789abcdef"), "kernels/1-linux-image-1".into()];
    keep(&gone[0]["kernels/".len()..], "/no/such/vmlinux");
    keep(&gone[1]["kernels/".len()..], "linux-image-1");
    fs::write(store.join("initramfs/0123456789abcdef.cpio"), "of another agent").unwrap();
    fs::write(store.join("disks/1-ext4-33554432.img"), "old").unwrap();
    let asked = proa.run(&["kernel", "prune"]);
    assert!(asked.code == 125 && asked.stderr.contains("--force"), "{asked:?}");

    let pruned = proa.ok(&["kernel", "prune", "-f"]);
    let lines: Vec<&str> = pruned.lines().collect();
    assert_eq!(lines[0], "Deleted Kernels:", "{pruned}");
    for name in gone
        .iter()
        .map(String::as_str)
        .chain(["initramfs/0123456789abcdef.cpio", "disks/1-ext4-33554432.img"])
    {
        assert!(lines.contains(&name) && !store.join(name).exists(), "{name}: {pruned}");
    }
    let last = lines.last().unwrap();
    assert!(last.starts_with("Total reclaimed space: ") && !last.ends_with(" 0B"), "{pruned}");
    assert_eq!(listed(&proa), [format!("own {release}")]);
    assert_eq!(proa.ok(&["kernel", "prune", "-f"]), "Total reclaimed space: 0B");
    for options in [&[][..], &["--kernel", "own"]] {
        let guest = run(&proa, options, &["uname", "-r"]);
        assert_eq!((guest.code, guest.stdout.trim()), (0, release.as_str()), "{guest:?}");
    }
    // What they have needed is needed.
    assert_eq!(proa.ok(&["system", "prune", "-f"]), "Total reclaimed space: 0B");
}
