//! What a guest or a client sends: pieces of any length must give the same frames as the whole, or an error;
//! a frame that is accepted encodes to the bytes it came from, and its message to one that reads back the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use proa_protocol::frame::{Decoder, Frame, FrameError, Kind};
use proa_protocol::message::{Request, Response};

fn decode(pieces: impl Iterator<Item = Vec<u8>>) -> (Vec<Frame>, Option<FrameError>) {
    let (mut decoder, mut frames) = (Decoder::new(), Vec::new());
    for piece in pieces {
        decoder.push(&piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}

fuzz_target!(|data: &[u8]| {
    let step = data.first().map_or(1, |byte| usize::from(*byte % 40) + 1);
    let whole = decode(std::iter::once(data.to_vec()));
    let pieces = decode(data.chunks(step).map(<[u8]>::to_vec));
    assert_eq!(whole, pieces);
    let mut bytes = Vec::new();
    for frame in &whole.0 {
        frame.encode(&mut bytes);
        match frame.kind {
            Kind::Request => {
                if let Ok(request) = Request::parse(&frame.payload) {
                    assert_eq!(Request::parse(&request.frame(1).payload).unwrap(), request);
                }
            }
            Kind::Response => {
                if let Ok(response) = Response::parse(&frame.payload) {
                    assert_eq!(Response::parse(&response.frame(1).payload).unwrap(), response);
                }
            }
            _ => {}
        }
    }
    assert!(data.starts_with(&bytes));
});
