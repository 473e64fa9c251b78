//! Counters from settled records.

use serde_json::{Value, json};

use crate::harness::{Plane, START, holder, text};

/// A record with every field that is counted.
fn record(at: i64, agent: &str, model: &str, outcome: &str) -> Value {
    json!({
        "id": "r", "at_ms": at * 1_000, "kind": "exchange", "agent": agent, "team": "blue", "org": "acme", "model": model,
        "tools": ["search"], "outcome": outcome, "estimated": outcome == "allow",
        "usage": {"input_tokens": 100, "output_tokens": 20, "cached_input_tokens": 60, "cache_write_tokens": null, "reasoning_tokens": 5},
        "cost_nano_usd": "1500"
    })
}

#[tokio::test]
async fn usage_is_counted_by_everything_it_can_be_asked_for() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let gate = workspace.gate().await;
    let mut journal = gate.journal(&holder(1), 1);
    let batch = journal.seal_records(
        &[
            record(START, "x", "small", "allow"),
            record(START + 3_600, "x", "large", "allow"),
            record(START + 3_601, "y", "large", "deny"),
            // Not a call.
            json!({"id": "s", "kind": "start"}),
        ],
        0,
    );
    plane.advance(7_200);
    assert_eq!(gate.submit(&batch).await.status, 200);
    let rows = async |query: &str| workspace.get(&format!("/usage{query}")).await["rows"].clone();

    assert_eq!(
        rows("?by=team").await,
        json!([{
            "start": START + 7_200 - 86_400, "key": "blue", "calls": 3, "denied": 1, "estimated": 2,
            "input_tokens": 300, "output_tokens": 60, "cached_input_tokens": 180, "cache_write_tokens": 0,
            "reasoning_tokens": 15, "cost_nano_usd": "4500"
        }])
    );
    let brief = |rows: Value| -> Vec<(i64, String, i64)> {
        let row = |row: &Value| {
            let key = row["key"].as_str().unwrap().to_owned();
            (
                row["start"].as_i64().unwrap(),
                key,
                row["calls"].as_i64().unwrap(),
            )
        };
        rows.as_array().unwrap().iter().map(row).collect()
    };
    let (first, second) = (START, START + 3_600);
    assert_eq!(
        brief(rows("?by=model&step=hour").await),
        [(first, "small".into(), 1), (second, "large".into(), 2)]
    );
    // START is 08:00 UTC.
    let day = START - 8 * 3_600;
    assert_eq!(
        brief(rows("?by=agent&step=day").await),
        [(day, "x".into(), 2), (day, "y".into(), 1)]
    );
    for (by, key) in [
        ("workspace", workspace.id.as_str()),
        ("org", "acme"),
        ("tool", "search"),
    ] {
        let counted = brief(rows(&format!("?by={by}&step=day")).await);
        assert_eq!(counted, [(day, key.to_owned(), 3)], "{by}");
    }
    let range = format!("?by=agent&from={first}&to={second}");
    assert_eq!(brief(rows(&range).await), [(first, "x".into(), 1)]);
    let reply = plane
        .get(
            &workspace.operator,
            &workspace.path(&format!("/usage?from={second}&to={first}")),
        )
        .await;
    assert_eq!(
        (reply.status.as_u16(), reply.problem().as_str()),
        (422, "invalid")
    );
}

#[tokio::test]
async fn without_a_time_usage_is_of_the_last_24_hours_and_the_hour_they_begin_in() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let gate = workspace.gate().await;
    // START is a full hour.
    let records = [
        record(START - 1, "x", "early", "allow"),
        record(START, "x", "first", "allow"),
    ];
    let batch = gate.journal(&holder(1), 1).seal_records(&records, 0);
    assert_eq!(gate.submit(&batch).await.status, 200);
    let shown = async |query: &str| {
        let answer = workspace.get(&format!("/usage?by=model{query}")).await;
        let rows = answer["rows"].as_array().cloned().unwrap_or_default();
        let keys: Vec<String> = rows.iter().map(|row| text(&row["key"])).collect();
        (answer["from"].clone(), keys)
    };
    plane.advance(86_400 + 3_599);
    let first = vec!["first".to_owned()];
    assert_eq!(shown("").await, (json!(START), first.clone()));
    plane.advance(1);
    assert_eq!(shown("").await, (json!(START + 3_600), vec![]));
    // Before another time it is the 24 hours before that.
    let to = format!("&to={}", START + 86_400);
    assert_eq!(shown(&to).await, (json!(START), first));
}

#[tokio::test]
async fn a_record_that_says_nothing_or_nonsense_is_one_call_now() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let gate = workspace.gate().await;
    let records = [
        json!({}),
        json!([1, 2]),
        json!({"at_ms": i64::MAX, "agent": 7, "tools": "search", "usage": [], "cost_nano_usd": "-5", "model": null}),
        json!({"at_ms": "yesterday", "usage": {"input_tokens": -3, "output_tokens": 1.5}, "cost_nano_usd": "1e9"}),
    ];
    let batch = gate.journal(&holder(1), 1).seal_records(&records, 0);
    assert_eq!(gate.submit(&batch).await.status, 200);
    let row = workspace.get("/usage?step=hour").await["rows"][0].clone();
    assert_eq!((&row["start"], &row["calls"]), (&json!(START), &json!(4)));
    assert_eq!(
        (&row["input_tokens"], &row["cost_nano_usd"]),
        (&json!(0), &json!("0"))
    );
    assert_eq!(workspace.get("/usage?by=tool").await["rows"], json!([]));
}

#[tokio::test]
async fn sums_beyond_any_bill_stop_at_the_largest_number() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let gate = workspace.gate().await;
    let largest = i64::MAX.to_string();
    let records = [
        json!({"cost_nano_usd": largest}),
        json!({"cost_nano_usd": largest}),
    ];
    let mut journal = gate.journal(&holder(1), 1);
    assert_eq!(
        gate.submit(&journal.seal_records(&records, 0)).await.status,
        200
    );
    assert_eq!(
        gate.submit(&journal.seal_records(&records, 0)).await.status,
        200
    );
    let row = workspace.get("/usage").await["rows"][0].clone();
    assert_eq!(
        (&row["calls"], &row["cost_nano_usd"]),
        (&json!(4), &json!(largest))
    );
}

#[tokio::test]
async fn a_flood_of_names_does_not_flood_the_disk() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let gate = workspace.gate().await;
    let mut journal = gate.journal(&holder(1), 1);
    for batch in 0..3 {
        let records: Vec<Value> = (0..500)
            .map(|number| json!({"model": format!("m{batch}-{number}")}))
            .collect();
        assert_eq!(
            gate.submit(&journal.seal_records(&records, 0)).await.status,
            200
        );
    }
    let rows = workspace.get("/usage?by=model").await["rows"].clone();
    let rows = rows.as_array().unwrap();
    // A thousand names, and the other five hundred together.
    assert_eq!(rows.len(), 1_001);
    let other = rows.iter().find(|row| row["key"] == "(other)").unwrap();
    assert_eq!(other["calls"], 500);
}
