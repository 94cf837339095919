//! The original manager, from its package index, which tests run beside ours on the same databases
//! (`bai_testkit::services::site`).

use crate::python::{self, Requirements};
use crate::report::say;

/// Makes the environment of the original manager where that is possible. Without it, tests that need it say why they
/// are skipped.
pub fn install_missing() {
    let manager = Requirements {
        file: "tests/peers/requirements-manager.txt".to_owned(),
        folder: "peers/manager".to_owned(),
        // The package itself refuses any other.
        pythons: &[6],
        are_complete: true,
    };
    if let Err(reason) = python::environment(&manager) {
        say(&format!("not installed: the original manager: {reason:#}"));
    }
}
