//! The chores: `cargo xtask check | check-deps | test`.
#![expect(clippy::print_stdout, reason = "chores talk to whoever runs them")]

mod deps;

use std::env;
use std::process::Command;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Formatting, lints and the dependency table
    Check,
    /// The dependency table alone
    CheckDeps,
    /// Everything: installs what is missing, checks, builds, tests
    Test,
}

fn main() -> Result<()> {
    match Cli::parse().chore {
        Chore::Check => check(),
        Chore::CheckDeps => deps::check(),
        Chore::Test => test(),
    }
}

fn check() -> Result<()> {
    cargo(&["fmt", "--all", "--check"])?;
    deps::check()?;
    cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])
}

fn test() -> Result<()> {
    install_missing()?;
    check()?;
    cargo(&["build", "--workspace", "--bins"])?;
    cargo(&["test", "--workspace"])
}

/// A C compiler is what the tests need beside the Rust toolchain and python3.
fn install_missing() -> Result<()> {
    for (program, package) in [("gcc", "gcc"), ("python3", "python3")] {
        if is_there(program) {
            continue;
        }
        println!("installing {package}");
        if !run("apt-get", &["install", "-y", package]) {
            bail!("{program} is missing and could not be installed; install the package {package}");
        }
    }
    Ok(())
}

fn is_there(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

fn run(program: &str, arguments: &[&str]) -> bool {
    Command::new(program)
        .args(arguments)
        .status()
        .is_ok_and(|status| status.success())
}

fn cargo(arguments: &[&str]) -> Result<()> {
    println!("> cargo {}", arguments.join(" "));
    let cargo = env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    if run(&cargo, arguments) {
        Ok(())
    } else {
        bail!("cargo {} failed", arguments.join(" "))
    }
}
