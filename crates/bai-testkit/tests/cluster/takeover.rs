//! Work with a kernel goes on when the manager that began it is cut off, and once.

use std::sync::Arc;

use bai_model::KernelStatus;
use bai_testkit::FakeAgent;

use crate::site::{Proxies, Site, attach, eventually, manager, op, session, wanted};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_creation_is_taken_over_and_its_first_manager_writes_nothing() {
    let Some(site) = Site::start("taking work over") else {
        return;
    };
    let store = site.populate().await;
    let (before_one, before_two) = (Proxies::before(&site), Proxies::before(&site));
    let one = manager(&site, &before_one, 1).await;
    let two = manager(&site, &before_two, 2).await;
    let fake = Arc::new(FakeAgent::default());
    let _events = (attach(&one, &fake).await, attach(&two, &fake).await);

    fake.hold_creations(true);
    let asked = op(&one).await.unwrap();
    let creation = tokio::spawn({
        let one = Arc::clone(&one);
        async move { one.session_create(&asked, wanted("moved")).await }
    });
    let created = || {
        fake.calls()
            .iter()
            .filter(|call| *call == "create_kernel")
            .count()
    };
    eventually("the agent is asked", || async { (created() == 1).then_some(()) }).await;
    let kernel = store
        .reader()
        .kernels_with_status(&[KernelStatus::Preparing])
        .await
        .unwrap()[0]
        .id;
    let claim = format!("kernel/{kernel}");
    let holder = || async { Some(store.reader().claim_on(&claim).await.unwrap()?.lease) };
    assert_eq!(holder().await.as_deref(), one.name());

    // Cut off from the database, it cannot say that it lives.
    before_one.postgres.hold();
    eventually("the other manager has it", || async {
        (holder().await.as_deref() == two.name()).then_some(())
    })
    .await;
    eventually("the agent is asked again", || async {
        (created() == 2).then_some(())
    })
    .await;
    fake.hold_creations(false);
    eventually("the session runs", || async {
        let row = store.reader().kernel(kernel).await.unwrap()?;
        (row.status == Some(KernelStatus::Running)).then_some(())
    })
    .await;
    before_one.postgres.cut();
    before_one.postgres.pass();
    let answer = creation.await.unwrap();
    assert!(answer.is_ok(), "its requester gets the session: {answer:?}");
    assert_eq!(fake.kernels(), [kernel], "there is one");
    assert_eq!(holder().await, None, "nothing is left to do");

    // A session is ended through the manager that did not make it.
    let asked = op(&one).await.unwrap();
    one.session_destroy(&asked, &session("moved")).await.unwrap();
    assert_eq!(fake.kernels(), []);
    assert_eq!(store.reader().check_accounting().await.unwrap(), []);
    one.shutdown().await;
    two.shutdown().await;
}

/// An agent in one manager's process: what is asked of another manager is done where the agent is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_managers_agent_has_to_do_is_done_there() {
    let Some(site) = Site::start("agents of other managers") else {
        return;
    };
    let store = site.populate().await;
    let (before_one, before_two) = (Proxies::before(&site), Proxies::before(&site));
    let one = manager(&site, &before_one, 3).await;
    let two = manager(&site, &before_two, 4).await;
    let fake = Arc::new(FakeAgent::default());
    let _events = attach(&one, &fake).await;
    let asked = op(&one).await.unwrap();
    one.session_create(&asked, wanted("faraway")).await.unwrap();
    let asked = op(&two).await.unwrap();
    two.session_restart(&asked, &session("faraway")).await.unwrap();
    let stats = two.session_destroy(&asked, &session("faraway")).await.unwrap();
    assert!(stats.is_some(), "with the statistics");
    assert_eq!(fake.kernels(), []);
    assert_eq!(store.reader().check_accounting().await.unwrap(), []);
    one.shutdown().await;
    two.shutdown().await;
}
