//! What must hold before anything is tested: formatting, lints, the dependency table, licences.

use anyhow::Result;

use crate::report::{Tally, say};
use crate::{deps, shell};

/// Runs every check and prints a closing line; true when all hold.
pub fn all() -> Result<bool> {
    let mut tally = Tally::default();
    into(&mut tally)?;
    Ok(tally.close())
}

/// Runs every check and counts.
pub fn into(tally: &mut Tally) -> Result<()> {
    let mut step = |name: &str, ok: bool| {
        if ok { tally.pass() } else { tally.fail(name) }
    };
    step(
        "formatting: run `cargo fmt --all`",
        shell::run(shell::cargo().args(["fmt", "--all", "--check"]))?,
    );
    let clippy = [
        "clippy",
        "--quiet",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ];
    step("lints", shell::run(shell::cargo().args(clippy))?);
    say("$ cargo xtask check-deps");
    step("the dependency table", deps::run()?);
    if shell::find("cargo-deny").is_some() {
        let deny = ["deny", "--workspace", "check", "bans", "licenses", "sources"];
        step("cargo deny", shell::run(shell::cargo().args(deny))?);
    } else {
        tally.skip("cargo deny", "cargo-deny is not installed");
    }
    Ok(())
}
