//! What a user or a registry calls an image: accepted text has one normal form, which reads back as itself and
//! holds no path that could climb.
#![no_main]

use libfuzzer_sys::fuzz_target;
use proa_oci::reference::{Digest, Reference};

fuzz_target!(|text: &str| {
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.as_str(), text);
        assert_eq!(digest.hex().len(), digest.algorithm().hex_len());
        assert!(!digest.hex().contains(['/', '.']));
    }
    let Ok(reference) = Reference::parse(text) else { return };
    let normal = reference.to_string();
    let again = Reference::parse(&normal).expect("a normal form is accepted");
    assert_eq!(again, reference, "{normal}");
    assert_eq!(again.to_string(), normal);
    let familiar = reference.familiar();
    assert_eq!(Reference::parse(&familiar).expect("a familiar form is accepted"), reference, "{familiar}");
    assert!(!reference.path().split('/').any(|part| part.is_empty() || part == "." || part == ".."));
});
