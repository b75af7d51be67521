//! `run --rm --network none busybox true` by an ordinary user, against the same by root and against the user's podman.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::measure::{Contender, interleave, output, print, run};
use crate::setup::{PODMAN_LIMITS, Setup, installed};

/// Who is to run it: an account with ranges in `/etc/subuid` and `/etc/subgid`.
const USER: &str = "PROA_BENCH_USER";
/// The account that the tests use too.
const DEFAULT_USER: &str = "proa-test";

/// An ordinary user with a home, sockets and programs of its own.
struct User {
    home: PathBuf,
    /// What makes a command the user's. Root's goes by the same way, so that it costs all alike.
    prefix: Vec<String>,
    root_prefix: Vec<String>,
    programs: PathBuf,
}

impl User {
    fn new(setup: &Setup, name: &str) -> Result<Self> {
        let id = |option| output(&["id", option, name]).with_context(|| format!("there is no user {name}"));
        let (uid, gid) = (id("-u")?, id("-g")?);
        let (home, programs) = (setup.path("home"), setup.path("bin"));
        for directory in [&home, &home.join("run")] {
            fs::create_dir_all(directory)?;
            fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?;
            chown(directory, Some(uid.parse()?), Some(gid.parse()?))?;
        }
        // The workspace may be where others cannot enter.
        open_to_all(setup.path("").as_path())?;
        fs::create_dir_all(&programs)?;
        let built = Path::new(&setup.proa).parent().context("no directory of programs")?;
        for program in ["proa", "proa-monitor", "proa-agent"] {
            fs::copy(built.join(program), programs.join(program))?;
        }
        let prefix = |uid: &str, gid: &str, home: &str, run: &str| {
            let ids = [format!("--reuid={uid}"), format!("--regid={gid}"), "--clear-groups".into()];
            let env = ["env".into(), format!("HOME={home}"), format!("XDG_RUNTIME_DIR={run}")];
            [&["setpriv".into()], &ids[..], &env[..]].concat()
        };
        let text = |path: &Path| path.to_string_lossy().into_owned();
        Ok(Self {
            prefix: prefix(&uid, &gid, &text(&home), &text(&home.join("run"))),
            root_prefix: prefix("0", "0", "/root", "/run"),
            home,
            programs,
        })
    }

    /// A command of `proa`, the user's or root's on the same kind of store.
    fn proa(&self, is_root: bool, root: &str, arguments: &[&str]) -> Vec<String> {
        let prefix = if is_root { &self.root_prefix } else { &self.prefix };
        let own = [self.programs.join("proa").to_string_lossy().into_owned(), "--root".into(), root.into()];
        let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        [&prefix[..], &own, &arguments].concat()
    }

    fn podman(&self, arguments: &[&str]) -> Vec<String> {
        let at = |name: &str| self.home.join(name).to_string_lossy().into_owned();
        let own = ["podman", "--root", &at("podman"), "--runroot", &at("run/podman")].map(String::from);
        let plain = ["--cgroup-manager", "cgroupfs"].map(String::from);
        let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        [&self.prefix[..], &own, &plain, &arguments].concat()
    }
}

/// Runs the comparison.
pub fn bench(setup: &Setup, rounds: usize) -> Result<()> {
    let name = std::env::var(USER).unwrap_or_else(|_| DEFAULT_USER.into());
    let user = match User::new(setup, &name) {
        Ok(user) => user,
        Err(error) => {
            eprintln!("bench: rootless is left out: {error:#} ({USER} names another)");
            return Ok(());
        }
    };
    let result = compare(setup, &user, rounds);
    let stopped = run(&user.proa(false, &user.home.join("proa").to_string_lossy(), &["system", "stop"]));
    result.and(stopped)
}

fn compare(setup: &Setup, user: &User, rounds: usize) -> Result<()> {
    let root = user.home.join("proa").to_string_lossy().into_owned();
    let tar = setup.text("rootfs.tar");
    run(&user.proa(false, &root, &["import", &tar, "busybox"]))?;
    let command = ["run", "--rm", "--network", "none", "busybox", "true"];
    let contender = |name: &str, argv| Contender { name: name.into(), argv, times: vec![] };
    let mut contenders = vec![
        contender("proa, rootless", user.proa(false, &root, &command)),
        contender("proa, root", user.proa(true, &setup.text("proa"), &command)),
    ];
    if installed("podman") {
        match run(&user.podman(&["import", "-q", &tar, "busybox"])) {
            Ok(()) => {
                let run = [&command[..4], &PODMAN_LIMITS, &command[4..]].concat();
                contenders.push(contender("podman, rootless", user.podman(&run)));
            }
            Err(error) => eprintln!("bench: podman is left out: {error:#}"),
        }
    }
    interleave(&mut contenders, rounds)?;
    print("run --rm --network none busybox true, by an ordinary user", &contenders);
    // What the user's podman keeps running to hold its namespace.
    if contenders.iter().any(|contender| contender.name.starts_with("podman")) {
        run(&user.podman(&["system", "migrate"]))?;
    }
    Ok(())
}

fn open_to_all(directory: &Path) -> Result<()> {
    fs::set_permissions(directory, fs::Permissions::from_mode(0o711)).map_err(Into::into)
}
