//! kill -9 of our own processes at random moments: state is repaired, nothing is lost, nothing stays.

use std::fs;
use std::io::Read;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::harness::{Proa, Registry};

/// A small generator: the moments must differ from run to run, and a failing run must be told by its seed.
pub struct Dice(u64);

impl Dice {
    /// Says its seed.
    pub fn new() -> Self {
        let mut bytes = [0; 8];
        fs::File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
        let seed = u64::from_le_bytes(bytes) | 1;
        println!("seed {seed}");
        Self(seed)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// Which of our processes dies.
#[derive(Debug, Clone, Copy)]
enum Victim {
    Cli,
    Monitor,
    Both,
}

fn start(proa: &Proa, arguments: &[&str]) -> Child {
    let mut command = proa.command(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    // It may be gone already, which is one of the moments to try.
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

/// Starts a command, kills `victim` after a random time, and waits for the command to end.
fn strike(proa: &Proa, dice: &mut Dice, arguments: &[&str], victim: Victim, longest_us: u64) {
    let mut child = start(proa, arguments);
    let moment = Instant::now() + Duration::from_micros(dice.below(longest_us));
    while Instant::now() < moment && child.try_wait().unwrap().is_none() {
        std::hint::spin_loop();
    }
    if matches!(victim, Victim::Cli | Victim::Both) {
        kill(child.id());
    }
    if matches!(victim, Victim::Monitor | Victim::Both) {
        proa.monitors().into_iter().for_each(kill);
    }
    child.wait().unwrap();
}

fn assert_sound(proa: &Proa, what: &str) {
    let check = proa.run(&["system", "check", "--repair"]);
    assert_eq!(check.code, 0, "{what}: {check:?}");
    // An instance whose command was killed may end, and be removed by its monitor, at this very moment.
    // On a busy host a killed monitor may die, and leave what is to be repaired, only after the first look.
    proa.wait_for(&format!("a sound state: {what}"), || {
        proa.run(&["system", "check", "--repair"]).code == 0 && proa.run(&["system", "check"]).code == 0
    });
    let image = proa.run(&["image", "inspect", "busybox"]);
    assert_eq!(image.code, 0, "{what}: the image is lost: {image:?}");
}

fn storm(level: &str, rounds: usize, longest_us: u64) {
    let proa = Proa::with_busybox();
    let mut dice = Dice::new();
    let keep = proa.run(&["create", "--isolation", level, "--name", "keep", "busybox", "true"]);
    assert_eq!(keep.code, 0, "{keep:?}");
    for round in 0..rounds {
        let victim = [Victim::Cli, Victim::Monitor, Victim::Both][dice.below(3) as usize];
        let name = format!("round-{round}");
        let run = ["run", "--rm", "--isolation", level, "--name", &name, "busybox"];
        match dice.below(4) {
            0 => strike(
                &proa,
                &mut dice,
                &["create", "--isolation", level, "--name", &name, "busybox"],
                victim,
                longest_us,
            ),
            1 => strike(&proa, &mut dice, &[&run[..], &["true"]].concat(), victim, longest_us),
            2 => strike(&proa, &mut dice, &[&run[..], &["sleep", "0.005"]].concat(), victim, longest_us),
            _ => {
                let detached = proa.run(&[
                    "run",
                    "-d",
                    "--isolation",
                    level,
                    "--name",
                    &name,
                    "busybox",
                    "sleep",
                    "1000",
                ]);
                assert_eq!(detached.code, 0, "{detached:?}");
                strike(&proa, &mut dice, &["stop", "-t", "0", &name], victim, longest_us);
            }
        }
        if round % 10 == 9 || level == "vm" {
            assert_sound(&proa, &format!("round {round}, {victim:?}"));
        }
        // What survived is removed by its name, or was never made: both are sound.
        let removed = proa.run(&["rm", "-f", &name]);
        assert_eq!(removed.code, 0, "round {round}, {victim:?}: {removed:?}");
    }
    assert_sound(&proa, "the end");
    assert_eq!(proa.run(&["start", "-a", "keep"]).code, 0, "the instance made first still starts");
    assert_eq!(proa.run(&["rm", "keep"]).code, 0);
    let left = proa.run(&["ps", "-aq"]);
    assert_eq!(left.stdout, "", "{left:?}");
    proa.assert_nothing_left();
}

#[test]
fn containers_survive_two_hundred_kills() {
    storm("container", 200, 20_000);
}

#[test]
fn what_is_just_being_started_can_be_removed() {
    let proa = Proa::with_busybox();
    let mut dice = Dice::new();
    for round in 0..40 {
        let name = format!("round-{round}");
        let created = proa.run(&["create", "--name", &name, "busybox", "sleep", "1000"]);
        assert_eq!(created.code, 0, "{created:?}");
        let mut starting = start(&proa, &["start", &name]);
        std::thread::sleep(Duration::from_micros(dice.below(20_000)));
        let begun = Instant::now();
        let removed = proa.run(&["rm", "-f", &name]);
        assert_eq!(removed.code, 0, "round {round}: {removed:?}");
        assert!(begun.elapsed() < Duration::from_secs(30), "round {round}: {:?}", begun.elapsed());
        starting.wait().unwrap();
    }
    let left = proa.run(&["ps", "-aq"]);
    assert_eq!(left.stdout, "", "{left:?}");
    proa.assert_nothing_left();
}

#[test]
fn files_on_their_way_out_go_with_whoever_comes_next() {
    let proa = Proa::with_busybox();
    let aside = proa.root().join("removing");
    let is_empty = || fs::read_dir(&aside).unwrap().next().is_none();
    proa.ok(&["run", "--rm", "busybox", "true"]);
    assert_eq!(proa.ok(&["ps", "-aq"]), "");
    proa.wait_for("the monitor to remove the files", is_empty);
    // As of a process that was killed there.
    let left = || fs::create_dir_all(aside.join("ab12/upper/etc")).unwrap();
    left();
    let check = proa.run(&["system", "check"]);
    assert!(check.code == 1 && check.stdout.contains("left of an instance"), "{check:?}");
    proa.ok(&["system", "check", "--repair"]);
    assert!(is_empty());
    left();
    proa.ok(&["create", "--name", "next", "busybox", "true"]);
    proa.ok(&["rm", "next"]);
    assert!(is_empty());
}

#[test]
fn machines_survive_kills() {
    storm("vm", 12, 3_000_000);
}

#[test]
fn pulls_survive_kills() {
    let proa = Proa::with_busybox();
    let registry = Registry::start();
    let reference = registry.push(&proa, "busybox", "team/app:1");
    let mut dice = Dice::new();
    for round in 0..60 {
        strike(&proa, &mut dice, &["pull", "-q", &reference], Victim::Cli, 80_000);
        if round % 6 == 5 {
            assert_sound(&proa, &format!("round {round}"));
            // The name may or may not be there; the layers it shares with `busybox` must be.
            proa.run(&["rmi", &reference]);
            assert_eq!(proa.run(&["run", "--rm", "busybox", "true"]).code, 0);
        }
    }
    let pull = proa.run(&["pull", "-q", &reference]);
    assert_eq!(pull.code, 0, "{pull:?}");
    assert_sound(&proa, "the end");
}

/// Volumes: made, filled, claimed and removed under kills. One that is there is whole or empty, and one that an instance
/// has is never lost.
#[test]
fn volumes_survive_kills() {
    let proa = Proa::with_busybox();
    let mut dice = Dice::new();
    let run = |arguments: &[&str]| {
        let output = proa.run(arguments);
        assert_eq!(output.code, 0, "{arguments:?}: {output:?}");
        output.stdout
    };
    let applets = run(&["run", "--rm", "busybox", "sh", "-c", "ls -A /bin | wc -l"]);
    run(&["create", "--name", "keeper", "-v", "kept:/data", "-v", "/anonymous", "busybox", "true"]);
    let kept = run(&["volume", "ls", "-q"]);
    for round in 0..60 {
        let victim = [Victim::Cli, Victim::Monitor, Victim::Both][dice.below(3) as usize];
        let what = format!("round {round}, {victim:?}");
        match dice.below(5) {
            0 => strike(&proa, &mut dice, &["volume", "create", "made"], Victim::Cli, 15_000),
            1 => strike(
                &proa,
                &mut dice,
                &["volume", "create", "--opt", "size=4m", "made"],
                Victim::Cli,
                40_000,
            ),
            2 => strike(&proa, &mut dice, &["volume", "prune", "-a", "-f"], Victim::Cli, 20_000),
            3 => strike(
                &proa,
                &mut dice,
                &[
                    "run",
                    "--rm",
                    "--name",
                    "struck",
                    "-v",
                    "/anonymous",
                    "-v",
                    "made:/bin",
                    "busybox",
                    "true",
                ],
                victim,
                80_000,
            ),
            _ => {
                run(&["volume", "create", "made"]);
                strike(&proa, &mut dice, &["volume", "rm", "made"], Victim::Cli, 15_000);
            }
        }
        // One that was killed before it ran is there to be started.
        run(&["rm", "-f", "-v", "struck"]);
        if round % 6 == 5 {
            assert_sound(&proa, &what);
            run(&["volume", "prune", "-a", "-f"]);
            assert_eq!(run(&["volume", "ls", "-q"]), kept, "{what}");
        }
        // Whatever was cut short, whoever uses it next finds all of the image's files.
        let seen = proa.run(&["run", "--rm", "-v", "made:/bin", "busybox", "sh", "-c", "ls -A /bin | wc -l"]);
        assert_eq!((seen.code, &seen.stdout), (0, &applets), "{what}: {seen:?}");
        run(&["volume", "rm", "made"]);
    }
    assert_sound(&proa, "the end");
    run(&["rm", "-v", "keeper"]);
    run(&["volume", "rm", "kept"]);
    let left =
        std::fs::read_dir(proa.root().join("volumes")).unwrap().flatten().map(|entry| entry.file_name());
    assert_eq!(left.collect::<Vec<_>>(), Vec::<std::ffi::OsString>::new());
    proa.assert_nothing_left();
}

/// An instance that has ended and goes by itself has its volumes until whoever sees to that has done it.
#[test]
fn rm_waits_for_what_goes_by_itself() {
    let proa = Proa::with_busybox();
    let id =
        proa.ok(&["run", "-d", "--rm", "--name", "brief", "-v", "its:/data", "busybox", "sleep", "1000"]);
    proa.monitors().into_iter().for_each(kill);
    proa.wait_for("the end of the monitor", || proa.monitors().is_empty());
    // What its monitor would have written, and a lock that it still holds.
    let state = proa.root().join("instances").join(&id).join("state.json");
    let text = fs::read_to_string(&state).unwrap();
    let mut ended: serde_json::Value = serde_json::from_str(&text).unwrap();
    ended["status"] = "exited".into();
    fs::write(&state, ended.to_string()).unwrap();
    let lock = fs::File::open(lock_of(&id)).unwrap();
    let take = || rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_ok();
    proa.wait_for("the lock of the monitor, which has its descriptors a moment longer", take);
    let mut removing = start(&proa, &["rm", "-f", "brief"]);
    for _ in 0..20 {
        proa.ok(&["ps", "-aq"]);
        assert!(removing.try_wait().unwrap().is_none(), "it has not waited");
    }
    drop(lock);
    assert!(removing.wait().unwrap().success());
    proa.ok(&["volume", "rm", "its"]);
}

/// The lock of an instance's monitor.
fn lock_of(id: &str) -> std::path::PathBuf {
    let roots = fs::read_dir("/run").unwrap().map(|entry| entry.unwrap().path());
    let lock = |root: std::path::PathBuf| root.join("instances").join(id).join("monitor.lock");
    roots.map(lock).find(|path| path.exists()).unwrap()
}

/// Who died while it made a volume, or removed one, may have left its directory without a record.
#[test]
fn what_a_killed_maker_left_is_no_volume() {
    let proa = Proa::with_busybox();
    let litter = proa.root().join("volumes/made");
    fs::create_dir_all(litter.join("_data")).unwrap();
    fs::write(litter.join("_data/file"), "nobody's").unwrap();
    assert_eq!(proa.ok(&["volume", "ls", "-q"]), "");
    let seen =
        proa.ok(&["run", "--rm", "-v", "made:/data", "busybox", "sh", "-c", "ls /data; touch /data/mine"]);
    assert_eq!((seen.as_str(), fs::read_dir(litter.join("_data")).unwrap().count()), ("", 1));
    assert_sound(&proa, "litter");
    proa.ok(&["volume", "rm", "made"]);
}

/// Many instances that name one new volume at once, beside those that remove what nobody has.
#[test]
fn a_volume_is_filled_once_for_many() {
    let proa = Proa::with_busybox();
    let applets = proa.ok(&["run", "--rm", "busybox", "sh", "-c", "ls -A /bin | wc -l"]);
    let run = ["run", "--rm", "-v", "one:/bin", "-v", "/other", "busybox", "sh", "-c", "ls -A /bin | wc -l"];
    for _ in 0..5 {
        let running: Vec<_> = (0..6).map(|_| proa.spawn(&run)).collect();
        let pruning = proa.spawn(&["volume", "prune", "-a", "-f"]);
        for command in running {
            let output = command.finish();
            assert_eq!((output.code, output.stdout.trim_end()), (0, applets.as_str()), "{output:?}");
        }
        assert_eq!(pruning.finish().code, 0);
        proa.ok(&["volume", "prune", "-a", "-f"]);
        assert_eq!(proa.ok(&["volume", "ls", "-q"]), "");
    }
    assert_sound(&proa, "the end");
}

/// Machines of disks of their own: made, started, kept and brought back under kills.
#[test]
fn disks_of_machines_survive_kills() {
    let proa = Proa::with_busybox();
    let mut dice = Dice::new();
    let scratch = tempfile::tempdir_in("/var/tmp").unwrap();
    let disk = scratch.path().join("disk.img");
    fs::write(&disk, vec![7; 1 << 20]).unwrap();
    let image = scratch.path().join("disk.qcow2");
    let convert = ["convert", "-O", "qcow2", disk.to_str().unwrap(), image.to_str().unwrap()];
    assert!(std::process::Command::new("qemu-img").args(convert).status().unwrap().success());
    let create = |name| ["machine", "create", "--disk", image.to_str().unwrap(), "-m", "64m", name];
    proa.ok(&create("keep"));
    proa.ok(&["machine", "snapshot", "create", "keep", "first"]);
    let id = proa.ok(&["inspect", "--format", "{{.Id}}", "keep"]);
    let media = proa.root().join("instances").join(id).join("machine/disk0.img");
    for round in 0..24 {
        let victim = [Victim::Cli, Victim::Monitor, Victim::Both][dice.below(3) as usize];
        match dice.below(4) {
            0 => strike(&proa, &mut dice, &create("struck"), Victim::Cli, 200_000),
            1 => strike(
                &proa,
                &mut dice,
                &["machine", "snapshot", "create", "keep", "more"],
                Victim::Cli,
                30_000,
            ),
            2 => strike(
                &proa,
                &mut dice,
                &["machine", "snapshot", "restore", "keep", "first"],
                Victim::Cli,
                30_000,
            ),
            _ => strike(&proa, &mut dice, &["start", "keep"], victim, 300_000),
        }
        assert_sound(&proa, &format!("round {round}, {victim:?}"));
        proa.wait_for("its monitor to be gone", || {
            proa.run(&["kill", "keep"]);
            proa.run(&["machine", "snapshot", "rm", "keep", "more"]).stderr.find("running").is_none()
        });
        assert!(fs::read(&media).unwrap() == fs::read(&disk).unwrap(), "round {round}");
        let removed = proa.run(&["rm", "-f", "struck"]);
        assert_eq!(removed.code, 0, "round {round}: {removed:?}");
    }
    proa.ok(&["start", "keep"]);
    proa.ok(&["rm", "-f", "keep"]);
    proa.assert_nothing_left();
}
