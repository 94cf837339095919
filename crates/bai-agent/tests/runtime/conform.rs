//! What every runtime must do for a kernel whose image has a shell.

use std::path::Path;
use std::time::Duration;

use bai_agent::runtime::{KernelSpec, RunnerStream, Runtime};
use bai_model::KernelId;
use bai_proto::runner::{Frame, Record, Request};
use tokio::io::AsyncWriteExt;

/// For what takes milliseconds on a machine that does nothing else.
const PATIENCE: Duration = Duration::from_secs(60);

/// A kernel with a shell, one core and 256 MiB, whose folders are below `dir`.
pub fn spec(dir: &Path, index: u32) -> KernelSpec {
    // Longer than a socket's address may be.
    let scratch = dir.join("deep/".repeat(20)).join("kernel");
    for name in ["work", "config", "run"] {
        std::fs::create_dir_all(scratch.join(name)).expect("directories");
    }
    let id = format!("{:08x}-0000-4000-8000-{index:012x}", std::process::id());
    KernelSpec {
        cpu_set: vec![0],
        memory: 256 << 20,
        runtime_type: "shell".to_owned(),
        runtime_path: Some("/bin/sh".to_owned()),
        index,
        ..KernelSpec::unknown(KernelId(id.parse().expect("an id")), scratch)
    }
}

/// Sends a request and gives what was printed until it was finished.
pub async fn run(stream: &mut dyn RunnerStream, request: Request) -> (String, Option<i32>) {
    let mut stream = stream;
    stream
        .write_all(&request.to_frame().encode())
        .await
        .expect("written");
    let mut out = Vec::new();
    loop {
        let frame = Frame::read_async(&mut stream)
            .await
            .expect("a frame")
            .expect("the session lives");
        match Record::from_frame(frame) {
            Record::Stdout(bytes) | Record::Stderr(bytes) => out.extend(bytes),
            Record::Finished { exit_code } => {
                return (String::from_utf8_lossy(&out).trim().to_owned(), exit_code);
            }
            _ => {}
        }
    }
}

/// What a shell command prints in the kernel, and its exit code.
pub async fn sh(runtime: &dyn Runtime, spec: &KernelSpec, command: &str) -> (String, Option<i32>) {
    let mut stream = runtime.connect(spec).await.expect("the runner accepts");
    run(&mut *stream, Request::Exec(command.to_owned())).await
}

async fn start(runtime: &dyn Runtime, spec: &KernelSpec) -> String {
    runtime.start(spec).await.expect("the kernel starts").container_id
}

/// Kills everything that the session's user may kill, the runner itself, and gives the reason that the runtime tells.
async fn end_from_inside(runtime: &dyn Runtime, spec: &KernelSpec, id: &str) -> String {
    let waiting = runtime.wait(spec, id);
    let mut stream = runtime.connect(spec).await.expect("the runner accepts");
    let suicide = Request::Exec("kill -9 -1".to_owned()).to_frame().encode();
    stream.write_all(&suicide).await.expect("written");
    tokio::time::timeout(PATIENCE, waiting).await.expect("it ends")
}

/// A kernel starts, works on its own folder as an ordinary user, is measured, is killed, and can be killed again.
pub async fn works_and_is_killed(runtime: &dyn Runtime, spec: &KernelSpec) {
    let id = start(runtime, spec).await;
    assert!(id.len() <= 64, "{id}");
    assert_eq!(
        sh(runtime, spec, "echo $((6*7)); pwd").await,
        ("42\n/home/work".to_owned(), Some(0))
    );
    assert_ne!(sh(runtime, spec, "id -u").await.0, "0");
    assert_eq!(sh(runtime, spec, "echo x > kept && cat kept").await.0, "x");
    let sample = runtime.measure(spec, &id).await.expect("measurements");
    assert_ne!(sample.memory, 0, "{sample:?}");
    runtime.kill(spec, &id).await.expect("killed");
    runtime.kill(spec, &id).await.expect("nothing to kill is success");
    assert!(runtime.adopt(spec, &id).await.expect("asked").is_none());
}

/// A second life has another name and the same files.
pub async fn restarts_with_its_files(runtime: &dyn Runtime, spec: &KernelSpec) {
    let first = start(runtime, spec).await;
    sh(runtime, spec, "echo before > kept").await;
    runtime.kill(spec, &first).await.expect("killed");
    let second = start(runtime, spec).await;
    assert_ne!(first, second);
    assert_eq!(sh(runtime, spec, "cat kept").await.0, "before");
    assert!(runtime.adopt(spec, &first).await.expect("asked").is_none());
    runtime.kill(spec, &second).await.expect("killed");
}

/// A kernel goes on without the runtime that has started it, and `next` finds it again, by its name and without.
pub async fn outlives_its_agent(runtime: Box<dyn Runtime>, next: &dyn Runtime, spec: &KernelSpec) {
    let id = start(&*runtime, spec).await;
    drop(runtime);
    assert_eq!(next.find(spec).await.expect("found").container_id, id);
    assert!(next.adopt(spec, &id).await.expect("asked").is_some());
    let other = format!("{id}7");
    assert!(
        next.adopt(spec, &other).await.expect("asked").is_none(),
        "another name is another kernel"
    );
    assert_eq!(sh(next, spec, "echo still here").await.0, "still here");
    next.kill(spec, &id).await.expect("killed");
    assert!(next.find(spec).await.is_none());
}

/// Who waits is told when a kernel has ended by itself.
pub async fn tells_of_its_end(runtime: &dyn Runtime, spec: &KernelSpec) {
    let id = start(runtime, spec).await;
    assert_eq!(end_from_inside(runtime, spec, &id).await, "self-terminated");
    runtime.kill(spec, &id).await.expect("cleaned up");
}

/// A process that wants too much is killed, the session goes on; when the runner is killed after that, want of memory is
/// the reason.
pub async fn names_want_of_memory(runtime: &dyn Runtime, spec: &KernelSpec) {
    let id = start(runtime, spec).await;
    let hog = "head -c 700m /dev/zero | tail -c 600m | wc -c";
    let (said, _) = sh(runtime, spec, hog).await;
    assert_ne!(said, (600_u64 << 20).to_string(), "more memory than allowed");
    assert_eq!(sh(runtime, spec, "echo alive").await.0, "alive");
    assert_eq!(end_from_inside(runtime, spec, &id).await, "out-of-memory");
    runtime.kill(spec, &id).await.expect("cleaned up");
}

/// A start that fails says why, and leaves nothing that is found.
pub async fn says_why_it_does_not_start(runtime: &dyn Runtime, spec: &KernelSpec) {
    let mut broken = spec.clone();
    broken.binds = vec![("/nonexistent/folder".into(), "/home/work/data".to_owned(), true)];
    let error = runtime.start(&broken).await.expect_err("there is no such folder");
    assert!(error.to_string().contains("/nonexistent/folder"), "{error}");
    assert!(runtime.find(&broken).await.is_none());
    broken.binds[0] = (spec.scratch.clone(), "/home/work/../../etc".to_owned(), true);
    runtime
        .start(&broken)
        .await
        .expect_err("the target leaves the folder");
    assert!(runtime.find(&broken).await.is_none());
}
