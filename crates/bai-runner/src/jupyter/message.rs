//! Messages of the Jupyter protocol (version 5): five signed parts in the frames of one ZeroMQ message.
//!
//! Invariants: what is not signed with the session's key is not heard; what arrives is bounded by the channel, and in depth
//! by the JSON parser.

use std::fs::File;
use std::io::{self, Read};

use bai_proto::zmtp::Message;
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;

const DELIMITER: &[u8] = b"<IDS|MSG>";
const VERSION: &str = "5.3";
/// The protocol wants a date in each message. Kernels repeat it in their answers, and nobody reads it.
const DATE: &str = "1970-01-01T00:00:00Z";

/// A message that has arrived.
#[derive(Clone, Debug, PartialEq)]
pub struct Received {
    pub kind: String,
    /// The `msg_id` of what it answers or belongs to; empty for none.
    pub parent: String,
    /// Null when it cannot be read.
    pub content: Value,
    header: Bytes,
}

/// What makes and opens messages: the key that both sides know, and our name.
#[derive(Debug)]
pub struct Signer {
    key: String,
    session: String,
    sent: u64,
}

impl Signer {
    /// A new key and name.
    ///
    /// # Errors
    /// When the system has no random bytes.
    pub fn new() -> io::Result<Self> {
        let mut random = [0; 48];
        File::open("/dev/urandom")?.read_exact(&mut random)?;
        Ok(Self {
            key: hex::encode(&random[..32]),
            session: hex::encode(&random[32..]),
            sent: 0,
        })
    }

    /// As the connection file has it.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// By this name kernels know us on all their sockets.
    pub fn session(&self) -> &str {
        &self.session
    }

    /// A message that begins something, and its id.
    pub fn request(&mut self, kind: &str, content: &Value) -> (String, Message) {
        self.message(kind, b"{}", content)
    }

    /// A message that answers another.
    pub fn answer(&mut self, question: &Received, kind: &str, content: &Value) -> Message {
        self.message(kind, &question.header, content).1
    }

    fn message(&mut self, kind: &str, parent: &[u8], content: &Value) -> (String, Message) {
        self.sent += 1;
        let id = format!("{}_{}", self.session, self.sent);
        let header = json!({
            "msg_id": id, "session": self.session, "username": "work",
            "date": DATE, "msg_type": kind, "version": VERSION,
        });
        let parts = [
            header.to_string().into(),
            Bytes::copy_from_slice(parent),
            Bytes::from_static(b"{}"),
            content.to_string().into(),
        ];
        let signature = hex::encode(self.mac(&parts).finalize().into_bytes());
        let mut message = vec![Bytes::from_static(DELIMITER), signature.into()];
        message.extend(parts);
        (id, message)
    }

    fn mac(&self, parts: &[Bytes]) -> Hmac<Sha256> {
        let mut mac = Hmac::new_from_slice(self.key.as_bytes()).expect("a key may have any length");
        for part in parts {
            mac.update(part);
        }
        mac
    }

    /// Reads a message; `None` when it is none, or not signed by the kernel.
    pub fn open(&self, message: &[Bytes]) -> Option<Received> {
        // Before the delimiter come names of receivers, or a topic; after the parts, buffers.
        let start = message.iter().position(|frame| frame == DELIMITER)? + 1;
        let signature = hex::decode(message.get(start)?).ok()?;
        let parts = message.get(start + 1..start + 5)?;
        self.mac(parts).verify_slice(&signature).ok()?;
        let json = |part: &Bytes| serde_json::from_str::<Value>(&String::from_utf8_lossy(part));
        let (header, parent) = (json(&parts[0]).ok()?, json(&parts[1]).unwrap_or_default());
        Some(Received {
            kind: header["msg_type"].as_str()?.to_owned(),
            parent: parent["msg_id"].as_str().unwrap_or_default().to_owned(),
            content: json(&parts[3]).unwrap_or_default(),
            header: parts[0].clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signer() -> Signer {
        Signer {
            key: "abc".to_owned(),
            session: "me".to_owned(),
            sent: 0,
        }
    }

    /// What ipykernel 7.4 said to the key `abc`.
    #[test]
    fn a_kernels_message_is_read() {
        let frames: Message = [
            "",
            "<IDS|MSG>",
            "19cd55694f3632ac778d59e346efcbc6d3cb134ca46f4c64a8a1737b9c5ca8eb",
            r#"{"msg_id": "31d0a97d-e5a99239a8217f1a01fecc7b_23757_5", "msg_type": "iopub_welcome", "username": "username", "session": "31d0a97d-e5a99239a8217f1a01fecc7b", "date": "2026-11-24T19:03:32.768812Z", "version": "5.4"}"#,
            "{}",
            "{}",
            r#"{"subscription": ""}"#,
        ]
        .map(Bytes::from)
        .into();
        let read = signer().open(&frames).expect("signed");
        assert_eq!((read.kind.as_str(), read.parent.as_str()), ("iopub_welcome", ""));
        assert_eq!(read.content, json!({"subscription": ""}));
        for (index, forged) in [(3, "{}"), (6, "{}"), (2, "19cd"), (2, "no hex"), (1, "<IDS>")] {
            let mut frames = frames.clone();
            frames[index] = forged.into();
            assert_eq!(signer().open(&frames), None, "{index}");
        }
        assert_eq!(signer().open(&frames[..5]), None);
        assert_eq!(signer().open(&[]), None);
    }

    #[test]
    fn questions_and_answers_name_each_other() {
        let (mut ours, mut theirs) = (signer(), signer());
        let (id, request) = ours.request("execute_request", &json!({"code": "é"}));
        let read = theirs.open(&request).expect("signed");
        assert_eq!(read.content["code"], "é");
        let reply = theirs.answer(&read, "execute_reply", &json!({}));
        assert_eq!(ours.open(&reply).expect("signed").parent, id);
        let (other, _) = ours.request("execute_request", &json!({}));
        assert_ne!(id, other);
    }

    #[test]
    fn content_that_is_no_json_is_nothing() {
        let signer = signer();
        let parts = ["{\"msg_type\": \"stream\"}", "5", "", "{\"text\": \"\\ud800\"}"].map(Bytes::from);
        let mut frames = vec![
            Bytes::from_static(DELIMITER),
            hex::encode(signer.mac(&parts).finalize().into_bytes()).into(),
        ];
        frames.extend(parts);
        let read = signer.open(&frames).expect("signed");
        assert_eq!((read.kind.as_str(), read.content), ("stream", Value::Null));
        assert_eq!(Signer::new().expect("random").key().len(), 64);
    }
}
