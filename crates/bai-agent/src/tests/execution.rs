//! Code runs in kernels.

use bai_proto::agent::RunStatus;
use bytes::Bytes;

use super::*;

#[tokio::test]
async fn a_batch_reports_each_step_and_its_files() {
    let bed = Bed::new().await;
    bed.create(id(1)).await;
    let batch = |clean: &str, build: &str, exec: &str| BatchOptions {
        clean: Some(clean.to_owned()),
        build: Some(build.to_owned()),
        exec: Some(exec.to_owned()),
    };
    let start = |run: &str, batch| ExecuteRequest {
        batch,
        ..request(run, ExecuteMode::Batch, "")
    };
    let request = start(
        "b",
        batch("print clean", "print build", "file .output/plot.png x"),
    );
    let reply = bed
        .agent
        .execute(id(1), request)
        .await
        .expect("executed")
        .expect("a kernel");
    assert_eq!(
        (reply.status, reply.exit_code),
        (RunStatus::CleanFinished, Some(0))
    );
    assert_eq!((reply.console, reply.files.len()), (vec![stdout("clean\n")], 0));
    let reply = bed.go_on(id(1), "b").await;
    assert_eq!(
        (reply.status, reply.console),
        (RunStatus::BuildFinished, vec![stdout("build\n")])
    );
    let reply = bed.go_on(id(1), "b").await;
    assert_eq!((reply.status, reply.exit_code), (RunStatus::Finished, Some(0)));
    assert_eq!(
        reply
            .files
            .iter()
            .map(|file| file.name.as_str())
            .collect::<Vec<_>>(),
        ["plot.png"]
    );
    let request = start("c", batch("", "exit 2", "print never"));
    bed.agent.execute(id(1), request).await.expect("executed");
    assert_eq!(bed.go_on(id(1), "c").await.exit_code, Some(2));
    let reply = bed.go_on(id(1), "c").await;
    assert_eq!(
        (reply.exit_code, reply.console, reply.files),
        (Some(127), vec![], vec![])
    );
}

#[tokio::test]
async fn input_is_asked_for_and_given() {
    let bed = Bed::new().await;
    bed.create(id(1)).await;
    let reply = bed.query(id(1), "r", "input name?\nprint end").await;
    assert_eq!(
        (reply.status, reply.console),
        (RunStatus::WaitingInput, vec![stdout("name?")])
    );
    assert_eq!(reply.options.expect("options")["is_password"], false);
    let input = request("r", ExecuteMode::Input, "me");
    let reply = bed
        .agent
        .execute(id(1), input)
        .await
        .expect("executed")
        .expect("a kernel");
    assert_eq!(
        (reply.status, reply.console),
        (RunStatus::Finished, vec![stdout("got me\nend\n")])
    );
}

#[tokio::test]
async fn an_interrupt_ends_a_run_that_waits() {
    let bed = Bed::new().await;
    bed.create(id(1)).await;
    assert_eq!(
        bed.query(id(1), "r", "input name?").await.status,
        RunStatus::WaitingInput
    );
    bed.agent.interrupt_kernel(id(1)).await.expect("interrupted");
    let reply = bed.go_on(id(1), "r").await;
    assert_eq!((reply.status, reply.exit_code), (RunStatus::Finished, Some(130)));
    assert_eq!(reply.console, [ConsoleItem::Stderr("interrupted\n".to_owned())]);
}

#[tokio::test]
async fn a_flood_that_nobody_reads_stops_and_ends_when_interrupted() {
    let bed = Bed::new().await;
    bed.create(id(1)).await;
    let mut flood = request("flood", ExecuteMode::Query, "flood 1000000");
    flood.flush_timeout = Some(Duration::ZERO);
    bed.agent.execute(id(1), flood).await.expect("executed");
    // Its queue is full and so is everything before it, down to the program.
    let sent = || bed.runtime.records_sent(id(1));
    until(|| sent() > crate::kernel::run::MAX_RECORDS).await;
    let agent = Arc::clone(&bed.agent);
    let next = tokio::spawn(async move {
        agent
            .execute(id(1), request("next", ExecuteMode::Query, "print next"))
            .await
    });
    assert!(
        sent() < 1_000_000,
        "the program does not get ahead of its readers"
    );
    bed.agent.interrupt_kernel(id(1)).await.expect("interrupted");
    let reply = soon(next)
        .await
        .expect("no panic")
        .expect("executed")
        .expect("a kernel");
    assert_eq!(reply.console, [stdout("next\n")]);
    let mut reply = bed.go_on(id(1), "flood").await;
    while reply.status == RunStatus::Continued {
        reply = bed.go_on(id(1), "flood").await;
    }
    assert_eq!(reply.exit_code, Some(130));
}

#[tokio::test]
async fn nothing_is_lost_when_a_connection_breaks() {
    let bed = Bed::new().await;
    bed.create(id(1)).await;
    let mut run = request("r", ExecuteMode::Query, "wait gate\nprint after");
    run.flush_timeout = Some(Duration::ZERO);
    bed.agent.execute(id(1), run).await.expect("executed");
    let connects = || {
        bed.runtime
            .calls()
            .iter()
            .filter(|call| matches!(call, crate::runtime::fake::Call::Connect(_)))
            .count()
    };
    until(|| connects() == 1).await;
    bed.runtime.disconnect(id(1));
    until(|| connects() == 2).await;
    bed.runtime.open("gate");
    let reply = bed.go_on(id(1), "r").await;
    assert_eq!(
        (reply.exit_code, reply.console),
        (Some(0), vec![stdout("after\n")])
    );
}

#[tokio::test]
async fn rich_output_completion_and_run_ids() {
    let bed = Bed::new().await;
    bed.create(id(1)).await;
    let anonymous = ExecuteRequest {
        run_id: None,
        ..request(
            "",
            ExecuteMode::Query,
            "html <b>\nmedia image/png xx\nbytes e2\nbytes 98\nbytes 83",
        )
    };
    let reply = bed
        .agent
        .execute(id(1), anonymous)
        .await
        .expect("executed")
        .expect("a kernel");
    assert_eq!(reply.run_id.as_str().len(), 32);
    let (mime, data) = ("image/png".to_owned(), "xx".to_owned());
    let expected = [
        ConsoleItem::Html("<b>".to_owned()),
        ConsoleItem::Media { mime, data },
        stdout("☃"),
    ];
    assert_eq!(reply.console, expected);
    let completions = bed
        .agent
        .get_completions(id(1), "fl".to_owned(), Value::Null)
        .await;
    assert_eq!(completions, Ok(vec!["flood".to_owned()]));
    // A name is free again when its run is over, and not before.
    assert_eq!(bed.query(id(1), "same", "print 1").await.console, [stdout("1\n")]);
    assert_eq!(
        bed.query(id(1), "same", "input ?").await.status,
        RunStatus::WaitingInput
    );
    let error = bed
        .agent
        .execute(id(1), request("same", ExecuteMode::Query, "print 2"))
        .await
        .expect_err("taken");
    assert!(error.repr().contains("choose another run id"), "{error}");
    // What is unknown is waited for and told to go on.
    let mut unknown = request("unknown", ExecuteMode::Continue, "");
    unknown.flush_timeout = Some(Duration::ZERO);
    let reply = bed
        .agent
        .execute(id(1), unknown)
        .await
        .expect("executed")
        .expect("a kernel");
    assert_eq!((reply.status, reply.console), (RunStatus::Continued, vec![]));
}

#[tokio::test]
async fn a_destroyed_kernel_answers_whoever_waits() {
    let bed = Bed::new().await;
    bed.create(id(1)).await;
    let agent = Arc::clone(&bed.agent);
    let waiting = tokio::spawn(async move {
        agent
            .execute(id(1), request("r", ExecuteMode::Query, "wait x"))
            .await
    });
    bed.until_active(id(1), "r").await;
    bed.agent.destroy_kernel(id(1)).await.expect("destroyed");
    assert_eq!(soon(waiting).await.expect("no panic"), Ok(None));
}

#[tokio::test]
async fn files_go_in_and_come_out() {
    let bed = Bed::new().await;
    bed.create(id(1)).await;
    let upload = |path: &str| {
        bed.agent
            .upload_file(id(1), path.to_owned(), Bytes::from_static(b"data"))
    };
    upload("a/b.txt").await.expect("uploaded");
    assert_eq!(
        kind(&upload("../../kernel.json").await.expect_err("outside")),
        "PermissionError"
    );
    let listing = bed.agent.list_files(id(1), "a".to_owned()).await.expect("listed");
    assert!(listing.files.contains("\"b.txt\""));
    let archive = bed
        .agent
        .download_file(id(1), "a/b.txt".to_owned())
        .await
        .expect("downloaded");
    assert!(archive.len() > 512);
    let error = bed
        .agent
        .download_file(id(1), "none".to_owned())
        .await
        .expect_err("missing");
    assert_eq!(
        error.repr(),
        "FileNotFoundError('Could not found the file: /home/work/none')"
    );
}

#[tokio::test]
async fn a_runner_that_stands_still_is_told_and_a_long_silent_program_goes_on() {
    let bed = Bed::new().await;
    bed.create(id(1)).await;
    let asked = |mode, code: &str, seconds| ExecuteRequest {
        flush_timeout: Some(Duration::from_secs(seconds)),
        ..request("r", mode, code)
    };
    let poll = |seconds| {
        bed.agent
            .execute(id(1), asked(ExecuteMode::Continue, "", seconds))
    };
    // What nobody works on takes no time from here on.
    tokio::time::pause();
    let started = bed
        .agent
        .execute(id(1), asked(ExecuteMode::Query, "wait gate\nprint end", 2));
    let reply = started.await.expect("executed").expect("a kernel");
    assert_eq!(reply.status, RunStatus::Continued);
    for _ in 0..10 {
        let reply = poll(60).await.expect("it answers").expect("a kernel");
        assert_eq!(reply.status, RunStatus::Continued, "it computes");
    }

    bed.runtime.pause(id(1), true);
    let begun = tokio::time::Instant::now();
    let error = loop {
        match poll(2).await {
            Ok(reply) => assert_eq!(reply.expect("a kernel").status, RunStatus::Continued),
            Err(error) => break error.repr(),
        }
    };
    assert!(
        error.contains("the kernel's runner has not answered for 20 s"),
        "{error}"
    );
    assert!(begun.elapsed() < Duration::from_secs(30), "soon enough");
    // Who waits for as long as it takes, and who comes with something else, is told too.
    let other = ExecuteRequest {
        run_id: None,
        ..request("", ExecuteMode::Query, "print 1")
    };
    for asking in [request("r", ExecuteMode::Continue, ""), other] {
        let error = bed
            .agent
            .execute(id(1), asking)
            .await
            .expect_err("it stands still");
        assert!(error.repr().contains("has not answered"), "{}", error.repr());
    }

    bed.runtime.pause(id(1), false);
    bed.runtime.open("gate");
    tokio::time::resume();
    let last = loop {
        match poll(2).await {
            Ok(reply) => break reply.expect("a kernel"),
            // Until its answer is here.
            Err(error) => assert!(error.repr().contains("has not answered"), "{}", error.repr()),
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(
        (last.status, last.console),
        (RunStatus::Finished, vec![stdout("end\n")])
    );
}
