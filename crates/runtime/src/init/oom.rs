//! How willingly the kernel kills the process for memory.

use super::Init;
use crate::Result;

pub(super) fn run(init: &mut Init) -> Result<()> {
    let Some(score) = init.job.process.spec.oom_score_adj else { return Ok(()) };
    // The parent has: in a user namespace the file is not ours.
    if init.in_user_namespace() {
        return Ok(());
    }
    if super::sysctl::write(&init.proc, "self/oom_score_adj", &score.to_string()).is_err() {
        // Lowering it needs CAP_SYS_RESOURCE; Docker goes on.
        init.warnings.push(not_granted(score));
    }
    Ok(())
}

pub(crate) fn not_granted(score: i32) -> String {
    format!("oom score {score} not granted: it needs CAP_SYS_RESOURCE on the host")
}
