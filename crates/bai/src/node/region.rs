//! In which region this host is, as managers are told (`agent-protocol.md` 3.3): `agent.region`, or what the cloud says that
//! the configuration names, or `local`.
//!
//! Invariants: nobody is asked unless `bai.cloud` says so; a cloud that does not answer costs a start no more than
//! [`DEADLINE`], and nothing but its name.
//!
//! Not here: the agent's id. One that hung on an answer would change with it, and the host would seem another one.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use reqwest::{Client, RequestBuilder, redirect};
use tokio::time::timeout;

use crate::config::agent::{AgentConfig, Cloud};

/// For all questions together.
const DEADLINE: Duration = Duration::from_secs(2);
/// Where nothing else is known.
const LOCAL: &str = "local";
/// Of an answer; the longest are tokens.
const MAX_ANSWER: usize = 4096;
/// Of a region's name, so that it fits with its cloud's into the database.
const MAX_NAME: usize = 48;

/// The region of this host.
pub async fn find(config: &AgentConfig) -> String {
    if let Some(region) = &config.agent.region {
        return region.clone();
    }
    let cloud = config.bai.cloud;
    if cloud == Cloud::Off {
        return LOCAL.to_owned();
    }
    let base = config.bai.cloud_metadata.trim_end_matches('/');
    let asked = timeout(DEADLINE, ask(cloud, base)).await;
    let asked = asked.unwrap_or_else(|_| bail!("it does not answer in {} seconds", DEADLINE.as_secs()));
    asked.unwrap_or_else(|error| {
        tracing::warn!(
            "{base} does not say in which region this host is, which is called {LOCAL:?} therefore: {error:#}. \
             agent.region names it, or bai.cloud = \"off\" stops asking"
        );
        LOCAL.to_owned()
    })
}

async fn ask(cloud: Cloud, base: &str) -> Result<String> {
    // The provider may have been installed by another client of this process.
    _ = rustls::crypto::ring::default_provider().install_default();
    // The address is this host's own affair: no proxy, no other place.
    let client = Client::builder()
        .no_proxy()
        .redirect(redirect::Policy::none())
        .build()?;
    let (name, region) = match cloud {
        Cloud::Off => return Ok(LOCAL.to_owned()),
        Cloud::Amazon => {
            let token = client
                .put(format!("{base}/latest/api/token"))
                .header("X-aws-ec2-metadata-token-ttl-seconds", "60");
            let token = answer(token).await?;
            let region = client
                .get(format!("{base}/latest/meta-data/placement/region"))
                .header("X-aws-ec2-metadata-token", token);
            ("amazon", answer(region).await?)
        }
        Cloud::Azure => {
            let location = client
                .get(format!(
                    "{base}/metadata/instance/compute/location?api-version=2021-02-01&format=text"
                ))
                .header("Metadata", "true");
            ("azure", answer(location).await?)
        }
        Cloud::Google => {
            let zone = client
                .get(format!("{base}/computeMetadata/v1/instance/zone"))
                .header("Metadata-Flavor", "Google");
            // projects/1234/zones/europe-west1-b
            let zone = answer(zone).await?;
            let zone = zone.rsplit('/').next().unwrap_or_default();
            let (region, _) = zone.rsplit_once('-').context("its zone has no region")?;
            ("google", region.to_owned())
        }
    };
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if region.is_empty() || region.len() > MAX_NAME || !region.chars().all(is_plain) {
        bail!("its answer is no name of a region: {region:?}");
    }
    Ok(format!("{name}/{region}"))
}

async fn answer(request: RequestBuilder) -> Result<String> {
    let mut response = request.send().await?.error_for_status()?;
    let mut text = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        text.extend_from_slice(&chunk);
        if text.len() > MAX_ANSWER {
            bail!("its answer is too long");
        }
    }
    Ok(String::from_utf8(text)?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::http::{HeaderMap, StatusCode};
    use axum::routing::{get, put};
    use tokio::net::TcpListener;

    use super::*;

    fn only_with(name: &'static str, value: &'static str, text: &'static str) -> axum::routing::MethodRouter {
        get(move |headers: HeaderMap| async move {
            match headers.get(name).is_some_and(|given| given == value) {
                true => Ok(text),
                false => Err(StatusCode::FORBIDDEN),
            }
        })
    }

    /// What three clouds have at one address, and a fourth that talks nonsense.
    async fn metadata() -> String {
        let amazon = only_with("X-aws-ec2-metadata-token", "t0ken", "ap-northeast-2");
        let google = only_with("Metadata-Flavor", "Google", "projects/12/zones/europe-west1-b\n");
        let router = Router::new()
            .route("/latest/api/token", put(async || "t0ken"))
            .route("/latest/meta-data/placement/region", amazon)
            .route("/computeMetadata/v1/instance/zone", google)
            .route(
                "/metadata/instance/compute/location",
                only_with("Metadata", "true", "westeurope"),
            )
            .route("/odd/computeMetadata/v1/instance/zone", get(async || "<html>-b"));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move { axum::serve(listener, router).await });
        format!("http://{address}")
    }

    fn config(cloud: &str, base: &str, region: &str) -> AgentConfig {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("agent.toml");
        let text = format!(
            "[etcd]\nnamespace = 'local'\n[agent]\nregion = '{region}'\n[container]\nsandbox-type = 'docker'\n\
             scratch-type = 'hostdir'\n[bai]\ncloud = '{cloud}'\ncloud-metadata = '{base}'\n"
        );
        std::fs::write(&path, text).expect("a file");
        crate::config::load(Some(&path), &crate::config::Environment::default())
            .expect("a valid configuration")
            .config
    }

    #[tokio::test]
    async fn the_region_is_what_the_file_says_or_else_the_cloud() {
        let base = metadata().await;
        for (cloud, base, region, expected) in [
            ("off", base.clone(), "", "local"),
            ("amazon", base.clone(), "", "amazon/ap-northeast-2"),
            ("azure", base.clone(), "", "azure/westeurope"),
            ("google", base.clone() + "/", "", "google/europe-west1"),
            ("google", base.clone(), "cellar", "cellar"),
            // What makes no sense, and nobody at all.
            ("google", base.clone() + "/odd", "", "local"),
            ("amazon", base.clone() + "/nothing", "", "local"),
            ("azure", "http://127.0.0.1:9".to_owned(), "", "local"),
        ] {
            assert_eq!(
                find(&config(cloud, &base, region)).await,
                expected,
                "{cloud} {base}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_cloud_that_is_silent_does_not_hold_up_the_start() {
        // Nobody accepts.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let base = format!("http://{}", silent.local_addr().expect("an address"));
        assert_eq!(find(&config("google", &base, "")).await, "local");
    }
}
