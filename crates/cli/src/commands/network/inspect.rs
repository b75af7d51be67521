//! `proa network inspect`

use proa_engine::network::{NetworkView, SubnetConfig};
use proa_protocol::network::Endpoint;
use serde_json::{Map, Value, json};

use crate::context::Context;
use crate::error::Outcome;
use crate::format;
use crate::template::Template;

/// Print all about networks
#[derive(Debug, clap::Args)]
pub struct Args {
    /// json, or a Go template
    #[arg(short, long)]
    format: Option<String>,
    /// Changes nothing
    #[arg(short, long, hide = true)]
    verbose: bool,
    /// Names or ids
    #[arg(required = true, value_name = "NETWORK")]
    names: Vec<String>,
}

/// Runs the command.
pub fn run(context: &Context, args: &Args) -> Outcome {
    let template = match args.format.as_deref() {
        None | Some("json" | "") => None,
        Some(text) => Some(Template::parse(text)?),
    };
    let engine = context.engine()?;
    let mut code = 0;
    let mut documents = Vec::new();
    for name in &args.names {
        match engine.view_network(name) {
            Ok(view) => documents.push(document(&view)),
            Err(error) => {
                code = 1;
                crate::error::Failure::from(error).print();
            }
        }
    }
    let text = match &template {
        Some(template) => {
            let lines = documents.iter().map(|document| template.render(document).map(|line| line + "\n"));
            lines.collect::<Result<String, _>>()?
        }
        None => format!("{:#}\n", Value::Array(documents)),
    };
    format::print(&text)?;
    Ok(code)
}

/// In Docker's shape.
fn document(view: &NetworkView) -> Value {
    let record = &view.record;
    let mut containers = Map::new();
    for (id, name, endpoint) in &view.endpoints {
        containers.insert(id.clone(), container(id, name, endpoint));
    }
    json!({
        "Name": record.name,
        "Id": record.id,
        "Created": proa_engine::parse::rfc3339_nano(record.created_ns),
        "Scope": "local",
        "Driver": record.driver_word(),
        "EnableIPv4": true,
        "EnableIPv6": record.ipv6 || record.subnets.iter().any(|config| config.subnet.addr().is_ipv6()),
        "IPAM": {
            "Driver": "default",
            "Options": {},
            "Config": record.subnets.iter().map(subnet).collect::<Vec<_>>(),
        },
        "Internal": record.internal,
        "Attachable": false,
        "Ingress": false,
        "ConfigFrom": { "Network": "" },
        "ConfigOnly": false,
        "Containers": containers,
        "Options": record.options,
        "Labels": record.labels,
        "Interface": record.bridge,
    })
}

fn subnet(config: &SubnetConfig) -> Value {
    let mut value = json!({ "Subnet": config.subnet.to_string() });
    if let Some(range) = config.range {
        value["IPRange"] = json!(range.to_string());
    }
    if let Some(gateway) = config.gateway {
        value["Gateway"] = json!(gateway.to_string());
    }
    if !config.reserved.is_empty() {
        value["AuxiliaryAddresses"] = json!(config.reserved);
    }
    value
}

fn container(id: &str, name: &str, endpoint: &Endpoint) -> Value {
    let address = |four: bool| {
        let found = endpoint.interface.addresses.iter().find(|net| net.addr().is_ipv4() == four);
        found.map_or_else(String::new, ToString::to_string)
    };
    json!({
        "Name": name,
        "EndpointID": id,
        "MacAddress": endpoint.interface.mac,
        "IPv4Address": address(true),
        "IPv6Address": address(false),
    })
}
