//! Kernels come, are replaced and go; what goes wrong on the way leaves nothing behind.

use std::fs;

use bai_model::{SlotUnit, SlotValue};

use super::*;
use crate::runtime::fake::Call;

#[tokio::test]
async fn a_kernel_is_created_used_restarted_and_destroyed() {
    let mut bed = Bed::new().await;
    let heartbeat = soon(bed.events.recv()).await;
    let Some(AgentEvent::InstanceHeartbeat(info)) = heartbeat else {
        panic!("{heartbeat:?}")
    };
    assert_eq!(info.available_slots, slots(CPUS, MEMORY));
    assert_eq!(info.images, [FakeRuntime::image()]);
    let created = bed.create(id(1)).await;
    assert_eq!(
        (
            created.repl_in_port,
            created.repl_out_port,
            created.stdin_port,
            created.stdout_port
        ),
        (30000, 30001, 30002, 30003)
    );
    let mut names = Vec::new();
    for _ in 0..3 {
        names.push(soon(bed.events.recv()).await.expect("an event"));
    }
    let kernel = id(1);
    let expected = [
        AgentEvent::KernelPreparing { kernel },
        AgentEvent::KernelCreating { kernel },
        AgentEvent::KernelStarted { kernel },
    ];
    assert_eq!(names, expected);
    let reply = bed.query(kernel, "r", "file kept text\nprint hello").await;
    assert_eq!(
        (reply.exit_code, reply.console),
        (Some(0), vec![stdout("hello\n")])
    );
    assert_eq!(bed.agent.get_logs(kernel).await.expect("a log"), "hello\n");

    let config = KernelConfig {
        environ: environ("NEW", "yes"),
        ..FakeRuntime::config()
    };
    let restarted = soon(bed.agent.restart_kernel(kernel, config))
        .await
        .expect("restarted");
    assert_ne!(restarted.container_id, created.container_id);
    assert_eq!(
        (restarted.repl_in_port, restarted.stdout_port),
        (30004, 30007),
        "a restart changes the ports"
    );
    assert_eq!(bed.query(kernel, "r", "env NEW").await.console, [stdout("yes\n")]);
    assert_eq!(
        bed.agent.get_logs(kernel).await.expect("a log"),
        "yes\n",
        "the log is that of the new processes"
    );
    assert_eq!(
        fs::read_to_string(bed.scratch(kernel).join("work/kept")).expect("kept"),
        "text"
    );
    assert_eq!(bed.runtime.living(), [kernel]);

    let stats = soon(bed.agent.destroy_kernel(kernel)).await.expect("destroyed");
    assert!(stats.is_some_and(|stats| stats["mem"]["current"] == "1048576"));
    let (ended, reason, generation, stats) = bed.terminated().await;
    assert_eq!(
        (ended, reason.as_str(), generation),
        (kernel, "user-requested", Some(2))
    );
    assert!(stats.is_some());
    bed.assert_clean();
}

#[tokio::test]
async fn what_programs_inside_read_is_written() {
    let bed = Bed::new().await;
    let config = KernelConfig {
        environ: BTreeMap::from([
            ("A".to_owned(), "1=2".to_owned()),
            ("B".to_owned(), "x\ny".to_owned()),
        ]),
        resource_slots: slots(2, 1536 << 10),
        idle_timeout: 3600,
        ..FakeRuntime::config()
    };
    let created = bed.agent.create_kernel(id(1), config).await.expect("a kernel");
    let read =
        |name: &str| fs::read_to_string(bed.scratch(id(1)).join("config").join(name)).expect("written");
    assert_eq!(read("environ.txt"), "A=1=2\n");
    let resources = read("resource.txt");
    let mut lines = resources.lines();
    assert_eq!(
        lines.next(),
        Some(format!("CID={}", created.container_id).as_str())
    );
    assert_eq!(lines.next(), Some("SCRATCH_SIZE=0m"));
    assert_eq!(lines.next(), Some("MOUNTS="));
    assert_eq!(lines.next(), Some(r#"SLOTS={"cpu": "2", "mem": "1572864"}"#));
    assert_eq!(lines.next(), Some("IDLE_TIMEOUT=3600"));
    assert!(lines.next().is_some_and(|line| line.starts_with("CPU_SHARES=")));
    assert_eq!(lines.next(), Some("MEM_SHARES=root:1.5m"));
    assert_eq!(lines.next(), None);
}

#[tokio::test]
async fn creation_is_idempotent_also_at_the_same_time() {
    let bed = Bed::new().await;
    let create = || bed.agent.create_kernel(id(1), FakeRuntime::config());
    let (first, second) = soon(async { tokio::join!(create(), create()) }).await;
    let first = first.expect("a kernel");
    assert_eq!(second.as_ref(), Ok(&first));
    assert_eq!(create().await, Ok(first));
    let starts = bed
        .runtime
        .calls()
        .into_iter()
        .filter(|call| *call == Call::Start(id(1)));
    assert_eq!(starts.count(), 1);
}

#[tokio::test]
async fn a_creation_that_fails_at_any_step_leaves_nothing() {
    let bed = Bed::new().await;
    let config = FakeRuntime::config;
    let mut unknown_image = config();
    unknown_image.image.canonical = "index.docker.io/lablup/r:4".to_owned();
    let mut bad_port = config();
    bad_port
        .image
        .labels
        .insert("ai.backend.service-ports".to_owned(), "x:tcp:80".to_owned());
    let mut bad_mount = config();
    let (name, host, folder) = ("..".to_owned(), "local".to_owned(), "0".repeat(32));
    bad_mount.mounts.push(bai_proto::agent::Mount {
        name,
        host,
        folder,
        writable: true,
    });
    let too_much = KernelConfig {
        resource_slots: slots(CPUS + 1, 1),
        ..config()
    };
    for (config, expected) in [
        (unknown_image, "RuntimeError"),
        (bad_port, "ValueError"),
        (bad_mount, "ValueError"),
        (too_much, "InsufficientResource"),
        (config_starting("fail"), "RuntimeError"),
    ] {
        let error = soon(bed.agent.create_kernel(id(1), config))
            .await
            .expect_err(expected);
        assert_eq!(kind(&error), expected, "{error}");
        bed.assert_clean();
    }
    // The disk refuses, before the start and after it.
    let scratch = bed.dir.path().join("scratch");
    fs::remove_dir(&scratch).expect("removed");
    fs::write(&scratch, "no folder").expect("written");
    let error = bed
        .agent
        .create_kernel(id(1), config())
        .await
        .expect_err("no folder");
    assert_eq!(kind(&error), "OSError", "{error}");
    fs::remove_file(&scratch).expect("removed");
    fs::create_dir(&scratch).expect("made");
    bed.assert_clean();
    let creation = bed.agent.create_kernel(id(1), config_starting("wait"));
    let sabotage = async {
        until(|| {
            bed.runtime
                .calls()
                .iter()
                .filter(|call| **call == Call::Start(id(1)))
                .count()
                == 2
        })
        .await;
        fs::remove_dir_all(bed.scratch(id(1))).expect("removed");
        bed.runtime.open("start");
    };
    let (outcome, ()) = soon(async { tokio::join!(creation, sabotage) }).await;
    assert_eq!(kind(&outcome.expect_err("no folder")), "OSError");
    bed.assert_clean();
    bed.create(id(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_start_that_takes_too_long_is_given_up() {
    let bed = Bed::new().await;
    let error = soon(bed.agent.create_kernel(id(1), config_starting("wait"))).await;
    assert_eq!(error, Err(AgentError::Timeout));
    bed.assert_clean();
}

#[tokio::test]
async fn a_kernel_destroyed_while_it_is_created_is_gone() {
    let mut bed = Bed::new().await;
    let creation = bed.agent.create_kernel(id(1), config_starting("wait"));
    let destruction = async {
        until(|| bed.runtime.calls().contains(&Call::Start(id(1)))).await;
        let (destroyed, ()) = tokio::join!(bed.agent.destroy_kernel(id(1)), async {
            bed.runtime.open("start")
        });
        destroyed
    };
    let (created, destroyed) = soon(async { tokio::join!(creation, destruction) }).await;
    assert!(created.is_ok() && destroyed.is_ok_and(|stats| stats.is_some()));
    assert_eq!(bed.terminated().await.1, "user-requested");
    bed.assert_clean();
}

#[tokio::test]
async fn work_is_finished_although_its_caller_goes_away() {
    let bed = Bed::new().await;
    let agent = Arc::clone(&bed.agent);
    let caller = tokio::spawn(async move { agent.create_kernel(id(1), config_starting("wait")).await });
    until(|| bed.runtime.calls().contains(&Call::Start(id(1)))).await;
    caller.abort();
    assert!(caller.await.is_err_and(|error| error.is_cancelled()));
    bed.runtime.open("start");
    until(|| bed.agent.host.registry.get(id(1)).is_some()).await;
    assert_eq!(
        bed.query(id(1), "r", "print there").await.console,
        [stdout("there\n")]
    );
}

#[tokio::test]
async fn a_kernel_that_ends_by_itself_is_reported_with_its_last_statistics() {
    let mut bed = Bed::new().await;
    bed.create(id(1)).await;
    let waiting = bed
        .agent
        .execute(id(1), request("r", ExecuteMode::Query, "print a\nwait never"));
    let death = async {
        until(|| bed.runtime.records_sent(id(1)) > 0).await;
        // Measured regularly; a kernel that is dead tells nothing any more.
        let kernel = bed.agent.host.registry.get(id(1)).expect("a kernel");
        crate::stats::last_of(&bed.agent.host, &kernel).await;
        bed.runtime.die(id(1), "out-of-memory");
    };
    let (reply, ()) = soon(async { tokio::join!(waiting, death) }).await;
    assert_eq!(reply, Ok(None), "whoever waits is told that the kernel went away");
    let (kernel, reason, generation, stats) = bed.terminated().await;
    assert_eq!(
        (kernel, reason.as_str(), generation),
        (id(1), "out-of-memory", Some(1))
    );
    assert!(stats.is_some_and(|stats| stats["cpu_used"]["current"] == "1"));
    bed.assert_clean();
}

#[tokio::test]
async fn unknown_kernels_are_told_to_be_gone() {
    let mut bed = Bed::new().await;
    assert_eq!(bed.agent.destroy_kernel(id(7)).await, Ok(None));
    let (kernel, reason, generation, stats) = bed.terminated().await;
    assert_eq!(
        (kernel, reason.as_str(), generation, stats),
        (id(7), "self-terminated", None, None)
    );
    let error = bed
        .agent
        .execute(id(7), request("r", ExecuteMode::Query, ""))
        .await
        .expect_err("unknown");
    assert_eq!(kind(&error), "RuntimeError");
    assert!(error.repr().contains(&id(7).to_string()));
    assert_eq!(bed.terminated().await.0, id(7));
    let expected = format!("KeyError('{}')", id(7));
    let path = || "x".to_owned();
    for error in [
        bed.agent.interrupt_kernel(id(7)).await.expect_err("unknown"),
        bed.agent.get_logs(id(7)).await.expect_err("unknown"),
        bed.agent.download_file(id(7), path()).await.expect_err("unknown"),
        bed.agent.list_files(id(7), path()).await.expect_err("unknown"),
        bed.agent
            .restart_kernel(id(7), FakeRuntime::config())
            .await
            .expect_err("unknown"),
        bed.agent
            .get_completions(id(7), path(), Value::Null)
            .await
            .expect_err("unknown"),
    ] {
        assert_eq!(error.repr(), expected);
    }
    assert_eq!(bed.agent.refresh_idle(id(7)).await, Ok(()));
}

#[tokio::test]
async fn resetting_ends_every_kernel() {
    let mut bed = Bed::new().await;
    for number in 1..=3 {
        bed.create(id(number)).await;
    }
    soon(bed.agent.reset_agent()).await.expect("reset");
    assert_eq!(bed.agent.list_kernels().await, Ok(Vec::new()));
    for _ in 0..3 {
        assert_eq!(bed.terminated().await.1, "agent-reset");
    }
    bed.assert_clean();
}

#[tokio::test]
async fn stopping_ends_kernels_or_leaves_them() {
    for destroy in [true, false] {
        let mut bed = Bed::new().await;
        bed.create(id(1)).await;
        let agent = Arc::clone(&bed.agent);
        let waiting = tokio::spawn(async move {
            agent
                .execute(id(1), request("r", ExecuteMode::Query, "wait x"))
                .await
        });
        bed.until_active(id(1), "r").await;
        soon(bed.agent.shutdown(destroy)).await;
        assert_eq!(soon(waiting).await.expect("no panic"), Ok(None));
        assert_eq!(bed.runtime.living().len(), usize::from(!destroy));
        let error = bed
            .agent
            .create_kernel(id(2), FakeRuntime::config())
            .await
            .expect_err("stopped");
        assert_eq!(error.repr(), "RuntimeError('the agent is stopping')");
        let mut last = None;
        while let Ok(event) = bed.events.try_recv() {
            last = Some(event);
        }
        assert!(matches!(last, Some(AgentEvent::InstanceTerminated { reason, .. }) if reason == "shutdown"));
    }
}

#[tokio::test]
async fn a_kernel_is_told_its_part_of_devices_and_what_it_uses_of_it() {
    let devices = vec![Accelerator::mock(2, true)];
    let bed = Bed::new_with(devices, own_address()).await;
    let mut config = FakeRuntime::config();
    let half = SlotValue::parse("0.5", SlotUnit::Count).expect("an amount");
    config.resource_slots.set("mock.shares", half);
    soon(bed.agent.create_kernel(id(1), config))
        .await
        .expect("a kernel");
    let record = fs::read_to_string(bed.scratch(id(1)).join("config/resource.txt")).expect("readable");
    assert!(record.contains("\nMOCK.SHARES_SHARES=0:0.5\n"), "{record}");
    assert_eq!(
        bed.query(id(1), "r", "env MOCK_VISIBLE_DEVICES").await.console,
        [stdout("0\n")]
    );
    // Its part is its own still after a crash.
    let mut bed = bed.crash().await;
    bed.create(id(2)).await;
    soon(bed.agent.destroy_kernel(id(1))).await.expect("destroyed");
    let (_, _, _, stats) = bed.terminated().await;
    let stats = stats.expect("statistics");
    let memory = &stats["mock_mem"];
    assert_eq!(
        (&memory["current"], &memory["capacity"], &memory["stats.max"]),
        (&"268435456".into(), &"536870912".into(), &"268435456".into())
    );
    let busy = &stats["mock_util"];
    assert_eq!(
        (&busy["current"], &busy["capacity"], &busy["pct"]),
        (&"25".into(), &"50".into(), &"50".into())
    );
    soon(bed.agent.destroy_kernel(id(2))).await.expect("destroyed");
    let (_, _, _, stats) = bed.terminated().await;
    assert!(
        stats.expect("statistics").get("mock_mem").is_none(),
        "it holds no device"
    );
}
