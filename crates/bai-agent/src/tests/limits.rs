//! Slots, ports and idle time.

use super::*;

#[tokio::test]
async fn more_than_there_is_is_refused_with_the_amounts() {
    let bed = Bed::new().await;
    let config = |cpu, mem| KernelConfig {
        resource_slots: slots(cpu, mem),
        ..FakeRuntime::config()
    };
    bed.agent
        .create_kernel(id(1), config(3, 1))
        .await
        .expect("enough");
    let error = bed
        .agent
        .create_kernel(id(2), config(2, 1))
        .await
        .expect_err("too much");
    let AgentError::Exception { kind, args } = &error else {
        panic!("{error}")
    };
    assert_eq!(kind, "InsufficientResource");
    assert_eq!(args[1..], ["cpu", "cpu", "2", "1"]);
    let error = bed
        .agent
        .create_kernel(id(2), config(1, MEMORY))
        .await
        .expect_err("too much");
    let AgentError::Exception { args, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(args[1..4], ["mem", "mem", &MEMORY.to_string()]);
    bed.agent
        .create_kernel(id(2), config(1, 1))
        .await
        .expect("enough");
    bed.agent.destroy_kernel(id(1)).await.expect("destroyed");
    bed.agent
        .create_kernel(id(3), config(3, 1))
        .await
        .expect("given back");
}

#[tokio::test]
async fn ports_run_out_and_come_back() {
    let bed = Bed::new().await;
    let config = || KernelConfig {
        resource_slots: slots(0, 1),
        ..FakeRuntime::config()
    };
    for number in 1..=4 {
        bed.agent
            .create_kernel(id(number), config())
            .await
            .expect("four ports each");
    }
    let error = bed
        .agent
        .create_kernel(id(5), config())
        .await
        .expect_err("no ports");
    assert_eq!(
        error.repr(),
        "RuntimeError('Container ports are not sufficiently available.')"
    );
    bed.agent.destroy_kernel(id(2)).await.expect("destroyed");
    let created = bed
        .agent
        .create_kernel(id(5), config())
        .await
        .expect("four are free");
    assert_eq!((created.repl_in_port, created.stdout_port), (30004, 30007));
}

#[tokio::test]
async fn services_get_ports_of_the_pool() {
    let bed = Bed::new().await;
    let mut config = FakeRuntime::config();
    config.image.labels.insert(
        "ai.backend.service-ports".to_owned(),
        "jupyter:http:8080,vnc:tcp:5900".to_owned(),
    );
    let created = bed.agent.create_kernel(id(1), config).await.expect("a kernel");
    let ports: Vec<(u16, u16)> = created
        .service_ports
        .iter()
        .map(|port| (port.container_port, port.host_port))
        .collect();
    assert_eq!(ports, [(8080, 30004), (5900, 30005)]);
    bed.agent.destroy_kernel(id(1)).await.expect("destroyed");
    bed.assert_clean();
}

#[tokio::test]
async fn idle_kernels_end_and_used_ones_do_not() {
    let mut bed = Bed::new().await;
    let config = |idle_timeout| KernelConfig {
        idle_timeout,
        ..FakeRuntime::config()
    };
    // When the witness has ended, the others have been looked at, too: they are looked at together, in one pass.
    for (kernel, timeout) in [(1, 60), (2, 60), (3, 0)] {
        bed.agent
            .create_kernel(id(kernel), config(timeout))
            .await
            .expect("a kernel");
    }
    bed.clock.advance(40);
    bed.agent.refresh_idle(id(1)).await.expect("refreshed");
    bed.clock.advance(40);
    let (kernel, reason, ..) = bed.terminated().await;
    assert_eq!((kernel, reason.as_str()), (id(2), "idle-timeout"));
    bed.agent
        .create_kernel(id(4), config(30))
        .await
        .expect("a kernel");
    // Using the first in any way postpones its end.
    bed.agent.get_logs(id(1)).await.expect("a log");
    bed.clock.advance(31);
    assert_eq!(bed.terminated().await.0, id(4));
    bed.clock.advance(30);
    assert_eq!(bed.terminated().await.0, id(1));
    assert_eq!(bed.agent.list_kernels().await, Ok(vec![id(3)]), "0 means never");
}
