//! Elements that come and go, and rules that somebody else takes away.

use std::process::Command;
use std::time::{Duration, Instant};

use proa_network::firewall::{Error, Firewall};
use proa_protocol::network::Protocol::{Sctp, Tcp, Udp};
use proa_protocol::network::{Driver, Live};

use crate::lab::{HOST, NEIGHBOUR, assert_blocked, live, network, nft, on_a_host, port, source};

fn ruleset() -> String {
    nft("list ruleset")
}

#[test]
fn five_hundred_instances_leave_nothing_behind() {
    on_a_host(|lab| {
        let before = ruleset();
        let mut networks: Vec<_> = (1..=4).map(|number| network(number, |_| {})).collect();
        networks[2].internal = true;
        networks[3].talk = false;
        networks.iter().for_each(|network| lab.firewall.add_network(network).unwrap());
        let numbers = (2..=126).flat_map(|number| networks.iter().map(move |network| (network, number)));
        let instances: Vec<Live> = numbers
            .zip(10_000..)
            .map(|((network, number), host_port)| {
                live(
                    network,
                    number,
                    &[
                        port(Tcp, "0.0.0.0", host_port, 80),
                        port(Udp, HOST[1], host_port, 53),
                        port(Sctp, HOST[0], host_port, 9),
                    ],
                )
            })
            .collect();
        assert_eq!(instances.len(), 500);
        instances.iter().for_each(|live| lab.firewall.add_endpoint(live).unwrap());
        let full = ruleset();
        for wanted in [
            "\"pbr4i126\" . fe80::ff:fe00:47e",
            "tcp . 10000 : 10.1.0.2 . 80",
            "2001:db8::1 . udp . 10001 : fd02::2 . 53",
        ] {
            assert!(full.contains(wanted), "{wanted} in {full}");
        }
        assert!(full.contains(&format!("{} . sctp . 10003 : 10.4.0.2 . 9", HOST[0])), "{full}");
        // Twice is as good as once, for both ways.
        instances.iter().for_each(|live| lab.firewall.add_endpoint(live).unwrap());
        networks.iter().for_each(|network| lab.firewall.add_network(network).unwrap());
        assert_eq!(sorted(&ruleset()), sorted(&full));
        // Restored from nothing, it is the same.
        nft("flush ruleset");
        lab.firewall.restore(&networks, &instances).unwrap();
        assert_eq!(sorted(&ruleset()), sorted(&full));
        for _ in 0..2 {
            instances.iter().for_each(|live| lab.firewall.remove_endpoint(live).unwrap());
            networks.iter().for_each(|network| lab.firewall.remove_network(network).unwrap());
            assert_eq!(ruleset(), before);
        }
    });
}

/// The words of a ruleset: sets have no order.
fn sorted(ruleset: &str) -> Vec<&str> {
    let mut words: Vec<&str> = ruleset.split([',', '\n']).map(str::trim).collect();
    words
        .iter_mut()
        .for_each(|word| *word = word.trim_start_matches("elements = {").trim_end_matches('}').trim());
    words.sort_unstable();
    words
}

/// Its addresses can be the next one's although its link is there for a moment yet, of which the kernel takes leave.
#[test]
fn an_instance_that_has_ended_is_not_heard_any_more() {
    on_a_host(|lab| {
        let network = lab.network(1, |_| {});
        let ended = lab.instance(&network, 2, &[]);
        let other = lab.instance(&network, 3, &[]);
        let there = other.address(0);
        assert_eq!(source(Tcp, &ended, (there, 80), &other, 80), ended.address(0).to_string());
        lab.firewall.withdraw(&ended.live).unwrap();
        assert_blocked(&ended, (there, 80), &other, 80);
        lab.firewall.remove_link(&ended.live).unwrap();
    });
}

#[test]
fn rules_that_somebody_flushed_come_back() {
    on_a_host(|lab| {
        let network = lab.network(1, |_| {});
        let web = lab.instance(&network, 2, &[port(Tcp, "0.0.0.0", 8080, 80)]);
        let next = lab.instance(&network, 3, &[]);
        nft("flush ruleset");
        let lacks_table = |result| matches!(result, Err(Error::NoTable { name }) if name == "proa");
        assert!(lacks_table(lab.firewall.add_network(&network)));
        assert!(lacks_table(lab.firewall.add_endpoint(&web.live)));
        assert!(lacks_table(lab.firewall.remove_endpoint(&web.live)));
        assert!(lacks_table(lab.firewall.remove_network(&network)));
        let instances = [web.live.clone(), next.live.clone()];
        lab.firewall.restore(std::slice::from_ref(&network), &instances).unwrap();
        assert_eq!(source(Tcp, &lab.lan, (HOST[0], 8080), &web, 80), NEIGHBOUR[0]);
        let restored = ruleset();
        // Over rules that are there it changes nothing.
        lab.firewall.restore(&[network], &instances).unwrap();
        assert_eq!(sorted(&ruleset()), sorted(&restored));
    });
}

#[test]
fn tables_are_made_once_and_half_of_them_or_an_older_version_again() {
    on_a_host(|lab| {
        let whole = ruleset();
        assert!(!lab.firewall.ensure().unwrap());
        for change in ["delete table bridge proa", "delete table inet proa"] {
            nft(change);
            assert!(lab.firewall.ensure().unwrap());
            assert_eq!(sorted(&ruleset()), sorted(&whole));
        }
        let (_, after) = whole.split_once("chain v").unwrap();
        let version = format!("v{}", after.split_once(' ').unwrap().0);
        nft(&format!("rename chain bridge proa {version} v0\nadd chain bridge proa other"));
        assert!(lab.firewall.ensure().unwrap());
        assert_eq!(sorted(&ruleset()), sorted(&whole));
        // Another root's are not touched, and tables go away, be they there or not.
        let other = Firewall::new("proa_0123abcd".into());
        assert!(other.ensure().unwrap());
        nft("add table ip somebodys");
        lab.firewall.remove().unwrap();
        lab.firewall.remove().unwrap();
        assert!(!other.ensure().unwrap());
        other.remove().unwrap();
        assert_eq!(ruleset(), "table ip somebodys {\n}\n");
    });
}

#[test]
fn a_port_that_leads_elsewhere_is_not_taken_over() {
    on_a_host(|lab| {
        let network = network(1, |_| {});
        let ports = [port(Tcp, "0.0.0.0", 8080, 80)];
        let (first, second) = (live(&network, 2, &ports), live(&network, 3, &ports));
        lab.firewall.add_endpoint(&first).unwrap();
        let before = ruleset();
        let error = lab.firewall.add_endpoint(&second).unwrap_err();
        assert!(matches!(&error, Error::Taken { key } if key == "6 . 8080"), "{error}");
        // Nothing of what came before it in the transaction is left.
        assert_eq!(ruleset(), before);
        lab.firewall.restore(&[], &[first, second]).unwrap();
        assert!(ruleset().contains("8080 : 10.1.0.2"));
    });
}

#[test]
fn what_is_no_bridge_has_no_elements() {
    on_a_host(|lab| {
        let before = ruleset();
        let network = network(1, |network| network.driver = Driver::Macvlan);
        lab.firewall.add_network(&network).unwrap();
        lab.firewall.add_endpoint(&live(&network, 2, &[port(Tcp, "0.0.0.0", 8080, 80)])).unwrap();
        assert_eq!(ruleset(), before);
    });
}

#[test]
fn a_change_costs_less_than_a_program() {
    on_a_host(|lab| {
        let network = network(1, |_| {});
        lab.firewall.add_network(&network).unwrap();
        let times = |mut change: Box<dyn FnMut(u8) + '_>| {
            let time = |number| {
                let start = Instant::now();
                change(number);
                start.elapsed()
            };
            let mut times: Vec<Duration> = (2..=101).map(time).collect();
            times.sort_unstable();
            times[50]
        };
        let published = |number: u8| {
            let host_port = |nth: u16| 10_000 + 3 * u16::from(number) + nth;
            let ports = [0, 1, 2].map(|nth| port(Tcp, "0.0.0.0", host_port(nth), 80));
            live(&network, number, &ports)
        };
        let instances: Vec<Live> = (0..=101).map(published).collect();
        let add =
            times(Box::new(|number| lab.firewall.add_endpoint(&instances[usize::from(number)]).unwrap()));
        let remove =
            times(Box::new(|number| lab.firewall.remove_endpoint(&instances[usize::from(number)]).unwrap()));
        let program = times(Box::new(|_| {
            assert!(Command::new("nft").args(["list", "tables"]).output().unwrap().status.success());
        }));
        eprintln!("median of 100: add {add:?}, remove {remove:?}, nft {program:?}");
        assert!(add.max(remove) * 2 < program, "{add:?} and {remove:?} are no less than nft's {program:?}");
    });
}
