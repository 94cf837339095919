//! `cargo xtask test`: from a clean checkout to one closing line.
//!
//! Order: checks, build, the workspace's own tests, those of both profiles on the cluster profile, the real clients against a running server, then the fuzzers for a
//! short time. What this machine
//! lacks is installed when that is possible, and otherwise reported as skipped with the reason. A failing step does not
//! keep the later ones from running, except that nothing runs without a build.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::report::{Tally, say};
use crate::{check, clients, fuzz, peers, services, shell};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Without the checks
    #[arg(long)]
    no_check: bool,
    /// Without the real clients
    #[arg(long)]
    no_clients: bool,
    /// Only the real clients
    #[arg(long, conflicts_with_all = ["no_clients"])]
    clients_only: bool,
    /// Without the fuzzers
    #[arg(long)]
    no_fuzz: bool,
}

/// Runs everything; true when nothing failed.
pub fn run(args: &Args) -> Result<bool> {
    let mut tally = Tally::default();
    let sources = !args.clients_only;
    if sources && !args.no_check {
        check::into(&mut tally)?;
    }
    if shell::run(shell::cargo().args(["build", "--workspace", "--bins"]))? {
        tally.pass();
        if sources {
            services::install_missing();
            peers::install_missing();
            if !args.no_clients {
                clients::install_missing();
            }
            workspace(&mut tally)?;
            cluster(&mut tally)?;
        }
        if !args.no_clients {
            clients::run(&mut tally)?;
        }
        if sources && !args.no_fuzz {
            fuzz::into(&mut tally)?;
        }
    } else {
        tally.fail("the build");
    }
    Ok(tally.close())
}

/// `cargo test` over the workspace, on the embedded profile.
fn workspace(tally: &mut Tally) -> Result<()> {
    let mut tests = shell::cargo();
    tests.args(["test", "--workspace", "--no-fail-fast", "--", "--show-output"]);
    count(&mut tests, tally)
}

/// The tests that know both profiles once more, on PostgreSQL, etcd and Redis: the API and the recordings in process, the
/// executable as a server, and the same killed under load.
fn cluster(tally: &mut Tally) -> Result<()> {
    let missing = services::missing(&["postgres", "etcd", "redis-server"]);
    if !missing.is_empty() {
        let why = format!("not installed: {}", missing.join(", "));
        tally.skip("the API and the executable on PostgreSQL, etcd and Redis", &why);
        return Ok(());
    }
    let mut tests = shell::cargo();
    tests.env("BAI_TEST_PROFILE", "cluster");
    tests.args(["test", "--package", "it", "--test", "it", "--no-fail-fast", "--"]);
    tests.args([
        "api::",
        "coverage::",
        "recordings::",
        "blackbox::served::",
        "crash::",
    ]);
    tests.arg("--show-output");
    count(&mut tests, tally)
}

/// Runs tests and counts them.
fn count(tests: &mut Command, tally: &mut Tally) -> Result<()> {
    say(&format!("$ {}", shell::describe(tests)));
    let child = tests.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut child = shell::Guarded(child.context("cannot start cargo test")?);
    let mut reader = Reader::default();
    if let Some(stdout) = child.0.stdout.take() {
        // Bytes, because a test may print anything.
        for line in BufReader::new(stdout).split(b'\n') {
            reader.line(&String::from_utf8_lossy(&line?), tally);
        }
    }
    let status = child.0.wait()?;
    if !status.success() && reader.failed == 0 {
        tally.fail("cargo test, before or outside its tests");
    }
    Ok(())
}

/// Follows the output of test binaries: shows what matters and counts.
#[derive(Debug, Default)]
struct Reader {
    /// Within the output of tests that went well, of which only skips are shown.
    in_successes: bool,
    failed: usize,
}

impl Reader {
    fn line(&mut self, line: &str, tally: &mut Tally) {
        if let Some((passed, failed, ignored)) = result(line) {
            tally.add(passed, failed, ignored);
            self.failed += failed;
        }
        match line {
            "successes:" => self.in_successes = true,
            "failures:" => self.in_successes = false,
            _ if line.starts_with("test result:") => self.in_successes = false,
            _ => {}
        }
        if line.starts_with("SKIPPED: ") {
            return tally.skip_line(line);
        }
        if let Some(name) = line.strip_suffix(" ... FAILED") {
            tally.name_failure(name.to_owned());
        }
        if !self.in_successes && !line.ends_with(" ... ok") && !line.is_empty() {
            say(line);
        }
    }
}

/// Passed, failed and ignored of a line such as `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
fn result(line: &str) -> Option<(usize, usize, usize)> {
    let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let mut numbers = counts
        .split("; ")
        .filter_map(|part| part.split_once(' ')?.0.parse().ok());
    Some((numbers.next()?, numbers.next()?, numbers.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_counted() {
        let line = "test result: FAILED. 12 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s";
        assert_eq!(result(line), Some((12, 2, 1)));
        assert_eq!(result("running 3 tests"), None);
    }

    #[test]
    fn failures_make_the_run_fail_and_skips_do_not() {
        let mut tally = Tally::default();
        let mut reader = Reader::default();
        reader.line("SKIPPED: a thing: no such machine", &mut tally);
        reader.line(
            "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured",
            &mut tally,
        );
        assert!(tally.close());
        reader.line(
            "test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured",
            &mut tally,
        );
        assert!(!tally.close());
        assert_eq!(reader.failed, 1);
    }
}
