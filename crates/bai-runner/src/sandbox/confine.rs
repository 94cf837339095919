//! Limits and locks that a process puts on itself, after which there is no way back: rlimits, CPUs, Landlock,
//! capabilities, `no_new_privs`, the system-call filter.
//!
//! Invariants: applied by the session's pid 1 before anything else runs in the namespaces, hence inherited by all.
//!
//! Not here: cgroups, which the agent sets up before the runner starts.

use std::fmt::Display;
use std::path::PathBuf;

use bai_proto::sandbox::{Limits, SandboxSpec};
use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr,
    Scope, path_beneath_rules,
};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;

use super::control::{Fatal, Ledger, OrFatal};
use super::{seccomp, sys};

/// Confines the calling process. What a session may not go without is fatal when refused.
pub fn confine(spec: &SandboxSpec, ledger: &mut Ledger) -> Result<(), Fatal> {
    limit_resources(&spec.limits, ledger);
    bind_to_cpus(&spec.limits.cpu_set, ledger);
    prctl::set_no_new_privs().or_fatal("set no_new_privs")?;
    ledger.enforced("no_new_privs");
    restrict_files(spec, ledger);
    sys::drop_capabilities().or_fatal("drop the capabilities")?;
    ledger.enforced("no capabilities");
    // Keeps the session from tracing pid 1 and the runner, and from their memory, descriptors and environment.
    prctl::set_dumpable(false).or_fatal("make the first process untraceable")?;
    filter_system_calls(ledger);
    Ok(())
}

fn limit_resources(limits: &Limits, ledger: &mut Ledger) {
    let mut refusals = Vec::new();
    let mut limit = |name: &str, resource, wanted: Option<u64>| {
        let Some(wanted) = wanted else { return };
        let outcome = getrlimit(resource).and_then(|(_, ceiling)| {
            let wanted = wanted.min(ceiling);
            setrlimit(resource, wanted, wanted)
        });
        if let Err(error) = outcome {
            refusals.push(format!("{name}: {error}"));
        }
    };
    limit("core size", Resource::RLIMIT_CORE, Some(0));
    limit("open files", Resource::RLIMIT_NOFILE, Some(limits.open_files));
    limit("processes", Resource::RLIMIT_NPROC, limits.processes);
    limit("file size", Resource::RLIMIT_FSIZE, limits.file_size);
    limit("memory of a process", Resource::RLIMIT_DATA, limits.memory);
    let outcome = if refusals.is_empty() {
        Ok(())
    } else {
        Err(refusals.join(", "))
    };
    ledger.note("rlimits", outcome);
}

fn bind_to_cpus(cpus: &[usize], ledger: &mut Ledger) {
    if cpus.is_empty() {
        return;
    }
    let mut set = CpuSet::new();
    let outcome = cpus
        .iter()
        .try_for_each(|cpu| set.set(*cpu))
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
        .map_err(|error| format!("CPUs {cpus:?}: {error}"));
    ledger.note("cpu affinity", outcome);
}

fn restrict_files(spec: &SandboxSpec, ledger: &mut Ledger) {
    match sys::landlock_version() {
        Ok(1) => ledger.refused(
            "landlock",
            "version 1 cannot let a session move files between its own folders; Linux 5.19 or newer can",
        ),
        Ok(version) => match restrict_files_by_landlock(spec, version) {
            Ok(()) => ledger.enforced(format!("landlock abi {version}")),
            Err(error) => ledger.refused("landlock", error),
        },
        Err(error) => {
            let reason =
                format!("the kernel does not offer it ({error}); read-only mounts hold the same line");
            ledger.refused("landlock", reason);
        }
    }
}

fn restrict_files_by_landlock(spec: &SandboxSpec, version: i64) -> Result<(), impl Display> {
    let abi = match version {
        2 => ABI::V2,
        3 => ABI::V3,
        4 => ABI::V4,
        5 => ABI::V5,
        _ => ABI::V6,
    };
    let read = AccessFs::from_read(abi);
    let all = AccessFs::from_all(abi);
    let device: BitFlags<AccessFs> = AccessFs::from_file(abi);
    let writable = ["/home/work", "/tmp", "/dev/shm"].map(PathBuf::from).into_iter();
    let writable = writable.chain(
        spec.binds
            .iter()
            .filter(|bind| bind.writable)
            .map(|bind| PathBuf::from(&bind.target)),
    );
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?;
    if abi >= ABI::V6 {
        rules = rules.scope(Scope::AbstractUnixSocket | Scope::Signal)?;
    }
    rules
        .create()?
        .add_rules(path_beneath_rules(["/"], read))?
        .add_rules(path_beneath_rules(writable, all))?
        // Own entries of /proc take writes (`oom_score_adj`), devices take them and ioctls; neither takes new files.
        .add_rules(path_beneath_rules(["/dev", "/proc"], read | device))?
        .restrict_self()
        .map(drop)
}

fn filter_system_calls(ledger: &mut Ledger) {
    let outcome = seccomp::filters().and_then(|filters| {
        filters
            .iter()
            .try_for_each(|filter| seccompiler::apply_filter(filter))
    });
    ledger.note("seccomp", outcome);
}
