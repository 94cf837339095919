//! What ends streams that nobody told this manager of: their sessions end elsewhere, and who has them may not any more.

use bai_core::auth::CREDENTIAL_TTL;
use bai_model::time::Clock as _;
use bai_testkit::{Api, Request, Role};
use futures_util::SinkExt;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use super::events::Events;
use super::{Stream, close_code, next, open};
use crate::api::{create, until_called};

const ALL: &str = "/stream/kernel/_/events";
const OF_USER: &str = "/stream/kernel/_/events?ownerAccessKey=AKIANABBDUSEREXAMPLE";

/// One stream of each kind to one session, none of which ends by itself.
struct Streams {
    terminal: Stream,
    tunnel: Stream,
    run: Stream,
    asks: Stream,
    events: Events,
}

impl Streams {
    async fn open(api: &Api) -> Self {
        let stream = async |kind: &str| {
            let target = format!("/stream/kernel/watched/{kind}");
            open(api, Role::User, &target).await.unwrap()
        };
        let mut run = stream("execute").await;
        let frame = json!({ "mode": "query", "code": "wait" }).to_string();
        run.send(Message::text(frame)).await.unwrap();
        until_called(api, "execute").await;
        let mut asks = stream("execute").await;
        let frame = json!({ "mode": "query", "code": "input" }).to_string();
        asks.send(Message::text(frame)).await.unwrap();
        assert_eq!(next(&mut asks).await["status"], "waiting-input");
        Self {
            terminal: stream("pty").await,
            tunnel: stream("tcpproxy?app=echo").await,
            run,
            asks,
            events: Events::open(api, of("/stream/kernel/watched/events")).await,
        }
    }

    /// The codes with which all of them end.
    async fn ended(mut self) -> [u16; 4] {
        while self.events.next().await.is_some() {}
        [
            close_code(&mut self.terminal).await,
            close_code(&mut self.tunnel).await,
            close_code(&mut self.run).await,
            close_code(&mut self.asks).await,
        ]
    }
}

fn of(target: &str) -> Request {
    Request::new(Role::User, "GET", target)
}

async fn start() -> Api {
    let api = Api::start().await;
    api.agent.open_services().await;
    create(&api, Role::User, "watched").await;
    api
}

/// Nobody tells this manager: it sees it in the record.
#[tokio::test]
async fn a_session_that_another_manager_ended_takes_its_streams_along() {
    let api = start().await;
    let streams = Streams::open(&api).await;
    let kernel = api.agent.kernels()[0];
    let mut tx = api.store.begin().await.unwrap();
    assert!(
        tx.terminate_kernel(kernel, "elsewhere", api.clock.now(), None)
            .await
            .unwrap()
    );
    tx.commit().await.unwrap();
    assert_eq!(streams.ended().await, [1000, 1001, 1000, 1000]);
}

#[tokio::test]
async fn who_is_deactivated_loses_all_streams() {
    let api = start().await;
    let cases = [
        ("keypairs", "access_key = 'AKIANABBDUSEREXAMPLE'"),
        ("users", "email = 'user@lablup.com'"),
        ("domains", "name = 'default'"),
    ];
    for (table, whose) in cases {
        let set = |active: bool| format!("UPDATE {table} SET is_active = {active} WHERE {whose}");
        let streams = Streams::open(&api).await;
        let mut all = Events::open(&api, of(ALL)).await;
        let mut others = Events::open(&api, Request::new(Role::Monitor, "GET", ALL)).await;
        if api.psql(&set(false)).await.is_none() {
            println!("SKIPPED: streams of who is deactivated: nobody else can open the embedded database");
            return;
        }
        // What was read before is not believed for longer.
        api.clock.advance(CREDENTIAL_TTL);
        let codes = streams.ended().await;
        // The end of the other run interrupts this one, which may be first to notice.
        let of_run = [1000, 1008].contains(&codes[2]);
        assert!(
            of_run && codes[..2] == [1008; 2] && codes[3] == 1008,
            "{table}: {codes:?}"
        );
        while all.next().await.is_some() {}
        api.psql(&set(true)).await;
        api.clock.advance(CREDENTIAL_TTL);
        if table != "domains" {
            assert_eq!(create(&api, Role::Monitor, table).await[0], 201);
            assert_eq!(others.until("kernel_started").await[0], "kernel_preparing");
        }
    }
}

#[tokio::test]
async fn who_is_no_administrator_any_more_loses_the_streams_of_others() {
    let api = start().await;
    let admins = |target| Request::new(Role::DomainAdmin, "GET", target);
    let mut own = Events::open(&api, admins(ALL)).await;
    let mut others = Events::open(&api, admins(OF_USER)).await;
    let set = "UPDATE keypairs SET is_admin = false WHERE access_key = 'AKIAHUKCHDEZGEXAMPLE'";
    if api.psql(set).await.is_none() {
        println!(
            "SKIPPED: streams of who is no administrator any more: nobody else can open the embedded database"
        );
        return;
    }
    api.clock.advance(CREDENTIAL_TTL);
    while others.next().await.is_some() {}
    assert_eq!(create(&api, Role::DomainAdmin, "mine").await[0], 201);
    own.until("kernel_started").await;
}
