//! Sessions in containers, beside what the engine itself needs for a container of the same image.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bai_testkit::services::{Docker, rootfs};
use serde_json::{Value, json};

use crate::embedded::{SESSIONS, Server, lives};
use crate::table::{Table, median, millis};

const IMAGE: &str = "session:1";
const LABELS: [&str; 4] = [
    "LABEL ai.backend.kernelspec=1",
    "LABEL ai.backend.runtime-type=shell",
    "LABEL ai.backend.resource.min.cpu=1",
    "LABEL ai.backend.resource.min.mem=64m",
];
/// What may be added to the engine's own time.
const TARGET: Duration = Duration::from_millis(60);

/// Measures both in turn and prints a table; says why when that cannot be.
pub async fn measure() -> Result<()> {
    let engine = match Docker::start() {
        Ok(engine) => engine,
        Err(missing) => {
            return crate::say(&format!("SKIPPED: sessions in containers, because {missing}"));
        }
    };
    let scratch = tempfile::tempdir()?;
    let root = scratch.path().join("root");
    std::fs::create_dir(&root)?;
    rootfs::shell(&root)?;
    engine.import(&root, IMAGE, &LABELS.map(str::to_owned))?;

    let [alone, removed] = alone(&engine).await?;
    let host = engine.host();
    let environment = [("DOCKER_HOST", host.as_str())];
    let server = Server::start(scratch.path(), &["--runtime", "docker"], &environment).await?;
    let [first, second, destroyed] = lives(&server, IMAGE, "echo 1").await?;

    let mut table = Table::default();
    table.row("Docker: create to first output", &millis(alone), "");
    table.row("session: create to first output", &millis(first), "");
    table.row(
        "added by us",
        &millis(first.saturating_sub(alone)),
        &format!("{} ms", TARGET.as_millis()),
    );
    table.row("session: second execute", &millis(second), "");
    table.row("Docker: kill and remove", &millis(removed), "");
    table.row("session: destroy", &millis(destroyed), "");
    table.print()
}

/// Medians of the engine's own times: from the creation of a container to its first output, and for its end.
async fn alone(engine: &Docker) -> Result<[Duration; 2]> {
    // The library wants to know one even where nothing is encrypted.
    _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().unix_socket(engine.socket()).build()?;
    let at = |path: String| format!("http://engine/v1.40/containers/{path}");
    let wanted = json!({
        "Image": IMAGE, "Cmd": ["/bin/sh", "-c", "echo 1; exec sleep 600"], "Tty": false,
        "HostConfig": { "NetworkMode": "none" },
    });
    let (mut first, mut removed) = (Vec::new(), Vec::new());
    for _ in 0..SESSIONS {
        let begun = Instant::now();
        let made = client.post(at("create".to_owned())).json(&wanted).send().await?;
        let made: Value = made.error_for_status()?.json().await?;
        let id = made["Id"].as_str().context("a container")?.to_owned();
        let started = client.post(at(format!("{id}/start"))).send().await?;
        started.error_for_status()?;
        let logs = client
            .get(at(format!("{id}/logs?follow=1&stdout=1")))
            .send()
            .await?;
        let mut logs = logs.error_for_status()?;
        let output = logs.chunk().await?.context("an output")?;
        ensure!(output.ends_with(b"1\n"), "the container printed {output:?}");
        first.push(begun.elapsed());
        drop(logs);
        let begun = Instant::now();
        let ended = client.delete(at(format!("{id}?force=1"))).send().await?;
        ended.error_for_status()?;
        removed.push(begun.elapsed());
    }
    Ok([median(first), median(removed)])
}
