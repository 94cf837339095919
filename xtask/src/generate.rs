//! Generated files that are committed. Each is compared by a test, which writes it instead when it is told to.

use anyhow::Result;

use crate::report::say;
use crate::shell;

/// Writes `docs/api/routes.md` again.
pub fn run() -> Result<bool> {
    let mut test = shell::cargo();
    test.args(["test", "--quiet", "--package", "it", "--test", "it", "routes::"]);
    let written = shell::run(test.env("BAI_WRITE_GENERATED", "1"))?;
    if written {
        say("docs/api/routes.md is up to date");
    }
    Ok(written)
}
