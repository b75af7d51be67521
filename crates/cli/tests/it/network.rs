//! Networks, where both levels are in one of them or a level has something of its own; and what the tests of networks
//! share.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use crate::harness::Proa;
use crate::parity::Bed;

/// An instance that answers `served` at port 8000.
pub struct Server {
    /// Its id.
    pub id: String,
    name: String,
}

impl Server {
    /// Starts it and waits until it answers.
    pub fn start(bed: &Bed, name: &str, flags: &[&str]) -> Self {
        let serve = "mkdir -p /www; printf served > /www/index.html; exec httpd -f -p 8000 -h /www";
        // As the first process of its namespace it does not hear SIGTERM.
        let id = bed.detach(name, &[flags, &["--stop-signal", "KILL"]].concat(), &["sh", "-c", serve]);
        let server = Self { id, name: name.to_owned() };
        server.wait(bed);
        server
    }

    /// One that was started otherwise.
    pub fn named(name: &str) -> Self {
        Self { id: String::new(), name: name.to_owned() }
    }

    /// Waits until it answers.
    pub fn wait(&self, bed: &Bed) {
        let ask = ["exec", &self.name, "wget", "-qO-", "http://127.0.0.1:8000/"];
        bed.proa.wait_for("the server", || bed.proa(&ask).stdout == "served");
    }

    /// Its address in its first network.
    pub fn address(&self, bed: &Bed) -> String {
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        bed.ok(&["inspect", "-f", format, &self.name])
    }
}

/// What a server at an address of this host says.
pub fn get(at: &str) -> String {
    let limit = Some(Duration::from_secs(30));
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(limit).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text.split("\r\n\r\n").nth(1).unwrap_or_default().to_owned()
}

/// A port of the host that nobody has at this moment.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Kills a process without a word.
pub fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn a_container_and_a_virtual_machine_talk_by_name() {
    let (containers, machines) = (Bed::new("container"), "vm");
    let server = Server::start(&containers, "box", &["-p", "8000"]);
    let bed = Bed { level: machines, ..containers };
    let guest = Server::start(&bed, "guest", &["-p", "8000"]);
    let to = |from: &str, to: &str| bed.ok(&["exec", from, "wget", "-qO-", &format!("http://{to}:8000/")]);
    assert_eq!((to("box", "guest"), to("guest", "box")), ("served".into(), "served".into()));
    for name in ["box", "guest"] {
        assert_eq!(get(&bed.ok(&["port", name, "8000"])), "served");
    }
    assert_ne!(server.address(&bed), guest.address(&bed));
}

#[test]
fn a_virtual_machine_that_runs_has_room_for_two_more_networks_at_a_time() {
    let bed = Bed::new("vm");
    for network in ["one", "two", "three"] {
        bed.ok(&["network", "create", network]);
    }
    bed.detach("guest", &["--stop-signal", "KILL"], &["sleep", "1000"]);
    let change = |what: &str, network: &str| bed.proa(&["network", what, network, "guest"]);
    let links = || bed.ok(&["exec", "guest", "ls", "/sys/class/net"]).replace('\n', " ");
    for network in ["one", "two"] {
        assert_eq!(change("connect", network).code, 0);
    }
    assert_eq!(links(), "eth0 eth1 eth2 lo");
    let refused = change("connect", "three");
    assert!(refused.code == 1 && refused.stderr.contains("spare network devices"), "{refused:?}");
    // A device that was freed is used again; that of the start is not.
    for network in ["one", "three", "bridge"] {
        assert_eq!(change("disconnect", network).code, i32::from(network == "three"), "{network}");
    }
    assert_eq!(change("connect", "three").code, 0);
    assert_eq!(links(), "eth0 eth2 lo");
    assert_eq!(change("connect", "one").code, 1);
    bed.ok(&["restart", "-t", "0", "guest"]);
    assert_eq!(links(), "eth0 eth2 lo");
    assert_eq!(change("connect", "one").code, 0);
}

#[test]
fn a_guest_that_hides_its_interface_is_cut_off_all_the_same() {
    let bed = Bed::new("vm");
    bed.ok(&["network", "create", "lan"]);
    Server::start(&bed, "site", &["--network", "lan"]);
    bed.detach("thief", &["--cap-add", "NET_ADMIN", "--stop-signal", "KILL"], &["sleep", "1000"]);
    let ask = || bed.proa(&["exec", "thief", "timeout", "3", "wget", "-qO-", "http://site.lan:8000/"]);
    bed.ok(&["network", "connect", "lan", "thief"]);
    assert_eq!(ask().stdout, "served");
    let rename = "ip link set eth1 down; ip link set eth1 name mine; ip link set mine up";
    bed.ok(&["exec", "thief", "sh", "-c", rename]);
    bed.ok(&["network", "disconnect", "lan", "thief"]);
    assert_ne!(ask().code, 0);
    // What it keeps leads nowhere, and another device takes its place.
    assert!(bed.ok(&["exec", "thief", "ls", "/sys/class/net"]).contains("mine"));
    bed.ok(&["exec", "thief", "ip", "link", "set", "mine", "down"]);
    bed.ok(&["network", "connect", "lan", "thief"]);
    assert_eq!(ask().stdout, "served");
}

#[test]
fn two_containers_share_a_network_stack() {
    let bed = Bed::new("container");
    Server::start(&bed, "site", &[]);
    let share = ["--network", "container:site"];
    assert_eq!(bed.run_ok(&share, &["wget", "-qO-", "http://127.0.0.1:8000/"]), "served");
    bed.ok(&["stop", "-t", "0", "site"]);
    let refused = bed.run(&share, &["true"]);
    assert!(refused.code == 125 && refused.stderr.contains("not running"), "{refused:?}");
    let refused = Bed { level: "vm", ..bed }.run(&share, &["true"]);
    assert!(refused.code == 125 && refused.stderr.contains("two containers"), "{refused:?}");
}

#[test]
fn rules_that_somebody_flushed_come_back() {
    let bed = Bed::new("container");
    let server = Server::start(&bed, "site", &["-p", "8000"]);
    let run = bed.ok(&["info", "--format", "{{.RunRoot}}"]);
    let table = run.rsplit('/').next().unwrap().replace('-', "_");
    for family in ["inet", "bridge"] {
        bed.proa.shell_with_input(&format!("nft delete table {family} {table}"), b"");
    }
    let at = bed.ok(&["port", "site", "8000"]);
    bed.proa.wait_for("the rules", || TcpStream::connect(&at).is_ok());
    assert_eq!(get(&at), "served");
    drop(server);
}

#[test]
fn many_come_and_go_and_nothing_of_them_stays() {
    let proa = Proa::with_busybox();
    proa.ok(&["network", "create", "lan"]);
    let table = || {
        let run = proa.ok(&["info", "--format", "{{.RunRoot}}"]);
        let name = run.rsplit('/').next().unwrap().replace('-', "_");
        proa.shell_with_input(&format!("nft list table inet {name}; nft list table bridge {name}"), b"")
    };
    let before = table();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..10 {
                    let run = proa.run(&[
                        "run",
                        "--rm",
                        "--network",
                        "lan",
                        "-p",
                        "80",
                        "busybox",
                        "hostname",
                        "-i",
                    ]);
                    assert!(run.code == 0 && run.stdout.starts_with("172."), "{run:?}");
                }
            });
        }
    });
    // What the kernel undoes behind the last of them.
    proa.wait_for("the table to be as before", || table() == before);
}

#[test]
fn a_place_whose_instance_is_gone_is_found_and_taken_away() {
    let bed = Bed::new("container");
    let server = Server::start(&bed, "site", &["-p", "8000"]);
    let run = bed.ok(&["info", "--format", "{{.RunRoot}}"]);
    let network = bed.ok(&["network", "ls", "-q", "--no-trunc", "--filter", "name=bridge"]);
    let place = std::path::Path::new(&run).join("networks").join(&network).join(&server.id);
    let text = std::fs::read_to_string(&place).unwrap();
    bed.ok(&["rm", "-f", "site"]);
    bed.proa.wait_for("the place to go", || !place.exists());
    std::fs::write(&place, &text).unwrap();
    let found = bed.proa(&["system", "check"]);
    assert!(found.code != 0 && found.stdout.contains("has a place in network bridge"), "{found:?}");
    bed.proa(&["system", "check", "--repair"]);
    assert!(!place.exists());
    assert_eq!(bed.proa(&["system", "check"]).code, 0);
}

/// Processes of the test's root whose name is this.
pub fn helpers(bed: &Bed, name: &str) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let root = bed.proa.root().to_str().unwrap();
    let is_it = |pid: &u32| {
        let read = |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        read("comm").starts_with(name.as_bytes()) && String::from_utf8_lossy(&read("cmdline")).contains(root)
    };
    pids.filter(is_it).collect()
}
