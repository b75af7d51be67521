//! An instance's places in its networks, from its start to its end.
//!
//! ```text
//!   (nothing) ─ prepare ─▶ Prepared: ports reserved, bridges there
//!        ▲                     │ interfaces of a container, or taps of a virtual machine
//!        │                     ▼
//!        │                 Attached: file of the endpoint, firewall's elements, link
//!        │                     │ withdraw: its program has ended, and nobody knows that yet
//!        │                     ▼
//!        └── finish ────── Withdrawn: no names, no ports; the link may still be there
//! ```
//!
//! An endpoint's elements of the firewall are there before its link and as long as it, so that there is no moment at
//! which an instance can send what it must not. What is made has names that follow from the instance's id, so whoever
//! finds that its monitor is dead can take all of it away ([`clean_up`]) without having been told.
//!
//! A container's link goes with its network namespace, which the kernel takes milliseconds to undo; nobody waits for
//! that but [`Attachment::finish`].

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use proa_protocol::network::{Driver, Endpoint, Live, Network, table_name};
use rustix::event::{Timespec, poll};
use rustix::io::Errno;

use crate::firewall::{self, Firewall};
use crate::link::{Links, open};
use crate::ports::{Reserved, reserve};
use crate::{Error, files};

/// How long the kernel may take to undo a network namespace before its link is taken away.
const UNDOING: Duration = Duration::from_secs(2);
/// How often it is looked whether a link is gone.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };

/// Places that are taken, or about to be.
#[derive(Debug)]
pub struct Attachment {
    run: PathBuf,
    instance: String,
    endpoints: Vec<Endpoint>,
    firewall: Firewall,
    reserved: Vec<Reserved>,
}

impl Attachment {
    /// Reserves the ports and makes the bridges that are not there.
    ///
    /// # Errors
    /// A port is taken, or the kernel refuses something.
    pub fn prepare(run: &Path, instance: &str, endpoints: Vec<Endpoint>) -> Result<Self, Error> {
        // What a monitor left that died while it started.
        clean_up(run, instance, &endpoints)?;
        let firewall = Firewall::new(table_name(run));
        let mut endpoints = endpoints;
        let mut reserved = Vec::new();
        for port in endpoints.iter_mut().flat_map(|endpoint| &mut endpoint.ports) {
            let kept = reserve(port)?;
            port.host_port = kept.number()?;
            reserved.push(kept);
        }
        for endpoint in &endpoints {
            ensure(run, &firewall, &endpoint.network)?;
        }
        Ok(Self { run: run.to_owned(), instance: instance.to_owned(), endpoints, firewall, reserved })
    }

    /// Whether there are any.
    pub fn has_places(&self) -> bool {
        !self.endpoints.is_empty()
    }

    /// Makes a container's interfaces in the network namespace of its first process.
    ///
    /// # Errors
    /// The kernel refuses. What was made is left for [`Attachment::finish`] or [`clean_up`].
    pub fn interfaces(&self, pid: u32) -> Result<(), Error> {
        let mut namespaces = Namespaces::of(pid)?;
        self.endpoints.iter().try_for_each(|endpoint| self.interface(endpoint, &mut namespaces))
    }

    fn interface(&self, endpoint: &Endpoint, namespaces: &mut Namespaces) -> Result<(), Error> {
        let Namespaces { target, here, there } = namespaces;
        let Endpoint { network, interface, .. } = endpoint;
        match network.driver {
            Driver::Bridge => {
                let (link, bridge) = self.admit(endpoint, here)?;
                here.make_pair(&link, bridge, interface, target.as_fd())?;
                here.reflect(&link)?;
            }
            Driver::Macvlan => {
                let parent = index(here, &network.bridge)?;
                here.make_macvlan(parent, interface, target.as_fd())?;
                files::write_live(&self.run, &self.instance, &self.live(endpoint))?;
            }
        }
        there.address(interface)
    }

    /// Gives a container that runs one more place.
    ///
    /// # Errors
    /// The kernel refuses; then nothing is left of it.
    pub fn connect(&mut self, endpoint: Endpoint, pid: u32) -> Result<(), Error> {
        self.add(endpoint, |this, endpoint| this.interface(endpoint, &mut Namespaces::of(pid)?))
    }

    /// The same for a virtual machine: gives the tap that its interface is to be wired to.
    ///
    /// # Errors
    /// As for [`Attachment::connect`].
    pub fn connect_tap(&mut self, endpoint: Endpoint) -> Result<OwnedFd, Error> {
        self.add(endpoint, |this, endpoint| this.tap(endpoint, &mut Links::here()?))
    }

    fn add<T>(
        &mut self,
        endpoint: Endpoint,
        make: impl FnOnce(&Self, &Endpoint) -> Result<T, Error>,
    ) -> Result<T, Error> {
        ensure(&self.run, &self.firewall, &endpoint.network)?;
        match make(self, &endpoint) {
            Ok(made) => {
                self.endpoints.push(endpoint);
                Ok(made)
            }
            Err(error) => {
                // The first failure is the one to tell.
                let _ = clean_up(&self.run, &self.instance, std::slice::from_ref(&endpoint));
                Err(error)
            }
        }
    }

    /// Takes a place of a container that runs away.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn disconnect(&mut self, network: &str, pid: u32) -> Result<(), Error> {
        let Some(endpoint) = self.endpoint(network) else { return Ok(()) };
        if endpoint.network.driver == Driver::Macvlan {
            Namespaces::of(pid)?.there.remove(&endpoint.interface.name)?;
        }
        self.disconnect_link(network)
    }

    /// The same for a virtual machine whose tap is closed, and for what the host has of any place.
    ///
    /// # Errors
    /// As for [`Attachment::disconnect`].
    pub fn disconnect_link(&mut self, network: &str) -> Result<(), Error> {
        let Some(endpoint) = self.endpoint(network) else { return Ok(()) };
        clean_up(&self.run, &self.instance, std::slice::from_ref(endpoint))?;
        self.endpoints.retain(|endpoint| endpoint.network.id != network);
        Ok(())
    }

    fn endpoint(&self, network: &str) -> Option<&Endpoint> {
        self.endpoints.iter().find(|endpoint| endpoint.network.id == network)
    }

    /// Makes the taps that a virtual machine's interfaces are wired to, in their order.
    ///
    /// # Errors
    /// The kernel refuses. What was made is left for [`Attachment::finish`] or [`clean_up`].
    pub fn taps(&self) -> Result<Vec<OwnedFd>, Error> {
        let mut here = Links::here()?;
        self.endpoints.iter().map(|endpoint| self.tap(endpoint, &mut here)).collect()
    }

    fn tap(&self, endpoint: &Endpoint, here: &mut Links) -> Result<OwnedFd, Error> {
        let (link, bridge) = self.admit(endpoint, here)?;
        let tap = proa_sys::tap::open(&link).map_err(Error::file("make the tap", &link))?;
        here.join(&link, bridge, endpoint.interface.mtu)?;
        here.reflect(&link)?;
        Ok(tap)
    }

    /// Has the firewall let a link in and tells the resolver of its endpoint; gives its name and the bridge's number.
    fn admit(&self, endpoint: &Endpoint, here: &mut Links) -> Result<(String, u32), Error> {
        let live = self.live(endpoint);
        let shared = files::Lock::share(&self.run)?;
        files::write_live(&self.run, &self.instance, &live)?;
        match self.firewall.add_endpoint(&live) {
            // Somebody has flushed it.
            Err(firewall::Error::NoTable { .. }) => {
                drop(shared);
                let _lock = files::Lock::take(&self.run)?;
                restore(&self.run, &self.firewall)?;
            }
            other => other?,
        }
        self.firewall.forget_flows(&live)?;
        Ok((live.link, index(here, &endpoint.network.bridge)?))
    }

    fn live(&self, endpoint: &Endpoint) -> Live {
        let link = match endpoint.network.driver {
            Driver::Bridge => link_of(&self.instance, endpoint),
            Driver::Macvlan => String::new(),
        };
        Live { endpoint: endpoint.clone(), link }
    }

    /// Takes names and ports away, so that others can have them.
    ///
    /// # Errors
    /// Something could not be taken away; the rest was.
    pub fn withdraw(&mut self) -> Result<(), Error> {
        let done =
            self.endpoints.iter().map(|endpoint| self.withdraw_one(endpoint)).fold(Ok(()), Result::and);
        self.reserved.clear();
        done
    }

    fn withdraw_one(&self, endpoint: &Endpoint) -> Result<(), Error> {
        let live = self.live(endpoint);
        let _shared = files::Lock::share(&self.run)?;
        gone_is_fine(self.firewall.withdraw(&live))?;
        // What is left to be done is told by the file, for whoever comes if this process is killed.
        let left = Endpoint { names: Vec::new(), ports: Vec::new(), ..live.endpoint };
        files::write_live(&self.run, &self.instance, &Live { endpoint: left, ..live })
    }

    /// Waits until the links are gone, and forgets them.
    ///
    /// # Errors
    /// Something could not be taken away; the rest was.
    pub fn finish(&self) -> Result<(), Error> {
        let mut here = Links::here()?;
        let deadline = Instant::now() + UNDOING;
        let one = |endpoint: &Endpoint| {
            let live = self.live(endpoint);
            gone_is_fine(self.firewall.forget_flows(&live))?;
            while !live.link.is_empty() && here.index(&live.link)?.is_some() {
                if Instant::now() >= deadline {
                    here.remove(&live.link)?;
                }
                let _ = poll(&mut [], Some(&LOOK));
            }
            forget(&self.run, &self.firewall, &self.instance, &live)
        };
        self.endpoints.iter().map(one).fold(Ok(()), Result::and)
    }
}

/// The caller's network namespace and a container's.
struct Namespaces {
    target: OwnedFd,
    here: Links,
    there: Links,
}

impl Namespaces {
    fn of(pid: u32) -> Result<Self, Error> {
        let target = open(&format!("/proc/{pid}/ns/net"))?;
        let (here, there) = (Links::here()?, Links::of(target.as_fd())?);
        Ok(Self { target, here, there })
    }
}

/// Name of the host's interface for an endpoint.
fn link_of(instance: &str, endpoint: &Endpoint) -> String {
    let digits = endpoint.interface.name.trim_start_matches(|letter: char| !letter.is_ascii_digit());
    proa_protocol::network::link_name(instance, digits.parse().unwrap_or(0))
}

/// After the link: its elements, then its file.
fn forget(run: &Path, firewall: &Firewall, instance: &str, live: &Live) -> Result<(), Error> {
    let _shared = files::Lock::share(run)?;
    gone_is_fine(firewall.remove_link(live))?;
    files::remove_live(run, &live.endpoint.network.id, instance)
}

fn gone_is_fine(result: Result<(), firewall::Error>) -> Result<(), firewall::Error> {
    match result {
        Err(firewall::Error::NoTable { .. }) => Ok(()),
        other => other,
    }
}

/// Takes away all that a dead monitor may have made for an instance; what is not there is fine.
///
/// # Errors
/// Something could not be taken away.
pub fn clean_up(run: &Path, instance: &str, endpoints: &[Endpoint]) -> Result<(), Error> {
    let firewall = Firewall::new(table_name(run));
    for endpoint in endpoints {
        let Some(live) = files::read_live(run, &endpoint.network.id, instance) else { continue };
        if !live.link.is_empty() {
            Links::here()?.remove(&live.link)?;
        }
        {
            let _shared = files::Lock::share(run)?;
            if !live.endpoint.names.is_empty() {
                gone_is_fine(firewall.withdraw(&live))?;
            }
        }
        forget(run, &firewall, instance, &live)?;
    }
    Ok(())
}

/// Makes a network's bridge unless it is there. That it is switched on means that all else of it is there.
///
/// # Errors
/// The kernel refuses.
pub fn ensure(run: &Path, firewall: &Firewall, network: &Network) -> Result<(), Error> {
    let mut links = Links::here()?;
    if network.driver == Driver::Macvlan {
        return index(&mut links, &network.bridge).map(drop);
    }
    if links.is_up(&network.bridge)? {
        return Ok(());
    }
    let _lock = files::Lock::take(run)?;
    files::write_network(run, network)?;
    if firewall.is_installed()? {
        firewall.add_network(network)?;
    } else {
        restore(run, firewall)?;
    }
    links.ensure_bridge(network)
}

/// Takes a network's bridge away.
///
/// # Errors
/// The kernel refuses.
pub fn remove(run: &Path, firewall: &Firewall, network: &Network) -> Result<(), Error> {
    let _lock = files::Lock::take(run)?;
    if network.driver == Driver::Bridge {
        Links::here()?.remove(&network.bridge)?;
        gone_is_fine(firewall.remove_network(network))?;
    }
    files::remove_network(run, &network.id)
}

/// Takes the firewall's tables away, and all files.
///
/// # Errors
/// The kernel refuses.
pub fn remove_all(run: &Path, firewall: &Firewall) -> Result<(), Error> {
    let _lock = files::Lock::take(run)?;
    firewall.remove()?;
    files::remove_directory(run)
}

/// Brings the firewall to what the files say. The caller holds the lock.
///
/// # Errors
/// There is no firewall to speak to.
pub fn restore(run: &Path, firewall: &Firewall) -> Result<(), Error> {
    let (networks, places) = files::read_all(run);
    let places: Vec<Live> = places.into_iter().map(|(_, live)| live).collect();
    Ok(firewall.restore(&networks, &places)?)
}

fn index(links: &mut Links, name: &str) -> Result<u32, Error> {
    links.index(name)?.ok_or_else(|| Error::at("find", name)(Errno::NODEV))
}
