//! Streams between the caller and a process: who holds which end.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Gid, Uid};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

use crate::container::{Handles, Stdio};
use crate::{Error, Result};

/// The process's ends of pipes.
#[derive(Debug, Default)]
pub(crate) struct ChildEnds {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    /// All three are the terminal.
    terminal: bool,
    /// They stay what they were in the caller.
    inherited: bool,
}

/// What stands in for a stream that is no pipe.
pub(crate) enum Input<'a> {
    /// The null device.
    Null(BorrowedFd<'a>),
    /// A terminal.
    Terminal(BorrowedFd<'a>),
}

/// Makes the pipes; a terminal is made later, in the container's own `/dev/pts`.
pub(crate) fn open(stdio: Stdio) -> Result<(Handles, ChildEnds)> {
    let Stdio::Pipes { stdin } = stdio else { return Ok((Handles::default(), ChildEnds::default())) };
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|errno| Error::call("pipe", errno));
    let (stdout, child_stdout) = pipe()?;
    let (stderr, child_stderr) = pipe()?;
    let (child_stdin, stdin) =
        if stdin { pipe().map(|(read, write)| (Some(read), Some(write)))? } else { (None, None) };
    let handles = Handles { stdin, stdout: Some(stdout), stderr: Some(stderr), terminal: None };
    let ends = ChildEnds {
        stdin: child_stdin,
        stdout: Some(child_stdout),
        stderr: Some(child_stderr),
        terminal: false,
        inherited: false,
    };
    Ok((handles, ends))
}

impl ChildEnds {
    /// The standard streams of this process stay as they are.
    pub(crate) fn inherit(&mut self) {
        self.inherited = true;
    }

    /// The numbers of what it holds.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = u32> {
        [&self.stdin, &self.stdout, &self.stderr].into_iter().flatten().map(|end| end.as_raw_fd() as u32)
    }

    /// Makes them the standard streams of this process.
    pub(crate) fn install(&mut self, input: Input) -> Result<()> {
        let other = match input {
            Input::Null(fd) => fd,
            Input::Terminal(fd) => {
                self.terminal = true;
                fd
            }
        };
        dup2_stdin(self.stdin.as_ref().map_or(other, AsFd::as_fd))
            .map_err(|errno| Error::call("stdin", errno))?;
        dup2_stdout(self.stdout.as_ref().map_or(other, AsFd::as_fd))
            .map_err(|errno| Error::call("stdout", errno))?;
        dup2_stderr(self.stderr.as_ref().map_or(other, AsFd::as_fd))
            .map_err(|errno| Error::call("stderr", errno))
    }

    /// Lets a user other than root open `/dev/stdout` and the like again. The null device stays root's. In a user
    /// namespace a stream may belong to nobody inside: then it stays what it is.
    pub(crate) fn give_to(&self, uid: u32, in_user_namespace: bool) -> Result<()> {
        if uid == 0 {
            return Ok(());
        }
        let owner = Some(Uid::from_raw(uid));
        let give = |fd: BorrowedFd| match rustix::fs::fchown(fd, owner, None::<Gid>) {
            Err(Errno::PERM | Errno::INVAL) if in_user_namespace => Ok(()),
            other => other.map_err(|errno| Error::call("owner of the streams", errno)),
        };
        if self.terminal {
            return give(rustix::stdio::stdin());
        }
        if self.inherited {
            give_inherited(owner);
            return Ok(());
        }
        [&self.stdin, &self.stdout, &self.stderr].into_iter().flatten().try_for_each(|end| give(end.as_fd()))
    }
}

/// What the caller gave may be anybody's file: a pipe or terminal is given away where that can be done, and
/// nothing else is touched.
fn give_inherited(owner: Option<Uid>) {
    for fd in [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()] {
        let Ok(stat) = rustix::fs::fstat(fd) else { continue };
        let is_null = stat.st_rdev == rustix::fs::makedev(1, 3);
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Fifo || kind == FileType::CharacterDevice && !is_null {
            let _ = rustix::fs::fchown(fd, owner, None::<Gid>);
        }
    }
}
