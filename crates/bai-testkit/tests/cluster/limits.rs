//! Limits hold whichever manager places a session, though each remembers what it placed by the last time.

use std::sync::Arc;

use bai_core::{Error, Manager};
use bai_testkit::FakeAgent;

use crate::site::{Proxies, Site, attach, manager, op, session, wanted};

/// More than there is room for.
const MANY: usize = 64;

async fn create(manager: &Arc<Manager>, number: usize) -> bai_core::Result<()> {
    let asked = op(manager).await?;
    manager
        .session_create(&asked, wanted(&format!("session-{number}")))
        .await
        .map(|_| ())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_manager_placed_counts_for_the_other_and_what_it_ended_is_free() {
    let Some(site) = Site::start("limits with two managers") else {
        return;
    };
    let store = site.populate().await;
    let proxies = Proxies::before(&site);
    let (one, two) = (
        manager(&site, &proxies, 7).await,
        manager(&site, &proxies, 8).await,
    );
    let fake = Arc::new(FakeAgent::default());
    let _events = (attach(&one, &fake).await, attach(&two, &fake).await);
    let live = async || store.reader().count_live_sessions_total().await.unwrap();
    let is_refusal =
        |error: &Error| matches!(error, Error::QuotaExceeded(_) | Error::InstanceNotAvailable(_));

    let mut made = 0;
    let refused = loop {
        // Each twice, so that both place by what they remember and by what the other one did.
        let manager = if made % 4 < 2 { &one } else { &two };
        match create(manager, made).await {
            Ok(()) => made += 1,
            Err(error) => break error,
        }
        assert!(made < MANY, "there is no limit");
    };
    assert!(is_refusal(&refused), "{refused}");
    assert!(made > 2, "{made}");
    assert_eq!(live().await, i64::try_from(made).unwrap());
    for manager in [&one, &two] {
        let refused = create(manager, made).await.unwrap_err();
        assert!(is_refusal(&refused), "{refused}");
    }

    // In the memory of both, what has ended is still there.
    for (ends, places) in [(&one, &two), (&two, &two), (&two, &one)] {
        let asked = op(ends).await.unwrap();
        ends.session_destroy(&asked, &session("session-0")).await.unwrap();
        create(places, 0).await.unwrap();
        let refused = create(places, made).await.unwrap_err();
        assert!(is_refusal(&refused), "{refused}");
    }
    assert_eq!(live().await, i64::try_from(made).unwrap());
    one.shutdown().await;
    two.shutdown().await;
}
