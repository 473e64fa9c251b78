//! Server-sent events: passed on as they come, metered on the way, settled however they end.

use std::io::{BufRead as _, BufReader};

use serde_json::{Value, json};
use tollgate_tests::whole::{Whole as _, budget, client, stream_body, wait_for};

use crate::scene::Scene;

/// The events of a stream, without `data: ` and without the last, which says that it is done.
fn events(stream: &str) -> Vec<Value> {
    let mut events: Vec<&str> = stream
        .split("\n\n")
        .filter_map(|event| event.strip_prefix("data: "))
        .collect();
    assert_eq!(events.pop(), Some("[DONE]"), "{stream}");
    events
        .into_iter()
        .map(|event| serde_json::from_str(event).unwrap())
        .collect()
}

#[test]
fn a_stream_is_metered_and_its_client_gets_what_it_asked_for() {
    let scene = Scene::start("streams", &budget("1"));
    let path = "/v1/chat/completions";

    // Asked for by the client: everything is passed on, byte for byte.
    let mut asking = stream_body();
    asking["stream_options"] = json!({"include_usage": true});
    let asked = scene.post(path, &asking, &[("x-stand-in-split", "37")]);
    assert_eq!(asked.status, 200, "{}", asked.body);
    let with_usage = events(&asked.body);
    let usage = &with_usage.last().unwrap()["usage"];
    assert_eq!(
        (&usage["prompt_tokens"], &usage["completion_tokens"]),
        (&json!(3), &json!(8))
    );

    // Not asked for: the gate asks, and takes the frame out again, also where chunks cut it.
    let not_asked = scene.post(path, &stream_body(), &[("x-stand-in-split", "37")]);
    let without_usage = events(&not_asked.body);
    assert_eq!(without_usage.len(), with_usage.len() - 1);
    assert!(
        without_usage
            .iter()
            .all(|event| !event["choices"].as_array().unwrap().is_empty())
    );
    let reached = scene.reached();
    assert!(reached.iter().all(
        |call| serde_json::from_str::<Value>(&call.body).unwrap()["stream_options"]
            == json!({"include_usage": true})
    ));

    // 3 × 250 + 8 × 2,000 for each.
    for record in scene.records(2) {
        assert_eq!(record["cost_nano_usd"], "16750", "{record}");
        assert_eq!(record["estimated"], false, "{record}");
    }
}

#[test]
fn a_client_that_leaves_in_the_middle_pays_for_what_it_saw_once() {
    let scene = Scene::start("left", &budget("1"));
    let knobs = [
        ("x-stand-in-delay-ms", "100"),
        ("x-stand-in-completion-tokens", "100"),
    ];
    let body = stream_body().to_string().into_bytes();
    let request = scene
        .request("/v1/chat/completions", &knobs)
        .body(body)
        .unwrap();
    let mut response = client().run(request).unwrap();
    let mut lines = BufReader::new(response.body_mut().as_reader()).lines();
    let first = lines.next().unwrap().unwrap();
    assert!(first.starts_with("data: "), "{first}");
    drop(lines);
    drop(response);

    let records = scene.records(1);
    let [record] = records.as_slice() else {
        panic!("{records:?}")
    };
    assert_eq!(
        (&record["estimated"], &record["end"]),
        (&json!(true), &json!("client_left")),
        "{record}"
    );
    // Not for nothing, and not for more than was set aside.
    let cost: u64 = record["cost_nano_usd"].as_str().unwrap().parse().unwrap();
    let reserved: u64 = record["reserved_nano_usd"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!(cost > 0 && cost <= reserved, "{record}");
    wait_for("the ledger to have heard of it", || {
        let budget = scene.budget("|nano_usd|day@UTC")?;
        assert!(budget["settled"] == "0" || budget["settled"] == json!(cost.to_string()));
        (budget["settled"] != "0" && budget["reserved"] == "0").then_some(())
    });
}

#[test]
fn a_stream_that_breaks_off_is_settled_on_an_estimate() {
    let scene = Scene::start("broken", &budget("1"));
    let knobs = [("x-stand-in-cut-after", "3"), ("x-stand-in-delay-ms", "10")];
    let request = scene
        .request("/v1/chat/completions", &knobs)
        .body(stream_body().to_string().into_bytes())
        .unwrap();
    let mut response = client().run(request).unwrap();
    assert_eq!(response.status(), 200);
    assert!(response.body_mut().read_to_vec().is_err());
    let record = &scene.records(1)[0];
    assert_eq!(
        (&record["estimated"], &record["end"]),
        (&json!(true), &json!("upstream_broken")),
        "{record}"
    );
    assert_ne!(record["cost_nano_usd"], "0", "{record}");
}
