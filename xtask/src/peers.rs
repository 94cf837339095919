//! What tests talk with that is written in Python, from its package index: the original manager, run beside ours on the same
//! databases (`bai_testkit::services::site`), the ZeroMQ libraries of 19.06 agents and of today
//! (`crates/bai-proto/tests/zmq/interop.rs`), the runner of 19.06's time (`bai_testkit::services::original`), and the Jupyter
//! kernels of both times (`crates/bai-runner/tests/sandbox/jupyter.rs`).

use std::fs;

use crate::python::{self, Requirements};
use crate::report::say;
use crate::shell;

/// Makes the environments that can be made. Without one, the tests that need it say why they are skipped.
pub fn install_missing() {
    let interop = |name: &str, pythons| Requirements {
        file: format!("tests/interop/requirements-{name}.txt"),
        folder: format!("interop/{name}"),
        pythons,
        are_complete: false,
    };
    let peers = [
        Requirements {
            file: "tests/peers/requirements-manager.txt".to_owned(),
            folder: "peers/manager".to_owned(),
            // The package itself refuses any other.
            pythons: &[6],
            are_complete: true,
        },
        Requirements {
            are_complete: true,
            ..interop("runner-19.06", &[6])
        },
        interop("19.06", &[6, 7]),
        interop("current", &[11, 12, 10, 13, 9]),
        interop("jupyter-19.06", &[6, 7]),
        interop("jupyter", &[11, 12, 13, 10]),
    ];
    for peer in peers {
        if let Err(reason) = python::environment(&peer) {
            say(&format!("not installed: {}: {reason:#}", peer.folder));
            // Half an environment would be a failure instead of a skip.
            _ = fs::remove_dir_all(shell::root().join("target").join(&peer.folder));
        }
    }
}
