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
//! All of that is where the root's bridges are ([`Switch`]). Published ports that no rule of the host's firewall leads to
//! the instance, so all of an ordinary user's, are served by a process of their own ([`crate::forward`]) from when there is
//! a link until the ports are given up.
//!
//! A virtual machine that stood by before it had an instance brings its taps along, which have names of their own.
//!
//! A container's link goes with its network namespace, which the kernel takes milliseconds to undo; nobody waits for
//! that but [`Attachment::finish`].

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use proa_protocol::network::{Driver, Endpoint, Live, Network, PublishedPort, table_name};
use rustix::event::{Timespec, poll};
use rustix::io::Errno;

use crate::firewall::{self, Firewall};
use crate::forward::{Forwarder, Route};
use crate::link::{Links, open};
use crate::ports::{Reserved, reserve};
use crate::switch::Switch;
use crate::{Error, files};

/// How long the kernel may take to undo a network namespace before its link is taken away.
const UNDOING: Duration = Duration::from_secs(2);
/// How often it is looked whether a link is gone.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };

/// Places that are taken, or about to be.
#[derive(Debug)]
pub struct Attachment {
    run: PathBuf,
    switch: Switch,
    instance: String,
    endpoints: Vec<Endpoint>,
    firewall: Firewall,
    /// In the order of the endpoints' ports.
    reserved: Vec<Reserved>,
    forwarder: Option<Forwarder>,
    /// Names of links that were there before the instance, by the names of its interfaces.
    links: BTreeMap<String, String>,
}

/// A tap that leads nowhere yet.
#[derive(Debug, Clone)]
pub struct Tap {
    name: String,
    cable: Arc<OwnedFd>,
}

impl Tap {
    /// Makes one where the bridges are.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn make(switch: &Switch, name: String) -> Result<Self, Error> {
        let cable = switch
            .inside(|| proa_sys::tap::open(&name).map_err(Error::file("make the tap", &name)))
            .map(Arc::new)?;
        Ok(Self { name, cable })
    }

    /// The end of whoever wires a machine to it.
    pub fn cable(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.cable)
    }
}

impl Attachment {
    /// Reserves the ports and makes the bridges that are not there.
    ///
    /// # Errors
    /// A port is taken, or the kernel refuses something.
    pub fn prepare(
        run: &Path,
        switch: Switch,
        instance: &str,
        endpoints: Vec<Endpoint>,
    ) -> Result<Self, Error> {
        // What a monitor left that died while it started.
        clean_up(run, &switch, instance, &endpoints)?;
        let firewall = Firewall::new(table_name(run));
        let mut endpoints = endpoints;
        let mut reserved = Vec::new();
        for endpoint in &mut endpoints {
            for number in 0..endpoint.ports.len() {
                let is_served = is_served(&switch, endpoint, &endpoint.ports[number]);
                let kept = reserve(&endpoint.ports[number], is_served)?;
                endpoint.ports[number].host_port = kept.number()?;
                reserved.push(kept);
            }
        }
        for endpoint in &endpoints {
            ensure(run, &switch, &firewall, &endpoint.network)?;
        }
        let (run, instance) = (run.to_owned(), instance.to_owned());
        let links = BTreeMap::new();
        Ok(Self { run, switch, instance, endpoints, firewall, reserved, forwarder: None, links })
    }

    /// Whether there are any.
    pub fn has_places(&self) -> bool {
        !self.endpoints.is_empty()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.endpoints.len()
    }

    /// Makes a container's interfaces in the network namespace of its first process.
    ///
    /// # Errors
    /// The kernel refuses. What was made is left for [`Attachment::finish`] or [`clean_up`].
    pub fn interfaces(&mut self, pid: u32) -> Result<(), Error> {
        self.switch.inside(|| {
            let mut namespaces = Namespaces::of(pid)?;
            self.endpoints.iter().try_for_each(|endpoint| self.interface(endpoint, &mut namespaces))
        })?;
        self.forward()
    }

    /// Serves the published ports where no firewall of the host's does.
    fn forward(&mut self) -> Result<(), Error> {
        let mut reserved = self.reserved.iter();
        let routes = |endpoint| routes(&self.switch, endpoint, &mut reserved);
        let routes: Vec<Route> = self.endpoints.iter().flat_map(routes).collect();
        // The last one may be there still.
        self.forwarder = None;
        self.forwarder = match routes.is_empty() {
            true => None,
            false => Some(Forwarder::start(self.switch.namespace(), &routes)?),
        };
        Ok(())
    }

    /// Readable when the forwarder of ports has ended; then [`Attachment::revive`] it.
    pub fn forwarder(&self) -> Option<Arc<OwnedFd>> {
        self.forwarder.as_ref().map(Forwarder::pidfd)
    }

    /// Starts the forwarder of ports again.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn revive(&mut self) -> Result<(), Error> {
        self.forward()
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
        self.add(endpoint, move |this, endpoint| this.interface(endpoint, &mut Namespaces::of(pid)?))
    }

    /// The same for a virtual machine: gives the tap that its interface is to be wired to.
    ///
    /// # Errors
    /// As for [`Attachment::connect`].
    pub fn connect_tap(&mut self, endpoint: Endpoint) -> Result<Arc<OwnedFd>, Error> {
        self.add(endpoint, |this, endpoint| this.tap(endpoint, None, &mut Links::here()?))
    }

    fn add<T: Send>(
        &mut self,
        endpoint: Endpoint,
        make: impl FnOnce(&Self, &Endpoint) -> Result<T, Error> + Send,
    ) -> Result<T, Error> {
        if self.endpoints.is_empty() {
            // As long as it had no place nobody has looked for it.
            self.switch = Switch::of(&self.run);
        }
        ensure(&self.run, &self.switch, &self.firewall, &endpoint.network)?;
        match self.switch.inside(|| make(self, &endpoint)) {
            Ok(made) => {
                self.endpoints.push(endpoint);
                Ok(made)
            }
            Err(error) => {
                // The first failure is the one to tell.
                let _ = clean_up(&self.run, &self.switch, &self.instance, std::slice::from_ref(&endpoint));
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
        let place = self.endpoints.iter().position(|endpoint| endpoint.network.id == network);
        let Some(place) = place else { return Ok(()) };
        let endpoint = &self.endpoints[place];
        clean_up(&self.run, &self.switch, &self.instance, std::slice::from_ref(endpoint))?;
        let first: usize = self.endpoints.iter().take(place).map(|endpoint| endpoint.ports.len()).sum();
        let endpoint = self.endpoints.remove(place);
        self.links.remove(&endpoint.interface.name);
        let gone = endpoint.ports.len();
        self.reserved.drain(first..first + gone);
        if gone > 0 { self.forward() } else { Ok(()) }
    }

    fn endpoint(&self, network: &str) -> Option<&Endpoint> {
        self.endpoints.iter().find(|endpoint| endpoint.network.id == network)
    }

    /// The taps that a virtual machine's interfaces are wired to, in their order: those that are there, if they are for as
    /// many, or new ones.
    ///
    /// # Errors
    /// The kernel refuses. What was made is left for [`Attachment::finish`] or [`clean_up`].
    pub fn taps(&mut self, there: &[Tap]) -> Result<Vec<Arc<OwnedFd>>, Error> {
        if !self.has_places() {
            return Ok(Vec::new());
        }
        for (endpoint, tap) in self.endpoints.iter().zip(there) {
            self.links.insert(endpoint.interface.name.clone(), tap.name.clone());
        }
        let taps = self.switch.inside(|| {
            let mut here = Links::here()?;
            let each = self.endpoints.iter().enumerate();
            each.map(|(number, endpoint)| self.tap(endpoint, there.get(number), &mut here)).collect()
        })?;
        self.forward()?;
        Ok(taps)
    }

    fn tap(&self, endpoint: &Endpoint, there: Option<&Tap>, here: &mut Links) -> Result<Arc<OwnedFd>, Error> {
        let (link, bridge) = self.admit(endpoint, here)?;
        let cable = match there {
            Some(tap) => tap.cable(),
            None => Arc::new(proa_sys::tap::open(&link).map_err(Error::file("make the tap", &link))?),
        };
        here.join(&link, bridge, endpoint.interface.mtu)?;
        here.reflect(&link)?;
        Ok(cable)
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
                restore_here(&self.run, &self.firewall)?;
            }
            other => other?,
        }
        self.firewall.forget_flows(&live)?;
        Ok((live.link, index(here, &endpoint.network.bridge)?))
    }

    fn live(&self, endpoint: &Endpoint) -> Live {
        let link = match endpoint.network.driver {
            Driver::Bridge => match self.links.get(&endpoint.interface.name) {
                Some(link) => link.clone(),
                None => link_of(&self.instance, endpoint),
            },
            Driver::Macvlan => String::new(),
        };
        Live { endpoint: endpoint.clone(), link, switch: self.switch.held() }
    }

    /// Takes names and ports away, so that others can have them.
    ///
    /// # Errors
    /// Something could not be taken away; the rest was.
    pub fn withdraw(&mut self) -> Result<(), Error> {
        let each = || self.endpoints.iter().map(|endpoint| self.withdraw_one(endpoint));
        let done =
            if self.has_places() { self.switch.inside(|| each().fold(Ok(()), Result::and)) } else { Ok(()) };
        self.forwarder = None;
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
        if !self.has_places() {
            return Ok(());
        }
        self.switch.inside(|| {
            let mut here = Links::here()?;
            let deadline = Instant::now() + UNDOING;
            self.endpoints
                .iter()
                .map(|endpoint| self.finish_one(endpoint, &mut here, deadline))
                .fold(Ok(()), Result::and)
        })
    }

    fn finish_one(&self, endpoint: &Endpoint, here: &mut Links, deadline: Instant) -> Result<(), Error> {
        let live = self.live(endpoint);
        gone_is_fine(self.firewall.forget_flows(&live))?;
        while !live.link.is_empty() && here.index(&live.link)?.is_some() {
            if Instant::now() >= deadline {
                here.remove(&live.link)?;
            }
            let _ = poll(&mut [], Some(&LOOK));
        }
        forget(&self.run, &self.firewall, &self.instance, &live)
    }
}

/// Where the ports of an endpoint lead to that are served: to the instance's address of the same IP version if it has one.
fn routes<'a>(
    switch: &Switch,
    endpoint: &Endpoint,
    reserved: &mut impl Iterator<Item = &'a Reserved>,
) -> Vec<Route<'a>> {
    let first = endpoint.interface.addresses.first().map(IpNet::addr);
    let route = |(port, kept): (&PublishedPort, &'a Reserved)| {
        let is_fitting = |home: &IpAddr| home.is_ipv4() == port.host_ip.is_ipv4();
        let home = endpoint.interface.addresses.iter().map(IpNet::addr).find(is_fitting).or(first)?;
        let home = SocketAddr::new(home, port.port);
        is_served(switch, endpoint, port).then(|| Route {
            protocol: port.protocol,
            socket: kept.as_fd(),
            home,
        })
    };
    endpoint.ports.iter().zip(reserved).filter_map(route).collect()
}

/// Whether a port is served by a forwarder: no rule of the host's firewall leads to the instance.
fn is_served(switch: &Switch, endpoint: &Endpoint, port: &PublishedPort) -> bool {
    let is_users = switch.namespace().is_some();
    !endpoint.network.internal && (is_users || firewall::way(endpoint, port).is_none())
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
pub fn clean_up(run: &Path, switch: &Switch, instance: &str, endpoints: &[Endpoint]) -> Result<(), Error> {
    let left: Vec<Live> = endpoints
        .iter()
        .filter_map(|endpoint| files::read_live(run, &endpoint.network.id, instance))
        .collect();
    if left.is_empty() {
        return Ok(());
    }
    if switch.is_gone() {
        let forget = |live: &Live| files::remove_live(run, &live.endpoint.network.id, instance);
        return left.iter().try_for_each(forget);
    }
    switch.inside(|| {
        let firewall = Firewall::new(table_name(run));
        left.iter().try_for_each(|live| clean_up_one(run, &firewall, instance, live))
    })
}

fn clean_up_one(run: &Path, firewall: &Firewall, instance: &str, live: &Live) -> Result<(), Error> {
    if !live.link.is_empty() {
        Links::here()?.remove(&live.link)?;
    }
    {
        let _shared = files::Lock::share(run)?;
        if !live.endpoint.names.is_empty() {
            gone_is_fine(firewall.withdraw(live))?;
        }
    }
    forget(run, firewall, instance, live)
}

/// Makes a network's bridge unless it is there. That it is switched on means that all else of it is there.
///
/// # Errors
/// The kernel refuses.
pub fn ensure(run: &Path, switch: &Switch, firewall: &Firewall, network: &Network) -> Result<(), Error> {
    switch.inside(|| ensure_here(run, firewall, network))
}

fn ensure_here(run: &Path, firewall: &Firewall, network: &Network) -> Result<(), Error> {
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
        restore_here(run, firewall)?;
    }
    links.ensure_bridge(network)
}

/// Takes a network's bridge away.
///
/// # Errors
/// The kernel refuses.
pub fn remove(run: &Path, switch: &Switch, firewall: &Firewall, network: &Network) -> Result<(), Error> {
    let _lock = files::Lock::take(run)?;
    if network.driver == Driver::Bridge && !switch.is_gone() {
        switch.inside(|| {
            Links::here()?.remove(&network.bridge)?;
            Ok(gone_is_fine(firewall.remove_network(network))?)
        })?;
    }
    files::remove_network(run, &network.id)
}

/// Takes the firewall's tables away, and all files.
///
/// # Errors
/// The kernel refuses.
pub fn remove_all(run: &Path, switch: &Switch, firewall: &Firewall) -> Result<(), Error> {
    let _lock = files::Lock::take(run)?;
    if !switch.is_gone() {
        switch.inside(|| Ok(firewall.remove()?))?;
    }
    files::remove_directory(run)
}

/// Brings the firewall of the caller's network namespace to what the files say. The caller holds the lock.
fn restore_here(run: &Path, firewall: &Firewall) -> Result<(), Error> {
    let (networks, places) = files::read_all(run);
    let places: Vec<Live> = places.into_iter().map(|(_, live)| live).collect();
    Ok(firewall.restore(&networks, &places)?)
}

fn index(links: &mut Links, name: &str) -> Result<u32, Error> {
    links.index(name)?.ok_or_else(|| Error::at("find", name)(Errno::NODEV))
}
