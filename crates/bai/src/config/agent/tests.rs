//! Mistakes and what is said about them; everything that 19.06 understands; the dump.

use std::fs;
use std::path::Path;

use super::*;
use crate::config::{ConfigError, Loaded, load};
use crate::sessions::RuntimeChoice;

const LEAST: &str =
    "[etcd]\nnamespace = 'local'\n[agent]\n[container]\nsandbox-type = 'docker'\nscratch-type = 'hostdir'\n";

fn read(text: &str, variables: &[(&str, &str)]) -> Result<Loaded<AgentConfig>, ConfigError> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("agent.toml");
    fs::write(&path, text).expect("a file");
    let variables = variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    load(Some(&path), &variables.collect())
}

fn valid(text: &str, variables: &[(&str, &str)]) -> Loaded<AgentConfig> {
    read(text, variables).expect("a valid configuration")
}

fn wrong(text: &str) -> Vec<String> {
    match read(text, &[]) {
        Err(ConfigError::Invalid { problems, .. }) => problems.iter().map(ToString::to_string).collect(),
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn every_mistake_is_named_with_its_remedy() {
    let agent = |line: &str| LEAST.replace("[agent]\n", &format!("[agent]\n{line}\n"));
    let last = |lines: &str| format!("{LEAST}{lines}");
    let with = |from: &str, to: &str| LEAST.replace(from, to);
    for (text, expected) in [
        (
            with("[agent]\n", ""),
            "agent is missing: add a table [agent] to the file",
        ),
        (
            agent("rpc-listen-addr = '0.0.0.0:6001'"),
            "agent.rpc-listen-addr must be an address under which managers reach this host, or have an empty host to have \
             one found; it is 0.0.0.0",
        ),
        (
            agent("rpc-listen-addr = ['', 0]"),
            "agent.rpc-listen-addr must be host and port, such as \"127.0.0.1:8080\" or \"[::1]:8080\"; it is \"any:0\"",
        ),
        (
            agent("id = 'i a'"),
            "agent.id must be 1 to 64 letters, digits, `.`, `_` or `-`, with a letter or digit at both ends; it is \"i a\"",
        ),
        (
            with("'docker'", "'chroot'"),
            "container.sandbox-type must be one of docker, jail; it is \"chroot\"",
        ),
        (
            last("port-range = [31000, 30000]"),
            "container.port-range must go from one port above 1024 to a greater one; it is [31000, 30000]",
        ),
        (
            last("port-range = 'all'"),
            "container.port-range must be two ports such as \"30000-31000\" or [30000, 31000]; it is \"all\"",
        ),
        (
            last("kernel-uid = -2"),
            "container.kernel-uid must be from -1 to 4294967294; it is -2",
        ),
        (
            last("[resource]\nreserved-mem = 'much'"),
            "resource.reserved-mem must be a size such as \"10M\"; it is \"much\"",
        ),
        (
            last("[bai]\nruntime = 'vm'"),
            "bai.runtime must be one of auto, docker, process; it is \"vm\"",
        ),
        (
            last("[bai]\nallow-managers = ['manager']"),
            "bai.allow-managers has an entry that cannot be used: \"manager\" is neither an address nor a network such as \
             10.0.0.0/8",
        ),
        (
            last("[bai]\ncpu-overcommit = 0"),
            "bai.cpu-overcommit must be from 1 to 64; it is 0",
        ),
        (
            last("[bai]\ncloud = 'ours'"),
            "bai.cloud must be one of off, amazon, azure, google; it is \"ours\"",
        ),
        (
            last("[bai]\ncloud-metadata = '169.254.169.254'"),
            "bai.cloud-metadata must be an address such as \"http://169.254.169.254\"; it is \"169.254.169.254\"",
        ),
        (
            last("[bai.tls]\nauthority = '/dev/null'"),
            "bai.tls.authority there is no file /dev/null",
        ),
        (
            last("[watcher]\nssl-enabled = true\nssl-cert = '/nowhere'"),
            "watcher.ssl-cert there is no file /nowhere",
        ),
    ] {
        let found = wrong(&text);
        assert_eq!(
            found.first().map(String::as_str),
            Some(expected),
            "{text}: {found:?}"
        );
    }
}

#[test]
fn a_file_of_the_original_is_read() {
    let loaded = valid(
        "[etcd]\nnamespace = 'local'\naddr = { host = '127.0.0.1', port = 2379 }\nuser = ''\npassword = ''\n\
         [agent]\nrpc-listen-addr = { host = '', port = 6001 }\nid = 'i-node01'\nregion = 'local'\ninstance-type = 'x'\n\
         scaling-group = 'gpu'\npid-file = '/dev/null'\n\
         [container]\nkernel-uid = 1000\nkernel-host = ''\nport-range = [30000, 31000]\nsandbox-type = 'jail'\n\
         jail-args = ['-watch']\nscratch-type = 'memory'\nscratch-root = './scratches'\nscratch-size = '0'\n\
         [resource]\nreserved-cpu = 2\nreserved-mem = '512M'\nreserved-disk = '8G'\n\
         [watcher]\nservice-addr = { host = '0.0.0.0', port = 6009 }\nssl-enabled = false\ntarget-service = 'a.service'\n\
         soft-reset-available = true\n\
         [logging]\nlevel = 'INFO'\n[debug]\nenabled = true\nskip-container-deletion = false\n",
        &[],
    );
    let config = &loaded.config;
    assert_eq!(
        config.agent.rpc_listen_addr,
        ListenAddr {
            host: None,
            port: 6001
        }
    );
    assert_eq!(
        (config.agent.id.as_deref(), config.agent.pid_file.as_deref()),
        (Some("i-node01"), None)
    );
    assert_eq!(config.container.user(), Some((1000, 1000)));
    assert_eq!(config.container.kernel_host, None, "empty is not there (Q-09)");
    assert!(config.container.scratch_root.is_absolute());
    assert_eq!(
        (config.resource.reserved_cpu, config.resource.reserved_mem),
        (2, 512 << 20)
    );
    assert_eq!(config.watcher.target_service, "a.service");
    assert_eq!(config.container.memory_scratch(), Some(64 << 20), "as in 19.06");
    assert_eq!(config.bai.runtime, RuntimeChoice::Docker);
    let notes = loaded.notes.join("\n");
    assert_eq!(loaded.notes.len(), 1, "{notes}");
    assert!(notes.contains("\"jail\" is taken as \"docker\""), "{notes}");
}

#[test]
fn work_folders_are_in_memory_when_they_shall_be() {
    let config = valid(&LEAST.replace("'hostdir'", "'memory'\nscratch-size = '1g'"), &[]).config;
    assert_eq!(config.container.memory_scratch(), Some(1 << 30));
    let config = valid(&format!("{LEAST}scratch-size = '1g'\n"), &[]).config;
    assert_eq!(config.container.memory_scratch(), None);
    assert_eq!(
        wrong(&format!("{LEAST}scratch-size = 'much'\n")),
        ["container.scratch-size must be a size such as \"10M\"; it is \"much\""]
    );
}

#[test]
fn variables_stand_over_the_file() {
    let variables = [
        ("BACKEND_NAMESPACE", "other"),
        ("BACKEND_AGENT_PORT", "6101"),
        ("BACKEND_AGENT_HOST_OVERRIDE", "10.0.0.5"),
        ("BACKEND_CONTAINER_PORT_RANGE", "40000-40010"),
        ("BACKEND_KERNEL_HOST_OVERRIDE", "10.0.0.6"),
        ("BACKEND_SCRATCH_ROOT", "/scratch"),
        ("BACKEND_WATCHER_SERVICE_PORT", "6109"),
    ];
    let loaded = valid(LEAST, &variables);
    let config = &loaded.config;
    assert_eq!(config.etcd.namespace, "other");
    assert_eq!(config.agent.rpc_listen_addr.to_string(), "10.0.0.5:6101");
    assert_eq!(config.container.port_range.0, 40000..=40010);
    assert_eq!(config.container.kernel_host.as_deref(), Some("10.0.0.6"));
    assert_eq!(config.container.scratch_root, Path::new("/scratch"));
    assert_eq!(config.watcher.service_addr.to_string(), "127.0.0.1:6109");
    let dump = loaded.dump().expect("a dump");
    assert!(dump.contains("BACKEND_AGENT_PORT"), "{dump}");
    // With only the port, the host is still to be found.
    let config = valid(LEAST, &[("BACKEND_AGENT_PORT", "6101")]).config;
    assert_eq!(
        config.agent.rpc_listen_addr,
        ListenAddr {
            host: None,
            port: 6101
        }
    );
}

#[test]
fn the_dump_masks_secrets_and_can_be_read_again() {
    let text = LEAST.replace("'local'\n", "'local'\nuser = 'u'\npassword = 'sesame'\n");
    let dump = valid(&text, &[]).dump().expect("a dump");
    assert!(!dump.contains("sesame"), "{dump}");
    let again = valid(&dump, &[]);
    assert_eq!(again.notes, [""; 0], "every key that is dumped is known");
    assert_eq!(
        again.dump().expect("a dump").lines().skip(1).collect::<Vec<_>>(),
        dump.lines().skip(1).collect::<Vec<_>>()
    );
}

#[test]
fn the_sample_is_valid_and_says_the_defaults() {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/agent.sample.toml");
    let sample: Loaded<AgentConfig> =
        load(Some(&sample), &crate::config::Environment::default()).expect("a valid sample");
    assert_eq!(sample.notes, [""; 0]);
    let least = valid(LEAST, &[]);
    let dump = |loaded: &Loaded<AgentConfig>| toml::to_string(&loaded.config).expect("a dump");
    let without = |text: String| text.replace("[logging.pkg-ns]\n\"\" = \"INFO\"\n", "[logging.pkg-ns]\n");
    assert_eq!(without(dump(&sample)), dump(&least));
}
