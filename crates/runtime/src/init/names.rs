//! Host and domain name, in the container's own UTS namespace (the plan has checked that).

use super::Init;
use crate::{Error, Result};

pub(super) fn run(init: &mut Init) -> Result<()> {
    let [host, domain] = init.plan()?.names;
    if let Some(name) = host {
        rustix::system::sethostname(name.as_bytes()).map_err(|errno| Error::call(name, errno))?;
    }
    if let Some(name) = domain {
        rustix::system::setdomainname(name.as_bytes()).map_err(|errno| Error::call(name, errno))?;
    }
    Ok(())
}
