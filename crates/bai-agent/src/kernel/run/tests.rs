use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bai_proto::agent::ConsoleItem;

use super::*;

fn id(name: &str) -> RunId {
    RunId(name.to_owned())
}

fn code(text: &str) -> Vec<Request> {
    vec![Request::Code(text.to_owned())]
}

fn out(text: &str) -> Record {
    Record::Stdout(text.as_bytes().to_vec())
}

const FINISHED: Record = Record::Finished { exit_code: Some(0) };

fn console(reply: &ExecuteReply) -> String {
    let text = |item: &ConsoleItem| match item {
        ConsoleItem::Stdout(text) => text.clone(),
        other => panic!("{other:?}"),
    };
    reply.console.iter().map(text).collect()
}

/// What a future says that is asked once.
fn poll<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

fn now() -> Option<Instant> {
    Some(Instant::now())
}

#[tokio::test]
async fn runs_have_their_turn_in_the_order_in_which_they_were_asked_for() {
    let runs = Runs::default();
    for name in ["b", "a", "c"] {
        assert_eq!(runs.start(&id(name), code(name)), Ok(()));
    }
    for name in ["b", "a", "c"] {
        assert_eq!(runs.next().await, Some((id(name), code(name))));
        assert_eq!(runs.active(), Some(id(name)));
        runs.push(out(name)).await;
        // The next one does not wait for this one's collector.
        runs.end(FINISHED, Vec::new());
    }
    for name in ["c", "b", "a"] {
        let reply = runs.collect(&id(name), None).await.expect("a kernel");
        assert_eq!(
            (reply.status, console(&reply).as_str()),
            (RunStatus::Finished, name)
        );
    }
    assert!(poll(runs.next()).is_none());
}

#[tokio::test]
async fn a_reply_ends_at_every_boundary() {
    let runs = Runs::default();
    runs.start(&id("r"), Vec::new()).expect("started");
    runs.next().await;
    let boundaries = [
        (
            Record::CleanFinished { exit_code: Some(1) },
            RunStatus::CleanFinished,
            Some(1),
        ),
        (
            Record::BuildFinished { exit_code: Some(2) },
            RunStatus::BuildFinished,
            Some(2),
        ),
        (
            Record::WaitingInput {
                is_password: Some(true),
            },
            RunStatus::WaitingInput,
            None,
        ),
        (
            Record::WaitingInput { is_password: None },
            RunStatus::WaitingInput,
            None,
        ),
    ];
    for (record, ..) in boundaries.clone() {
        runs.push(out("x")).await;
        runs.push(record).await;
    }
    let files = vec![GeneratedFile {
        name: "f".to_owned(),
        url: "#".to_owned(),
    }];
    runs.end(Record::Finished { exit_code: None }, files.clone());
    let mut options = Vec::new();
    for (_, status, exit_code) in boundaries {
        let reply = runs.collect(&id("r"), None).await.expect("a kernel");
        assert_eq!(
            (reply.status, reply.exit_code, console(&reply).as_str()),
            (status, exit_code, "x")
        );
        assert_eq!(reply.files, []);
        options.extend(reply.options);
    }
    let password = serde_json::Map::from_iter([("is_password".to_owned(), true.into())]);
    assert_eq!(options, [password, serde_json::Map::new()]);
    let reply = runs.collect(&id("r"), None).await.expect("a kernel");
    assert_eq!(
        (reply.status, reply.exit_code, reply.files),
        (RunStatus::Finished, None, files)
    );
}

#[tokio::test]
async fn characters_that_are_split_over_records_replies_and_steps() {
    let runs = Runs::default();
    runs.start(&id("r"), Vec::new()).expect("started");
    runs.next().await;
    let snowman = "\u{2603}".as_bytes();
    runs.push(Record::Stdout(snowman[..1].to_vec())).await;
    let reply = runs.collect(&id("r"), now()).await.expect("a kernel");
    assert_eq!((reply.status, reply.console.len()), (RunStatus::Continued, 0));
    runs.push(Record::Stdout(snowman[1..].to_vec())).await;
    let reply = runs.collect(&id("r"), now()).await.expect("a kernel");
    assert_eq!(console(&reply), "\u{2603}");
    runs.push(Record::Stdout(snowman[..2].to_vec())).await;
    runs.push(Record::BuildFinished { exit_code: Some(0) }).await;
    let reply = runs.collect(&id("r"), None).await.expect("a kernel");
    assert_eq!(
        console(&reply),
        "\u{fffd}",
        "no character goes on in another step"
    );
}

#[tokio::test(start_paused = true)]
async fn the_flush_timeout_gives_out_what_there_is() {
    let runs = Runs::default();
    runs.start(&id("r"), Vec::new()).expect("started");
    let begin = Instant::now();
    let wait = std::time::Duration::from_secs(2);
    let reply = runs
        .collect(&id("r"), Some(begin + wait))
        .await
        .expect("a kernel");
    assert_eq!((reply.status, reply.console.len()), (RunStatus::Continued, 0));
    assert!(
        Instant::now() >= begin + wait,
        "a run that waits for its turn is waited for"
    );
    runs.next().await;
    runs.push(out("some")).await;
    let reply = runs
        .collect(&id("r"), Some(Instant::now() + wait))
        .await
        .expect("a kernel");
    assert_eq!(
        (reply.status, console(&reply).as_str()),
        (RunStatus::Continued, "some")
    );
    runs.end(FINISHED, Vec::new());
    let at = Instant::now();
    let reply = runs.collect(&id("r"), Some(at + wait)).await.expect("a kernel");
    assert_eq!((reply.status, reply.console.len()), (RunStatus::Finished, 0));
    assert_eq!(Instant::now(), at, "an end is not waited for when it is there");
    let reply = runs.collect(&id("r"), None).await.expect("a kernel");
    assert_eq!(reply.status, RunStatus::Continued, "what is unknown goes on");
}

#[tokio::test]
async fn nothing_is_lost_when_a_collector_goes_away() {
    let runs = Runs::default();
    runs.start(&id("r"), Vec::new()).expect("started");
    runs.next().await;
    runs.push(out("a")).await;
    assert!(poll(runs.collect(&id("r"), None)).is_none());
    runs.push(out("b")).await;
    runs.end(FINISHED, Vec::new());
    let reply = runs.collect(&id("r"), None).await.expect("a kernel");
    assert_eq!(console(&reply), "ab");
}

/// Fills the active run's queue; how many records that took.
fn fill(runs: &Runs, record: &Record) -> usize {
    (0..)
        .take_while(|_| poll(runs.push(record.clone())).is_some())
        .count()
}

#[tokio::test]
async fn who_fills_a_queue_waits_until_it_is_collected() {
    let runs = Arc::new(Runs::default());
    runs.start(&id("r"), Vec::new()).expect("started");
    runs.next().await;
    assert_eq!(fill(&runs, &out("x")), MAX_RECORDS);
    let pushing = tokio::spawn({
        let runs = Arc::clone(&runs);
        async move { runs.push(out("y")).await }
    });
    tokio::task::yield_now().await;
    assert!(!pushing.is_finished());
    let reply = runs.collect(&id("r"), now()).await.expect("a kernel");
    assert_eq!(console(&reply).len(), MAX_RECORDS);
    pushing.await.expect("pushed");
    let reply = runs.collect(&id("r"), now()).await.expect("a kernel");
    assert_eq!(console(&reply), "y");
    // Few but large records fill it, too; and a reply is not larger than it must be.
    let large = Record::Stdout(vec![b'x'; 5 << 20]);
    assert_eq!(fill(&runs, &large), 3);
    let reply = runs.collect(&id("r"), None).await.expect("a kernel");
    assert_eq!(
        (reply.status, console(&reply).len()),
        (RunStatus::Continued, 5 << 20)
    );
    // Its end does not wait for room.
    fill(&runs, &large);
    runs.end(FINISHED, Vec::new());
    assert_eq!(runs.active(), None);
}

#[tokio::test]
async fn an_interrupted_run_waits_for_nobody() {
    let runs = Runs::default();
    runs.start(&id("r"), Vec::new()).expect("started");
    runs.next().await;
    fill(&runs, &out("x"));
    runs.interrupted();
    assert!(poll(runs.push(out("newest"))).is_some());
    let large = Record::Stdout(vec![b'y'; 17 << 20]);
    assert!(poll(runs.push(large)).is_some());
    assert!(poll(runs.push(out("end"))).is_some());
    runs.end(FINISHED, Vec::new());
    let reply = runs.collect(&id("r"), None).await.expect("a kernel");
    assert_eq!(
        (reply.status, console(&reply).as_str()),
        (RunStatus::Finished, "end")
    );
    // The next run is not interrupted.
    runs.start(&id("s"), Vec::new()).expect("started");
    runs.next().await;
    assert_eq!(fill(&runs, &out("x")), MAX_RECORDS);
}

#[tokio::test]
async fn input_is_for_runs_that_have_not_ended() {
    let runs = Runs::default();
    runs.start(&id("active"), code("1")).expect("started");
    runs.start(&id("waiting"), code("2")).expect("started");
    runs.next().await;
    assert!(runs.input(&id("active"), "now"));
    assert!(!runs.input(&id("waiting"), "later"));
    assert!(!runs.input(&id("unknown"), "never"));
    runs.end(FINISHED, Vec::new());
    assert!(!runs.input(&id("active"), "too late"));
    let requests = vec![Request::Code("2".to_owned()), Request::Input("later".to_owned())];
    assert_eq!(runs.next().await, Some((id("waiting"), requests)));
}

#[tokio::test]
async fn a_name_is_free_when_its_run_is_over() {
    let runs = Runs::default();
    runs.start(&id("r"), code("1")).expect("started");
    assert_eq!(
        runs.start(&id("r"), code("2")),
        Err(NotStarted::Taken),
        "it waits"
    );
    runs.next().await;
    assert_eq!(
        runs.start(&id("r"), code("2")),
        Err(NotStarted::Taken),
        "it is active"
    );
    runs.push(out("old")).await;
    runs.end(FINISHED, Vec::new());
    // What nobody collected of the first is of no interest.
    assert_eq!(runs.start(&id("r"), code("2")), Ok(()));
    assert_eq!(runs.next().await, Some((id("r"), code("2"))));
    runs.push(out("new")).await;
    runs.end(FINISHED, Vec::new());
    let reply = runs.collect(&id("r"), None).await.expect("a kernel");
    assert_eq!(console(&reply), "new");
}

#[tokio::test]
async fn memory_is_bounded_also_when_nobody_collects() {
    let runs = Runs::default();
    for number in 0..MAX_WAITING {
        runs.start(&id(&number.to_string()), Vec::new()).expect("room");
    }
    assert_eq!(runs.start(&id("more"), Vec::new()), Err(NotStarted::TooMany));
    for _ in 0..MAX_WAITING {
        runs.next().await;
        runs.end(FINISHED, Vec::new());
    }
    assert_eq!(runs.lock().runs.len(), MAX_ENDED);
    for number in 0..5 {
        runs.start(&id(&format!("large{number}")), Vec::new())
            .expect("room");
        runs.next().await;
        fill(&runs, &Record::Stdout(vec![0; 8 << 20]));
        runs.end(FINISHED, Vec::new());
    }
    assert_eq!(runs.lock().runs.len(), 1, "only the last is worth its memory");
    // Output of no run is dropped at once.
    assert_eq!(poll(runs.push(out("x"))), Some(()));
}

#[tokio::test]
async fn everybody_is_told_when_the_kernel_is_gone() {
    let runs = Arc::new(Runs::default());
    runs.start(&id("a"), Vec::new()).expect("started");
    runs.start(&id("b"), Vec::new()).expect("started");
    runs.next().await;
    let waiting = ["a", "b", "unknown"].map(|name| {
        let runs = Arc::clone(&runs);
        let deadline = Instant::now() + std::time::Duration::from_secs(3600);
        tokio::spawn(async move { runs.collect(&id(name), Some(deadline)).await })
    });
    tokio::task::yield_now().await;
    runs.close();
    for waiting in waiting {
        assert_eq!(waiting.await.expect("no panic"), None);
    }
    assert_eq!(runs.next().await, None);
    assert_eq!(runs.start(&id("c"), Vec::new()), Err(NotStarted::Gone));
    assert_eq!(runs.collect(&id("a"), None).await, None);
}

#[tokio::test]
async fn a_run_of_an_earlier_agent_is_active_at_once() {
    let runs = Runs::default();
    runs.resume(id("old"));
    runs.push(out("rest")).await;
    runs.end(Record::Finished { exit_code: None }, Vec::new());
    let reply = runs.collect(&id("old"), None).await.expect("a kernel");
    assert_eq!(
        (reply.status, console(&reply).as_str()),
        (RunStatus::Finished, "rest")
    );
}

#[tokio::test]
async fn whoever_continues_an_unknown_run_gets_the_one_without_a_name() {
    let runs = Runs::default();
    runs.resume(id(UNNAMED));
    assert_eq!(runs.start(&id("later"), code("x")), Ok(()));
    runs.claim(&id("later"));
    assert_eq!(runs.active(), Some(id(UNNAMED)), "one that waits is another");
    runs.push(out("before")).await;
    assert!(runs.input(&id("mine"), "typed"), "it takes what is typed");
    runs.claim(&id("somebody else's"));
    assert_eq!(runs.active(), Some(id("mine")));
    runs.end(FINISHED, Vec::new());
    let reply = runs.collect(&id("mine"), None).await.expect("a kernel");
    assert_eq!(
        (reply.status, console(&reply).as_str()),
        (RunStatus::Finished, "before")
    );
    let unknown = runs
        .collect(&id("somebody else's"), now())
        .await
        .expect("a kernel");
    assert_eq!(unknown.status, RunStatus::Continued);
}
