//! `cargo xtask bench`: a release build measured beside a bare server.

use anyhow::Result;

use crate::shell;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Passed on to the program that measures
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Builds for release and hands over to the program that measures.
pub fn run(args: &Args) -> Result<bool> {
    if !shell::run(shell::cargo().args(["build", "--release", "--package", "bai"]))? {
        return Ok(false);
    }
    let mut bench = shell::cargo();
    bench.args([
        "run",
        "--quiet",
        "--release",
        "--package",
        "bai-testkit",
        "--bin",
        "bench",
        "--",
    ]);
    shell::run(bench.args(&args.rest))
}
