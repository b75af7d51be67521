//! Networks of an ordinary user: what differs from root's, which `parity::network` has in common. Each test has a host of
//! its own, a network namespace that is joined with another one and with nothing else.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use proa_sys::process::aside;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::harness::{Output, Proa};
use crate::lan::{ask, told};
use crate::network::{Server, helpers, kill};
use crate::parity::Bed;
use crate::parity::outside::serve;

const HOST: &str = "198.18.90.1";
const FAR: &str = "198.18.90.2";
const LIMIT: Option<Duration> = Some(Duration::from_secs(30));

/// A host, and another that it has its default routes to.
struct Hosts {
    names: [String; 2],
}

impl Hosts {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = |kind: &str| format!("proa-t{}-{number}{kind}", std::process::id());
        let hosts = Self { names: [name("host"), name("far")] };
        let [host, far] = &hosts.names;
        let script = r#"
            set -e
            ip netns add "$1" && ip netns add "$2"
            ip -n "$1" link add eth0 type veth peer name eth0 netns "$2"
            for pair in "$1 1" "$2 2"; do set -- $pair
                ip -n "$1" addr add "198.18.90.$2/24" dev eth0
                ip -n "$1" addr add "fd00:90::$2/64" dev eth0 nodad
                ip -n "$1" link set lo up && ip -n "$1" link set eth0 up
                ip -n "$1" route add default via "198.18.90.$((3 - $2))"
                ip -n "$1" -6 route add default via "fd00:90::$((3 - $2))"
                ip netns exec "$1" sh -c 'echo "0 2147483647" > /proc/sys/net/ipv4/ping_group_range'
            done"#;
        let made = Command::new("sh").args(["-c", script, "sh", host, far]).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        hosts
    }

    fn bed(&self, level: &'static str) -> Bed {
        let mut proa = if level == "vm" { crate::rootless_vm::user() } else { Proa::of_user("proa-test") };
        proa.live_in(&format!("/run/netns/{}", self.names[0]));
        Bed::of(proa.import_busybox(), level)
    }

    fn on_host<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.on(0, work)
    }

    fn far_away<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.on(1, work)
    }

    fn on<T: Send>(&self, number: usize, work: impl FnOnce() -> T + Send) -> T {
        let namespace = std::fs::File::open(format!("/run/netns/{}", self.names[number])).unwrap();
        aside(move || {
            use std::os::fd::AsFd;
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        })
    }

    /// What a server of ours says, or none where nobody can be reached.
    fn get(&self, from: usize, at: &str) -> Option<String> {
        let at: SocketAddr = at.parse().unwrap();
        self.on(from, || {
            let mut stream = TcpStream::connect_timeout(&at, Duration::from_secs(3)).ok()?;
            stream.set_read_timeout(LIMIT).unwrap();
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
            let mut text = String::new();
            stream.read_to_string(&mut text).ok()?;
            Some(text.split("\r\n\r\n").nth(1)?.to_owned())
        })
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

/// Answers one client by HTTP, and tells who it was. (A client that shuts its side at once is not served to the end by
/// pasta of Debian 12.)
fn greet(listener: TcpListener) -> std::thread::JoinHandle<IpAddr> {
    std::thread::spawn(move || {
        // As servers do, it goes on where one asks for nothing: the oldest pasta gives a connection up whose client it
        // hears from twice before it has answered, and makes another.
        let (mut stream, client) = loop {
            let (mut stream, client) = listener.accept().unwrap();
            if stream.read(&mut [0; 1024]).is_ok_and(|length| length > 0) {
                break (stream, client);
            }
        };
        // With its length: the oldest pasta does not always tell a client the end that has ended its own side before.
        stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello").unwrap();
        client.ip()
    })
}

/// What an instance's client of HTTP says within a limit.
fn fetch(address: &str, port: &str) -> [String; 3] {
    let address = if address.contains(':') && !address.contains('.') {
        format!("[{address}]")
    } else {
        address.to_owned()
    };
    ["sh".into(), "-c".into(), format!("timeout 60 wget -qO- http://{address}:{port}/")]
}

fn a_way_out(level: &'static str) {
    let hosts = Hosts::new();
    let bed = hosts.bed(level);
    for (address, own) in [(FAR, HOST), ("fd00:90::2", "fd00:90::1")] {
        let listener = hosts.far_away(|| TcpListener::bind((address, 0)).unwrap());
        let port = listener.local_addr().unwrap().port().to_string();
        let client = greet(listener);
        let network: &[&str] = if own.contains(':') { &["--network", "six"] } else { &[] };
        if own.contains(':') {
            bed.ok(&["network", "create", "--ipv6", "six"]);
        }
        let seen = bed.run_ok(network, &fetch(address, &port).each_ref().map(String::as_str));
        assert_eq!((seen.as_str(), client.join().unwrap().to_string()), ("hello", own.to_owned()));
    }
    bed.run_ok(&[], &["ping", "-c", "1", "-W", "10", FAR]);
    // The host by its name; what it has for itself alone is not to be had.
    let listener = hosts.on_host(|| TcpListener::bind((HOST, 0)).unwrap());
    let port = listener.local_addr().unwrap().port().to_string();
    let client = greet(listener);
    let by_name = fetch("host.docker.internal", &port);
    assert_eq!(bed.run_ok(&[], &by_name.each_ref().map(String::as_str)), "hello");
    assert_eq!(client.join().unwrap().to_string(), HOST);
    let own = hosts.on_host(|| TcpListener::bind("127.0.0.1:0").unwrap());
    let port = own.local_addr().unwrap().port().to_string();
    for address in ["host.docker.internal", "169.254.77.1"] {
        let refused = bed.run(&[], &["timeout", "3", "nc", "-w", "3", address, &port]);
        assert_ne!(refused.code, 0, "{refused:?}");
    }
    names_of_others(&hosts, &bed);
}

/// A server of names far away, that knows one address.
fn names_of_others(hosts: &Hosts, bed: &Bed) {
    let server = hosts.far_away(|| UdpSocket::bind((FAR, 53)).unwrap());
    server.set_read_timeout(LIMIT).unwrap();
    let answering = std::thread::spawn(move || {
        let mut packet = [0; 512];
        for _ in 0..2 {
            let Ok((length, client)) = server.recv_from(&mut packet) else { return };
            // The question as it came; an answer, if it is for an address of IPv4, that points back to its name.
            let question = packet[12..length].to_vec();
            let is_a = question.windows(4).any(|end| end == [0, 1, 0, 1]);
            let mut answer = packet[..2].to_vec();
            answer.extend([0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
            answer.extend(question);
            if is_a {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 203, 0, 113, 9]);
            }
            server.send_to(&answer, client).unwrap();
        }
    });
    let found = bed.run(&["--dns", FAR], &["nslookup", "-type=a", "somewhere.example"]);
    assert!(found.stdout.contains("203.0.113.9"), "{found:?}");
    drop(answering);
}

#[test]
fn a_container_has_a_way_out() {
    a_way_out("container");
}

#[test]
fn a_virtual_machine_has_a_way_out() {
    a_way_out("vm");
}

fn ports(level: &'static str) {
    let hosts = Hosts::new();
    let bed = hosts.bed(level);
    let serve = "mkdir -p /www; printf served > /www/index.html; exec httpd -f -vv -p 8000 -h /www";
    let everywhere = "0.0.0.0:18000:8000";
    let flags = ["-p", "8000", "-p", everywhere, "-p", "198.18.90.1::8000", "--stop-signal", "KILL"];
    bed.detach("site", &flags, &["sh", "-c", serve]);
    Server::named("site").wait(&bed);
    let shown = bed.ok(&["port", "site", "8000"]);
    let of = |address: &str| shown.lines().find(|line| line.starts_with(address)).unwrap().to_owned();
    let (own, lan) = (of("127.0.0.1:"), of("198.18.90.1:"));
    for at in [&own, &lan, "198.18.90.1:18000", "127.0.0.1:18000"] {
        assert_eq!(hosts.get(0, at).as_deref(), Some("served"), "{at}");
    }
    for at in [&lan, "198.18.90.1:18000"] {
        assert_eq!(hosts.get(1, at).as_deref(), Some("served"), "{at}");
    }
    let port = own.rsplit(':').next().unwrap();
    assert_eq!(hosts.get(1, &format!("{HOST}:{port}")), None);
    let log = bed.proa(&["logs", "site"]);
    let clients = |address: &str| log.stderr.matches(&format!("{address}]:")).count();
    assert!(clients(FAR) >= 2 && clients(HOST) >= 2, "{log:?}");
    let listed = bed.ok(&["ps", "--format", "{{.Ports}}"]);
    assert!(listed.contains("0.0.0.0:18000->8000/tcp") && listed.contains(&own), "{listed}");
    bed.ok(&["stop", "-t", "0", "site"]);
    assert_eq!(hosts.get(0, &own), None);
}

/// UDP and IPv6, from here and from elsewhere, at each address of a host that has several.
fn everywhere(level: &'static str) {
    let hosts = Hosts::new();
    let more = "addr add 198.18.90.9/24 dev eth0\naddr add fd00:90::9/64 dev eth0 nodad";
    hosts.on_host(|| crate::lan::ip(more));
    let bed = hosts.bed(level);
    bed.ok(&["network", "create", "--ipv6", "six"]);
    let mut flags = vec!["--network", "six"];
    let ports = [
        "0.0.0.0:18000:80",
        "[::]:18000:80",
        "[::1]:18001:80",
        "[fd00:90::1]:18002:80",
        "127.0.0.1:18001:80",
    ];
    let udp: Vec<String> = ports.iter().map(|port| format!("{port}/udp")).collect();
    ports.into_iter().chain(udp.iter().map(String::as_str)).for_each(|port| flags.extend(["-p", port]));
    serve(&bed, "who", &flags, &["80"]);
    let gateway = |number: u32| {
        bed.ok(&[
            "network",
            "inspect",
            "-f",
            &format!("{{{{(index .IPAM.Config {number}).Gateway}}}}"),
            "six",
        ])
    };
    let (gateway, gateway_6) = (gateway(0), gateway(1));
    for udp in [false, true] {
        for (at, from) in [
            ("198.18.90.1:18000", FAR),
            ("198.18.90.9:18000", FAR),
            ("[fd00:90::1]:18000", "fd00:90::2"),
            ("[fd00:90::9]:18000", "fd00:90::2"),
            ("[fd00:90::1]:18002", "fd00:90::2"),
        ] {
            assert_eq!(hosts.far_away(|| told(udp, at)), from, "{at}");
        }
        for (at, from) in [
            ("127.0.0.1:18001", &gateway),
            ("127.0.0.7:18000", &gateway),
            ("[::1]:18001", &gateway_6),
            ("[::1]:18000", &gateway_6),
        ] {
            assert_eq!(hosts.on_host(|| told(udp, at)), *from, "{at}");
        }
        for at in ["198.18.90.1:18001", "[fd00:90::1]:18001", "[fd00:90::9]:18002"] {
            let silence = Duration::from_millis(300);
            assert!(hosts.far_away(|| ask(udp, at, silence)).is_err(), "{at}");
        }
    }
    hosts.far_away(one_socket_asks_twice);
    confined(&bed);
}

/// The answers come from where was asked, whatever the client's port; TCP from one port as well.
fn one_socket_asks_twice() {
    for (port, places) in
        [(123, ["198.18.90.1:18000", "198.18.90.9:18000"]), (0, ["[fd00:90::1]:18000", "[fd00:90::1]:18002"])]
    {
        let places = places.map(|text| text.parse::<SocketAddr>().unwrap());
        let everywhere = if places[0].is_ipv4() { "0.0.0.0" } else { "::" };
        let socket = UdpSocket::bind((everywhere, port)).unwrap();
        socket.set_read_timeout(LIMIT).unwrap();
        let mut from: Vec<SocketAddr> = Vec::new();
        let mut packet = [0; 64];
        places.iter().for_each(|place| _ = socket.send_to(b"?", place).unwrap());
        places.iter().for_each(|_| from.push(socket.recv_from(&mut packet).unwrap().1));
        assert!(places.iter().all(|place| from.contains(place)), "{from:?}");
    }
    let client = "198.18.90.2:40404".parse::<SocketAddr>().unwrap();
    let open: Vec<TcpStream> = ["198.18.90.1:18000", "198.18.90.9:18000"]
        .map(|at| {
            use rustix::net::{AddressFamily, SocketType, bind, connect, socket, sockopt};
            let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
            sockopt::set_socket_reuseaddr(&socket, true).unwrap();
            bind(&socket, &client).unwrap();
            connect(&socket, &at.parse::<SocketAddr>().unwrap()).unwrap();
            TcpStream::from(socket)
        })
        .into();
    for mut stream in open {
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert_eq!(text.trim(), FAR);
    }
}

/// Who forwards, and who reads questions for names, makes few calls of the kernel's.
fn confined(bed: &Bed) {
    let status = |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let filtered = |name: &str| {
        let found = helpers(bed, name);
        found.iter().filter(|pid| status(pid).contains("Seccomp:\t2")).count()
    };
    assert_eq!((helpers(bed, "proa-forward").len(), filtered("proa-forward")), (1, 1));
    assert_eq!(filtered("proa-resolver"), 1);
}

#[test]
fn a_container_is_reached_by_each_address_of_the_host() {
    everywhere("container");
}

#[test]
fn a_virtual_machine_is_reached_by_each_address_of_the_host() {
    everywhere("vm");
}

#[test]
fn ports_of_a_container_are_reached_with_the_clients_addresses() {
    ports("container");
}

#[test]
fn ports_of_a_virtual_machine_are_reached_with_the_clients_addresses() {
    ports("vm");
}

#[test]
fn ports_that_a_user_cannot_have_say_why() {
    let hosts = Hosts::new();
    let bed = hosts.bed("container");
    let low = bed.run(&["-p", "80:80"], &["true"]);
    assert!(low.code == 125 && low.stderr.contains("net.ipv4.ip_unprivileged_port_start"), "{low:?}");
    let sctp = bed.run(&["-p", "8080:80/sctp"], &["true"]);
    assert!(sctp.code == 125 && sctp.stderr.contains("SCTP"), "{sctp:?}");
    let macvlan = bed.proa(&["network", "create", "-d", "macvlan", "-o", "parent=eth0", "lan"]);
    assert!(macvlan.code != 0 && macvlan.stderr.contains("root"), "{macvlan:?}");
    let ranges = ["-p", "18010-18012:10-12", "-P", "--expose", "99"];
    bed.detach("many", &[&ranges[..], &["--stop-signal", "KILL"]].concat(), &["sleep", "1000"]);
    let shown = bed.ok(&["port", "many"]);
    assert!(shown.contains("12/tcp -> 127.0.0.1:18012") && shown.contains("99/tcp -> "), "{shown}");
    assert_eq!(shown.lines().count(), 4, "{shown}");
}

#[test]
fn what_is_killed_comes_back() {
    let hosts = Hosts::new();
    let bed = hosts.bed("container");
    let server = Server::start(&bed, "site", &["-p", "0.0.0.0:18000:8000"]);
    let address = server.address(&bed);
    let reach = || hosts.get(1, "198.18.90.1:18000").as_deref() == Some("served");
    assert!(reach());
    let ping = ["exec", "site", "ping", "-c", "1", "-W", "1", FAR];
    // The way out.
    for name in ["pasta", "passt"] {
        helpers(&bed, name).into_iter().for_each(kill);
    }
    assert!(reach());
    bed.proa.wait_for("the way out", || bed.proa(&ping).code == 0);
    // The forwarder of ports.
    let [forwarder] = helpers(&bed, "proa-forward")[..] else { panic!("no forwarder") };
    kill(forwarder);
    bed.proa.wait_for("the port", reach);
    // Who keeps the namespace: the next finds it by the instance that runs, and they are in one network.
    helpers(&bed, "proa-resolver").into_iter().for_each(kill);
    assert!(reach());
    let page = bed.run_ok(&[], &["wget", "-qO-", "http://site:8000/"]);
    assert_eq!(page, "served");
    bed.proa.wait_for("the way out", || bed.proa(&ping).code == 0);
    // The monitor, with all that is its.
    bed.proa.monitors().into_iter().for_each(kill);
    bed.proa.wait_for("the end", || bed.ok(&["ps", "-q"]).is_empty());
    assert_eq!(hosts.get(0, "127.0.0.1:18000"), None);
    assert_eq!(helpers(&bed, "proa-forward").len(), 0);
    bed.ok(&["start", "site"]);
    server.wait(&bed);
    assert_eq!(server.address(&bed), address);
    assert!(reach());
}

/// A host without any network: what is in a network of the user's finds each other all the same.
#[test]
fn without_a_way_out_instances_reach_each_other() {
    let hosts = Hosts::new();
    let bed = hosts.bed("container");
    let cut = Command::new("ip").args(["-n", &hosts.names[0], "link", "del", "eth0"]).status().unwrap();
    assert!(cut.success());
    let server = Server::start(&bed, "site", &["-p", "18000:8000"]);
    let asked = bed.run(&[], &["wget", "-qO-", "http://site:8000/"]);
    assert_eq!((asked.code, asked.stdout.as_str()), (0, "served"), "{asked:?}");
    assert!(asked.stderr.contains("no way out") && asked.stderr.lines().count() == 1, "{asked:?}");
    assert_eq!(hosts.get(0, "127.0.0.1:18000").as_deref(), Some("served"));
    drop(server);
}

/// Runs `proa` where the host's directory of programs has no pasta.
fn without_pasta(bed: &Bed, arguments: &[&str]) -> Output {
    let hide = "set -e; mount -t tmpfs none \"$0\"; mkdir \"$0/upper\" \"$0/work\"; \
                mount -t overlay -o lowerdir=/usr/bin,upperdir=\"$0/upper\",workdir=\"$0/work\" none /usr/bin; \
                rm /usr/bin/pasta*; exec \"$@\"";
    let inner = bed.proa.command(arguments);
    let place = tempfile::tempdir().unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", hide]).arg(place.path());
    command.arg(inner.get_program()).args(inner.get_args());
    bed.proa.run_command(command, b"")
}

#[test]
fn without_pasta_a_network_is_refused_and_none_and_host_work() {
    let bed = Bed::rootless();
    let run = |flags: &[&str]| {
        without_pasta(&bed, &[&["run", "--rm"][..], flags, &["busybox", "echo", "works"]].concat())
    };
    for flags in [&[][..], &["-p", "8080:80"], &["-d"]] {
        let refused = run(flags);
        assert_eq!((refused.code, refused.stdout.as_str()), (125, ""), "{refused:?}");
        let has = |word: &str| refused.stderr.contains(word);
        assert!(has("pasta") && has("apt install passt") && has("--network none"), "{refused:?}");
        assert_eq!(refused.stderr.lines().count(), 1, "{refused:?}");
    }
    for network in ["none", "host"] {
        let works = run(&["--network", network]);
        assert_eq!((works.code, works.stdout.as_str()), (0, "works\n"), "{works:?}");
    }
    assert_eq!(bed.ok(&["ps", "-aq"]), "");
    bed.run_ok(&[], &["true"]);
}
