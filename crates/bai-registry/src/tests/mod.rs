//! The client against registries that misbehave in one way each.

mod server;

use std::time::Duration;

use axum::Json;
use axum::http::StatusCode;
use axum::http::header::{LINK, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tokio::net::TcpListener;

use crate::{Address, Cause, Error, Image, Options, Registry, Result};
use server::{Seen, Server, config, digest, manifest};

fn address(url: &str) -> Address {
    Address {
        name: "cr.test".to_owned(),
        url: url.to_owned(),
        username: None,
        password: None,
    }
}

fn with_credentials(url: &str) -> Address {
    Address {
        username: Some("me".to_owned()),
        password: Some("secret".to_owned().into()),
        ..address(url)
    }
}

/// `me:secret`
const BASIC: &str = "Basic bWU6c2VjcmV0";

fn quick() -> Options {
    Options {
        attempts: 3,
        backoff: Duration::from_millis(1),
        ..Options::default()
    }
}

async fn image(url: &str, options: &Options) -> Result<Image> {
    let registry = Registry::connect(address(url), options).await?;
    registry.repository("a/b").await?.image("1").await
}

fn not_found() -> Response {
    StatusCode::NOT_FOUND.into_response()
}

/// What a registry in order answers.
fn in_order(seen: &Seen) -> Response {
    let (blob, config) = config();
    match seen.target.as_str() {
        "/v2/" => Json(json!({})).into_response(),
        "/v2/_catalog?n=100" => Json(json!({ "repositories": ["a/b"] })).into_response(),
        "/v2/a/b/tags/list?n=100" => Json(json!({ "name": "a/b", "tags": ["2", "1"] })).into_response(),
        "/v2/a/b/manifests/1" => Json(manifest(&config)).into_response(),
        target if target == format!("/v2/a/b/blobs/{config}") => blob.into_response(),
        _ => not_found(),
    }
}

#[tokio::test]
async fn a_registry_in_order_is_listed_and_its_images_read() {
    let server = Server::start(|_, seen| in_order(seen)).await;
    let registry = Registry::connect(address(&server.url), &quick()).await.unwrap();
    assert_eq!(registry.repositories().await.unwrap(), ["a/b"]);
    let repository = registry.repository("a/b").await.unwrap();
    assert_eq!(repository.tags().await.unwrap(), ["1", "2"]);
    let image = repository.image("1").await.unwrap();
    assert_eq!((image.digest, image.size_bytes), (config().1, 17));
    assert_eq!(image.labels["ai.backend.kernelspec"], "1");
    let lost = repository.image("2").await.unwrap_err();
    assert_eq!(
        lost.to_string(),
        "registry cr.test: a/b:2: the registry lists it but has lost the manifest"
    );
    assert!(
        registry
            .repository("none")
            .await
            .unwrap()
            .tags()
            .await
            .unwrap()
            .is_empty()
    );
    assert!(server.seen().iter().all(|seen| seen.authorization.is_empty()));
}

/// A registry with a token server on the same address; the first token of each scope runs out after one use.
fn with_tokens(own: &str, seen: &Seen) -> Response {
    if let Some(query) = seen.target.strip_prefix("/token?") {
        return match (seen.authorization.as_str(), query.contains("service=the+service")) {
            (BASIC, true) => Json(json!({ "token": format!("{}-{query}", seen.earlier) })).into_response(),
            _ => StatusCode::UNAUTHORIZED.into_response(),
        };
    }
    let scope = if seen.target.contains("_catalog") {
        "scope=registry%3Acatalog%3A*"
    } else {
        "scope=repository%3Aa%2Fb%3Apull"
    };
    let is_fresh = !seen.authorization.starts_with("Bearer 0-") || seen.target.contains("list");
    if seen.authorization.contains(scope) && is_fresh && seen.target != "/v2/" {
        return in_order(seen);
    }
    let challenge = format!(r#"Bearer realm="{own}/token",service="the service",scope="ignored""#);
    (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, challenge)]).into_response()
}

#[tokio::test]
async fn tokens_are_had_for_each_scope_and_renewed() {
    let server = Server::start(with_tokens).await;
    let registry = Registry::connect(with_credentials(&server.url), &quick())
        .await
        .unwrap();
    let catalog = registry.repositories().await;
    assert_eq!(catalog.unwrap(), ["a/b"]);
    let repository = registry.repository("a/b").await.unwrap();
    assert_eq!(repository.tags().await.unwrap(), ["1", "2"]);
    assert_eq!(repository.image("1").await.unwrap().size_bytes, 17);
    // Two for each scope: what ran out was renewed, and what was renewed was kept.
    assert_eq!(server.seen_at("/token?").len(), 4);
    let query = &server.seen_at("/token?").remove(0).target;
    assert!(
        query.contains("offline_token=true") && query.contains("client_id=docker"),
        "{query}"
    );
    let asked = server.seen_at("/v2/a/");
    assert!(
        asked.iter().all(|seen| seen.authorization.starts_with("Bearer ")),
        "{asked:?}"
    );
}

#[tokio::test]
async fn refused_credentials_are_told_apart() {
    let server = Server::start(with_tokens).await;
    let registry = Registry::connect(address(&server.url), &quick()).await.unwrap();
    let error = registry.repository("a/b").await.unwrap_err();
    assert_eq!(
        (error.subject.as_str(), error.cause),
        ("a/b", Cause::Unauthorized)
    );
    let basic = Server::start(|_, seen| {
        let challenge = [(WWW_AUTHENTICATE, r#"Basic realm="here""#)];
        match seen.authorization.as_str() {
            BASIC => in_order(seen),
            _ => (StatusCode::UNAUTHORIZED, challenge).into_response(),
        }
    })
    .await;
    let error = Registry::connect(address(&basic.url), &quick())
        .await
        .unwrap_err();
    assert_eq!(error.cause, Cause::Unauthorized);
    let registry = Registry::connect(with_credentials(&basic.url), &quick())
        .await
        .unwrap();
    assert_eq!(registry.repositories().await.unwrap(), ["a/b"]);
}

#[tokio::test]
async fn redirects_take_no_credentials_along() {
    let (blob, config_digest) = config();
    let elsewhere = Server::start(move |_, _| blob.clone()).await;
    let target = elsewhere.url.clone();
    let server = Server::start(move |_, seen| {
        if seen.target.ends_with(&config_digest) {
            let location = [(LOCATION, format!("{target}/blob?signed=1"))];
            return (StatusCode::TEMPORARY_REDIRECT, location).into_response();
        }
        in_order(seen)
    })
    .await;
    let registry = Registry::connect(with_credentials(&server.url), &quick())
        .await
        .unwrap();
    let repository = registry.repository("a/b").await.unwrap();
    assert_eq!(repository.image("1").await.unwrap().size_bytes, 17);
    assert!(server.seen().iter().all(|seen| seen.authorization == BASIC));
    let [arrived] = elsewhere.seen().try_into().unwrap();
    assert_eq!(
        (arrived.target.as_str(), arrived.authorization.as_str()),
        ("/blob?signed=1", "")
    );
}

#[tokio::test]
async fn circles_of_redirects_end() {
    let server = Server::start(|own, seen| match seen.target.as_str() {
        "/v2/" => in_order(seen),
        _ => (StatusCode::FOUND, [(LOCATION, format!("{own}/again"))]).into_response(),
    })
    .await;
    let error = image(&server.url, &quick()).await.unwrap_err();
    assert_eq!(error.cause, Cause::Malformed("too many redirects".to_owned()));
}

#[tokio::test]
async fn listings_follow_their_pages() {
    let server = Server::start(|own, seen| {
        let next = |target: String| [(LINK, format!(r#"<{target}>; rel="next""#))];
        match seen.target.as_str() {
            "/v2/" => in_order(seen),
            "/v2/_catalog?n=2" => (
                next("/v2/_catalog?last=b&n=2".to_owned()),
                Json(json!({ "repositories": ["b", "a"] })),
            )
                .into_response(),
            "/v2/_catalog?last=b&n=2" => Json(json!({ "repositories": ["c"] })).into_response(),
            "/v2/a/tags/list?n=2" => {
                let absolute = format!("{own}/v2/a/tags/list?page=2");
                (next(absolute), Json(json!({ "tags": ["1"] }))).into_response()
            }
            "/v2/a/tags/list?page=2" => Json(json!({ "tags": ["2"] })).into_response(),
            "/v2/b/tags/list?n=2" => {
                (next(seen.target.clone()), Json(json!({ "tags": ["1"] }))).into_response()
            }
            "/v2/c/tags/list?n=2" => (
                next("http://127.0.0.2:1/steal".to_owned()),
                Json(json!({ "tags": ["1"] })),
            )
                .into_response(),
            _ => not_found(),
        }
    })
    .await;
    let options = Options {
        page_size: 2,
        ..quick()
    };
    let registry = Registry::connect(address(&server.url), &options).await.unwrap();
    assert_eq!(registry.repositories().await.unwrap(), ["a", "b", "c"]);
    let tags = async |name| registry.repository(name).await.unwrap().tags().await;
    assert_eq!(tags("a").await.unwrap(), ["1", "2"]);
    for name in ["b", "c"] {
        let error = tags(name).await.unwrap_err();
        assert!(matches!(error.cause, Cause::Malformed(_)), "{error}");
    }
}

#[tokio::test]
async fn what_passes_is_tried_again() {
    let server = Server::start(|_, seen| match (seen.target.as_str(), seen.earlier) {
        ("/v2/a/b/manifests/1", 0) => (StatusCode::TOO_MANY_REQUESTS, [(RETRY_AFTER, "0")]).into_response(),
        ("/v2/a/b/manifests/1", 1) => StatusCode::BAD_GATEWAY.into_response(),
        _ => in_order(seen),
    })
    .await;
    assert_eq!(image(&server.url, &quick()).await.unwrap().size_bytes, 17);
    assert_eq!(server.seen_at("/v2/a/b/manifests/1").len(), 3);
}

#[tokio::test]
async fn what_does_not_pass_is_given_up() {
    let broken = Server::start(|_, seen| match seen.target.as_str() {
        "/v2/" => in_order(seen),
        _ => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    })
    .await;
    let error = image(&broken.url, &quick()).await.unwrap_err();
    assert_eq!(
        (error.subject.as_str(), error.cause),
        ("a/b:1", Cause::Status(503))
    );
    assert_eq!(broken.seen_at("/v2/a/b/manifests/1").len(), 3);
    let busy = Server::start(|_, seen| match seen.target.as_str() {
        "/v2/" => in_order(seen),
        _ => (StatusCode::TOO_MANY_REQUESTS, [(RETRY_AFTER, "3600")]).into_response(),
    })
    .await;
    let error = image(&busy.url, &quick()).await.unwrap_err();
    assert_eq!(error.cause, Cause::Busy(3600));
    assert_eq!(busy.seen_at("/v2/a/b/manifests/1").len(), 1);
}

#[tokio::test]
async fn a_registry_that_is_not_there_or_says_nothing_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mute = Options {
        deadline: Duration::from_millis(100),
        attempts: 1,
        ..quick()
    };
    let error = Registry::connect(address(&url), &mute).await.unwrap_err();
    assert_eq!(error.to_string(), "registry cr.test: did not answer in time");
    drop(listener);
    let error = Registry::connect(address(&url), &quick()).await.unwrap_err();
    assert!(matches!(error.cause, Cause::Unreachable(_)), "{error}");
}

#[tokio::test]
async fn settings_that_cannot_work_are_explained() {
    for (url, part) in [
        ("cr.example.com", "is no URL"),
        ("127.0.0.1:5000", "is no URL"),
        ("ftp://cr.example.com", "is no http or https URL"),
        ("http://me:secret@127.0.0.1:1", "holds credentials"),
    ] {
        let error = Registry::connect(address(url), &quick())
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(part) && !error.contains("secret"),
            "{url}: {error}"
        );
    }
    let other = Server::start(|_, _| not_found()).await;
    let error = Registry::connect(address(&other.url), &quick())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("does not speak"), "{error}");
}

/// What is wrong with the image of a registry that answers `manifest` and `blob`.
async fn wrong(manifest: impl Into<String>, blob: impl Into<String>) -> Error {
    let (manifest, blob) = (manifest.into(), blob.into());
    let server = Server::start(move |_, seen| match seen.target.as_str() {
        "/v2/a/b/manifests/1" => manifest.clone().into_response(),
        target if target.starts_with("/v2/a/b/blobs/") => blob.clone().into_response(),
        _ => in_order(seen),
    })
    .await;
    let error = image(&server.url, &quick()).await.unwrap_err();
    assert_eq!(
        (error.registry.as_str(), error.subject.as_str()),
        ("cr.test", "a/b:1")
    );
    error
}

#[tokio::test]
async fn malformed_answers_are_errors_of_their_image() {
    let (blob, config) = config();
    let good = manifest(&config).to_string();
    for manifest in [
        "",
        "<html>",
        "null",
        "[]",
        r#"{"config":{"digest":"x","size":1}}"#,
    ] {
        let error = wrong(manifest, &blob).await;
        assert!(matches!(error.cause, Cause::Malformed(_)), "{manifest}: {error}");
    }
    // Another blob than the manifest's, and one that is what it says but no configuration.
    let error = wrong(&good, "{}").await;
    assert!(error.to_string().contains("is something else"), "{error}");
    let error = wrong(manifest(&digest("no JSON")).to_string(), "no JSON").await;
    assert!(
        error
            .to_string()
            .contains("the image's configuration is malformed"),
        "{error}"
    );
    let error = wrong("x".repeat(5 * 1024 * 1024), "").await;
    assert!(
        matches!(
            error.cause,
            Cause::TooLarge {
                what: "the manifest",
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn lists_of_platforms_lead_to_one_image() {
    let (_, config) = config();
    let child = manifest(&config).to_string();
    let list = |digest: &str, architecture: &str| {
        json!({ "manifests": [
            { "digest": digest, "size": 1, "platform": { "os": "linux", "architecture": architecture } },
        ] })
        .to_string()
    };
    let options = Options {
        architectures: vec!["amd64".to_owned()],
        ..quick()
    };
    for (list, answer, expected) in [
        (list(&digest(&child), "amd64"), child.clone(), Ok(17)),
        (
            list(&digest(&child), "s390x"),
            child.clone(),
            Err("has no variant for linux on amd64"),
        ),
        (
            list(&digest("other"), "amd64"),
            child.clone(),
            Err("is something else"),
        ),
        (
            list(&digest(r#"{"manifests":[]}"#), "amd64"),
            r#"{"manifests":[]}"#.to_owned(),
            Err("list of lists"),
        ),
    ] {
        let server = Server::start(move |_, seen| match seen.target.as_str() {
            "/v2/a/b/manifests/1" => list.clone().into_response(),
            target if target.starts_with("/v2/a/b/manifests/") => answer.clone().into_response(),
            _ => in_order(seen),
        })
        .await;
        match (image(&server.url, &options).await, expected) {
            (Ok(image), Ok(size)) => assert_eq!(image.size_bytes, size),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (found, expected) => panic!("{found:?} instead of {expected:?}"),
        }
    }
}

#[tokio::test]
async fn dockers_hub_is_listed_by_its_user() {
    let server = Server::start(|own, seen| match seen.target.as_str() {
        "/v2/" => in_order(seen),
        "/v2/repositories/me/?page_size=100" => Json(json!({
            "next": format!("{own}/v2/repositories/me/?page=2"),
            "results": [{ "name": "python" }, { "name": "kernel-python" }],
        }))
        .into_response(),
        "/v2/repositories/me/?page=2" => {
            Json(json!({ "next": null, "results": [{ "name": "lua" }] })).into_response()
        }
        _ => not_found(),
    })
    .await;
    let options = Options {
        hub: server.url.clone(),
        ..quick()
    };
    let registry = Registry::connect(with_credentials(&server.url), &options)
        .await
        .unwrap();
    assert_eq!(registry.hub().await.unwrap(), ["me/lua", "me/python"]);
    // The hub is another server than the registry: it gets nobody's credentials.
    assert!(
        server
            .seen_at("/v2/repositories")
            .iter()
            .all(|seen| seen.authorization.is_empty())
    );
    let registry = Registry::connect(address(&server.url), &options).await.unwrap();
    assert!(matches!(registry.hub().await, Err(Cause::Settings(_))));
}
