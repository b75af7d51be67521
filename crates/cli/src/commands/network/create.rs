//! `proa network create`

use std::collections::BTreeMap;
use std::net::IpAddr;

use proa_engine::Error;
use proa_engine::ipnet::IpNet;
use proa_engine::network::{NetworkRecord, SubnetConfig};
use proa_protocol::network::Driver;

use crate::context::Context;
use crate::error::{Failure, Outcome};

/// Make a network
#[derive(Debug, clap::Args)]
pub struct Args {
    /// bridge (a segment of its own) or macvlan (on an interface of the host)
    #[arg(short, long, default_value = "bridge")]
    driver: String,
    /// Addresses, as 10.1.0.0/24; one of each IP version
    #[arg(long, value_name = "SUBNET")]
    subnet: Vec<IpNet>,
    /// The host's address in the subnet
    #[arg(long, value_name = "ADDRESS")]
    gateway: Vec<IpAddr>,
    /// Part of the subnet that instances get addresses of
    #[arg(long, value_name = "SUBNET")]
    ip_range: Vec<IpNet>,
    /// An address that no instance gets
    #[arg(long, value_name = "NAME=ADDRESS")]
    aux_address: Vec<String>,
    /// Cut off from everything outside
    #[arg(long)]
    internal: bool,
    /// With addresses of IPv6 as well
    #[arg(long)]
    ipv6: bool,
    /// Changes nothing: every network can be joined by hand
    #[arg(long, hide = true)]
    attachable: bool,
    /// Option of the driver
    #[arg(short, long = "opt", value_name = "KEY=VALUE")]
    opt: Vec<String>,
    /// Label
    #[arg(long, value_name = "KEY[=VALUE]")]
    label: Vec<String>,
    /// Where there is a network of that name, leave it as it is
    #[arg(long)]
    ignore: bool,
    /// Its name
    #[arg(value_name = "NETWORK")]
    name: String,
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Outcome {
    let record = NetworkRecord {
        name: args.name.clone(),
        driver: driver(&args.driver)?,
        subnets: subnets(args)?,
        internal: args.internal,
        ipv6: args.ipv6,
        options: pairs(&args.opt),
        labels: pairs(&args.label),
        ..NetworkRecord::default()
    };
    let engine = context.engine()?;
    let id = match engine.create_network(record) {
        // It is asked for after the attempt: of two commands at once one makes it.
        Err(Error::Conflict { .. }) if args.ignore => engine.network(&args.name)?.id,
        made => made?.id,
    };
    println!("{id}");
    Ok(0)
}

fn driver(text: &str) -> Result<Driver, Failure> {
    match text {
        "bridge" => Ok(Driver::Bridge),
        "macvlan" => Ok(Driver::Macvlan),
        other => Err(Failure::new(format!("there is no driver {other:?}")).with_hint("bridge or macvlan")),
    }
}

/// Each address belongs to the subnet that it is in.
fn subnets(args: &Args) -> Result<Vec<SubnetConfig>, Failure> {
    let mut subnets: Vec<SubnetConfig> =
        args.subnet.iter().map(|subnet| SubnetConfig::new(*subnet)).collect();
    let homeless = |what: String| Failure::new(format!("{what} is in no --subnet"));
    for gateway in &args.gateway {
        let subnet = subnets.iter_mut().find(|config| config.subnet.contains(gateway));
        subnet.ok_or_else(|| homeless(format!("--gateway {gateway}")))?.gateway = Some(*gateway);
    }
    for range in &args.ip_range {
        let subnet = subnets.iter_mut().find(|config| config.subnet.contains(range));
        subnet.ok_or_else(|| homeless(format!("--ip-range {range}")))?.range = Some(*range);
    }
    for text in &args.aux_address {
        let wrong = || Failure::new(format!("invalid --aux-address {text:?}")).with_hint("NAME=ADDRESS");
        let (name, address) = text.split_once('=').ok_or_else(wrong)?;
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let subnet = subnets.iter_mut().find(|config| config.subnet.contains(&address));
        subnet
            .ok_or_else(|| homeless(format!("--aux-address {text}")))?
            .reserved
            .insert(name.to_owned(), address);
    }
    Ok(subnets)
}

fn pairs(texts: &[String]) -> BTreeMap<String, String> {
    let pair = |text: &String| {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        (key.to_owned(), value.to_owned())
    };
    texts.iter().map(pair).collect()
}
