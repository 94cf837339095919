//! Units of work, kernels and agents.

use bai_model::{AgentStatus, KernelStatus};
use serde_json::json;

use super::*;
use crate::agent::AgentChange;
use crate::kernel::KernelPorts;

fn ports() -> KernelPorts {
    KernelPorts {
        container_id: "0123abcd".to_owned(),
        kernel_host: Some("127.0.0.1".to_owned()),
        repl_in_port: 30_001,
        repl_out_port: 30_002,
        stdin_port: 0,
        stdout_port: 65_535,
        service_ports: json!([{"name": "jupyter", "protocol": "http", "container_port": 8080, "host_port": 30_003}]),
    }
}

/// The kernel that holds a session's name of [`key`].
async fn holder(reader: &Reader, name: &str) -> Option<KernelId> {
    let found = reader.live_kernels_by_name(&[(&key(), name)]).await;
    let holder = found.expect("a look-up").remove(&(key(), name.to_owned()));
    holder.map(|row| row.id)
}

/// What is not committed never was, and a unit of work sees its own changes.
pub async fn units_of_work_roll_back(store: Store) {
    seed(&store).await;
    let mut tx = begin(&store).await;
    tx.insert_kernel(&kernel(1, "gone")).await.expect("a kernel");
    assert!(tx.kernel(kernel_id(1)).await.expect("a look-up").is_some());
    assert_eq!(tx.count_live_sessions(&key()).await.expect("a count"), 1);
    drop(tx);
    let reader = store.reader();
    assert!(reader.kernel(kernel_id(1)).await.expect("a look-up").is_none());
    let (used, occupied) = counters(&reader, "i-one").await;
    assert_eq!(used, 0);
    assert_slots(&occupied, &Default::default());
    add_kernel(&store, &kernel(1, "kept")).await;
    assert!(reader.kernel(kernel_id(1)).await.expect("a look-up").is_some());
}

/// Records that a kernel runs; whether it was in one of the states until now.
async fn has_started(tx: &mut Tx, kernel: KernelId, from: &[KernelStatus]) -> bool {
    let started = tx.kernels_started(&[(kernel, &ports())], from).await;
    started.expect("a start") == [kernel]
}

/// Several kernels in one statement each count where they would one by one, and of several starts those that were waited for
/// are recorded.
pub async fn many_begin_and_start_together(store: Store) {
    seed(&store).await;
    let mut kernels: Vec<_> = (1..=3)
        .map(|number| kernel(number, &format!("session{number}")))
        .collect();
    kernels[1].agent = "i-two".into();
    let other = keypair("AKIAOTHER", &user(1, "user", UserRole::User));
    kernels[2].access_key = other.access_key.clone();
    let mut tx = begin(&store).await;
    tx.insert_keypair(&other, at(0)).await.expect("a keypair");
    tx.insert_kernels(&[]).await.expect("nothing");
    tx.insert_kernels(&kernels).await.expect("kernels");
    tx.commit().await.expect("a commit");
    let reader = store.reader();
    let other_key = other.access_key.clone();
    let names = [
        (&key(), "session1"),
        (&other_key, "session3"),
        (&key(), "session3"),
        (&other_key, "session1"),
        (&key(), "session1"),
        (&key(), "session2"),
    ];
    let mut holders = reader.live_kernels_by_name(&names).await.expect("a look-up");
    let mut holder = |owner: &AccessKey, name: &str| {
        let row = holders.remove(&(owner.clone(), name.to_owned()));
        row.map(|row| row.id)
    };
    assert_eq!(holder(&key(), "session1"), Some(kernel_id(1)));
    assert_eq!(holder(&key(), "session2"), Some(kernel_id(2)));
    assert_eq!(holder(&other_key, "session3"), Some(kernel_id(3)));
    assert!(holders.is_empty(), "only those who have the name: {holders:?}");
    assert_eq!(counters(&reader, "i-one").await.0, 2);
    for (agent, number) in [("i-one", 2), ("i-two", 1)] {
        let expected = kernels[0].occupied_slots.times(number);
        assert_slots(&counters(&reader, agent).await.1, &expected);
    }
    assert_eq!(reader.check_accounting().await.expect("a check"), []);

    // Whoever finds an obstacle gives the unit of work up.
    let mut others: Vec<_> = (4..=6)
        .map(|number| kernel(number, &format!("session{}", number / 2)))
        .collect();
    let mut tx = begin(&store).await;
    let obstacles = tx.insert_kernels(&others).await.expect("an answer");
    let taken = [4, 5].map(kernel_id).to_vec();
    assert_eq!((obstacles.taken, obstacles.gone), (taken, vec![]));
    drop(tx);
    others[0].sess_id = "new".to_owned();
    others[0].agent = "i-two".into();
    let mut tx = begin(&store).await;
    let two = "i-two".into();
    tx.set_agent_status(&two, AgentStatus::Lost, None)
        .await
        .expect("a loss");
    let obstacles = tx.insert_kernels(&others[..1]).await.expect("an answer");
    assert_eq!((obstacles.taken, obstacles.gone), (vec![], vec![two]));
    drop(tx);

    let mut tx = begin(&store).await;
    tx.terminate_kernel(kernel_id(2), "test", at(9), None)
        .await
        .expect("an end");
    let (one, mut other) = (ports(), ports());
    other.kernel_host = None;
    other.service_ports = json!([]);
    let starts = [(kernel_id(3), &other), (kernel_id(2), &one), (kernel_id(1), &one)];
    let mut started = tx
        .kernels_started(&starts, &[KernelStatus::Preparing])
        .await
        .expect("starts");
    tx.commit().await.expect("a commit");
    started.sort();
    assert_eq!(started, [kernel_id(1), kernel_id(3)]);
    for (id, ports) in [(1, &one), (3, &other)] {
        let row = reader.kernel(kernel_id(id)).await.expect("a look-up");
        let row = row.expect("a kernel");
        assert_eq!(row.status, Some(KernelStatus::Running));
        assert_eq!(row.kernel_host, ports.kernel_host);
        assert_eq!((row.repl_in_port, row.stdout_port), (30_001, 65_535));
        assert_eq!(row.service_ports.as_ref(), Some(&ports.service_ports));
    }
    let ended = reader.kernel(kernel_id(2)).await.expect("a look-up");
    assert_eq!(ended.expect("a kernel").status, Some(KernelStatus::Terminated));
}

/// Every column on the way from creation to termination.
pub async fn kernels_live_and_end(store: Store) {
    seed(&store).await;
    let mut new = kernel(1, "session");
    new.tag = Some("label".to_owned());
    add_kernel(&store, &new).await;
    let reader = store.reader();
    let row = reader
        .session_by_name(&key(), "session")
        .await
        .expect("a look-up")
        .expect("a session");
    assert_eq!(
        (row.id, row.sess_id.as_deref(), row.role.as_str()),
        (new.id, Some("session"), "master")
    );
    assert_eq!(
        (row.agent.as_ref(), row.agent_addr.as_str()),
        (Some(&new.agent), new.agent_addr.as_str())
    );
    assert_eq!(
        (row.domain_name.as_str(), row.group_id, row.user_uuid),
        (DEFAULT, group_id(1), user_id(1))
    );
    assert_eq!(row.access_key, Some(key()));
    assert_eq!(
        (row.image.as_deref(), row.registry.as_deref()),
        (Some(&*new.image), Some(&*new.registry))
    );
    assert_eq!(
        (row.tag.as_deref(), row.status),
        (Some("label"), Some(KernelStatus::Preparing))
    );
    assert_slots(&row.occupied_slots, &new.occupied_slots);
    assert_eq!(
        (row.occupied_shares, row.environ),
        (json!({}), new.environ.clone())
    );
    assert_eq!(
        (row.container_id, row.kernel_host, row.service_ports),
        (None, None, None)
    );
    assert_eq!(
        [
            row.repl_in_port,
            row.repl_out_port,
            row.stdin_port,
            row.stdout_port
        ],
        [0; 4]
    );
    assert_eq!((row.created_at, row.terminated_at), (Some(new.created_at), None));
    assert_eq!(
        (row.status_info, row.num_queries, row.last_stat),
        (None, Some(0), None)
    );

    let mut tx = begin(&store).await;
    assert!(has_started(&mut tx, new.id, &[KernelStatus::Preparing]).await);
    tx.increment_session_usage(&key(), "session", 2)
        .await
        .expect("a count");
    tx.increment_session_usage(&key(), "session", 3)
        .await
        .expect("a count");
    tx.increment_session_usage(&key(), "nothing", 1)
        .await
        .expect("nothing");
    tx.commit().await.expect("a commit");
    let row = reader.kernel(new.id).await.expect("a look-up").expect("a kernel");
    assert_eq!(
        (row.status, row.num_queries),
        (Some(KernelStatus::Running), Some(5))
    );
    assert_eq!(
        (row.container_id.as_deref(), row.kernel_host.as_deref()),
        (Some("0123abcd"), Some("127.0.0.1"))
    );
    assert_eq!((row.repl_in_port, row.repl_out_port), (30_001, 30_002));
    assert_eq!((row.stdin_port, row.stdout_port), (0, 65_535));
    assert_eq!(row.service_ports, Some(ports().service_ports));

    let stats = json!({"mem": {"current": "1", "pct": null}});
    let mut tx = begin(&store).await;
    let ended = tx
        .terminate_kernel(new.id, "self-terminated", at(9), Some(stats.clone()))
        .await;
    assert!(ended.expect("an end"));
    assert!(
        !tx.terminate_kernel(new.id, "again", at(10), None)
            .await
            .expect("an end")
    );
    assert!(
        !tx.terminate_kernel(kernel_id(7), "never was", at(10), None)
            .await
            .expect("an end")
    );
    tx.commit().await.expect("a commit");
    let row = reader.kernel(new.id).await.expect("a look-up").expect("a kernel");
    assert_eq!(
        (row.status, row.terminated_at),
        (Some(KernelStatus::Terminated), Some(at(9)))
    );
    assert_eq!(
        (row.status_info.as_deref(), row.last_stat),
        (Some("self-terminated"), Some(stats))
    );
    assert!(
        reader
            .session_by_name(&key(), "session")
            .await
            .expect("a look-up")
            .is_none()
    );
    assert_eq!(holder(&reader, "session").await, None);
    assert_eq!(counters(&reader, "i-one").await, (0, Default::default()));
}

/// Only from the named states; the loser of a race is told.
pub async fn transitions_are_guarded(store: Store) {
    use KernelStatus::{Error, Preparing, Running, Terminating};
    seed(&store).await;
    add_kernel(&store, &kernel(1, "session")).await;
    let id = kernel_id(1);
    let mut tx = begin(&store).await;
    assert!(
        !tx.set_kernel_status(id, &[Running], Terminating, None)
            .await
            .expect("a transition")
    );
    assert!(
        !tx.set_kernel_status(id, &[], Terminating, None)
            .await
            .expect("a transition")
    );
    assert!(
        tx.set_kernel_status(id, &[Running, Preparing], Error, Some("Agent error"))
            .await
            .expect("a transition")
    );
    assert!(
        tx.set_kernel_status(id, &[Error], Terminating, None)
            .await
            .expect("a transition")
    );
    assert!(!has_started(&mut tx, id, &[Preparing]).await);
    let row = tx.kernel(id).await.expect("a look-up").expect("a kernel");
    assert_eq!(
        (row.status, row.status_info.as_deref()),
        (Some(Terminating), Some("Agent error"))
    );
    assert!(
        tx.terminate_kernel(id, "done", at(1), None)
            .await
            .expect("an end")
    );
    assert!(
        !tx.set_kernel_status(id, &[Running, Terminating], Error, None)
            .await
            .expect("a transition")
    );
    assert!(!has_started(&mut tx, id, &[Preparing, Terminating]).await);
}

/// A session on a lost agent is invisible and still holds its name and its slots.
pub async fn sessions_hide_without_their_agent(store: Store) {
    seed(&store).await;
    add_kernel(&store, &kernel(1, "session")).await;
    let mut tx = begin(&store).await;
    let lost = tx
        .set_agent_status(&"i-one".into(), AgentStatus::Lost, Some(at(1)))
        .await;
    assert!(lost.expect("a change"));
    assert!(
        !tx.set_agent_status(&"i-none".into(), AgentStatus::Lost, None)
            .await
            .expect("no change")
    );
    tx.commit().await.expect("a commit");
    let reader = store.reader();
    assert!(
        reader
            .session_by_name(&key(), "session")
            .await
            .expect("a look-up")
            .is_none()
    );
    assert!(holder(&reader, "session").await.is_some());
    assert_eq!(reader.count_live_sessions(&key()).await.expect("a count"), 1);
    let alive = reader.alive_agents().await.expect("agents");
    assert_eq!(
        alive.iter().map(|agent| agent.id.as_str()).collect::<Vec<_>>(),
        ["i-two"]
    );
}

/// A name is free again once its holder is terminated; other keypairs may use it meanwhile.
pub async fn names_are_held_once(store: Store) {
    seed(&store).await;
    add_kernel(&store, &kernel(1, "session")).await;
    let mut tx = begin(&store).await;
    let error = tx
        .insert_kernel(&kernel(2, "session"))
        .await
        .expect_err("a conflict");
    assert!(error.is_conflict_on("ix_kernels_unique_sess_token"), "{error:?}");
    drop(tx);
    let mut tx = begin(&store).await;
    let other = keypair("AKIAOTHER", &user(1, "user", UserRole::User));
    tx.insert_keypair(&other, at(0)).await.expect("a keypair");
    let mut theirs = kernel(3, "session");
    theirs.access_key = other.access_key;
    tx.insert_kernel(&theirs).await.expect("another's name");
    tx.terminate_kernel(kernel_id(1), "done", at(1), None)
        .await
        .expect("an end");
    tx.insert_kernel(&kernel(2, "session"))
        .await
        .expect("a free name");
    assert_eq!(holder(&tx, "session").await, Some(kernel_id(2)));
}

/// Of many who want the same name at once, one gets it and the others are told why not.
pub async fn racing_writers_make_one_session(store: Store) {
    seed(&store).await;
    let racers: Vec<_> = (1..=12)
        .map(|number| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut tx = store.begin().await?;
                tx.insert_kernel(&kernel(number, "coveted")).await?;
                tokio::task::yield_now().await;
                tx.commit().await
            })
        })
        .collect();
    let mut winners = 0;
    for racer in racers {
        match racer.await.expect("a racer") {
            Ok(()) => winners += 1,
            Err(error) => assert!(error.is_conflict_on("ix_kernels_unique_sess_token"), "{error:?}"),
        }
    }
    assert_eq!(winners, 1);
    assert_eq!(
        store.reader().count_live_sessions_total().await.expect("a count"),
        1
    );
    assert_eq!(store.reader().check_accounting().await.expect("counters"), []);
}

/// However many report the end of a kernel, its slots are released once.
pub async fn racing_terminations_release_once(store: Store) {
    seed(&store).await;
    add_kernel(&store, &kernel(1, "dying")).await;
    add_kernel(&store, &kernel(2, "living")).await;
    let racers: Vec<_> = (0..8)
        .map(|number| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut tx = store.begin().await?;
                let ended = tx
                    .terminate_kernel(kernel_id(1), "raced", at(number), None)
                    .await?;
                tx.commit().await.map(|()| ended)
            })
        })
        .collect();
    let mut ends = 0;
    for racer in racers {
        ends += u32::from(racer.await.expect("a racer").expect("an end"));
    }
    assert_eq!(ends, 1);
    let (used, occupied) = counters(&store.reader(), "i-one").await;
    assert_eq!(used, 1);
    assert_slots(&occupied, &slots(1, 1 << 30));
}

/// Lists are in the order of creation.
pub async fn kernels_are_listed_by_state(store: Store) {
    use KernelStatus::{Preparing, Running, Terminated};
    seed(&store).await;
    for (number, agent) in [(3, "i-one"), (1, "i-one"), (2, "i-two"), (4, "i-one")] {
        let mut new = kernel(number, &format!("session{number}"));
        new.agent = agent.into();
        add_kernel(&store, &new).await;
    }
    let mut tx = begin(&store).await;
    has_started(&mut tx, kernel_id(2), &[Preparing]).await;
    tx.terminate_kernel(kernel_id(4), "done", at(9), None)
        .await
        .expect("an end");
    tx.commit().await.expect("a commit");
    let reader = store.reader();
    let ids = async |statuses: &[KernelStatus]| {
        let rows = reader.kernels_with_status(statuses).await.expect("kernels");
        rows.into_iter().map(|row| row.id).collect::<Vec<_>>()
    };
    assert_eq!(ids(&[Preparing]).await, [1, 3].map(kernel_id));
    assert_eq!(ids(&[Running, Terminated]).await, [2, 4].map(kernel_id));
    assert_eq!(ids(&[]).await, []);
    let rows = reader
        .live_kernels_of_agent(&"i-one".into())
        .await
        .expect("kernels");
    assert_eq!(
        rows.into_iter().map(|row| row.id).collect::<Vec<_>>(),
        [1, 3].map(kernel_id)
    );
    // More than one statement's worth of them, most of which never were.
    let asked: Vec<_> = [2, 4].into_iter().chain(100..250).map(kernel_id).collect();
    let mut rows = reader.kernels(&asked).await.expect("kernels");
    rows.sort_by_key(|row| row.id.0);
    assert_eq!(
        rows.iter().map(|row| (row.id, row.status)).collect::<Vec<_>>(),
        [(kernel_id(2), Some(Running)), (kernel_id(4), Some(Terminated))]
    );
    assert!(reader.kernels(&[]).await.expect("kernels").is_empty());
    let mut named: Vec<_> = rows
        .iter()
        .filter_map(|row| Some((row.id, (row.sess_id.clone()?, row.access_key.clone()?))))
        .collect();
    named.sort();
    let names = reader.session_names(&asked).await.expect("names");
    let mut names: Vec<_> = names.into_iter().collect();
    names.sort();
    assert_eq!(names, named);
    assert_eq!(reader.count_live_sessions_total().await.expect("a count"), 3);
    let mut tx = begin(&store).await;
    let moved = tx
        .set_all_kernel_status(&[Preparing, Running], KernelStatus::Terminating)
        .await;
    assert_eq!(moved.expect("a change of many"), 3);
    tx.commit().await.expect("a commit");
    assert_eq!(ids(&[KernelStatus::Terminating]).await, [1, 2, 3].map(kernel_id));
    assert_eq!(ids(&[Terminated]).await, [kernel_id(4)]);
}

/// Heartbeats write only what is new (DM-9) and keep what is occupied.
pub async fn agents_join_change_and_return(store: Store) {
    seed(&store).await;
    add_kernel(&store, &kernel(1, "session")).await;
    let mut tx = begin(&store).await;
    assert_eq!(
        tx.upsert_agent(&agent("i-new"), at(3))
            .await
            .expect("a heartbeat"),
        AgentChange::Joined
    );
    let row = tx
        .agent(&"i-new".into())
        .await
        .expect("a look-up")
        .expect("an agent");
    assert_eq!(
        (row.status, row.first_contact, row.lost_at),
        (AgentStatus::Alive, Some(at(3)), None)
    );
    assert_eq!((row.region.as_str(), row.version.as_str()), ("local", "19.06.0"));
    assert_eq!(row.compute_plugins, agent("i-new").compute_plugins);
    assert_slots(&row.occupied_slots, &Default::default());

    let mut same = agent("i-one");
    same.available_slots = ResourceSlot::from_stored(&json!({"mem": "16g", "cpu": "8.0"})).0;
    assert_eq!(
        tx.upsert_agent(&same, at(4)).await.expect("a heartbeat"),
        AgentChange::Unchanged
    );
    same.available_slots = slots(16, 1 << 34);
    assert_eq!(
        tx.upsert_agent(&same, at(5)).await.expect("a heartbeat"),
        AgentChange::Changed
    );

    for status in [AgentStatus::Lost, AgentStatus::Terminated] {
        tx.set_agent_status(&same.id, status, Some(at(6)))
            .await
            .expect("a loss");
        same.addr = format!("tcp://10.0.0.1:{}", status.as_str().len());
        assert_eq!(
            tx.upsert_agent(&same, at(7)).await.expect("a heartbeat"),
            AgentChange::Revived
        );
        let row = tx.agent(&same.id).await.expect("a look-up").expect("an agent");
        assert_eq!(
            (row.status, row.lost_at, &row.addr),
            (AgentStatus::Alive, None, &same.addr)
        );
        assert_eq!(row.first_contact, Some(at(0)));
        assert_slots(&row.available_slots, &slots(16, 1 << 34));
        assert_slots(&row.occupied_slots, &slots(1, 1 << 30));
    }
    tx.set_agent_status(&same.id, AgentStatus::Restarting, None)
        .await
        .expect("a restart");
    assert_eq!(
        tx.upsert_agent(&same, at(8)).await.expect("a heartbeat"),
        AgentChange::Unchanged
    );
}

/// The count grows with each end of all sessions, and only where that was committed.
pub async fn endings_are_counted(store: Store) {
    for counted in 0..3 {
        assert_eq!(store.reader().session_endings().await.expect("a count"), counted);
        let mut tx = begin(&store).await;
        tx.count_session_ending().await.expect("a count");
        assert_eq!(tx.session_endings().await.expect("a count"), counted + 1);
        drop(tx);
        let mut tx = begin(&store).await;
        tx.lock_placement().await.expect("the lock");
        tx.count_session_ending().await.expect("a count");
        tx.commit().await.expect("a commit");
    }
}
