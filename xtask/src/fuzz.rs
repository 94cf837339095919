//! `cargo xtask fuzz`: coverage-guided fuzzers of `fuzz/`, each for a bounded time. An input that fails is kept below
//! `target/fuzz/failures/` and runs again with `cargo xtask fuzz <target> -- <file>`.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::Result;

use crate::report::{Tally, say};
use crate::shell;

const TARGETS: &[&str] = &[
    "authorization",
    "slots",
    "image_ref",
    "runner_frames",
    "rpc_frames",
    "events",
];
/// Seconds for each target in the test command.
const SECONDS: u32 = 5;
/// What `cargo fuzz` passes too, without its sanitizers, which need another compiler.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
                     -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// One target instead of all
    target: Option<String>,
    /// Seconds for each target
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Arguments for libFuzzer, such as an input to run
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Runs the fuzzers that were asked for; true when none found anything.
pub fn run(args: &Args) -> Result<bool> {
    let mut tally = Tally::default();
    if build(&mut tally)? {
        let wanted = |target: &&&str| args.target.as_deref().is_none_or(|only| only == **target);
        for target in TARGETS.iter().filter(wanted) {
            fuzz(target, args.seconds, &args.rest, &mut tally)?;
        }
    }
    Ok(tally.close())
}

/// Runs every fuzzer for a short time and counts.
pub fn into(tally: &mut Tally) -> Result<()> {
    if build(tally)? {
        for target in TARGETS {
            fuzz(target, SECONDS, &[], tally)?;
        }
    }
    Ok(())
}

/// libFuzzer is C++, compiled with the first target.
fn build(tally: &mut Tally) -> Result<bool> {
    if shell::find("c++").is_none() {
        tally.skip("fuzzers", "there is no C++ compiler (g++)");
        return Ok(false);
    }
    // The versions of the workspace, to which cargo adds what only the fuzzers need.
    fs::copy(
        shell::root().join("Cargo.lock"),
        shell::root().join("fuzz/Cargo.lock"),
    )?;
    // With an explicit target the flags do not reach build scripts, which have no fuzzer to report to.
    let target = host();
    let mut build = shell::cargo();
    build.args([
        "build",
        "--quiet",
        "--manifest-path",
        "fuzz/Cargo.toml",
        "--target",
        &target,
        "--target-dir",
    ]);
    build.arg(folder()).env("RUSTFLAGS", FLAGS);
    let built = shell::run(&mut build)?;
    if !built {
        tally.fail("the build of the fuzzers");
    }
    Ok(built)
}

fn fuzz(target: &str, seconds: u32, rest: &[String], tally: &mut Tally) -> Result<()> {
    let (corpus, failures) = (folder().join("corpus").join(target), folder().join("failures"));
    fs::create_dir_all(&corpus)?;
    fs::create_dir_all(&failures)?;
    let mut fuzzer = Command::new(folder().join(host()).join("debug").join(target));
    fuzzer.args([
        format!("-max_total_time={seconds}"),
        format!("-artifact_prefix={}/{target}-", failures.display()),
        "-timeout=10".to_owned(),
        "-rss_limit_mb=1024".to_owned(),
    ]);
    if rest.is_empty() {
        fuzzer
            .arg(&corpus)
            .arg(shell::root().join("fuzz/seeds").join(target));
    } else {
        fuzzer.args(rest);
    }
    say(&format!("$ {}", shell::describe(&fuzzer)));
    let output = fuzzer.stdin(Stdio::null()).output()?;
    if output.status.success() {
        say(&format!("ok fuzzer {target}: nothing found in {seconds} s"));
        tally.pass();
        return Ok(());
    }
    say(&String::from_utf8_lossy(&output.stderr));
    tally.fail(&format!("fuzzer {target}: see {}", failures.display()));
    Ok(())
}

fn folder() -> PathBuf {
    shell::root().join("target/fuzz")
}

/// The platform that the compiler compiles for without being told.
fn host() -> String {
    let version = shell::answer(Command::new("rustc").arg("-vV")).unwrap_or_default();
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.unwrap_or("x86_64-unknown-linux-gnu").to_owned()
}
