//! Builds `bai-runner` as a static executable and leaves its path in `BAI_RUNNER_PATH`, from where it is embedded into
//! `bai` (ADR 0004): one binary then has everything that a session needs, in any container.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    for path in ["../bai-runner", "../bai-proto", "../../Cargo.lock"] {
        println!("cargo::rerun-if-changed={path}");
    }
    let runner = build_runner();
    println!("cargo::rustc-env=BAI_RUNNER_PATH={}", runner.display());
}

/// The variables of the outer build that would change the inner one.
const OUTER: [&str; 6] = [
    "CARGO_ENCODED_RUSTFLAGS",
    "RUSTFLAGS",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "CARGO_MAKEFLAGS",
    "MAKEFLAGS",
];

fn build_runner() -> PathBuf {
    let target = variable("TARGET");
    let target_dir = target_root().join("runner");
    let mut cargo = Command::new(variable("CARGO"));
    for name in OUTER {
        cargo.env_remove(name);
    }
    // With an explicit target, the flags do not reach procedural macros, which cannot be static.
    let status = cargo
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .args([
            "build",
            "--package",
            "bai-runner",
            "--bin",
            "bai-runner",
            "--profile",
            "runner",
            "--target",
            &target,
        ])
        .arg("--target-dir")
        .arg(&target_dir)
        .current_dir(Path::new(&variable("CARGO_MANIFEST_DIR")).join("../.."))
        .status();
    match status {
        Ok(status) if status.success() => target_dir.join(target).join("runner/bai-runner"),
        Ok(status) => panic!("building bai-runner failed: {status}"),
        Err(error) => panic!("cargo could not be started for bai-runner: {error}"),
    }
}

/// `target` out of `target/<profile>/build/<package>/out`, so that all profiles share one build of the runner.
fn target_root() -> PathBuf {
    let out = PathBuf::from(variable("OUT_DIR"));
    out.ancestors()
        .nth(4)
        .map_or_else(|| out.clone(), Path::to_path_buf)
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo did not set {name}"))
}
