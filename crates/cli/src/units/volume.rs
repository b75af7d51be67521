//! `*.volume`: a volume, made unless it is there.

use super::At;
use super::convert::{Converted, How, flags, line, with_value};
use super::parse::File;

const SECTION: &str = "Volume";
const KEYS: &[(&str, How)] = &[
    ("Device", How::Special),
    ("Driver", How::Last("--driver")),
    ("Label", How::Words("--label")),
    ("Options", How::Special),
    ("Type", How::Special),
    ("VolumeName", How::Special),
];
/// Options of the driver, by their keys.
const OPTIONS: &[(&str, &str)] = &[("Type", "type"), ("Device", "device"), ("Options", "o")];

pub(super) fn convert(file: &File, name: &str) -> Result<Converted, At> {
    let mut create = flags(file, SECTION, KEYS)?;
    for (key, option) in OPTIONS {
        let entry = file.last(SECTION, key);
        create.extend(entry.map(|entry| with_value("--opt", &format!("{option}={}", entry.value))));
    }
    create.push(name.to_owned());
    let start = line("ExecStart=", &["volume", "create"], &create);
    Ok(Converted {
        unit: Vec::new(),
        service: vec!["Type=oneshot".into(), "RemainAfterExit=yes".into(), start],
    })
}
