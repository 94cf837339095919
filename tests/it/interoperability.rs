//! The list of `agent-protocol.md` 9 in `docs/dev/testing.md`: each item has tests, and these are there.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

#[test]
fn each_item_of_the_interoperability_list_has_its_tests() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = fs::read_to_string(root.join("docs/dev/testing.md")).unwrap();
    let mut items = BTreeSet::new();
    for row in text.lines() {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, side @ ("Manager" | "Agent"), item, _, tests, _] = cells[..] else {
            continue;
        };
        for test in tests.split(", ") {
            let (file, name) = test.trim_matches('`').split_once("::").expect(test);
            let source = fs::read_to_string(root.join(file)).expect(file);
            assert!(
                source.contains(&format!("fn {name}(")),
                "{file} has no test {name}"
            );
        }
        items.insert((side, item.parse().unwrap()));
    }
    let manager = (1..=8).map(|item| ("Manager", item));
    let agent = (1..=7).map(|item| ("Agent", item));
    let missing: Vec<(&str, u8)> = manager
        .chain(agent)
        .filter(|item| !items.contains(item))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}
