//! `cargo xtask bench`: the executable of a site measured beside a bare server and beside the original.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::{peers, services, shell};

/// The profile of what is installed at a site.
const PROFILE: &str = "dist";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Passed on to the program that measures
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Builds as for a site and hands over to the program that measures.
pub fn run(args: &Args) -> Result<bool> {
    // Together, so that what both are made of is built once.
    let mut build = shell::cargo();
    build.args(["build", "--profile", PROFILE, "--package", "bai", "--bin", "bai"]);
    build.args(["--package", "bai-testkit", "--bin", "bench"]);
    if !shell::run(&mut build)? {
        return Ok(false);
    }
    services::install_missing();
    peers::install_missing();
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| shell::root().join("target"), PathBuf::from);
    shell::run(Command::new(target.join(PROFILE).join("bench")).args(&args.rest))
}
