//! Requests that the original system answered, sent to ours (`tests/recordings/`, made by `convert.py` there).
//!
//! The clock stands where the recording was made, so that dates and signatures are replayed as they were; what is signed
//! again is said at [`headers`]. Compared are the status, the headers that matter and the body. Every knowing difference is
//! a line of `differences.txt`, which names a row of `docs/compat/deviations.md`; the list is exact, in both directions.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use bai_gateway::auth::date;
use bai_gateway::auth::signature::{Algorithm, Signed, sign};
use bai_model::ResourceSlot;
use bai_model::time::Clock;
use bai_proto::event::AgentEvent;
use bai_testkit::{Answer, Api, FakeAgent, Role};
use chrono::{DateTime, NaiveDate, Utc};
use http::{HeaderMap, HeaderName};
use serde_json::{Value, json};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/recordings");

/// How much of a body must be as it was.
#[derive(Clone, Copy)]
enum Bodies {
    Exact,
    /// Of successes only names and types: what was run, and where, was another thing.
    ShapeOfSuccess,
}

/// What the recordings left out: the status that was set before an exchange.
const STATUS_BEFORE: &[(&str, &str)] = &[("status-frozen", "frozen"), ("status-running", "running")];

/// The agent has what the original's had.
async fn resize_agent(api: &Api) {
    let amounts = json!({ "cpu": "4", "mem": "25276502016" });
    let mut info = FakeAgent::info();
    info.available_slots = ResourceSlot::from_stored(&amounts).0;
    let heartbeat = AgentEvent::InstanceHeartbeat(info.clone());
    api.events.send(heartbeat).await.unwrap();
    let reader = api.store.reader();
    while reader.alive_agents().await.unwrap()[0].available_slots != info.available_slots {
        tokio::task::yield_now().await;
    }
}

/// Replays a fixture; gives what differs by name.
async fn replay(file: &str, bodies: Bodies) -> BTreeMap<String, String> {
    let text = fs::read_to_string(Path::new(FOLDER).join(format!("{file}.jsonl"))).unwrap();
    let api = Api::start().await;
    resize_agent(&api).await;
    let mut differences = BTreeMap::new();
    for line in text.lines() {
        let recorded: Value = serde_json::from_str(&translate(line)).unwrap();
        let at: DateTime<Utc> = recorded["at"].as_str().unwrap().parse().unwrap();
        api.clock.advance(at - api.clock.now());
        if let Some((_, status)) = STATUS_BEFORE.iter().find(|(name, _)| recorded["name"] == **name) {
            let set = json!({ "status": status });
            api.call(Role::Superadmin, "PUT", "/manager/status", &set).await;
        }
        let is_translated = translate(line) != line;
        let headers = headers(&recorded, is_translated);
        let word = |key: &str| recorded[key].as_str().unwrap();
        let body = word("body").as_bytes().to_vec();
        let answer = api.send_raw(word("method"), word("path"), headers, body).await;
        if let Some(difference) = difference(&recorded, &answer, bodies) {
            differences.insert(format!("{file}/{}", word("name")), difference);
        }
    }
    differences
}

/// The recording in terms of our cast: the user's password, and the image that the scripted agent offers.
fn translate(line: &str) -> String {
    line.replace("C8qnIo29", bai_testkit::cast::PASSWORD)
        .replace("127.0.0.1:15000/lablup/", "lablup/")
}

/// The headers as recorded. The accounts that the recording made have other secrets here, and a changed body another
/// hash: where the signature was right, it is made again.
fn headers(recorded: &Value, is_translated: bool) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for pair in recorded["headers"].as_array().unwrap() {
        let name: HeaderName = pair[0].as_str().unwrap().parse().unwrap();
        headers.append(name, pair[1].as_str().unwrap().parse().unwrap());
    }
    let Some(signer) = recorded["signer"].as_str() else {
        return headers;
    };
    let role = Role::SIGNING
        .into_iter()
        .find(|role| role.keypair().is_some_and(|keypair| keypair.0 == signer))
        .unwrap();
    if role == Role::Superadmin && !is_translated {
        return headers;
    }
    let text = headers["authorization"].to_str().unwrap().to_owned();
    let (start, _) = text.rsplit_once(':').unwrap();
    let method = start.split("signMethod=").nth(1).unwrap();
    let method = method.split([',', ' ']).next().unwrap();
    let raw_date = headers["date"].to_str().unwrap().to_owned();
    let signature = sign(&Signed {
        algorithm: Algorithm::parse(method).unwrap(),
        secret_key: role.keypair().unwrap().1,
        signature: "",
        date: &date::parse(&raw_date, NaiveDate::MIN).unwrap(),
        method: recorded["method"].as_str().unwrap(),
        target: recorded["path"].as_str().unwrap(),
        headers: &headers,
        body: recorded["body"].as_str().unwrap().as_bytes(),
    });
    headers.insert("authorization", format!("{start}:{signature}").parse().unwrap());
    headers
}

/// The first thing that is not as it was.
fn difference(recorded: &Value, answer: &Answer, bodies: Bodies) -> Option<String> {
    let status = recorded["status"].as_u64().unwrap();
    if status != u64::from(answer.status) {
        let body = String::from_utf8_lossy(&answer.body);
        return Some(format!("status {status}, ours {} with {body}", answer.status));
    }
    for pair in recorded["answer_headers"].as_array().unwrap() {
        let (name, value) = (pair[0].as_str().unwrap(), pair[1].as_str().unwrap());
        let ours = answer.header(name);
        if list(value) != list(ours) {
            return Some(format!("header {name}: {value}, ours {ours:?}"));
        }
    }
    let theirs = &recorded["answer"];
    if theirs.is_null() {
        return None;
    }
    let view = |body: &Value| match bodies {
        Bodies::ShapeOfSuccess if status < 400 => shape(body),
        _ => normal(body),
    };
    let (theirs, ours) = (view(theirs), view(&answer.json()));
    (theirs != ours).then(|| format!("body {theirs}, ours {ours}"))
}

/// The words of a header value such as `Allow`, whose order means nothing.
fn list(value: &str) -> Vec<String> {
    // The boundary of a multipart body is random.
    let mut words: Vec<_> = value
        .split([',', ';'])
        .filter(|word| !word.trim().starts_with("boundary="))
        .map(|word| word.trim().to_ascii_lowercase())
        .collect();
    words.sort();
    words
}

/// Without secrets, which are other ones here, and presets by name: nobody promised an order.
fn normal(body: &Value) -> Value {
    match body {
        Value::Array(items) => {
            let mut items: Vec<Value> = items.iter().map(normal).collect();
            if items.iter().all(|item| item["resource_slots"].is_object()) {
                items.sort_by_key(|item| item["name"].to_string());
            }
            items.into()
        }
        Value::Object(members) => members
            .iter()
            .map(|(key, value)| {
                let value = if key == "secret_key" {
                    json!("*")
                } else {
                    normal(value)
                };
                (key.clone(), value)
            })
            .collect(),
        other => other.clone(),
    }
}

/// Names and types of the outer two levels; numbers, texts and nulls of optional members are all leaves.
fn shape(body: &Value) -> Value {
    let leaf = |value: &Value| match value {
        Value::Array(_) => json!("list"),
        Value::Object(members) => json!(members.keys().collect::<Vec<_>>()),
        _ => json!("leaf"),
    };
    match body {
        Value::Object(members) => members
            .iter()
            .filter(|(key, _)| *key != "stats")
            .map(|(key, value)| (key.clone(), leaf(value)))
            .collect(),
        other => leaf(other),
    }
}

#[tokio::test]
async fn our_answers_are_the_originals_but_for_the_listed_differences() {
    let mut found = replay("basic", Bodies::Exact).await;
    found.append(&mut replay("auth", Bodies::Exact).await);
    for module in ["config", "manager", "resource"] {
        found.append(&mut replay(module, Bodies::Exact).await);
    }
    found.append(&mut replay("session", Bodies::ShapeOfSuccess).await);
    let listed = fs::read_to_string(Path::new(FOLDER).join("differences.txt")).unwrap();
    let listed: BTreeMap<&str, &str> = listed
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.split_once(": ").unwrap())
        .collect();
    let mut wrong = Vec::new();
    for (name, difference) in &found {
        if !listed.contains_key(name.as_str()) {
            wrong.push(format!("{name} differs and is not listed: {difference}"));
        }
    }
    let deviations = fs::read_to_string(Path::new(FOLDER).join("../../docs/compat/deviations.md")).unwrap();
    for (name, row) in &listed {
        if !deviations.contains(&format!("| {row} |")) {
            wrong.push(format!("{name}: docs/compat/deviations.md has no row `{row}`"));
        }
        if !found.contains_key(*name) {
            wrong.push(format!("{name} is listed and no longer differs: remove its line"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
