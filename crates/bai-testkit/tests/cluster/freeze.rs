//! After all sessions were told to end, none begins behind the back of that.

use std::pin::pin;
use std::sync::Arc;

use bai_core::manager_status::{ManagerStatus, StatusGate};
use bai_testkit::{FakeAgent, Role};
use futures_util::poll;

use crate::site::{Proxies, Site, attach, manager, op, op_of, wanted};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_creation_that_was_admitted_before_all_sessions_ended_makes_none() {
    let Some(site) = Site::start("a creation beside the end of all sessions") else {
        return;
    };
    let store = site.populate().await;
    let (before_one, before_two) = (Proxies::before(&site), Proxies::before(&site));
    let one = manager(&site, &before_one, 5).await;
    let two = manager(&site, &before_two, 6).await;
    let fake = Arc::new(FakeAgent::default());
    let _events = (attach(&one, &fake).await, attach(&two, &fake).await);
    let (user, admin) = (
        op(&one).await.unwrap(),
        op_of(&two, Role::Superadmin).await.unwrap(),
    );
    two.session_create(&op(&two).await.unwrap(), wanted("running"))
        .await
        .unwrap();

    // It knows that sessions may begin, and is then held up on its way to the record.
    one.check_status(StatusGate::Running).await.unwrap();
    before_one.postgres.hold();
    let mut late = pin!(one.session_create(&user, wanted("late")));
    assert!(poll!(&mut late).is_pending(), "it waits for the database");
    two.manager_set_status(&admin, ManagerStatus::Frozen, true)
        .await
        .unwrap();
    assert_eq!(fake.kernels(), [], "all have ended");
    before_one.postgres.pass();
    let refused = late.await;
    assert!(refused.is_err(), "{refused:?}");
    assert_eq!(store.reader().count_live_sessions_total().await.unwrap(), 0);
    assert_eq!(fake.kernels(), []);

    // Nothing of it stays when sessions may begin again.
    two.manager_set_status(&admin, ManagerStatus::Running, false)
        .await
        .unwrap();
    let later = two.session_create(&op(&two).await.unwrap(), wanted("late")).await;
    later.unwrap();
    one.shutdown().await;
    two.shutdown().await;
}
