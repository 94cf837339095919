//! `/config`: keys of the configuration store, for superadmins only.

use bai_testkit::{Api, Role};
use serde_json::{Value, json};

async fn call(api: &Api, verb: &str, body: Value) -> Value {
    let target = format!("/config/{verb}");
    api.call(Role::Superadmin, "POST", &target, &body).await.view()
}

fn ok(result: Value) -> Value {
    json!([200, { "result": result }])
}

#[tokio::test]
async fn values_are_written_read_and_deleted() {
    let api = Api::start().await;
    let key = json!({ "key": "/a/b" });
    assert_eq!(call(&api, "get", key.clone()).await, ok(Value::Null));
    let set = json!({ "key": "a/b", "value": "" });
    assert_eq!(call(&api, "set", set).await, ok(json!("ok")));
    assert_eq!(call(&api, "get", key.clone()).await, ok(json!("")));
    assert_eq!(call(&api, "delete", key.clone()).await, ok(json!("ok")));
    assert_eq!(call(&api, "get", key).await, ok(Value::Null));
}

#[tokio::test]
async fn objects_are_written_flat_and_read_nested() {
    let api = Api::start().await;
    let value = json!({ "x": { "": "own", "n": 5, "f": 1.5, "t": true }, "y": "z" });
    let set = json!({ "key": "tree", "value": value });
    assert_eq!(call(&api, "set", set).await, ok(json!("ok")));
    assert_eq!(api.config.get("tree/x").await.unwrap().as_deref(), Some("own"));
    assert_eq!(api.config.get("tree/x/t").await.unwrap().as_deref(), Some("True"));
    let get = json!({ "key": "tree", "prefix": true });
    let nested = json!({ "x": { "": "own", "n": "5", "f": "1.5", "t": "True" }, "y": "z" });
    assert_eq!(call(&api, "get", get).await, ok(nested));
    let get = json!({ "key": "nowhere", "prefix": true });
    assert_eq!(call(&api, "get", get).await, ok(json!({})));
    let set = json!({ "key": "empty", "value": {} });
    assert_eq!(call(&api, "set", set).await, ok(json!("ok")));
}

#[tokio::test]
async fn what_cannot_be_written_is_refused_and_writes_nothing() {
    let api = Api::start().await;
    let many: Value = (0..17)
        .map(|number| (number.to_string(), json!({ "": "x" })))
        .collect::<serde_json::Map<_, _>>()
        .into();
    for (value, said) in [
        (json!({ "a": "1", "b": null }), "key/b"),
        (json!({ "a": "1", "b": ["x"] }), "key/b"),
        (json!({ "a": "1", "": "x" }), "blank value is not allowed"),
        (json!("\0"), "NUL"),
        (json!(1), "value is not a dict"),
        (many, "Too large update!"),
    ] {
        let answer = call(&api, "set", json!({ "key": "key", "value": value })).await;
        assert_eq!(answer[0], 400, "{answer}");
        assert!(answer.to_string().contains(said), "{answer}");
    }
    let set = json!({ "key": "manager", "value": { "status": "melted" } });
    assert_eq!(call(&api, "set", set).await[0], 400);
    assert_eq!(api.config.prefix("key").await.unwrap(), []);
    assert_eq!(
        api.config.get("manager/status").await.unwrap().as_deref(),
        Some("running")
    );
}

#[tokio::test]
async fn a_prefix_deletes_bytes_but_not_what_managers_and_agents_live_by() {
    let api = Api::start().await;
    for key in [
        "mount",
        "manager/other",
        "nodes/manager",
        "nodes/agents/i-x/ip",
        "nothing",
    ] {
        api.config.put(key, "x").await.unwrap();
    }
    for prefix in ["m", "/n", "/"] {
        let delete = json!({ "key": prefix, "prefix": true });
        assert_eq!(call(&api, "delete", delete).await, ok(json!("ok")), "{prefix}");
    }
    let left: Vec<String> = api
        .config
        .prefix("")
        .await
        .unwrap()
        .into_iter()
        .map(|(key, _)| key)
        .collect();
    assert_eq!(left, ["manager/status", "nodes/agents/i-x/ip", "nodes/manager"]);
    for (key, prefix) in [
        ("manager/status", false),
        ("manager/status", true),
        ("nodes/agents", true),
    ] {
        let answer = call(&api, "delete", json!({ "key": key, "prefix": prefix })).await;
        assert_eq!(answer[0], 400, "{answer}");
    }
    let delete = json!({ "key": "nodes/agents/i-x/ip" });
    assert_eq!(call(&api, "delete", delete).await, ok(json!("ok")));
}

#[tokio::test]
async fn nobody_else_gets_at_registries_passwords() {
    let api = Api::start().await;
    let registry = json!({ "": "https://me:secret@hub.example/", "username": "me", "password": "secret" });
    let set = json!({ "key": "config/docker/registry", "value": { "hub%3A5000": registry } });
    assert_eq!(call(&api, "set", set).await, ok(json!("ok")));
    let listed = json!([200, { "hub:5000": { "": "https://hub.example/" } }]);
    for role in [Role::User, Role::DomainAdmin, Role::Monitor] {
        for target in ["/config/docker-registries", "/resource/container-registries"] {
            assert_eq!(api.get(role, target).await.view(), listed);
        }
        let get = json!({ "key": "config", "prefix": true });
        let answer = api.call(role, "POST", "/config/get", &get).await;
        assert_eq!(answer.status, 401);
        assert!(!String::from_utf8_lossy(&answer.body).contains("secret"));
    }
}

#[tokio::test]
async fn slot_types_are_those_of_the_cluster() {
    let api = Api::start().await;
    for (name, unit) in [("cuda.device", "count"), ("odd", "furlongs")] {
        api.config
            .put(&format!("config/resource_slots/{name}"), unit)
            .await
            .unwrap();
    }
    let types = json!([200, { "cpu": "count", "mem": "bytes", "cuda.device": "count" }]);
    assert_eq!(
        api.get(Role::Anonymous, "/config/resource-slots").await.view(),
        types
    );
    assert_eq!(
        api.get(Role::Anonymous, "/v3/config/resource-slots").await.view(),
        types
    );
}
