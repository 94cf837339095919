//! The status of the managers is told to anybody, and costs the database little however many ask.

use std::sync::Arc;
use std::thread;

use futures_util::future::join_all;

use crate::site::{Proxies, Site, eventually, manager, op};

/// Nobody changes what is counted until this is ended.
const HOLD: &str = "LOCK TABLE kernels IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(3600)";
const RELEASE: &str =
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LOCK TABLE kernels%'";
const IS_HELD: &str = "SELECT count(*) FROM pg_locks WHERE granted AND mode = 'AccessExclusiveLock' AND relation = 'kernels'::regclass";
const COUNTING: &str = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'SELECT count(*) AS n%'";

/// Time enough for a second one to come.
const LOOKS: usize = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_asks_for_the_status_at_the_same_moment_is_told_by_one_statement() {
    let Some(site) = Site::start("the status asked for by many").map(Arc::new) else {
        return;
    };
    let _store = site.populate().await;
    let proxies = Proxies::before(&site);
    let manager = manager(&site, &proxies, 30).await;
    let asked = op(&manager).await.unwrap();
    // What it needs besides is known from here on.
    manager.manager_status(&asked).await.unwrap();

    let ask = |sql| site.postgres.psql("postgres", sql).unwrap();
    let holder = {
        let site = Arc::clone(&site);
        thread::spawn(move || site.postgres.psql("postgres", HOLD))
    };
    eventually("sessions cannot be counted", || async {
        (ask(IS_HELD) == "1").then_some(())
    })
    .await;
    let mut looks = 0;
    let look = async {
        eventually("one statement waits", || {
            looks += 1;
            let counting = ask(COUNTING);
            assert!(["0", "1"].contains(&counting.as_str()), "{counting} wait");
            std::future::ready((counting == "1" && looks > LOOKS).then_some(()))
        })
        .await;
        ask(RELEASE);
    };
    let questions = join_all((0..16).map(|_| manager.manager_status(&asked)));
    let (answers, ()) = tokio::join!(questions, look);
    for answer in answers {
        assert_eq!(answer.unwrap().active_sessions, 0);
    }
    assert!(holder.join().unwrap().is_err(), "it was broken off");
    manager.shutdown().await;
}
