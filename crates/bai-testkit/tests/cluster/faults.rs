//! Each service cut off, refusing, silent and slow: what is answered meanwhile, and that it ends with the fault.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bai_core::manager_status::StatusGate;
use bai_core::{Error, Manager, Op};
use bai_testkit::FakeAgent;
use bai_testkit::services::Proxy;

use crate::site::{Proxies, Site, attach, eventually, manager, manager_with_timeout, op, session, wanted};

type Fault = (&'static str, fn(&Proxy));

/// What happens to connections.
const FAULTS: [Fault; 4] = [
    ("cut", Proxy::cut),
    ("refusing", Proxy::refuse),
    ("silent", Proxy::hold),
    ("slow", slow),
];

fn slow(proxy: &Proxy) {
    proxy.delay(Duration::from_millis(100));
}

/// One of each kind of request.
async fn try_all(manager: &Arc<Manager>, asked: &Op) -> [(&'static str, bai_core::Result<()>); 3] {
    let record = manager.session_exists(asked, &session("there")).await;
    [
        ("count", manager.admit(asked).await.map(|_| ())),
        ("gate", manager.check_status(StatusGate::Running).await),
        ("record", record.map(|is_there| assert!(is_there))),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_away_is_named_and_the_rest_goes_on() {
    let Some(site) = Site::start("faults of each service") else {
        return;
    };
    let store = site.populate().await;
    let proxies = Proxies::before(&site);
    let manager = manager(&site, &proxies, 20).await;
    let fake = Arc::new(FakeAgent::default());
    let _events = attach(&manager, &fake).await;
    let asked = op(&manager).await.unwrap();
    manager.session_create(&asked, wanted("there")).await.unwrap();

    let services = [
        (&proxies.postgres, Some("record"), "the database is not available"),
        (&proxies.etcd, Some("gate"), "etcd is not available"),
        // Nothing has to wait for it.
        (&proxies.redis, None, ""),
    ];
    for (proxy, needed_by, text) in services {
        for (fault, begin) in FAULTS {
            begin(proxy);
            if needed_by.is_some() && matches!(fault, "refusing" | "silent") {
                eventually("it is noticed", || async {
                    let answers = try_all(&manager, &asked).await;
                    answers.iter().any(|(_, answer)| answer.is_err()).then_some(())
                })
                .await;
            }
            for (what, answer) in try_all(&manager, &asked).await {
                match answer {
                    Ok(()) => {}
                    Err(Error::ServiceUnavailable(said)) => {
                        assert_eq!(Some(what), needed_by, "{text}, {fault}: {said}");
                        assert!(said.starts_with(text), "{fault}: {said}");
                    }
                    Err(error) => panic!("{what} with {text}, {fault}: {error}"),
                }
            }
            proxy.pass();
            proxy.cut();
            eventually("everything is served again", || async {
                let answers = try_all(&manager, &asked).await;
                answers.iter().all(|(_, answer)| answer.is_ok()).then_some(())
            })
            .await;
        }
    }
    // Sessions saw none of it.
    manager.session_destroy(&asked, &session("there")).await.unwrap();
    assert_eq!(fake.kernels(), []);
    assert_eq!(store.reader().check_accounting().await.unwrap(), []);
    manager.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_broker_makes_no_agent_lost() {
    const TIMEOUT: Duration = Duration::from_secs(4);
    let Some(site) = Site::start("a full broker") else {
        return;
    };
    let store = site.populate().await;
    let proxies = Proxies::before(&site);
    let manager = manager_with_timeout(&site, &proxies, 21, TIMEOUT).await;
    let fake = Arc::new(FakeAgent::default());
    let _events = attach(&manager, &fake).await;
    let alive = async || store.reader().addresses_of_agents().await.unwrap().len();
    assert_eq!(alive().await, 1);
    // It answers, but notes no heartbeat.
    site.redis.fill_memory();
    let begun = Instant::now();
    eventually("heartbeats are missing for long enough", || async {
        assert_eq!(alive().await, 1, "it is there");
        (begun.elapsed() > TIMEOUT * 2).then_some(())
    })
    .await;
    site.redis.make_room();
    manager.shutdown().await;
}
