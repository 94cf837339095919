//! Entering the control groups that the agent has made.
//!
//! The process moves itself, because that is fast: to move another one the kernel waits until no process of the machine
//! is forking, which takes ten milliseconds. With version 1 a lone thread is moved without that; with version 2 it is
//! not to be avoided here.
//!
//! Invariants: a process in fewer groups than it was told is no sandbox.

use std::fs;
use std::path::Path;

use super::control::{Fatal, Ledger, OrFatal};

/// Moves this process, which has one thread, into all groups.
pub fn enter(groups: &[String], ledger: &mut Ledger) -> Result<(), Fatal> {
    for group in groups {
        let threads = Path::new(group).join("tasks");
        let file = if threads.exists() {
            threads
        } else {
            Path::new(group).join("cgroup.procs")
        };
        // Zero stands for whoever writes it.
        fs::write(file, "0").or_fatal(format!("enter the cgroup {group}"))?;
    }
    if !groups.is_empty() {
        ledger.enforced("cgroups");
    }
    Ok(())
}
