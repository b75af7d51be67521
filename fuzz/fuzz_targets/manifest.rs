//! Manifests, indexes and configs as a registry or an archive gives them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use proa_oci::disk::DiskLayout;
use proa_oci::image::{Document, Platform, check_layer_count, parse_config, parse_index, parse_manifest};

fuzz_target!(|data: &[u8]| {
    if let Ok(Some(disk)) = DiskLayout::parse(data) {
        // Each chunk is inside the disk, and no longer than a chunk.
        assert!(disk.places.iter().flatten().all(|place| (1..=disk.chunk).contains(&disk.length(*place))));
    }
    let manifest = parse_manifest(data);
    let config = parse_config(data);
    match Document::parse(data, None) {
        Ok(Document::Manifest(document)) => assert_eq!(Some(*document), parse_manifest(data).ok()),
        Ok(Document::Index(document)) => assert_eq!(Some(document), parse_index(data).ok()),
        Err(_) => {}
    }
    if let Ok(index) = parse_index(data) {
        let _ = index.choose(&Platform::host());
    }
    if let (Ok(manifest), Ok(config)) = (&manifest, &config) {
        let _ = check_layer_count(manifest, config);
    }
    if let Ok(manifest) = manifest {
        let text = serde_json::to_vec(&manifest).unwrap();
        assert_eq!(parse_manifest(&text).expect("what was accepted is accepted again"), manifest);
    }
    if let Ok(config) = config {
        let text = serde_json::to_vec(&config).unwrap();
        assert_eq!(parse_config(&text).expect("what was accepted is accepted again"), config);
    }
});
