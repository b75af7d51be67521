//! `run --rm busybox true` by an ordinary user, without a network and in the default one, against the same by root and
//! against the user's podman; and an ordinary user of the benchmarks'.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::measure::{Contender, interleave, output, percentile, print, run, time};
use crate::setup::{PODMAN_LIMITS, Setup, installed};

/// Who is to run it: an account with ranges in `/etc/subuid` and `/etc/subgid`.
const USER: &str = "PROA_BENCH_USER";
/// The account that the tests use too.
const DEFAULT_USER: &str = "proa-test";
/// Starts of which each is the first.
const FIRSTS: usize = 5;

/// An ordinary user with a home, sockets and programs of its own.
pub struct User {
    home: PathBuf,
    /// What makes a command the user's. Root's goes by the same way, so that it costs all alike.
    prefix: Vec<String>,
    root_prefix: Vec<String>,
    programs: PathBuf,
}

impl User {
    /// The one that is to be used; none, which is said, where there is no such account.
    pub fn find(setup: &Setup) -> Option<Self> {
        let name = std::env::var(USER).unwrap_or_else(|_| DEFAULT_USER.into());
        let user = Self::new(setup, &name);
        let complain = |error| eprintln!("bench: rootless is left out: {error:#} ({USER} names another)");
        user.map_err(complain).ok()
    }

    /// Where its store is.
    pub fn root(&self) -> String {
        self.home.join("proa").to_string_lossy().into_owned()
    }

    /// Imports the image `busybox` into its store.
    pub fn import(&self, setup: &Setup) -> Result<()> {
        self.run_proa(&["import", &setup.text("rootfs.tar"), "busybox"]).map(drop)
    }

    /// Runs a command of `proa` on its store.
    pub fn run_proa(&self, arguments: &[&str]) -> Result<String> {
        let argv = self.proa(false, &self.root(), arguments);
        output(&argv.iter().map(String::as_str).collect::<Vec<_>>())
    }

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
        for program in ["proa", "proa-monitor", "proa-agent", "proa-resolver"] {
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
    let Some(user) = User::find(setup) else { return Ok(()) };
    user.import(setup)?;
    let podman = installed("podman") && has_podman(setup, &user);
    let result = compare(setup, &user, rounds, &["--network", "none"], podman)
        .and_then(|()| compare(setup, &user, rounds, &[], podman))
        .and_then(|()| first(&user));
    // What the user's podman keeps running to hold its namespace.
    let migrated = if podman { run(&user.podman(&["system", "migrate"])) } else { Ok(()) };
    let stopped = user.run_proa(&["system", "stop"]).map(drop);
    result.and(migrated).and(stopped)
}

fn has_podman(setup: &Setup, user: &User) -> bool {
    let imported = run(&user.podman(&["import", "-q", &setup.text("rootfs.tar"), "busybox"]));
    imported.inspect_err(|error| eprintln!("bench: podman is left out: {error:#}")).is_ok()
}

fn compare(setup: &Setup, user: &User, rounds: usize, network: &[&str], podman: bool) -> Result<()> {
    let command = [&["run", "--rm"], network, &["busybox", "true"]].concat();
    let mut contenders = vec![
        Contender::of("proa, rootless", user.proa(false, &user.root(), &command)),
        Contender::of("proa, root", user.proa(true, &setup.text("proa"), &command)),
    ];
    if podman {
        let run = [&["run", "--rm"], network, &PODMAN_LIMITS, &["busybox", "true"]].concat();
        contenders.push(Contender::of("podman, rootless", user.podman(&run)));
    }
    interleave(&mut contenders, rounds)?;
    print(&format!("{}, by an ordinary user", command.join(" ")), &contenders);
    Ok(())
}

/// The first that the user runs in a network: the namespace of its networks has to be made, and pasta to be started.
fn first(user: &User) -> Result<()> {
    let mut times = Vec::new();
    for _ in 0..FIRSTS {
        user.run_proa(&["system", "stop"])?;
        times.push(time(&user.proa(false, &user.root(), &["run", "--rm", "busybox", "true"]))?);
    }
    println!(
        "{:<24} {:>10} {:>7.1} ms",
        "proa, after a stop",
        "",
        percentile(&times, 50).as_secs_f64() * 1e3
    );
    Ok(())
}

fn open_to_all(directory: &Path) -> Result<()> {
    fs::set_permissions(directory, fs::Permissions::from_mode(0o711)).map_err(Into::into)
}
