//! Measurements of a kernel in the form of `data-model.md` 19.1: numbers as text, with the unit beside.
//!
//! From the kernel's groups where there are any, else summed over its processes.
//!
//! Invariants: never fails; what cannot be measured is zero. `cpu_util` needs two measurements.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

use super::cgroup::Groups;

/// A work folder with more entries than this is reported with the size of as many.
const MAX_FILES: usize = 20_000;

/// What earlier measurements of a kernel have left.
#[derive(Debug)]
pub struct History {
    begun: Instant,
    last: Instant,
    last_cpu: f64,
    max_util: f64,
    max_memory: u64,
    max_scratch: u64,
    last_io: (u64, u64),
}

impl History {
    pub fn new(now: Instant) -> Self {
        let last_io = (0, 0);
        Self {
            begun: now,
            last: now,
            last_cpu: 0.0,
            max_util: 0.0,
            max_memory: 0,
            max_scratch: 0,
            last_io,
        }
    }
}

/// One measurement.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    /// Milliseconds.
    cpu: f64,
    memory: u64,
    memory_peak: u64,
    read: u64,
    written: u64,
    scratch: u64,
}

/// Measures; blocking, because of the walk through the work folder.
pub fn measure(pid: i32, groups: &Groups, work: &Path) -> Sample {
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
        scratch: folder_size(work),
    }
}

/// The report, and what the next one needs.
pub fn report(sample: &Sample, history: &mut History, now: Instant, memory_limit: u64) -> Value {
    let elapsed = (now - history.last).as_secs_f64();
    let rate = |now: f64, before: f64| {
        if elapsed > 0.0 {
            (now - before).max(0.0) / elapsed
        } else {
            0.0
        }
    };
    // A hundred percent is a thousand milliseconds in a second.
    let util = rate(sample.cpu, history.last_cpu) / 10.0;
    let lifetime = (now - history.begun).as_secs_f64();
    let average = if lifetime > 0.0 {
        sample.cpu / lifetime / 10.0
    } else {
        0.0
    };
    let io = (sample.read, sample.written);
    let rates = (
        rate(io.0 as f64, history.last_io.0 as f64),
        rate(io.1 as f64, history.last_io.1 as f64),
    );
    history.max_util = history.max_util.max(util);
    history.max_memory = history.max_memory.max(sample.memory_peak);
    history.max_scratch = history.max_scratch.max(sample.scratch);
    (history.last, history.last_cpu, history.last_io) = (now, sample.cpu, io);
    let metric = |current: String, unit: &str, extra: &[(&str, String)]| {
        let mut metric = json!({"current": current, "capacity": null, "pct": null, "unit_hint": unit});
        extra.iter().for_each(|(key, value)| metric[*key] = json!(value));
        metric
    };
    let mut memory = metric(
        sample.memory.to_string(),
        "bytes",
        &[("stats.max", history.max_memory.to_string())],
    );
    if memory_limit > 0 {
        memory["capacity"] = json!(memory_limit.to_string());
        memory["pct"] = json!(format!(
            "{:.2}",
            sample.memory as f64 * 100.0 / memory_limit as f64
        ));
    }
    let io = |bytes: u64, rate: f64| {
        metric(
            bytes.to_string(),
            "bytes",
            &[("stats.rate", format!("{rate:.0}"))],
        )
    };
    let utils = [
        ("stats.max", format!("{:.3}", history.max_util)),
        ("stats.avg", format!("{average:.2}")),
    ];
    json!({
        "cpu_util": metric(format!("{util:.3}"), "percent", &utils),
        "cpu_used": metric(format!("{:.3}", sample.cpu), "msec", &[]),
        "mem": memory,
        "io_read": io(sample.read, rates.0),
        "io_write": io(sample.written, rates.1),
        "io_scratch_size":
            metric(sample.scratch.to_string(), "bytes", &[("stats.max", history.max_scratch.to_string())]),
    })
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

fn folder_size(folder: &Path) -> u64 {
    let mut total = 0;
    let mut left = MAX_FILES;
    let mut queue = vec![folder.to_owned()];
    while let Some(folder) = queue.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten().take(left) {
            left = left.saturating_sub(1);
            // Does not follow links.
            let Ok(meta) = entry.metadata() else { continue };
            total += meta.len();
            if meta.is_dir() {
                queue.push(entry.path());
            }
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn utilisation_is_the_share_of_the_time_between_two_reports() {
        let begun = Instant::now();
        let mut history = History::new(begun);
        let sample = Sample {
            cpu: 1500.0,
            memory: 512,
            memory_peak: 600,
            ..Sample::default()
        };
        let report = report(&sample, &mut history, begun + Duration::from_secs(1), 1024);
        assert_eq!(report["cpu_util"]["current"], "150.000");
        assert_eq!(report["cpu_used"]["current"], "1500.000");
        assert_eq!(
            (&report["mem"]["pct"], &report["mem"]["stats.max"]),
            (&json!("50.00"), &json!("600"))
        );
    }

    #[test]
    fn this_process_uses_something() {
        let (_, memory) = sum_processes(std::process::id() as i32);
        assert!(memory > 0);
    }
}
