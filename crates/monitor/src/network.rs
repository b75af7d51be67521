//! The instance's places in networks, as long as it runs.

use std::cell::RefCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::{Arc, OnceLock};

use proa_network::{Attachment, Switch, Tap};
use proa_protocol::message::Request;
use proa_protocol::network::Endpoint;
use proa_runtime::Interfaces;
use proa_supervisor::Mounts;

use crate::args::{Args, Mode};
use crate::error::Error;

/// Of an ordinary user: it stays the same as long as this process holds it.
static SWITCH: OnceLock<Switch> = OnceLock::new();

/// The instance's places; none in what is only held for work on its files.
#[derive(Debug, Clone, Default)]
pub struct Places {
    attachment: Option<Rc<RefCell<Attachment>>>,
    /// Readable when the forwarder of an ordinary user's ports has ended.
    forwarder: Option<Arc<OwnedFd>>,
}

impl Places {
    /// Reserves what they need. What is only held for work on its files needs none.
    ///
    /// # Errors
    /// A port is taken, or the kernel refuses something.
    pub fn prepare(args: &Args, endpoints: &[Endpoint]) -> Result<Self, Error> {
        if args.mode == Mode::Maintenance {
            return Ok(Self::default());
        }
        let switch = if endpoints.is_empty() { Switch::Gone } else { switch(args) };
        let attachment = Attachment::prepare(&args.run, switch, &args.id, endpoints.to_vec())?;
        Ok(Self { attachment: Some(Rc::new(RefCell::new(attachment))), forwarder: None })
    }

    /// What to wait for beside the instance's processes.
    pub fn forwarder(&self) -> Option<BorrowedFd<'_>> {
        self.forwarder.as_ref().map(AsFd::as_fd)
    }

    /// To be called after each round.
    pub fn tick(&mut self) {
        if let Some(attachment) = &self.attachment {
            self.forwarder = attachment.borrow().forwarder();
        }
    }

    /// The forwarder of ports has ended, which only somebody else can have done.
    pub fn revive(&mut self) {
        if let Some(attachment) = &self.attachment {
            // Where that fails there is none: what runs goes on without.
            let _ = attachment.borrow_mut().revive();
        }
        self.tick();
    }

    /// Who makes a container's interfaces.
    pub fn interfaces(&self) -> Option<Box<dyn Interfaces>> {
        let attachment = self.attachment.as_ref().filter(|attachment| attachment.borrow().has_places())?;
        Some(Box::new(Maker(Rc::clone(attachment))))
    }

    /// What a virtual machine's interfaces are wired to: these taps, or new ones.
    ///
    /// # Errors
    /// The kernel refuses something.
    pub fn taps(&self, there: &[Tap]) -> Result<Vec<Arc<OwnedFd>>, Error> {
        let Some(attachment) = &self.attachment else { return Ok(Vec::new()) };
        Ok(attachment.borrow_mut().taps(there)?)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.attachment.as_ref().map_or(0, |attachment| attachment.borrow().count())
    }

    /// Gives up names and ports: the program has ended, and nobody has been told yet.
    ///
    /// # Errors
    /// Something could not be taken away; `system check` finds it.
    pub fn withdraw(&self) -> Result<(), Error> {
        self.attachment.as_ref().map_or(Ok(()), |attachment| Ok(attachment.borrow_mut().withdraw()?))
    }

    /// Gives up all of them: there will be no instance.
    pub fn give_up(&self) {
        // As with what is left of the links.
        let _ = self.withdraw();
        self.finish();
    }

    fn finish(&self) {
        if let Some(attachment) = &self.attachment {
            // What is left is found by `system check`: its file is there.
            let _ = attachment.borrow().finish();
        }
    }

    /// Gives a virtual machine that runs one more place; what its interface is to be wired to.
    ///
    /// # Errors
    /// The kernel refuses something.
    pub fn connect_tap(&self, endpoint: Endpoint) -> Result<Arc<OwnedFd>, Error> {
        let attachment = self.attachment.as_ref().ok_or(Error::NotRunning)?;
        Ok(attachment.borrow_mut().connect_tap(endpoint)?)
    }

    /// Takes the place in this network of a virtual machine that runs away, whose tap is closed.
    ///
    /// # Errors
    /// The kernel refuses something.
    pub fn disconnect_tap(&self, network: &str) -> Result<(), Error> {
        let Some(attachment) = &self.attachment else { return Ok(()) };
        Ok(attachment.borrow_mut().disconnect_link(network)?)
    }

    /// Does what a client asks of the places of a container that runs.
    ///
    /// # Errors
    /// The kernel refuses something.
    pub fn change(&self, request: Request, pid: u32) -> Result<(), Error> {
        let Some(attachment) = &self.attachment else { return Ok(()) };
        match request {
            Request::Connect(endpoint) => Ok(attachment.borrow_mut().connect(*endpoint, pid)?),
            Request::Disconnect { network } => Ok(attachment.borrow_mut().disconnect(&network, pid)?),
            _ => Ok(()),
        }
    }
}

/// Where the instance's bridges are.
fn switch(args: &Args) -> Switch {
    let known = SWITCH.get().cloned();
    known.unwrap_or_else(|| {
        let found = Switch::of(&args.run);
        if found.is_gone() { found } else { SWITCH.get_or_init(|| found).clone() }
    })
}

#[derive(Debug)]
struct Maker(Rc<RefCell<Attachment>>);

impl Interfaces for Maker {
    fn make(&self, pid: u32) -> Result<(), String> {
        self.0.borrow_mut().interfaces(pid).map_err(|error| error.to_string())
    }
}

/// What the kernel takes time to undo: dropping it waits for that.
#[derive(Default)]
pub struct Remains {
    mounts: Option<Mounts>,
    places: Places,
}

impl Remains {
    /// Of a container, or of a virtual machine, which has no mounts.
    pub fn new(mounts: Option<Mounts>, places: Places) -> Self {
        Self { mounts, places }
    }

    /// Waits for the mounts alone.
    pub fn unmount(&mut self) {
        drop(self.mounts.take());
    }
}

impl Drop for Remains {
    fn drop(&mut self) {
        self.unmount();
        self.places.finish();
    }
}
