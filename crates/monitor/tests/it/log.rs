//! The log through the whole way; its format is tested where it is written.

use proa_protocol::message::Request;

use crate::fixture::Fixture;

#[test]
fn rotation_under_load_loses_no_line_of_what_is_kept() {
    let mut fixture = Fixture::shell("seq 1 20000");
    fixture.config.log.max_size = 64 * 1024;
    fixture.config.log.max_files = 4;
    let mut client = fixture.spawn();
    client.send(&Request::Start);
    client.expect_started();
    client.send(&Request::Wait);
    assert_eq!(client.exited().code, 0);
    let numbers: Vec<u32> = fixture.log().iter().map(|(_, text)| text.trim().parse().unwrap()).collect();
    assert!(numbers.len() > 1500, "{}", numbers.len());
    let first = 20_001 - numbers.len() as u32;
    assert!(numbers.iter().copied().eq(first..=20_000));
    assert!(!fixture.dir().join("log.json.4").exists());
}

#[test]
fn a_log_of_a_second_run_is_appended() {
    let mut fixture = Fixture::shell("printf 'no newline'");
    for _ in 0..2 {
        let mut client = fixture.spawn();
        client.run(false);
        client.exited();
    }
    let texts: Vec<String> = fixture.log().into_iter().map(|(_, text)| text).collect();
    assert_eq!(texts, ["no newline", "no newline"]);
}
