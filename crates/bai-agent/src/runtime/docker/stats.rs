//! What a container has used. The engine reads the same files of version 1 and version 2 groups that the process runtime
//! reads, but only once a second, and lets whoever asks wait until then (Docker 20.10, with `one-shot` too): half a second
//! at each end of a session. So they are read here where they can be, and the engine is asked where they cannot: by an
//! agent that sees other groups or processes than its host, or may not look.

use bollard::models::ContainerStatsResponse;
use bollard::query_parameters::StatsOptionsBuilder;
use futures_util::StreamExt;

use super::engine::Engine;
use super::inspect;
use crate::runtime::process::cgroup::Groups;
use crate::runtime::process::stats::measure_wholly;
use crate::runtime::sample::Sample;
use crate::tasks::blocking;

/// One measurement; none of a container that does not run.
pub async fn measure(engine: &Engine, id: &str) -> Option<Sample> {
    let state = inspect(engine, id).await.ok()??.state.unwrap_or_default();
    if !state.running.unwrap_or_default() {
        return None;
    }
    let pid = state.pid.and_then(|pid| i32::try_from(pid).ok());
    if let Some(sample) = read(pid.unwrap_or_default(), id).await {
        return Some(sample);
    }
    ask(engine, id).await
}

/// Reads the groups of a container's first process, whose names contain the container's id: whatever has the number is it.
async fn read(pid: i32, id: &str) -> Option<Sample> {
    let id = id.to_owned();
    blocking(move || measure_wholly(pid, &Groups::of_process(pid, &id)?)).await?
}

/// The engine's own measurement.
async fn ask(engine: &Engine, id: &str) -> Option<Sample> {
    // Without `one_shot` the engine waits a second more to have two.
    let options = StatsOptionsBuilder::new().stream(false).one_shot(true).build();
    let mut stats = engine.api.stats(id, Some(options)).boxed();
    let first = async { stats.next().await.transpose() };
    let measured = engine.ask("measure a container", first).await.ok()??;
    // Of one that has ended the engine tells nothing but zeros.
    let used = measured
        .cpu_stats
        .as_ref()
        .and_then(|cpu| cpu.cpu_usage.as_ref()?.total_usage);
    used.filter(|nanoseconds| *nanoseconds > 0)?;
    Some(understand(&measured))
}

fn understand(stats: &ContainerStatsResponse) -> Sample {
    let cpu = stats
        .cpu_stats
        .as_ref()
        .and_then(|cpu| cpu.cpu_usage.as_ref()?.total_usage);
    let memory = stats.memory_stats.as_ref();
    let current = memory.and_then(|memory| memory.usage).unwrap_or(0);
    let io = stats
        .blkio_stats
        .as_ref()
        .and_then(|io| io.io_service_bytes_recursive.as_deref())
        .unwrap_or_default();
    let sum = |operation: &str| {
        let is_meant =
            |op: &Option<String>| op.as_deref().is_some_and(|op| op.eq_ignore_ascii_case(operation));
        let matching = io.iter().filter(|entry| is_meant(&entry.op));
        matching.filter_map(|entry| entry.value).sum()
    };
    Sample {
        // Nanoseconds.
        cpu: cpu.unwrap_or(0) as f64 / 1e6,
        memory: current,
        // Version 2 groups do not always tell.
        memory_peak: memory.and_then(|memory| memory.max_usage).unwrap_or(current),
        read: sum("read"),
        written: sum("write"),
        network: stats.networks.as_ref().map(|networks| {
            let bytes = networks
                .values()
                .map(|network| (network.rx_bytes.unwrap_or(0), network.tx_bytes.unwrap_or(0)));
            bytes.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_an_engine_is_understood() {
        let answer = serde_json::json!({
            "cpu_stats": {"cpu_usage": {"total_usage": 1_500_000_000_u64}},
            "memory_stats": {"usage": 1000, "max_usage": 2000},
            "networks": {"eth0": {"rx_bytes": 30, "tx_bytes": 4}, "eth1": {"rx_bytes": 1}},
            "blkio_stats": {"io_service_bytes_recursive": [
                {"major": 8, "minor": 0, "op": "Read", "value": 10},
                {"major": 8, "minor": 16, "op": "read", "value": 5},
                {"major": 8, "minor": 0, "op": "Write", "value": 7},
                {"major": 8, "minor": 0, "op": "Total", "value": 17},
            ]},
        });
        let sample = understand(&serde_json::from_value(answer).expect("an answer"));
        assert_eq!(
            (sample.cpu, sample.memory, sample.memory_peak),
            (1500.0, 1000, 2000)
        );
        assert_eq!((sample.read, sample.written), (15, 7));
        assert_eq!(sample.network, Some((31, 4)));
        assert_eq!(understand(&ContainerStatsResponse::default()).memory, 0);
    }
}
