//! The road of every request: versions, signatures, limits, and the headers of every answer.

use bai_testkit::{Api, Request, Role, cast};
use serde_json::json;

use super::create;

#[tokio::test]
async fn root_tells_the_version_to_anybody() {
    let api = Api::start().await;
    let answer = api.get(Role::Anonymous, "/").await;
    assert_eq!(
        answer.view(),
        json!([200, { "version": "v4.20190615", "manager": "19.06.0b2" }])
    );
    assert_eq!(answer.header("server"), "BackendAI");
    assert_eq!(answer.header("x-ratelimit-limit"), "1000");
    assert_eq!(answer.header("content-type"), "application/json; charset=utf-8");
    assert_eq!(answer.header("x-backendai-requestid").len(), 16);
}

#[tokio::test]
async fn every_role_may_sign_and_nobody_else() {
    let api = Api::start().await;
    for role in Role::SIGNING {
        let answer = api.get(role, "/auth/test?echo=x").await;
        assert_eq!(
            answer.view(),
            json!([200, { "authorized": "yes", "echo": "x" }]),
            "{role:?}"
        );
        assert_eq!(answer.header("x-ratelimit-remaining"), "29999");
    }
    let answer = api.get(Role::Anonymous, "/auth/test?echo=x").await;
    assert_eq!(answer.status, 400, "no date");
    let mut request = Request::new(Role::Anonymous, "GET", "/auth/test?echo=x");
    request
        .headers
        .push(("date".into(), "Mon, 15 Jul 2019 12:34:56 GMT".into()));
    assert_eq!(api.send(request).await.status, 401);
}

#[tokio::test]
async fn old_versions_sign_their_bodies_and_are_heard() {
    let api = Api::start().await;
    for version in ["v1.20160915", "v2.20170315", "v3.20170615", "v4.20181215"] {
        let mut request = Request::new(Role::User, "POST", "/auth/test").json(&json!({ "echo": version }));
        request.version = version;
        assert_eq!(
            api.send(request).await.view(),
            json!([200, { "authorized": "yes", "echo": version }])
        );
    }
}

#[tokio::test]
async fn a_frozen_manager_refuses_new_sessions_only() {
    let api = Api::start().await;
    create(&api, Role::User, "before").await;
    api.config
        .put("manager/status", "frozen")
        .await
        .expect("a configuration store");
    api.clock.advance(chrono::TimeDelta::seconds(3));
    let answer = create(&api, Role::User, "after").await;
    assert_eq!(
        (&answer[0], &answer[1]["type"]),
        (&json!(503), &json!("https://api.backend.ai/probs/server-frozen"))
    );
    assert_eq!(api.get(Role::User, "/kernel/before").await.status, 200);
}

#[tokio::test]
async fn the_rate_window_slides() {
    let api = Api::start().await;
    for _ in 0..3 {
        assert_eq!(api.get(Role::User, "/auth/test?echo=x").await.status, 200);
    }
    let remaining = api
        .get(Role::User, "/auth/test?echo=x")
        .await
        .header("x-ratelimit-remaining")
        .to_owned();
    assert_eq!(remaining, "29996");
    api.clock.advance(chrono::TimeDelta::seconds(901));
    let remaining = api
        .get(Role::User, "/auth/test?echo=x")
        .await
        .header("x-ratelimit-remaining")
        .to_owned();
    assert_eq!(remaining, "29999");
}

#[tokio::test]
async fn beyond_the_rate_limit_a_keypair_is_refused_and_nobody_else() {
    let mut cast = cast::fixture();
    cast["keypairs"][2]["rate_limit"] = json!(2);
    let api = Api::start_with(&cast).await;
    for expected in [200, 200, 429, 429] {
        let answer = api.get(Role::User, "/auth/test?echo=x").await;
        assert_eq!(answer.status, expected);
        // The headers come with success only.
        assert_eq!(answer.header("x-ratelimit-limit").is_empty(), expected == 429);
    }
    assert_eq!(api.get(Role::Monitor, "/auth/test?echo=x").await.status, 200);
    api.clock.advance(chrono::TimeDelta::seconds(901));
    assert_eq!(api.get(Role::User, "/auth/test?echo=x").await.status, 200);
}

#[tokio::test]
async fn every_answer_has_a_request_id_and_keeps_a_sane_one() {
    let api = Api::start().await;
    for (given, is_kept) in [
        ("job-7.a_b", true),
        ("two words", false),
        (&*"x".repeat(65), false),
    ] {
        for target in ["/", "/nowhere", "/auth/test"] {
            let mut request = Request::new(Role::Anonymous, "GET", target);
            request
                .headers
                .push(("x-backendai-requestid".into(), given.into()));
            let answer = api.send(request).await;
            let id = answer.header("x-backendai-requestid");
            assert_eq!(id == given, is_kept, "{target}: {id}");
            assert!(!id.is_empty());
            assert_eq!(answer.header("server"), "BackendAI");
        }
    }
}

#[tokio::test]
async fn an_overridden_method_takes_the_whole_road() {
    let api = Api::start().await;
    let overridden = |role, method: &str, target: &str, to: &str| {
        let mut request = Request::new(role, method, target);
        request.headers.push(("x-method-override".into(), to.into()));
        request
    };
    let ask = |request| async { api.send(request).await.status };
    assert_eq!(ask(overridden(Role::Anonymous, "POST", "/", "GET")).await, 200);
    assert_eq!(ask(overridden(Role::Anonymous, "GET", "/", "BREW")).await, 405);
    let unsigned = overridden(Role::Anonymous, "PUT", "/auth/test?echo=x", "GET");
    assert_eq!(ask(unsigned).await, 400, "no date");
    let signed = overridden(Role::User, "PUT", "/auth/test?echo=x", "GET");
    assert_eq!(ask(signed).await, 200);
}

#[tokio::test]
async fn scripts_of_any_origin_may_read_errors_too() {
    let api = Api::start().await;
    let mut request = Request::new(Role::User, "GET", "/kernel/nobody");
    request
        .headers
        .push(("origin".into(), "http://foo.example".into()));
    let answer = api.send(request).await;
    assert_eq!(answer.status, 404);
    assert_eq!(answer.header("access-control-allow-origin"), "http://foo.example");
    assert!(
        answer
            .header("access-control-expose-headers")
            .contains("x-backendai-requestid")
    );
    assert_eq!(answer.header("access-control-allow-credentials"), "");
}

#[tokio::test]
async fn later_clients_find_what_they_ask_at_their_start() {
    let api = Api::start().await;
    for (role, target, expected) in [
        (
            Role::Anonymous,
            "/manager/announcement",
            json!({ "enabled": false, "message": "" }),
        ),
        (Role::User, "/config/vfolder-types", json!(["user", "group"])),
        (Role::User, "/folders/_/allowed_types", json!(["user", "group"])),
        (Role::User, "/config/docker-registries", json!({})),
        (Role::User, "/resource/container-registries", json!({})),
    ] {
        assert_eq!(
            api.get(role, target).await.view(),
            json!([200, expected]),
            "{target}"
        );
    }
}

#[tokio::test]
async fn a_defect_is_one_requests_misfortune() {
    let api = Api::start().await;
    create(&api, Role::User, "defect").await;
    let run = json!({ "runId": null, "mode": "query", "code": "panic the secret plan" });
    let answer = api.call(Role::User, "POST", "/kernel/defect", &run).await;
    let problem = json!({
        "type": "https://api.backend.ai/probs/internal-server-error", "title": "Internal server error.",
    });
    assert_eq!(answer.view(), json!([500, problem]));
    assert_eq!(answer.header("server"), "BackendAI");
    assert_eq!(answer.header("x-backendai-requestid").len(), 16);
    assert_eq!(api.get(Role::User, "/kernel/defect").await.status, 200);
}
