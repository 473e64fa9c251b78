//! Calls as agents make them.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;

use serde_json::{Value, json};

use tollgate_tests::whole::{
    self, PROVIDER_KEY, Whole as _, at_once, chat_body, client, stream_body, wait_for,
    within_a_minute,
};

use crate::scene::Scene;

/// Everything that the reading of one call can meet.
const POLICY: &str = "
apiVersion: tollgate/v1
kind: Policy
metadata:
  name: house
spec:
  scope: global
  capabilities:
    allow: ['model:gpt-5-mini']
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
            &record["cost_nano_usd"],
            &record["estimated"],
            &record["end"],
        ),
        (
            &json!(decision),
            &json!("allow"),
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
fn a_denied_call_reaches_nobody() {
    let scene = Scene::start("denied", POLICY);
    let mut body = chat_body("hello");
    body["model"] = "gpt-5".into();
    let denied = scene.send("/v1/chat/completions", body.to_string().as_bytes(), &[]);
    assert_eq!(denied.verdict(), (403, "capabilities.allow"));
    assert_eq!(scene.reached(), []);
    let records = scene.records(1);
    assert_eq!(records[0]["end"], "answered_here", "{records:?}");
}

#[test]
fn two_hundred_at_once_against_fifty_admit_fifty() {
    let policy = "
apiVersion: tollgate/v1
kind: Policy
metadata:
  name: cap
spec:
  scope: global
  rate:
    per: agent
    requests_per_minute: 50
";
    let scene = Scene::start("burst", policy);
    let body = chat_body("hello").to_string().into_bytes();
    // A burst over the edge of a minute may rightly admit twice as many; the next one is not.
    let mut made = 0;
    let served = within_a_minute(|| {
        scene.provider().forget_requests();
        made += 200;
        let answers = at_once(200, || {
            let request = scene.request("/v1/chat/completions", &[]);
            request.body(body.clone()).unwrap()
        });
        let (served, denied): (Vec<_>, Vec<_>) =
            answers.iter().partition(|answer| answer.status == 200);
        for answer in denied {
            assert_eq!(
                answer.verdict(),
                (429, "rate.requests_per_minute"),
                "{}",
                answer.body
            );
        }
        (served.len(), scene.reached().len())
    });
    assert_eq!(served, (50, 50));
    assert_eq!(scene.records(made).len(), made);
}

/// It would come back by itself half a minute later.
#[test]
fn what_a_gate_at_rest_keeps_is_there_for_a_call_at_another() {
    const LIMIT: u64 = 12_000_000;
    const COST: u64 = 16_250;
    let scene = Scene::start("recall", &whole::budget("0.012"));
    assert_eq!(scene.chat("hello", &[]).status, 200);
    let share = |budget: &Value, ours: bool| {
        let mut holders = budget["holders"].as_array()?.iter();
        whole::share(holders.find(|holder| (holder["holder"] == OTHER) != ours)?)
    };
    let budget = || scene.budget("|nano_usd|day@UTC");
    let kept = wait_for("the gate to have told", || match share(&budget()?, true)? {
        (COST, kept) if kept <= LIMIT / 96 => Some(kept),
        _ => None,
    });
    assert!(kept > 0);

    // Another one needs all that is left.
    let (control_plane, workspace) = scene.control_plane();
    let mut seq = 0_u64;
    wait_for("the gate to have nothing left", || {
        let budget = budget()?;
        let (_, has) = share(&budget, false).unwrap_or_default();
        let ask = json!({
            "account": budget["account"],
            "window_start": budget["window_start"],
            "seq": seq + 1,
            "epoch": seq.min(1),
            "granted": has.to_string(),
            "returned": "0",
            "settled": "0",
            "reserved": "0",
            "want": (LIMIT - COST - has).to_string(),
        });
        let request = json!({"holder": OTHER, "epoch": seq.min(1), "revision": 1, "asks": [ask]});
        let path = format!("/v1/workspaces/{}/gate/leases", workspace.id);
        control_plane
            .call(
                &workspace.enrolment_key,
                "POST",
                &path,
                &request.to_string(),
            )
            .unwrap_or_else(|error| panic!("{error:#}"));
        seq += 1;
        (share(&budget, true)? == (COST, 0) && has == LIMIT - COST).then_some(())
    });
}

/// A holder of another gate's.
const OTHER: &str = "h-00000000000000000000000000000007";

#[test]
fn a_slow_stream_arrives_as_it_is_sent() {
    let scene = Scene::start("slow", POLICY);
    // 8 words, a role and an end, each two seconds after the one before: all of it takes longer than a test waits.
    let knobs = [("x-stand-in-delay-ms", "2000")];
    let request = scene
        .request("/v1/chat/completions", &knobs)
        .body(stream_body().to_string().into_bytes())
        .unwrap();
    let started = std::time::Instant::now();
    let mut response = client().run(request).unwrap();
    let mut lines = BufReader::new(response.body_mut().as_reader()).lines();
    let first = lines.next().unwrap().unwrap();
    assert!(first.starts_with("data: "), "{first}");
    // The first event was sent after two seconds, the second after four.
    assert!(
        started.elapsed().as_millis() < 3_900,
        "{:?}",
        started.elapsed()
    );
    drop(lines);
    drop(response);

    // A caller who leaves in the middle pays for what it saw, once.
    let records = scene.records(1);
    let [record] = records.as_slice() else {
        panic!("{records:?}")
    };
    assert_eq!(
        (&record["estimated"], &record["end"]),
        (&json!(true), &json!("client_left")),
        "{record}"
    );
    let cost: u64 = record["cost_nano_usd"].as_str().unwrap().parse().unwrap();
    let reserved: u64 = record["reserved_nano_usd"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!(cost > 0 && cost <= reserved, "{record}");
    wait_for("the ledger to have heard of it", || {
        let budget = scene.budget("|nano_usd|day@UTC")?;
        (budget["settled"] == json!(cost.to_string()) && budget["reserved"] == "0").then_some(())
    });
}

#[test]
fn a_stream_is_metered_and_its_client_gets_what_it_asked_for() {
    let scene = Scene::start("streams", POLICY);
    let answer = scene.post(
        "/v1/chat/completions",
        &stream_body(),
        &[("x-stand-in-split", "37")],
    );
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert!(answer.body.ends_with("data: [DONE]\n\n"), "{}", answer.body);
    // The gate has asked for the usage, and taken it out again.
    assert!(!answer.body.contains("prompt_tokens"), "{}", answer.body);
    let reached = scene.reached();
    let sent: Value = serde_json::from_str(&reached[0].body).unwrap();
    assert_eq!(sent["stream_options"], json!({"include_usage": true}));
    // 3 × 250 + 8 × 2,000.
    let record = &scene.records(1)[0];
    assert_eq!(record["cost_nano_usd"], "16750", "{record}");
    assert_eq!(record["estimated"], false, "{record}");
}

#[test]
fn a_stream_that_breaks_off_is_settled_on_an_estimate() {
    let scene = Scene::start("broken", POLICY);
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

#[test]
fn a_body_over_the_cap_is_refused_before_it_has_come() {
    let scene = Scene::start("cap", POLICY);
    // 1 MiB is the cap. Declared, it is refused before it comes: of this one not a byte is ever sent…
    let request = scene
        .request("/v1/chat/completions", &[])
        .header("content-length", (1 << 20) + 1)
        .body(())
        .unwrap();
    let authority = request.uri().authority().unwrap().as_str();
    let mut head = format!(
        "POST {} HTTP/1.1\r\nhost: {authority}\r\n",
        request.uri().path()
    );
    for (name, value) in request.headers() {
        head += &format!("{name}: {}\r\n", value.to_str().unwrap());
    }
    let mut connection = TcpStream::connect(authority).unwrap();
    connection
        .write_all(format!("{head}\r\n").as_bytes())
        .unwrap();
    let answer: Vec<String> = BufReader::new(connection)
        .lines()
        .map(Result::unwrap)
        .take_while(|line| !line.is_empty())
        .collect();
    assert!(answer[0].starts_with("HTTP/1.1 413"), "{answer:?}");
    let reason = "x-tollgate-reason: request.body_too_large";
    assert!(
        answer.iter().any(|line| line.eq_ignore_ascii_case(reason)),
        "{answer:?}"
    );
    // …undeclared, as soon as it is passed. This one would be 4 GiB.
    let endless = std::io::Read::take(std::io::repeat(b' '), 4 << 30);
    let request = scene
        .request("/v1/chat/completions", &[])
        .header("transfer-encoding", "chunked")
        .body(ureq::SendBody::from_owned_reader(endless))
        .unwrap();
    // The client may see the connection closed under its upload, or the answer.
    if let Ok(response) = client().run(request) {
        assert_eq!(whole::read(response).status, 413);
    }
    assert_eq!(scene.reached(), []);
    let records = scene.records(2);
    assert!(
        records.iter().all(|record| record["status"] == 413),
        "{records:?}"
    );
    assert_eq!(scene.chat("hello", &[]).status, 200);
}

/// No answer has such a status, and an isolate that tried to pass it on would break down, with all that is under way there.
#[test]
fn an_upstream_that_answers_with_no_status_takes_nothing_else_down() {
    let scene = Scene::start("status", POLICY);
    for (status, passed) in [("999", 502), ("600", 502), ("503", 503)] {
        let answer = scene.chat("hi", &[("x-stand-in-status", status)]);
        assert_eq!(answer.status, passed, "{}", answer.body);
    }
    assert_eq!(scene.chat("hi", &[]).status, 200);
    let mut ends: Vec<(Value, Value)> = scene
        .records(4)
        .iter()
        .map(|record| (record["end"].clone(), record["upstream_status"].clone()))
        .collect();
    ends.sort_by_key(|end| format!("{end:?}"));
    let expected = [
        (json!("complete"), json!(200)),
        (json!("complete"), json!(503)),
        (json!("upstream_broken"), Value::Null),
        (json!("upstream_broken"), Value::Null),
    ];
    assert_eq!(ends, expected);
}
