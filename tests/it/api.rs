//! Ring 3: the API in process, by roles.

use bai_model::KernelStatus;
use bai_proto::agent::AgentError;
use bai_proto::event::AgentEvent;
use bai_testkit::{Api, Request, Role};
use serde_json::{Value, json};

/// Creates a session of the cast's image.
async fn create(api: &Api, role: Role, name: &str) -> Value {
    let body = json!({ "lang": "python", "clientSessionToken": name });
    api.call(role, "POST", "/kernel/create", &body).await.view()
}

/// What every test of sessions ends with: counters equal sums, and nothing runs without an owner.
async fn assert_clean(api: &Api) {
    assert_eq!(
        api.store
            .reader()
            .check_accounting()
            .await
            .expect("an accounting"),
        []
    );
    let live = api
        .store
        .reader()
        .count_live_sessions_total()
        .await
        .expect("a count");
    assert_eq!(
        live,
        i64::try_from(api.agent.kernels().len()).expect("a small number")
    );
}

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
async fn login_answers_with_the_keypair_and_tells_nothing_otherwise() {
    let api = Api::start().await;
    let login = |username: &'static str, password: &'static str| json!({ "type": "keypair", "domain": "default", "username": username, "password": password });
    let answer = api
        .call(
            Role::Anonymous,
            "POST",
            "/auth/authorize",
            &login("user@lablup.com", "wJalrXUt"),
        )
        .await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json()["data"]["access_key"], "AKIANABBDUSEREXAMPLE");
    for (username, password) in [("user@lablup.com", "wrong"), ("nobody@lablup.com", "wJalrXUt")] {
        let answer = api
            .call(
                Role::Anonymous,
                "POST",
                "/auth/authorize",
                &login(username, password),
            )
            .await;
        let title = "Credential/signature mismatch. (User credential mismatch.)";
        assert_eq!(
            answer.view(),
            json!([401, { "type": "https://api.backend.ai/probs/auth-failed", "title": title }])
        );
    }
}

#[tokio::test]
async fn a_session_lives_its_life() {
    let api = Api::start().await;
    let port = json!([{ "name": "jupyter", "protocol": "http", "container_port": 8080, "host_port": 30002 }]);
    let expected = json!({ "kernelId": "life", "servicePorts": port, "created": true, "status": "RUNNING" });
    assert_eq!(create(&api, Role::User, "life").await, json!([201, expected]));
    let again = create(&api, Role::User, "life").await;
    assert_eq!((&again[0], &again[1]["created"]), (&json!(201), &json!(false)));
    assert_clean(&api).await;

    let run = json!({ "runId": "r1", "mode": "query", "code": "print hello" });
    let result = json!({
        "status": "finished", "runId": "r1", "exitCode": 0, "options": null, "files": [],
        "console": [["stdout", "hello\n"]],
    });
    let answer = api.call(Role::User, "POST", "/kernel/life", &run).await;
    assert_eq!(answer.view(), json!([200, { "result": result }]));
    let answer = api
        .call(
            Role::User,
            "POST",
            "/v1/kernel/life",
            &json!({ "code": "print hello" }),
        )
        .await;
    assert_eq!(
        (
            &answer.json()["result"]["stdout"],
            &answer.json()["result"]["html"]
        ),
        (&json!("hello\n"), &json!([]))
    );

    let info = api.get(Role::User, "/kernel/life").await;
    assert_eq!(
        (info.status, info.json()["status"].clone()),
        (200, json!("RUNNING"))
    );
    assert_eq!(info.json()["memoryLimit"], 262_144);
    assert_eq!(
        api.send(Request::new(Role::User, "PATCH", "/kernel/life"))
            .await
            .status,
        204
    );
    assert_eq!(
        api.send(Request::new(Role::User, "POST", "/kernel/life/interrupt"))
            .await
            .status,
        204
    );
    let answer = api
        .call(
            Role::User,
            "POST",
            "/kernel/life/complete",
            &json!({ "code": "impo" }),
        )
        .await;
    assert_eq!(
        answer.json(),
        json!({ "result": { "status": "finished", "completions": ["impo_completed"] } })
    );
    assert_eq!(
        api.get(Role::User, "/kernel/life/logs").await.json(),
        json!({ "result": { "logs": "the log\n" } })
    );

    let answer = api.send(Request::new(Role::User, "DELETE", "/kernel/life")).await;
    assert_eq!(answer.view(), json!([200, { "stats": { "version": 2 } }]));
    assert_eq!(api.get(Role::User, "/kernel/life").await.status, 404);
    assert_eq!(
        create(&api, Role::User, "life").await[1]["created"],
        true,
        "the name is free again"
    );
    assert_clean(&api).await;
}

#[tokio::test]
async fn sessions_are_their_owners() {
    let api = Api::start().await;
    create(&api, Role::User, "mine").await;
    assert_eq!(api.get(Role::Monitor, "/kernel/mine").await.status, 404);
    assert_eq!(api.get(Role::Superadmin, "/kernel/mine").await.status, 404);
    let target = "/kernel/mine?owner_access_key=AKIANABBDUSEREXAMPLE";
    assert_eq!(api.get(Role::Superadmin, target).await.status, 200);
    let answer = api.get(Role::Monitor, target).await;
    let title = "Forbidden operation. (Only admins can access or control sessions owned by others.)";
    assert_eq!(
        answer.view(),
        json!([403, { "type": "https://api.backend.ai/probs/generic-forbidden", "title": title }])
    );
    assert_clean(&api).await;
}

#[tokio::test]
async fn what_cannot_be_is_refused_and_leaves_nothing() {
    let api = Api::start().await;
    let with = |extra: Value| {
        let mut body = json!({ "lang": "python", "clientSessionToken": "refused" });
        body.as_object_mut()
            .expect("an object")
            .extend(extra.as_object().expect("an object").clone());
        body
    };
    let cases = [
        (json!({ "clientSessionToken": "abc" }), 400, "clientSessionToken"),
        (
            json!({ "lang": "unknown-image" }),
            400,
            "Unknown image reference: unknown-image",
        ),
        (json!({ "lang": "python:-x" }), 400, "Invalid image"),
        (
            json!({ "group": "nowhere" }),
            500,
            "nowhere: no such group in domain default",
        ),
        (
            json!({ "domain": "elsewhere" }),
            500,
            "default: no such group in domain elsewhere",
        ),
        (
            json!({ "config": { "mounts": ["nothing"] } }),
            404,
            "vfolder-not-found",
        ),
        (
            json!({ "config": { "resources": { "xpu": 1 } } }),
            400,
            "Unknown requested resource slot: xpu",
        ),
        (
            json!({ "config": { "resources": { "cpu": "many" } } }),
            400,
            "not supported by the image",
        ),
        (
            json!({ "config": { "resources": { "mem": "1m" } } }),
            400,
            "smaller than the minimum required by the image. (cpu=1 mem=256m)",
        ),
        (
            json!({ "config": { "resources": { "cpu": 99 } } }),
            503,
            "instance-not-available",
        ),
        (
            json!({ "config": { "instanceGPUs": 1 } }),
            400,
            "Client upgrade required to use GPUs",
        ),
        (json!({ "config": [] }), 400, "value is not a dict"),
        (json!({ "type": "batch" }), 400, "batch"),
        (json!({ "enqueueOnly": true }), 400, "enqueueOnly"),
    ];
    for (extra, status, text) in cases {
        let answer = api
            .call(Role::User, "POST", "/kernel/create", &with(extra.clone()))
            .await;
        let body = answer.json().to_string();
        assert_eq!(answer.status, status, "{extra}: {body}");
        assert!(body.contains(text), "{extra}: {body}");
    }
    assert!(api.agent.calls().is_empty());
    assert_clean(&api).await;
}

#[tokio::test]
async fn limits_hold_and_reuse_is_free() {
    let api = Api::start().await;
    for number in 0..5 {
        assert_eq!(create(&api, Role::User, &format!("sess-{number}")).await[0], 201);
    }
    assert_eq!(create(&api, Role::User, "sess-5").await[0], 412);
    assert_eq!(
        create(&api, Role::User, "sess-0").await[0],
        201,
        "what exists can be had at the limit (Q-11)"
    );
    api.send(Request::new(Role::User, "DELETE", "/kernel/sess-0"))
        .await;
    assert_eq!(create(&api, Role::User, "sess-5").await[0], 201);
    assert_clean(&api).await;
}

#[tokio::test]
async fn a_failed_creation_says_why_and_gives_everything_back() {
    let api = Api::start().await;
    api.agent
        .fail_next_creation(AgentError::exception("RuntimeError", "no ports"));
    let answer = create(&api, Role::User, "fails").await;
    assert_eq!(answer[0], 500);
    assert_eq!(
        answer[1]["agent-details"]["exception"],
        "RuntimeError('no ports')"
    );
    assert_clean(&api).await;
    assert_eq!(create(&api, Role::User, "fails").await[0], 201);
}

#[tokio::test]
async fn racing_creations_of_one_name_make_one_session() {
    let api = Api::start().await;
    let racers = (0..10).map(|_| create(&api, Role::User, "race"));
    let answers = futures_util::future::join_all(racers).await;
    let made = answers
        .iter()
        .filter(|answer| answer[1]["created"] == true)
        .count();
    assert_eq!(made, 1, "{answers:?}");
    assert!(answers.iter().all(|answer| answer[0] == 201), "{answers:?}");
    assert_clean(&api).await;
}

#[tokio::test]
async fn a_kernel_that_dies_frees_its_session() {
    let api = Api::start().await;
    create(&api, Role::User, "dies").await;
    let kernel = api.agent.kernels()[0];
    api.agent.forget(kernel);
    let event = AgentEvent::KernelTerminated {
        kernel,
        reason: "self-terminated".to_owned(),
        generation: None,
        stats: None,
    };
    api.events.send(event).await.expect("a manager that listens");
    // The event queue is ordered: once its channel is empty and the row has changed, it is done.
    let ended = async {
        loop {
            let row = api
                .store
                .reader()
                .kernel(kernel)
                .await
                .expect("a database")
                .expect("the row");
            if row.status == Some(KernelStatus::Terminated) {
                return row;
            }
            tokio::task::yield_now().await;
        }
    };
    let row = tokio::time::timeout(std::time::Duration::from_secs(10), ended)
        .await
        .expect("the event is handled");
    assert_eq!(row.status_info.as_deref(), Some("self-terminated"));
    assert_clean(&api).await;
}

#[tokio::test]
async fn files_go_in_and_out_within_their_limits() {
    let api = Api::start().await;
    create(&api, Role::User, "files").await;
    let part = |name: &str, data: &str| {
        format!("--b\r\nContent-Disposition: form-data; name=\"src\"; filename=\"{name}\"\r\n\r\n{data}\r\n")
    };
    let upload = |body: String| {
        let mut request = Request::new(Role::User, "POST", "/kernel/files/upload");
        request.content_type = Some("multipart/form-data; boundary=b".to_owned());
        request.body = body.into_bytes();
        request
    };
    assert_eq!(
        api.send(upload(part("a.txt", "hello") + "--b--\r\n"))
            .await
            .status,
        204
    );
    let many: String = (0..21).map(|number| part(&number.to_string(), "x")).collect();
    let answer = api.send(upload(many + "--b--\r\n")).await;
    assert_eq!(
        (
            answer.status,
            answer.json()["title"]
                .as_str()
                .is_some_and(|title| title.contains("Too many files"))
        ),
        (400, true)
    );
    let answer = api
        .send(upload(part("big", &"x".repeat(1 << 20)) + "--b--\r\n"))
        .await;
    assert_eq!(answer.status, 400);
    assert_eq!(api.send(upload("no multipart".to_owned())).await.status, 400);

    let answer = api
        .call(
            Role::User,
            "GET",
            "/kernel/files/download",
            &json!({ "files": ["a.txt"] }),
        )
        .await;
    assert_eq!(answer.status, 200);
    let text = String::from_utf8(answer.body).expect("text");
    assert!(
        text.starts_with("--") && text.contains("\r\nContent-Length: 5\r\n\r\nhello\r\n--"),
        "{text}"
    );
    for (body, status) in [
        (json!({}), 400),
        (json!({ "files": ["missing"] }), 500),
        (json!({ "files": ["x", "x", "x", "x", "x", "x"] }), 400),
    ] {
        assert_eq!(
            api.call(Role::User, "GET", "/kernel/files/download", &body)
                .await
                .status,
            status
        );
    }
    let answer = api
        .call(Role::User, "GET", "/kernel/files/files", &json!({ "path": "." }))
        .await;
    assert_eq!(answer.json()["files"], "[{\"filename\":\"a.txt\"}]");
    assert_eq!(api.get(Role::User, "/kernel/files/files").await.status, 400);
}

#[tokio::test]
async fn a_waiting_run_ends_with_its_session() {
    let api = Api::start().await;
    create(&api, Role::User, "waits").await;
    let run = json!({ "runId": "r", "mode": "query", "code": "wait" });
    let waiting = api.call(Role::User, "POST", "/kernel/waits", &run);
    let destroying = async {
        while !api.agent.calls().contains(&"execute".to_owned()) {
            tokio::task::yield_now().await;
        }
        api.send(Request::new(Role::User, "DELETE", "/kernel/waits"))
            .await
    };
    let (answer, destroyed) = tokio::join!(waiting, destroying);
    assert_eq!(destroyed.status, 200);
    let expected = json!({
        "status": "finished", "runId": "r", "exitCode": 130, "options": {}, "files": [], "console": [],
    });
    assert_eq!(answer.view(), json!([200, { "result": expected }]));
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
