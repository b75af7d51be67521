//! What travels between the CLI, the monitor and the guest agent, and the files they share.
//!
//! ```text
//!   CLI ──unix socket──▶ monitor ──in process──▶ supervisor ─▶ runtime          (container)
//!                           └──virtio-serial──▶ agent ─▶ supervisor ─▶ runtime  (vm)
//! ```
//!
//! Both hops carry the same [`frame::Frame`]s and the same [`message`]s, so the monitor relays a client's
//! frames to a guest without looking inside. On a unix socket each connection is one channel and its
//! frames carry channel 0; on the guest's serial port many channels share one byte stream.
//!
//! **Channel.** A conversation: the first frame from the client is a [`message::Request`]; what follows
//! depends on it. Either side ends it with a `Close` frame (or by closing the socket).
//!
//! **Flow control.** On each channel, each direction, a sender may have [`frame::WINDOW`] bytes of stream
//! payload (stdin, stdout, stderr, data) on the way; the receiver returns what it has consumed by `Credit`
//! frames. A peer that sends more is in error and its channel is closed, so nobody's memory grows without
//! bound on anybody's behalf.
//!
//! Everything that arrives is hostile until decoded here: lengths and kinds are checked before memory is
//! reserved, and JSON is bounded by [`frame::MAX_MESSAGE`].

pub mod events;
pub mod frame;
pub mod health;
pub mod instance;
pub mod kernel;
pub mod life;
pub mod log;
pub mod machine;
pub mod message;
pub mod network;
pub mod snapshot;
pub mod standby;
pub mod template;
pub mod time;
pub mod volume;
