//! Records gathered into a console (`agent-protocol.md` 6.5): consecutive pieces of one stream become one item, characters
//! that were split between records become whole.

use bai_proto::agent::ConsoleItem;
use bai_proto::runner::Record;

/// A UTF-8 decoder that keeps an unfinished character for the next piece.
#[derive(Debug, Default)]
struct Decoder {
    rest: Vec<u8>,
}

impl Decoder {
    fn decode(&mut self, bytes: &[u8]) -> String {
        self.rest.extend_from_slice(bytes);
        let mut text = String::new();
        let mut kept = Vec::new();
        let mut chunks = self.rest.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.push_str(chunk.valid());
            let invalid = chunk.invalid();
            // Only at the end can more bytes still make sense of it.
            if chunks.peek().is_none() && could_begin_a_character(invalid) {
                kept = invalid.to_vec();
            } else if !invalid.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        self.rest = kept;
        text
    }

    fn flush(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.rest)).into_owned()
    }
}

fn could_begin_a_character(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

/// The console of a run. Decoders live as long as the run, items until they are taken.
#[derive(Debug, Default)]
pub struct Console {
    stdout: Decoder,
    stderr: Decoder,
    items: Vec<ConsoleItem>,
}

impl Console {
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
            Record::Media { mime, data } => self.items.push(ConsoleItem::Media { mime, data }),
            Record::Html(text) => self.items.push(ConsoleItem::Html(text)),
            Record::Log(text) => self.items.push(ConsoleItem::Log(text)),
            _ => {}
        }
    }

    /// Ends unfinished characters, at the end of a step.
    pub fn flush(&mut self) {
        let (stdout, stderr) = (self.stdout.flush(), self.stderr.flush());
        self.push_stdout(stdout);
        self.push_stderr(stderr);
    }

    /// The items so far.
    pub fn take(&mut self) -> Vec<ConsoleItem> {
        std::mem::take(&mut self.items)
    }

    fn push_stdout(&mut self, text: String) {
        match self.items.last_mut() {
            _ if text.is_empty() => {}
            Some(ConsoleItem::Stdout(last)) => last.push_str(&text),
            _ => self.items.push(ConsoleItem::Stdout(text)),
        }
    }

    fn push_stderr(&mut self, text: String) {
        match self.items.last_mut() {
            _ if text.is_empty() => {}
            Some(ConsoleItem::Stderr(last)) => last.push_str(&text),
            _ => self.items.push(ConsoleItem::Stderr(text)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_characters_become_whole() {
        let mut console = Console::default();
        for byte in "a한글z".as_bytes() {
            console.push(Record::Stdout(vec![*byte]));
        }
        assert_eq!(console.take(), [ConsoleItem::Stdout("a한글z".into())]);
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced() {
        let mut console = Console::default();
        console.push(Record::Stderr(vec![b'x', 0xff, b'y', 0xed]));
        console.flush();
        assert_eq!(console.take(), [ConsoleItem::Stderr("x\u{fffd}y\u{fffd}".into())]);
    }
}
