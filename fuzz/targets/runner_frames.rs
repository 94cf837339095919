//! Frames between agent and runner (`agent-protocol.md` 6.3), in both directions, as a stream of them.
#![no_main]

use bai_proto::runner::{Frame, Record, Request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut stream = bytes;
    while let Ok(Some(frame)) = Frame::read_from(&mut stream) {
        let encoded = frame.encode();
        assert_eq!(
            Frame::read_from(&mut encoded.as_slice())
                .expect("a frame")
                .as_ref(),
            Some(&frame)
        );
        let request = Request::from_frame(frame.clone());
        assert_eq!(Request::from_frame(request.to_frame()), request);
        let record = Record::from_frame(frame);
        assert_eq!(Record::from_frame(record.to_frame()), record);
    }
});
