//! Measures a kernel: from its groups where there are any, else summed over its processes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use super::cgroup::Groups;
use crate::runtime::sample::{Sample, network};

/// As [`measure`], if everything can be read that there is to know. Blocking.
pub fn measure_wholly(pid: i32, groups: &Groups) -> Option<Sample> {
    let has = |files: [&str; 2]| files.into_iter().any(|file| groups.read(file).is_some());
    let is_whole = has(["cpuacct.usage", "cpu.stat"])
        && has(["memory.usage_in_bytes", "memory.current"])
        && has(["blkio.throttle.io_service_bytes", "io.stat"]);
    // An ordinary user may not look at the network of a process that has changed its user.
    let network = fs::read_link(format!("/proc/{pid}/ns/net"));
    (is_whole && network.is_ok()).then(|| measure(pid, groups))
}

/// Measures. Blocking.
pub fn measure(pid: i32, groups: &Groups) -> Sample {
    let nanoseconds = groups
        .number("cpuacct.usage")
        .map(|nanoseconds| nanoseconds as f64 / 1e6);
    let microseconds = || {
        groups
            .field("cpu.stat", "usage_usec")
            .map(|microseconds| microseconds as f64 / 1e3)
    };
    let memory = groups
        .number("memory.usage_in_bytes")
        .or_else(|| groups.number("memory.current"));
    let peak = groups
        .number("memory.max_usage_in_bytes")
        .or_else(|| groups.number("memory.peak"));
    let cpu = nanoseconds.or_else(microseconds);
    let summed = if cpu.is_none() || memory.is_none() {
        sum_processes(pid)
    } else {
        (0.0, 0)
    };
    let memory = memory.unwrap_or(summed.1);
    let (read, written) = block_io(groups);
    let memory_peak = peak.unwrap_or(memory);
    Sample {
        cpu: cpu.unwrap_or(summed.0),
        memory,
        memory_peak,
        read,
        written,
        network: own_network(pid),
    }
}

/// What a network of the process's own has carried.
fn own_network(pid: i32) -> Option<(u64, u64)> {
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).ok();
    if namespace(&pid.to_string())? == namespace("self")? {
        return None;
    }
    let text = fs::read_to_string(format!("/proc/{pid}/net/dev")).ok()?;
    Some(network(&text))
}

fn block_io(groups: &Groups) -> (u64, u64) {
    let sum = |text: &str, key: &str| -> u64 {
        let value = |word: &str| {
            word.strip_prefix(key)?
                .trim_start_matches(['=', ' '])
                .parse::<u64>()
                .ok()
        };
        text.lines()
            .flat_map(|line| line.split_ascii_whitespace())
            .filter_map(value)
            .sum()
    };
    if let Some(text) = groups.read("io.stat") {
        return (sum(&text, "rbytes="), sum(&text, "wbytes="));
    }
    // Lines `major:minor Read 123`.
    let text = groups.read("blkio.throttle.io_service_bytes").unwrap_or_default();
    let of = |operation: &str| {
        let value = |line: &str| line.split_once(operation)?.1.trim().parse::<u64>().ok();
        text.lines().filter_map(value).sum()
    };
    (of(" Read "), of(" Write "))
}

/// CPU time in milliseconds and resident bytes of a process and all below it.
fn sum_processes(root: i32) -> (f64, u64) {
    let clock = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)
        .ok()
        .flatten()
        .unwrap_or(100) as f64;
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .unwrap_or(4096) as u64;
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    let mut numbers: BTreeMap<i32, (u64, u64)> = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        let Some((_, rest)) = stat.rsplit_once(')') else {
            continue;
        };
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let field = |index: usize| {
            fields
                .get(index)
                .and_then(|field| field.parse::<u64>().ok())
                .unwrap_or(0)
        };
        children.entry(field(1) as i32).or_default().push(pid);
        // User and system time, the process's own and of its dead children; resident pages.
        numbers.insert(pid, ((11..15).map(field).sum(), field(21)));
    }
    let (mut ticks, mut pages) = (0, 0);
    let mut seen = BTreeSet::new();
    let mut queue = vec![root];
    while let Some(pid) = queue.pop() {
        if !seen.insert(pid) {
            continue;
        }
        let (time, resident) = numbers.get(&pid).copied().unwrap_or_default();
        ticks += time;
        pages += resident;
        queue.extend(children.get(&pid).into_iter().flatten());
    }
    (ticks as f64 * 1000.0 / clock, pages * page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something() {
        let (_, memory) = sum_processes(std::process::id() as i32);
        assert!(memory > 0);
    }
}
