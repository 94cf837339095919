//! Ports, connections, services and commands to the terminal.

use std::net::{TcpListener, TcpStream};

use bai_proto::agent::{RunStatus, ServiceStart};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::kernel::MAX_CONNECTIONS;

/// A kernel with a service.
fn with_service() -> KernelConfig {
    let mut config = FakeRuntime::config();
    config
        .image
        .labels
        .insert("ai.backend.service-ports".to_owned(), "web:http:8000".to_owned());
    config
}

#[tokio::test]
async fn a_port_that_something_else_has_is_exchanged_for_another() {
    let bed = Bed::new().await;
    let config = with_service();
    // The second of the terminal's, and the service's.
    let taken: Vec<TcpListener> = [30003, 30004]
        .into_iter()
        .map(|port| TcpListener::bind((bed.listen, port)).expect("free"))
        .collect();
    let created = bed
        .agent
        .create_kernel(id(1), config.clone())
        .await
        .expect("a kernel");
    let [web] = created.service_ports.as_slice() else {
        panic!("{created:?}")
    };
    for port in [created.stdin_port, created.stdout_port, web.host_port] {
        assert!(![30003, 30004].contains(&port), "{created:?}");
        TcpStream::connect((bed.listen, port)).expect("it listens");
    }
    drop(taken);
    // An address that is not this host's is told as such.
    let other = Bed::new_at("192.0.2.1".parse().expect("an address")).await;
    let refused = other
        .agent
        .create_kernel(id(1), config)
        .await
        .expect_err("nobody is there");
    assert!(
        refused.repr().contains("cannot listen on 192.0.2.1:"),
        "{refused}"
    );
    other.assert_clean();
    bed.agent.destroy_kernel(id(1)).await.expect("destroyed");
    bed.assert_clean();
}

#[tokio::test]
async fn a_restart_without_free_ports_keeps_those_that_it_has() {
    let bed = Bed::new().await;
    for number in 1..=4 {
        let config = KernelConfig {
            resource_slots: slots(0, 1),
            ..FakeRuntime::config()
        };
        bed.agent
            .create_kernel(id(number), config)
            .await
            .expect("a kernel");
    }
    let created = bed
        .agent
        .create_kernel(id(1), FakeRuntime::config())
        .await
        .expect("it is there");
    let restarted = soon(bed.agent.restart_kernel(id(1), FakeRuntime::config()))
        .await
        .expect("restarted");
    assert_eq!(
        restarted,
        KernelCreated {
            container_id: restarted.container_id.clone(),
            ..created
        }
    );
    soon(async {
        // The former listener goes away in its own time.
        while TcpStream::connect((bed.listen, restarted.stdout_port)).is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_kernel_has_so_many_connections_at_most() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    if hard < 4096 || setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_err() {
        println!("SKIPPED: {MAX_CONNECTIONS} connections, because {hard} files may be open at most");
        return;
    }
    let bed = Bed::new().await;
    // Kernels of the fake runtime are in the host's network.
    let inside = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let port = inside.local_addr().expect("bound").port();
    let mut config = FakeRuntime::config();
    config
        .image
        .labels
        .insert("ai.backend.service-ports".to_owned(), format!("web:tcp:{port}"));
    let created = bed.agent.create_kernel(id(1), config).await.expect("a kernel");
    let address = (bed.listen, created.service_ports[0].host_port);
    let mut open = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        let outside = tokio::net::TcpStream::connect(address).await.expect("connected");
        let (accepted, _) = soon(inside.accept()).await.expect("carried on");
        open.push((outside, accepted));
    }
    let mut surplus = tokio::net::TcpStream::connect(address).await.expect("connected");
    let refused = soon(surplus.read(&mut [0])).await.expect_err("reset");
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionReset);
    // One that ends, at either side, makes room.
    drop(open.pop().map(|(_, accepted)| accepted));
    soon(async {
        loop {
            let mut next = tokio::net::TcpStream::connect(address).await.expect("connected");
            let inside = tokio::time::timeout(Duration::from_millis(50), inside.accept()).await;
            if let Ok(Ok((mut accepted, _))) = inside {
                accepted.write_all(b"x").await.expect("sent");
                assert_eq!(next.read_u8().await.expect("received"), b'x');
                return;
            }
        }
    })
    .await;
    // A kernel's end is its connections' end.
    bed.agent.destroy_kernel(id(1)).await.expect("destroyed");
    let (mut outside, _accepted) = open.pop().expect("one");
    assert!(matches!(soon(outside.read(&mut [0])).await, Ok(0) | Err(_)));
    bed.assert_clean();
}

#[tokio::test]
async fn services_that_a_kernel_does_not_have_are_not_started() {
    let bed = Bed::new().await;
    let config = with_service();
    bed.agent.create_kernel(id(1), config).await.expect("a kernel");
    let start =
        async |kernel, name: &str| soon(bed.agent.start_service(kernel, name.to_owned(), Value::Null)).await;
    assert_eq!(start(id(1), "web").await, Ok(ServiceStart::Started));
    let unknown = ServiceStart::Failed("invalid service name".to_owned());
    assert_eq!(start(id(1), "other").await, Ok(unknown));
    assert_eq!(kind(&start(id(2), "web").await.expect_err("unknown")), "KeyError");
}

#[tokio::test]
async fn commands_to_the_terminal_wait_for_no_run() {
    let bed = Bed::new().await;
    bed.create(id(1)).await;
    let mut long = request("long", ExecuteMode::Query, "wait gate");
    long.flush_timeout = Some(Duration::ZERO);
    bed.agent.execute(id(1), long).await.expect("executed");
    bed.until_active(id(1), "long").await;
    let reply = bed.query(id(1), "ping", "%ping").await;
    assert_eq!(
        (reply.status, reply.exit_code, reply.console),
        (RunStatus::Finished, Some(0), vec![stdout("pong!\n")])
    );
    let reply = bed.query(id(1), "resize", "%resize 0 0").await;
    assert_eq!(reply.exit_code, Some(2));
    bed.runtime.open("gate");
    assert_eq!(bed.go_on(id(1), "long").await.exit_code, Some(0));
}
