//! `*.network`: a network, made unless it is there.

use super::At;
use super::convert::{Converted, How, flags, line};
use super::parse::File;

const SECTION: &str = "Network";
const KEYS: &[(&str, How)] = &[
    ("Driver", How::Last("--driver")),
    ("Gateway", How::Each("--gateway")),
    ("IPRange", How::Each("--ip-range")),
    ("IPv6", How::Switch("--ipv6")),
    ("Internal", How::Switch("--internal")),
    ("Label", How::Words("--label")),
    ("NetworkName", How::Special),
    ("Options", How::Words("--opt")),
    ("Subnet", How::Each("--subnet")),
];

pub(super) fn convert(file: &File, name: &str) -> Result<Converted, At> {
    let mut create = flags(file, SECTION, KEYS)?;
    create.push(name.to_owned());
    let start = line("ExecStart=", &["network", "create", "--ignore"], &create);
    // What it starts serves others as well.
    let service = ["Type=oneshot", "RemainAfterExit=yes", "KillMode=process"].map(str::to_owned).to_vec();
    Ok(Converted { unit: Vec::new(), service: [service, vec![start]].concat() })
}
