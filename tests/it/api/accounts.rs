//! `/auth`: log-in, and who is let in at all.

use bai_testkit::{Api, Role, cast};
use serde_json::{Value, json};

#[tokio::test]
async fn login_answers_with_the_keypair_and_tells_nothing_otherwise() {
    let api = Api::start().await;
    let login = |username: &'static str, password: &'static str| json!({ "type": "keypair", "domain": "default", "username": username, "password": password });
    let answer = api
        .call(
            Role::Anonymous,
            "POST",
            "/auth/authorize",
            &login("user@lablup.com", "wJalrXUt"),
        )
        .await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json()["data"]["access_key"], "AKIANABBDUSEREXAMPLE");
    for (username, password) in [("user@lablup.com", "wrong"), ("nobody@lablup.com", "wJalrXUt")] {
        let answer = api
            .call(
                Role::Anonymous,
                "POST",
                "/auth/authorize",
                &login(username, password),
            )
            .await;
        let title = "Credential/signature mismatch. (User credential mismatch.)";
        assert_eq!(
            answer.view(),
            json!([401, { "type": "https://api.backend.ai/probs/auth-failed", "title": title }])
        );
    }
}

/// The user's answers to a signed request and to a log-in, with a changed cast.
async fn let_in(change: impl FnOnce(&mut Value)) -> (u16, u16) {
    let mut cast = cast::fixture();
    change(&mut cast);
    let api = Api::start_with(&cast).await;
    let login = json!({
        "type": "keypair", "domain": "default", "username": "user@lablup.com", "password": cast::PASSWORD,
    });
    let signed = api.get(Role::User, "/auth/test?echo=x").await.status;
    let login = api.call(Role::Anonymous, "POST", "/auth/authorize", &login).await;
    (signed, login.status)
}

#[tokio::test]
async fn the_inactive_get_in_nowhere() {
    assert_eq!(let_in(|_| {}).await, (200, 200));
    assert_eq!(
        let_in(|cast| cast["keypairs"][2]["is_active"] = json!(false)).await,
        (401, 401)
    );
    assert_eq!(
        let_in(|cast| cast["users"][2]["is_active"] = json!(false)).await,
        (401, 401)
    );
    assert_eq!(
        let_in(|cast| cast["domains"][0]["is_active"] = json!(false)).await,
        (401, 401)
    );
}

#[tokio::test]
async fn sign_up_is_said_to_be_missing() {
    let api = Api::start().await;
    let body = json!({ "domain": "default", "email": "new@lablup.com", "password": "x" });
    let answer = api.call(Role::Anonymous, "POST", "/auth/signup", &body).await;
    insta::assert_compact_json_snapshot!(answer.view(), @r#"[503, {"type": "https://api.backend.ai/probs/not-implemented", "title": "This API query is not implemented."}]"#);
}
