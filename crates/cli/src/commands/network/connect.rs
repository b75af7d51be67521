//! `proa network connect`

use proa_engine::network::EndpointConfig;

use crate::context::Context;
use crate::error::Outcome;

/// Give an instance a place in a network
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Another name of the instance in the network
    #[arg(long, value_name = "NAME")]
    alias: Vec<String>,
    /// IPv4 address
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<String>,
    /// IPv6 address
    #[arg(long, value_name = "ADDRESS")]
    ip6: Option<String>,
    /// The network
    network: String,
    /// The instance
    instance: String,
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Outcome {
    let engine = context.engine()?;
    let network = engine.network(&args.network)?;
    let asked = EndpointConfig {
        network: network.name.clone(),
        aliases: args.alias.clone(),
        ip: args.ip.clone().unwrap_or_default(),
        ip6: args.ip6.clone().unwrap_or_default(),
        ..EndpointConfig::default()
    };
    engine.connect_network(&engine.find(&args.instance)?, &network, asked)?;
    Ok(0)
}
