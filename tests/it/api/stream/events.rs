//! `/stream/kernel/{session}/events`: server-sent events.

use std::time::Duration;

use axum::body::Body;
use bai_testkit::{Api, Request, Role};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::api::create;

const USER: &str = "AKIANABBDUSEREXAMPLE";

/// Events as they come.
pub(super) struct Events {
    body: Body,
    text: String,
}

#[derive(Debug)]
pub(super) struct Event {
    pub id: String,
    pub name: String,
    pub data: Value,
}

impl Events {
    pub async fn open(api: &Api, request: Request) -> Self {
        let target = request.target.clone();
        let answer = api.follow(request).await;
        assert_eq!(answer.status(), 200, "{target}");
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        Self {
            body: answer.into_body(),
            text: String::new(),
        }
    }

    /// The next event; `None` at the end.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let field = |name: &str| {
                    let lines = block.lines();
                    let value = lines
                        .filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                        .next();
                    value.unwrap_or_default().to_owned()
                };
                let event = Event {
                    id: field("id"),
                    name: field("event"),
                    data: serde_json::from_str(&field("data")).unwrap_or_default(),
                };
                self.text = rest.to_owned();
                return Some(event);
            }
            let frame = tokio::time::timeout(std::time::Duration::from_secs(30), self.body.frame());
            let bytes = frame
                .await
                .expect("a frame in time")?
                .unwrap()
                .into_data()
                .unwrap();
            self.text.push_str(std::str::from_utf8(&bytes).unwrap());
        }
    }

    /// Reads up to an event of this name, and gives the names on the way.
    pub async fn until(&mut self, name: &str) -> Vec<String> {
        let mut names = Vec::new();
        while names.last().is_none_or(|last| last != name) {
            names.push(self.next().await.expect("an event").name);
        }
        names
    }
}

fn events(role: Role, target: &str) -> Request {
    Request::new(role, "GET", target)
}

const LIFE: [&str; 5] = [
    "kernel_preparing",
    "kernel_started",
    "kernel_restarting",
    "kernel_started",
    "kernel_terminated",
];

async fn live(api: &Api, name: &str) {
    create(api, Role::User, name).await;
    let target = format!("/kernel/{name}");
    api.send(Request::new(Role::User, "PATCH", &target)).await;
    api.send(Request::new(Role::User, "DELETE", &target)).await;
}

#[tokio::test]
async fn a_life_is_told_in_order_to_those_who_may_know() {
    let api = Api::start().await;
    let all = "/stream/kernel/_/events";
    let of_user = format!("{all}?ownerAccessKey={USER}");
    let mut own = Events::open(&api, events(Role::User, all)).await;
    let mut admins = Events::open(&api, events(Role::DomainAdmin, &of_user)).await;
    let mut others = Events::open(&api, events(Role::Monitor, all)).await;
    let mut only = Events::open(&api, events(Role::User, &format!("{all}?sessionId=second"))).await;
    live(&api, "first").await;
    live(&api, "second").await;
    for listener in [&mut own, &mut admins] {
        for _ in ["first", "second"] {
            let mut names = listener.until("kernel_terminated").await;
            names.retain(|name| name != "kernel_terminating");
            assert_eq!(names, LIFE);
        }
    }
    let event = only.next().await.unwrap();
    assert_eq!(event.data["sessionName"], "second");
    assert_eq!(event.data["ownerAccessKey"], USER);
    create(&api, Role::Monitor, "third").await;
    assert_eq!(others.next().await.unwrap().data["sessionName"], "third");
    let of_monitor = format!("{all}?ownerAccessKey=AKIANAMONITOREXAMPLE");
    assert_eq!(api.get(Role::User, &of_monitor).await.status, 403);
}

#[tokio::test]
async fn the_events_of_one_session_end_with_it() {
    let api = Api::start().await;
    create(&api, Role::User, "single").await;
    let target = "/stream/kernel/single/events";
    assert_eq!(api.get(Role::Monitor, target).await.status, 404);
    let mut listener = Events::open(&api, events(Role::User, target)).await;
    api.send(Request::new(Role::User, "DELETE", "/kernel/single"))
        .await;
    let ended = loop {
        let event = listener.next().await.unwrap();
        if event.name == "kernel_terminated" {
            break event;
        }
    };
    assert_eq!(ended.data["reason"], "user-requested");
    assert!(listener.next().await.is_none());
}

#[tokio::test]
async fn who_comes_again_misses_nothing() {
    let api = Api::start().await;
    let all = "/stream/kernel/_/events";
    let mut listener = Events::open(&api, events(Role::User, all)).await;
    live(&api, "first").await;
    let first = listener.next().await.unwrap();
    listener.until("kernel_terminated").await;
    drop(listener);
    live(&api, "second").await;
    let mut request = events(Role::User, all);
    request.headers.push(("last-event-id".into(), first.id));
    let mut listener = Events::open(&api, request).await;
    let mut names = listener.until("kernel_terminated").await;
    names.retain(|name| name != "kernel_terminating");
    assert_eq!(names, LIFE[1..]);
    let event = listener.next().await.unwrap();
    assert_eq!(
        (event.name.as_str(), &event.data["sessionName"]),
        (LIFE[0], &json!("second"))
    );

    let mut request = events(Role::User, all);
    request.headers.push(("last-event-id".into(), "yesterday".into()));
    let refused = api.send(request).await;
    assert_eq!(refused.status, 400, "{}", refused.json());
}

#[tokio::test]
async fn who_is_too_slow_is_told_so_and_left() {
    let api = Api::start().await;
    let mut listener = Events::open(&api, events(Role::User, "/stream/kernel/_/events")).await;
    let mut seen = Events::open(&api, events(Role::User, "/stream/kernel/_/events")).await;
    // Each life is five events or six. That they were told is waited for, but a broker may lose some.
    for number in 0..260 {
        let name = format!("life-{number}");
        live(&api, &name).await;
        _ = tokio::time::timeout(Duration::from_secs(5), seen.until("kernel_terminated")).await;
    }
    assert_eq!(listener.until("dropped").await, ["dropped"]);
    assert!(listener.next().await.is_none());
}

#[tokio::test]
async fn listeners_are_let_go_when_the_server_stops() {
    let api = Api::start().await;
    let mut listener = Events::open(&api, events(Role::User, "/stream/kernel/_/events")).await;
    api.stop_serving().await;
    assert!(listener.next().await.is_none());
}
