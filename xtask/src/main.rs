//! The chores of this workspace: `cargo xtask check | check-deps | test | fuzz | bench | gen`.
//!
//! Everything that a developer or the continuous integration runs is here, so that both run the same. Nothing here is
//! linked into the product, and no crate of ours is linked into this.

mod bench;
mod check;
mod clients;
mod deps;
mod fuzz;
mod generate;
mod peers;
mod python;
mod report;
mod services;
mod shell;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::report::say;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "The chores of this workspace")]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Debug, Subcommand)]
enum Chore {
    /// Formatting, lints, the dependency table and, when installed, cargo-deny
    Check,
    /// The dependency table alone
    CheckDeps,
    /// Everything: installs what is missing, checks, builds, tests, and drives the real clients
    Test(test::Args),
    /// Fuzz what comes from outside, for a bounded time
    Fuzz(fuzz::Args),
    /// Measure a release build beside a bare server
    Bench(bench::Args),
    /// Write the generated files again
    Gen,
}

fn main() -> ExitCode {
    let ended = match Cli::parse().chore {
        Chore::Check => check::all(),
        Chore::CheckDeps => deps::run(),
        Chore::Test(args) => test::run(&args),
        Chore::Fuzz(args) => fuzz::run(&args),
        Chore::Bench(args) => bench::run(&args),
        Chore::Gen => generate::run(),
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("xtask: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
