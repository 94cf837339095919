//! The image catalogue and Debian's `docker-registry`, filled by the tests.

mod catalogue;
mod commands;
mod rescan;
mod token;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bai::system::SystemClock;
use bai_backplane::config::{Config, quote};
use bai_backplane::kv;
use bai_core::image::{Catalogue, ImageChange, Rescan, RescanSummary};
use bai_core::{Actor, Op};
use bai_model::time::Clock as _;
use bai_registry::Options;
use bai_testkit::services::registry::{Access, DockerRegistry, Pusher, Tls};
use serde_json::{Value, json};
use tempfile::TempDir;

/// An open registry with nothing in it, and the catalogue that knows it as `cr.test`.
struct Site {
    folder: TempDir,
    registry: DockerRegistry,
    pusher: Pusher,
    config: Config,
}

impl Site {
    /// `None` where there is no registry to start.
    async fn start() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let images = folder.path().join("images");
        let registry = DockerRegistry::start(folder.path(), &images, &Access::Anybody, None).unwrap()?;
        let config = memory().await;
        config
            .put("config/docker/registry/cr.test", &registry.url)
            .await
            .unwrap();
        let pusher = Pusher::new(&registry).unwrap();
        Some(Self {
            folder,
            registry,
            pusher,
            config,
        })
    }

    /// Another registry on the same images.
    fn with_access(&self, name: &str, access: &Access, tls: Option<&Tls>) -> DockerRegistry {
        let folder: PathBuf = self.folder.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        let images = self.folder.path().join("images");
        DockerRegistry::start(&folder, &images, access, tls)
            .unwrap()
            .unwrap()
    }

    async fn rescan(&self) -> RescanSummary {
        rescan(&self.config, &options(), &Rescan::default()).await
    }

    /// What is below `images/`.
    async fn images(&self) -> BTreeMap<String, String> {
        self.config.prefix("images/").await.unwrap().into_iter().collect()
    }
}

async fn memory() -> Config {
    Config::new(kv::open("memory:", Arc::new(SystemClock)).await.unwrap(), "test")
}

async fn set_registry(config: &Config, name: &str, url: &str, credentials: Option<(&str, &str)>) {
    let key = format!("config/docker/registry/{}", quote(name));
    config.put(&key, url).await.unwrap();
    if let Some((username, password)) = credentials {
        config.put(&format!("{key}/username"), username).await.unwrap();
        config.put(&format!("{key}/password"), password).await.unwrap();
    }
}

fn options() -> Options {
    Options {
        attempts: 2,
        backoff: Duration::from_millis(1),
        architectures: vec!["amd64".to_owned()],
        ..Options::default()
    }
}

fn op(actor: Actor) -> Op {
    Op {
        request_id: "test".to_owned(),
        now: SystemClock.now(),
        actor,
    }
}

fn system() -> Op {
    op(Actor::System("test"))
}

/// Rescans, and checks that the progress tells the same as the end.
async fn rescan(config: &Config, options: &Options, rescan: &Rescan) -> RescanSummary {
    let catalogue = Catalogue::new(config.clone(), options.clone());
    let seen = Mutex::new(0);
    let summary = catalogue
        .image_rescan(&system(), rescan, &|event| {
            if matches!(event, bai_core::image::RescanEvent::Image(_)) {
                *seen.lock().unwrap() += 1;
            }
        })
        .await
        .unwrap();
    let counted: usize = summary
        .registries
        .iter()
        .map(|scan| {
            scan.added + scan.updated + scan.unchanged + scan.no_kernel + scan.malformed + scan.failed
        })
        .sum();
    assert_eq!(counted, seen.into_inner().unwrap());
    summary
}

/// What a rescan says of its images, by image, in order.
fn news(summary: &RescanSummary) -> Vec<(&str, &ImageChange)> {
    let outcomes = summary.registries.iter().flat_map(|scan| &scan.images);
    let mut news: Vec<_> = outcomes
        .map(|outcome| (outcome.image.as_str(), &outcome.change))
        .collect();
    news.sort_by_key(|(image, _)| *image);
    news
}

/// A configuration with labels where current builders put them.
fn config_file(labels: &[(&str, &str)]) -> String {
    let labels: BTreeMap<_, _> = labels.iter().copied().collect();
    json!({ "architecture": "amd64", "os": "linux", "config": { "Labels": labels } }).to_string()
}

/// The labels of a kernel image.
fn kernel() -> String {
    config_file(&[
        ("ai.backend.kernelspec", "1"),
        ("ai.backend.resource.min.mem", "64m"),
    ])
}

/// The same where the builders of 2019 put them.
fn config_file_of_2019(labels: &Value) -> String {
    json!({ "container_config": { "Labels": labels }, "config": { "Labels": null } }).to_string()
}
