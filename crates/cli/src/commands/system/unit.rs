//! The systemd unit that starts what is to run at the host's boot, and ends everything as the host goes down.
//!
//! Root's is a unit of the system, an ordinary user's one of the user's manager. Each state directory has its own.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::context::{self, Context};
use crate::error::{Failure, Outcome};

/// systemd makes this where it runs.
const RUNNING: &str = "/run/systemd/system";
const SYSTEM_UNITS: &str = "/etc/systemd/system";
/// What systemd runs there when it reads its units makes others; an ordinary user's manager has no such place.
const GENERATORS: &str = "/etc/systemd/system-generators";
const LINGER: &str = "/var/lib/systemd/linger";

/// A unit's place and words.
struct Unit {
    name: String,
    path: PathBuf,
    text: String,
    /// Root's generator: its place and words.
    generator: Option<(PathBuf, String)>,
    of_user: bool,
}

impl Unit {
    fn of(context: &Context) -> Result<Self, Failure> {
        let paths = &context.engine()?.paths;
        let of_user = context.is_user();
        let directory = if of_user { context::user_units()? } else { PathBuf::from(SYSTEM_UNITS) };
        // As that of what does not survive a boot: one for each state directory.
        let base = paths.run.file_name().unwrap_or_default().to_string_lossy();
        let name = format!("{base}.service");
        let program = context::programs()?.own;
        let generator = (!of_user).then(|| {
            let place = Path::new(GENERATORS).join(format!("{base}-generator"));
            (place, generator(&program, &paths.root))
        });
        let text = text(&program, &paths.root, of_user);
        Ok(Self { path: directory.join(&name), name, text, generator, of_user })
    }

    /// Runs systemctl, which says itself what is wrong.
    fn systemctl(&self, arguments: &[&str]) -> Result<(), Failure> {
        let mut command = Command::new("systemctl");
        if self.of_user {
            command.arg("--user");
        }
        let status = command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).status();
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(Failure::new(format!("systemctl {}: {status}", arguments.join(" ")))),
            Err(error) => Err(Failure::new(format!("cannot run systemctl: {error}"))
                .with_hint("without systemd, have `proa system boot` run at the boot by other means")),
        }
    }

    fn reload(&self) -> Result<(), Failure> {
        if Path::new(RUNNING).is_dir() { self.systemctl(&["daemon-reload"]) } else { Ok(()) }
    }

    /// Writes a file whole or not at all.
    fn place(path: &Path, text: &str, mode: u32) -> Result<(), Failure> {
        let directory = path.parent().unwrap_or(Path::new("/"));
        std::fs::create_dir_all(directory).map_err(|error| Failure::io("make", directory, error))?;
        let fresh = path.with_extension("new");
        std::fs::write(&fresh, text)
            .and_then(|()| std::fs::set_permissions(&fresh, PermissionsExt::from_mode(mode)))
            .and_then(|()| std::fs::rename(&fresh, path))
            .map_err(|error| Failure::io("write", path, error))
    }

    fn check_now(&self, now: bool) -> Result<(), Failure> {
        if now && !Path::new(RUNNING).is_dir() {
            return Err(Failure::new("--now: systemd does not run here").with_hint("leave --now out"));
        }
        Ok(())
    }
}

/// Have what restart policies want started at the host's boot
#[derive(Debug, clap::Args)]
pub struct EnableArgs {
    /// Start it at once as well
    #[arg(long)]
    now: bool,
}

/// Runs `proa system enable`.
pub fn enable(context: &Context, args: &EnableArgs) -> Outcome {
    let unit = Unit::of(context)?;
    unit.check_now(args.now)?;
    Unit::place(&unit.path, &unit.text, 0o644)?;
    if let Some((path, text)) = &unit.generator {
        Unit::place(path, text, 0o755)?;
    }
    unit.reload()?;
    let mut arguments = vec!["enable", &unit.name];
    arguments.extend(args.now.then_some("--now"));
    unit.systemctl(&arguments)?;
    println!("{}", unit.path.display());
    if unit.of_user && !lingers() {
        context::notice(
            "your instances start when you log in and end when you log out; `loginctl enable-linger` has them \
             start at the boot and stay",
        );
    }
    Ok(0)
}

/// Whether the user's manager runs without the user being logged in.
fn lingers() -> bool {
    std::env::var_os("USER").is_some_and(|user| Path::new(LINGER).join(user).exists())
}

/// Undo `proa system enable`
#[derive(Debug, clap::Args)]
pub struct DisableArgs {
    /// End everything at once as well
    #[arg(long)]
    now: bool,
}

/// Runs `proa system disable`.
pub fn disable(context: &Context, args: &DisableArgs) -> Outcome {
    let unit = Unit::of(context)?;
    unit.check_now(args.now)?;
    if !unit.path.exists() {
        return Err(Failure::new(format!("there is no unit {}", unit.path.display())));
    }
    let mut arguments = vec!["disable", &unit.name];
    arguments.extend(args.now.then_some("--now"));
    unit.systemctl(&arguments)?;
    for path in [Some(&unit.path), unit.generator.as_ref().map(|(path, _)| path)].into_iter().flatten() {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Failure::io("remove", path, error));
            }
            _ => {}
        }
    }
    unit.reload()?;
    println!("{}", unit.path.display());
    Ok(0)
}

/// The dash has the unit stand though an instance did not start: else systemd would end all others as well.
fn text(program: &Path, root: &Path, of_user: bool) -> String {
    let (program, root) = (quoted(program), quoted(root));
    let (after, target) = if of_user {
        ("", "default.target")
    } else {
        ("Wants=network-online.target\nAfter=network-online.target local-fs.target\n", "multi-user.target")
    };
    format!(
        "[Unit]\nDescription=Proa instances in {root}\n{after}\n\
         [Service]\nType=oneshot\nRemainAfterExit=yes\nDelegate=yes\nTasksMax=infinity\nTimeoutStartSec=infinity\n\
         ExecStart=-{program} --root {root} system boot\nExecStop={program} --root {root} system stop\n\n\
         [Install]\nWantedBy={target}\n"
    )
}

/// Makes units of the files in `/etc/proa/units`. What is wrong with a file is in the journal.
fn generator(program: &Path, root: &Path) -> String {
    let word = |path: &Path| format!("'{}'", path.display().to_string().replace('\'', r"'\''"));
    format!("#!/bin/sh\nexec {} --root {} system generate \"$@\"\n", word(program), word(root))
}

/// A path as one word of a unit's command line.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let special = text.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    format!("\"{special}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_keeps_paths_whole() {
        let unit = text("/usr/bin/proa".as_ref(), "/srv/a b%\"$".as_ref(), false);
        assert!(
            unit.contains("ExecStart=-\"/usr/bin/proa\" --root \"/srv/a b%%\\\"$$\" system boot\n"),
            "{unit}"
        );
        assert!(unit.ends_with("WantedBy=multi-user.target\n"));
        assert!(text("/p".as_ref(), "/r".as_ref(), true).ends_with("WantedBy=default.target\n"));
    }
}
