//! The configuration store: the layout of 19.06 (`http-api.md` 5.6), and what hands have written into it.

use std::collections::{BTreeMap, BTreeSet};

use bai_backplane::Result;
use bai_backplane::config::Config;
use bai_model::image_ref::{quote, unquote};
use bai_model::{ImageRef, SlotTypes, SlotUnit, SlotValue};

use super::Finding;
use super::Severity::{Error as Wrong, Note, Warning};

const REGISTRIES: &str = "config/docker/registry/";
const SLOTS: &str = "config/resource_slots/";
const ALIASES: &str = "images/_aliases/";
const IMAGES: &str = "images/";

/// All settings of a namespace.
type Settings = BTreeMap<String, String>;

/// Looks at every key of a namespace.
///
/// # Errors
/// When the store cannot be asked.
pub async fn examine_config(config: &Config) -> Result<Vec<Finding>> {
    let settings: Settings = config.prefix("").await?.into_iter().collect();
    if settings.is_empty() {
        let meaning = "there is nothing in this namespace";
        let remedy = "is `namespace` in [etcd] the one of the site? A new site begins with `bai etcd put config/redis/addr …`";
        return Ok(vec![Finding::new(Wrong, "namespace", "/", meaning, remedy)]);
    }
    let mut findings = Vec::new();
    redis(&settings, &mut findings);
    manager(&settings, &mut findings);
    volumes(&settings, &mut findings);
    slots(&settings, &mut findings);
    registries(&settings, &mut findings);
    aliases(&settings, &mut findings);
    images(&settings, &mut findings);
    Ok(findings)
}

/// Keys below a directory, relative to it, with their values.
fn below<'s>(settings: &'s Settings, directory: &'s str) -> impl Iterator<Item = (&'s str, &'s str)> {
    let from = settings.range(directory.to_owned()..);
    from.map_while(move |(key, value)| Some((key.strip_prefix(directory)?, value.as_str())))
}

fn redis(settings: &Settings, findings: &mut Vec<Finding>) {
    const KEY: &str = "config/redis/addr";
    match settings.get(KEY) {
        None => {
            let meaning = "it is missing, so Redis is looked for at 127.0.0.1:6379 of each host";
            let remedy =
                "`bai etcd put config/redis/addr HOST:PORT`, unless all managers and agents are on one host";
            findings.push(Finding::new(Warning, "redis", KEY, meaning, remedy));
        }
        Some(address) if !is_address(address) => {
            let meaning = format!("{address:?} is not host:port, and nobody starts with it");
            let remedy = "`bai etcd put config/redis/addr HOST:PORT`";
            findings.push(Finding::new(Wrong, "redis", KEY, meaning, remedy));
        }
        Some(_) => {}
    }
}

fn is_address(text: &str) -> bool {
    text.rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0))
}

fn manager(settings: &Settings, findings: &mut Vec<Finding>) {
    const STATUS: &str = "manager/status";
    const KNOWN: [&str; 4] = ["preparing", "running", "frozen", "terminated"];
    match settings.get(STATUS).map(String::as_str) {
        None => {
            let meaning = "it is missing, as on a site that no manager ever served; the original answers nothing without it";
            let remedy = "the start of a manager, ours or the original, writes it";
            findings.push(Finding::new(Note, "status", STATUS, meaning, remedy));
        }
        Some(status) if !KNOWN.contains(&status) => {
            let meaning = format!(
                "{status:?} is none of {}: most requests are refused",
                KNOWN.join(", ")
            );
            let remedy = "restart a manager, or `bai etcd put manager/status running`";
            findings.push(Finding::new(Wrong, "status", STATUS, meaning, remedy));
        }
        Some(_) => {}
    }
    if settings.contains_key("nodes/manager") && !settings.contains_key("nodes/manager/event_addr") {
        let meaning = "a manager is announced and not where it listens for events, which agents wait for";
        let remedy = "restart that manager";
        findings.push(Finding::new(
            Warning,
            "status",
            "nodes/manager/event_addr",
            meaning,
            remedy,
        ));
    }
}

fn volumes(settings: &Settings, findings: &mut Vec<Finding>) {
    for (key, default) in [("volumes/_mount", "/mnt"), ("volumes/_default_host", "local")] {
        match settings.get(key) {
            None => {
                let meaning = format!("it is missing: {default} is assumed");
                let remedy = format!("`bai etcd put {key} …` if folders are elsewhere");
                findings.push(Finding::new(Note, "volumes", key, meaning, remedy));
            }
            Some(value) if value.is_empty() || (key == "volumes/_mount" && !value.starts_with('/')) => {
                let meaning = format!("{value:?} names no place for folders");
                let remedy = format!("`bai etcd put {key} …`");
                findings.push(Finding::new(Wrong, "volumes", key, meaning, remedy));
            }
            Some(_) => {}
        }
    }
}

fn slots(settings: &Settings, findings: &mut Vec<Finding>) {
    for (slot, unit) in below(settings, SLOTS) {
        if unit.parse::<SlotUnit>().is_err() {
            let meaning = format!("{unit:?} is neither count nor bytes, so the slot is ignored");
            let remedy = format!("`bai etcd put {SLOTS}{slot} count` or `bytes`");
            findings.push(Finding::new(
                Wrong,
                "slots",
                format!("{SLOTS}{slot}"),
                meaning,
                remedy,
            ));
        }
    }
}

fn registries(settings: &Settings, findings: &mut Vec<Finding>) {
    let mut seen = BTreeSet::new();
    for (key, _) in below(settings, REGISTRIES) {
        let name = key.split('/').next().unwrap_or_default();
        if !seen.insert(name.to_owned()) {
            continue;
        }
        let subject = format!("{REGISTRIES}{name}");
        let address = settings.get(&subject).map(String::as_str);
        let is_url = |url: &str| url.starts_with("http://") || url.starts_with("https://");
        if !address.is_some_and(is_url) {
            let meaning = match address {
                Some(address) => {
                    format!("{address:?} is no http or https address: the registry cannot be scanned")
                }
                None => {
                    "there is something below it and no address: the registry cannot be scanned".to_owned()
                }
            };
            let remedy =
                format!("`bai etcd put {subject} https://…`, and quote the `/` and `:` of a registry's name");
            findings.push(Finding::new(Wrong, "registries", subject, meaning, remedy));
        } else if quote(&unquote(name)) != name {
            let meaning =
                "the name is not quoted; images of the registry are looked for below the quoted one";
            let remedy = format!("move it to {REGISTRIES}{}", quote(&unquote(name)));
            findings.push(Finding::new(Warning, "registries", subject, meaning, remedy));
        }
    }
}

fn aliases(settings: &Settings, findings: &mut Vec<Finding>) {
    let known: Vec<String> = below(settings, REGISTRIES)
        .map(|(key, _)| unquote(key.split('/').next().unwrap_or_default()))
        .collect();
    let find = |name: &str| {
        let quoted = settings.get(&format!("{ALIASES}{}", quote(name)));
        quoted.or_else(|| settings.get(&format!("{ALIASES}{name}")))
    };
    for (key, target) in below(settings, ALIASES) {
        let subject = format!("{ALIASES}{key}");
        let leads_nowhere = find(target).is_none() && ImageRef::parse(target, &known).is_err();
        if leads_nowhere || target == unquote(key) {
            let meaning = format!("{target:?} is neither an alias nor an image reference");
            let remedy = format!(
                "`bai etcd alias {} IMAGE`, or `bai etcd dealias {0}`",
                unquote(key)
            );
            findings.push(Finding::new(Wrong, "aliases", subject, meaning, remedy));
        } else if quote(&unquote(key)) != key {
            let meaning = "the name is not quoted; ours finds it, and so does the original, which does not find quoted ones";
            let remedy = "leave it while the original may come back; `bai etcd alias` writes it quoted";
            findings.push(Finding::new(Note, "aliases", subject, meaning, remedy));
        }
    }
}

fn images(settings: &Settings, findings: &mut Vec<Finding>) {
    let types = SlotTypes::intrinsic();
    for (key, value) in below(settings, IMAGES) {
        let parts: Vec<&str> = key.split('/').collect();
        let subject = format!("{IMAGES}{key}");
        match parts.as_slice() {
            ["_aliases", ..] => {}
            [registry, image, tag] => {
                let registry = unquote(registry);
                let reference = format!("{registry}/{}:{tag}", unquote(image));
                if let Err(error) = ImageRef::parse(&reference, &[registry]) {
                    let meaning = format!(
                        "{reference} is no image reference ({error}); the original then lists no image at all"
                    );
                    let remedy = format!("`bai etcd delete --prefix {subject}`");
                    findings.push(Finding::new(Wrong, "images", subject, meaning, remedy));
                }
            }
            [_, _, _, "resource", slot, "min" | "max"] => {
                let unit = types.unit(slot).unwrap_or(SlotUnit::Count);
                let is_readable =
                    SlotValue::parse(value, unit).is_ok() || SlotValue::parse(value, SlotUnit::Bytes).is_ok();
                if !is_readable {
                    let meaning = format!("{value:?} is no amount; sessions of the image cannot be created");
                    let remedy = "`bai etcd set-image-resource-limit IMAGE SLOT MIN:MAX`";
                    findings.push(Finding::new(Wrong, "images", subject, meaning, remedy));
                }
            }
            _ => {}
        }
    }
}
