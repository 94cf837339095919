//! Terminals.

use std::sync::Arc;

use bai_proto::pty::{Terminal, TerminalServer};
use bai_proto::zmtp::AllowList;
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use crate::support::{Counter, loopback, soon};

#[tokio::test]
async fn what_is_typed_arrives_from_the_first_key_on_and_what_is_printed_comes() {
    let (server, mut typed, printed) = TerminalServer::bind(loopback(), loopback(), AllowList::default())
        .await
        .expect("ports");
    let (input, output) = server.local_addrs().expect("addresses");
    let stop = CancellationToken::new();
    let task = tokio::spawn(server.run(stop.clone()));
    let mut terminal = Terminal::connect(
        "127.0.0.1",
        input.port(),
        output.port(),
        Arc::new(Counter::default()),
    );
    soon(terminal.ready()).await;
    for key in ["l", "s", "\n"] {
        soon(terminal.send(Bytes::from(key))).await;
    }
    for key in ["l", "s", "\n"] {
        assert_eq!(soon(typed.recv()).await, Some(Bytes::from(key)));
    }
    // Until its subscription is there, a terminal misses what is printed.
    let shown = soon(async {
        loop {
            printed
                .send(Bytes::from_static(b"a\xff\n"))
                .expect("somebody listens");
            tokio::select! {
                shown = terminal.recv() => return shown,
                () = tokio::task::yield_now() => {}
            }
        }
    });
    assert_eq!(shown.await, Some(Bytes::from_static(b"a\xff\n")));
    stop.cancel();
    soon(task).await.expect("an orderly end");
}
