//! Measurements of a kernel in the form of `data-model.md` 19.1: numbers as text, with the unit beside.
//!
//! Invariants: never fails; what cannot be measured is zero. `cpu_util` needs two measurements.
//!
//! Not here: how a runtime measures.

use std::fs;
use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

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
    last_net: (u64, u64),
}

impl History {
    pub fn new(now: Instant) -> Self {
        let (last_io, last_net) = ((0, 0), (0, 0));
        Self {
            begun: now,
            last: now,
            last_cpu: 0.0,
            max_util: 0.0,
            max_memory: 0,
            max_scratch: 0,
            last_io,
            last_net,
        }
    }
}

/// One measurement.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    /// Milliseconds.
    pub cpu: f64,
    /// Bytes.
    pub memory: u64,
    pub memory_peak: u64,
    /// Bytes of block devices.
    pub read: u64,
    pub written: u64,
    /// Bytes of networks that are not the kernel's own loopback.
    pub received: u64,
    pub sent: u64,
    /// Bytes below the work folder.
    pub scratch: u64,
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
    let rates = |now: (u64, u64), before: (u64, u64)| {
        (
            rate(now.0 as f64, before.0 as f64),
            rate(now.1 as f64, before.1 as f64),
        )
    };
    let net = (sample.received, sample.sent);
    let (io_rates, net_rates) = (rates(io, history.last_io), rates(net, history.last_net));
    history.max_util = history.max_util.max(util);
    history.max_memory = history.max_memory.max(sample.memory_peak);
    history.max_scratch = history.max_scratch.max(sample.scratch);
    (history.last, history.last_cpu) = (now, sample.cpu);
    (history.last_io, history.last_net) = (io, net);
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
    let flow = |bytes: u64, unit: &str, rate: f64| {
        metric(bytes.to_string(), unit, &[("stats.rate", format!("{rate:.0}"))])
    };
    let utils = [
        ("stats.max", format!("{:.3}", history.max_util)),
        ("stats.avg", format!("{average:.2}")),
    ];
    json!({
        "cpu_util": metric(format!("{util:.3}"), "percent", &utils),
        "cpu_used": metric(format!("{:.3}", sample.cpu), "msec", &[]),
        "mem": memory,
        "io_read": flow(sample.read, "bytes", io_rates.0),
        "io_write": flow(sample.written, "bytes", io_rates.1),
        // The unit is what 19.06 calls it; it is bytes and bytes in a second.
        "net_rx": flow(sample.received, "bps", net_rates.0),
        "net_tx": flow(sample.sent, "bps", net_rates.1),
        "io_scratch_size":
            metric(sample.scratch.to_string(), "bytes", &[("stats.max", history.max_scratch.to_string())]),
    })
}

/// Bytes of the files below a folder. Blocking.
pub fn folder_size(folder: &Path) -> u64 {
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
            received: 700,
            cpu: 1500.0,
            memory: 512,
            memory_peak: 600,
            ..Sample::default()
        };
        let report = report(&sample, &mut history, begun + Duration::from_secs(1), 1024);
        assert_eq!(report["cpu_util"]["current"], "150.000");
        assert_eq!(report["cpu_used"]["current"], "1500.000");
        assert_eq!(report["net_rx"]["stats.rate"], "700");
        assert_eq!(
            (&report["mem"]["pct"], &report["mem"]["stats.max"]),
            (&json!("50.00"), &json!("600"))
        );
    }
}
