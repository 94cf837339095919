//! An agent that was killed finds its kernels again.

use std::fs;

use super::*;

#[tokio::test]
async fn kernels_and_their_runs_go_on_after_a_crash() {
    let bed = Bed::new().await;
    let created = bed.create(id(1)).await;
    bed.create(id(2)).await;
    let mut first = request(
        "long",
        ExecuteMode::Query,
        "print before\nwait gate\nprint after\nexit 3",
    );
    first.flush_timeout = Some(Duration::ZERO);
    bed.agent.execute(id(1), first).await.expect("executed");
    let mut console = String::new();
    while console != "before\n" {
        let mut more = request("long", ExecuteMode::Continue, "");
        more.flush_timeout = Some(Duration::from_millis(5));
        let reply = soon(bed.agent.execute(id(1), more))
            .await
            .expect("executed")
            .expect("a kernel");
        console.extend(reply.console.iter().map(|item| match item {
            ConsoleItem::Stdout(text) => text.as_str(),
            other => panic!("{other:?}"),
        }));
    }
    let bed = bed.crash().await;
    let mut found = bed.agent.list_kernels().await.expect("kernels");
    found.sort();
    assert_eq!(found, [id(1), id(2)]);
    assert_eq!(bed.create(id(1)).await, created, "it is the same kernel");
    // What it holds is held again.
    let third = bed.create(id(3)).await;
    assert!(third.repl_in_port > created.stdout_port + 4);
    bed.runtime.open("gate");
    let reply = bed.go_on(id(1), "long").await;
    assert_eq!(
        (reply.exit_code, reply.console),
        (Some(3), vec![stdout("after\n")])
    );
    // The runs after it are not disturbed by what found its end.
    let reply = bed.query(id(1), "next", "print next").await;
    assert_eq!(
        (reply.exit_code, reply.console),
        (Some(0), vec![stdout("next\n")])
    );
    for number in 1..=3 {
        bed.agent.destroy_kernel(id(number)).await.expect("destroyed");
    }
    bed.assert_clean();
}

#[tokio::test]
async fn a_kernel_that_died_meanwhile_is_reported_and_removed() {
    let bed = Bed::new().await;
    bed.create(id(1)).await;
    let mut bed = bed.crash_and(|bed| bed.runtime.die(id(1), "killed")).await;
    let (kernel, reason, generation, _) = bed.terminated().await;
    assert_eq!(
        (kernel, reason.as_str(), generation),
        (id(1), "self-terminated", Some(1))
    );
    bed.assert_clean();
}

/// Changes what is on disk about a kernel, as a crash at another moment would have left it.
fn rewrite(bed: &Bed, kernel: KernelId, phase: &str) {
    let file = bed.scratch(kernel).join("kernel.json");
    let mut state: Value = serde_json::from_slice(&fs::read(&file).expect("a record")).expect("JSON");
    state["phase"] = phase.into();
    state["container_id"] = Value::Null;
    fs::write(&file, state.to_string()).expect("written");
}

#[tokio::test]
async fn a_half_made_kernel_is_removed() {
    let bed = Bed::new().await;
    bed.create(id(1)).await;
    let bed = bed.crash_and(|bed| rewrite(bed, id(1), "creating")).await;
    assert_eq!(bed.agent.list_kernels().await, Ok(Vec::new()));
    bed.assert_clean();
    bed.create(id(1)).await;
}

#[tokio::test]
async fn a_kernel_between_two_lives_waits_for_its_restart() {
    let bed = Bed::new().await;
    let created = bed.create(id(1)).await;
    bed.query(id(1), "r", "file kept text").await;
    let bed = bed.crash_and(|bed| rewrite(bed, id(1), "restarting")).await;
    assert_eq!(bed.runtime.living(), []);
    assert_eq!(bed.agent.list_kernels().await, Ok(vec![id(1)]));
    let error = bed
        .agent
        .execute(id(1), request("r", ExecuteMode::Query, ""))
        .await
        .expect_err("no processes");
    assert!(error.repr().contains("restart or destroy it"), "{error}");
    let restarted = soon(bed.agent.restart_kernel(id(1), FakeRuntime::config()))
        .await
        .expect("restarted");
    assert_ne!(
        restarted.repl_in_port, created.repl_in_port,
        "a restart changes the ports"
    );
    assert_eq!(bed.query(id(1), "r", "print x").await.console, [stdout("x\n")]);
    assert!(bed.scratch(id(1)).join("work/kept").exists());
    bed.agent.destroy_kernel(id(1)).await.expect("destroyed");
    bed.assert_clean();
}

#[tokio::test]
async fn a_restart_that_fails_keeps_the_kernel_until_it_is_destroyed() {
    let bed = Bed::new().await;
    bed.create(id(1)).await;
    let error = soon(bed.agent.restart_kernel(id(1), config_starting("fail")))
        .await
        .expect_err("told to fail");
    assert_eq!(kind(&error), "RuntimeError");
    assert_eq!(bed.runtime.living(), []);
    assert!(!bed.is_all_free(), "its files are there, and so is what it holds");
    soon(bed.agent.restart_kernel(id(1), FakeRuntime::config()))
        .await
        .expect("restarted");
    assert_eq!(bed.query(id(1), "r", "print x").await.console, [stdout("x\n")]);
    bed.agent.destroy_kernel(id(1)).await.expect("destroyed");
    bed.assert_clean();
}

#[tokio::test]
async fn rubbish_is_removed_and_what_is_not_ours_stays() {
    let bed = Bed::new().await;
    let bed = bed
        .crash_and(|bed| {
            fs::create_dir_all(bed.scratch(id(1)).join("work")).expect("made");
            fs::create_dir_all(bed.scratch(id(2))).expect("made");
            fs::write(bed.scratch(id(2)).join("kernel.json"), "{").expect("written");
            fs::create_dir_all(bed.dir.path().join("trash/old/deep")).expect("made");
            fs::create_dir_all(bed.dir.path().join("scratch/notes")).expect("made");
        })
        .await;
    assert!(!bed.scratch(id(1)).exists() && !bed.scratch(id(2)).exists());
    assert!(bed.dir.path().join("scratch/notes").exists());
    until(|| {
        fs::read_dir(bed.dir.path().join("trash"))
            .expect("readable")
            .count()
            == 0
    })
    .await;
    assert!(bed.is_all_free());
}

#[tokio::test]
async fn a_kernel_whose_record_cannot_be_read_is_ended() {
    let bed = Bed::new().await;
    bed.create(id(1)).await;
    let spoil = |bed: &Bed| fs::write(bed.scratch(id(1)).join("kernel.json"), "{}").expect("written");
    let bed = bed.crash_and(spoil).await;
    assert_eq!(bed.agent.list_kernels().await, Ok(Vec::new()));
    bed.assert_clean();
}
