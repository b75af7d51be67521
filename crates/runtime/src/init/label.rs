//! The AppArmor profile or SELinux label that the program gets at its `exec`, written through a `/proc` to trust
//! (CVE-2025-52881). A kernel without the module that is asked for is an error: nothing is downgraded.

use std::os::fd::AsFd;

use rustix::fs::{OFlags, ResolveFlags};
use rustix::io::Errno;

use super::Init;
use crate::plan::Label;
use crate::{Error, Result, inroot};

pub(super) fn run(init: &mut Init) -> Result<()> {
    match init.job.process.label {
        None => Ok(()),
        Some(Label::AppArmor(profile)) => {
            let line = format!("exec {profile}");
            // The file of the module's own, and before Linux 5.8 the one that all modules share.
            match write(init, "self/attr/apparmor/exec", &line) {
                Err(Errno::NOENT) => write(init, "self/attr/exec", &line),
                other => other,
            }
            .map_err(|errno| match errno {
                Errno::NOENT => Error::invalid(format!("AppArmor profile '{profile}' is not loaded")),
                errno => Error::call(&format!("AppArmor profile '{profile}'"), errno),
            })
        }
        Some(Label::Selinux(label)) => write(init, "self/attr/exec", label)
            .map_err(|errno| Error::call(&format!("SELinux label '{label}'"), errno)),
    }
}

fn write(init: &Init, path: &str, text: &str) -> Result<(), Errno> {
    let file = inroot::open(init.proc.as_fd(), path, OFlags::WRONLY, ResolveFlags::NO_XDEV)?;
    rustix::io::write(&file, text.as_bytes()).map(drop)
}
