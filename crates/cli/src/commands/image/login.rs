//! `proa login`: credentials for a registry.

use std::io::{BufRead, IsTerminal, Read, Write};

use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use crate::context::Context;
use crate::error::Failure;

/// Where Docker's own images are.
const DEFAULT_REGISTRY: &str = "docker.io";

/// Log in to a registry
#[derive(Debug, clap::Args)]
pub struct Args {
    /// User name
    #[arg(short, long)]
    pub username: Option<String>,
    /// Read the password from standard input
    #[arg(long)]
    pub password_stdin: bool,
    /// HOST[:PORT]
    #[arg(default_value = DEFAULT_REGISTRY)]
    pub registry: String,
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Result<i32, Failure> {
    let user = match &args.username {
        Some(user) => user.clone(),
        None if args.password_stdin => return Err(Failure::usage("--password-stdin needs --username")),
        None => ask("Username: ")?,
    };
    let password = if args.password_stdin { read_password()? } else { ask_password()? };
    let kept = proa_image::registry::login(&context.registry_options()?, &args.registry, &user, &password)?;
    eprintln!("The password is kept in {kept}");
    println!("Login Succeeded");
    Ok(0)
}

fn read_password() -> Result<String, Failure> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(Failure::terminal)?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

fn ask(prompt: &str) -> Result<String, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage("there is no terminal to ask on: give --username and --password-stdin"));
    }
    eprint!("{prompt}");
    let mut line = String::new();
    let read = std::io::stderr().flush().and_then(|()| std::io::stdin().lock().read_line(&mut line));
    read.map_err(Failure::terminal)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// Asks without showing what is typed.
fn ask_password() -> Result<String, Failure> {
    let terminal = std::io::stdin();
    let Ok(shown) = tcgetattr(&terminal) else {
        return Err(Failure::usage("there is no terminal to ask on: give --password-stdin"));
    };
    let mut hidden = shown.clone();
    hidden.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&terminal, OptionalActions::Flush, &hidden).map_err(|error| Failure::terminal(error.into()))?;
    let password = ask("Password: ");
    eprintln!();
    tcsetattr(&terminal, OptionalActions::Flush, &shown).map_err(|error| Failure::terminal(error.into()))?;
    password
}
