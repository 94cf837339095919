//! `cargo xtask bench`: a release build measured beside a bare server and beside the original.

use anyhow::Result;

use crate::{peers, services, shell};

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
    services::install_missing();
    peers::install_missing();
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
