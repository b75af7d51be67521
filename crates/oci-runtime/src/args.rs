//! The command line, read by tables: which options a command has, and which of them take a value.
//!
//! Options stand before or after the container's id. What follows the first word of a program to run (`exec`,
//! `ps`) is left as it is. `--name VALUE`, `--name=VALUE`, `-name VALUE`, `-n VALUE` and `-abc` for three
//! options without a value are all understood, since the engines' drivers use most of these.

use std::ffi::OsString;

use crate::error::{Failure, Result};

/// One option of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opt {
    /// Its long name.
    pub name: &'static str,
    /// Its letter.
    pub short: Option<char>,
    /// Whether a value follows.
    pub takes_value: bool,
}

/// An option without a value.
pub const fn flag(name: &'static str) -> Opt {
    Opt { name, short: None, takes_value: false }
}

/// An option with a value.
pub const fn value(name: &'static str) -> Opt {
    Opt { name, short: None, takes_value: true }
}

impl Opt {
    /// The same with a letter.
    pub const fn or(self, short: char) -> Self {
        Self { short: Some(short), ..self }
    }
}

/// What stands after a command's options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Words {
    /// A command's name, which ends the options; what follows is not read.
    Name,
    /// At most this many words, options among them.
    Most(usize),
    /// This many words, then a program and its arguments, in which nothing is an option of ours.
    ThenProgram(usize),
}

/// Options that were given, and the words beside them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    options: Vec<(&'static str, String)>,
    /// Words that are no options.
    pub words: Vec<String>,
}

impl Parsed {
    /// Reads what stands until the end, or with [`Words::Name`] until the first word. Returns what was not read.
    ///
    /// # Errors
    /// Names the option that is not known, or lacks its value.
    pub fn read(&mut self, args: Vec<OsString>, known: &[&[Opt]], words: Words) -> Result<Vec<OsString>> {
        let mut args = args.into_iter();
        let mut only_words = false;
        while let Some(arg) = args.next() {
            let text = text(arg)?;
            let is_option = !only_words && text.starts_with('-') && text.len() > 1;
            if is_option && text == "--" {
                only_words = true;
            } else if is_option {
                self.option(&text, known, &mut args)?;
            } else if words == Words::Name {
                return Ok(std::iter::once(OsString::from(text)).chain(args).collect());
            } else {
                self.words.push(text);
                only_words |= matches!(words, Words::ThenProgram(before) if self.words.len() > before);
            }
        }
        if let Words::Most(most) = words
            && let Some(extra) = self.words.get(most)
        {
            return Err(Failure::usage(format!("unexpected argument '{extra}'")));
        }
        Ok(Vec::new())
    }

    fn option(
        &mut self,
        text: &str,
        known: &[&[Opt]],
        rest: &mut impl Iterator<Item = OsString>,
    ) -> Result<()> {
        let (name, inline) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        let bare = name.trim_start_matches('-');
        let all = || known.iter().flat_map(|table| table.iter());
        let letter = |letter: char| all().find(|opt| opt.short == Some(letter));
        let single = bare.chars().next().filter(|_| bare.chars().count() == 1);
        let Some(opt) = all().find(|opt| opt.name == bare).or_else(|| single.and_then(letter)) else {
            return self.letters(text, bare, inline, letter);
        };
        let value = match (opt.takes_value, inline) {
            (true, Some(value)) => value,
            (true, None) => {
                let value = rest.next().ok_or_else(|| Failure::usage(format!("{name} needs a value")))?;
                self::text(value)?
            }
            (false, None) => "true".to_owned(),
            (false, Some(value)) if matches!(value.as_str(), "true" | "1" | "false" | "0") => value,
            (false, Some(value)) => {
                return Err(Failure::usage(format!("{name}: '{value}' is not true or false")));
            }
        };
        self.options.push((opt.name, value));
        Ok(())
    }

    fn letters<'t>(
        &mut self,
        text: &str,
        bare: &str,
        inline: Option<String>,
        letter: impl Fn(char) -> Option<&'t Opt>,
    ) -> Result<()> {
        let flags: Option<Vec<_>> = bare.chars().map(|c| letter(c).filter(|opt| !opt.takes_value)).collect();
        match flags {
            Some(flags) if !text.starts_with("--") && inline.is_none() && !flags.is_empty() => {
                self.options.extend(flags.iter().map(|opt| (opt.name, "true".to_owned())));
                Ok(())
            }
            _ => Err(Failure::usage(format!("unknown option '{text}'"))),
        }
    }

    /// The value of an option; the last, if it was given several times.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.options.iter().rev().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    /// All its values.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.options.iter().filter(move |(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    /// Whether an option without a value was given.
    pub fn is(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| matches!(value, "true" | "1"))
    }

    /// A number.
    ///
    /// # Errors
    /// It is none.
    pub fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>> {
        let parse = |text: &str| {
            text.parse().map_err(|_| Failure::usage(format!("--{name}: '{text}' is not a number that fits")))
        };
        self.get(name).map(parse).transpose()
    }

    /// The container's id.
    ///
    /// # Errors
    /// There is none.
    pub fn id(&self) -> Result<&str> {
        let id = self.words.first();
        id.map(String::as_str).ok_or_else(|| Failure::usage("a container id is needed".to_owned()))
    }
}

fn text(arg: OsString) -> Result<String> {
    arg.into_string().map_err(|arg| Failure::usage(format!("'{}' is not UTF-8", arg.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[Opt] = &[value("bundle").or('b'), flag("tty").or('t'), flag("detach").or('d')];

    fn read(line: &str, words: Words) -> Result<(Parsed, Vec<OsString>)> {
        let mut parsed = Parsed::default();
        let rest = parsed.read(line.split_whitespace().map(OsString::from).collect(), &[TABLE], words)?;
        Ok((parsed, rest))
    }

    #[test]
    fn options_stand_on_either_side_of_the_id() {
        for line in ["--bundle /b -t id", "id -b /b --tty", "-t id -bundle=/b", "-b=/b -t -- id"] {
            let (parsed, _) = read(line, Words::Most(1)).unwrap();
            assert_eq!((parsed.get("bundle"), parsed.is("tty")), (Some("/b"), true), "{line}");
            assert_eq!(parsed.id().unwrap(), "id");
            assert!(!parsed.is("detach"));
        }
        assert!(read("-td id", Words::Most(1)).unwrap().0.is("detach"));
        assert!(!read("--tty=false id", Words::Most(1)).unwrap().0.is("tty"));
    }

    #[test]
    fn a_programs_arguments_are_its_own() {
        let (parsed, _) = read("-t id -d sh -t --bundle", Words::ThenProgram(1)).unwrap();
        assert!(parsed.is("detach"));
        assert_eq!(parsed.words, ["id", "sh", "-t", "--bundle"]);
    }

    #[test]
    fn the_command_ends_the_global_options() {
        let (parsed, rest) = read("-d create -t id", Words::Name).unwrap();
        assert!(parsed.is("detach") && !parsed.is("tty"));
        assert_eq!(rest, ["create", "-t", "id"]);
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for line in ["--what", "-x", "-bt", "--bundle", "--tty=maybe", "a b"] {
            assert!(read(line, Words::Most(1)).is_err(), "{line}");
        }
    }
}
