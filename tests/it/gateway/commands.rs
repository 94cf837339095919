//! Administration without a server: single keys, schema, fixtures.

use std::fs;
use std::io::Write as _;
use std::process::Stdio;

use serde_json::{Value, json};

use super::Place;

fn place() -> Place {
    let place = Place::new("", "");
    fs::create_dir(place.path("data")).unwrap();
    place
}

/// Exit code, stdout and stderr.
fn run(place: &Place, words: &[&str]) -> (i32, String, String) {
    run_with(place, words, "")
}

fn run_with(place: &Place, words: &[&str], input: &str) -> (i32, String, String) {
    let mut child = place
        .command(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that does not read may have ended.
    _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn keys_are_put_got_listed_and_deleted() {
    let place = place();
    let nothing = String::new;
    assert_eq!(run(&place, &["etcd", "get", "a"]), (1, nothing(), nothing()));
    assert_eq!(
        run(&place, &["etcd", "get", "--prefix", "a"]),
        (0, "{}\n".to_owned(), nothing())
    );
    assert_eq!(
        run(&place, &["etcd", "put", "/a/b", "1"]),
        (0, nothing(), nothing())
    );
    assert_eq!(run(&place, &["etcd", "put", "a", ""]).0, 0);
    assert_eq!(run(&place, &["etcd", "put", "ab", "2"]).0, 0);
    assert_eq!(
        run(&place, &["etcd", "get", "a/b"]),
        (0, "1\n".to_owned(), nothing())
    );
    // As bytes, `a` begins `ab` as well as `a/b`, and the later of both stays.
    let nested = "{\n    \"\": \"\",\n    \"b\": \"2\"\n}\n";
    assert_eq!(run(&place, &["etcd", "get", "--prefix", "a"]).1, nested);
    assert_eq!(run(&place, &["etcd", "list", "a"]).1, "a\t\na/b\t1\nab\t2\n");
    let listed: Value = serde_json::from_str(&run(&place, &["etcd", "list", "--json", "a"]).1).unwrap();
    assert_eq!(listed, json!({ "a": "", "a/b": "1", "ab": "2" }));
    assert_eq!(
        run(&place, &["etcd", "delete", "--dry-run", "--prefix", "a/"]).1,
        "a/b\n"
    );
    assert_eq!(
        run(&place, &["etcd", "del", "--prefix", "a/"]),
        (0, nothing(), "bai: deleted 1 keys\n".to_owned())
    );
    assert_eq!(run(&place, &["etcd", "delete", "a"]).0, 0);
    assert_eq!(run(&place, &["etcd", "list"]).1, "ab\t2\n");
    for prefix in ["", "m", "manager", "n"] {
        let (code, _, text) = run(&place, &["etcd", "delete", "--prefix", prefix]);
        assert_eq!(code, 1, "{prefix}");
        assert!(
            text.contains("name the keys more closely") || text.contains("empty"),
            "{text}"
        );
    }
}

#[test]
fn objects_are_put_with_all_that_is_in_them() {
    let place = place();
    let object = json!({ "x": { "": "U", "username": "n", "deep": { "er": 5 } }, "y": true }).to_string();
    let words = ["etcd", "put-json", "config/docker/registry", "-"];
    let (code, shown, _) = run_with(&place, &[&words[..], &["--dry-run"]].concat(), &object);
    assert_eq!(code, 0);
    assert_eq!(run(&place, &["etcd", "list"]).1, "");
    let (code, _, said) = run_with(&place, &words, &object);
    assert_eq!((code, said.as_str()), (0, "bai: wrote 4 keys\n"));
    let written = "config/docker/registry/x\tU\nconfig/docker/registry/x/deep/er\t5\n\
                   config/docker/registry/x/username\tn\nconfig/docker/registry/y\tTrue\n";
    assert_eq!(run(&place, &["etcd", "list"]).1, written);
    let mut lines: Vec<&str> = shown.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, written.lines().collect::<Vec<_>>());
    let (code, shown, _) = run(&place, &["etcd", "get", "--prefix", "config/docker/registry"]);
    assert_eq!(code, 0);
    assert_eq!(
        serde_json::from_str::<Value>(&shown).unwrap(),
        json!({ "x": { "": "U", "username": "n", "deep": { "er": "5" } }, "y": "True" })
    );
    for (input, expected) in [
        ("[]", "JSON object"),
        ("{", "JSON object"),
        ("{\"a\": null}", "expected text"),
    ] {
        let (code, _, text) = run_with(&place, &words, input);
        assert_eq!(code, 1);
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn settings_of_a_scope_are_apart_and_merge_when_read() {
    let place = place();
    for words in [
        &["etcd", "put", "volumes/_mount", "global"][..],
        &[
            "etcd",
            "put",
            "-s",
            "SGROUP",
            "--sgroup",
            "gpu",
            "volumes/_mount",
            "group",
        ],
        &[
            "etcd",
            "put",
            "-s",
            "node",
            "--node",
            "i-1",
            "volumes/_mount",
            "node",
        ],
    ] {
        assert_eq!(run(&place, words).0, 0, "{words:?}");
    }
    let get = |words: &[&str]| run(&place, &[&["etcd", "get", "volumes/_mount"], words].concat()).1;
    assert_eq!(get(&[]), "global\n");
    assert_eq!(get(&["-s", "GLOBAL", "--node", "i-1"]), "global\n");
    assert_eq!(get(&["--sgroup", "gpu"]), "group\n");
    assert_eq!(get(&["--sgroup", "gpu", "--node", "i-1"]), "node\n");
    assert_eq!(get(&["--sgroup", "gpu", "--node", "i-2"]), "group\n");
    assert_eq!(get(&["-s", "NODE", "--node", "i-2"]), "");
    let (code, _, text) = run(&place, &["etcd", "put", "-s", "NODE", "a", "b"]);
    assert_eq!(code, 1);
    assert!(text.contains("add --node"), "{text}");
}

#[test]
fn the_schema_is_shown_made_and_upgraded() {
    let place = place();
    let (code, _, text) = run(&place, &["schema", "show"]);
    assert_eq!(code, 1);
    assert!(text.contains("there is no such file"), "{text}");
    assert_eq!(run(&place, &["schema", "oneshot"]).0, 0);
    let (code, shown, _) = run(&place, &["schema", "show"]);
    assert_eq!(code, 0);
    assert_eq!(
        shown,
        "Current database revision: c401d78cc7b9\nThe head revision of available migrations: c401d78cc7b9\n"
    );
    let shown: Value = serde_json::from_str(&run(&place, &["schema", "show", "--json"]).1).unwrap();
    assert_eq!(shown["revisions"], json!(["c401d78cc7b9"]));
    assert_eq!(shown["missing_columns"], json!([]));
    assert_eq!(run(&place, &["schema", "upgrade", "--dry-run"]).1, "");
    assert_eq!(run(&place, &["schema", "upgrade"]).0, 0);
}

#[test]
fn fixtures_are_loaded_once_and_whole() {
    let place = place();
    let file = place.path("fixture.json");
    let file_name = file.to_str().unwrap();
    let populate = |more: &[&str]| run(&place, &[&["fixture", "populate", file_name], more].concat());
    let (code, _, text) = populate(&[]);
    assert_eq!(code, 1);
    assert!(text.contains("cannot read"), "{text}");
    fs::write(
        &file,
        json!({ "domains": [{ "name": "a" }, { "name": "b" }] }).to_string(),
    )
    .unwrap();
    assert_eq!(
        populate(&["--dry-run"]).1,
        "would be inserted: 2, there already: 0\n"
    );
    assert_eq!(populate(&[]).1, "inserted: 2, there already: 0\n");
    assert_eq!(
        populate(&["--json"]).1,
        "{\"inserted\":0,\"skipped\":2,\"dry_run\":false}\n"
    );
    for (text, expected) in [
        ("{", "is not JSON"),
        ("{\"planets\": []}", "there is no table planets"),
        (
            "{\"domains\": [{\"name\": \"c\"}, {\"nam\": \"d\"}]}",
            "domains[1]",
        ),
    ] {
        fs::write(&file, text).unwrap();
        let (code, _, said) = populate(&[]);
        assert_eq!(code, 1);
        assert!(said.contains(expected), "{said}");
    }
    fs::write(&file, json!({ "domains": [{ "name": "c" }] }).to_string()).unwrap();
    assert_eq!(populate(&[]).1, "inserted: 1, there already: 0\n");
}

#[test]
fn nothing_is_changed_beside_a_running_server_of_one_machine() {
    let place = Place::new("", "");
    let daemon = place.start(&[]);
    let (code, _, text) = run(&place, &["etcd", "put", "a", "b"]);
    assert_eq!(code, 1);
    assert!(text.contains("config.db"), "{text}");
    daemon.stop();
}
