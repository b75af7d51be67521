//! Resource limits. A host whose root lacks `CAP_SYS_RESOURCE` cannot raise them: what it can grant is granted.

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::Init;
use crate::{Error, Result};

pub(super) fn run(init: &mut Init) -> Result<()> {
    for (resource, name, soft, hard) in &init.job.process.rlimits {
        if soft > hard {
            return Err(Error::invalid(format!("{name}: soft limit {soft} is above the hard limit {hard}")));
        }
        let wanted = Rlimit { current: finite(*soft), maximum: finite(*hard) };
        match setrlimit(*resource, wanted) {
            Ok(()) => {}
            Err(Errno::PERM) => {
                let warning = clamp(*resource, name, *soft)?;
                init.warnings.push(warning);
            }
            Err(errno) => return Err(Error::call(name, errno)),
        }
    }
    Ok(())
}

fn finite(value: u64) -> Option<u64> {
    (value != u64::MAX).then_some(value)
}

fn clamp(resource: Resource, name: &str, soft: u64) -> Result<String> {
    let hard = getrlimit(resource).maximum;
    let soft = soft.min(hard.unwrap_or(u64::MAX));
    setrlimit(resource, Rlimit { current: finite(soft), maximum: hard })
        .map_err(|errno| Error::call(name, errno))?;
    let hard = hard.map_or_else(|| "unlimited".to_owned(), |hard| hard.to_string());
    Ok(format!("{name} not raised above the host's {hard}: it needs CAP_SYS_RESOURCE"))
}
