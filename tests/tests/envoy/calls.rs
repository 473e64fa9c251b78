//! One call at a time: what reaches the provider, what the caller sees, what is on record.

use serde_json::json;
use ureq::http::HeaderValue;
use xtask::envoy::{self, Envoy, Run};
use xtask::stack::{gate_secrets, gate_settings};

use tollgate_tests::whole::{
    self, MODEL, PROVIDER_KEY, Whole as _, answer, chat_body, upstream, wait_for,
};

use crate::scene::{Http2, Scene, alone, over_http2, runtime};

/// Everything that the reading of one call can meet.
const POLICY: &str = "
apiVersion: tollgate/v1
kind: Policy
metadata:
  name: house
spec:
  scope: global
  network:
    allowlist: ['127.0.0.1']
  capabilities:
    allow: ['model:gpt-5-mini', 'model:claude-haiku-4-5']
  data:
    sensitive_patterns: ['sk-[a-z]{3}-[0-9]{8}']
  budget:
    per: agent
    daily_limit_usd: 1
";

#[test]
fn an_allowed_call_is_passed_on_paid_for_and_recorded() {
    let scene = Scene::start("allowed", POLICY);
    let answer = scene.chat("four words are here", &[]);
    assert_eq!(answer.status, 200, "{}", answer.body);
    let decision = answer.header("x-tollgate-decision").to_owned();
    assert!(decision.starts_with("d-"), "{decision}");

    let reached = scene.reached();
    let [call] = reached.as_slice() else {
        panic!("{reached:?}")
    };
    let keys: Vec<_> = call.header("authorization").collect();
    assert_eq!(keys, [format!("Bearer {PROVIDER_KEY}")]);
    assert!(!format!("{call:?}").contains(&scene.token));

    let records = scene.records(1);
    let record = &records[0];
    // 4 words in at 250 nano-USD, 8 out at 2,000: 1,000 + 16,000.
    assert_eq!(
        (
            &record["id"],
            &record["outcome"],
            &record["agent"],
            &record["team"],
            &record["model"],
            &record["cost_nano_usd"],
            &record["estimated"],
            &record["end"],
        ),
        (
            &json!(decision),
            &json!("allow"),
            &json!(scene.agent),
            &json!("robots"),
            &json!(MODEL),
            &json!("17000"),
            &json!(false),
            &json!("complete"),
        ),
        "{record}"
    );
    wait_for("the spend in the ledger", || {
        (scene.budget("|nano_usd|day@UTC")?["settled"] == "17000").then_some(())
    });
}

/// An operator says yes, and one call passes.
#[test]
fn a_held_call_passes_once_when_it_is_granted() {
    whole::a_grant_lets_one_call_pass(&Scene::start("approved", whole::APPROVAL));
}

#[test]
fn a_denied_call_reaches_nobody_and_says_why_in_the_callers_own_words() {
    let scene = Scene::start("denied", POLICY);
    let mut body = chat_body("hello");
    body["model"] = "gpt-5".into();
    let denied = scene.post("/v1/chat/completions", &body, &[]);
    assert_eq!(denied.verdict(), (403, "capabilities.allow"));
    let error = &denied.json()["error"];
    assert_eq!(
        (&error["type"], &error["code"], &error["param"]),
        (
            &json!("permission_error"),
            &json!("capabilities.allow"),
            &json!(null)
        )
    );

    // Anthropic's shape for Anthropic's SDK.
    let body = json!({"model": "claude-opus-4-5", "max_tokens": 5, "messages": [{"role": "user", "content": "hello"}]});
    let version = [("anthropic-version", "2023-06-01")];
    let denied = scene.post("/v1/messages", &body, &version);
    assert_eq!(denied.verdict(), (403, "capabilities.allow"));
    let error = denied.json();
    assert_eq!(
        (&error["type"], &error["error"]["type"]),
        (&json!("error"), &json!("permission_error"))
    );

    // Nobody's token.
    let mut request = scene
        .request("/v1/chat/completions", &[])
        .body(chat_body("hello").to_string().into_bytes())
        .unwrap();
    request.headers_mut().remove("authorization");
    let denied = answer(request);
    assert_eq!(denied.status, 401);

    assert_eq!(scene.reached(), []);
    let records = scene.records(3);
    assert!(
        records.iter().all(|record| {
            record["outcome"] == "deny"
                && record["end"] == "answered_here"
                && record["cost_nano_usd"].is_null()
        }),
        "{records:?}"
    );
}

#[test]
fn a_secret_is_found_however_the_prompt_spells_it() {
    let scene = Scene::start("secret", POLICY);
    // Put together here, so that no scanner takes this file for a leak.
    let secret = ["sk", "abc", "12345678"].join("-");
    let plain = chat_body(&format!("my key is {secret}, keep it"));
    // The same text with two of its letters as JSON escapes.
    let escaped = plain.to_string().replace("sk-abc", "\\u0073k-\\u0061bc");
    assert!(!escaped.contains(&secret));
    for body in [plain.to_string(), escaped] {
        let denied = scene.send("/v1/chat/completions", body.as_bytes(), &[]);
        assert_eq!(denied.verdict(), (403, "data.sensitive_patterns[0]"));
        assert!(!denied.body.contains("12345678"), "{}", denied.body);
    }
    assert_eq!(scene.reached(), []);
}

#[test]
fn what_has_no_single_reading_is_refused_and_the_next_call_is_served() {
    let scene = Scene::start("unreadable", POLICY);
    let path = "/v1/chat/completions";
    let body = chat_body("hello").to_string();

    let twice = body.replace("\"model\"", "\"model\":\"gpt-5\",\"model\"");
    let denied = scene.send(path, twice.as_bytes(), &[]);
    assert_eq!(denied.verdict(), (400, "request.json"));

    let denied = scene.send(path, body.as_bytes(), &[("content-encoding", "gzip")]);
    assert_eq!(denied.verdict(), (400, "request.body_encoded"));

    // A header that is not UTF-8: legal on the wire, and a crash in the SDK's own getters.
    let mut request = scene
        .request(path, &[])
        .body(body.clone().into_bytes())
        .unwrap();
    let raw = HeaderValue::from_bytes(b"a\xff\xfeb").unwrap();
    request.headers_mut().insert("x-note", raw);
    assert_eq!(answer(request).verdict(), (400, "request.header_encoding"));

    // 1 MiB is the gate's cap. Declared, it is refused before the body is read…
    let long = chat_body(&"x".repeat(1 << 20)).to_string();
    let denied = scene.send(path, long.as_bytes(), &[]);
    assert_eq!(denied.verdict(), (413, "request.body_too_large"));

    assert_eq!(scene.reached(), []);
    assert_eq!(scene.chat("hello", &[]).status, 200);
    let crashes = scene.stack.envoy.stat("wasm.tollgate.vm_reload").unwrap();
    assert_eq!(crashes.unwrap_or(0), 0);
}

#[test]
fn a_body_that_does_not_say_its_length_is_held_and_judged_whole() {
    let scene = Scene::start("chunked", POLICY);
    let send = |body: String| {
        let request = scene
            .request("/v1/chat/completions", &[])
            .header("transfer-encoding", "chunked")
            .body(ureq::SendBody::from_owned_reader(std::io::Cursor::new(
                body,
            )))
            .unwrap();
        whole::read(whole::client().run(request).unwrap())
    };
    let words = "word ".repeat(100_000);
    let allowed = send(chat_body(&words).to_string());
    assert_eq!(allowed.status, 200, "{}", allowed.body);
    let [call] = scene.reached().try_into().unwrap();
    assert!(call.complete && call.body.len() > 500_000);
    let long = send(chat_body(&"x".repeat(1 << 20)).to_string());
    assert_eq!(long.verdict(), (413, "request.body_too_large"));
    assert_eq!(scene.reached().len(), 1);
}

#[test]
fn an_answer_that_is_too_large_to_be_searched_says_so_and_is_recorded_so() {
    let scene = Scene::start("large-answer", POLICY);
    let pad = (1_100_000).to_string();
    let refused = scene.chat("hello", &[("x-stand-in-pad", &pad)]);
    assert_eq!(refused.verdict(), (403, "response.body_too_large"));
    let records = scene.records(1);
    assert_eq!(records[0]["status"], 403, "{records:?}");
    assert_eq!(records[0]["upstream_status"], 200, "{records:?}");
    // Nobody has read what it used, so all that it may have used is paid.
    assert!(records[0]["reserved_nano_usd"].is_string(), "{records:?}");
    assert_eq!(records[0]["cost_nano_usd"], records[0]["reserved_nano_usd"]);
}

#[test]
fn a_refusal_that_nobody_reads_is_over_all_the_same() {
    let scene = Scene::start("unread", POLICY);
    let secret = ["sk", "abc", "12345678"].join("-");
    let body = chat_body(&secret).to_string();
    runtime().unwrap().block_on(async {
        // A client that lets nothing come but heads.
        let mut connection = Http2::open_with(&scene, 0).await.unwrap();
        let refused = connection.call(&body, &[], false).await.unwrap();
        assert_eq!(refused.status(), 403);
        // Its stream is open still, and the call is on record.
        let [record] = scene.records(1).try_into().unwrap();
        assert_eq!(record["outcome"], "deny");
        assert_eq!(record["end"], "answered_here");
        drop(refused);
    });
}

#[test]
fn over_http2_a_body_is_judged_whole_with_and_without_trailers() {
    let scene = Scene::start("http2", POLICY);
    let allowed = chat_body(&"word ".repeat(180_000)).to_string();
    for trailers in [false, true] {
        let (status, answer) = over_http2(&scene, &allowed, trailers).unwrap();
        assert_eq!(status, 200, "{answer}");
    }
    let reached = scene.reached();
    assert!(
        reached.iter().all(|call| call.body == allowed),
        "changed on its way"
    );

    let secret = ["sk", "abc", "12345678"].join("-");
    let body = chat_body(&format!("{}{secret}", "word ".repeat(180_000))).to_string();
    for trailers in [false, true] {
        let (status, answer) = over_http2(&scene, &body, trailers).unwrap();
        assert_eq!(status, 403, "{answer}");
    }
    let (status, answer) =
        over_http2(&scene, &chat_body(&"x".repeat(1 << 20)).to_string(), false).unwrap();
    assert_eq!(status, 413, "{answer}");
    assert!(answer.contains("request.body_too_large"), "{answer}");
    assert_eq!(scene.reached().len(), 2);
}

#[test]
fn before_its_first_bundle_a_gate_lets_nothing_pass() {
    let scene = Scene::start("no-bundle", POLICY);
    // The same Envoy again, with a key that opens nothing: it gets no bundle.
    let mut workspace = scene.stack.workspace.clone();
    workspace.enrolment_key = workspace.enrolment_key.chars().rev().collect();
    let upstream = upstream(scene.provider());
    let (settings, run) = alone(&scene, gate_settings(&workspace, &upstream));
    let run = Run {
        environment: gate_secrets(&workspace, &upstream),
        ..run
    };
    let envoy = Envoy::start(&run, &settings.render().unwrap()).unwrap();
    let mut request = scene
        .request("/v1/chat/completions", &[])
        .body(chat_body("hello").to_string().into_bytes())
        .unwrap();
    *request.uri_mut() = envoy.url("/v1/chat/completions").parse().unwrap();
    assert_eq!(answer(request).verdict(), (503, "bundle.missing"));
    assert_eq!(scene.reached(), []);
    wait_for("the refused bundle requests to be counted", || {
        let metrics = envoy.prometheus().ok()?;
        let errors = r#"tollgate_control_plane_errors{errand="bundle"}"#;
        metrics.contains(errors).then_some(())
    });
}

#[test]
fn a_configuration_that_cannot_work_keeps_envoy_from_starting() {
    let scene = Scene::start("bad-configuration", POLICY);
    let upstream = upstream(scene.provider());
    let mut gate = gate_settings(&scene.stack.workspace, &upstream);
    // Its secrets are not in the environment.
    let (settings, run) = alone(&scene, gate.clone());
    let refused = envoy::validate(&run, &settings.render().unwrap());
    assert!(refused.is_err());
    gate["trust"] = json!([]);
    let (settings, run) = alone(&scene, gate);
    let refused = Envoy::start(&run, &settings.render().unwrap());
    let why = format!("{:#}", refused.unwrap_err());
    assert!(why.contains("`trust` is empty"), "{why}");
}
