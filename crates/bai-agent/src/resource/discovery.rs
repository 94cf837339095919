//! What this host has (`agent-protocol.md` 7.4): the cores that this process may use and the memory that it may have,
//! both within the limits of the control groups that it is in.
//!
//! Unlike 19.06, reserved amounts are taken off, and how many units of `cpu` a core provides can be chosen.

use std::fs;
use std::path::{Path, PathBuf};

use super::accelerator::Accelerator;
use super::allocation::Pool;

/// What is found, or told instead.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Units of `cpu` instead of those of the usable cores.
    pub cpu: Option<u64>,
    /// Units of `cpu` that one core provides: with 2, two kernels may share a core.
    pub overcommit: u64,
    /// Bytes instead of what the machine has.
    pub mem: Option<u64>,
    /// Cores to leave to the host.
    pub reserved_cpu: u64,
    /// Bytes to leave to the host.
    pub reserved_mem: u64,
    /// Devices beside cores and memory.
    pub accelerators: Vec<Accelerator>,
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            cpu: None,
            overcommit: 1,
            mem: None,
            reserved_cpu: 0,
            reserved_mem: 0,
            accelerators: Vec::new(),
        }
    }
}

/// Finds the devices. Blocking, but only reads a few small files.
pub fn discover(wanted: &Wanted) -> Pool {
    let cores = usable_cores();
    let quota = cpu_quota().unwrap_or(u64::MAX).max(1);
    let overcommit = wanted.overcommit.max(1);
    let units = wanted
        .cpu
        .unwrap_or_else(|| quota.min(cores.len() as u64) * overcommit);
    let mem = wanted.mem.unwrap_or_else(usable_memory);
    // A host that reserves everything would be of no use.
    let units = units.saturating_sub(wanted.reserved_cpu * overcommit).max(1);
    let pool = Pool::new(&cores, units, mem.saturating_sub(wanted.reserved_mem));
    pool.with(wanted.accelerators.iter().cloned())
}

/// Host numbers of the cores that this process may run on; never empty.
fn usable_cores() -> Vec<usize> {
    let allowed = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0));
    let cores: Vec<usize> = allowed
        .map(|set| {
            (0..nix::sched::CpuSet::count())
                .filter(|core| set.is_set(*core).unwrap_or(false))
                .collect()
        })
        .unwrap_or_default();
    if cores.is_empty() { vec![0] } else { cores }
}

/// Whole cores that the time quotas of our control groups amount to, rounded up.
fn cpu_quota() -> Option<u64> {
    let v2 = ancestors("", "/sys/fs/cgroup")
        .into_iter()
        .filter_map(|dir| parse_cpu_max(&read(&dir.join("cpu.max"))?));
    let v1 = ancestors("cpu", "/sys/fs/cgroup/cpu")
        .into_iter()
        .filter_map(|dir| {
            let quota: u64 = read(&dir.join("cpu.cfs_quota_us"))?.trim().parse().ok()?;
            let period: u64 = read(&dir.join("cpu.cfs_period_us"))?.trim().parse().ok()?;
            (period > 0).then(|| quota.div_ceil(period))
        });
    v2.chain(v1).min()
}

/// `<quota|max> <period>` as whole cores.
fn parse_cpu_max(text: &str) -> Option<u64> {
    let (quota, period) = text.trim().split_once(' ')?;
    let (quota, period): (u64, u64) = (quota.parse().ok()?, period.parse().ok()?);
    (period > 0).then(|| quota.div_ceil(period))
}

/// The machine's memory in bytes, or less where a control group says so.
fn usable_memory() -> u64 {
    let total = read(Path::new("/proc/meminfo"))
        .and_then(|text| parse_meminfo(&text))
        .unwrap_or(0);
    let limit = |dir: &Path, file: &str| read(&dir.join(file))?.trim().parse::<u64>().ok();
    let v2 = ancestors("", "/sys/fs/cgroup")
        .into_iter()
        .filter_map(|dir| limit(&dir, "memory.max"));
    let v1 = ancestors("memory", "/sys/fs/cgroup/memory")
        .into_iter()
        .filter_map(|dir| limit(&dir, "memory.limit_in_bytes"));
    v2.chain(v1).fold(total, u64::min)
}

fn parse_meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim()
        .strip_suffix("kB")?
        .trim()
        .parse::<u64>()
        .ok()
        .map(|kibibytes| kibibytes * 1024)
}

/// Our control group in the hierarchy of `controller` (empty for version 2) and those above it, below `root`.
fn ancestors(controller: &str, root: &str) -> Vec<PathBuf> {
    let own = read(Path::new("/proc/self/cgroup")).and_then(|text| parse_cgroup(&text, controller));
    let own = own.unwrap_or_else(|| "/".to_owned());
    // In a container the path may be the host's, which is not visible; the root then is our own group.
    Path::new(own.trim_start_matches('/'))
        .ancestors()
        .map(|path| Path::new(root).join(path))
        .collect()
}

/// The path of `controller` in `/proc/self/cgroup`.
fn parse_cgroup(text: &str, controller: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        controllers
            .split(',')
            .any(|name| name == controller)
            .then(|| path.to_owned())
    })
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read() {
        assert_eq!(parse_cpu_max("150000 100000\n"), Some(2));
        assert_eq!(parse_cpu_max("max 100000\n"), None);
        assert_eq!(
            parse_meminfo("MemTotal:        1024 kB\nMemFree: 1 kB\n"),
            Some(1 << 20)
        );
        let groups = "4:memory:/a/b\n2:cpu,cpuacct:/c\n0::/d\n";
        assert_eq!(parse_cgroup(groups, "memory").as_deref(), Some("/a/b"));
        assert_eq!(parse_cgroup(groups, "cpu").as_deref(), Some("/c"));
        assert_eq!(parse_cgroup(groups, "").as_deref(), Some("/d"));
    }

    #[test]
    fn this_machine_has_something() {
        let pool = discover(&Wanted::default());
        assert!(pool.cpu_capacity() >= 1);
        assert!(pool.mem_capacity() > 0);
    }

    #[test]
    fn told_amounts_win_and_reserved_ones_are_taken_off() {
        let pool = discover(&Wanted {
            cpu: Some(8),
            mem: Some(1000),
            reserved_cpu: 2,
            reserved_mem: 100,
            ..Wanted::default()
        });
        assert_eq!((pool.cpu_capacity(), pool.mem_capacity()), (6, 900));
        let pool = discover(&Wanted {
            cpu: Some(1),
            reserved_cpu: 5,
            ..Wanted::default()
        });
        assert_eq!(pool.cpu_capacity(), 1);
        let twice = discover(&Wanted {
            overcommit: 2,
            ..Wanted::default()
        });
        assert_eq!(
            twice.cpu_capacity(),
            2 * discover(&Wanted::default()).cpu_capacity()
        );
    }
}
