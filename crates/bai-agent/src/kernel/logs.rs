//! What a kernel's programs printed (`agent-protocol.md` 2.9): the file `run/console.log` of its scratch folder, which
//! the runner writes and bounds.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

const FILE: &str = "run/console.log";
/// The end of the log that is shown.
const MAX_SHOWN: u64 = 1 << 20;

/// The end of the log below `scratch`; empty if there is none. Blocking.
///
/// # Errors
/// When the file is there but cannot be read.
pub(crate) fn read(scratch: &Path) -> io::Result<String> {
    let mut file = match File::open(scratch.join(FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        file => file?,
    };
    let length = file.metadata()?.len();
    let skipped = length.saturating_sub(MAX_SHOWN);
    file.seek(SeekFrom::Start(skipped))?;
    let mut bytes = Vec::new();
    file.take(MAX_SHOWN).read_to_end(&mut bytes)?;
    let is_continuation = |byte: &u8| byte & 0xC0 == 0x80;
    // Not from the middle of a character.
    let start = if skipped > 0 { bytes.iter().take(3).take_while(|byte| is_continuation(byte)).count() } else { 0 };
    Ok(String::from_utf8_lossy(bytes.get(start..).unwrap_or_default()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_shown_from_a_whole_character_on() {
        let dir = tempfile::tempdir().expect("a folder");
        assert_eq!(read(dir.path()).expect("no log"), "");
        std::fs::create_dir(dir.path().join("run")).expect("made");
        let text = format!("{}{}", "☃".repeat(10), "x".repeat((1 << 20) - 1));
        std::fs::write(dir.path().join(FILE), text).expect("written");
        let shown = read(dir.path()).expect("a log");
        assert_eq!(shown.len(), (1 << 20) - 1);
        assert!(shown.starts_with('x'));
    }
}
