//! Every device of the place where an instance runs: of the host, or of its guest.

use std::path::Path;

use proa_oci::runtime::{Device, Spec};
use proa_protocol::message::ErrorKind;
use proa_runtime::Error;
use proa_sys::device_nodes::DeviceNode;

const DEV: &str = "/dev";

/// Adds them to a spec, but for those that it has already.
pub(crate) fn add_all(spec: &mut Spec) -> Result<(), Error> {
    let nodes = DeviceNode::below(Path::new(DEV))
        .map_err(|error| Error::new(ErrorKind::Internal, format!("{DEV}: {error}")))?;
    let devices = &mut spec.linux_mut().devices;
    for node in nodes {
        let Some(path) = node.path.to_str() else { continue };
        if devices.iter().all(|known| known.path != path) {
            devices.push(Device {
                kind: node.kind.to_string(),
                path: path.to_owned(),
                major: node.major.into(),
                minor: node.minor.into(),
                file_mode: Some(node.mode),
                uid: Some(node.uid),
                gid: Some(node.gid),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_already_stays() {
        let mut spec = Spec::default();
        let mine = Device { path: "/dev/null".into(), major: 7, ..Device::default() };
        spec.linux_mut().devices.push(mine.clone());
        add_all(&mut spec).unwrap();
        let devices = &spec.linux_mut().devices;
        assert_eq!(devices.iter().filter(|device| device.path == "/dev/null").collect::<Vec<_>>(), [&mine]);
        assert!(devices.iter().any(|device| device.path == "/dev/urandom" && device.kind == "c"));
    }
}
