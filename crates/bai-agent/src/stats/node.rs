//! What is told of this host (`agent-protocol.md` 3.7.3, the node scope), from the files of the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Instant;

use serde_json::{Map, Value, json};

use super::kernel::traffic;
use super::metric::{Series, Stat, Unit, metric};
use crate::resource::nvidia;

/// File systems that are no disks (or none that fills up).
const NO_DISKS: [&str; 3] = ["squashfs", "vfat", "tmpfs"];

/// The measurements so far.
#[derive(Debug, Default)]
pub(crate) struct History {
    cpu: Series,
    cores: BTreeMap<usize, Series>,
    memory: Series,
    received: Series,
    sent: Series,
}

/// One measurement.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Sample {
    /// Milliseconds of each logical CPU.
    cores: BTreeMap<usize, f64>,
    /// Bytes used and there.
    memory: (u64, u64),
    /// Bytes used and there, by device.
    disks: BTreeMap<String, (u64, u64)>,
    /// Bytes received and sent.
    network: (u64, u64),
    gpus: Vec<nvidia::Usage>,
}

/// Measures. Blocking.
pub(crate) fn measure(gpus: Vec<nvidia::Usage>) -> Sample {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)
        .ok()
        .flatten();
    let mounts = mounted(&read("/proc/self/mounts"));
    let disks = mounts.into_iter().filter_map(|(device, folder)| {
        let space = nix::sys::statvfs::statvfs(folder.as_str()).ok()?;
        let (size, all, free) = (space.fragment_size(), space.blocks(), space.blocks_available());
        let bytes = |blocks: u64| blocks.saturating_mul(size);
        Some((device, (bytes(all.saturating_sub(free)), bytes(all))))
    });
    Sample {
        cores: cores(&read("/proc/stat"), ticks.unwrap_or(100)),
        memory: memory(&read("/proc/meminfo")),
        disks: disks.collect(),
        network: crate::runtime::network(&read("/proc/self/net/dev")),
        gpus,
    }
}

impl History {
    /// Takes a measurement in; what is known now.
    #[expect(clippy::cast_precision_loss, reason = "bytes below 2^53, and statistics")]
    pub fn add(&mut self, sample: &Sample, now: Instant) -> Value {
        self.cpu.add(sample.cores.values().sum(), now);
        // One core's worth of time, as in 19.06: the percentage of all may exceed a hundred.
        let passed = self.cpu.elapsed().map(|seconds| seconds * 1000.0);
        let used = |series: &Series| Value::Object(metric(series.diff(), passed, Unit::Milliseconds));
        let mut cores = Map::new();
        for (core, milliseconds) in &sample.cores {
            let series = self.cores.entry(*core).or_default();
            series.add(*milliseconds, now);
            cores.insert(core.to_string(), used(series));
        }
        let (mem_used, mem_total) = (sample.memory.0 as f64, sample.memory.1 as f64);
        self.memory.add(mem_used, now);
        let memory = self.memory.metric(Unit::Bytes, Some(mem_total), &[Stat::Max]);
        self.received.add(sample.network.0 as f64, now);
        self.sent.add(sample.network.1 as f64, now);
        let disk =
            |(used, all): (u64, u64)| Value::Object(metric(used as f64, Some(all as f64), Unit::Bytes));
        let sum = sample
            .disks
            .values()
            .fold((0, 0), |(used, all), disk| (used + disk.0, all + disk.1));
        let disks: Map<String, Value> = sample
            .disks
            .iter()
            .map(|(device, space)| (device.clone(), disk(*space)))
            .collect();
        let (received, sent) = (traffic(&self.received), traffic(&self.sent));
        let mut told = json!({
            "node": {
                "cpu_util": used(&self.cpu),
                "mem": memory,
                "disk": disk(sum),
                "net_rx": received,
                "net_tx": sent,
            },
            "devices": {
                "cpu_util": cores,
                "mem": { "root": memory },
                "disk": disks,
                "net_rx": { "node": received },
                "net_tx": { "node": sent },
            },
        });
        add_gpus(&mut told, &sample.gpus);
        told
    }
}

#[expect(clippy::cast_precision_loss, reason = "bytes below 2^53")]
fn add_gpus(told: &mut Value, gpus: &[nvidia::Usage]) {
    if gpus.is_empty() {
        return;
    }
    let metric = |(used, all): (f64, f64), unit| Value::Object(metric(used, Some(all), unit));
    let number = |gpu: &nvidia::Usage| gpu.number.to_string();
    let memory = |gpu: &nvidia::Usage| (gpu.memory_used as f64, gpu.memory as f64);
    let sum = gpus
        .iter()
        .map(memory)
        .fold((0.0, 0.0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    let busy: f64 = gpus.iter().map(|gpu| f64::from(gpu.busy)).sum();
    told["node"]["cuda_mem"] = metric(sum, Unit::Bytes);
    told["node"]["cuda_util"] = metric((busy, 100.0 * gpus.len() as f64), Unit::Percent);
    let each = |one: &dyn Fn(&nvidia::Usage) -> Value| -> Map<String, Value> {
        gpus.iter().map(|gpu| (number(gpu), one(gpu))).collect()
    };
    told["devices"]["cuda_mem"] = Value::Object(each(&|gpu| metric(memory(gpu), Unit::Bytes)));
    told["devices"]["cuda_util"] =
        Value::Object(each(&|gpu| metric((f64::from(gpu.busy), 100.0), Unit::Percent)));
}

/// User and system milliseconds of each logical CPU in `/proc/stat`.
#[expect(clippy::cast_precision_loss, reason = "ticks below 2^53")]
fn cores(text: &str, ticks: i64) -> BTreeMap<usize, f64> {
    let core = |line: &str| {
        let mut fields = line.strip_prefix("cpu")?.split_ascii_whitespace();
        let number = fields.next()?.parse().ok()?;
        let fields: Vec<u64> = fields.filter_map(|field| field.parse().ok()).collect();
        // user, nice, system
        let used = fields.first()? + fields.get(2)?;
        Some((number, used as f64 * 1000.0 / ticks.max(1) as f64))
    };
    // The line of all of them has no number.
    text.lines()
        .filter(|line| !line.starts_with("cpu "))
        .filter_map(core)
        .collect()
}

/// Bytes used and there.
fn memory(text: &str) -> (u64, u64) {
    let field = |name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
        number.unwrap_or(0) * 1024
    };
    let total = field("MemTotal:");
    (total.saturating_sub(field("MemAvailable:")), total)
}

/// Devices with a folder where each is mounted, once each.
fn mounted(text: &str) -> Vec<(String, String)> {
    let mut seen = BTreeSet::new();
    let mount = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let (device, folder, kind) = (fields.next()?, fields.next()?, fields.next()?);
        let is_disk = device.starts_with("/dev/") && !NO_DISKS.contains(&kind);
        // Spaces are written as octal numbers.
        let folder = folder.replace("\\040", " ");
        (is_disk && seen.insert(device.to_owned())).then(|| (device.to_owned(), folder))
    };
    text.lines().filter_map(mount).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_kernels_files_are_understood() {
        let stat = "cpu  10 0 20 5 0 0 0 0 0 0\ncpu0 4 1 6 5 0 0 0\ncpu1 6 0 14 5\nintr 5\n";
        assert_eq!(cores(stat, 100), BTreeMap::from([(0, 100.0), (1, 200.0)]));
        let meminfo = "MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:  400 kB\n";
        assert_eq!(memory(meminfo), (600 * 1024, 1000 * 1024));
        let mounts = "/dev/vda1 / ext4 rw 0 0\n/dev/vda1 /etc/x ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n\
                      /dev/loop0 /snap squashfs ro 0 0\n/dev/sdb /a\\040b xfs rw 0 0\n";
        assert_eq!(
            mounted(mounts),
            [
                ("/dev/vda1".to_owned(), "/".to_owned()),
                ("/dev/sdb".to_owned(), "/a b".to_owned())
            ]
        );
    }

    #[test]
    fn the_second_measurement_has_a_percentage() {
        let begun = Instant::now();
        let mut history = History::default();
        let sample = |milliseconds: f64| Sample {
            cores: BTreeMap::from([(0, milliseconds), (1, milliseconds)]),
            memory: (600, 1000),
            disks: BTreeMap::from([("/dev/vda1".to_owned(), (1, 4))]),
            network: (0, 0),
            gpus: Vec::new(),
        };
        let first = history.add(&sample(1000.0), begun);
        assert_eq!(first["node"]["cpu_util"]["pct"], Value::Null);
        let second = history.add(&sample(2000.0), begun + Duration::from_secs(2));
        let cpu = &second["node"]["cpu_util"];
        assert_eq!(
            (&cpu["current"], &cpu["capacity"], &cpu["pct"]),
            (&json!("2000"), &json!("2000"), &json!("100"))
        );
        assert_eq!(second["devices"]["cpu_util"]["1"]["pct"], "50");
        assert_eq!(second["node"]["mem"]["current"], "600");
        assert_eq!(second["node"]["disk"]["pct"], "25");
        assert_eq!(second["node"]["net_rx"]["capacity"], Value::Null);
    }

    #[test]
    fn this_machine_is_measured() {
        let sample = measure(Vec::new());
        assert!(!sample.cores.is_empty());
        assert!(sample.memory.1 > sample.memory.0);
    }
}
