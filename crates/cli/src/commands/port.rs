//! `proa port`: where an instance's ports can be reached.

use std::net::SocketAddr;

use proa_engine::network::{ports, published};

use crate::context::Context;
use crate::error::{Failure, Outcome};

/// List where an instance's ports can be reached
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The instance
    instance: String,
    /// Only this one of its ports
    #[arg(value_name = "PORT[/PROTOCOL]")]
    port: Option<String>,
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Outcome {
    let engine = context.engine()?;
    let instance = engine.find(&args.instance)?;
    let all = published(engine, &instance);
    let Some(text) = &args.port else {
        for port in all {
            let host = SocketAddr::new(port.host_ip, port.host_port);
            println!("{}/{} -> {host}", port.port, port.protocol.as_str());
        }
        return Ok(0);
    };
    let wanted = ports::port(text)?;
    let found: Vec<_> = all.into_iter().filter(|port| (port.port, port.protocol) == wanted).collect();
    if found.is_empty() {
        return Err(Failure::new(format!(
            "port {text} of instance {} is not published",
            instance.record.name
        ))
        .with_hint("publish it with -p when the instance is made"));
    }
    found.iter().for_each(|port| println!("{}", SocketAddr::new(port.host_ip, port.host_port)));
    Ok(0)
}
