//! The command line, which the engine writes.

use std::ffi::OsString;
use std::path::PathBuf;

use proa_protocol::instance::is_id;

/// What the monitor is started for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mode {
    /// Run the instance.
    #[default]
    Run,
    /// Run it again after a monitor that was killed, if its state still says so when the lock is held.
    Again,
    /// Hold its root for work on its files; run nothing.
    Maintenance,
    /// Finish what a monitor that died left behind.
    Repair,
}

/// The parsed command line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Args {
    /// State directory.
    pub root: PathBuf,
    /// Runtime directory.
    pub run: PathBuf,
    /// Instance id; empty where the first client is to tell it.
    pub id: String,
    /// Whether standard output is the connected socket of the first client.
    pub client: bool,
    /// The guest agent; without it, it is looked for beside this program.
    pub agent: Option<PathBuf>,
    /// What for.
    pub mode: Mode,
}

impl Args {
    /// Reads `--root DIR --run DIR [--id ID] [--client] [--agent FILE] [--again | --maintenance | --repair]`, of which
    /// one, the id or the client, must be there.
    ///
    /// # Errors
    /// Says which argument is wrong.
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Self, String> {
        let mut parsed = Self::default();
        let mut args = args.into_iter();
        while let Some(name) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{} needs a value", name.display()));
            match name.to_str() {
                Some("--root") => parsed.root = value()?.into(),
                Some("--run") => parsed.run = value()?.into(),
                Some("--id") => parsed.id = text(value()?)?,
                Some("--agent") => parsed.agent = Some(value()?.into()),
                Some("--client") => parsed.client = true,
                Some("--again") => parsed.mode = Mode::Again,
                Some("--maintenance") => parsed.mode = Mode::Maintenance,
                Some("--repair") => parsed.mode = Mode::Repair,
                _ => return Err(format!("unknown argument {}", name.display())),
            }
        }
        if parsed.root.as_os_str().is_empty() || parsed.run.as_os_str().is_empty() {
            return Err("--root and --run are needed".into());
        }
        let told = parsed.client && parsed.mode == Mode::Run;
        if is_id(&parsed.id) || parsed.id.is_empty() && told {
            return Ok(parsed);
        }
        Err("--id needs an instance id".into())
    }
}

fn text(value: OsString) -> Result<String, String> {
    value.into_string().map_err(|value| format!("{} is not UTF-8", value.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, String> {
        Args::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn the_line_is_read() {
        let args = parse("--root /r --run /n --id ab12 --client --maintenance").unwrap();
        assert_eq!((args.id.as_str(), args.client, args.mode), ("ab12", true, Mode::Maintenance));
    }

    #[test]
    fn wrong_lines_are_refused() {
        assert_eq!(parse("--root /r --run /n --client").unwrap().id, "");
        for line in [
            "",
            "--root /r --run /n",
            "--root",
            "--root /r --run /n --id ../x",
            "--root /r --run /n --client --repair",
            "--what",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
