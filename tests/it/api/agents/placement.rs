//! Which agent a session goes to, and what that one is told.

use bai_model::{AccessKey, AgentId, ResourceSlot, SlotUnit};
use bai_proto::agent::AgentError;
use bai_proto::event::InstalledImage;
use bai_testkit::{Api, RemoteAgent, Request, Role};
use serde_json::{Value, json};

use super::super::{assert_clean, create};
use super::{add_agent, soon, with_agent};

/// The agent of a session of the user.
async fn agent_of(api: &Api, name: &str) -> AgentId {
    let key = AccessKey::from(Role::User.keypair().unwrap().0);
    let row = api.store.reader().session_by_name(&key, name).await.unwrap();
    row.unwrap().agent.unwrap()
}

/// Changes what an agent says of itself, and waits until that is recorded.
async fn change(api: &Api, agent: &mut RemoteAgent, slots: Value) {
    agent.info.available_slots = ResourceSlot::from_stored(&slots).0;
    agent.beat().await;
    let id = agent.info.id.clone();
    soon("it is recorded", || async {
        let row = api.store.reader().agent(&id).await.unwrap().unwrap();
        row.available_slots == agent.info.available_slots
    })
    .await;
}

/// An image of the catalogue in a registry that there may be.
async fn catalogue(api: &Api, url: &str) {
    let image = "images/index.docker.io/lablup%2Flua";
    let registry = "config/docker/registry/index.docker.io";
    let entries = [
        (image.to_owned(), "1"),
        (format!("{image}/5.3"), "sha256:lua"),
        (format!("{image}/5.3/labels/ai.backend.kernelspec"), "1"),
        (registry.to_owned(), url),
        (format!("{registry}/username"), "somebody"),
        (format!("{registry}/password"), "secret"),
    ];
    let entries = entries.map(|(key, value)| (key, value.to_owned()));
    api.config.put_all(&entries).await.unwrap();
    // By the manager, which believes for two seconds what others may have changed.
    let body = json!({ "key": registry, "value": url });
    let set = api.call(Role::Superadmin, "POST", "/config/set", &body).await;
    assert_eq!(set.status, 200);
}

fn lua() -> InstalledImage {
    InstalledImage {
        repo_tag: "lablup/lua:5.3".to_owned(),
        id: "sha256:lua".to_owned(),
    }
}

async fn create_lua(api: &Api, name: &str) -> Value {
    let resources = json!({ "cpu": 1, "mem": "256m" });
    let body = json!({ "lang": "lua:5.3", "clientSessionToken": name, "config": { "resources": resources } });
    api.call(Role::User, "POST", "/kernel/create", &body).await.view()
}

#[tokio::test]
async fn an_agent_is_told_of_no_slots_that_it_does_not_have_in_plain_numbers() {
    let (api, mut agent) = with_agent().await;
    let mut gpus = add_agent(&api, "i-with-gpus").await;
    gpus.info.slot_types.insert("cuda.device", SlotUnit::Count);
    change(
        &api,
        &mut gpus,
        json!({ "cpu": "1", "mem": "1073741824", "cuda.device": "2" }),
    )
    .await;
    change(&api, &mut agent, json!({ "cpu": "20", "mem": "17179869184" })).await;
    let body =
        json!({ "lang": "python", "clientSessionToken": "many", "config": { "resources": { "cpu": "10" } } });
    let created = api.call(Role::User, "POST", "/kernel/create", &body).await;
    assert_eq!(created.status, 201, "{:?}", created.view());
    assert_eq!(agent_of(&api, "many").await, agent.info.id);
    let config = api.agent.config(api.agent.kernels()[0]).unwrap();
    assert_eq!(
        config.resource_slots.to_json(),
        json!({ "cpu": "10", "mem": "268435456" })
    );
    let body = json!({ "lang": "python", "clientSessionToken": "gpu-1", "config": { "resources": { "cuda.device": 1 } } });
    let created = api.call(Role::User, "POST", "/kernel/create", &body).await;
    assert_eq!(created.status, 201, "{:?}", created.view());
    assert_eq!(agent_of(&api, "gpu-1").await, gpus.info.id);
    assert_clean(&api).await;
}

#[tokio::test]
async fn an_image_runs_where_it_is_or_can_be_fetched() {
    let (api, mut agent) = with_agent().await;
    catalogue(&api, "").await;
    let nowhere = create_lua(&api, "lua-1").await;
    assert_eq!(nowhere[0], 503, "{nowhere}");
    assert!(nowhere[1]["title"].to_string().contains("image"), "{nowhere}");
    agent.info.installed = vec![lua()];
    change(&api, &mut agent, json!({ "cpu": "9", "mem": "17179869184" })).await;
    assert_eq!(create_lua(&api, "lua-1").await[0], 201);
    let config = api.agent.config(api.agent.kernels()[0]).unwrap();
    assert_eq!(config.image.registry.password, None, "nothing is to be fetched");
    // Where it can be fetched, the one with more room takes it, and is told how.
    catalogue(&api, "https://registry.example").await;
    let mut other = add_agent(&api, "i-other").await;
    other.info.images.clear();
    change(&api, &mut other, json!({ "cpu": "99", "mem": "27179869184" })).await;
    assert_eq!(create_lua(&api, "lua-2").await[0], 201);
    assert_eq!(agent_of(&api, "lua-2").await, other.info.id);
    let fetched = api
        .agent
        .kernels()
        .into_iter()
        .map(|kernel| api.agent.config(kernel).unwrap());
    let passwords: Vec<_> = fetched
        .filter_map(|config| config.image.registry.password)
        .collect();
    assert_eq!(passwords, ["secret"]);
    assert_clean(&api).await;
}

#[tokio::test]
async fn an_agent_whose_starts_keep_failing_comes_last_until_one_succeeds() {
    let (api, mut failing) = with_agent().await;
    let other = add_agent(&api, "i-other").await;
    change(&api, &mut failing, json!({ "cpu": "99", "mem": "99179869184" })).await;
    for number in 0..3 {
        api.agent
            .fail_next_creation(AgentError::exception("DockerError", "no space"));
        let failed = create(&api, Role::User, &format!("fails-{number}")).await;
        assert_eq!(failed[0], 500);
    }
    assert_eq!(create(&api, Role::User, "next").await[0], 201);
    assert_eq!(agent_of(&api, "next").await, other.info.id);
    // Only it has so much room, and it works again.
    let body =
        json!({ "lang": "python", "clientSessionToken": "large", "config": { "resources": { "cpu": 50 } } });
    assert_eq!(
        api.call(Role::User, "POST", "/kernel/create", &body).await.status,
        201
    );
    assert_eq!(create(&api, Role::User, "last").await[0], 201);
    assert_eq!(agent_of(&api, "last").await, failing.info.id);
    for name in ["next", "large", "last"] {
        let target = format!("/kernel/{name}");
        assert_eq!(
            api.send(Request::new(Role::User, "DELETE", &target)).await.status,
            200
        );
    }
    assert_clean(&api).await;
}
