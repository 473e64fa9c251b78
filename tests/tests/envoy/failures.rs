//! What happens when a process dies, or policy changes under load.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use tollgate_tests::corpus::wire;
use tollgate_tests::whole::{
    DEADLINE, Whole as _, answer, budget, chat_body, models, under_load, upstream, wait_for,
};
use tollgate_tests::{built, trap};
use xtask::envoy::Envoy;
use xtask::process;
use xtask::stack::{LOOPBACK, gate_secrets, gate_settings};

use crate::scene::{Http2, Scene, alone, next_chunk, runtime};

#[test]
fn without_its_control_plane_a_gate_spends_its_lease_and_no_more() {
    // A call's worst case is some 220,000 nano-USD: 100 × 2,000 for the answer, 250 for each byte of a body of about 100. The first lease is a 96th
    // of the limit, 1,041,666, nearly five of them; what calls really cost (16,250) is less, so it lasts for some fifty.
    let mut scene = Scene::start("orphan", &budget("0.1"));
    assert_eq!(scene.chat("hello", &[]).status, 200);
    scene.stack.control_plane.process.kill().unwrap();

    let mut served = 0;
    let denied = loop {
        let answer = scene.chat("hello", &[]);
        if answer.status != 200 {
            break answer;
        }
        served += 1;
        // 1,041,666 over 16,250 is 64.
        assert!(served < 64, "more than was leased was spent");
    };
    assert!(served >= 40, "the lease covered {served} calls only");
    assert_eq!(
        denied.verdict(),
        (503, "budget.daily_limit_usd"),
        "{}",
        denied.body
    );

    scene.stack.restart_control_plane().unwrap();
    wait_for("calls to be served again", || {
        (scene.chat("hello", &[]).status == 200).then_some(())
    });
    // Nothing of what happened meanwhile is missing: the calls above, and one denial at least.
    let records = scene.records(served + 2);
    assert!(records.iter().any(|record| record["status"] == 503));
    assert_eq!(scene.ask("audit/gaps"), serde_json::json!([]));
}

#[test]
fn an_envoy_that_was_killed_comes_back_as_another_and_overspends_nothing() {
    let mut scene = Scene::start_as("killed", &budget("0.005"), |plan| {
        plan.serve_options = ["--lease-term-secs", "5"].map(str::to_owned).to_vec();
    });
    for _ in 0..3 {
        assert_eq!(scene.chat("hello", &[]).status, 200);
    }
    let holder = |scene: &Scene| {
        let budget = scene.budget("|nano_usd|day@UTC")?;
        Some(budget["holders"][0]["holder"].as_str()?.to_owned())
    };
    let before = wait_for("the first holder", || holder(&scene));

    scene.stack.restart_gate().unwrap();
    // What it was leased and had not given back when it died.
    let held: u64 = {
        let budget = scene.budget("|nano_usd|day@UTC").unwrap();
        let holders = budget["holders"].as_array().unwrap();
        let first = holders.iter().find(|one| one["holder"] == before.as_str());
        let amount = |field: &str| {
            first.unwrap()[field]
                .as_str()
                .unwrap()
                .parse::<u64>()
                .unwrap()
        };
        amount("granted") - amount("returned")
    };
    let mut served = 0;
    let denied = loop {
        let answer = scene.chat("hello", &[]);
        if answer.status != 200 {
            break answer;
        }
        served += 1;
        assert!(served < 400, "no end");
    };
    assert_eq!(
        denied.verdict(),
        (429, "budget.daily_limit_usd"),
        "{}",
        denied.body
    );
    // What the first held is not given again.
    assert!(
        16_250 * served <= 5_000_000 - held,
        "{served} calls beside {held} that were leased"
    );

    // Two lease terms on, it is known to be lost, and what it held and is not known to have used is shown as forfeited.
    let settled = wait_for("the first to be given up", || {
        let budget = scene.budget("|nano_usd|day@UTC")?;
        let holders = budget["holders"].as_array()?;
        assert_eq!(holders.len(), 2, "{budget}");
        let lost = holders
            .iter()
            .find(|one| one["holder"] == before.as_str())?;
        let settled: u64 = lost["settled"].as_str()?.parse().ok()?;
        let forfeited = (held - settled).to_string();
        (lost["lost"] == true && budget["forfeited"] == forfeited).then_some(settled)
    });
    assert!(settled <= 3 * 16_250, "{settled}");
}

#[test]
fn a_filter_that_crashes_lets_nothing_pass_and_goes_on_where_it_was() {
    // The real filter, but for one callback: a request's trailers crash its VM.
    let scene = Scene::start_as("crash", &budget("0.005"), |plan| {
        let whole = fs::read(built::filter()).unwrap();
        let trapping = trap::trapping(&whole, "proxy_on_request_trailers").unwrap();
        plan.programs.filter = plan.folder.join("trapping.wasm");
        fs::create_dir_all(&plan.folder).unwrap();
        fs::write(&plan.programs.filter, trapping).unwrap();
    });
    let body = chat_body("hello").to_string();
    let cut = runtime().unwrap().block_on(async {
        let mut connection = Http2::open(&scene).await.unwrap();
        let mut stream = chat_body("hello");
        stream["stream"] = true.into();
        let slow = [
            ("x-stand-in-delay-ms", "100"),
            ("x-stand-in-completion-tokens", "100"),
        ];
        let mut under_way = connection
            .call(&stream.to_string(), &slow, false)
            .await
            .unwrap();
        assert_eq!(under_way.status(), 200);
        next_chunk(&mut under_way).await.unwrap().unwrap();

        let crashed = connection.call(&body, &[], true).await.unwrap();
        assert_eq!(crashed.status(), 503);
        assert!(crashed.headers().get("x-tollgate-decision").is_none());
        // What the same worker had under way is cut off, not passed on unmetered.
        loop {
            match next_chunk(&mut under_way).await {
                Some(Ok(_)) => {}
                Some(Err(why)) => break why.is_reset(),
                None => break false,
            }
        }
    });
    assert!(cut);
    assert_eq!(scene.reached().len(), 1, "the crashed call went out");

    wait_for("its VM to be there again", || {
        assert!(matches!(scene.chat("hello", &[]).status, 200 | 503));
        let reloads = "wasm.tollgate.vm_reload_success";
        (scene.stack.envoy.stat(reloads).ok()?? > 0).then_some(())
    });
    // All that is lost to the budget is what the call under way had set aside.
    let denied = loop {
        let answer = scene.chat("hello", &[]);
        if answer.status != 200 {
            break answer;
        }
    };
    assert_eq!(
        denied.verdict(),
        (429, "budget.daily_limit_usd"),
        "{}",
        denied.body
    );
    let served = u64::try_from(scene.reached().len() - 1).unwrap();
    let budget = wait_for("everything to be reported", || {
        let budget = scene.budget("|nano_usd|day@UTC")?;
        let settled: u64 = budget["settled"].as_str()?.parse().ok()?;
        (settled == served * 16_250).then_some(budget)
    });
    assert_eq!(budget["holders"].as_array().unwrap().len(), 1, "{budget}");
    let reserved: u64 = budget["reserved"].as_str().unwrap().parse().unwrap();
    let worst_case = 100 * 2_000 + 250 * u64::try_from(body.len()).unwrap();
    assert!(reserved >= worst_case, "{budget}");
    let used = served * 16_250 + reserved;
    assert!(
        used <= 5_000_000 && used + worst_case > 5_000_000,
        "{budget}"
    );

    // And it is on record that a worker was lost, with what it had under way.
    let lost = wait_for("the record of it", || {
        let records = scene.records(1);
        records
            .into_iter()
            .find(|record| record["kind"] == "worker_lost")
    });
    assert!(lost["heard_ms"].as_i64() < lost["at_ms"].as_i64(), "{lost}");
    assert_eq!(scene.ask("audit/gaps"), json!([]));
}

#[test]
fn a_policy_edit_is_live_within_two_seconds_and_no_call_is_lost() {
    let scene = Scene::start("edit", &models("['model:gpt-5*']"));
    let call = || {
        let answer = scene.chat("hello", &[]);
        (Instant::now(), answer.status)
    };
    let (calls, (applied, live, reached)) = under_load(call, || {
        wait_for("some calls", || (scene.reached().len() >= 20).then_some(()));
        let stack = &scene.stack;
        let applied = Instant::now();
        stack
            .control_plane
            .apply_policy(&stack.workspace, &models("['model:gpt-4*']"))
            .unwrap();
        wait_for("the edit", || {
            (scene.chat("hello", &[]).status == 403).then_some(())
        });
        let live = Instant::now();
        // Both workers, and no way back: whatever comes from now on is denied.
        let reached = scene.reached().len();
        for _ in 0..20 {
            assert_eq!(scene.chat("hello", &[]).status, 403);
        }
        (applied, live, reached)
    });
    for (at, status) in calls {
        assert!(matches!(status, 200 | 403), "{status}");
        assert!(
            status == 403 || at <= live + Duration::from_millis(500),
            "late"
        );
    }
    // Those on their way when the edit came.
    assert!(scene.reached().len() <= reached + 4);
    let took = live - applied;
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[test]
fn a_hundred_edits_under_load_lose_no_call() {
    const EDITS: usize = 100;
    let edited = |edit: usize| models(&format!("['model:gpt-5*', 'model:edit-{edit}']"));
    let scene = Scene::start("edits", &edited(0));
    let revision = || {
        let metrics = scene.stack.envoy.prometheus().ok()?;
        let line = metrics
            .lines()
            .find(|line| line.starts_with("tollgate_bundle_revision{"))?;
        line.rsplit(' ').next()?.parse::<usize>().ok()
    };
    let first = wait_for("a bundle", revision);
    let call = || {
        let answer = scene.chat("hello", &[]);
        (answer.status, answer.body)
    };
    let (calls, ()) = under_load(call, || {
        for edit in 1..=EDITS {
            let stack = &scene.stack;
            stack
                .control_plane
                .apply_policy(&stack.workspace, &edited(edit))
                .unwrap();
            // One after the other, so that the gate runs each.
            wait_for("the edit", || (revision()? >= first + edit).then_some(()));
        }
    });
    assert!(calls.len() >= EDITS, "{} calls are no load", calls.len());
    for (status, body) in calls {
        assert_eq!(status, 200, "{body}");
    }
    assert_eq!(revision(), Some(first + EDITS));
}

#[test]
fn a_control_plane_that_does_not_answer_holds_calls_for_a_second() {
    let scene = Scene::start("stuck", &budget("1"));
    let signal = |name: &str| {
        let id = scene.stack.control_plane.process.id().to_string();
        process::run(Command::new("kill").args(["-s", name, &id])).unwrap();
    };
    signal("STOP");
    // Nobody has a lease yet, so the first call has to wait for one, and waits in vain.
    let begun = Instant::now();
    let denied = scene.chat("hello", &[]);
    let waited = begun.elapsed();
    assert_eq!(
        denied.verdict(),
        (503, "budget.daily_limit_usd"),
        "{}",
        denied.body
    );
    assert_eq!(denied.header("retry-after"), "1");
    assert!(
        waited >= Duration::from_secs(1) && waited < Duration::from_secs(3),
        "{waited:?}"
    );

    // A client that does not wait that long.
    let body = chat_body("hello").to_string();
    let mut impatient = TcpStream::connect(scene.stack.envoy.listen).unwrap();
    write!(
        impatient,
        "POST /v1/chat/completions HTTP/1.1\r\nhost: gate\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        scene.token,
        body.len()
    )
    .unwrap();
    let paused = "http.gate.downstream_rq_active";
    wait_for("the call to have come", || {
        (scene.stack.envoy.stat(paused).ok()? == Some(1)).then_some(())
    });
    drop(impatient);

    signal("CONT");
    wait_for("calls to be served", || {
        (scene.chat("hello", &[]).status == 200).then_some(())
    });
    let records = scene.records(3);
    let ends: Vec<_> = records.iter().map(|record| &record["end"]).collect();
    assert_eq!(ends[..2], [&json!("answered_here"), &json!("client_left")]);
    // Undecided is not allowed.
    assert_eq!(
        (&records[1]["outcome"], &records[1]["reasons"][0]["rule"]),
        (&json!("deny"), &json!("request.abandoned"))
    );
    assert!(scene.reached().len() < records.len() - 1);
    wait_for("nothing to be held back", || {
        (scene.budget("|nano_usd|day@UTC")?["reserved"] == "0").then_some(())
    });
}

/// What may stand where the control plane should be: a portal's page, a proxy's, a broken server, somebody else's bytes.
const GARBAGE: [&[u8]; 9] = [
    b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 20\r\n\r\n<html>sign in</html>",
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\ncontent-length: 86\r\n\r\n{\"payload\":\"e30\",\"payloadType\":\"application/vnd.tollgate.bundle+json\",\"signatures\":[]}",
    b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n\xff\xfe\x00\x80",
    b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\ncut off",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nlocation: http://portal.invalid/\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 409 Conflict\r\ncontent-type: text/html\r\ncontent-length: 11\r\n\r\n<p>busy</p>",
    b"not HTTP at all\r\n\r\n",
];

#[test]
fn a_control_plane_that_talks_nonsense_changes_nothing() {
    let scene = Scene::start("nonsense", &budget("0.005"));
    // A second gate, which reaches the control plane through something that can put itself in its place.
    let mangles = Arc::new(AtomicBool::new(false));
    let mangled = Arc::new(AtomicUsize::new(0));
    let relay = {
        let (mangles, mangled) = (Arc::clone(&mangles), Arc::clone(&mangled));
        let control_plane = scene.stack.control_plane.address;
        wire::Server::start(move |request, stream| {
            let answer = (!mangles.load(Ordering::SeqCst))
                .then(|| relayed(control_plane, &request))
                .flatten()
                // Also what was held open until now.
                .filter(|_| !mangles.load(Ordering::SeqCst))
                .unwrap_or_else(|| {
                    let turn = mangled.fetch_add(1, Ordering::SeqCst);
                    GARBAGE[turn % GARBAGE.len()].to_vec()
                });
            // The gate may have left.
            let _ = stream.write_all(&answer);
        })
        .unwrap()
    };
    let upstream = upstream(scene.provider());
    let (mut settings, mut run) = alone(&scene, gate_settings(&scene.stack.workspace, &upstream));
    settings.control_plane = relay.address.into();
    run.environment = gate_secrets(&scene.stack.workspace, &upstream);
    let mut envoy = Envoy::start(&run, &settings.render().unwrap()).unwrap();
    envoy.wait_for_bundle(DEADLINE).unwrap();
    let chat = || {
        let path = "/v1/chat/completions";
        let body = chat_body("hello").to_string().into_bytes();
        let mut request = scene.request(path, &[]).body(body).unwrap();
        *request.uri_mut() = envoy.url(path).parse().unwrap();
        answer(request)
    };
    assert_eq!(chat().status, 200);
    let revision = envoy.prometheus().unwrap();
    let revision = revision
        .lines()
        .find(|line| line.starts_with("tollgate_bundle_revision"))
        .unwrap()
        .to_owned();

    // It goes on with what it has, as if nobody answered.
    mangles.store(true, Ordering::SeqCst);
    let mut served = 1;
    let denied = loop {
        let answer = chat();
        if answer.status != 200 {
            break answer;
        }
        served += 1;
        // 0.005 USD over 16,250 nano-USD each is 307.
        assert!(served <= 307, "more than the whole limit was spent");
    };
    assert_eq!(
        denied.verdict(),
        (503, "budget.daily_limit_usd"),
        "{}",
        denied.body
    );
    wait_for("all of the nonsense to have been said twice", || {
        (mangled.load(Ordering::SeqCst) >= 2 * GARBAGE.len()).then_some(())
    });
    let metrics = envoy.prometheus().unwrap();
    assert!(metrics.contains(&revision), "{revision}");
    for errand in ["bundle", "leases", "journal"] {
        let counted = format!("tollgate_control_plane_errors{{errand=\"{errand}\"}}");
        assert!(metrics.contains(&counted), "{counted}");
    }
    let crashes = envoy.stat("wasm.tollgate.vm_reload").unwrap();
    assert!(matches!(crashes, None | Some(0)), "{crashes:?}");

    // And when it is itself again, as if nothing had been.
    mangles.store(false, Ordering::SeqCst);
    wait_for("a call to be served", || {
        (chat().status == 200).then_some(())
    });
    let records = scene.records(served + 2);
    assert!(records.iter().any(|record| record["status"] == 503));
    assert_eq!(scene.ask("audit/gaps"), json!([]));
    let budget = scene.budget("|nano_usd|day@UTC").unwrap();
    assert_eq!(budget["holders"].as_array().unwrap().len(), 1, "{budget}");
}

/// The control plane's answer to a request that came by way of us.
fn relayed(control_plane: SocketAddr, request: &wire::Message) -> Option<Vec<u8>> {
    // What is held open is held for a second only.
    let line = request.start.replace("wait=25", "wait=1");
    let headers: Vec<_> = request
        .headers
        .iter()
        .map(|(name, value)| (name.clone(), value.clone().into_bytes()))
        .collect();
    let answer = wire::send(control_plane, &line, &headers, &request.body, usize::MAX).ok()?;
    let etag = answer.header("etag").unwrap_or_default();
    let status = answer.word(1).parse().ok()?;
    Some(wire::response(status, &[("etag", &etag)], &answer.body))
}

#[test]
fn a_call_is_charged_when_its_upstream_broke_and_free_when_it_was_never_there() {
    // Takes the request and hangs up: whether it did the work, nobody knows.
    let listener = TcpListener::bind(LOOPBACK).unwrap();
    let address = listener.local_addr().unwrap();
    let upstream = thread::spawn(move || {
        let (mut call, _) = listener.accept().unwrap();
        let mut some = [0; 16];
        assert!(call.read(&mut some).unwrap() > 0);
        // From now on nobody listens.
        drop(listener);
    });
    let scene = Scene::start_as("hung-up", &budget("1"), |plan| {
        plan.upstream.origin = address.into()
    });
    let broken = scene.chat("hello", &[]);
    upstream.join().unwrap();
    assert_eq!(broken.status, 503, "{}", broken.body);
    let absent = scene.chat("hello", &[]);
    assert_eq!(absent.status, 503, "{}", absent.body);

    let records = scene.records(2);
    let summary = |index: usize| {
        let record = &records[index];
        (
            record["cost_nano_usd"].clone(),
            record["estimated"].clone(),
            record["end"].clone(),
        )
    };
    // The most it may have cost: what was set aside.
    assert_eq!(
        summary(0),
        (
            records[0]["reserved_nano_usd"].clone(),
            json!(true),
            json!("upstream_broken")
        )
    );
    assert_eq!(
        summary(1),
        (json!("0"), json!(false), json!("upstream_broken"))
    );
}

#[test]
fn a_control_plane_put_back_to_yesterday_is_followed_into_a_new_epoch() {
    let mut scene = Scene::start("restored", &budget("1"));
    assert_eq!(scene.chat("hello", &[]).status, 200);
    scene.records(1);
    scene.stack.control_plane.process.kill().unwrap();
    let (data, backup) = (scene.file("data"), scene.file("backup"));
    copy(&data, &backup);
    scene.stack.restart_control_plane().unwrap();
    wait_for("a call to be served", || {
        (scene.chat("hello", &[]).status == 200).then_some(())
    });
    scene.records(2);

    scene.stack.control_plane.process.kill().unwrap();
    fs::remove_dir_all(&data).unwrap();
    copy(&backup, &data);
    scene.stack.restart_control_plane().unwrap();
    // The gate goes on; what it tells now reaches the control plane, whatever that one has forgotten.
    let mut decision = String::new();
    wait_for("a call to be served", || {
        let answer = scene.chat("hello", &[]);
        decision = answer.header("x-tollgate-decision").to_owned();
        (answer.status == 200).then_some(())
    });
    wait_for("the record of it", || {
        let records = scene.records(1);
        records
            .iter()
            .any(|record| record["id"] == decision.as_str())
            .then_some(())
    });
}

/// Copies a folder of files.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}
