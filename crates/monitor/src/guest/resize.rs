//! Memory and CPUs of a guest that runs, and its limits, which go together.
//!
//! ```text
//!   UpdateGuest ─ more ─▶ VMM: memory, CPUs ─▶ agent: Expand ─ Ok ─▶ Growing ─ all plugged ─▶ Limiting
//!               │                                   └ Error, silence: as before ◀─ stands still ┘
//!               └ the same, less ─▶ Limiting: agent's supervisor: Update ─ Error ─▶ refused, as before
//!                                       └ Ok ─▶ memory to be given back? ─▶ Shrinking ─ all unplugged, or stands still ─▶ Ok
//! ```
//!
//! So the limit that is in force is never more than what there is. What a guest cannot give back, since something uses it,
//! stays with it, which is said: the limit holds all the same. CPUs that cannot come until the next start are said to be
//! so, and the update is done.

use std::time::{Duration, Instant};

use proa_oci::runtime::Resources;
use proa_protocol::frame::{Frame, Kind};
use proa_protocol::message::{ErrorKind, GuestSize, Request, Response};
use proa_vm::CpuShortage;

use super::{AGENT, Guest, Phase};
use crate::error::Error;

/// How long the agent may take for its part.
const EXPAND_TIMEOUT: Duration = Duration::from_secs(60);
/// How often the VMM is asked how far the guest is.
const LOOK: Duration = Duration::from_millis(40);
/// How long a guest may plug and unplug nothing before it is taken to have done all that it can; an emulated one on a busy
/// host takes seconds for a block of 128 MiB.
const STANDSTILL: Duration = Duration::from_secs(10);
/// How long it may take for all of it.
const LIMIT: Duration = Duration::from_secs(120);

/// A change of size that is under way.
pub struct Resizing {
    /// Who asked.
    channel: u32,
    resources: Box<Resources>,
    /// Bytes on top of its first memory, before and after.
    had: u64,
    wanted: u64,
    step: Step,
    /// Of the step.
    until: Instant,
    /// When something is to be done next.
    next: Instant,
    /// Bytes plugged when that was asked last, and until when there must be others.
    plugged: u64,
    standstill: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The agent is asked to take what has come.
    Asked,
    Growing,
    Limiting,
    Shrinking,
}

impl Resizing {
    fn enter(&mut self, step: Step, limit: Duration) {
        let now = Instant::now();
        (self.step, self.until, self.standstill) = (step, now + limit, now + STANDSTILL);
        self.next = if matches!(step, Step::Growing | Step::Shrinking) { now } else { self.until };
    }

    /// How far the guest is; whether it can be waited for.
    fn look(&mut self, plugged: u64) -> bool {
        let now = Instant::now();
        if plugged != self.plugged {
            (self.plugged, self.standstill) = (plugged, now + STANDSTILL);
        }
        self.next = now + LOOK;
        now < self.standstill.min(self.until)
    }
}

impl Guest {
    /// Gives it another size and other limits. The answer comes on the channel.
    ///
    /// # Errors
    /// It does not serve, something else is being done with it, or the VMM refuses.
    pub fn update(&mut self, channel: u32, size: GuestSize, resources: Box<Resources>) -> Result<(), Error> {
        if !matches!(self.phase, Phase::Serving) {
            return Err(Error::NotRunning);
        }
        if self.resizing.is_some() || self.freezing.is_some() || self.devices.deadline().is_some() {
            return Err(Error::Changing);
        }
        let (had, wanted) = (self.vm.wanted_memory(), self.vm.lacking_memory(size.memory)?);
        let cpus = self.vm.cpus();
        let shortage = self.vm.want_cpus(size.cpus.max(1))?;
        if wanted > had {
            self.vm.want_memory(wanted)?;
            self.enclosing.limit(self.vm.bounds())?;
        }
        if let Some(shortage) = shortage {
            let message = tell_shortage(shortage, size.cpus);
            self.incoming.push_back(Response::Notice { message }.frame(channel));
        }
        let now = Instant::now();
        let mut resizing = Resizing {
            channel,
            resources,
            had,
            wanted,
            step: Step::Asked,
            until: now,
            next: now,
            plugged: 0,
            standstill: now,
        };
        // An agent whose guest has the device already has nothing to do.
        let memory = wanted > had;
        if memory || self.vm.cpus() > cpus {
            resizing.enter(Step::Asked, EXPAND_TIMEOUT);
            self.send(&Request::Expand { memory, cpus: self.vm.cpus() }.frame(AGENT));
        } else {
            resizing.enter(Step::Growing, LIMIT);
        }
        self.resizing = Some(Box::new(resizing));
        self.tick_resize();
        Ok(())
    }

    /// When something is to be done about a change of size.
    pub(super) fn resize_deadline(&self) -> Option<Instant> {
        self.resizing.as_ref().map(|resizing| resizing.next)
    }

    /// Whether the agent was asked to take what has come.
    pub(super) fn is_expanding(&self) -> bool {
        self.resizing.as_ref().is_some_and(|resizing| resizing.step == Step::Asked)
    }

    /// The agent has taken what has come, or not.
    pub(super) fn agent_has_expanded(&mut self, answer: Response) {
        let Some(resizing) = &mut self.resizing else { return };
        match answer {
            Response::Ok => resizing.enter(Step::Growing, LIMIT),
            refusal => self.take_back(refusal),
        }
        self.tick_resize();
    }

    /// The supervisor has answered on a channel: true where that answer is not for the client yet, or never.
    pub(super) fn takes_answer(&mut self, frame: &Frame) -> bool {
        let Some(resizing) = &mut self.resizing else { return false };
        if resizing.step != Step::Limiting
            || resizing.channel != frame.channel
            || frame.kind != Kind::Response
        {
            return false;
        }
        match Response::parse(&frame.payload) {
            Ok(Response::Ok) => {
                resizing.enter(Step::Shrinking, LIMIT);
                let (wanted, gives_back) = (resizing.wanted, resizing.wanted < resizing.had);
                let asked = if gives_back { self.vm.want_memory(wanted) } else { Ok(()) };
                match asked {
                    Ok(()) => self.tick_resize(),
                    Err(error) => self.finish(Error::from(error).response()),
                }
                true
            }
            Ok(Response::Notice { .. }) => false,
            _ => {
                // Only what was new of it is taken back, which the guest does by itself.
                let had = resizing.had;
                let _ = self.vm.want_memory(had);
                self.resizing = None;
                false
            }
        }
    }

    /// Does what is due.
    pub(super) fn tick_resize(&mut self) {
        let Some(resizing) = &mut self.resizing else { return };
        if Instant::now() < resizing.next {
            return;
        }
        match resizing.step {
            Step::Asked => {
                self.devices.expect_late_answer();
                self.take_back(silence("taken what came"));
            }
            Step::Limiting => {
                let message = silence("set its limits");
                self.finish(message);
            }
            Step::Growing | Step::Shrinking => self.look(),
        }
    }

    fn look(&mut self) {
        let plugged = match self.vm.added_memory() {
            Ok(plugged) => plugged,
            Err(error) => return self.finish(Error::from(error).response()),
        };
        let Some(resizing) = &mut self.resizing else { return };
        let goes_on = resizing.look(plugged);
        match resizing.step {
            Step::Growing if plugged >= resizing.wanted => {
                resizing.enter(Step::Limiting, LIMIT);
                let update = Request::Update(resizing.resources.clone()).frame(resizing.channel);
                self.send(&update);
            }
            Step::Growing if !goes_on => {
                let wanted = resizing.wanted;
                let message = format!(
                    "the guest has taken {} of {} MiB that it was given; stop it, update it, start it",
                    plugged >> 20,
                    wanted >> 20
                );
                self.take_back(Response::error(ErrorKind::Internal, message));
            }
            Step::Shrinking if plugged <= resizing.wanted || resizing.wanted >= resizing.had => {
                self.finish(Response::Ok);
            }
            Step::Shrinking if !goes_on => {
                let (channel, left) = (resizing.channel, plugged - resizing.wanted);
                let message = format!(
                    "the guest uses {} MiB of the memory that it was to give back, and keeps them for now; its limit holds",
                    left >> 20
                );
                self.incoming.push_back(Response::Notice { message }.frame(channel));
                self.finish(Response::Ok);
            }
            _ => {}
        }
    }

    /// It could not grow: what has come is to go again, and the client is told.
    fn take_back(&mut self, why: Response) {
        let Some(had) = self.resizing.as_ref().map(|resizing| resizing.had) else { return };
        // The first failure is the one to tell.
        let _ = self.vm.want_memory(had);
        self.finish(why);
    }

    fn finish(&mut self, answer: Response) {
        if let Some(resizing) = self.resizing.take() {
            if resizing.plugged <= self.vm.wanted_memory() {
                // A bound that is wider than it must be still is one.
                let _ = self.enclosing.limit(self.vm.bounds());
            }
            self.incoming.push_back(answer.frame(resizing.channel));
        }
    }
}

fn silence(what: &str) -> Response {
    Response::error(ErrorKind::Internal, format!("the guest does not answer: it has not {what}"))
}

fn tell_shortage(CpuShortage { has, no_acpi }: CpuShortage, wanted: u32) -> String {
    let why = if no_acpi {
        "it is emulated with one, without the ACPI that would tell it of more"
    } else {
        "it has places for no more"
    };
    format!("the guest has {has} of {wanted} virtual CPUs while it runs ({why}); `proa restart` gives it all")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_stands_still_is_not_waited_for() {
        let now = Instant::now();
        let mut resizing = Resizing {
            channel: 3,
            resources: Box::default(),
            had: 0,
            wanted: 100,
            step: Step::Asked,
            until: now,
            next: now,
            plugged: 0,
            standstill: now,
        };
        resizing.enter(Step::Growing, LIMIT);
        assert!(resizing.look(10));
        resizing.standstill = now;
        assert!(!resizing.look(10));
        assert!(resizing.look(20));
        resizing.until = now;
        assert!(!resizing.look(30));
    }

    #[test]
    fn why_there_are_fewer_cpus_is_said_with_what_to_do() {
        let none = tell_shortage(CpuShortage { has: 1, no_acpi: true }, 2);
        assert!(none.contains("1 of 2") && none.contains("ACPI") && none.contains("proa restart"), "{none}");
        assert!(tell_shortage(CpuShortage { has: 4, no_acpi: false }, 8).contains("no more"));
    }
}
