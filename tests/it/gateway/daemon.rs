//! The process: signals, PID file, privileges, TLS, logs, systemd.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixDatagram;

use bai_model::{AgentId, KernelId};
use bai_proto::event::{self, AgentEvent, AgentInfo};
use bai_proto::zmtp::Message;
use bai_testkit::FakeAgent;
use bai_testkit::remote::stranger;
use bai_testkit::services::Certificates;

use super::{PATIENCE, Place};

/// A request whose body is not complete yet.
struct HalfRequest {
    socket: TcpStream,
}

const BODY: &str = "{\"echo\": \"hello\"}";

impl HalfRequest {
    /// Sends all but the body. The server has seen the head when this returns.
    fn send(port: u16) -> Self {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let head = format!(
            "POST /auth/authorize HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Expect: 100-continue\r\n\r\n",
            BODY.len()
        );
        socket.write_all(head.as_bytes()).unwrap();
        let mut go_on = [0; 25];
        socket.read_exact(&mut go_on).unwrap();
        assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
        Self { socket }
    }

    fn finish(mut self) -> String {
        self.socket.write_all(BODY.as_bytes()).unwrap();
        let mut answer = String::new();
        self.socket.read_to_string(&mut answer).unwrap();
        answer
    }
}

#[test]
fn a_stop_lets_running_requests_end_and_takes_no_more() {
    let place = Place::new("", "");
    let mut daemon = place.start(&[]);
    let running = HalfRequest::send(place.port);
    daemon.signal("-TERM");
    daemon.wait_for("the end of listening", |_| !place.connects());
    let answer = running.finish();
    assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
    assert!(answer.contains("invalid-api-params"), "{answer}");
    let status = daemon.wait();
    assert!(status.success(), "{status}: {}", daemon.log());
}

/// What is wrong with events is told with the peer's address, whoever it claims to be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_events_are_refused_and_told_with_where_they_come_from() {
    let place = Place::new("", "");
    let mut daemon = tokio::task::block_in_place(|| place.start(&[]));
    let events = std::net::SocketAddr::from(([127, 0, 0, 1], place.event_port));
    let agent = AgentId::from("i-hostile");
    let kernel = KernelId(uuid::Uuid::from_u128(7));
    let heartbeat = |addr: &str| {
        let info = AgentInfo {
            id: agent.clone(),
            addr: addr.to_owned(),
            // Those that it brings would come behind the others.
            images: Vec::new(),
            ..FakeAgent::info()
        };
        event::encode(&agent, &AgentEvent::InstanceHeartbeat(info))
    };
    let forged = AgentEvent::KernelTerminated {
        kernel,
        reason: "forged".to_owned(),
        generation: None,
        stats: None,
    };
    let named = |name: &'static str, arguments: Vec<u8>| -> Message {
        vec![name.into(), "i-hostile".into(), arguments.into()]
    };
    // Its images are a gigabyte, as it says.
    let mut bomb = heartbeat("tcp://127.0.0.1:6001");
    let mut arguments = bomb[2].to_vec();
    let at = arguments.windows(6).position(|bytes| bytes == b"images").unwrap() + 6;
    arguments.splice(at.., [0xc4, 6, 0x80, 0x80, 0x80, 0x80, 0x04, 0x00]);
    bomb[2] = arguments.into();
    for (message, why) in [
        (vec!["kernel_started".into()], "1 frames are no event"),
        (
            named("kernel_started", vec![0x92, 0xc0, 0xc0]),
            "the event kernel_started has 2 arguments",
        ),
        (named("kernel_started", vec![0x91; 100_000]), "deep"),
        (named("kernel_started", vec![0x91, 0xd4, 0x7f, 0]), "extension"),
        (bomb, "the list of images is not compressed"),
        (
            heartbeat("tcp://169.254.169.254:80"),
            "169.254.169.254:80, where no agent",
        ),
        (heartbeat("tcp://0.0.0.0:6001"), "0.0.0.0:6001, where no agent"),
        (event::encode(&agent, &forged), "is none of this site's"),
        (heartbeat("tcp://127.0.0.1:6001"), "an agent joined"),
        (
            heartbeat("tcp://127.0.0.1:6002"),
            "it says that it is called at tcp://127.0.0.1:6002",
        ),
    ] {
        // Of each connection only the first refusal is told at once.
        let link = stranger(events);
        link.send(message).await;
        link.flushed().await;
        tokio::task::block_in_place(|| {
            daemon.wait_for(why, |daemon| {
                let log = daemon.log();
                let told = log.lines().find(|line| line.contains(why));
                told.is_some_and(|line| line.contains("127.0.0.1:"))
            });
        });
    }
    let refused = daemon
        .log()
        .lines()
        .filter(|line| line.contains("refused peer.addr="))
        .count();
    assert_eq!(refused, 9, "{}", daemon.log());
    tokio::task::block_in_place(|| daemon.stop());
}

#[test]
fn a_second_signal_stops_at_once() {
    let place = Place::new("", "");
    let mut daemon = place.start(&[]);
    let _running = HalfRequest::send(place.port);
    daemon.signal("-TERM");
    daemon.wait_for("the end of listening", |_| !place.connects());
    daemon.signal("-INT");
    assert_eq!(daemon.wait().code(), Some(130), "{}", daemon.log());
}

#[test]
fn running_requests_are_cut_off_when_their_time_is_over() {
    let place = Place::new("", "drain-timeout = 0.2");
    let mut daemon = place.start(&[]);
    let _running = HalfRequest::send(place.port);
    daemon.signal("-TERM");
    let status = daemon.wait();
    assert!(status.success(), "{status}");
    assert!(daemon.log().contains("were cut off"), "{}", daemon.log());
}

#[test]
fn the_pid_file_keeps_a_second_daemon_away_and_goes_with_the_first() {
    let place = Place::new("pid-file = '{folder}/manager.pid'", "");
    let pid_file = place.path("manager.pid");
    fs::write(&pid_file, "4194305\n").unwrap();
    let daemon = place.start(&[]);
    let held = fs::read_to_string(&pid_file).unwrap();
    assert_eq!(held, format!("{}\n", daemon.pid()));
    let second = place.command(&["gateway"]).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let text = String::from_utf8(second.stderr).unwrap();
    let expected = format!("is held by a running manager, process {}", daemon.pid());
    assert!(text.contains(&expected), "{text}");
    assert!(text.contains("manager.pid-file"), "{text}");
    daemon.stop();
    assert!(!pid_file.exists());
}

#[test]
fn root_becomes_the_configured_user_for_good() {
    let place = Place::new("user = 'nobody'", "");
    if fs::metadata(place.folder.path()).unwrap().uid() != 0 {
        println!("SKIPPED: changing the daemon's user, because these tests do not run as root");
        return;
    }
    let daemon = place.start(&[]);
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let ids = |name: &str| -> Vec<u32> {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().map(|id| id.parse().unwrap()).collect()
    };
    assert_eq!(ids("Uid:"), [65_534; 4]);
    assert_eq!(ids("Gid:"), [65_534; 4]);
    assert_eq!(ids("Groups:"), [65_534]);
    // All that it keeps is the user's.
    assert_eq!(fs::metadata(place.path("data")).unwrap().uid(), 65_534);
    assert_eq!(
        fs::metadata(place.path("data/credentials.json")).unwrap().mode() & 0o777,
        0o600
    );
    // One thread that is still root would be enough.
    for task in fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap() {
        assert_eq!(fs::metadata(task.unwrap().path()).unwrap().uid(), 65_534);
    }
    daemon.stop();
}

#[test]
fn an_unknown_user_is_named() {
    let place = Place::new("user = 'bai-nobody-at-all'", "");
    if fs::metadata(place.folder.path()).unwrap().uid() != 0 {
        println!("SKIPPED: changing the daemon's user, because these tests do not run as root");
        return;
    }
    let output = place.command(&["gateway"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.contains("manager.user: this host has no user \"bai-nobody-at-all\""),
        "{text}"
    );
}

/// A client that believes this authority only, and the answer's status or why there is none.
fn ask_with_tls(place: &Place, authority: &std::path::Path) -> Result<u16, String> {
    let pem = fs::read(authority).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.unwrap().block_on(async {
        let certificate = reqwest::Certificate::from_pem(&pem).unwrap();
        let client = reqwest::Client::builder()
            .tls_certs_only([certificate])
            .build()
            .unwrap();
        let answer = client
            .get(format!("https://127.0.0.1:{}/", place.port))
            .send()
            .await;
        answer
            .map(|answer| answer.status().as_u16())
            .map_err(|error| format!("{error:?}"))
    })
}

#[test]
fn tls_is_served_and_its_certificate_read_again_at_a_hang_up() {
    let (first, second) = (Certificates::make(), Certificates::make());
    let place = Place::new(
        "ssl-enabled = true\nssl-cert = '{folder}/cert.pem'\nssl-privkey = '{folder}/key.pem'",
        "",
    );
    let [chain, key] = ["cert.pem", "key.pem"].map(|name| place.path(name));
    let install = |certificates: &Certificates| {
        fs::copy(certificates.certificate(), &chain).unwrap();
        fs::copy(certificates.key(), &key).unwrap();
    };
    install(&first);
    let mut daemon = place.start(&[]);
    assert_eq!(ask_with_tls(&place, &first.authority()), Ok(200));
    ask_with_tls(&place, &second.authority()).expect_err("another authority's");
    // One that cannot be used changes nothing.
    fs::copy(second.key(), &key).unwrap();
    daemon.signal("-HUP");
    daemon.wait_for("the refusal", |daemon| {
        daemon.log().contains("the certificate in use stays")
    });
    assert_eq!(ask_with_tls(&place, &first.authority()), Ok(200));
    install(&second);
    daemon.signal("-HUP");
    daemon.wait_for("the other certificate", |daemon| {
        daemon.log().contains("was read again")
    });
    assert_eq!(ask_with_tls(&place, &second.authority()), Ok(200));
    daemon.stop();

    for (damage, expected) in [
        (&key, "holds no certificate in PEM (manager.ssl-cert)"),
        (&chain, "(manager.ssl-privkey)"),
    ] {
        install(&first);
        let (from, to) = if damage == &key {
            (&key, &chain)
        } else {
            (&chain, &key)
        };
        fs::copy(from, to).unwrap();
        let output = place.command(&["gateway"]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn a_full_log_is_put_aside_and_every_line_is_an_object() {
    let place = Place::new(
        "[logging]\nlevel = 'DEBUG'\ndrivers = ['file']\n[logging.file]\npath = '{folder}/log'\n\
         filename = 'manager.log'\nrotation-size = 512\nbackup-count = 2\n",
        "",
    );
    let logs = place.path("log");
    // Each start has a few things to say, and goes on where the last one ended.
    for _ in 0..6 {
        place.start(&[]).stop();
    }
    let mut seen = String::new();
    for name in ["manager.log.2", "manager.log.1", "manager.log"] {
        let text = fs::read_to_string(logs.join(name)).unwrap();
        assert!(
            text.len() <= 512 || text.lines().count() == 1,
            "{name}: {}",
            text.len()
        );
        for line in text.lines() {
            let record: serde_json::Value = serde_json::from_str(line).unwrap();
            assert!(
                record["level"].is_string() && record["timestamp"].is_string(),
                "{line}"
            );
        }
        seen.push_str(&text);
    }
    assert!(!logs.join("manager.log.3").exists());
    // What was said last is there: nothing waits when the process ends.
    assert!(seen.contains("the manager has stopped"), "{seen}");
}

#[test]
fn systemd_is_told_of_start_and_stop() {
    let place = Place::new("", "");
    let path = place.path("notify");
    let systemd = UnixDatagram::bind(&path).unwrap();
    systemd.set_read_timeout(Some(PATIENCE)).unwrap();
    let hear = |wanted: &str| {
        let mut text = [0; 256];
        loop {
            let length = systemd.recv(&mut text).unwrap();
            let text = std::str::from_utf8(&text[..length]).unwrap();
            if text.starts_with(wanted) {
                return;
            }
        }
    };
    let daemon = place.spawn(&[
        ("NOTIFY_SOCKET", path.to_str().unwrap()),
        ("WATCHDOG_USEC", "20000"),
    ]);
    hear("WATCHDOG=1");
    hear(&format!(
        "READY=1\nSTATUS=serving http://127.0.0.1:{}",
        place.port
    ));
    assert!(place.connects());
    hear("WATCHDOG=1");
    daemon.signal("-TERM");
    hear("STOPPING=1");
    daemon.stop_after_signal();
}

#[test]
fn a_wrong_configuration_is_told_whole_and_starts_nothing() {
    let place = Place::empty();
    place.write("[etcd]\n", "num-proc = -1", "");
    for words in [
        &["gateway"][..],
        &["gateway", "--check-config"],
        &["gateway", "--dump-config"],
    ] {
        let output = place.command(words).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8(output.stderr).unwrap();
        let expected = format!(
            "bai: Validation of manager configuration has failed: {}\n  \
             db is missing: add a table [db] to the file\n  \
             etcd.namespace is missing: add `namespace = \"local\"` to [etcd]\n  \
             manager.num-proc must be from 0 to 4096; it is -1\n",
            place.config().display()
        );
        assert_eq!(text, expected);
        assert!(output.stdout.is_empty());
    }
    let place = Place::new("", "");
    let output = place.command(&["gateway", "--check-config"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(!place.path("data").exists());
}

#[test]
fn no_configuration_at_all_says_where_it_was_looked_for() {
    let place = Place::empty();
    let output = std::process::Command::new(crate::server::bai())
        .arg("gateway")
        .current_dir(place.folder.path())
        .env_clear()
        .env("HOME", place.folder.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    for expected in [
        "  manager.toml\n",
        "/.config/backend.ai/manager.toml\n",
        "  /etc/backend.ai/manager.toml\n",
    ] {
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn a_port_that_is_taken_by_somebody_else_is_named() {
    let place = Place::new("", "");
    let _taken = std::net::TcpListener::bind(("127.0.0.1", place.port)).unwrap();
    let output = place.command(&["gateway"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    let expected = format!("cannot listen on 127.0.0.1:{} (manager.service-addr)", place.port);
    assert!(text.contains(&expected), "{text}");
}

#[test]
fn a_frozen_site_stays_frozen_over_a_restart() {
    let place = Place::new("", "");
    place.start(&[]).stop();
    let etcd = |words: &[&str]| {
        let output = place.command(&[&["etcd"], words].concat()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(etcd(&["get", "manager/status"]), "running\n");
    for (left, expected) in [
        ("frozen", "frozen\n"),
        ("preparing", "running\n"),
        ("terminated", "running\n"),
    ] {
        etcd(&["put", "manager/status", left]);
        place.start(&[]).stop();
        assert_eq!(etcd(&["get", "manager/status"]), expected);
    }
}
