//! Docker's options that Proa does not have: refused with the reason, never ignored.

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::error::Failure;

/// Options by what they need.
const LATER: &[(&str, &[&str])] = &[
    ("links, which user-defined networks replace", &["link", "link-local-ip"]),
    ("device plug-ins", &["gpus"]),
    ("other runtimes", &["runtime", "storage-opt"]),
];
/// What is already so, or changes nothing here.
const HARMLESS: &[&str] = &["disable-content-trust"];

/// Which of them were given.
#[derive(Debug, Clone, Default)]
pub(super) struct LaterFlags {
    given: Vec<(&'static str, &'static str)>,
}

impl LaterFlags {
    pub(super) fn refuse(&self) -> Result<(), Failure> {
        match self.given.first() {
            None => Ok(()),
            Some((flag, what)) => {
                Err(Failure::usage(format!("--{flag} needs {what}, which Proa does not have yet"))
                    .with_hint("COMPATIBILITY.md lists what there is"))
            }
        }
    }
}

impl clap::FromArgMatches for LaterFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut given = Vec::new();
        for (what, flags) in LATER {
            for flag in *flags {
                if matches.value_source(flag) == Some(clap::parser::ValueSource::CommandLine) {
                    given.push((*flag, *what));
                }
            }
        }
        Ok(Self { given })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl clap::Args for LaterFlags {
    fn augment_args(command: Command) -> Command {
        let flags = LATER.iter().flat_map(|(_, flags)| flags.iter());
        let command = flags.fold(command, |command, flag| {
            let arg = Arg::new(*flag).long(*flag).hide(true);
            command.arg(arg.action(ArgAction::Append))
        });
        HARMLESS.iter().fold(command, |command, flag| {
            command.arg(Arg::new(*flag).long(*flag).hide(true).action(ArgAction::SetTrue))
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}
