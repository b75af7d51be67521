//! `checkpoint` and `restore`: refused, with the reason.

use crate::args::{Opt, flag, value};
use crate::error::{Failure, Result};

/// Options that engines give with them.
pub const OPTIONS: &[Opt] = &[
    value("image-path"),
    value("work-path"),
    value("parent-path"),
    value("bundle").or('b'),
    value("pid-file"),
    value("console-socket"),
    value("manage-cgroups-mode"),
    value("empty-ns"),
    value("status-fd"),
    value("page-server"),
    value("lsm-profile"),
    value("lsm-mount-context"),
    flag("leave-running"),
    flag("tcp-established"),
    flag("tcp-skip-in-flight"),
    flag("link-remap"),
    flag("ext-unix-sk"),
    flag("shell-job"),
    flag("lazy-pages"),
    flag("file-locks"),
    flag("pre-dump"),
    flag("auto-dedup"),
    flag("detach").or('d'),
    flag("no-pivot"),
    flag("no-subreaper"),
];

/// Refuses.
///
/// # Errors
/// Always.
pub fn run(command: &str) -> Result<u8> {
    Err(Failure::new(format!("{command} is not supported: stop the container and start it again instead")))
}
