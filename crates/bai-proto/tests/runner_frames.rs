//! Runner frames from peers that are broken or hostile.

use std::io::{ErrorKind, Read};

use bai_proto::runner::{Frame, FrameError, MAX_DATA, Record, Request};
use proptest::prelude::*;

/// As a stream of bytes that ends.
fn read(mut bytes: &[u8]) -> Result<Option<Frame>, FrameError> {
    Frame::read_from(&mut bytes)
}

fn bytes(length: u8, kind: &[u8], announced: u32, data: &[u8]) -> Vec<u8> {
    [&[length], kind, &announced.to_be_bytes(), data].concat()
}

#[test]
fn lengths_beyond_the_limits_are_refused_at_once() {
    let most = u32::try_from(MAX_DATA).expect("fits");
    for (bytes, refused) in [
        (bytes(4, b"code", u32::MAX, b""), u32::MAX as usize),
        (bytes(4, b"code", most + 1, b""), MAX_DATA + 1),
        (vec![0, 0, 0, 0], 0),
        (vec![33], 33),
        (vec![255, b'x'], 255),
    ] {
        assert!(matches!(Frame::decode(&bytes), Err(FrameError::TooLarge(size)) if size == refused));
        assert!(matches!(read(&bytes), Err(FrameError::TooLarge(size)) if size == refused));
    }
}

#[test]
fn the_largest_message_is_taken_and_announcing_it_costs_nothing() {
    let frame = Frame::new("stdout", vec![7; MAX_DATA]);
    let encoded = frame.encode();
    assert!(matches!(read(&encoded), Ok(Some(read)) if read == frame));
    let (decoded, rest) = Frame::decode(&encoded).expect("valid").expect("complete");
    assert!(decoded == frame && rest.is_empty());
    // A stream that notes how much is asked of it at once.
    struct Miser<'a>(&'a [u8], usize);
    impl Read for Miser<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            self.1 = self.1.max(buffer.len());
            self.0.read(buffer)
        }
    }
    let mut miser = Miser(&encoded[..20], 0);
    assert!(Frame::read_from(&mut miser).is_err());
    assert!(miser.1 <= 64 << 10, "{} bytes were allocated", miser.1);
}

#[test]
fn types_are_ascii() {
    for kind in [b"co\xffe".as_slice(), "한한".as_bytes()] {
        let length = u8::try_from(kind.len()).expect("short");
        let bytes = bytes(length, kind, 0, b"");
        assert!(matches!(Frame::decode(&bytes), Err(FrameError::BadType)));
        assert!(matches!(read(&bytes), Err(FrameError::BadType)));
        assert!(matches!(
            Frame::from_parts(&[kind, b""]),
            Err(FrameError::BadType)
        ));
    }
}

#[test]
fn truncated_messages_are_incomplete_and_never_messages() {
    let encoded = bytes(4, b"code", 5, b"print");
    for end in 1..encoded.len() {
        assert!(matches!(Frame::decode(&encoded[..end]), Ok(None)), "{end}");
        assert!(
            matches!(read(&encoded[..end]), Err(FrameError::Io(error)) if error.kind() == ErrorKind::UnexpectedEof),
            "{end}"
        );
    }
    assert!(matches!(Frame::decode(b""), Ok(None)));
    assert!(matches!(read(b""), Ok(None)));
}

#[test]
fn messages_have_two_parts() {
    for count in [0, 1, 3, 9] {
        let parts = vec![b"code".as_slice(); count];
        assert!(matches!(Frame::from_parts(&parts), Err(FrameError::Parts(found)) if found == count));
    }
    for kind in [b"".as_slice(), &[b'x'; 33]] {
        assert!(matches!(
            Frame::from_parts(&[kind, b""]),
            Err(FrameError::TooLarge(_))
        ));
    }
    let frame = Frame::from_parts(&[b"code".as_slice(), b"1"]).expect("valid");
    assert_eq!(frame, Frame::new("code", "1"));
}

#[test]
fn payloads_that_are_not_what_they_should_be_degrade() {
    let request = |kind: &str, data: &[u8]| Request::from_frame(Frame::new(kind, data));
    assert_eq!(request("code", b"a\xffb"), Request::Code("a\u{fffd}b".into()));
    assert_eq!(request("nothing", b"x"), Request::Unknown("nothing".into()));
    assert_eq!(request("interrupt", b"\xff"), Request::Interrupt);
    let record = |kind: &str, data: &[u8]| Record::from_frame(Frame::new(kind, data));
    for data in [
        b"".as_slice(),
        b"{",
        b"{\"exitCode\": \"3\"}",
        b"{\"exitCode\": 1e99}",
        b"\xff",
    ] {
        assert_eq!(record("finished", data), Record::Finished { exit_code: None });
        let asked = record("waiting-input", data);
        assert_eq!(asked, Record::WaitingInput { is_password: None });
    }
    let extra = b"{\"exitCode\": null, \"upload_output_files\": false}";
    assert_eq!(record("finished", extra), Record::Finished { exit_code: None });
    assert_eq!(
        record("media", b"{\"type\": 1}"),
        Record::Html("{\"type\": 1}".into())
    );
    assert_eq!(record("html", b"\xff"), Record::Html("\u{fffd}".into()));
}

/// Messages, whole or spoilt, one after another.
fn streams() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof!["code|input|exec|finished|media|waiting-input", "[a-z-]{1,32}"];
    let message = (kind, prop::collection::vec(any::<u8>(), 0..64))
        .prop_map(|(kind, data)| Frame::new(&kind, data).encode());
    let noise = prop::collection::vec(any::<u8>(), 0..16);
    prop::collection::vec(prop_oneof![4 => message, 1 => noise], 0..8).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn decoding_agrees_with_reading(bytes in streams()) {
        let (mut rest, mut stream) = (bytes.as_slice(), bytes.as_slice());
        loop {
            let (decoded, read) = (Frame::decode(rest), Frame::read_from(&mut stream));
            match (decoded, read) {
                (Ok(Some((decoded, after))), Ok(Some(read))) => {
                    prop_assert_eq!(&decoded, &read);
                    prop_assert_eq!(after, stream);
                    let _ = (Request::from_frame(decoded.clone()), Record::from_frame(decoded));
                    rest = after;
                    continue;
                }
                (Ok(None), Ok(None)) => prop_assert!(rest.is_empty()),
                (Ok(None), Err(FrameError::Io(_)))
                | (Err(FrameError::TooLarge(_)), Err(FrameError::TooLarge(_)))
                | (Err(FrameError::BadType), Err(FrameError::BadType)) => {}
                (decoded, read) => prop_assert!(false, "{:?} but {:?}", decoded, read),
            }
            break;
        }
    }

    #[test]
    fn decoding_turns_encoding_around(
        kind in "[ -~]{1,32}",
        data in prop::collection::vec(any::<u8>(), 0..256),
        after in prop::collection::vec(any::<u8>(), 0..8),
    ) {
        let frame = Frame::new(&kind, data);
        let bytes = [frame.encode(), after.clone()].concat();
        let (decoded, rest) = Frame::decode(&bytes).expect("valid").expect("complete");
        prop_assert_eq!(&decoded, &frame);
        prop_assert_eq!(rest, after);
        let again = Frame::from_parts(&[frame.kind.as_bytes(), &frame.data]).expect("valid");
        prop_assert_eq!(again, frame);
    }

    #[test]
    fn records_survive_the_way(
        text in ".{0,64}",
        code in any::<Option<i32>>(),
        password in any::<Option<bool>>(),
        data in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        for record in [
            Record::Stdout(data.clone()),
            Record::Stderr(data.clone()),
            Record::Html(text.clone()),
            Record::Log(text.clone()),
            Record::Media { mime: text.clone(), data: text.clone() },
            Record::WaitingInput { is_password: password },
            Record::CleanFinished { exit_code: code },
            Record::BuildFinished { exit_code: code },
            Record::Finished { exit_code: code },
        ] {
            prop_assert_eq!(Record::from_frame(record.to_frame()), record);
        }
    }
}
