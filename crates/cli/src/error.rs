//! The edge: failures as a line, a hint, and details where there are some, and one code for scripts.
//!
//! | code | when |
//! | --- | --- |
//! | 125 | Proa failed in `run`, or an option makes no sense |
//! | 126 | the program cannot be run |
//! | 127 | the program does not exist |
//! | 1 | anything else failed |

use std::error::Error as StdError;
use std::io;
use std::path::Path;

use proa_engine::Kind;

/// The code of a failure of Proa's own in `run`, and of options that make no sense.
pub const ENGINE: i32 = 125;
const NOT_EXECUTABLE: i32 = 126;
const NOT_FOUND: i32 = 127;
const FAILED: i32 = 1;

/// What a failed command says and returns.
#[derive(Debug)]
pub struct Failure {
    message: String,
    details: Vec<String>,
    hint: String,
    code: i32,
    kind: Kind,
}

/// What commands return: the exit code.
pub type Outcome = Result<i32, Failure>;

impl Failure {
    /// Options or arguments that make no sense.
    pub fn usage(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            details: Vec::new(),
            hint: String::new(),
            code: ENGINE,
            kind: Kind::InvalidInput,
        }
    }

    /// Something that cannot be done, with the code 1.
    pub fn new(message: impl Into<String>) -> Self {
        Self { code: FAILED, kind: Kind::Internal, ..Self::usage(message) }
    }

    /// A failed call on a file; `action` is a verb.
    pub fn io(action: &str, path: &Path, error: io::Error) -> Self {
        let hint = match error.kind() {
            io::ErrorKind::PermissionDenied => "see whom it belongs to, or use sudo",
            io::ErrorKind::StorageFull => "free some space, or write elsewhere",
            _ => "",
        };
        Self { hint: hint.into(), ..Self::new(format!("cannot {action} {}: {error}", path.display())) }
    }

    /// A failed call on a terminal or a standard stream.
    pub fn terminal(error: io::Error) -> Self {
        Self::new(format!("cannot use the terminal: {error}"))
    }

    /// Adds what to do about it.
    pub fn with_hint(self, hint: impl Into<String>) -> Self {
        Self { hint: hint.into(), ..self }
    }

    /// Says what was being done, before what went wrong.
    pub fn context(self, doing: &str) -> Self {
        Self { message: format!("{doing}: {}", self.message), ..self }
    }

    /// As a failure of `run`, which keeps 1 for the program's own use.
    pub fn of_run(self) -> Self {
        let code = if self.code == FAILED { ENGINE } else { self.code };
        Self { code, ..self }
    }

    /// As a failure of `exec`: what makes no sense inside cannot be run.
    pub fn of_exec(self) -> Self {
        let is_senseless = self.code == FAILED && self.kind == Kind::InvalidInput;
        Self { code: if is_senseless { NOT_EXECUTABLE } else { self.code }, ..self }
    }

    /// With this code.
    pub fn with_code(self, code: i32) -> Self {
        Self { code, ..self }
    }

    /// The program's exit code.
    pub fn code(&self) -> i32 {
        self.code
    }

    /// Its sort.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Says it on standard error. A failure that has been said already has no text.
    pub fn print(&self) {
        if self.message.is_empty() {
            return;
        }
        eprintln!("proa: {}", one_line(&self.message));
        self.details.iter().for_each(|line| eprintln!("  {}", one_line(line)));
        if !self.hint.is_empty() {
            eprintln!("  hint: {}", one_line(&self.hint));
        }
    }
}

/// What others wrote, images and guests among them, gets no line and no escape sequence of its own.
pub fn one_line(text: &str) -> String {
    let text = text.trim().replace('\n', ": ");
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// The message and those of its sources that it does not repeat.
fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let words = inner.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = inner.source();
    }
    text
}

impl From<proa_engine::Error> for Failure {
    fn from(error: proa_engine::Error) -> Self {
        let kind = error.kind();
        let code = match kind {
            Kind::CommandNotFound => NOT_FOUND,
            Kind::CommandNotExecutable => NOT_EXECUTABLE,
            _ => FAILED,
        };
        Self { message: chain(&error), details: error.details(), hint: error.hint(), code, kind }
    }
}

impl From<proa_image::Error> for Failure {
    fn from(error: proa_image::Error) -> Self {
        proa_engine::Error::from(error).into()
    }
}

impl From<proa_oci::reference::ReferenceError> for Failure {
    fn from(error: proa_oci::reference::ReferenceError) -> Self {
        proa_image::Error::from(error).into()
    }
}

impl From<crate::template::TemplateError> for Failure {
    fn from(error: crate::template::TemplateError) -> Self {
        Self::new(error.to_string())
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(format!("{error:#}"))
    }
}

/// Does something with each of several names; those that fail are told one by one, and make the code 1.
///
/// # Errors
/// There was one name alone, and it failed.
pub fn each(names: &[String], mut act: impl FnMut(&str) -> Result<(), Failure>) -> Outcome {
    let mut code = 0;
    for name in names {
        if let Err(failure) = act(name) {
            failure.print();
            code = FAILED;
        }
    }
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes() {
        let monitor = |kind| Failure::from(proa_engine::Error::Monitor { kind, message: "x".into() });
        use proa_protocol::message::ErrorKind;
        assert_eq!(monitor(ErrorKind::CommandNotFound).of_run().code(), 127);
        assert_eq!(monitor(ErrorKind::CommandNotExecutable).of_run().code(), 126);
        assert_eq!(monitor(ErrorKind::Internal).of_run().code(), 125);
        assert_eq!(monitor(ErrorKind::Internal).code(), 1);
        assert_eq!(Failure::usage("x").code(), 125);
    }

    #[test]
    fn messages_are_lines() {
        assert_eq!(one_line("two\nlines\x1b[2J\n"), "two: lines\u{fffd}[2J");
        let inner = io::Error::other("why");
        let error = proa_engine::Error::io("read", Path::new("/x"), inner);
        assert_eq!(chain(&error), "cannot read /x: why");
    }
}
