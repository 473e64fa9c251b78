//! What lies in the data directory, and what happens when something of it is gone.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tollgate_control_plane::{ControlPlane, Settings};
use tollgate_tests::Scratch;
use tower::ServiceExt as _;

use axum::body::Body;
use axum::http::Request;

async fn open(data: &Path) -> Result<ControlPlane, String> {
    let opened = ControlPlane::open(data, Settings::default()).await;
    opened.map_err(|error| error.to_string())
}

fn key(data: &Path, name: &str) -> String {
    fs::read_to_string(data.join(name)).unwrap()
}

async fn call(
    plane: &ControlPlane,
    key: &str,
    method: &str,
    path: &str,
    body: Value,
) -> (u16, Value) {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("authorization", format!("Bearer {}", key.trim()))
        .header("content-type", "application/json")
        .body(Body::from(body.to_string()))
        .unwrap();
    let app = tollgate_control_plane::app(plane.clone());
    let response = app.oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let body = axum::body::to_bytes(response.into_body(), usize::MAX)
        .await
        .unwrap();
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

#[tokio::test]
async fn a_restart_finds_everything_and_changes_nothing() {
    let scratch = Scratch::new("restart");
    let data = scratch.path();
    let plane = open(data).await.unwrap();
    let (_, made) = call(
        &plane,
        &key(data, "root.key"),
        "POST",
        "/v1/workspaces",
        json!({"name": "demo"}),
    )
    .await;
    let operator = made["operator"]["key"].as_str().unwrap();
    let bundle = format!("/v1/workspaces/{}/bundle", made["id"].as_str().unwrap());
    let before = call(&plane, operator, "GET", &bundle, Value::Null).await;
    assert_eq!(before.0, 200);
    let root = key(data, "root.key");
    drop(plane);
    let plane = open(data).await.unwrap();
    assert_eq!(key(data, "root.key"), root);
    // The very same bytes: a restart is no reason for gates to fetch anything.
    assert_eq!(
        call(&plane, operator, "GET", &bundle, Value::Null).await,
        before
    );
}

#[tokio::test]
async fn a_root_key_that_is_removed_is_replaced_and_opens_nothing_any_more() {
    let scratch = Scratch::new("root");
    let data = scratch.path();
    drop(open(data).await.unwrap());
    let lost = key(data, "root.key");
    fs::remove_file(data.join("root.key")).unwrap();
    let plane = open(data).await.unwrap();
    let made = key(data, "root.key");
    assert_ne!(made, lost);
    assert_eq!(
        call(&plane, &lost, "GET", "/v1/workspaces", Value::Null)
            .await
            .0,
        401
    );
    assert_eq!(
        call(&plane, &made, "GET", "/v1/workspaces", Value::Null)
            .await
            .0,
        200
    );
}

#[tokio::test]
async fn without_the_keys_that_others_depend_on_it_does_not_start() {
    for name in ["signing.key", "pepper.key"] {
        let scratch = Scratch::new("lost");
        let data = scratch.path();
        drop(open(data).await.unwrap());
        let kept = key(data, name);
        fs::remove_file(data.join(name)).unwrap();
        let error = open(data).await.unwrap_err();
        assert!(
            error.contains(&format!("`{name}` is missing beside the database")),
            "{error}"
        );
        assert!(!data.join(name).exists(), "{name} was made anew");
        fs::write(data.join(name), "not a key").unwrap();
        let error = open(data).await.unwrap_err();
        assert!(
            error.contains("does not hold 32 bytes in base64"),
            "{error}"
        );
        fs::write(data.join(name), kept).unwrap();
        open(data).await.unwrap();
    }
}
