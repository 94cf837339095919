//! A whole site: `bai gateway` on PostgreSQL, etcd and Redis, a separate `bai agent` with Docker, and the published clients.

use bai_testkit::services::{Docker, rootfs};

use super::Place;
use crate::gateway::cluster::{Services, run};
use crate::published::{Keypair, Published};

/// Of [`Services::set_up`].
const ADMIN: Keypair<'_> = ("AKIATESTTESTTESTTEST", "test");

#[tokio::test(flavor = "multi_thread")]
async fn clients_use_sessions_in_containers_of_another_host() {
    const WHAT: &str = "a site with a separate agent";
    let Some(services) = Services::start(WHAT) else {
        return;
    };
    let engine = match Docker::start() {
        Ok(engine) => engine,
        Err(missing) => return println!("SKIPPED: {WHAT}, because {missing}"),
    };
    let root = tempfile::tempdir().unwrap();
    if let Err(error) = rootfs::shell(root.path()).and_then(|()| rootfs::python(root.path())) {
        return println!("SKIPPED: {WHAT}, because an image cannot be made: {error:#}");
    }
    // Any image, as far as Backend.AI goes, but for the service that the clients open.
    let labels = ["LABEL ai.backend.service-ports=web:http:8000".to_owned()];
    engine.import(root.path(), "some-python:3", &labels).unwrap();

    let database = services.postgres.database(None);
    let manager = services.place(&database, "");
    services.set_up(&manager);
    let mut gateway = manager.start(&[]);

    let mut host = Place::with_runtime(
        &services.etcd.address(),
        "site",
        "i-host",
        "runtime = 'docker'\nnetwork = 'none'",
    );
    host.engine = Some(engine.host());
    let mut agent = host.start();
    let endpoint = manager.url("");
    let add = || {
        let mut add = std::process::Command::new(crate::server::bai());
        add.args(["image", "add", "some-python:3"])
            .env("BACKEND_ENDPOINT", &endpoint)
            .env("BACKEND_ACCESS_KEY", ADMIN.0)
            .env("BACKEND_SECRET_KEY", ADMIN.1);
        add.output().unwrap().status.success()
    };
    gateway.wait_for("the agent and its image", |_| add());
    run(
        &manager,
        &["etcd", "alias", "python", "index.docker.io/library/some-python:3"],
    );
    for client in Published::all() {
        client.goes_through_a_session(&endpoint, ADMIN);
    }

    agent.signal("-TERM");
    assert!(agent.ended().await.success(), "{}", agent.log());
    assert_eq!(engine.docker(&["ps", "-aq"]).unwrap(), "", "no container is left");
    assert_eq!(
        database.psql("SELECT count(*) FROM kernels WHERE status <> 'TERMINATED'"),
        "0",
        "{}",
        gateway.log()
    );
    gateway.stop();
}
