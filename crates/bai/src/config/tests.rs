//! Mistakes and what is said about them; everything that 19.06 understands; the dump.

use std::fs;
use std::path::Path;

use super::*;

const LEAST: &str = "[etcd]\nnamespace = 'local'\n[db]\naddr = 'localhost:5432'\nname = 'backend'\nuser = 'postgres'\n\
                     password = 'sesame'\n[manager]\n";

fn read(text: &str, variables: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("manager.toml");
    fs::write(&path, text).expect("a file");
    let variables = variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    super::load(Some(&path), &variables.collect())
}

fn valid(text: &str, variables: &[(&str, &str)]) -> Loaded {
    read(text, variables).expect("a valid configuration")
}

/// What is wrong, a line each.
fn wrong(text: &str, variables: &[(&str, &str)]) -> Vec<String> {
    match read(text, variables) {
        Err(ConfigError::Invalid { problems, .. }) => {
            problems.iter().map(std::string::ToString::to_string).collect()
        }
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn every_mistake_is_named_with_its_remedy() {
    const HOST_PORT: &str = "must be host and port, such as \"127.0.0.1:8080\" or \"[::1]:8080\"";
    let long = "n".repeat(65);
    let etcd = |line: &str| {
        format!("{LEAST}\n").replace("namespace = 'local'", &format!("namespace = 'local'\n{line}"))
    };
    let db = |from: &str, to: &str| LEAST.replace(from, to);
    let last = |lines: &str| format!("{LEAST}{lines}");
    for (text, expected) in [
        (db("namespace = 'local'\n", ""), "etcd.namespace is missing: add `namespace = \"local\"` to [etcd]".to_owned()),
        (db("'local'", "'a/b'"), "etcd.namespace must not contain a slash".to_owned()),
        (db("'local'", "''"), "etcd.namespace must not be empty".to_owned()),
        (db("'local'", "5"), "etcd.namespace must be a text in quotes, not a TOML integer".to_owned()),
        (etcd("addr = 'somewhere'"), format!("etcd.addr {HOST_PORT}; it is \"somewhere\"")),
        (etcd("addr = '::1:2379'"), format!("etcd.addr {HOST_PORT}; it is \"::1:2379\"")),
        (etcd("addr = 'x:0'"), format!("etcd.addr {HOST_PORT}; it is \"x:0\"")),
        (etcd("addr = ['x', 65536]"), format!("etcd.addr {HOST_PORT}; it is \"x:65536\"")),
        (etcd("addr = { host = 'x' }"), "etcd.addr lacks its port".to_owned()),
        (etcd("addr = 2379"), format!("etcd.addr {HOST_PORT}")),
        (etcd("password = 'p'"), "etcd.password is of no use without etcd.user".to_owned()),
        (db("addr = 'localhost:5432'\n", ""), "db.addr is missing: add `addr = \"127.0.0.1:5432\"` to [db]".to_owned()),
        (db("name = 'backend'", &format!("name = '{long}'")), format!("db.name must be 2 to 64 letters, digits, `.`, `_` or `-`, with a letter or digit at both ends; it is {long:?}")),
        (db("name = 'backend'", "name = '-a'"), "db.name must be 2 to 64 letters, digits, `.`, `_` or `-`, with a letter or digit at both ends; it is \"-a\"".to_owned()),
        (db("'sesame'", "''"), "db.password must not be empty".to_owned()),
        (db("name = 'backend'", "name = 'backend'\ntype = 'mysql'"), "db.type must be one of postgresql; it is \"mysql\"".to_owned()),
        (db("[db]", "[other]"), "db is missing: add a table [db] to the file".to_owned()),
        (db("[manager]", ""), "manager is missing: add a table [manager] to the file".to_owned()),
        (db("[manager]", "[other]\n[[manager]]"), "manager must be a table, [manager], not a TOML array".to_owned()),
        (last("num-proc = -1"), "manager.num-proc must be from 0 to 4096; it is -1".to_owned()),
        (last("num-proc = 'many'"), "manager.num-proc must be a whole number; it is \"many\"".to_owned()),
        (last("user = -2"), "manager.user must be a name, a number or -1; it is -2".to_owned()),
        (last("heartbeat-timeout = 0.5"), "manager.heartbeat-timeout must be a number of seconds, at least 1; it is 0.5".to_owned()),
        (last("heartbeat-timeout = nan"), "manager.heartbeat-timeout must be a number of seconds, at least 1; it is nan".to_owned()),
        (last("ssl-enabled = 'perhaps'"), "manager.ssl-enabled must be true or false; it is \"perhaps\"".to_owned()),
        (last("disabled-plugins = 'all'"), "manager.disabled-plugins must be a list in brackets, not a TOML string".to_owned()),
        (last("[docker-registry]\nssl-verify = 2"), "docker-registry.ssl-verify must be true or false".to_owned()),
        (last("[logging]\nlevel = 'LOUD'"), "logging.level must be one of DEBUG, INFO, WARNING, ERROR, CRITICAL, NOTSET; it is \"LOUD\"".to_owned()),
        (last("[logging]\ndrivers = ['fax']"), "logging.drivers must be one of console, file, logstash; it is \"fax\"".to_owned()),
        (last("[logging]\ndrivers = ['file']"), "logging.file is missing: add a table [logging.file] to the file".to_owned()),
        (last("[logging]\ndrivers = ['file']\n[logging.file]\npath = '/x'\nfilename = 'a/b'"), "logging.file.filename must be a name, without folders".to_owned()),
        (last("[logging]\ndrivers = ['file']\n[logging.file]\npath = '/x'\nfilename = 'b'\nbackup-count = 101"), "logging.file.backup-count must be from 1 to 100; it is 101".to_owned()),
        (last("[logging]\ndrivers = ['file']\n[logging.file]\npath = '/x'\nfilename = 'b'\nrotation-size = 'big'"), "logging.file.rotation-size must be a size such as \"10M\"; it is \"big\"".to_owned()),
        (last("[logging.pkg-ns]\n'ai.backend' = 'LOUD'"), "logging.pkg-ns.\"ai.backend\" must be one of DEBUG, INFO, WARNING, ERROR, CRITICAL, NOTSET; it is \"LOUD\"".to_owned()),
        (last("[debug]\nenabled = []"), "debug.enabled must be true or false".to_owned()),
        (last("[bai]\ndatabase = 'mysql://u:p@h/x'"), "bai.database must begin with postgres:// or postgresql:// or sqlite:///".to_owned()),
        (last("[bai]\ndata-dir = 'here'"), "bai.data-dir here must be a path from the root, such as /var/lib/bai".to_owned()),
        (last("[bai]\nevent-peers = ['10.0.0.0/8', 'nearby']"), "bai.event-peers must name addresses or networks: \"nearby\" is neither an address nor a network such as 10.0.0.0/8".to_owned()),
        (last("[bai]\nevent-advertise-addr = 'here'"), format!("bai.event-advertise-addr {HOST_PORT}; it is \"here\"")),
        (last("[bai]\nlocal-agent = true"), "bai.local-agent needs a directory for its sessions: add `data-dir = \"/var/lib/bai\"` to [bai]".to_owned()),
    ] {
        assert_eq!(wrong(&text, &[]), [expected], "{text}");
    }
}

#[test]
fn certificate_and_key_must_be_there_where_they_are_used() {
    let text = format!("{LEAST}ssl-enabled = true\nssl-cert = '/nowhere/cert.pem'\n");
    assert_eq!(
        wrong(&text, &[]),
        [
            "manager.ssl-cert there is no file /nowhere/cert.pem",
            "manager.ssl-privkey is missing: add `ssl-privkey = \"/etc/backend.ai/manager.key\"` to [manager]",
        ]
    );
    valid(&text.replace("enabled = true", "enabled = false"), &[]);
}

#[test]
fn files_of_agents_encryption_belong_together() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let text = format!("{LEAST}[bai]\nagent-tls-authority = '{file}'\nagent-tls-cert = '{file}'\n");
    let together = "agent-tls-authority, agent-tls-cert, agent-tls-key belong together";
    assert_eq!(
        wrong(&text, &[]),
        [format!("bai.agent-tls-key is missing: {together}")]
    );
    let loaded = valid(&format!("{text}agent-tls-key = '{file}'\n"), &[]);
    assert!(loaded.dump().expect("TOML").contains("agent-tls-key = "));
}

#[test]
fn all_mistakes_are_told_at_once_with_the_variable_that_made_them() {
    let error = read(
        "[etcd]\n[db]\naddr = 'x'\n",
        &[("BACKEND_DB_NAME", "-"), ("BACKEND_GATEWAY_NPROC", "lots")],
    );
    let text = error.expect_err("much is wrong").to_string();
    let lines: Vec<&str> = text.lines().collect();
    assert!(
        lines[0].starts_with("Validation of manager configuration has failed: /"),
        "{text}"
    );
    let expected = [
        "db.addr must be host and port, such as \"127.0.0.1:8080\" or \"[::1]:8080\"; it is \"x\"",
        "db.name (from BACKEND_DB_NAME) must be 2 to 64 letters, digits, `.`, `_` or `-`, with a letter or digit at both \
         ends; it is \"-\"",
        "db.user is missing: add `user = \"postgres\"` to [db]",
        "db.password is missing: add `password = \"…\"` to [db]",
        "etcd.namespace is missing: add `namespace = \"local\"` to [etcd]",
        "manager.num-proc (from BACKEND_GATEWAY_NPROC) must be a whole number; it is \"lots\"",
    ];
    assert_eq!(lines[1..], expected.map(|line| format!("  {line}")));
}

#[test]
fn a_file_that_is_not_there_or_no_toml_is_told_so() {
    let environment: Environment = [("HOME".to_owned(), "/nowhere".to_owned())].into_iter().collect();
    let missing = load::<ManagerConfig>(Some(Path::new("/nowhere/manager.toml")), &environment);
    let text = missing.expect_err("no such file").to_string();
    assert!(
        text.starts_with("/nowhere/manager.toml: cannot be read: "),
        "{text}"
    );
    let text = read("[db]\npassword = 'sesame\n", &[])
        .expect_err("no TOML")
        .to_string();
    assert!(
        text.contains("manager.toml: line 2: ") && !text.contains("sesame"),
        "{text}"
    );
}

#[test]
fn the_environment_stands_over_the_file() {
    let loaded = valid(
        &format!("{LEAST}service-addr = ['10.0.0.1', 80]\nevent-listen-addr = '[::1]:6000'\n"),
        &[
            ("BACKEND_NAMESPACE", "other"),
            ("BACKEND_ETCD_ADDR", "etcd:2380"),
            ("BACKEND_ETCD_USER", "root"),
            ("BACKEND_ETCD_PASSWORD", "secret"),
            ("BACKEND_DB_ADDR", "db:1"),
            ("BACKEND_DB_NAME", "name"),
            ("BACKEND_DB_USER", "user"),
            ("BACKEND_DB_PASSWORD", "word"),
            ("BACKEND_GATEWAY_NPROC", "3"),
            ("BACKEND_PID_FILE", "/run/x.pid"),
            ("BACKEND_SERVICE_PORT", "8443"),
            ("BACKEND_ADVERTISED_MANAGER_HOST", "fd00::1"),
            ("BACKEND_SKIP_SSLCERT_VALIDATION", "yes"),
            ("BACKEND_LOG_FILE", "/var/log/bai/manager.log"),
            ("BACKEND_LOG_FILE_SIZE", "1g"),
            ("BACKEND_SSL_CERT", ""),
        ],
    );
    let config = &loaded.config;
    assert_eq!(config.etcd.namespace, "other");
    assert_eq!(config.etcd.addr.to_string(), "etcd:2380");
    assert_eq!(
        (config.etcd.user.as_str(), config.etcd.password.expose()),
        ("root", "secret")
    );
    let db = config.db.as_ref().expect("a database");
    assert_eq!(db.addr.to_string(), "db:1");
    assert_eq!(
        (db.name.as_str(), db.user.as_str(), db.password.expose()),
        ("name", "user", "word")
    );
    assert_eq!(config.manager.num_proc, 3);
    assert_eq!(config.manager.pid_file.as_deref(), Some(Path::new("/run/x.pid")));
    assert_eq!(config.manager.service_addr.to_string(), "10.0.0.1:8443");
    assert_eq!(config.manager.event_listen_addr.to_string(), "[fd00::1]:6000");
    assert!(!config.docker_registry.ssl_verify);
    assert_eq!(config.manager.ssl_cert, None);
    // The file's driver is not on, so that what is said of the file has no effect.
    assert!(config.logging.file.is_none());
    let logs = valid(
        &format!("{LEAST}[logging]\ndrivers = ['file']\n"),
        &[
            ("BACKEND_LOG_FILE", "/var/log/bai/manager.log"),
            ("BACKEND_LOG_FILE_SIZE", "1g"),
            ("BACKEND_LOG_FILE_COUNT", "7"),
        ],
    );
    let file = logs.config.logging.file.expect("a file");
    assert_eq!(
        (file.path.to_str(), file.filename.as_str()),
        (Some("/var/log/bai"), "manager.log")
    );
    assert_eq!((file.rotation_size, file.backup_count), (1 << 30, 7));
}

#[test]
fn addresses_come_in_three_forms_and_words_for_truth_in_many() {
    for (form, expected) in [
        ("'example.com:80'", "example.com:80"),
        ("'[::1]:80'", "[::1]:80"),
        ("['::1', 80]", "[::1]:80"),
        ("{ host = '10.0.0.1', port = 80 }", "10.0.0.1:80"),
        ("{ host = '10.0.0.1', port = '80' }", "10.0.0.1:80"),
    ] {
        let loaded = valid(&format!("{LEAST}service-addr = {form}\n"), &[]);
        assert_eq!(loaded.config.manager.service_addr.to_string(), expected);
    }
    for (form, expected) in [
        ("true", true),
        ("'yes'", true),
        ("'On'", true),
        ("1", true),
        ("'n'", false),
        ("'0'", false),
    ] {
        let loaded = valid(&format!("{LEAST}[debug]\nenabled = {form}\n"), &[]);
        assert_eq!(loaded.config.debug.enabled, expected, "{form}");
    }
    for (form, expected) in [
        ("''", Account::Unchanged),
        ("-1", Account::Unchanged),
        ("0", Account::Id(0)),
        ("'1000'", Account::Id(1000)),
        ("'nobody'", Account::Name("nobody".to_owned())),
    ] {
        let loaded = valid(&format!("{LEAST}user = {form}\n"), &[]);
        assert_eq!(loaded.config.manager.user, expected, "{form}");
    }
}

#[test]
fn unknown_keys_are_legal_and_noted() {
    let loaded = valid(
        &format!("{LEAST}id = 'i-x'\nservice-adr = 'x:1'\n[watcher]\n"),
        &[],
    );
    assert_eq!(
        loaded.notes,
        [
            "manager.service-adr is not known and ignored",
            "[watcher] is not known and ignored"
        ]
    );
    let loaded = valid(&format!("{LEAST}[logging]\ndrivers = ['logstash']\n"), &[]);
    assert!(
        loaded.notes[0].starts_with("logging.drivers has `logstash`"),
        "{:?}",
        loaded.notes
    );
}

#[test]
fn settings_without_effect_are_noted() {
    let loaded = valid(
        &format!("{LEAST}secret = 'sesame'\ndisabled-plugins = ['monitor']\n"),
        &[],
    );
    assert_eq!(
        loaded.notes,
        [
            "manager.secret has no effect: it signs download tokens of folders, which are not served yet",
            "manager.disabled-plugins has no effect: there are no plug-ins here that could be disabled",
        ]
    );
    assert_eq!(
        valid(&format!("{LEAST}secret = ''\ndisabled-plugins = []\n"), &[]).notes,
        Vec::<String>::new()
    );
}

#[test]
fn one_service_may_be_another_than_in_19_06() {
    let loaded = valid(
        "[etcd]\nnamespace = 'x'\n[manager]\n[bai]\ndatabase = 'sqlite:///var/bai.db'\nconfig-store = 'embedded:///var/c.db'\n\
         broker = 'memory:'\n",
        &[],
    );
    assert!(loaded.config.db.is_none());
}

#[test]
fn nothing_secret_is_dumped() {
    let loaded = valid(
        &format!(
            "{LEAST}secret = 'sesame'\npid-file = '/dev/null'\n[bai]\ndatabase = 'postgres://u:sesame@h/d?sslpassword=sesame'\n\
             broker = 'redis://:sesame@h'\nconfig-store = 'etcd://a,b?tls=true'\n"
        ),
        &[("BACKEND_ETCD_USER", "root"), ("BACKEND_ETCD_PASSWORD", "sesame")],
    );
    let dump = loaded.dump().expect("a dump");
    assert!(!dump.contains("sesame"), "{dump}");
    assert!(!format!("{loaded:?}").contains("sesame"));
    let (head, rest) = dump.split_once("\n\n").expect("a heading");
    assert!(
        head.ends_with("manager.toml with BACKEND_ETCD_PASSWORD, BACKEND_ETCD_USER"),
        "{head}"
    );
    insta::assert_snapshot!(rest);
}

#[test]
fn the_sample_is_valid_and_says_the_defaults() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let sample = load(Some(&folder.join("manager.sample.toml")), &Environment::default());
    let sample = sample.expect("a valid sample");
    assert_eq!(sample.notes, Vec::<String>::new());
    let least = LEAST
        .replace("localhost", "127.0.0.1")
        .replace("sesame", "change-me");
    let dump = |loaded: &Loaded| {
        let mut dump = toml::Table::try_from(&loaded.config).expect("a dump");
        // It has no default, and stands there to be seen.
        dump["logging"].as_table_mut().expect("a table").remove("pkg-ns");
        dump
    };
    assert_eq!(dump(&sample), dump(&valid(&least, &[])));
}
