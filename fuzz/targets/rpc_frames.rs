//! Calls and replies over ZeroMQ (`agent-protocol.md` 1.2 to 1.7), from the bytes of a connection on.
#![no_main]

use bai_proto::rpc::{Call, Reply, Request};
use bai_proto::zmtp::{Decoder, Incoming, Limits};
use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;

const LIMITS: Limits = Limits {
    frames: 16,
    bytes: 1 << 20,
};

fuzz_target!(|bytes: &[u8]| {
    let mut buffer = BytesMut::from(bytes);
    let mut decoder = Decoder::new(LIMITS);
    while let Ok(Some(incoming)) = decoder.decode(&mut buffer) {
        let Incoming::Message(message) = incoming else {
            continue;
        };
        _ = Reply::decode(&message);
        let Ok(request) = Request::decode(message) else {
            continue;
        };
        if let Ok(call) = Call::decode(&request.function, &request.args, &request.kwargs) {
            // What was understood is written so that it is understood the same way.
            assert!(Call::decode(call.function(), &call.args(), &[]).is_ok());
        }
    }
});
