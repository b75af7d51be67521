//! A start that is for nobody: what the kernel, and a VMM that translates its instructions, do once and slowly, is done
//! before somebody waits for it.
//!
//! ```text
//!   container of the same kind ─▶ its program: this one, which ends at once ─▶ all of it is gone again
//! ```
//!
//! It runs nothing of the image's, and has the image's files under a writable layer of its own. What it leaves are numbers of
//! processes that were used, and random ones that were drawn; the generator is seeded anew before an instance draws any.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use proa_oci::runtime::Mount;
use proa_protocol::frame::Frame;
use proa_protocol::message::{GuestConfig, Request, Response};
use proa_runtime::{CgroupPolicy, Owners, Rootfs, Taken};
use proa_supervisor::{PollSet, Supervisor, SupervisorConfig};
use rustix::fs::CWD;
use rustix::mount::OpenTreeFlags;

use crate::configure::{LAYERS, use_network};
use crate::error::{At, Error};

/// The first word of the program's command line, and where it is in its container.
pub const PROGRAM: &str = "/.proa-rehearsal";
const OWN_PROGRAM: &str = "/proc/self/exe";
const DIRECTORY: &str = "/run/proa/rehearsal";
/// It takes some hundred milliseconds.
const LIMIT: Duration = Duration::from_secs(20);
/// The conversations with a supervisor: who starts, and who is told of the output.
const STARTER: u32 = 1;
const READER: u32 = 2;

/// Does all of it.
pub fn rehearse(config: GuestConfig) -> Result<(), Error> {
    let layers = config.layers;
    let mut supervisor = Supervisor::new(prepare(config, layers)?);
    let ended = play(&mut supervisor);
    let deleted = supervisor.delete();
    drop(supervisor);
    let removed = fs::remove_dir_all(DIRECTORY).at("remove", DIRECTORY);
    ended?;
    drop(deleted?);
    removed
}

fn prepare(mut config: GuestConfig, layers: usize) -> Result<SupervisorConfig, Error> {
    let [upper, work, scratch] = ["upper", "work", "files"].map(|name| Path::new(DIRECTORY).join(name));
    for directory in [&upper, &work] {
        fs::create_dir_all(directory).at("make", directory)?;
    }
    use_network(&mut config.spec);
    config.spec.mounts.push(Mount {
        destination: PROGRAM.to_owned(),
        kind: Some("bind".to_owned()),
        source: Some(OWN_PROGRAM.into()),
        options: ["bind", "ro"].map(ToOwned::to_owned).to_vec(),
        ..Mount::default()
    });
    if let Some(process) = &mut config.spec.process {
        process.args = vec![PROGRAM.to_owned()];
    }
    let lowers = (0..layers).map(|number| format!("{LAYERS}/{number}").into()).collect();
    Ok(SupervisorConfig {
        id: "rehearsal".to_owned(),
        spec: config.spec,
        launch: config.launch,
        rootfs: Rootfs::Overlay { lowers, upper, work, owners: Owners::default() },
        scratch,
        cgroup: CgroupPolicy::Auto,
        taken: vec![Taken { destination: PROGRAM.to_owned(), mount: own_program()? }],
        interfaces: None,
    })
}

/// A mount of this program, which no path leads to.
fn own_program() -> Result<OwnedFd, Error> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    rustix::mount::open_tree(CWD, OWN_PROGRAM, flags).at("take", OWN_PROGRAM)
}

/// Starts it, and waits for its end.
fn play(supervisor: &mut Supervisor) -> Result<(), Error> {
    let attach = Request::Attach { stdin: false, stdout: true, stderr: true };
    supervisor.handle(attach.frame(READER));
    supervisor.handle(Request::Start.frame(STARTER));
    let deadline = Instant::now() + LIMIT;
    while Instant::now() < deadline {
        while let Some(frame) = supervisor.pop() {
            match answer(&frame) {
                Some(Response::Exited(status)) if status.code == 0 => return Ok(()),
                Some(Response::Exited(status)) => {
                    return Err(Error::Configuration(format!(
                        "the rehearsal ended with code {}",
                        status.code
                    )));
                }
                Some(Response::Error { message, .. }) => return Err(Error::Configuration(message)),
                _ => {}
            }
        }
        let mut set = PollSet::new();
        supervisor.poll_fds(&mut set);
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = supervisor.timeout().into_iter().chain([left]).min();
        for (token, _) in set.wait(timeout).at("poll", "a rehearsal")? {
            supervisor.ready(token);
        }
        supervisor.tick();
    }
    Err(Error::Configuration(format!("the rehearsal has not ended within {} s", LIMIT.as_secs())))
}

fn answer(frame: &Frame) -> Option<Response> {
    Response::parse(&frame.payload).ok()
}
