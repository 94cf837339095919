//! `/kernel`: the life of sessions.

use bai_model::{KernelStatus, SlotValue};
use bai_proto::agent::AgentError;
use bai_proto::event::AgentEvent;
use bai_testkit::{Api, Request, Role, cast};
use serde_json::{Value, json};

use super::{assert_clean, create, until_called};

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

/// Who loses the race finds the winner's session, and not that it fills the quota.
#[tokio::test]
async fn racing_creations_of_one_name_need_room_for_one() {
    let mut cast = cast::fixture();
    cast["keypair_resource_policies"][0]["max_concurrent_sessions"] = json!(1);
    let api = Api::start_with(&cast).await;
    let racers = (0..10).map(|_| create(&api, Role::User, "race"));
    let answers = futures_util::future::join_all(racers).await;
    assert!(answers.iter().all(|answer| answer[0] == 201), "{answers:?}");
    assert_eq!(api.agent.kernels().len(), 1);
    assert_eq!(create(&api, Role::User, "another").await[0], 412);
    assert_clean(&api).await;
}

/// The number of sessions comes before everything else that is wrong with a new one, and not before an existing one (Q-11).
#[tokio::test]
async fn too_many_sessions_are_told_first() {
    let mut cast = cast::fixture();
    cast["keypair_resource_policies"][0]["max_concurrent_sessions"] = json!(1);
    let api = Api::start_with(&cast).await;
    let answer = async |name: &str, changed: &str, value: Value| {
        let mut body = json!({ "lang": "python", "clientSessionToken": name, "group": "default" });
        body[changed] = value;
        api.call(Role::User, "POST", "/kernel/create", &body).await.status
    };
    let wrong = [
        ("lang", json!("no-such-image")),
        ("group", json!("no-such-group")),
        ("config", json!({ "resources": { "cpu": "none" } })),
        ("config", json!({ "mounts": ["no-such-folder"] })),
    ];
    for (changed, value) in &wrong {
        let status = answer("first", changed, value.clone()).await;
        assert!(![201, 412].contains(&status), "{changed}: {status}");
    }
    assert_eq!(create(&api, Role::User, "there").await[0], 201);
    for (changed, value) in &wrong {
        assert_eq!(answer("second", changed, value.clone()).await, 412, "{changed}");
    }
    assert_eq!(answer("there", "group", json!("default")).await, 201);
    assert_ne!(answer("there", "lang", json!("no-such-image")).await, 412);
    assert_clean(&api).await;
}

/// What creations know of images is forgotten when it is changed here.
#[tokio::test]
async fn changed_images_count_at_once() {
    let api = Api::start().await;
    let set = async |key: &str, value: Value| {
        let body = json!({ "key": key, "value": value });
        let set = api.call(Role::Superadmin, "POST", "/config/set", &body).await;
        assert_eq!(set.status, 200, "{key}");
    };
    let create = async |name: &str| {
        let body = json!({ "lang": "snake", "clientSessionToken": name });
        api.call(Role::User, "POST", "/kernel/create", &body).await
    };
    assert_eq!(create("before").await.status, 400);
    set("images/_aliases/snake", json!("python:3.6-debian")).await;
    assert_eq!(create("after").await.status, 201);
    let minimum = "images/index.docker.io/lablup%2Fpython/3.6-debian/resource/cpu/min";
    set(minimum, json!("3")).await;
    assert_eq!(create("bigger").await.status, 201);
    let kernels = api.agent.kernels().into_iter();
    let mut cores: Vec<_> = kernels
        .map(|kernel| {
            api.agent
                .config(kernel)
                .expect("a kernel")
                .resource_slots
                .amount("cpu")
        })
        .collect();
    cores.sort_by(|a, b| a.partial_cmp(b).expect("amounts"));
    assert_eq!(cores, [1, 3].map(|cores| SlotValue::Finite(cores.into())));
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
        until_called(&api, "execute").await;
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
async fn what_a_run_prints_is_shaped_by_the_version() {
    let api = Api::start().await;
    create(&api, Role::User, "prints").await;
    let run = json!({ "runId": "r", "mode": "query", "code": "kinds" });
    let console = json!([
        ["stdout", "out"],
        ["stderr", "err"],
        ["media", ["image/png", "data:"]],
        ["html", "<b>"],
        ["log", "log"],
        ["stdout", "more"],
    ]);
    for prefix in ["", "/v2", "/v3", "/v4"] {
        let target = format!("{prefix}/kernel/prints");
        let answer = api.call(Role::User, "POST", &target, &run).await;
        assert_eq!(answer.json()["result"]["console"], console, "{target}");
    }
    let answer = api.call(Role::User, "POST", "/v1/kernel/prints", &run).await;
    let result = json!({
        "status": "finished", "runId": "r", "exitCode": 0, "options": null, "files": [],
        "stdout": "outmore", "stderr": "err", "media": [["image/png", "data:"]], "html": ["<b>"],
    });
    assert_eq!(answer.view(), json!([200, { "result": result }]));
}

#[tokio::test]
async fn input_is_asked_for_and_given() {
    let api = Api::start().await;
    create(&api, Role::User, "asks").await;
    let run = |mode: &str, code: &str| json!({ "runId": "r", "mode": mode, "code": code, "options": null });
    let asked = api
        .call(Role::User, "POST", "/kernel/asks", &run("query", "input"))
        .await;
    assert_eq!(asked.json()["result"]["status"], "waiting-input");
    assert_eq!(asked.json()["result"]["options"], json!({ "is_password": false }));
    let given = api
        .call(Role::User, "POST", "/kernel/asks", &run("input", "me"))
        .await;
    assert_eq!(given.json()["result"]["console"], json!([["stdout", "got me\n"]]));
    let batch = api
        .call(Role::User, "POST", "/kernel/asks", &run("batch", ""))
        .await;
    assert_eq!(batch.json()["result"]["status"], "clean-finished");
    let completed = api
        .call(Role::User, "POST", "/kernel/asks", &run("complete", "impo"))
        .await;
    assert_eq!(
        completed.json()["result"]["completions"],
        json!(["impo_completed"])
    );
    let failed = api
        .call(Role::User, "POST", "/kernel/asks", &run("query", "fail boom"))
        .await;
    assert_eq!(failed.status, 500);
    assert_eq!(
        failed.json()["agent-details"]["exception"],
        "RuntimeError('boom')"
    );
}

#[tokio::test]
async fn what_was_asked_for_reaches_the_agent() {
    let api = Api::start().await;
    let body = json!({
        "image": "lablup/python:3.7-debian", "clientSessionToken": "asked", "tag": "mine",
        "domainName": "default", "groupName": "default",
        "config": {
            "environ": { "NAME": "value", "COUNT": 3 }, "resources": { "cpu": "2", "mem": "1.5g" }, "clusterSize": 1,
            "resource_opts": { "shmem": "64m" }, "mounts": [],
        },
    });
    let answer = api.call(Role::User, "POST", "/kernel", &body).await;
    assert_eq!(
        (answer.status, answer.json()["created"].clone()),
        (201, json!(true))
    );
    let config = api.agent.config(api.agent.kernels()[0]).unwrap();
    assert_eq!(config.image.canonical, "index.docker.io/lablup/python:3.7-debian");
    assert_eq!(
        config.resource_slots.to_json(),
        json!({ "cpu": "2", "mem": "1610612736" })
    );
    assert_eq!(config.idle_timeout, 600);
    assert_eq!(config.environ["NAME"], "value");
    assert_eq!(config.environ["COUNT"], "3");
    let info = api.get(Role::User, "/kernel/asked").await.json();
    assert_eq!(
        (&info["tag"], &info["environ"]),
        (&json!("mine"), &json!(["COUNT=3", "NAME=value"]))
    );

    // Version 1 had no config; legacy amounts count from version 2 on.
    let body = |name: &str| {
        json!({
            "lang": "python", "clientSessionToken": name, "config": { "instanceMemory": 2, "instanceCores": 3, "environ": { "A": "b" } },
        })
    };
    assert_eq!(
        api.call(Role::User, "POST", "/v1/kernel/create", &body("first"))
            .await
            .status,
        201
    );
    assert_eq!(
        api.call(Role::User, "POST", "/v2/kernel/create", &body("second"))
            .await
            .status,
        201
    );
    let slots = |name: &str| {
        let target = format!("/kernel/{name}");
        let api = &api;
        async move { api.get(Role::User, &target).await.json()["occupiedSlots"].clone() }
    };
    assert_eq!(slots("first").await, json!({ "cpu": "1", "mem": "268435456" }));
    assert_eq!(slots("second").await, json!({ "cpu": "3", "mem": "2147483648" }));
    assert_clean(&api).await;
}

#[tokio::test]
async fn a_name_is_taken_until_its_session_ends() {
    let api = Api::start().await;
    create(&api, Role::User, "taken").await;
    let other = json!({ "image": "lablup/python:3.7-debian", "clientSessionToken": "taken" });
    let answer = api.call(Role::User, "POST", "/kernel/create", &other).await;
    assert_eq!(
        (answer.status, answer.json()["type"].clone()),
        (400, json!("https://api.backend.ai/probs/kernel-already-exists"))
    );
    let new_only = json!({ "lang": "python", "clientSessionToken": "taken", "reuseIfExists": false });
    assert_eq!(
        api.call(Role::User, "POST", "/kernel/create", &new_only)
            .await
            .status,
        400
    );
    // Names are the owner's own.
    assert_eq!(create(&api, Role::Monitor, "taken").await[1]["created"], true);
    assert_clean(&api).await;
}

#[tokio::test]
async fn administrators_act_for_owners() {
    let api = Api::start().await;
    let body = json!({ "lang": "python", "clientSessionToken": "theirs" });
    let target = "/kernel/create?owner_access_key=AKIANABBDUSEREXAMPLE";
    assert_eq!(api.call(Role::Monitor, "POST", target, &body).await.status, 403);
    assert_eq!(
        api.call(Role::DomainAdmin, "POST", target, &body).await.status,
        201
    );
    assert_eq!(api.get(Role::User, "/kernel/theirs").await.status, 200);
    let of_later_clients = json!({
        "lang": "python", "clientSessionToken": "theirs", "owner_access_key": "AKIANABBDUSEREXAMPLE",
    });
    let answer = api
        .call(Role::Superadmin, "POST", "/kernel/create", &of_later_clients)
        .await;
    assert_eq!(answer.json()["created"], false);
    for (role, expected) in [(Role::Monitor, 403), (Role::DomainAdmin, 200)] {
        let target = "/kernel/theirs?owner_access_key=AKIANABBDUSEREXAMPLE";
        let answer = api.send(Request::new(role, "DELETE", target)).await;
        assert_eq!(answer.status, expected);
    }
    assert_clean(&api).await;
}
