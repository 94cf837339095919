//! Ring 4: no route without a row that says who may, and none without an exchange of the original, unless it is listed. The
//! list, `tests/coverage/without-recording.txt`, may only get shorter.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use bai_core::manager_status::StatusGate;
use bai_gateway::route::{ROUTES, Resolution, resolve};
use bai_testkit::{Api, Request, Role};
use serde_json::{Value, json};

/// Method, path, and what a dated but unsigned request, a user, a domain administrator and a superadmin are answered. A
/// signed request that gets as far as a missing session (404) or parameter (400) was let in.
type Row = (&'static str, &'static str, [u16; 4]);

const WHO_MAY: &[Row] = &[
    ("GET", "/", [200, 200, 200, 200]),
    ("GET", "/auth", [401, 200, 200, 200]),
    ("POST", "/auth", [401, 200, 200, 200]),
    ("GET", "/auth/test", [401, 200, 200, 200]),
    ("POST", "/auth/test", [401, 200, 200, 200]),
    ("POST", "/auth/authorize", [400, 400, 400, 400]),
    ("POST", "/auth/signup", [400, 400, 400, 400]),
    ("POST", "/kernel", [401, 201, 201, 201]),
    ("POST", "/kernel/create", [401, 201, 201, 201]),
    ("GET", "/kernel/{session}", [401, 404, 404, 404]),
    ("PATCH", "/kernel/{session}", [401, 404, 404, 404]),
    ("DELETE", "/kernel/{session}", [401, 404, 404, 404]),
    ("POST", "/kernel/{session}", [401, 404, 404, 404]),
    ("GET", "/kernel/{session}/logs", [401, 404, 404, 404]),
    ("POST", "/kernel/{session}/interrupt", [401, 404, 404, 404]),
    ("POST", "/kernel/{session}/complete", [401, 404, 404, 404]),
    ("POST", "/kernel/{session}/upload", [401, 400, 400, 400]),
    ("GET", "/kernel/{session}/download", [401, 404, 404, 404]),
    ("POST", "/kernel/{session}/download", [401, 404, 404, 404]),
    ("GET", "/kernel/{session}/files", [401, 404, 404, 404]),
    ("GET", "/stream/kernel/{session}/execute", [401, 404, 404, 404]),
    ("GET", "/stream/kernel/{session}/events", [401, 404, 404, 404]),
    ("GET", "/stream/kernel/{session}/pty", [401, 404, 404, 404]),
    ("GET", "/stream/kernel/{session}/httpproxy", [401, 404, 404, 404]),
    ("GET", "/stream/kernel/{session}/tcpproxy", [401, 404, 404, 404]),
    ("GET", "/stream/kernel/{session}/apps", [401, 404, 404, 404]),
    ("GET", "/config/resource-slots", [200, 200, 200, 200]),
    ("POST", "/config/get", [401, 401, 401, 200]),
    ("POST", "/config/set", [401, 401, 401, 200]),
    ("POST", "/config/delete", [401, 401, 401, 200]),
    ("GET", "/manager/status", [200, 200, 200, 200]),
    ("PUT", "/manager/status", [401, 401, 401, 204]),
    ("GET", "/resource/presets", [401, 200, 200, 200]),
    ("POST", "/resource/check-presets", [401, 200, 200, 200]),
    ("POST", "/resource/recalculate-usage", [401, 401, 401, 200]),
    ("GET", "/resource/usage/month", [401, 401, 401, 200]),
    ("GET", "/resource/usage/period", [401, 401, 401, 200]),
    ("POST", "/manager/announcement", [401, 401, 401, 204]),
    ("GET", "/manager/announcement", [200, 200, 200, 200]),
    ("GET", "/config/vfolder-types", [401, 200, 200, 200]),
    ("GET", "/folders/_/allowed_types", [401, 200, 200, 200]),
    ("GET", "/config/docker-registries", [401, 200, 200, 200]),
    ("GET", "/resource/container-registries", [401, 200, 200, 200]),
];

const ROLES: [Role; 4] = [Role::Anonymous, Role::User, Role::DomainAdmin, Role::Superadmin];

/// A body with which a call that is let in goes as far as it can.
fn body(path: &str) -> Value {
    match path {
        "/auth" | "/auth/test" => json!({ "echo": "x" }),
        "/kernel" | "/kernel/create" => json!({ "clientSessionToken": "covered", "lang": "python" }),
        "/auth/authorize" | "/auth/signup" => json!({}),
        "/config/set" => json!({ "key": "covered", "value": "x" }),
        "/config/get" | "/config/delete" => json!({ "key": "covered" }),
        "/manager/status" => json!({ "status": "running" }),
        "/manager/announcement" => json!({ "enabled": false }),
        "/resource/usage/month" => json!({ "group_ids": [], "month": "201907" }),
        "/resource/usage/period" => json!({
            "group_id": "2de2b969-1d04-48a6-af16-0bc8adb3c831", "start_date": "20190701", "end_date": "20190801",
        }),
        _ => json!({ "runId": null, "mode": "query", "code": "", "files": ["x"] }),
    }
}

/// As in the table, under the unversioned path and every legacy one.
fn targets(path: &str, legacy: &[u8]) -> Vec<String> {
    let path = path.replace("{session}", "nobody");
    let mut targets = vec![path.clone()];
    for major in legacy {
        let slash = if matches!(&*path, "/auth" | "/kernel") {
            "/"
        } else {
            ""
        };
        targets.push(format!("/v{major}{path}{slash}"));
    }
    targets
}

#[tokio::test]
async fn every_route_says_who_may() {
    let rows: BTreeSet<_> = WHO_MAY.iter().map(|row| (row.0, row.1)).collect();
    let routes: BTreeSet<_> = ROUTES.iter().map(|route| (route.method, route.path)).collect();
    assert_eq!(routes, rows, "each route needs its row in WHO_MAY");
    let api = Api::start().await;
    for route in ROUTES {
        let row = WHO_MAY
            .iter()
            .find(|row| (row.0, row.1) == (route.method, route.path))
            .unwrap();
        for target in targets(route.path, route.legacy) {
            for (role, expected) in ROLES.into_iter().zip(row.2) {
                let mut request = Request::new(role, route.method, &target).json(&body(route.path));
                if role == Role::Anonymous {
                    let date = "2019-07-15T12:34:56+00:00";
                    request.headers.push(("date".into(), date.into()));
                }
                let answer = api.send(request).await;
                assert_eq!(
                    answer.status,
                    expected,
                    "{role:?} {} {target}: {}",
                    route.method,
                    answer.json()
                );
            }
        }
    }
}

#[tokio::test]
async fn every_route_heeds_the_managers_status() {
    let api = Api::start().await;
    for status in ["frozen", "preparing", "terminated", "running"] {
        let set = json!({ "status": status });
        let answer = api.call(Role::Superadmin, "PUT", "/manager/status", &set).await;
        assert_eq!(answer.status, 204, "{}", answer.json());
        for route in ROUTES.iter().filter(|route| route.method != "PUT") {
            let refusal = match (route.status, status) {
                (StatusGate::None, _) | (_, "running") | (StatusGate::RunningOrFrozen, "frozen") => None,
                (StatusGate::Running, "frozen") => Some("server-frozen"),
                _ => Some("service-unavailable"),
            };
            let target = &targets(route.path, &[])[0];
            let request = Request::new(Role::Superadmin, route.method, target).json(&body(route.path));
            let answer = api.send(request).await.json();
            let kind = answer["type"].as_str().unwrap_or_default();
            let kind = kind.strip_prefix("https://api.backend.ai/probs/");
            let gates = ["server-frozen", "service-unavailable"];
            assert_eq!(
                kind.filter(|kind| gates.contains(kind)),
                refusal,
                "{status}: {} {target}: {answer}",
                route.method
            );
        }
    }
}

#[test]
fn every_route_is_compared_with_the_original_unless_it_is_listed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut without: BTreeSet<String> = ROUTES
        .iter()
        .map(|route| format!("{} {}", route.method, route.path))
        .collect();
    for file in ["basic", "auth", "session", "config", "manager", "resource"] {
        let recordings = fs::read_to_string(folder.join(format!("recordings/{file}.jsonl"))).unwrap();
        for recorded in recordings.lines() {
            let recorded: Value = serde_json::from_str(recorded).unwrap();
            let (method, target) = (
                recorded["method"].as_str().unwrap(),
                recorded["path"].as_str().unwrap(),
            );
            let path = target.split('?').next().unwrap();
            if let Resolution::Found { route, .. } = resolve(method, path) {
                without.remove(&format!("{} {}", route.method, route.path));
            }
        }
    }
    let list = fs::read_to_string(folder.join("coverage/without-recording.txt")).unwrap();
    let listed: BTreeSet<String> = list
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect();
    let new: Vec<_> = without.difference(&listed).collect();
    assert!(
        new.is_empty(),
        "not compared with the original: {new:?}; add a recording (tests/recordings/convert.py)"
    );
    let done: Vec<_> = listed.difference(&without).collect();
    assert!(
        done.is_empty(),
        "compared by now, or gone: {done:?}; remove the lines, so that the list stays short"
    );
}
