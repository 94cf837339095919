//! The runner in containers of any image: with a Jupyter kernel, without glibc, with nothing but one program.

use std::path::Path;
use std::time::{Duration, Instant};

use bai_agent::runtime::docker::DockerRuntime;
use bai_agent::runtime::{RunnerStream, Runtime};
use bai_proto::runner::{Frame, Record, Request};
use bai_testkit::services::{Docker, rootfs};
use tokio::io::{AsyncWriteExt, WriteHalf};
use tokio::sync::mpsc;

use crate::docker::{Bench, shared};

/// Greets with its arguments, and whom it reads about.
const ASK: &str = r#"#include <stdio.h>
int main(int count, char **words) {
    char name[100];
    for (int i = 1; i < count; i++) printf("<%s>", words[i]);
    fflush(stdout);
    if (scanf("%99s", name) != 1) return 9;
    printf("hello %s\n", name);
    return 3;
}
"#;

/// What a run said.
#[derive(Debug, Default)]
struct Said {
    out: String,
    err: String,
    html: Vec<String>,
    media: Vec<(String, String)>,
    asked: usize,
    code: Option<i32>,
}

/// A session in a container.
struct Session {
    bench: Bench,
    runtime: DockerRuntime,
    id: String,
    writer: WriteHalf<Box<dyn RunnerStream>>,
    /// What a task of its own reads.
    records: mpsc::UnboundedReceiver<Record>,
}

impl Session {
    /// Makes an image by `furnish`, and starts a container of it; `None` with the reason where that cannot be.
    async fn start(
        index: u32,
        image: &str,
        runtime: [&str; 2],
        furnish: impl FnOnce(&Path) -> anyhow::Result<()>,
    ) -> Option<Self> {
        let docker = shared()?;
        let mut bench = Bench::new(docker, index).await?;
        if let Err(error) = make(docker, image, furnish) {
            println!("SKIPPED: sessions in {image}, because {error:#}");
            return None;
        }
        bench.spec.image = image.to_owned();
        let [runtime_type, path] = runtime.map(str::to_owned);
        (bench.spec.runtime_type, bench.spec.runtime_path) = (runtime_type, Some(path));
        Some(Self::of(bench).await)
    }

    async fn of(bench: Bench) -> Self {
        let runtime = bench.open().await;
        let id = runtime.start(&bench.spec).await.expect("started").container_id;
        let stream = runtime.connect(&bench.spec).await.expect("the runner accepts");
        let (mut reader, writer) = tokio::io::split(stream);
        let (sender, records) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok(Some(frame)) = Frame::read_async(&mut reader).await {
                if sender.send(Record::from_frame(frame)).is_err() {
                    return;
                }
            }
        });
        Self {
            bench,
            runtime,
            id,
            writer,
            records,
        }
    }

    async fn send(&mut self, request: Request) {
        self.writer
            .write_all(&request.to_frame().encode())
            .await
            .expect("written");
    }

    async fn next(&mut self) -> Record {
        self.records.recv().await.expect("the session lives")
    }

    async fn run(&mut self, request: Request, answers: &[&str]) -> Said {
        self.send(request).await;
        self.follow(answers).await
    }

    async fn follow(&mut self, answers: &[&str]) -> Said {
        let (mut out, mut err, mut said) = (Vec::new(), Vec::new(), Said::default());
        loop {
            match self.next().await {
                Record::Stdout(bytes) => out.extend(bytes),
                Record::Stderr(bytes) => err.extend(bytes),
                Record::Html(text) => said.html.push(text),
                Record::Media { mime, data } => said.media.push((mime, data)),
                Record::WaitingInput { .. } => {
                    let answer = answers
                        .get(said.asked)
                        .unwrap_or_else(|| panic!("asked again: {said:?}"));
                    self.send(Request::Input((*answer).to_owned())).await;
                    said.asked += 1;
                }
                Record::Finished { exit_code } => {
                    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
                    (said.out, said.err, said.code) = (text(out), text(err), exit_code);
                    return said;
                }
                _ => {}
            }
        }
    }

    async fn code(&mut self, code: &str) -> Said {
        self.run(Request::Code(code.to_owned()), &[]).await
    }

    async fn exec(&mut self, command: &str, answers: &[&str]) -> Said {
        self.run(Request::Exec(command.to_owned()), answers).await
    }

    /// Interrupts a run when it has printed something, again if it did not hear.
    async fn interrupt(&mut self, request: Request) -> Said {
        self.send(request).await;
        while !matches!(self.next().await, Record::Stdout(_)) {}
        loop {
            self.send(Request::Interrupt).await;
            let said = tokio::time::timeout(Duration::from_secs(2), self.follow(&[])).await;
            if let Ok(said) = said {
                return said;
            }
        }
    }

    async fn end(self) {
        self.runtime
            .kill(&self.bench.spec, &self.id)
            .await
            .expect("killed");
    }
}

fn make(
    docker: &Docker,
    image: &str,
    furnish: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    furnish(dir.path())?;
    docker.import(dir.path(), image, &[])
}

#[tokio::test]
async fn a_jupyter_kernel_of_the_image_runs_queries() {
    let started = Instant::now();
    let session = Session::start(21, "jupyter:1", ["python", "/usr/bin/python3"], |root| {
        rootfs::shell(root)?;
        rootfs::python(root)?;
        rootfs::kernel(root)
    });
    let Some(mut session) = session.await else { return };
    println!("image and container made in {:?}", started.elapsed());
    let said = session
        .code("import sys; x = 6; 'ipykernel' in sys.modules")
        .await;
    assert_eq!(
        (said.out.as_str(), said.err.as_str(), said.code),
        ("True", "", Some(0))
    );
    assert_eq!(session.code("x * 7").await.out, "42");
    let said = session
        .run(Request::Code("print('hello', input('who? '))".into()), &["me"])
        .await;
    assert_eq!((said.out.as_str(), said.asked), ("who? hello me\n", 1));
    let said = session
        .code("from IPython.display import HTML, Image, display\ndisplay(HTML('<b>'), Image(b'\\x89PNG\\r\\n\\x1a\\n' + bytes(20), format='png'))")
        .await;
    assert_eq!(said.html, ["<b>"], "{said:?}");
    assert_eq!(said.media.len(), 1, "{said:?}");
    assert!(said.media[0].0 == "image/png" && said.media[0].1.starts_with("iVBORw0KGgo"));
    let said = session.code("1 / 0").await;
    assert!(
        said.err.contains("\u{1b}[") && said.err.contains("ZeroDivisionError"),
        "{said:?}"
    );
    assert_eq!(said.code, Some(0));
    let said = session
        .interrupt(Request::Code("print(1, flush=True)\nwhile True: pass".into()))
        .await;
    assert!(said.err.contains("KeyboardInterrupt"), "{said:?}");
    session.code("%config IPCompleter.use_jedi = False").await;
    session
        .send(Request::Complete(r#"{"code": "sys.byteor"}"#.into()))
        .await;
    assert_eq!(
        session.next().await,
        Record::Completion(r#"["sys.byteorder"]"#.into())
    );
    // Batch programs of the same session are programs of their own.
    let main = session.bench.spec.scratch.join("work/main.py");
    std::fs::write(main, "print('hello', input())").expect("written");
    let said = session.exec("*", &["batch"]).await;
    assert_eq!(
        (said.out.as_str(), said.asked, said.code),
        ("hello batch\n", 1, Some(0))
    );
    // The hook of older images.
    let hook = "python3 -c \"
import socket
print(socket.create_connection(('127.0.0.1', 65000)).recv(99))\"";
    let said = session.exec(hook, &["hooked"]).await;
    assert_eq!((said.out.as_str(), said.asked), ("b'hooked'\n", 1));
    let said = session.code("import os; os._exit(7)").await;
    assert_eq!(said.code, Some(7), "{said:?}");
    assert_eq!(session.code("'x' in globals()").await.out, "False");
    session.end().await;
}

#[tokio::test]
async fn an_image_without_glibc_is_like_any_other() {
    let session = Session::start(22, "musl:1", ["shell", "/bin/sh"], |root| rootfs::musl(root, ASK));
    let Some(mut session) = session.await else { return };
    let said = session.exec("ask a 'b c'", &["musl"]).await;
    assert_eq!(
        (said.out.as_str(), said.asked, said.code),
        ("<a><b c>hello musl\n", 1, Some(3))
    );
    assert_eq!(session.code("x=42; cd /tmp").await.code, Some(0));
    assert_eq!(session.code("echo $x; pwd").await.out, "42\n/tmp\n");
    let said = session
        .run(Request::Code("ask; echo $?".into()), &["again"])
        .await;
    assert_eq!((said.out.as_str(), said.asked), ("hello again\n3\n", 1));
    for request in [
        Request::Code("echo 1; sleep 1000".into()),
        Request::Exec("echo 1; sleep 1000".into()),
    ] {
        let said = session.interrupt(request).await;
        assert_eq!(said.code, Some(130), "{said:?}");
    }
    session.send(Request::Complete("{}".into())).await;
    assert_eq!(session.next().await, Record::Completion("[]".into()));
    assert_eq!(session.code("echo $x").await.out, "42\n", "the shell has stayed");
    // Orphans are reaped by the container's first process.
    session.exec("(true & true & sleep 0.1 &); sleep 0.3", &[]).await;
    let said = session.exec("cat /proc/[0-9]*/stat | grep -c ' Z 1 '", &[]).await;
    assert_eq!(said.out, "0\n");
    session.end().await;
}

#[tokio::test]
async fn an_image_of_one_program_runs_it() {
    let session = Session::start(23, "scratch:1", ["app", "/app"], |root| {
        rootfs::scratch(root, ASK)
    });
    let Some(mut session) = session.await else { return };
    let said = session.exec("/app \"a b\" c\\ d", &["nobody"]).await;
    assert_eq!(
        (said.out.as_str(), said.asked, said.code),
        ("<a b><c d>hello nobody\n", 1, Some(3))
    );
    let said = session.interrupt(Request::Exec("/app waits".into())).await;
    assert_eq!(said.code, Some(130), "{said:?}");
    let said = session.exec("/app > file", &[]).await;
    assert!(
        said.err.contains("the image has no /bin/sh") && said.code == Some(-1),
        "{said:?}"
    );
    let said = session.exec("/no/such/program", &[]).await;
    assert_eq!(said.code, Some(127), "{said:?}");
    let said = session.code("1 + 1").await;
    assert!(
        said.err.contains("query mode is not available") && said.code == Some(127),
        "{said:?}"
    );
    session.end().await;
}

#[tokio::test]
async fn a_session_that_is_full_of_processes_says_so_and_lives() {
    let Some(docker) = shared() else { return };
    let Some(mut bench) = Bench::new(docker, 24).await else {
        return;
    };
    bench.options.processes = 40;
    let mut session = Session::of(bench).await;
    let said = session.exec("while :; do sleep 1000 & done", &[]).await;
    assert_ne!(said.code, Some(0), "{said:?}");
    // The place of the shell that filled the session.
    assert_eq!(session.code("sleep 1000 &").await.code, Some(0));
    let said = session.exec("echo never", &[]).await;
    assert!(
        said.err.contains("as many processes as it may have") && said.code == Some(-1),
        "{said:?}"
    );
    // The shell of query mode was there before, and makes room.
    assert_ne!(session.code("kill -9 $!; wait $!").await.code, Some(0));
    assert_eq!(session.exec("echo alive", &[]).await.out, "alive\n");
    session.end().await;
}
