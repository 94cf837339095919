//! A registry that wants tokens of another server, as Docker's hub does.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::get;
use axum::{Json, Router};
use bai::system::SystemClock;
use bai_core::image::Rescan;
use bai_model::time::Clock as _;
use bai_testkit::services::registry::{Access, DOCKER};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::{Site, kernel, memory, options, rescan, set_registry};

const ISSUER: &str = "the issuer";
const SERVICE: &str = "the registry";

/// Signs tokens for whoever is `me:secret`.
struct TokenServer {
    key: EcdsaKeyPair,
    /// DER.
    certificate: Vec<u8>,
    scopes: Mutex<Vec<String>>,
}

impl TokenServer {
    fn token(&self, scope: &str) -> String {
        let mut parts = scope.splitn(2, ':');
        let kind = parts.next().unwrap_or_default();
        let (name, actions) = parts.next().and_then(|rest| rest.rsplit_once(':')).unwrap();
        let now = SystemClock.now().timestamp();
        let header = json!({ "typ": "JWT", "alg": "ES256", "x5c": [STANDARD.encode(&self.certificate)] });
        let claims = json!({
            "iss": ISSUER, "sub": "me", "aud": SERVICE, "exp": now + 300, "nbf": now - 60, "iat": now, "jti": "1",
            "access": [{ "type": kind, "name": name, "actions": actions.split(',').collect::<Vec<_>>() }],
        });
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", encode(&header), encode(&claims));
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

async fn answer(
    State(server): State<Arc<TokenServer>>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> Result<Json<Value>, StatusCode> {
    let basic = format!("Basic {}", STANDARD.encode("me:secret"));
    let authorization = headers.get("authorization").and_then(|value| value.to_str().ok());
    if authorization != Some(&basic) || query.get("service").map(String::as_str) != Some(SERVICE) {
        return Err(StatusCode::UNAUTHORIZED);
    }
    let scope = query.get("scope").ok_or(StatusCode::BAD_REQUEST)?;
    server.scopes.lock().unwrap().push(scope.clone());
    Ok(Json(json!({ "token": server.token(scope) })))
}

#[tokio::test]
async fn tokens_are_had_from_the_server_that_the_registry_names() {
    let Some(site) = Site::start().await else { return };
    for name in ["lablup/python", "lablup/lua"] {
        site.pusher
            .image(name, Some("1"), DOCKER, &kernel())
            .await
            .unwrap();
    }
    let signed = rcgen::generate_simple_self_signed(["token.test".to_owned()]).unwrap();
    let key = signed.signing_key.serialize_der();
    let server = Arc::new(TokenServer {
        key: EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &key, &SystemRandom::new()).unwrap(),
        certificate: signed.cert.der().to_vec(),
        scopes: Mutex::default(),
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let realm = format!("http://{}/token", listener.local_addr().unwrap());
    let router = Router::new()
        .route("/token", get(answer))
        .with_state(Arc::clone(&server));
    let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let access = Access::Token {
        realm,
        service: SERVICE.to_owned(),
        issuer: ISSUER.to_owned(),
        certificate: signed.cert.pem(),
    };
    let private = site.with_access("private", &access, None);
    for (password, added) in [("secret", 2), ("wrong", 0)] {
        let config = memory().await;
        set_registry(&config, "private", &private.url, Some(("me", password))).await;
        let summary = rescan(&config, &options(), &Rescan::default()).await;
        let [scan] = summary.registries.as_slice() else {
            panic!("{summary:?}")
        };
        assert_eq!(
            (scan.added, scan.error.is_some()),
            (added, added == 0),
            "{scan:?}"
        );
    }
    task.abort();
    let mut scopes = server.scopes.lock().unwrap().clone();
    scopes.sort();
    assert_eq!(
        scopes,
        [
            "registry:catalog:*",
            "repository:lablup/lua:pull",
            "repository:lablup/python:pull"
        ]
    );
}
