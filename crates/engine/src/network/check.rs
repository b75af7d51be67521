//! Places in networks that a crash left: their instance is gone, or has no monitor.

use std::path::Path;
use std::time::Duration;

use proa_network::{Switch, attach, files};
use proa_protocol::network::{Live, endpoint_file};

use crate::engine::Engine;
use crate::error::Result;
use crate::system::Problem;
use crate::{monitor, names};

/// How long a monitor may take that has let go of its lock, since its instance is removed.
const LEAVING: Duration = Duration::from_secs(5);

/// Whether names and ports have been given up a moment ago, and the link is still going.
fn is_being_left(run: &Path, instance: &str, live: &Live) -> bool {
    let file = endpoint_file(run, &live.endpoint.network.id, instance);
    let changed = std::fs::metadata(file).and_then(|metadata| metadata.modified());
    live.endpoint.names.is_empty()
        && changed.is_ok_and(|time| time.elapsed().is_ok_and(|elapsed| elapsed < LEAVING))
}

impl Engine {
    /// Finds them, and with `repair` takes them away.
    pub(crate) fn check_places(&self, repair: bool, problems: &mut Vec<Problem>) -> Result<()> {
        let run = &self.paths.run;
        let (_, places) = files::read_all(run);
        for (instance, live) in places {
            // Whoever has the lock of its monitor sees to it.
            let directory = self.paths.instance_run(&instance);
            let lock = if directory.exists() { monitor::try_lock(&self.paths, &instance)? } else { None };
            if directory.exists() && lock.is_none() || is_being_left(run, &instance, &live) {
                continue;
            }
            if repair {
                attach::clean_up(run, &Switch::of(run), &instance, std::slice::from_ref(&live.endpoint))?;
            }
            let network = &live.endpoint.network.name;
            let what = format!(
                "instance {} has a place in network {network} and does not run",
                names::short(&instance)
            );
            problems.push(Problem { what, repaired: repair });
        }
        Ok(())
    }
}
