//! The configuration as callers see it: physical keys, scopes, nested objects (`http-api.md` 5.5).

use std::sync::Arc;

use bai_backplane::config::{Config, Scope, flatten, quote, unquote};
use bai_backplane::conformance::ManualClock;
use bai_backplane::kv::{self, Change, Expect, MAX_TXN_OPS, Txn, WatchEvent};
use bai_backplane::{Error, Terminal};
use futures_util::StreamExt as _;
use serde_json::{Map, Value, json};

async fn config() -> Config {
    let kv = kv::open("memory:", Arc::new(ManualClock::new()))
        .await
        .expect("open");
    Config::new(kv, "golden")
}

async fn physical(config: &Config) -> Vec<(String, String)> {
    let listing = config.kv().get_prefix("").await.expect("list");
    listing
        .entries
        .into_iter()
        .map(|entry| (entry.key, entry.value))
        .collect()
}

fn object(value: Value) -> Map<String, Value> {
    value.as_object().expect("an object").clone()
}

fn pairs<const N: usize>(pairs: [(&str, &str); N]) -> Vec<(String, String)> {
    pairs
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

#[tokio::test]
async fn keys_lie_below_the_namespace() {
    let config = config().await;
    config.put("/manager/status", "running").await.expect("put");
    config
        .put("//odd", "two slashes are one and a half")
        .await
        .expect("put");
    assert_eq!(config.get("manager/status").await, Ok(Some("running".to_owned())));
    assert_eq!(
        config.get("/manager/status").await,
        Ok(Some("running".to_owned()))
    );
    let keys: Vec<String> = physical(&config).await.into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["/sorna/golden//odd", "/sorna/golden/manager/status"]);
    let other = Config::new(Arc::clone(config.kv()), "gold");
    assert_eq!(
        other.prefix("").await,
        Ok(Vec::new()),
        "a namespace is not a byte prefix"
    );
    assert_eq!(other.delete_prefix("").await, Ok(0));
}

#[test]
fn names_are_quoted_as_one_component() {
    assert_eq!(quote("127.0.0.1:15000"), "127.0.0.1%3A15000");
    assert_eq!(quote("lablup/python"), "lablup%2Fpython");
    assert_eq!(quote("a_b-c.d ~é%"), "a_b-c.d%20%7E%C3%A9%25");
    for name in ["", "a b", "lablup/python:3.6", "100%", "가"] {
        assert_eq!(unquote(&quote(name)), name);
    }
}

#[tokio::test]
async fn subtrees_nest_with_own_values_under_the_empty_name() {
    let config = config().await;
    let registry = "config/docker/registry";
    config.put(&format!("{registry}/x"), "U").await.expect("put");
    config
        .put(&format!("{registry}/x/username"), "n")
        .await
        .expect("put");
    config
        .put(&format!("{registry}y"), "no segment boundary")
        .await
        .expect("put");
    config
        .put(&format!("{registry}/z//deep"), "empty segment")
        .await
        .expect("put");
    let expected = json!({
        "x": {"": "U", "username": "n"},
        "z": {"": {"deep": "empty segment"}},
        "y": "no segment boundary",
    });
    assert_eq!(config.subtree(registry).await, Ok(expected));
    let leaf = config.subtree(&format!("/{registry}/x")).await;
    assert_eq!(leaf, Ok(json!({"": "U", "username": "n"})));
    assert_eq!(
        config.subtree("config/docker/reg").await.expect("subtree")["istry"]["x"][""],
        "U"
    );
    assert_eq!(config.subtree("nothing").await, Ok(json!({})));
    let children = config.children(registry).await.expect("children");
    assert_eq!(
        children.into_iter().collect::<Vec<_>>(),
        [("x".to_owned(), Some("U".to_owned())), ("z".to_owned(), None)]
    );
}

#[tokio::test]
async fn narrower_scopes_hide_wider_ones() {
    let manager = config().await;
    let agent = manager.clone().for_agent("default", "i-1");
    manager
        .put_all(&pairs([
            ("volumes/_mount", "/mnt"),
            ("volumes/_fsprefix", "/"),
            ("config/a/b", "g"),
            ("config/a/c", "g"),
        ]))
        .await
        .expect("put");
    agent
        .put_in(Scope::ScalingGroup, "volumes/_mount", "/sgroup")
        .await
        .expect("put");
    agent
        .put_in(Scope::Node, "/volumes/_mount", "/node")
        .await
        .expect("put");
    agent
        .put_in(Scope::ScalingGroup, "config/a/b", "s")
        .await
        .expect("put");
    agent.put_in(Scope::Node, "", "running").await.expect("put");
    agent.put("ip", "in the global scope").await.expect("put");

    assert_eq!(manager.get("volumes/_mount").await, Ok(Some("/mnt".to_owned())));
    assert_eq!(agent.get("volumes/_mount").await, Ok(Some("/node".to_owned())));
    assert_eq!(agent.get("config/a/b").await, Ok(Some("s".to_owned())));
    assert_eq!(agent.get("volumes/_fsprefix").await, Ok(Some("/".to_owned())));
    assert_eq!(
        agent.prefix("config/a/").await,
        Ok(pairs([("config/a/b", "s"), ("config/a/c", "g")]))
    );
    assert_eq!(
        agent.subtree("config").await,
        Ok(json!({"a": {"b": "s"}})),
        "the narrower member hides as a whole"
    );
    assert_eq!(agent.subtree("config/a").await, Ok(json!({"b": "s", "c": "g"})));

    let keys: Vec<String> = physical(&manager).await.into_iter().map(|(key, _)| key).collect();
    assert!(
        keys.contains(&"/sorna/golden/nodes/agents/i-1/".to_owned()),
        "{keys:?}"
    );
    assert!(
        keys.contains(&"/sorna/golden/sgroup/default/volumes/_mount".to_owned()),
        "{keys:?}"
    );
    assert!(keys.contains(&"/sorna/golden/ip".to_owned()), "{keys:?}");
    let refused = manager.put_in(Scope::Node, "ip", "x").await;
    assert!(
        matches!(refused, Err(Error::Terminal(Terminal::Invalid(_)))),
        "{refused:?}"
    );
}

#[test]
fn objects_flatten_to_text() {
    let dict = object(json!({
        "": "own", "s": "", "i": 5, "f": 1.5, "whole": 1.0, "big": 1e16, "small": 0.00001, "edge": 0.0001, "neg": -2.5e-7,
        "t": true, "x": {"": false, "y": {"z": "deep"}}, "empty": {}, "x/y": {"z": "later"},
    }));
    let expected = pairs([
        ("p", "own"),
        ("p/s", ""),
        ("p/i", "5"),
        ("p/f", "1.5"),
        ("p/whole", "1.0"),
        ("p/big", "1e+16"),
        ("p/small", "1e-05"),
        ("p/edge", "0.0001"),
        ("p/neg", "-2.5e-07"),
        ("p/t", "True"),
        ("p/x", "False"),
        ("p/x/y/z", "later"),
    ]);
    assert_eq!(flatten("p", &dict), Ok(expected.clone()));
    assert_eq!(flatten("p/", &dict), Ok(expected));
    assert_eq!(
        flatten("", &object(json!({"a": {"b": "1"}}))),
        Ok(pairs([("a/b", "1")]))
    );
    for refused in [json!({"a": null}), json!({"a": {"b": [1]}})] {
        assert!(flatten("p", &object(refused)).is_err());
    }
}

#[tokio::test]
async fn dictionaries_are_written_at_once_and_read_back() {
    let config = config().await;
    let dict = object(json!({"127.0.0.1%3A15000": {"": "http://127.0.0.1:15000", "username": "u"}}));
    let mut events = config.watch("config/", None).await.expect("watch");
    assert_eq!(config.put_dict("config/docker/registry", &dict).await, Ok(2));
    assert_eq!(
        config.subtree("config/docker/registry").await,
        Ok(Value::Object(dict))
    );
    let Some(WatchEvent::Changes { changes, .. }) = events.next().await else {
        panic!("expected changes")
    };
    let keys: Vec<&str> = changes.iter().map(Change::key).collect();
    let registry = "config/docker/registry/127.0.0.1%3A15000";
    assert_eq!(
        keys,
        [registry.to_owned(), format!("{registry}/username")],
        "one commit, logical keys"
    );
    assert_eq!(config.put_dict("config", &Map::new()).await, Ok(0));
}

#[tokio::test]
async fn prefix_deletion_has_no_segment_boundary() {
    let config = config().await;
    config
        .put_all(&pairs([
            ("manager/status", "running"),
            ("m", "1"),
            ("nodes/manager", "i-vm"),
        ]))
        .await
        .expect("put");
    assert_eq!(config.delete_prefix("m").await, Ok(2));
    assert_eq!(config.prefix("").await, Ok(pairs([("nodes/manager", "i-vm")])));
    assert_eq!(config.delete("/nodes/manager").await, Ok(true));
}

#[tokio::test]
async fn many_settings_may_need_several_transactions() {
    let config = config().await;
    let mut many: Vec<(String, String)> = (0..3 * MAX_TXN_OPS)
        .map(|i| (format!("k/{i:04}"), i.to_string()))
        .collect();
    many.push(("/k/0000".to_owned(), "last".to_owned()));
    config.put_all(&many).await.expect("put");
    let found = config.prefix("k/").await.expect("list");
    assert_eq!(found.len(), 3 * MAX_TXN_OPS);
    assert_eq!(found[0].1, "last");
}

#[tokio::test]
async fn replacement_is_whole_and_keeps_to_its_path() {
    let config = config().await;
    let path = "config/resource_slots";
    config
        .put_all(&pairs([
            ("config/resource_slots/cuda.device", "count"),
            ("config/resource_slots/a/b", "bytes"),
            ("config/resource_slots2", "x"),
        ]))
        .await
        .expect("put");
    let slots = object(json!({"tpu.device": "count", "a": "count"}));
    config.replace(path, &slots).await.expect("replace");
    let after = pairs([
        ("config/resource_slots/a", "count"),
        ("config/resource_slots/tpu.device", "count"),
        ("config/resource_slots2", "x"),
    ]);
    assert_eq!(config.prefix("config/").await, Ok(after.clone()));
    let revision = config.kv().get_prefix("").await.expect("list").revision;
    config.replace(path, &slots).await.expect("replace");
    assert_eq!(
        config.kv().get_prefix("").await.expect("list").revision,
        revision,
        "nothing to do, nothing done"
    );

    let racers = (0..10).map(|racer| {
        let config = config.clone();
        async move {
            config
                .replace(path, &object(json!({format!("only-{racer}"): "count"})))
                .await
        }
    });
    let outcomes = futures_util::future::join_all(racers).await;
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    assert_eq!(
        config.children(path).await.expect("children").len(),
        1,
        "one racer's whole, not a mixture"
    );
}

#[tokio::test]
async fn conditions_and_leases_reach_through() {
    let config = config().await;
    assert_eq!(
        config.compare_and_put("leader", Expect::Absent, "a").await,
        Ok(true)
    );
    assert_eq!(
        config.compare_and_put("leader", Expect::Absent, "b").await,
        Ok(false)
    );
    let lease = config
        .kv()
        .grant(std::time::Duration::from_secs(10))
        .await
        .expect("grant");
    let txn = Txn::new()
        .when("leader", Expect::Value("a".to_owned()))
        .put_leased("nodes/manager", "i-vm", lease);
    assert!(
        config
            .transact(txn.delete_prefix("lead"))
            .await
            .expect("transact")
            .succeeded
    );
    assert_eq!(
        physical(&config).await,
        pairs([("/sorna/golden/nodes/manager", "i-vm")])
    );
    config.kv().revoke(lease).await.expect("revoke");
    assert_eq!(physical(&config).await, Vec::new());
}
