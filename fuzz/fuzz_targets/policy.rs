//! Compose files and Kubernetes YAML as `proa policy check` reads them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use proa_engine::policy::{Level, check, parse_compose, parse_kube};
use proa_engine::settings::SecuritySettings;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let parsed = [parse_compose(text, &SecuritySettings::default()), parse_kube(text)];
    for subject in parsed.into_iter().flatten().flatten() {
        let weak = check(&subject, Level::Baseline);
        let strong = check(&subject, Level::Restricted);
        // The standards are cumulative.
        assert!(weak.iter().all(|found| strong.contains(found)));
        assert!(check(&subject, Level::Privileged).is_empty());
    }
});
