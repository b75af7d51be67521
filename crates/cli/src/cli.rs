//! Which command, and its arguments.
//!
//! Options before the command are global. A command's parser is built only when that command is called, so that
//! the number of commands costs nothing. For commands that run a program, options end where the first argument
//! that is none stands, as in Docker: what follows is the program's.

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::{ArgAction, ArgMatches, Command, FromArgMatches};

use crate::commands::{self, Entry, Group};
use crate::context::{Context, Globals};
use crate::error::{Failure, Outcome};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Commands that need neither the engine nor its user namespace.
const WITHOUT_STATE: &[&str] = &["version", "login", "logout"];

/// Runs the command line.
///
/// # Errors
/// The command failed.
pub fn run(arguments: Vec<OsString>) -> Outcome {
    let split = globals_end(&arguments);
    let (globals, rest) = arguments.split_at(split);
    let matches = match parse_matches(root_parser(), globals.to_vec(), false) {
        Ok(matches) => matches,
        Err(error) => return clap_failure(error, "proa --help"),
    };
    if matches.get_flag("version") {
        println!("Proa version {VERSION}");
        return Ok(0);
    }
    let globals = Globals::from_arg_matches(&matches).map_err(|error| Failure::usage(error.to_string()))?;
    let Some((name, rest)) = rest.split_first() else { return help() };
    if matches.get_flag("help") {
        return help();
    }
    dispatch(&Context::new(globals), commands::ALL, "proa", name, rest)
}

fn root_parser() -> Command {
    let root = Command::new("proa").no_binary_name(true).disable_help_flag(true).disable_version_flag(true);
    let switch = |name: &'static str| clap::Arg::new(name).long(name).action(ArgAction::SetTrue);
    let root = root
        .arg(switch("help").help("Print help"))
        .arg(switch("version").short('v').help("Print the version"));
    <Globals as clap::Args>::augment_args(root)
}

/// Where the command's name stands: after the options and their values.
fn globals_end(arguments: &[OsString]) -> usize {
    let mut at = 0;
    while let Some(argument) = arguments.get(at).and_then(|argument| argument.to_str()) {
        match argument {
            "--root" | "--config" | "--run" => at += 2,
            option if option.starts_with('-') => at += 1,
            _ => break,
        }
    }
    at.min(arguments.len())
}

fn dispatch(context: &Context, entries: &[Entry], path: &str, name: &OsString, rest: &[OsString]) -> Outcome {
    let text = name.to_string_lossy();
    if text == "help" && path == "proa" {
        return match rest.split_first() {
            Some((name, _)) => dispatch(context, entries, path, name, &["--help".into()]),
            None => help(),
        };
    }
    let found = entries.iter().find(|entry| entry.name == text || entry.aliases.contains(&text.as_ref()));
    let Some(entry) = found else { return Err(unknown(entries, path, &text)) };
    let path = format!("{path} {}", entry.name);
    if let Some(inner) = entry.inner {
        return match rest.split_first() {
            Some((name, rest)) if name != "--help" => dispatch(context, inner, &path, name, rest),
            _ => {
                print!("{}", group_help(&path, entry.about, inner));
                Ok(0)
            }
        };
    }
    let parser = Command::new(entry.name).bin_name(&path).no_binary_name(true).about(entry.about);
    // Given twice, an option has its last value, as in Docker.
    let parser = (entry.parser)(parser.disable_help_flag(true).args_override_self(true));
    // What follows an option that takes a value is the value, whatever it begins with, as in Docker.
    let parser = parser.mut_args(|arg| match arg.is_positional() || !arg.get_action().takes_values() {
        true => arg,
        false => arg.allow_hyphen_values(true),
    });
    let help = clap::Arg::new("help").long("help").action(ArgAction::Help).help("Print help");
    match parse_matches(parser.arg(help), rest.to_vec(), entry.runs_program) {
        Ok(matches) => {
            // Before anything asks what this process may do.
            if !WITHOUT_STATE.contains(&entry.name) {
                context.enter()?;
            }
            (entry.run)(context, &matches)
        }
        Err(error) => clap_failure(error, &format!("{path} --help")),
    }
}

/// Parses; where `runs_program`, options end at the first argument that is none.
pub fn parse_matches(
    parser: Command,
    mut arguments: Vec<OsString>,
    runs_program: bool,
) -> Result<ArgMatches, clap::Error> {
    if runs_program {
        let mut parser = parser;
        // Options made by derive are known once the parser is built.
        parser.build();
        let at = options_end(&parser, &arguments);
        if arguments.get(at).is_some_and(|argument| argument != "--") {
            arguments.insert(at, "--".into());
        }
        return parser.try_get_matches_from(arguments);
    }
    parser.try_get_matches_from(arguments)
}

fn options_end(parser: &Command, arguments: &[OsString]) -> usize {
    let takes_value = |found: Option<&clap::Arg>| found.is_some_and(|arg| arg.get_action().takes_values());
    let mut at = 0;
    while let Some(argument) = arguments.get(at).map(|argument| argument.to_string_lossy()) {
        if let Some(long) = argument.strip_prefix("--").filter(|long| !long.is_empty()) {
            let is_named = |arg: &&clap::Arg| {
                arg.get_long() == Some(long)
                    || arg.get_all_aliases().is_some_and(|names| names.contains(&long))
            };
            // With `=` the value is in the same argument.
            at += 1 + usize::from(!long.contains('=') && takes_value(parser.get_arguments().find(is_named)));
        } else if let Some(cluster) =
            argument.strip_prefix('-').filter(|cluster| !cluster.is_empty() && argument != "--")
        {
            let letters: Vec<char> = cluster.chars().collect();
            let valued = letters.iter().position(|letter| {
                takes_value(parser.get_arguments().find(|arg| arg.get_short() == Some(*letter)))
            });
            // The rest of the cluster is the value, if there is a rest.
            at += 1 + usize::from(valued.is_some_and(|position| position + 1 == letters.len()));
        } else {
            break;
        }
    }
    at.min(arguments.len())
}

/// Help is data; anything else that clap finds is a mistake in the options.
fn clap_failure(error: clap::Error, help: &str) -> Outcome {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        print!("{}", error.render());
        return Ok(0);
    }
    let text = error.render().to_string();
    let first = text.split("\n\n").next().unwrap_or_default();
    let words: Vec<&str> = first.split_whitespace().collect();
    let message = words.join(" ");
    let code = if error.kind() == ErrorKind::MissingRequiredArgument { 1 } else { crate::error::ENGINE };
    let failure = Failure::usage(message.trim_start_matches("error: ")).with_hint(format!("see `{help}`"));
    Err(failure.with_code(code))
}

fn unknown(entries: &[Entry], path: &str, name: &str) -> Failure {
    let near = |known: &&str| distance(known, name);
    let names = || entries.iter().filter(|entry| !entry.hidden).map(|entry| entry.name);
    let least = names().map(|known| near(&known)).min().unwrap_or(usize::MAX);
    let hint = if least <= 1 + name.len() / 4 {
        let nearest: Vec<String> =
            names().filter(|known| near(known) == least).map(|known| format!("`{path} {known}`")).collect();
        format!("did you mean {}?", nearest.join(" or "))
    } else {
        format!("`{path} --help` lists the commands")
    };
    Failure::new(format!("unknown command: {path} {name}")).with_hint(hint)
}

/// Levenshtein's, with swapped neighbours counted once.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().take(64).collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<_>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let change = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = change.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

fn help() -> Outcome {
    let mut text = String::from(
        "Run OCI images as containers or as virtual machines\n\nUsage: proa [OPTIONS] COMMAND [ARG...]\n",
    );
    for group in [Group::Run, Group::Instance, Group::Image, Group::Management, Group::System] {
        text.push_str(&format!("\n{}:\n", group.title()));
        commands::ALL
            .iter()
            .filter(|entry| entry.group == group && !entry.hidden)
            .for_each(|entry| line(&mut text, entry));
    }
    let options = root_parser().help_template("{options}").render_help().to_string();
    text.push_str(&format!(
        "\nOptions:\n{}\n\nWithout --network an instance is in the network bridge.\n\
         `proa COMMAND --help` explains a command.\n",
        options.trim_end()
    ));
    print!("{text}");
    Ok(0)
}

fn group_help(path: &str, about: &str, entries: &[Entry]) -> String {
    let mut text = format!("{about}\n\nUsage: {path} COMMAND [ARG...]\n\nCommands:\n");
    entries.iter().filter(|entry| !entry.hidden).for_each(|entry| line(&mut text, entry));
    text
}

fn line(text: &mut String, entry: &Entry) {
    text.push_str(&format!("  {:<10} {}\n", entry.name, entry.about));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn global_options_end_at_the_command() {
        let end = |line: &[&str]| globals_end(&line.iter().map(Into::into).collect::<Vec<_>>());
        assert_eq!(end(&["--root", "/x", "-D", "run", "--rm"]), 3);
        assert_eq!(end(&["--root=/x", "ps"]), 1);
        assert_eq!(end(&["run"]), 0);
        assert_eq!(end(&["--root"]), 1);
    }

    #[test]
    fn near_names_are_near() {
        assert_eq!(distance("run", "rum"), 1);
        assert_eq!(distance("images", "imgaes"), 1);
        assert_eq!(distance("", "abc"), 3);
    }

    #[test]
    fn every_parser_is_sound() {
        fn check(entries: &[Entry]) {
            for entry in entries {
                if let Some(inner) = entry.inner {
                    check(inner);
                } else {
                    let parser = Command::new(entry.name).disable_help_flag(true);
                    (entry.parser)(parser).debug_assert();
                }
            }
        }
        check(commands::ALL);
        root_parser().debug_assert();
    }
}
