//! Tables that somebody removed.

use std::process::Command;

use crate::fixture::{Host, until};

const TABLE: &str = "proa_resolver_test";

fn nft(arguments: &str) -> Option<String> {
    let output = Command::new("nft").args(arguments.split(' ')).output().unwrap();
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
}

#[test]
fn flushed_tables_come_back_with_what_runs() {
    let mut host = Host::new();
    let network = host.network(1, false);
    host.endpoint(&network, 2, &["one"], &[]);
    let firewall = proa_network::firewall::Firewall::new(TABLE.into());
    firewall.restore(&[], &[]).unwrap();
    let pid = host.start(&["--table", TABLE]);
    until("it has a server", || !crate::hostile::children(pid).is_empty());
    let bridges = || nft(&format!("list set inet {TABLE} bridges"));
    assert!(bridges().is_some());
    nft("flush ruleset").unwrap();
    until("the tables are back", || bridges().is_some_and(|set| set.contains("\"br1\"")));
    assert!(nft(&format!("list table bridge {TABLE}")).is_some());
    nft(&format!("delete table inet {TABLE}")).unwrap();
    until("they are back again", || bridges().is_some_and(|set| set.contains("\"br1\"")));
}
