//! Input of every kind that is wrong: the documented answer, a sentence that says what to change, and nothing half-done.

use std::fmt::Write;

use bai_testkit::{Answer, Api, Request, Role};
use serde_json::{Value, json};

use super::{assert_clean, create};

/// `<what>: <status> <title> <data>`, a line of a table.
fn line(table: &mut String, what: &str, answer: &Answer) {
    let body = answer.json();
    let title = body["title"].as_str().unwrap_or_default();
    let data = if body["data"].is_null() {
        String::new()
    } else {
        format!(" {}", body["data"])
    };
    let what: String = what.chars().take(60).collect();
    writeln!(table, "{what}: {} {title}{data}", answer.status).unwrap();
}

#[tokio::test]
async fn sessions_that_cannot_be() {
    let api = Api::start().await;
    let long = "x".repeat(600);
    let config = |config: Value| json!({ "config": config });
    let cases = [
        json!({ "clientSessionToken": null }),
        json!({ "clientSessionToken": "" }),
        json!({ "clientSessionToken": "a b c d" }),
        json!({ "clientSessionToken": "x".repeat(65) }),
        json!({ "clientSessionToken": "name\n" }),
        json!({ "clientSessionToken": "na\u{0}me" }),
        json!({ "clientSessionToken": "../name" }),
        json!({ "lang": 3 }),
        json!({ "lang": "" }),
        json!({ "lang": "https://index.docker.io/lablup/python" }),
        json!({ "lang": ":3.6" }),
        json!({ "lang": "python:" }),
        json!({ "lang": "python:3.6-18.04" }),
        json!({ "lang": "python:3.6-py3-py3" }),
        json!({ "lang": "python:9.9" }),
        json!({ "lang": "pyth\u{0}on" }),
        json!({ "lang": long }),
        json!({ "group": null }),
        json!({ "domain": ["default"] }),
        json!({ "tag": "" }),
        json!({ "tag": 5 }),
        json!({ "tag": long }),
        json!({ "config": null }),
        config(json!({ "mounts": "data" })),
        config(json!({ "mounts": [1] })),
        config(json!({ "mounts": vec!["x"; 65] })),
        config(json!({ "environ": ["A=b"] })),
        config(json!({ "environ": { "A=": "b" } })),
        config(json!({ "environ": { "A": { "b": 1 } } })),
        config(json!({ "environ": { "A": "b\nc" } })),
        config(json!({ "environ": { "A": "x".repeat(70_000) } })),
        config(json!({ "resources": [] })),
        config(json!({ "resources": { "xpu": 1 } })),
        config(json!({ "resources": { "cpu": "two" } })),
        config(json!({ "resources": { "cpu": {} } })),
        config(json!({ "resources": { "cpu": -1 } })),
        config(json!({ "resources": { "cpu": "nan" } })),
        config(json!({ "resources": { "cpu": "inf" } })),
        config(json!({ "resources": { "cpu": "1e30" } })),
        config(json!({ "resources": { "mem": "1.5" } })),
        config(json!({ "resources": { "mem": "4q" } })),
        config(json!({ "resources": { "mem": "100k" } })),
        config(json!({ "instanceMemory": "much" })),
        config(json!({ "instanceTPUs": 1 })),
    ];
    let mut table = String::new();
    for case in cases {
        let mut body = json!({ "lang": "python", "clientSessionToken": "refused" });
        body.as_object_mut()
            .unwrap()
            .extend(case.as_object().unwrap().clone());
        let answer = api.call(Role::User, "POST", "/kernel/create", &body).await;
        line(&mut table, &case.to_string(), &answer);
    }
    for owner in ["ZZZ", "%00", &long] {
        let target = format!("/kernel/create?owner_access_key={owner}");
        let body = json!({ "lang": "python", "clientSessionToken": "refused" });
        line(
            &mut table,
            &target,
            &api.call(Role::Superadmin, "POST", &target, &body).await,
        );
    }
    insta::assert_snapshot!(table, @r##"
    {"clientSessionToken":null}: 400 Missing or invalid API parameters. (Input validation error) {"clientSessionToken":"value is not a string"}
    {"clientSessionToken":""}: 400 Missing or invalid API parameters. (Input validation error) {"clientSessionToken":"blank value is not allowed"}
    {"clientSessionToken":"a b c d"}: 400 Missing or invalid API parameters. (Input validation error) {"clientSessionToken":"does not match pattern ^(?=.{4,64}$)\\w[\\w.-]*\\w$"}
    {"clientSessionToken":"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx: 400 Missing or invalid API parameters. (Input validation error) {"clientSessionToken":"does not match pattern ^(?=.{4,64}$)\\w[\\w.-]*\\w$"}
    {"clientSessionToken":"name\n"}: 400 Missing or invalid API parameters. (Input validation error) {"clientSessionToken":"does not match pattern ^(?=.{4,64}$)\\w[\\w.-]*\\w$"}
    {"clientSessionToken":"na\u0000me"}: 400 Missing or invalid API parameters. (Input validation error) {"clientSessionToken":"value must not contain NUL characters"}
    {"clientSessionToken":"../name"}: 400 Missing or invalid API parameters. (Input validation error) {"clientSessionToken":"does not match pattern ^(?=.{4,64}$)\\w[\\w.-]*\\w$"}
    {"lang":3}: 400 Missing or invalid API parameters. (Input validation error) {"lang":"value is not a string"}
    {"lang":""}: 400 Missing or invalid API parameters. (Input validation error) {"lang":"blank value is not allowed"}
    {"lang":"https://index.docker.io/lablup/python"}: 400 Missing or invalid API parameters. (Invalid image reference: https://index.docker.io/lablup/python: ImageRef should not contain the protocol scheme.)
    {"lang":":3.6"}: 400 Missing or invalid API parameters. (Invalid image reference: :3.6: Empty image repository/name)
    {"lang":"python:"}: 400 Missing or invalid API parameters. (Invalid image reference: python:: Invalid image tag)
    {"lang":"python:3.6-18.04"}: 400 Missing or invalid API parameters. (Invalid image reference: python:3.6-18.04: ('invalid tag-version string', '18.04'))
    {"lang":"python:3.6-py3-py3"}: 400 Missing or invalid API parameters. (Invalid image reference: python:3.6-py3-py3: ('duplicate platform tag with different versions', 'py3'))
    {"lang":"python:9.9"}: 400 Missing or invalid API parameters. (Unknown image reference: python:9.9)
    {"lang":"pyth\u0000on"}: 400 Missing or invalid API parameters. (Input validation error) {"lang":"value must not contain NUL characters"}
    {"lang":"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx: 400 Missing or invalid API parameters. (An image reference must have at most 512 characters)
    {"group":null}: 400 Missing or invalid API parameters. (Input validation error) {"group":"value is not a string"}
    {"domain":["default"]}: 400 Missing or invalid API parameters. (Input validation error) {"domain":"value is not a string"}
    {"tag":""}: 400 Missing or invalid API parameters. (Input validation error) {"tag":"blank value is not allowed"}
    {"tag":5}: 400 Missing or invalid API parameters. (Input validation error) {"tag":"value is not a string"}
    {"tag":"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx: 400 Missing or invalid API parameters. (tag must have at most 64 characters)
    {"config":null}: 400 Missing or invalid API parameters. (Input validation error) {"config":"value is not a dict"}
    {"config":{"mounts":"data"}}: 400 Missing or invalid API parameters. (config.mounts must be a list of folder names)
    {"config":{"mounts":[1]}}: 400 Missing or invalid API parameters. (config.mounts must be a list of folder names)
    {"config":{"mounts":["x","x","x","x","x","x","x","x","x","x": 400 Missing or invalid API parameters. (config.mounts must have at most 64 names)
    {"config":{"environ":["A=b"]}}: 400 Missing or invalid API parameters. (config.environ must be an object of strings)
    {"config":{"environ":{"A=":"b"}}}: 400 Missing or invalid API parameters. (config.environ must have names without '=' and strings of one line as values)
    {"config":{"environ":{"A":{"b":1}}}}: 400 Missing or invalid API parameters. (config.environ must have names without '=' and strings of one line as values)
    {"config":{"environ":{"A":"b\nc"}}}: 400 Missing or invalid API parameters. (config.environ must have names without '=' and strings of one line as values)
    {"config":{"environ":{"A":"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx: 400 Missing or invalid API parameters. (config.environ must have at most 65536 bytes in all; put larger data into a file)
    {"config":{"resources":[]}}: 400 Missing or invalid API parameters. (config.resources must be an object of amounts by slot)
    {"config":{"resources":{"xpu":1}}}: 400 Missing or invalid API parameters. (Unknown requested resource slot: xpu)
    {"config":{"resources":{"cpu":"two"}}}: 400 Missing or invalid API parameters. (Your resource request has resource type(s) not supported by the image. (cpu cannot be "two"; use a number or, of bytes, a size such as 512m))
    {"config":{"resources":{"cpu":{}}}}: 400 Missing or invalid API parameters. (Your resource request has resource type(s) not supported by the image. (cpu cannot be {}; use a number or, of bytes, a size such as 512m))
    {"config":{"resources":{"cpu":-1}}}: 400 Missing or invalid API parameters. (Your resource request is smaller than the minimum required by the image. (cpu=1 mem=256m))
    {"config":{"resources":{"cpu":"nan"}}}: 400 Missing or invalid API parameters. (Your resource request is smaller than the minimum required by the image. (cpu=1 mem=256m))
    {"config":{"resources":{"cpu":"inf"}}}: 503 There is no available instance. (cpu=Infinity mem=256m was asked for, and the agent with the most room has cpu=8 mem=16g left; ask for less, or try again when other sessions have ended)
    {"config":{"resources":{"cpu":"1e30"}}}: 400 Missing or invalid API parameters. (Your resource request has resource type(s) not supported by the image. (cpu cannot be "1e30"; use a number or, of bytes, a size such as 512m))
    {"config":{"resources":{"mem":"1.5"}}}: 400 Missing or invalid API parameters. (Your resource request has resource type(s) not supported by the image. (mem cannot be "1.5"; use a number or, of bytes, a size such as 512m))
    {"config":{"resources":{"mem":"4q"}}}: 400 Missing or invalid API parameters. (Your resource request has resource type(s) not supported by the image. (mem cannot be "4q"; use a number or, of bytes, a size such as 512m))
    {"config":{"resources":{"mem":"100k"}}}: 400 Missing or invalid API parameters. (Your resource request is smaller than the minimum required by the image. (cpu=1 mem=256m))
    {"config":{"instanceMemory":"much"}}: 400 Missing or invalid API parameters. (Your resource request has resource type(s) not supported by the image. (mem cannot be "muchg"; use a number or, of bytes, a size such as 512m))
    {"config":{"instanceTPUs":1}}: 400 Missing or invalid API parameters. (Client upgrade required to use TPUs (v19.03+).)
    /kernel/create?owner_access_key=ZZZ: 400 Missing or invalid API parameters. (Unknown or inactive owner access key: ZZZ)
    /kernel/create?owner_access_key=%00: 400 Missing or invalid API parameters. (owner_access_key must be an access key)
    /kernel/create?owner_access_key=xxxxxxxxxxxxxxxxxxxxxxxxxxxx: 400 Missing or invalid API parameters. (owner_access_key must be an access key)
    "##);
    assert!(api.agent.calls().is_empty());
    assert_clean(&api).await;
}

#[tokio::test]
async fn calls_that_sessions_do_not_understand() {
    let api = Api::start().await;
    create(&api, Role::User, "asked").await;
    let run = |member: &str, value: Value| {
        let mut body = json!({ "runId": "r", "mode": "query", "code": "" });
        body[member] = value;
        body
    };
    let execute = "/kernel/asked";
    let mut cases = vec![
        ("POST", execute, json!([])),
        ("POST", execute, json!({ "mode": "query" })),
        ("POST", execute, run("runId", json!(7))),
        ("POST", execute, run("runId", json!(""))),
        ("POST", execute, run("runId", json!("x".repeat(257)))),
        ("POST", execute, run("mode", json!(null))),
        ("POST", execute, run("mode", json!(["query"]))),
        ("POST", execute, run("mode", json!("Query"))),
        ("POST", execute, run("code", json!(["print"]))),
        ("POST", execute, run("options", json!("fast"))),
        (
            "POST",
            execute,
            json!({ "runId": null, "mode": "input", "code": "" }),
        ),
        ("POST", "/v1/kernel/asked", json!({ "code": 1 })),
        ("POST", "/kernel/asked/complete", json!({ "code": 1 })),
        ("POST", "/kernel/asked/complete", json!({ "options": 1 })),
        ("GET", "/kernel/asked/files", json!({ "path": 1 })),
        ("GET", "/kernel/asked/download", json!({ "files": "one" })),
        ("GET", "/kernel/asked/download", json!({ "files": [] })),
        ("GET", "/kernel/asked/download", json!({ "files": [1] })),
        (
            "GET",
            "/kernel/asked/download",
            json!({ "files": ["", "", "", "", "", ""] }),
        ),
    ];
    for name in ["%00", "%ff", "a%2Fb", "..", "abc", "%E2%98%83%E2%98%83%E2%98%83"] {
        let target: &'static str = format!("/kernel/{name}").leak();
        cases.push(("GET", target, Value::Null));
    }
    let mut table = String::new();
    for (method, target, body) in cases {
        let answer = api.call(Role::User, method, target, &body).await;
        line(&mut table, &format!("{method} {target} {body}"), &answer);
    }
    let part = |disposition: &str, data: &str| {
        format!("--b\r\nContent-Disposition: form-data{disposition}\r\n\r\n{data}\r\n--b--\r\n")
    };
    for (content_type, body) in [
        ("text/plain", String::new()),
        ("multipart/form-data", String::new()),
        ("multipart/form-data; boundary=b", "no parts".to_owned()),
        ("multipart/form-data; boundary=b", part("; name=\"src\"", "x")),
        (
            "multipart/form-data; boundary=b",
            part("; name=\"src\"; filename=\"\"", "x"),
        ),
        (
            "multipart/form-data; boundary=b",
            "--b\r\n".to_owned() + &"X: y\r\n".repeat(50),
        ),
        (
            "multipart/form-data; boundary=b",
            "--b\r\nX: ".to_owned() + &"y".repeat(22 << 20),
        ),
    ] {
        let mut request = Request::new(Role::User, "POST", "/kernel/asked/upload");
        request.content_type = Some(content_type.to_owned());
        request.body = body.clone().into_bytes();
        line(
            &mut table,
            &format!("{content_type} {body:?}"),
            &api.send(request).await,
        );
    }
    insta::assert_snapshot!(table, @r##"
    POST /kernel/asked []: 400 Missing or invalid API parameters. (The body must be a JSON object)
    POST /kernel/asked {"mode":"query"}: 400 Missing or invalid API parameters. (runId is missing!)
    POST /kernel/asked {"runId":7,"mode":"query","code":""}: 400 Missing or invalid API parameters. (runId must be a string)
    POST /kernel/asked {"runId":"","mode":"query","code":""}: 400 Missing or invalid API parameters. (runId must be null or have 1 to 256 characters)
    POST /kernel/asked {"runId":"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx: 400 Missing or invalid API parameters. (runId must be null or have 1 to 256 characters)
    POST /kernel/asked {"runId":"r","mode":null,"code":""}: 400 Missing or invalid API parameters. (mode is missing or empty!)
    POST /kernel/asked {"runId":"r","mode":["query"],"code":""}: 400 Missing or invalid API parameters. (mode has an invalid value.)
    POST /kernel/asked {"runId":"r","mode":"Query","code":""}: 400 Missing or invalid API parameters. (mode has an invalid value.)
    POST /kernel/asked {"runId":"r","mode":"query","code":["prin: 400 Missing or invalid API parameters. (code must be a string)
    POST /kernel/asked {"runId":"r","mode":"query","code":"","op: 400 Missing or invalid API parameters. (options must be an object or null)
    POST /kernel/asked {"runId":null,"mode":"input","code":""}: 400 Missing or invalid API parameters. (continuation requires explicit run ID)
    POST /v1/kernel/asked {"code":1}: 400 Missing or invalid API parameters. (code must be a string)
    POST /kernel/asked/complete {"code":1}: 400 Missing or invalid API parameters. (code must be a string)
    POST /kernel/asked/complete {"options":1}: 400 Missing or invalid API parameters. (options must be an object or null)
    GET /kernel/asked/files {"path":1}: 400 Missing or invalid API parameters. (path must be a string)
    GET /kernel/asked/download {"files":"one"}: 400 Missing or invalid API parameters. (files must be a list of paths)
    GET /kernel/asked/download {"files":[]}: 400 Missing or invalid API parameters. (no file(s) specified!)
    GET /kernel/asked/download {"files":[1]}: 400 Missing or invalid API parameters. (files must be a list of paths)
    GET /kernel/asked/download {"files":["","","","","",""]}: 400 Missing or invalid API parameters. (Too many files)
    GET /kernel/%00 null: 404 No such kernel.
    GET /kernel/%ff null: 404 No such kernel.
    GET /kernel/a%2Fb null: 404 No such kernel.
    GET /kernel/.. null: 404 No such kernel.
    GET /kernel/abc null: 404 No such kernel.
    GET /kernel/%E2%98%83%E2%98%83%E2%98%83 null: 404 No such kernel.
    text/plain "": 400 Missing or invalid API parameters. (The body must be multipart/form-data with a boundary)
    multipart/form-data "": 400 Missing or invalid API parameters. (The body must be multipart/form-data with a boundary)
    multipart/form-data; boundary=b "no parts": 400 Missing or invalid API parameters. (Malformed multipart body: incomplete multipart stream)
    multipart/form-data; boundary=b "--b\r\nContent-Disposition:: 400 Missing or invalid API parameters. (Every part must have a filename)
    multipart/form-data; boundary=b "--b\r\nContent-Disposition:: 400 Missing or invalid API parameters. (Every part must have a filename)
    multipart/form-data; boundary=b "--b\r\nX: y\r\nX: y\r\nX: y: 400 Missing or invalid API parameters. (Malformed multipart body: incomplete multipart stream)
    multipart/form-data; boundary=b "--b\r\nX: yyyyyyyyyyyyyyyyy: 400 Missing or invalid API parameters. (Malformed multipart body: stream size exceeded limit: 22020096 bytes)
    "##);
    assert_eq!(api.agent.calls(), ["create_kernel"], "nothing reached the agent");
    assert_clean(&api).await;
}

#[tokio::test]
async fn bodies_and_headers_that_are_none() {
    let api = Api::start().await;
    let mut table = String::new();
    let deep = "[".repeat(100_000);
    let large = json!({ "echo": "x".repeat(1 << 20) }).to_string();
    for body in ["{", "null", "\u{feff}{}", "{\"echo\": NaN}", &deep, &large] {
        for version in ["v4.20190615", "v3.20170615"] {
            let mut request = Request::new(Role::User, "POST", "/auth/test");
            (request.version, request.body) = (version, body.as_bytes().to_vec());
            line(
                &mut table,
                &format!("{version} {body:?}"),
                &api.send(request).await,
            );
        }
    }
    let mut request = Request::new(Role::User, "POST", "/auth/test");
    request.body = b"{\"echo\": \"\xff\"}".to_vec();
    line(&mut table, "not UTF-8", &api.send(request).await);
    let long = "K".repeat(8000);
    for (name, value) in [
        ("date", "tomorrow"),
        ("date", "1563194096"),
        ("date", "2019-07-15T12:49:57+00:00"),
        ("authorization", "x"),
        ("authorization", "Basic dXNlcjpwYXNz"),
        ("authorization", "BackendAI "),
        ("authorization", "BackendAI credential=a:b"),
        ("authorization", "BackendAI signMethod=HMAC-SHA256, credential=a"),
        (
            "authorization",
            "BackendAI signMethod=HMAC-SHA256, credential=AKIANABBDUSEREXAMPLE:0",
        ),
        (
            "authorization",
            "BackendAI signMethod=HMAC-MD5, credential=AKIANABBDUSEREXAMPLE:0",
        ),
        (
            "authorization",
            "BackendAI signMethod=RSA-SHA256, credential=AKIANABBDUSEREXAMPLE:0",
        ),
        (
            "authorization",
            "BackendAI signMethod=SHA256, credential=AKIANABBDUSEREXAMPLE:0",
        ),
        (
            "authorization",
            &format!("BackendAI signMethod=HMAC-SHA256, credential={long}:0"),
        ),
        ("x-backendai-version", "v4"),
        ("x-backendai-version", "v9.20990101"),
        ("x-backendai-version", "v\u{e9}"),
    ] {
        let mut request = Request::new(Role::User, "GET", "/auth/test?echo=x");
        request.headers.push((name.into(), value.into()));
        line(&mut table, &format!("{name}: {value}"), &api.send(request).await);
    }
    insta::assert_snapshot!(table, @r##"
    v4.20190615 "{": 400 Missing or invalid API parameters. (Malformed body)
    v3.20170615 "{": 400 Missing or invalid API parameters. (Malformed body)
    v4.20190615 "null": 400 Missing or invalid API parameters. (Input validation error) "value is not a dict"
    v3.20170615 "null": 400 Missing or invalid API parameters. (Input validation error) "value is not a dict"
    v4.20190615 "\u{feff}{}": 400 Missing or invalid API parameters. (Malformed body)
    v3.20170615 "\u{feff}{}": 400 Missing or invalid API parameters. (Malformed body)
    v4.20190615 "{\"echo\": NaN}": 400 Missing or invalid API parameters. (Malformed body)
    v3.20170615 "{\"echo\": NaN}": 400 Missing or invalid API parameters. (Malformed body)
    v4.20190615 "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[: 400 Missing or invalid API parameters. (Malformed body)
    v3.20170615 "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[: 400 Missing or invalid API parameters. (Malformed body)
    v4.20190615 "{\"echo\":\"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx: 400 Bad request. (The body must arrive whole and have at most 1048576 bytes)
    v3.20170615 "{\"echo\":\"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx: 400 Bad request. (The body must arrive whole and have at most 1048576 bytes)
    not UTF-8: 400 Missing or invalid API parameters. (Malformed body)
    date: tomorrow: 400 Missing or invalid authorization parameters. (Date/time sync error)
    date: 1563194096: 400 Missing or invalid authorization parameters. (Date/time sync error)
    date: 2019-07-15T12:49:57+00:00: 400 Missing or invalid authorization parameters. (Date/time sync error)
    authorization: x: 400 Missing or invalid authorization parameters. (Malformed authorization header)
    authorization: Basic dXNlcjpwYXNz: 400 Missing or invalid authorization parameters. (Invalid authorization type name)
    authorization: BackendAI : 400 Missing or invalid authorization parameters. (Missing or malformed authorization parameters)
    authorization: BackendAI credential=a:b: 400 Missing or invalid authorization parameters. (Missing or malformed authorization parameters)
    authorization: BackendAI signMethod=HMAC-SHA256, credential=: 400 Missing or invalid authorization parameters. (Missing or malformed authorization parameters)
    authorization: BackendAI signMethod=HMAC-SHA256, credential=: 401 Credential/signature mismatch.
    authorization: BackendAI signMethod=HMAC-MD5, credential=AKI: 400 Missing or invalid authorization parameters. (Unsupported request signing method (hash type))
    authorization: BackendAI signMethod=RSA-SHA256, credential=A: 400 Missing or invalid authorization parameters. (Unsupported request signing method (MAC type))
    authorization: BackendAI signMethod=SHA256, credential=AKIAN: 401 Credential/signature mismatch. (Invalid signature)
    authorization: BackendAI signMethod=HMAC-SHA256, credential=: 401 Credential/signature mismatch. (Access key not found)
    x-backendai-version: v4: 400 Bad request. (Unsupported API major version.)
    x-backendai-version: v9.20990101: 400 Bad request. (Unsupported API major version.)
    x-backendai-version: vé: 400 Bad request. (Unsupported API major version.)
    "##);
}
