//! One call at a time: what reaches the provider, what the caller sees, what is on record.

use serde_json::json;

use crate::scene::{MODEL, PROVIDER_KEY, Scene};

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
    crate::scene::wait_for("the spend in the ledger", || {
        (scene.budget("|nano_usd|day@UTC")?["settled"] == "17000").then_some(())
    });
}
