//! Turns a run's records into console items (`agent-protocol.md` 6.5).
//!
//! Invariants: records of one stream that follow each other become one item; a character whose bytes are spread over
//! records comes out whole, once its last byte is there.

use bai_proto::agent::ConsoleItem;
use bai_proto::runner::Record;

/// Gathers output until somebody takes it.
#[derive(Debug, Default)]
pub(crate) struct Console {
    items: Vec<ConsoleItem>,
    bytes: usize,
    stdout: Utf8Decoder,
    stderr: Utf8Decoder,
}

impl Console {
    /// Adds what a record shows; records that show nothing are left out.
    pub fn push(&mut self, record: Record) {
        match record {
            Record::Stdout(bytes) => {
                let text = self.stdout.decode(&bytes);
                self.push_stdout(text);
            }
            Record::Stderr(bytes) => {
                let text = self.stderr.decode(&bytes);
                self.push_stderr(text);
            }
            Record::Media { mime, data } => self.push_item(data.len(), ConsoleItem::Media { mime, data }),
            Record::Html(text) => self.push_item(text.len(), ConsoleItem::Html(text)),
            Record::Log(text) => self.push_item(text.len(), ConsoleItem::Log(text)),
            _ => {}
        }
    }

    /// Shows what is left of broken characters; the streams begin anew.
    pub fn flush_decoders(&mut self) {
        let text = self.stdout.finish();
        self.push_stdout(text);
        let text = self.stderr.finish();
        self.push_stderr(text);
    }

    /// What was gathered since the last time.
    pub fn take(&mut self) -> Vec<ConsoleItem> {
        self.bytes = 0;
        std::mem::take(&mut self.items)
    }

    /// Bytes of text gathered.
    pub fn len(&self) -> usize {
        self.bytes
    }

    fn push_stdout(&mut self, text: String) {
        match self.items.last_mut() {
            _ if text.is_empty() => {}
            Some(ConsoleItem::Stdout(last)) => {
                self.bytes += text.len();
                last.push_str(&text);
            }
            _ => self.push_item(text.len(), ConsoleItem::Stdout(text)),
        }
    }

    fn push_stderr(&mut self, text: String) {
        match self.items.last_mut() {
            _ if text.is_empty() => {}
            Some(ConsoleItem::Stderr(last)) => {
                self.bytes += text.len();
                last.push_str(&text);
            }
            _ => self.push_item(text.len(), ConsoleItem::Stderr(text)),
        }
    }

    fn push_item(&mut self, bytes: usize, item: ConsoleItem) {
        self.bytes += bytes;
        self.items.push(item);
    }
}

/// Decodes UTF-8 that comes in pieces; what can be no character becomes U+FFFD.
#[derive(Debug, Default)]
struct Utf8Decoder {
    /// The beginning of a character, at most three bytes.
    pending: Vec<u8>,
}

impl Utf8Decoder {
    fn decode(&mut self, bytes: &[u8]) -> String {
        let mut input = std::mem::take(&mut self.pending);
        input.extend_from_slice(bytes);
        let mut text = String::with_capacity(input.len());
        let mut chunks = input.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.push_str(chunk.valid());
            let rest = chunk.invalid();
            if rest.is_empty() {
                continue;
            }
            if chunks.peek().is_none() && may_continue(rest) {
                self.pending = rest.to_vec();
            } else {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        text
    }

    fn finish(&mut self) -> String {
        let rest = std::mem::take(&mut self.pending);
        if rest.is_empty() {
            String::new()
        } else {
            char::REPLACEMENT_CHARACTER.to_string()
        }
    }
}

/// Whether `bytes` are the beginning of a character, not just wrong.
fn may_continue(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stdout(bytes: &[u8]) -> Record {
        Record::Stdout(bytes.to_vec())
    }

    #[test]
    fn streams_are_joined_and_kept_apart() {
        let mut console = Console::default();
        for record in [
            stdout(b"a"),
            stdout(b"b"),
            Record::Stderr(b"c".to_vec()),
            Record::Status(vec![1]),
            Record::Stderr(b"d".to_vec()),
            Record::Html("<i>".into()),
            stdout(b"e"),
        ] {
            console.push(record);
        }
        let expected = [
            ConsoleItem::Stdout("ab".into()),
            ConsoleItem::Stderr("cd".into()),
            ConsoleItem::Html("<i>".into()),
            ConsoleItem::Stdout("e".into()),
        ];
        assert_eq!(console.take(), expected);
        assert_eq!(console.len(), 0);
    }

    #[test]
    fn a_character_may_be_spread_over_records_of_either_stream() {
        let mut console = Console::default();
        let snowman = "☃".as_bytes();
        console.push(stdout(&snowman[..1]));
        console.push(Record::Stderr(snowman[..2].to_vec()));
        console.push(stdout(&snowman[1..2]));
        assert!(console.take().is_empty());
        console.push(stdout(&snowman[2..]));
        console.push(Record::Stderr(snowman[2..].to_vec()));
        assert_eq!(
            console.take(),
            [ConsoleItem::Stdout("☃".into()), ConsoleItem::Stderr("☃".into())]
        );
    }

    #[test]
    fn broken_bytes_are_replaced_at_once_and_unfinished_ones_at_the_end() {
        let mut console = Console::default();
        console.push(stdout(b"a\xffb\xe2\x98"));
        assert_eq!(console.take(), [ConsoleItem::Stdout("a\u{fffd}b".into())]);
        console.flush_decoders();
        assert_eq!(console.take(), [ConsoleItem::Stdout("\u{fffd}".into())]);
        console.flush_decoders();
        assert!(console.take().is_empty());
    }

    proptest! {
        #[test]
        fn pieces_decode_as_the_whole(bytes in proptest::collection::vec(any::<u8>(), 0..40), text in ".{0,8}", cuts in proptest::collection::vec(1..5usize, 0..60)) {
            let mut whole = bytes;
            whole.extend_from_slice(text.as_bytes());
            let mut decoder = Utf8Decoder::default();
            let mut decoded = String::new();
            let mut rest = whole.as_slice();
            for cut in cuts {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                decoded.push_str(&decoder.decode(piece));
                rest = after;
            }
            decoded.push_str(&decoder.decode(rest));
            decoded.push_str(&decoder.finish());
            prop_assert_eq!(decoded, String::from_utf8_lossy(&whole).into_owned());
        }
    }
}
