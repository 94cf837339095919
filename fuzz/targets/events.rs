//! Events over ZeroMQ (`agent-protocol.md` 3.1 to 3.3), from the bytes of a connection on.
#![no_main]

use bai_proto::event;
use bai_proto::zmtp::{Decoder, Incoming, Limits};
use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;

const LIMITS: Limits = Limits {
    frames: 8,
    bytes: 1 << 20,
};

fuzz_target!(|bytes: &[u8]| {
    let mut buffer = BytesMut::from(bytes);
    let mut decoder = Decoder::new(LIMITS);
    while let Ok(Some(incoming)) = decoder.decode(&mut buffer) {
        if let Incoming::Message(message) = incoming
            && let Ok((agent, event)) = event::decode(&message)
        {
            assert!(event::decode(&event::encode(&agent, &event)).is_ok());
        }
    }
});
