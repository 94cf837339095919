//! What is told of one kernel (`agent-protocol.md` 3.7.3, the container scope).
//!
//! Unlike 19.06, `cpu_util` is the percentage of one core's time that its unit says, the capacity of `mem` is the most that
//! was used (usage reports read it as the amount used) and its percentage is of what the kernel may use. Capacities that
//! nothing has are absent.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::{Map, Value, json};

use super::devices::Usage;
use super::metric::{Series, Stat, Unit, metric, number};
use crate::runtime::Sample;

/// The measurements of one life of a kernel.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    cpu: Series,
    utilisation: Series,
    memory: Series,
    read: Series,
    written: Series,
    scratch: Series,
    received: Series,
    sent: Series,
    /// Memory and time of devices, by their kind.
    devices: BTreeMap<String, (Series, Series)>,
}

impl History {
    /// Takes what the kernel does with its devices in, by their kind; their metrics now.
    pub fn add_devices(&mut self, usages: &BTreeMap<String, Usage>, now: Instant) -> Map<String, Value> {
        let mut told = Map::new();
        for (kind, usage) in usages {
            let (memory, busy) = self.devices.entry(kind.clone()).or_default();
            memory.add(usage.memory_used, now);
            busy.add(usage.busy, now);
            let memory = memory.metric(Unit::Bytes, Some(usage.memory), &[Stat::Max]);
            let busy = busy.metric(Unit::Percent, Some(usage.time), &[Stat::Max, Stat::Avg]);
            told.insert(format!("{kind}_mem"), memory);
            told.insert(format!("{kind}_util"), busy);
        }
        told
    }

    /// Takes a measurement in; what is known now. `scratch` is the size of its folder, `limit` the memory that it may use, 0
    /// for all.
    #[expect(clippy::cast_precision_loss, reason = "bytes below 2^53, and statistics")]
    pub fn add(&mut self, sample: &Sample, scratch: u64, limit: u64, now: Instant) -> Value {
        self.cpu.add(sample.cpu, now);
        // A hundred percent are a thousand milliseconds in a second.
        self.utilisation.add(self.cpu.rate() / 10.0, now);
        self.memory.add(sample.memory as f64, now);
        self.read.add(sample.read as f64, now);
        self.written.add(sample.written as f64, now);
        self.scratch.add(scratch as f64, now);
        let most = self.memory.max().max(sample.memory_peak as f64);
        let mut memory = metric(self.memory.last(), Some(most), Unit::Bytes);
        memory.insert("stats.max".to_owned(), Value::from(number(most, 3)));
        if limit > 0 {
            let share = number(self.memory.last() * 100.0 / limit as f64, 2);
            memory.insert("pct".to_owned(), Value::from(share));
        }
        let io = |series: &Series| series.metric(Unit::Bytes, None, &[Stat::Rate]);
        let mut told = json!({
            "cpu_util": self.utilisation.metric(Unit::Percent, Some(100.0), &[Stat::Max, Stat::Avg]),
            "cpu_used": self.cpu.metric(Unit::Milliseconds, None, &[]),
            "mem": memory,
            "io_read": io(&self.read),
            "io_write": io(&self.written),
            "io_scratch_size": self.scratch.metric(Unit::Bytes, None, &[Stat::Max]),
        });
        if let (Some((received, sent)), Value::Object(told)) = (sample.network, &mut told) {
            self.received.add(received as f64, now);
            self.sent.add(sent as f64, now);
            told.insert("net_rx".to_owned(), traffic(&self.received));
            told.insert("net_tx".to_owned(), traffic(&self.sent));
        }
        told
    }
}

/// Bytes in a second, now and as the rate that managers read.
pub(super) fn traffic(series: &Series) -> Value {
    let mut told: Map<String, Value> = metric(series.rate(), None, Unit::Rate);
    told.insert("stats.rate".to_owned(), Value::from(number(series.rate(), 3)));
    Value::Object(told)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_managers_read_is_there() {
        let begun = Instant::now();
        let mut history = History::default();
        let first = Sample {
            cpu: 1000.0,
            memory: 512,
            memory_peak: 600,
            ..Sample::default()
        };
        let told = history.add(&first, 0, 1024, begun);
        assert_eq!(told["cpu_util"]["pct"], "0");
        assert_eq!(told["cpu_used"]["current"], "1000");
        let second = Sample {
            cpu: 2500.0,
            memory: 256,
            memory_peak: 600,
            read: 100,
            network: Some((2000, 10)),
            ..Sample::default()
        };
        let told = history.add(&second, 7, 1024, begun + Duration::from_secs(2));
        assert_eq!(told["cpu_util"]["current"], "75");
        assert_eq!(told["cpu_util"]["pct"], "75");
        assert_eq!(told["cpu_util"]["stats.max"], "75");
        assert_eq!(told["mem"]["capacity"], "600");
        assert_eq!(told["mem"]["stats.max"], "600");
        assert_eq!(told["mem"]["pct"], "25", "of what it may use");
        assert_eq!(told["io_read"]["stats.rate"], "50");
        assert_eq!(told["io_scratch_size"]["stats.max"], "7");
        assert_eq!(told["net_rx"]["stats.rate"], "0", "the first is no difference");
        let third = Sample {
            network: Some((4000, 10)),
            ..second
        };
        let told = history.add(&third, 5, 1024, begun + Duration::from_secs(4));
        assert_eq!(told["net_rx"]["current"], "1000");
    }

    #[test]
    fn devices_are_told_against_the_kernels_part_of_them() {
        let begun = Instant::now();
        let mut history = History::default();
        let usage = |memory_used, busy| {
            let usage = Usage {
                memory_used,
                memory: 500.0,
                busy,
                time: 50.0,
            };
            BTreeMap::from([("cuda".to_owned(), usage)])
        };
        history.add_devices(&usage(400.0, 10.0), begun);
        let told = history.add_devices(&usage(100.0, 60.0), begun + Duration::from_secs(2));
        assert_eq!(
            Value::Object(told),
            json!({
                "cuda_mem": {"current": "100", "capacity": "500", "pct": "20", "unit_hint": "bytes", "stats.max": "400"},
                // More than its part.
                "cuda_util": {"current": "60", "capacity": "50", "pct": "120", "unit_hint": "percent", "stats.max": "60",
                    "stats.avg": "35"},
            })
        );
    }

    #[test]
    fn everything_is_a_text_or_nothing() {
        let told = History::default().add(&Sample::default(), 0, 0, Instant::now());
        for (name, metric) in told.as_object().expect("metrics") {
            for (key, value) in metric.as_object().expect("a metric") {
                assert!(value.is_string() || value.is_null(), "{name}.{key}: {value}");
            }
        }
    }
}
