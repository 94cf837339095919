//! Commands to a kernel's terminal that come as code (`agent-protocol.md` 6.8): `%resize <rows> <columns>` and `%ping`.
//!
//! Invariants: they never reach an interpreter, wait for no run and are no run.

use bai_model::RunId;
use bai_proto::agent::{ConsoleItem, ExecuteReply, RunStatus};

use super::terminal::Size;

/// A command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Ping,
    Resize(Size),
    /// A size that is none.
    Malformed,
}

impl Command {
    /// The command that some code is, if it is one.
    pub fn parse(code: &str) -> Option<Self> {
        let mut words = code.split_ascii_whitespace();
        match words.next()? {
            "%ping" if words.next().is_none() => Some(Self::Ping),
            "%resize" => {
                let numbers: Vec<Option<u16>> = words.map(|word| word.parse().ok()).collect();
                match numbers.as_slice() {
                    [Some(rows @ 1..), Some(columns @ 1..)] => Some(Self::Resize(Size {
                        rows: *rows,
                        columns: *columns,
                    })),
                    _ => Some(Self::Malformed),
                }
            }
            _ => None,
        }
    }

    /// What whoever has sent it is told.
    pub fn reply(self, run: RunId) -> ExecuteReply {
        let (exit_code, said) = match self {
            Self::Ping => (0, ConsoleItem::Stdout("pong!\n".to_owned())),
            Self::Resize(Size { rows, columns }) => {
                let text = format!("the terminal has {rows} rows and {columns} columns\n");
                (0, ConsoleItem::Stdout(text))
            }
            Self::Malformed => {
                let text = "usage: %resize ROWS COLUMNS, each from 1 to 65535\n".to_owned();
                (2, ConsoleItem::Stderr(text))
            }
        };
        ExecuteReply {
            run_id: run,
            status: RunStatus::Finished,
            exit_code: Some(exit_code),
            options: None,
            console: vec![said],
            files: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_told_from_code() {
        let size = Size {
            rows: 40,
            columns: 120,
        };
        for (code, command) in [
            ("%ping", Some(Command::Ping)),
            (" %ping\n", Some(Command::Ping)),
            ("%resize 40 120", Some(Command::Resize(size))),
            ("%resize 40", Some(Command::Malformed)),
            ("%resize 0 5", Some(Command::Malformed)),
            ("%resize 40 120 1", Some(Command::Malformed)),
            ("%resize 40 -1", Some(Command::Malformed)),
            ("%ping -c 1 example.org", None),
            ("%resized", None),
            ("print('%ping')", None),
            ("", None),
        ] {
            assert_eq!(Command::parse(code), command, "{code:?}");
        }
    }
}
