//! Taking over a site of 19.06 and handing it back, with the original as a peer: its database, etcd and Redis are of its
//! own making, ours serves them and works on them, and then the original does again.
//!
//! What both see is asked of the original, through its GraphQL and REST API, and by the published clients; what neither may
//! touch is compared row by row. Where the original cannot be run, [`dump`] begins with what one has left.

mod dump;

use std::collections::BTreeMap;
use std::process::Command;

use bai::client::Client;
use bai_model::SecretKey;
use bai_testkit::cast::{self, PASSWORD, Role};
use bai_testkit::services::{Missing, Site};
use reqwest::Method;
use serde_json::{Value, json};

use crate::published::Published;
use crate::server::bai;

/// Everything of users, keypairs, policies and groups that a superadmin sees and that using them does not change.
const ACCOUNTS: &str = "{ users(is_active: true) { uuid username email need_password_change full_name description is_active \
                        domain_name role groups { id name } } \
                        keypairs(is_active: true) { user_id access_key secret_key is_active is_admin resource_policy rate_limit } \
                        domains { name description is_active total_resource_slots allowed_vfolder_hosts } \
                        groups(domain_name: \"default\") { id name is_active total_resource_slots allowed_vfolder_hosts } \
                        keypair_resource_policies { name default_for_unspecified total_resource_slots max_concurrent_sessions \
                        max_vfolder_count idle_timeout allowed_vfolder_hosts } \
                        resource_presets { name resource_slots } }";
/// What using them changes.
const USAGE: &str = "{ keypairs(is_active: true) { access_key concurrency_used num_queries } }";

/// Tables that serving the API, creating and ending sessions does not touch, and the columns that it does.
const UNTOUCHED: [(&str, &str); 10] = [
    ("users", ""),
    ("keypairs", "num_queries last_used concurrency_used"),
    ("domains", ""),
    ("groups", ""),
    ("association_groups_users", ""),
    ("keypair_resource_policies", ""),
    ("resource_presets", ""),
    ("vfolders", ""),
    ("vfolder_permissions", ""),
    ("vfolder_invitations", ""),
];

struct Caller<'a>(&'a Site);

impl Caller<'_> {
    fn client(&self, (access_key, secret_key): (&str, &str)) -> Client {
        let endpoint = self.0.endpoint();
        Client::new(&endpoint, access_key, SecretKey::new(secret_key.to_owned())).unwrap()
    }

    fn role(&self, role: Role) -> Client {
        self.client(role.keypair().unwrap())
    }

    async fn call(&self, role: Role, method: Method, path: &str, body: Value) -> Value {
        let body = (!body.is_null()).then_some(body);
        let answer = self.role(role).call(method, path, body.as_ref()).await;
        answer.unwrap_or_else(|error| panic!("{path}: {error:#}"))
    }

    async fn graphql(&self, query: &str, variables: Value) -> Value {
        let body = json!({ "query": query, "variables": variables });
        self.call(Role::Superadmin, Method::POST, "/admin/graphql", body)
            .await
    }

    /// What the original says of everything that nobody changes.
    async fn picture(&self) -> BTreeMap<&'static str, Value> {
        let mut seen = BTreeMap::new();
        seen.insert("accounts", sorted(self.graphql(ACCOUNTS, json!({})).await));
        for role in [Role::Superadmin, Role::User] {
            let (folders, hosts) = match role {
                Role::User => ("folders of the user", "hosts of the user"),
                _ => ("folders of the superadmin", "hosts of the superadmin"),
            };
            seen.insert(
                folders,
                self.call(role, Method::GET, "/folders", Value::Null).await,
            );
            seen.insert(
                hosts,
                self.call(role, Method::GET, "/folders/_/hosts", Value::Null)
                    .await,
            );
        }
        let presets = self
            .call(Role::User, Method::GET, "/resource/presets", Value::Null)
            .await;
        seen.insert("presets", sorted(presets));
        seen
    }

    /// Sessions running and requests counted, of each keypair.
    async fn usage(&self) -> BTreeMap<String, (i64, i64)> {
        let answer = self.graphql(USAGE, json!({})).await;
        let keypairs = answer["keypairs"].as_array().unwrap().iter();
        let numbers = keypairs.map(|keypair| {
            let number = |name: &str| keypair[name].as_i64().unwrap_or_default();
            let key = keypair["access_key"].as_str().unwrap().to_owned();
            (key, (number("concurrency_used"), number("num_queries")))
        });
        numbers.collect()
    }

    /// Name, state and amounts of the user's sessions.
    async fn sessions(&self) -> Value {
        let query = "query($key: String) { compute_session_list(limit: 10, offset: 0, access_key: $key) { items { \
                     sess_id status occupied_slots terminated_at } } }";
        let (key, _) = Role::User.keypair().unwrap();
        self.graphql(query, json!({ "key": key })).await["compute_session_list"]["items"].clone()
    }
}

/// The same with the lists in some order that is always the same.
fn sorted(value: Value) -> Value {
    match value {
        Value::Array(items) => {
            let mut items: Vec<Value> = items.into_iter().map(sorted).collect();
            items.sort_by_key(Value::to_string);
            Value::Array(items)
        }
        Value::Object(members) => members
            .into_iter()
            .map(|(key, value)| (key, sorted(value)))
            .collect(),
        other => other,
    }
}

/// The rows of the tables that nobody touches, as text.
fn rows(site: &Site) -> BTreeMap<&'static str, String> {
    untouched(|sql| site.psql(sql))
}

fn untouched(psql: impl Fn(&str) -> String) -> BTreeMap<&'static str, String> {
    let read = |(table, but): (&'static str, &str)| {
        let columns = but
            .split_whitespace()
            .map(|column| format!(" - '{column}'"))
            .collect::<String>();
        let sql = format!("SELECT to_jsonb(t){columns} FROM \"{table}\" t ORDER BY 1");
        (table, psql(&sql))
    };
    UNTOUCHED.into_iter().map(read).collect()
}

/// Accounts and folders made through the original's API, as an operator and users do.
async fn furnish(site: &Caller<'_>) {
    let user = "mutation($email: String!, $props: UserInput!) { create_user(email: $email, props: $props) { ok msg } }";
    let props = json!({
        "username": "newcomer", "password": "correct horse", "need_password_change": false, "full_name": "N. Comer",
        "description": "made by the original", "is_active": true, "domain_name": "default", "role": "user",
    });
    let made = site
        .graphql(user, json!({ "email": "new@site.test", "props": props }))
        .await;
    assert_eq!(made["create_user"]["ok"], true, "{made}");
    let keypair = "mutation($user: String!, $props: KeyPairInput!) { create_keypair(user_id: $user, props: $props) { ok msg } }";
    let props =
        json!({ "is_active": true, "is_admin": false, "resource_policy": "default", "rate_limit": 1234 });
    let made = site
        .graphql(keypair, json!({ "user": "user@lablup.com", "props": props }))
        .await;
    assert_eq!(made["create_keypair"]["ok"], true, "{made}");
    for name in ["data", "results"] {
        site.call(Role::User, Method::POST, "/folders", json!({ "name": name }))
            .await;
    }
    let invite = json!({ "perm": "ro", "user_ids": ["monitor@lablup.com"] });
    site.call(Role::User, Method::POST, "/folders/data/invite", invite)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_is_taken_over_and_handed_back() {
    take_over_and_hand_back(Site::start, "defaultforunspecified").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_that_was_upgraded_is_taken_over_and_handed_back() {
    take_over_and_hand_back(Site::start_migrated, "default_for_unspecified").await;
}

/// From the original to ours, back, and once more. The enum type's name tells the lineages of the schema apart.
#[expect(clippy::print_stdout, reason = "how a test says that it was skipped")]
async fn take_over_and_hand_back(start: fn(&Value, usize) -> Result<Site, Missing>, enum_type: &str) {
    let mut fixture = cast::fixture();
    // The original's own mutation for it always fails.
    fixture["resource_presets"] = json!([{ "name": "small", "resource_slots": { "cpu": 1, "mem": "2g" } }]);
    let site = match start(&fixture, 1) {
        Ok(site) => site,
        Err(missing) => return println!("SKIPPED: taking over a site of the original, because {missing}"),
    };
    let clients = Published::all();
    let at = Caller(&site);

    let original = site.start_original();
    furnish(&at).await;
    let (picture, usage) = (at.picture().await, at.usage().await);
    original.stop();
    let before = rows(&site);
    examine(&site);
    assert_eq!(rows(&site), before, "the doctor changed what it looked at");

    let ours = site.start_ours(&bai());
    let requests = work(&at, &ours).await;
    for client in &clients {
        client.goes_through_a_session(&site.endpoint(), Role::DomainAdmin.keypair().unwrap());
    }
    ours.stop();
    assert_eq!(
        rows(&site),
        before,
        "ours changed rows that it had no reason to change"
    );

    let original = site.start_original();
    let usage_after = at.usage().await;
    assert_eq!(
        at.picture().await,
        picture,
        "the original sees something else after us"
    );
    let (key, _) = Role::User.keypair().unwrap();
    assert_eq!(usage_after[key].0, 1, "one of two sessions still runs");
    assert_eq!(
        usage_after[key].1,
        usage[key].1 + requests,
        "each request of the user counts"
    );
    let sessions = sorted(at.sessions().await);
    assert_eq!(sessions[0]["sess_id"], "taken-over-1", "{sessions}");
    for client in &clients {
        client.sees_folders(
            &site.endpoint(),
            Role::User.keypair().unwrap(),
            ["data", "results"],
        );
    }
    original.stop();
    assert_eq!(
        site.psql(
            "SELECT sess_id, status, occupied_slots FROM kernels WHERE sess_id LIKE 'taken-over-%' ORDER BY sess_id"
        ),
        "taken-over-1|TERMINATED|{\"cpu\": \"1\", \"mem\": \"67108864\"}\n\
         taken-over-2|RUNNING|{\"cpu\": \"1\", \"mem\": \"67108864\"}"
    );

    // And we again: the session that was running all the time is still ours to end.
    let ours = site.start_ours(&bai());
    at.call(Role::User, Method::DELETE, "/kernel/taken-over-2", Value::Null)
        .await;
    ours.stop();
    let original = site.start_original();
    assert_eq!(at.usage().await[key].0, 0);
    assert_eq!(at.picture().await, picture);
    original.stop();
    assert_eq!(rows(&site), before);
    let alive = "SELECT count(*) FROM kernels WHERE status <> 'TERMINATED'";
    assert_eq!(site.psql(alive), "0");
    let named = "SELECT typname FROM pg_type WHERE typname LIKE 'default%for%unspecified'";
    assert_eq!(site.psql(named), enum_type);
}

/// A site as the original leaves it has nothing wrong but amounts as fixtures have them.
fn examine(site: &Site) {
    let config = site.config();
    let output = Command::new(bai())
        .args(["doctor", "--json", "--config"])
        .arg(config)
        .output();
    let output = output.unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let findings = report["findings"]
        .as_array()
        .unwrap_or_else(|| panic!("{output:?}"));
    let wrong: Vec<&Value> = findings
        .iter()
        .filter(|finding| finding["severity"] != "note")
        .collect();
    assert_eq!(wrong.len(), 1, "{report:#}");
    assert_eq!(wrong[0]["subject"], "resource_presets.resource_slots of small");
}

/// What users do while ours serves the site; how many signed requests the user's keypair sent.
async fn work(at: &Caller<'_>, ours: &bai_testkit::services::site::Running) -> i64 {
    for role in Role::SIGNING {
        at.call(role, Method::GET, "/auth/test?echo=ours", Value::Null)
            .await;
    }
    // A password that the original hashed.
    let login = json!({
        "type": "keypair", "domain": "default", "username": "new@site.test", "password": "correct horse",
    });
    let keypair = at
        .call(Role::Monitor, Method::POST, "/auth/authorize", login.clone())
        .await;
    let new = (
        keypair["data"]["access_key"].as_str(),
        keypair["data"]["secret_key"].as_str(),
    );
    let new = at.client((new.0.unwrap(), new.1.unwrap()));
    new.call(Method::GET, "/auth/test?echo=new", None).await.unwrap();
    let mut wrong = login;
    wrong["password"] = PASSWORD.into();
    assert!(
        at.role(Role::Monitor)
            .call(Method::POST, "/auth/authorize", Some(&wrong))
            .await
            .is_err()
    );

    let mut requests = 1;
    for number in [1, 2] {
        let wanted = json!({
            "lang": "shell", "clientSessionToken": format!("taken-over-{number}"),
            "config": { "resources": { "cpu": 1, "mem": "64m" } },
        });
        let made = at
            .role(Role::User)
            .call(Method::POST, "/kernel/create", Some(&wanted))
            .await;
        made.unwrap_or_else(|error| panic!("{error:#}: {}", ours.log()));
        requests += 1;
    }
    at.call(Role::User, Method::DELETE, "/kernel/taken-over-1", Value::Null)
        .await;
    requests + 1
}
