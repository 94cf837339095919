//! Where commands write: data to stdout, everything said to a person to stderr.
#![expect(clippy::print_stderr, reason = "this module is how commands talk to people")]

use std::io::{self, Write};

/// One line of data.
///
/// # Errors
/// When stdout is gone, which a command may take for its end.
pub fn line(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.write_all(b"\n")?;
    stdout.flush()
}

/// Data as it is.
///
/// # Errors
/// When stdout is gone.
pub fn raw(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}

/// What a session's program wrote to its stderr.
///
/// # Errors
/// When stderr is gone.
pub fn raw_error(bytes: &[u8]) -> io::Result<()> {
    let mut stderr = io::stderr().lock();
    stderr.write_all(bytes)?;
    stderr.flush()
}

/// One line for a person.
pub fn say(text: &str) {
    eprintln!("{text}");
}
