//! Calls as agents make them.

use std::io::{BufRead as _, BufReader, Write as _};

use serde_json::json;
use tollgate_tests::corpus::wire;
use tollgate_tests::spin_host::Reuse;
use tollgate_tests::whole::{
    self, PROVIDER_KEY, Whole as _, at_once, chat_body, client, stream_body, wait_for,
    within_a_minute,
};

use crate::scene::{Gate, Scene};

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
    for reuse in [Reuse::NEVER, Reuse::SPIN] {
        let scene = Scene::start("allowed", POLICY, reuse);
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

        let record = &scene.records(1)[0];
        // 4 words in at 250 nano-USD, 8 out at 2,000: 1,000 + 16,000.
        assert_eq!(
            (&record["id"], &record["cost_nano_usd"], &record["end"]),
            (&json!(decision), &json!("17000"), &json!("complete")),
            "{record}"
        );
        wait_for("the spend in the ledger", || {
            (scene.budget("|nano_usd|day@UTC")?["settled"] == "17000").then_some(())
        });
    }
}

/// An operator says yes, and one call passes.
#[test]
fn a_held_call_passes_once_when_it_is_granted() {
    whole::a_grant_lets_one_call_pass(&Scene::start("approved", whole::APPROVAL, Reuse::SPIN));
}

const RUNS: &str = "
apiVersion: tollgate/v1
kind: Policy
metadata:
  name: runs
spec:
  scope: global
  agent:
    termination: {max_iterations: 1}
";

/// Agents make up names of runs, and Spin's store forgets no name: so none is told to it.
#[test]
fn runs_have_limits_of_their_own_and_leave_no_names_behind() {
    let scene = Scene::start("runs", RUNS, Reuse::SPIN);
    let of = |run: u32| {
        let name = format!("errand-{run}");
        let answer = scene.chat("hello", &[("x-tollgate-run", &name)]);
        (answer.status, answer.header("x-tollgate-reason").to_owned())
    };
    let over = (429, "agent.termination.max_iterations".to_owned());
    for run in 0..5 {
        assert_eq!(of(run), (200, String::new()));
        assert_eq!(of(run), over);
    }
    scene.records(10);
    let Gate::StandIn(_) = &scene.gate else {
        eprintln!("skipped: nobody looks into a real Spin's store");
        return;
    };
    let names: Vec<String> = scene.values.lock().keys().cloned().collect();
    assert!(
        names.iter().any(|name| name.starts_with("place ")),
        "{names:?}"
    );
    assert!(
        !names.iter().any(|name| name.contains("errand")),
        "{names:?}"
    );
}

/// Whatever length their heads announce, answers of these kinds have no body, and their calls come to an end.
#[test]
fn answers_without_a_body_are_passed_on() {
    let upstream = wire::Server::start(|request, stream| {
        let head: &[u8] = match request.start.starts_with("HEAD ") {
            true => b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 12\r\n\r\n",
            false => b"HTTP/1.1 204 No Content\r\n\r\n",
        };
        let _ = stream.write_all(head);
    })
    .unwrap();
    let scene = Scene::start_as("bodiless", POLICY, Reuse::SPIN, |app| {
        let host = format!("http://{}", upstream.address);
        app.variables.insert("upstream".to_owned(), host.clone());
        app.allowed_outbound_hosts.push(host);
    });
    for (method, status) in [("HEAD", 200), ("GET", 204)] {
        let mut request = scene.request("/v1/models", &[]).body(Vec::new()).unwrap();
        *request.method_mut() = method.parse().unwrap();
        let answer = whole::answer(request);
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (status, ""),
            "{method}"
        );
    }
    for record in scene.records(2) {
        assert_eq!(
            (&record["outcome"], &record["end"]),
            (&json!("allow"), &json!("complete"))
        );
    }
}

/// The next three go on where the first instance stopped: one holder, one chain of records, one bundle.
#[test]
fn what_an_instance_knew_outlives_it() {
    let scene = Scene::start("outlives", POLICY, Reuse::NEVER);
    for _ in 0..4 {
        assert_eq!(scene.chat("hello", &[]).status, 200);
    }
    if let Gate::StandIn(host) = &scene.gate {
        assert_eq!(host.instances(), 4);
    }
    scene.records(4);
    assert_eq!(scene.ask("audit/gaps"), json!([]));
    // Four times 250 for one word in and 16,000 for those out.
    let budget = wait_for("the spend in the ledger", || {
        scene
            .budget("|nano_usd|day@UTC")
            .filter(|budget| budget["settled"] == "65000")
    });
    let holders = budget["holders"].as_array().unwrap();
    assert_eq!(holders.len(), 1, "{budget}");
}

fn cap(calls: u64) -> String {
    format!(
        "
apiVersion: tollgate/v1
kind: Policy
metadata:
  name: cap
spec:
  scope: global
  rate:
    per: agent
    requests_per_minute: {calls}
"
    )
}

/// Thirty at once against ten, and then one after the other until there are no more. A call of the burst that found no lease within its second is denied
/// though there may have been one later; it is the sum that must be right.
#[test]
fn a_burst_and_what_follows_get_what_the_cap_allows_and_no_more() {
    let body = chat_body("hello").to_string().into_bytes();
    let denied = (429, "rate.requests_per_minute");
    for reuse in [Reuse::NEVER, Reuse::SPIN] {
        let (burst, served, reached) = within_a_minute(|| {
            let scene = Scene::start("burst", &cap(10), reuse);
            assert_eq!(scene.chat("hello", &[]).status, 200);
            let answers = at_once(30, || {
                let request = scene.request("/v1/chat/completions", &[]);
                request.body(body.clone()).unwrap()
            });
            for answer in answers.iter().filter(|answer| answer.status != 200) {
                let (status, rule) = answer.verdict();
                assert!([429, 503].contains(&status), "{}", answer.body);
                assert_eq!(rule, denied.1);
            }
            let burst = answers.iter().filter(|answer| answer.status == 200).count();
            let mut served = 1 + burst;
            wait_for("the cap to be reached", || {
                let answer = scene.chat("hello", &[]);
                served += usize::from(answer.status == 200);
                (answer.verdict() == denied).then_some(())
            });
            (burst, served, scene.reached().len())
        });
        assert!(burst <= 9, "{burst}");
        assert_eq!((served, reached), (10, 10), "{reuse:?}");
    }
}

#[test]
fn without_its_control_plane_a_gate_spends_its_lease_and_no_more() {
    for reuse in [Reuse::NEVER, Reuse::SPIN] {
        let mut scene = Scene::start("orphan", POLICY, reuse);
        assert_eq!(scene.chat("hello", &[]).status, 200);
        scene.records(1);
        scene.control_plane.process.kill().unwrap();
        for _ in 0..3 {
            assert_eq!(scene.chat("hello", &[]).status, 200, "within the lease");
        }
        scene.restart_control_plane();
        assert_eq!(scene.chat("hello", &[]).status, 200);
        assert_eq!(scene.records(5).len(), 5);
        assert_eq!(scene.ask("audit/gaps"), json!([]));
    }
}

#[test]
fn a_slow_stream_arrives_as_it_is_sent_and_who_leaves_it_pays_once() {
    for reuse in [Reuse::NEVER, Reuse::SPIN] {
        let scene = Scene::start("slow", POLICY, reuse);
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

        let records = scene.records(1);
        let [record] = records.as_slice() else {
            panic!("{records:?}")
        };
        assert_eq!(
            (&record["estimated"], &record["end"]),
            (&json!(true), &json!("client_left")),
            "{record}"
        );
        let nano_usd = |field: &str| record[field].as_str().unwrap().parse::<u64>().unwrap();
        let (cost, reserved) = (nano_usd("cost_nano_usd"), nano_usd("reserved_nano_usd"));
        assert!(cost > 0 && cost <= reserved, "{record}");
        wait_for("the ledger to have heard of it", || {
            let budget = scene.budget("|nano_usd|day@UTC")?;
            (budget["settled"] == json!(cost.to_string()) && budget["reserved"] == "0")
                .then_some(())
        });
    }
}

#[test]
fn a_stream_that_breaks_off_breaks_off_for_the_caller_too() {
    let scene = Scene::start("broken", POLICY, Reuse::SPIN);
    let knobs = [("x-stand-in-cut-after", "3"), ("x-stand-in-delay-ms", "10")];
    let request = scene
        .request("/v1/chat/completions", &knobs)
        .body(stream_body().to_string().into_bytes())
        .unwrap();
    let mut response = client().run(request).unwrap();
    assert_eq!(response.status(), 200);
    assert!(response.body_mut().read_to_vec().is_err());
    let record = &scene.records(1)[0];
    assert_eq!(record["end"], "upstream_broken", "{record}");
}

#[test]
fn a_body_over_the_cap_is_refused_before_it_has_come() {
    let scene = Scene::start("body", POLICY, Reuse::SPIN);
    // 1 MiB is the cap. Declared, it is refused before anything of it is read…
    let long = chat_body(&"x".repeat(1 << 20)).to_string();
    let denied = scene.send("/v1/chat/completions", long.as_bytes(), &[]);
    assert_eq!(denied.verdict(), (413, "request.body_too_large"));
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
    assert_eq!(scene.chat("hello", &[]).status, 200);
}

/// Nothing but what the manifest allows is reached, whatever the settings say.
#[test]
fn a_host_that_the_manifest_does_not_allow_is_not_reached() {
    let scene = Scene::start_as("forbidden", POLICY, Reuse::SPIN, |app| {
        app.allowed_outbound_hosts.remove(0);
    });
    if !matches!(scene.gate, Gate::StandIn(_)) {
        eprintln!("skipped: on a real Spin it is spin.toml that says what is allowed");
        return;
    }
    let answer = scene.chat("hello", &[]);
    assert_eq!(answer.status, 502, "{}", answer.body);
    assert_eq!(scene.reached(), []);
    assert_eq!(scene.records(1)[0]["end"], "upstream_broken");
}

/// The other way to keep a ledger: every instance is a holder of its own.
#[test]
fn instances_with_ledgers_of_their_own_share_a_limit_too() {
    let scene = Scene::start_as("own", &cap(10), Reuse::NEVER, |app| {
        app.variables
            .insert("ledger".to_owned(), "instance".to_owned());
    });
    let body = chat_body("hello").to_string().into_bytes();
    let answers = at_once(30, || {
        let request = scene.request("/v1/chat/completions", &[]);
        request.body(body.clone()).unwrap()
    });
    let served = answers.iter().filter(|answer| answer.status == 200).count();
    // Never more. Fewer where a lease that one holder got was more than its one call.
    assert!((1..=10).contains(&served), "{served}");
    assert_eq!(scene.reached().len(), served);
    assert_eq!(scene.records(30).len(), 30);
}

/// An operator who has forgotten something finds it in the log; a caller is told nothing.
#[test]
fn a_gate_that_is_not_configured_says_so_in_its_log() {
    let scene = Scene::start_as("unconfigured", POLICY, Reuse::SPIN, |app| {
        app.variables.remove("upstream");
    });
    assert_eq!(scene.chat("hello", &[]).status, 503);
    if let Gate::StandIn(host) = &scene.gate {
        let log = host.log();
        assert!(log.contains("the variable `upstream` is not set"), "{log}");
    }
}
