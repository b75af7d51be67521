//! Attacks on `cp` from inside an instance, which runs and moves what is being copied.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, Mode, OFlags, RenameFlags, openat, renameat_with};

use crate::harness::Proa;

/// Copies in each direction while a link and a directory change places; `proa-runtime` tries it thousands of
/// times on the same code, without processes around it.
const RACES: usize = 150;

struct Victim {
    proa: Proa,
    /// A directory of the host, whose path means nothing inside.
    host: tempfile::TempDir,
}

impl Victim {
    fn new(flags: &[&str], prepare: &str) -> Self {
        let victim = Self { proa: Proa::with_busybox(), host: tempfile::tempdir_in("/var/tmp").unwrap() };
        fs::write(victim.host.path().join("secret"), "the host's\n").unwrap();
        let script = format!("{prepare}; touch /ready; exec sleep 1000");
        let run = ["run", "-d", "--name", "victim"];
        victim.ok(&[&run, flags, &["busybox", "sh", "-c", &script]].concat());
        victim.proa.wait_for("the instance", || {
            victim.proa.run(&["exec", "victim", "test", "-e", "/ready"]).code == 0
        });
        victim
    }

    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.proa.run(arguments);
        assert_eq!(output.code, 0, "proa {arguments:?}: {output:?}");
        output.stdout.trim_end().to_owned()
    }

    fn at(&self, name: &str) -> String {
        self.host.path().join(name).to_str().unwrap().to_owned()
    }

    /// Runs `work` while two names in the instance's `directory` change places all the time, as a process inside
    /// could make them.
    fn racing(&self, directory: &str, names: [&str; 2], work: impl FnOnce()) {
        let pid = self.ok(&["inspect", "--format", "{{.State.Pid}}", "victim"]);
        let path = format!("/proc/{pid}/root{directory}");
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat(CWD, path, flags, Mode::empty()).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    renameat_with(&directory, names[0], &directory, names[1], RenameFlags::EXCHANGE).unwrap();
                }
            });
            // A failure must still let the other thread end.
            let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            stop.store(true, Ordering::Relaxed);
            worked.unwrap();
        });
    }

    fn assert_host_is_whole(&self, names: &[&str]) {
        assert_eq!(fs::read_to_string(self.at("secret")).unwrap(), "the host's\n");
        let mut found: Vec<String> = fs::read_dir(self.host.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        found.sort();
        assert_eq!(found, names);
    }
}

/// CVE-2018-15664: a directory on the way is exchanged for a link to a path of the host.
#[test]
fn a_link_that_changes_places_leads_nowhere_outside() {
    let host = "/race/way";
    let victim = Victim::new(&[], "mkdir -p /race/way; echo inside > /race/way/secret");
    victim.ok(&["exec", "victim", "ln", "-s", victim.host.path().to_str().unwrap(), "/race/other"]);
    let outside = tempfile::tempdir().unwrap();
    let (out, tree) = (outside.path().join("copy"), outside.path().join("tree"));
    let gift = outside.path().join("gift");
    fs::write(&gift, "from outside\n").unwrap();
    let holds_secret = |path: &Path| fs::read_to_string(path).is_ok_and(|text| text.contains("the host's"));
    victim.racing("/race", ["way", "other"], || {
        for _ in 0..RACES {
            // Whether it finds the file depends on the moment.
            victim.proa.run(&["cp", &format!("victim:{host}/secret"), out.to_str().unwrap()]);
            assert!(!holds_secret(&out));
            victim.proa.run(&["cp", "-L", &format!("victim:{host}"), tree.to_str().unwrap()]);
            // What became a link after it was looked at is copied as one, which nobody has followed.
            if tree.is_symlink() {
                fs::remove_file(&tree).unwrap();
            }
            assert!(!holds_secret(&tree.join("secret")));
            victim.proa.run(&["cp", gift.to_str().unwrap(), &format!("victim:{host}/")]);
        }
    });
    victim.assert_host_is_whole(&["secret"]);
    victim.ok(&["rm", "-f", "victim"]);
}

/// CVE-2026-42306: the way to a volume is exchanged while files are copied, and again while the instance is
/// stopped and its volumes are mounted for the copy alone.
#[test]
fn the_way_to_a_volume_leads_nowhere_outside() {
    let volume = tempfile::tempdir().unwrap();
    fs::write(volume.path().join("file"), "volume\n").unwrap();
    let bind = format!("{}:/data/volume", volume.path().to_str().unwrap());
    let victim = Victim::new(&["-v", &bind], "true");
    victim.ok(&["exec", "victim", "ln", "-s", victim.host.path().to_str().unwrap(), "/trap"]);
    let outside = tempfile::tempdir().unwrap();
    let out = outside.path().join("copy");
    let gift = outside.path().join("gift");
    fs::write(&gift, "from outside\n").unwrap();
    victim.racing("/", ["data", "trap"], || {
        for _ in 0..RACES {
            victim.proa.run(&["cp", "victim:/data/volume/file", out.to_str().unwrap()]);
            victim.proa.run(&["cp", gift.to_str().unwrap(), "victim:/data/volume/gift"]);
            victim.proa.run(&["cp", gift.to_str().unwrap(), "victim:/data/gift"]);
        }
    });
    victim.assert_host_is_whole(&["secret"]);
    // Leave the trap in the volume's way, and stop.
    let swap = "test -L /data || { mv /data /kept && mv /trap /data; }; test -L /data";
    victim.ok(&["exec", "victim", "sh", "-c", swap]);
    victim.ok(&["stop", "-t", "0", "victim"]);
    victim.proa.run(&["cp", gift.to_str().unwrap(), "victim:/data/volume/late"]);
    victim.proa.run(&["cp", "victim:/data", outside.path().join("late").to_str().unwrap()]);
    victim.assert_host_is_whole(&["secret"]);
    assert!(volume.path().join("file").exists());
    victim.ok(&["rm", "victim"]);
}

/// CVE-2026-41567, CVE-2019-14271: programs and libraries of the instance are never run for a copy.
#[test]
fn nothing_of_the_instance_is_run_for_a_copy() {
    let names = "tar gzip gunzip xz unxz zstd pigz unpigz cp ls sh cat chroot docker-untar";
    let prepare = format!(
        "mkdir -p /root/tree /usr/bin /sbin /lib/x86_64-linux-gnu; echo text > /root/tree/file; \
         printf '#!/bin/busybox sh\\n/bin/busybox touch /run-by-copy\\n' > /evil; chmod 755 /evil; \
         for name in {names}; do /bin/busybox rm -f /bin/$name; \
           for dir in /bin /usr/bin /sbin; do /bin/busybox cp /evil $dir/$name; done; done; \
         /bin/busybox cp /evil /lib/x86_64-linux-gnu/libnss_files.so.2"
    );
    let victim = Victim::new(&["--entrypoint", "/bin/busybox"], "true");
    victim.ok(&["exec", "victim", "/bin/busybox", "sh", "-c", &prepare]);
    let outside = tempfile::tempdir().unwrap();
    let at = |name: &str| outside.path().join(name).to_str().unwrap().to_owned();
    victim.ok(&["cp", "victim:/root/tree", &at("copy")]);
    assert_eq!(fs::read_to_string(at("copy/file")).unwrap(), "text\n");
    victim.ok(&["cp", &at("copy"), "victim:/root/again"]);
    let tar = victim.proa.run(&["cp", "victim:/root/tree", "-"]);
    assert_eq!(tar.code, 0, "{tar:?}");
    for packer in ["cat", "gzip -c", "xz -c", "zstd -qc"] {
        let script = format!("tar -C {} -c copy | {packer}", outside.path().display());
        let mut command = victim.proa.command(&["cp", "-", "victim:/root/"]);
        let packed = std::process::Command::new("sh").args(["-c", &script]).output().unwrap().stdout;
        command.stdin(std::process::Stdio::piped());
        // Compressed streams may be refused; what counts is who reads them.
        victim.proa.run_command(command, &packed);
    }
    victim.ok(&["diff", "victim"]);
    victim.ok(&["top", "victim"]);
    assert_ne!(victim.proa.run(&["exec", "victim", "/bin/busybox", "test", "-e", "/run-by-copy"]).code, 0);
    victim.ok(&["rm", "-f", "victim"]);
}

/// Names from inside command no terminal, and devices stay inside.
#[test]
fn hostile_names_and_devices_stay_harmless() {
    let names = "mkdir -p /root/tree; cd /root/tree; echo x > \"$(printf 'clear\\033[2J')\"; \
                 mknod \"$(printf 'disk\\033]0;owned\\007')\" b 8 0; mknod null c 1 3";
    let victim = Victim::new(&[], names);
    let outside = tempfile::tempdir().unwrap();
    let copy = outside.path().join("copy");
    let copied = victim.proa.run(&["cp", "victim:/root/tree", copy.to_str().unwrap()]);
    assert_eq!(copied.code, 0, "{copied:?}");
    assert!(copied.stderr.contains("left out the device"), "{copied:?}");
    let differs = victim.proa.run(&["diff", "victim"]);
    assert!(differs.stdout.contains("clear"), "{differs:?}");
    let told = victim.proa.run(&["exec", "victim", "sh", "-c", ": \"$(printf '\\033[2J')\""]);
    assert_eq!(told.code, 0);
    victim.proa.run(&["exec", "victim", "no\x1b[2Jsuch"]);
    let events = victim.proa.run(&["events", "--since", "1", "--until", "0s"]);
    for output in [&copied, &differs, &events] {
        let clean = |text: &str| !text.chars().any(|c| c.is_control() && c != '\n');
        assert!(clean(&output.stdout) && clean(&output.stderr), "{output:?}");
    }
    assert_eq!(fs::read_dir(&copy).unwrap().count(), 1);
    victim.ok(&["rm", "-f", "victim"]);
}
