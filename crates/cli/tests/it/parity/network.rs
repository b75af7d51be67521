//! Networks: addresses, names, ports, isolation.

use super::{Bed, at_both_levels};
use crate::network::{Server, get};

at_both_levels!(
    none_is_a_loopback_interface_alone,
    ports_that_make_no_sense_are_refused,
    an_instance_has_an_address_and_is_found_by_its_names,
    a_published_port_is_reached_from_the_host,
    a_port_is_free_again_when_its_instance_has_ended,
    networks_do_not_reach_each_other,
    an_address_that_is_asked_for_is_given_once,
    an_internal_network_has_no_way_out,
    an_instance_keeps_its_address,
    a_client_of_dhcp_is_given_the_claimed_address,
    inspect_tells_of_networks_as_docker_does,
    a_network_in_use_stays,
    a_killed_monitor_leaves_no_port_taken,
    a_stopped_instance_changes_its_networks,
    a_running_instance_changes_its_networks,
    networks_that_changed_while_an_instance_ran_outlive_a_crash,
    bad_names_and_addresses_are_refused,
    some_networks_are_always_there
);

/// As an ordinary user's virtual machine, where a guest is all that differs from the container's test.
mod a_users_machine {
    use crate::parity::Bed;

    #[test]
    fn is_found_by_its_names() {
        super::an_instance_has_an_address_and_is_found_by_its_names(&Bed::rootless_vm());
    }

    #[test]
    fn publishes_ports() {
        super::a_published_port_is_reached_from_the_host(&Bed::rootless_vm());
    }

    #[test]
    fn keeps_its_address() {
        super::an_instance_keeps_its_address(&Bed::rootless_vm());
    }

    #[test]
    fn changes_its_networks() {
        super::a_stopped_instance_changes_its_networks(&Bed::rootless_vm());
    }
}

fn none_is_a_loopback_interface_alone(bed: &Bed) {
    assert_eq!(bed.run_ok(&["--network", "none"], &["ls", "/sys/class/net"]), "lo");
}

fn ports_that_make_no_sense_are_refused(bed: &Bed) {
    for port in ["x", "80:", "1-3:80-81", "host:80:80", "70000:80", "80/icmp"] {
        let refused = bed.run(&["-p", port], &["true"]);
        assert_eq!(refused.code, 125, "{port}: {refused:?}");
        assert!(refused.stderr.contains("-p") && refused.stderr.contains(port), "{refused:?}");
    }
}

fn an_instance_has_an_address_and_is_found_by_its_names(bed: &Bed) {
    bed.ok(&["network", "create", "web"]);
    let server = Server::start(bed, "site", &["--network", "web", "--network-alias", "front"]);
    let own = bed
        .run_ok(&["--network", "web", "-h", "guest"], &["sh", "-c", "hostname -i; ip route | grep default"]);
    let (own, route) = own.split_once('\n').unwrap();
    assert!(own.starts_with("172.") && route.contains("dev eth0"), "{own} {route}");
    for name in ["site", "front", "SITE", "site.web", &server.id[..12], &server.address(bed)] {
        let page = bed.run_ok(&["--network", "web"], &["wget", "-qO-", &format!("http://{name}:8000/")]);
        assert_eq!(page, "served", "{name}");
    }
    let unknown = bed.run(&["--network", "web"], &["nslookup", "nobody.web"]);
    assert_ne!(unknown.code, 0, "{unknown:?}");
    let host = bed.run_ok(&["--network", "web"], &["nslookup", "host.docker.internal"]);
    let gateway = bed.ok(&["network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", "web"]);
    // An ordinary user's gateway is not the host's.
    assert!(host.contains(&gateway) || bed.uid() != 0, "{host} {gateway}");
}

fn a_published_port_is_reached_from_the_host(bed: &Bed) {
    let server = Server::start(bed, "site", &["-p", "8000", "-p", "127.0.0.1::8000/tcp"]);
    let ports = bed.ok(&["port", "site", "8000"]);
    assert_eq!(ports.lines().count(), 2, "{ports}");
    for at in ports.lines() {
        assert!(at.starts_with("127.0.0.1:"), "{at}");
        assert_eq!(get(at), "served");
    }
    if bed.uid() == 0 {
        assert_eq!(get(&format!("{}:8000", server.address(bed))), "served");
    }
    let shown = bed.ok(&["ps", "--format", "{{.Ports}}"]);
    assert!(shown.contains(&format!("{}->8000/tcp", ports.lines().next().unwrap())), "{shown}");
    let taken = bed.run(&["-p", &format!("{}:80", ports.lines().next().unwrap())], &["true"]);
    assert!(taken.code == 125 && taken.stderr.contains("in use"), "{taken:?}");
}

fn a_port_is_free_again_when_its_instance_has_ended(bed: &Bed) {
    let port = crate::network::free_port();
    for _ in 0..3 {
        bed.run_ok(&["-p", &format!("{port}:80")], &["true"]);
    }
}

fn networks_do_not_reach_each_other(bed: &Bed) {
    bed.ok(&["network", "create", "one"]);
    bed.ok(&["network", "create", "two"]);
    let server = Server::start(bed, "site", &["--network", "one"]);
    let address = server.address(bed);
    let reach = |network: &str, host: &str| {
        bed.run(
            &["--network", network],
            &["sh", "-c", &format!("timeout 3 wget -qO- http://{host}:8000/ || exit 1")],
        )
    };
    assert_eq!(reach("one", &address).stdout, "served");
    assert_ne!(reach("two", &address).code, 0);
    assert_ne!(reach("two", "site").code, 0);
}

fn an_address_that_is_asked_for_is_given_once(bed: &Bed) {
    // The levels run side by side on one host.
    let net = match bed.level {
        _ if bed.uid() != 0 => "198.18.79",
        "vm" => "198.18.78",
        _ => "198.18.77",
    };
    let (subnet, gateway, address) = (format!("{net}.0/24"), format!("{net}.254"), format!("{net}.9"));
    bed.ok(&["network", "create", "--subnet", &subnet, "--gateway", &gateway, "lan"]);
    let place = format!("name=lan,ip={address},mac-address=02:00:00:00:77:09");
    let seen = bed.run_ok(&["--network", &place], &["sh", "-c", "ip addr show eth0; ip route"]);
    for part in [&format!("{address}/24"), "02:00:00:00:77:09", &format!("via {gateway}")] {
        assert!(seen.contains(part), "{part}: {seen}");
    }
    bed.detach("holder", &["--network", &place, "--stop-signal", "KILL"], &["sleep", "1000"]);
    let taken = bed.run(&["--network", "lan", "--ip", &address], &["true"]);
    assert!(taken.code == 125 && taken.stderr.contains(&address), "{taken:?}");
    let outside = bed.run(&["--network", "lan", "--ip", "10.0.0.1"], &["true"]);
    assert!(outside.code == 125 && outside.stderr.contains("no subnet"), "{outside:?}");
}

fn an_internal_network_has_no_way_out(bed: &Bed) {
    bed.ok(&["network", "create", "--internal", "inside"]);
    let server = Server::start(bed, "site", &["--network", "inside"]);
    let routes = bed.run_ok(&["--network", "inside"], &["ip", "route"]);
    assert!(!routes.contains("default"), "{routes}");
    let page = bed.run_ok(&["--network", "inside"], &["wget", "-qO-", "http://site:8000/"]);
    assert_eq!(page, "served");
    drop(server);
    let warned = bed.run(&["--network", "inside", "-p", "80"], &["true"]);
    assert!(warned.code == 0 && warned.stderr.contains("not published"), "{warned:?}");
}

fn an_instance_keeps_its_address(bed: &Bed) {
    let server = Server::start(bed, "site", &["-p", "8000"]);
    let before = server.address(bed);
    bed.detach("other", &["--stop-signal", "KILL"], &["sleep", "1000"]);
    bed.ok(&["restart", "-t", "0", "site"]);
    assert_eq!(server.address(bed), before);
    server.wait(bed);
    assert_eq!(get(&bed.ok(&["port", "site", "8000"])), "served");
}

fn a_client_of_dhcp_is_given_the_claimed_address(bed: &Bed) {
    let network =
        ["--subnet", "10.253.40.0/24", "--internal", "-o", "com.docker.network.driver.mtu=1400", "lan"];
    bed.ok(&[&["network", "create"], &network[..]].concat());
    let script = r#"
        printf '#!/bin/sh\n[ $1 = deconfig ] || echo $1 $ip $subnet $dns $mtu $hostname $domain $router\n' >/tell
        chmod +x /tell
        hostname -i
        ask() { udhcpc -i eth0 -n -q -f -t 20 -T 1 -s /tell "$@" 2>/dev/null; }
        ask && ask -r 10.253.40.99"#;
    let flags =
        ["--network", "lan", "--cap-add", "NET_ADMIN", "--hostname", "asker", "--dns-search", "a.org"];
    let said = bed.run_ok(&flags, &["sh", "-c", script]);
    // An internal network has no router.
    let told = "bound 10.253.40.2 255.255.255.0 10.253.40.1 1400 asker a.org";
    assert_eq!(said, format!("10.253.40.2\n{told}\n{told}"));
}

fn inspect_tells_of_networks_as_docker_does(bed: &Bed) {
    bed.ok(&["network", "create", "--label", "tier=one", "-o", "com.docker.network.driver.mtu=1400", "lan"]);
    let server =
        Server::start(bed, "site", &["--network", "lan", "-p", "127.0.0.1::8000", "--expose", "9/udp"]);
    let show = |format: &str| bed.ok(&["inspect", "-f", format, "site"]);
    assert_eq!(show("{{.HostConfig.NetworkMode}}"), "lan");
    assert_eq!(show("{{.NetworkSettings.Networks.lan.IPAddress}}"), server.address(bed));
    assert!(show("{{json .NetworkSettings.Ports}}").contains("\"9/udp\":null"));
    let port = show("{{(index (index .NetworkSettings.Ports \"8000/tcp\") 0).HostPort}}");
    assert_eq!(bed.ok(&["port", "site", "8000/tcp"]), format!("127.0.0.1:{port}"));
    let mtu = bed.ok(&["exec", "site", "cat", "/sys/class/net/eth0/mtu"]);
    assert_eq!(mtu, "1400");
    let members = bed.ok(&["network", "inspect", "-f", "{{range .Containers}}{{.Name}}{{end}}", "lan"]);
    assert_eq!(members, "site");
    assert_eq!(bed.ok(&["network", "ls", "--filter", "label=tier=one", "--format", "{{.Name}}"]), "lan");
    assert_eq!(bed.ok(&["ps", "-q", "--filter", "network=lan"]).lines().count(), 1);
    bed.ok(&["stop", "-t", "0", "site"]);
    assert_eq!(show("{{json .NetworkSettings.Ports}}"), "{}");
}

fn a_network_in_use_stays(bed: &Bed) {
    bed.ok(&["network", "create", "lan"]);
    bed.ok(&["create", "--isolation", bed.level, "--network", "lan", "--name", "site", "busybox", "true"]);
    let refused = bed.proa(&["network", "rm", "lan"]);
    assert!(refused.code == 1 && refused.stderr.contains("site"), "{refused:?}");
    assert_eq!(bed.ok(&["network", "prune", "-f"]), "");
    bed.ok(&["rm", "site"]);
    assert_eq!(bed.ok(&["network", "rm", "lan"]), "lan");
    let gone = bed.run(&["--network", "lan"], &["true"]);
    assert!(gone.code == 125 && gone.stderr.contains("no such network: lan"), "{gone:?}");
}

fn a_killed_monitor_leaves_no_port_taken(bed: &Bed) {
    let port = crate::network::free_port();
    let publish = format!("{port}:8000");
    let server = Server::start(bed, "site", &["-p", &publish]);
    let address = server.address(bed);
    bed.proa.monitors().iter().for_each(|pid| crate::network::kill(*pid));
    bed.proa.wait_for("the end", || bed.ok(&["ps", "-q"]).is_empty());
    bed.ok(&["start", "site"]);
    server.wait(bed);
    assert_eq!(server.address(bed), address);
    assert_eq!(get(&format!("127.0.0.1:{port}")), "served");
}

fn a_stopped_instance_changes_its_networks(bed: &Bed) {
    bed.ok(&["network", "create", "lan"]);
    bed.ok(&["create", "--isolation", bed.level, "--name", "site", "busybox", "ls", "/sys/class/net"]);
    bed.ok(&["network", "connect", "--alias", "other", "lan", "site"]);
    assert_eq!(bed.ok(&["start", "-a", "site"]), "eth0\neth1\nlo");
    let again = bed.proa(&["network", "connect", "lan", "site"]);
    assert!(again.code == 1 && again.stderr.contains("already"), "{again:?}");
    bed.ok(&["network", "disconnect", "bridge", "site"]);
    assert_eq!(bed.ok(&["start", "-a", "site"]), "eth1\nlo");
    bed.ok(&["network", "disconnect", "lan", "site"]);
    assert_eq!(bed.ok(&["start", "-a", "site"]), "lo");
    assert_eq!(bed.ok(&["inspect", "-f", "{{json .NetworkSettings.Networks}}", "site"]), "{}");
    bed.ok(&["network", "connect", "lan", "site"]);
    assert_eq!(bed.ok(&["start", "-a", "site"]), "eth0\nlo");
}

fn a_running_instance_changes_its_networks(bed: &Bed) {
    bed.ok(&["network", "create", "--ipv6", "lan"]);
    let server = Server::start(bed, "site", &["--network", "lan"]);
    bed.detach("client", &["--stop-signal", "KILL"], &["sleep", "1000"]);
    let ask = |at: &str| bed.proa(&["exec", "client", "timeout", "5", "wget", "-qO-", at]);
    let at = format!("http://{}:8000/", server.address(bed));
    assert_ne!(ask(&at).code, 0);
    let links = || bed.ok(&["exec", "client", "ls", "/sys/class/net"]).replace('\n', " ");
    for _ in 0..2 {
        bed.ok(&["network", "connect", "--alias", "other", "lan", "client"]);
        assert_eq!((ask(&at).stdout, links()), ("served".into(), "eth0 eth1 lo".into()));
        let shown =
            "{{.NetworkSettings.Networks.lan.IPAddress}} {{.NetworkSettings.Networks.lan.MacAddress}}";
        let shown = bed.ok(&["inspect", "-f", shown, "client"]);
        let seen = bed.ok(&["exec", "client", "ip", "addr", "show", "eth1"]);
        assert!(shown.split(' ').all(|part| seen.contains(part)), "{shown}: {seen}");
        assert!(seen.contains("inet6 fd"), "{seen}");
        let found = bed.ok(&["exec", "site", "nslookup", "other"]);
        assert!(found.contains(shown.split(' ').next().unwrap()), "{found}");
        assert_eq!(ask("http://site:8000/").stdout, "served");
        let hosts = bed.ok(&["exec", "client", "cat", "/etc/hosts"]);
        assert!(hosts.contains(shown.split(' ').next().unwrap()), "{hosts}");
        assert!(bed.ok(&["network", "inspect", "lan"]).contains("client"));
        bed.ok(&["network", "disconnect", "lan", "client"]);
        assert_ne!(ask(&at).code, 0);
        assert_eq!(links(), "eth0 lo");
        assert!(!bed.ok(&["network", "inspect", "lan"]).contains("client"));
    }
    bed.ok(&["network", "disconnect", "bridge", "client"]);
    assert_eq!(links(), "lo");
    bed.ok(&["network", "connect", "lan", "client"]);
    assert_eq!(ask("http://site:8000/").stdout, "served");
}

fn networks_that_changed_while_an_instance_ran_outlive_a_crash(bed: &Bed) {
    for network in ["lan", "wan"] {
        bed.ok(&["network", "create", network]);
    }
    bed.detach("site", &["--network", "wan", "--stop-signal", "KILL"], &["sleep", "1000"]);
    bed.ok(&["network", "connect", "lan", "site"]);
    bed.ok(&["network", "disconnect", "wan", "site"]);
    let address = || bed.ok(&["inspect", "-f", "{{.NetworkSettings.Networks.lan.IPAddress}}", "site"]);
    let before = address();
    bed.proa.monitors().iter().for_each(|pid| crate::network::kill(*pid));
    bed.proa.wait_for("the end", || bed.ok(&["ps", "-q"]).is_empty());
    assert_eq!(bed.proa(&["system", "check"]).code, 0);
    bed.ok(&["start", "site"]);
    assert_eq!(address(), before);
    let seen = bed.ok(&["exec", "site", "ip", "addr", "show", "eth1"]);
    assert!(seen.contains(&before), "{seen}");
}

fn bad_names_and_addresses_are_refused(bed: &Bed) {
    let refused = |arguments: &[&str], says: &str| {
        let output = bed.proa(arguments);
        assert!(output.code != 0 && output.stderr.contains(says), "{arguments:?}: {output:?}");
    };
    refused(&["network", "create", "host"], "meaning");
    refused(&["network", "create", "a/b"], "a/b");
    refused(&["network", "create", "--subnet", "10.9.0.0/31", "net"], "no room");
    refused(
        &["network", "create", "--subnet", "10.9.0.0/24", "--gateway", "10.8.0.1", "net"],
        "in no --subnet",
    );
    refused(&["network", "create", "-o", "what=1", "net"], "what");
    refused(&["network", "create", "-d", "overlay", "net"], "overlay");
    let why = if bed.uid() == 0 { "parent" } else { "root" };
    refused(&["network", "create", "-d", "macvlan", "net"], why);
    let run = ["run", "--rm", "--isolation", bed.level];
    refused(&[&run[..], &["--network", "none", "--ip", "10.0.0.1", "busybox", "true"]].concat(), "no other");
    refused(&[&run[..], &["--mac-address", "01:00:00:00:00:00", "busybox", "true"]].concat(), "MAC");
    refused(&[&run[..], &["-p", "203.0.113.1:80:80", "busybox", "true"]].concat(), "no address of this host");
}

fn some_networks_are_always_there(bed: &Bed) {
    let listed =
        || bed.ok(&["network", "ls", "--no-trunc", "--format", "{{.ID}} {{.Name}} {{.Driver}} {{.Scope}}"]);
    let before = listed();
    let names: Vec<&str> =
        before.lines().filter_map(|line| line.split_once(' ')).map(|(_, rest)| rest).collect();
    assert_eq!(names, ["bridge bridge local", "host host local", "none null local"]);
    bed.detach("alone", &["--network", "none"], &["sleep", "1000"]);
    let inside = "{{range .Containers}}{{.Name}}{{end}}";
    assert_eq!(bed.ok(&["network", "inspect", "-f", inside, "none"]), "alone");
    assert_eq!(bed.ok(&["network", "inspect", "-f", inside, "host"]), "");
    for name in ["bridge", "host", "none"] {
        for command in [&["rm"][..], &["rm", "-f"], &["create"]] {
            let refused = bed.proa(&[&["network"], command, &[name]].concat());
            assert!(refused.code == 1 && refused.stderr.contains(name), "{refused:?}");
            assert!(refused.stderr.lines().count() <= 2, "{refused:?}");
        }
        let connected = bed.proa(&["network", "connect", name, "alone"]);
        assert!(connected.code == 1 && connected.stderr.contains("goes with no other"), "{connected:?}");
    }
    bed.ok(&["network", "prune", "-f"]);
    // Its id is the same once it is made.
    assert_eq!(listed(), before);
    bed.ok(&["rm", "-f", "alone"]);
}
