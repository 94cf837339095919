//! What drivers tell: `WORD ARGUMENT LENGTH`, a newline, and that many bytes.

use std::fs::File;
use std::io::{self, Read};

/// Bytes of one event; what is larger did not come from a driver of ours.
const MAX_EVENT: usize = 64 << 20;
const MAX_HEADER: usize = 256;
const CHUNK: usize = 64 << 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Done(i32),
    Ask { number: u64, is_password: bool },
    Html(String),
    Media { mime: String, data: String },
    Completions(Vec<String>),
}

/// The pipe that events arrive on.
#[derive(Debug)]
pub struct Events {
    pipe: File,
    bytes: Vec<u8>,
}

impl Events {
    pub fn new(pipe: File) -> Self {
        Self {
            pipe,
            bytes: Vec::new(),
        }
    }

    pub fn pipe(&self) -> &File {
        &self.pipe
    }

    /// Reads once; false at the end of the pipe.
    ///
    /// # Errors
    /// As the pipe's.
    pub fn read(&mut self) -> io::Result<bool> {
        let mut chunk = [0; CHUNK];
        match self.pipe.read(&mut chunk) {
            Ok(count) => {
                self.bytes.extend_from_slice(&chunk[..count]);
                Ok(count > 0)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// The next event, if it is complete.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] when user code has written to the pipe.
    pub fn take(&mut self) -> io::Result<Option<Event>> {
        let foreign = || io::Error::new(io::ErrorKind::InvalidData, "it wrote to a pipe of the runner");
        let Some(end) = self.bytes.iter().position(|byte| *byte == b'\n') else {
            return if self.bytes.len() > MAX_HEADER {
                Err(foreign())
            } else {
                Ok(None)
            };
        };
        let header = str::from_utf8(&self.bytes[..end]).map_err(|_| foreign())?;
        let mut words = header.split(' ');
        let (Some(word), Some(argument), Some(length), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(foreign());
        };
        let length: usize = length.parse().map_err(|_| foreign())?;
        if length > MAX_EVENT {
            return Err(foreign());
        }
        let Some(data) = self.bytes.get(end + 1..end + 1 + length) else {
            return Ok(None);
        };
        let text = String::from_utf8_lossy(data).into_owned();
        let event = match word {
            "done" => Event::Done(argument.parse().map_err(|_| foreign())?),
            "input" | "password" => Event::Ask {
                number: argument.parse().map_err(|_| foreign())?,
                is_password: word == "password",
            },
            "html" => Event::Html(text),
            "media" => Event::Media {
                mime: argument.to_owned(),
                data: text,
            },
            "completions" => Event::Completions(text.lines().map(str::to_owned).collect()),
            _ => return Err(foreign()),
        };
        self.bytes.drain(..end + 1 + length);
        Ok(Some(event))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::OwnedFd;

    use super::*;

    fn events(bytes: &[u8]) -> Vec<io::Result<Event>> {
        let (reader, mut writer) = io::pipe().expect("a pipe");
        let mut events = Events::new(OwnedFd::from(reader).into());
        let mut found = Vec::new();
        for byte in bytes {
            writer.write_all(&[*byte]).expect("room");
            events.read().expect("a byte");
            match events.take() {
                Ok(None) => {}
                Ok(Some(event)) => found.push(Ok(event)),
                Err(error) => {
                    found.push(Err(error));
                    break;
                }
            }
        }
        found
    }

    #[test]
    fn events_arrive_in_pieces() {
        let found = events(b"media image/png 3\nabcdone -1 0\npassword 7 0\ncompletions - 3\na\nb");
        let found: Vec<Event> = found.into_iter().map(|event| event.expect("an event")).collect();
        assert_eq!(
            found,
            [
                Event::Media {
                    mime: "image/png".into(),
                    data: "abc".into()
                },
                Event::Done(-1),
                Event::Ask {
                    number: 7,
                    is_password: true
                },
                Event::Completions(vec!["a".into(), "b".into()]),
            ]
        );
    }

    #[test]
    fn what_no_driver_would_say_is_refused() {
        let long = "x".repeat(MAX_HEADER + 1);
        for garbage in [
            "hello\n",
            "done x 0\n",
            "done 0 -1\n",
            "done 0 99999999999999999999\n",
            "html - 99999999999\n",
            "nothing - 0\n",
            "done 0 0 0\n",
            "\n",
            &long,
        ] {
            let found = events(garbage.as_bytes());
            assert!(
                matches!(found.as_slice(), [Err(error)] if error.kind() == io::ErrorKind::InvalidData),
                "{garbage:?}: {found:?}"
            );
        }
    }
}
