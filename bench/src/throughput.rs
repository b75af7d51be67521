//! How much iperf3 gets through: between two containers, from a virtual machine to a container, and through a published
//! port, against Docker's containers on the same host.

use std::fs;

use anyhow::{Context, Result};

use crate::isolate::OUTSIDE;
use crate::measure::{detach, median, output, run};
use crate::setup::{Docker, Setup, installed};

/// Seconds of each transfer.
const SECONDS: &str = "2";

/// A way through a network, and what it has let through so far, bits a second.
struct Way {
    name: &'static str,
    client: Vec<String>,
    rates: Vec<f64>,
}

/// Runs the comparison.
pub fn bench(setup: &Setup, rounds: usize) -> Result<()> {
    if !installed("iperf3") {
        eprintln!("bench: iperf3 is not installed: no throughput");
        return Ok(());
    }
    let tar = make_image(setup)?;
    setup.proa(&["import", &tar, "iperf"])?;
    let root = setup.text("proa");
    let proa: Vec<String> = [&setup.proa, "--root", &root].map(String::from).to_vec();
    fetch_kernel(&proa)?;
    let mut ways = Vec::new();
    let at = serve(&proa)?;
    ways.push(through(&proa, "proa, two containers", &[], "server"));
    ways.push(through(&proa, "proa, vm to container", &["--isolation", "vm"], "server"));
    ways.push(published("proa, published port", &at));
    let docker = Docker::with_bridge(setup)?;
    if let Some(docker) = &docker {
        run(&docker.argv(&["import", &tar, "iperf"]))?;
        let docker = docker.argv(&[]);
        let at = serve(&docker)?;
        let show = ["inspect", "-f", "{{.NetworkSettings.IPAddress}}", "server"];
        // Docker's default network has no names.
        let address = ask(&docker, &show)?;
        ways.push(through(&docker, "docker, two containers", &[], &address));
        ways.push(published("docker, published port", &at));
    }
    for round in 0..=rounds {
        for way in &mut ways {
            let rate = rate(&way.client).with_context(|| way.name)?;
            // The first warms up.
            way.rates.extend((round > 0).then_some(rate));
        }
    }
    print(&ways);
    run(&words(&proa, &["rm", "-f", "server"]))
}

/// A guest's kernel may have to be fetched, and this network namespace leads nowhere: so by the host's.
fn fetch_kernel(proa: &[String]) -> Result<()> {
    let outside = ["nsenter".to_owned(), format!("--net={OUTSIDE}")];
    let guest = ["run", "--rm", "--network", "none", "--isolation", "vm", "busybox", "true"];
    run(&words(&[&outside[..], proa].concat(), &guest))
}

fn words(tool: &[String], arguments: &[&str]) -> Vec<String> {
    tool.iter().cloned().chain(arguments.iter().map(ToString::to_string)).collect()
}

fn ask(tool: &[String], arguments: &[&str]) -> Result<String> {
    let words = words(tool, arguments);
    output(&words.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Starts a server; where its port is published.
fn serve(tool: &[String]) -> Result<String> {
    let run = ["run", "-d", "--name", "server", "-p", "127.0.0.1::5201", "iperf", "/bin/iperf3", "-s"];
    let argv = words(tool, &run);
    detach(&argv.iter().map(String::as_str).collect::<Vec<_>>())?;
    ask(tool, &["port", "server", "5201"])
}

fn through(tool: &[String], name: &'static str, flags: &[&str], to: &str) -> Way {
    let iperf = ["iperf", "/bin/iperf3", "-J", "-t", SECONDS, "-c", to];
    Way { name, client: words(tool, &[&["run", "--rm"], flags, &iperf].concat()), rates: Vec::new() }
}

fn published(name: &'static str, at: &str) -> Way {
    let (address, port) = at.rsplit_once(':').unwrap_or((at, "5201"));
    let iperf = ["iperf3", "-J", "-t", SECONDS, "-c", address, "-p", port];
    Way { name, client: words(&[], &iperf), rates: Vec::new() }
}

fn rate(argv: &[String]) -> Result<f64> {
    let text = output(&argv.iter().map(String::as_str).collect::<Vec<_>>())?;
    let value: serde_json::Value = serde_json::from_str(&text)?;
    value["end"]["sum_received"]["bits_per_second"].as_f64().context("iperf3 tells no rate")
}

/// Rates, and those of ours against Docker's of the same way.
fn print(ways: &[Way]) {
    println!("\niperf3, {SECONDS} s each, median");
    for way in ways {
        let (_, kind) = way.name.split_once(", ").unwrap_or_default();
        let peer = ways.iter().find(|other| other.name == format!("docker, {kind}"));
        let ratio =
            peer.map_or_else(String::new, |peer| format!("{:.2}", median(&way.rates) / median(&peer.rates)));
        println!("{:<24} {:>8.2} Gbit/s {ratio:>8}", way.name, median(&way.rates) / 1e9);
    }
}

/// iperf3 with the libraries that it is linked with.
fn make_image(setup: &Setup) -> Result<String> {
    let tree = setup.text("iperf");
    let script = "mkdir -p $0/bin $0/etc && program=$(command -v iperf3) && cp $program $0/bin/iperf3 && \
                  echo root:x:0:0::/: > $0/etc/passwd && mkdir -m 1777 $0/tmp && \
                  for file in $(ldd $program | grep -o '/[^ ]*'); do mkdir -p $0$(dirname $file) && cp -L $file $0$file; done";
    fs::create_dir_all(&tree)?;
    output(&["sh", "-ec", script, &tree])?;
    let tar = setup.text("iperf.tar");
    output(&["tar", "-C", &tree, "-cf", &tar, "."])?;
    Ok(tar)
}
