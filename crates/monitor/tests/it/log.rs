//! The log through the whole way; its format is tested where it is written.

use std::time::{Duration, Instant};

use proa_protocol::message::Request;

use crate::fixture::Fixture;

#[test]
fn rotation_under_load_loses_no_line_of_what_is_kept() {
    let mut fixture = Fixture::shell("seq 1 20000");
    fixture.config.log.max_size = 64 * 1024;
    fixture.config.log.max_files = 4;
    let mut client = fixture.spawn();
    client.send(&Request::Wait);
    client.send(&Request::Start);
    client.expect_started();
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

#[test]
fn rotated_files_are_compressed_and_lose_nothing() {
    let mut fixture = Fixture::shell("seq 1 20000; exec sleep 1000");
    fixture.config.log.max_size = 64 * 1024;
    fixture.config.log.max_files = 100;
    fixture.config.log.compress = true;
    let mut client = fixture.spawn();
    client.send(&Request::Start);
    client.expect_started();
    let dir = fixture.dir();
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut texts = Vec::new();
    while !texts.iter().copied().eq(1..=20_000) {
        assert!(Instant::now() < deadline, "{} lines", texts.len());
        texts.clear();
        let numbered = |number: u32| dir.join(format!("log.json.{number}"));
        let last = (1..100).find(|number| !dir.join(format!("log.json.{number}.gz")).exists()).unwrap();
        if numbered(last).exists() {
            continue;
        }
        for number in (1..last).rev() {
            let Ok(file) = std::fs::File::open(dir.join(format!("log.json.{number}.gz"))) else { break };
            let decoder = flate2::read::GzDecoder::new(file);
            assert!(decoder.header().unwrap().comment().is_some_and(|inode| inode[0].is_ascii_digit()));
            texts.extend(std::io::read_to_string(decoder).unwrap().lines().map(text));
        }
        texts.extend(std::fs::read_to_string(dir.join("log.json")).unwrap_or_default().lines().map(text));
    }
    // Asked before the end, after which the connection closes.
    client.send(&Request::Wait);
    let killed = client.ask(&Request::Signal { signal: 9, all: true });
    assert_eq!(killed, proa_protocol::message::Response::Ok);
    client.exited();
}

fn text(line: &str) -> u32 {
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    line["log"].as_str().unwrap().trim().parse().unwrap()
}
