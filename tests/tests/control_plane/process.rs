//! The real program: what it promises about crashes, shutdown and its command line.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::Value;
use tollgate_engine::bytes::from_base64url;
use tollgate_engine::envelope::PublicKey;
use tollgate_engine::identity::Claims;
use tollgate_engine::journal::{self, Position, SealKey};
use tollgate_engine::time::Time;
use tollgate_tests::{
    Scratch, built,
    corpus::wire::{self, Server},
    http,
};
use xtask::control_plane::{ControlPlane, Workspace};

fn start(scratch: &Scratch) -> ControlPlane {
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let log = scratch.path().join("control-plane.log");
    let mut serve = Command::new(built::tollgate());
    serve.arg("serve");
    ControlPlane::start(serve, &scratch.path().join("data"), listen, &log).unwrap()
}

/// The `tollgate` command as an operator of `workspace`.
fn tollgate(plane: &ControlPlane, workspace: &Workspace, arguments: &[&str]) -> Output {
    Command::new(built::tollgate())
        .args(arguments)
        .env("TOLLGATE_URL", plane.url(""))
        .env("TOLLGATE_KEY", &workspace.operator_key)
        .env("TOLLGATE_WORKSPACE", &workspace.id)
        .output()
        .unwrap()
}

/// Standard output of a command that must succeed.
fn printed(plane: &ControlPlane, workspace: &Workspace, arguments: &[&str]) -> String {
    let output = tollgate(plane, workspace, arguments);
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

struct Journal {
    key: SealKey,
    position: Position,
}

const HOLDER: &str = "h-00000000000000000000000000000001";

impl Journal {
    fn new(workspace: &Workspace) -> Journal {
        Journal {
            key: SealKey::derive(&SealKey::root(&workspace.enrolment_key), HOLDER),
            position: Position::start(&workspace.id, HOLDER, 1),
        }
    }

    fn seal(&mut self, workspace: &Workspace, record: &str) -> Vec<u8> {
        let records = [record.as_bytes().to_vec()];
        let position = &mut self.position;
        journal::seal(
            &self.key,
            &workspace.id,
            HOLDER,
            1,
            position,
            &records,
            0,
            Time::from_secs(0),
        )
    }
}

/// The status of the answer, if there was one.
fn submit(address: SocketAddr, workspace: &Workspace, batch: &[u8]) -> Option<u16> {
    let authorization = format!("Bearer {}", workspace.enrolment_key);
    let url = format!("http://{address}/v1/workspaces/{}/gate/audit", workspace.id);
    let headers = [
        ("authorization", authorization.as_str()),
        ("content-type", "application/x-ndjson"),
    ];
    let batch = std::str::from_utf8(batch).unwrap();
    let reply = http::send("POST", &url, &headers, batch).ok()?;
    Some(reply.status)
}

/// Sends batch after batch until nobody answers; says after each that it was acknowledged. The unanswered one is taken back: the same
/// bytes are to go again.
fn send_until_cut_off(
    address: SocketAddr,
    workspace: &Workspace,
    journal: &mut Journal,
    acknowledged: &mpsc::Sender<()>,
) -> u64 {
    let mut count = 0;
    loop {
        let before = journal.position.clone();
        let batch = journal.seal(workspace, "{}");
        match submit(address, workspace, &batch) {
            Some(status) => {
                assert_eq!(status, 200);
                count += 1;
                // The other side stops listening when it has heard enough.
                let _ = acknowledged.send(());
            }
            None => {
                journal.position = before;
                return count;
            }
        }
    }
}

#[test]
fn what_was_acknowledged_survives_a_kill() {
    let scratch = Scratch::new("kill");
    let mut plane = start(&scratch);
    let workspace = plane.create_workspace("demo").unwrap();
    let mut journal = Journal::new(&workspace);
    let mut acknowledged = 0;
    for _ in 0..3 {
        let address = plane.address;
        let (sender, heard) = mpsc::channel();
        acknowledged += std::thread::scope(|scope| {
            let sending =
                scope.spawn(|| send_until_cut_off(address, &workspace, &mut journal, &sender));
            // Killed while one batch follows the other, but not before some have been acknowledged.
            for _ in 0..5 {
                heard.recv_timeout(Duration::from_secs(30)).unwrap();
            }
            plane.process.kill().unwrap();
            sending.join().unwrap()
        });
        drop(plane);
        plane = start(&scratch);
        let path = format!("/v1/workspaces/{}/audit?limit=1000", workspace.id);
        let listed = plane
            .call(&workspace.operator_key, "GET", &path, "")
            .unwrap();
        let stored = u64::try_from(listed["records"].as_array().unwrap().len()).unwrap();
        // The one that was under way may have been stored without our hearing of it.
        assert!(
            stored == acknowledged || stored == acknowledged + 1,
            "{stored} stored, {acknowledged} acknowledged"
        );
        let again = journal.seal(&workspace, "{}");
        assert_eq!(submit(plane.address, &workspace, &again), Some(200));
        acknowledged += 1;
    }
    let export = scratch.path().join("export");
    printed(
        &plane,
        &workspace,
        &["audit", "export", "-o", export.to_str().unwrap()],
    );
    let trust: Vec<PublicKey> = serde_json::from_value(workspace.trust.clone()).unwrap();
    let export = std::fs::read(&export).unwrap();
    let whole = tollgate_control_plane::audit::verify(&export, trust.first()).unwrap();
    assert_eq!(whole.records, acknowledged);
}

#[test]
fn it_stops_at_once_when_asked_even_while_gates_wait() {
    let scratch = Scratch::new("stop");
    let mut plane = start(&scratch);
    let workspace = plane.create_workspace("demo").unwrap();
    let url = plane.url(&format!(
        "/v1/workspaces/{}/gate/bundle?wait=55",
        workspace.id
    ));
    let authorization = format!("Bearer {}", workspace.enrolment_key);
    let waiting = std::thread::spawn(move || {
        http::send(
            "GET",
            &url,
            &[("authorization", &authorization), ("if-none-match", "*")],
            "",
        )
    });
    // The poll is there when its key has been noted as used.
    let gates = format!("/v1/workspaces/{}/gates", workspace.id);
    let (address, key) = (plane.address, workspace.operator_key.clone());
    plane
        .process
        .wait_until("the poll to arrive", Duration::from_secs(30), || {
            let authorization = format!("Bearer {key}");
            let reply = http::send(
                "GET",
                &format!("http://{address}{gates}"),
                &[("authorization", &authorization)],
                "",
            )
            .ok()?;
            let gates: Value = serde_json::from_str(&reply.body).ok()?;
            gates[0]["last_used_ms"].is_i64().then_some(())
        })
        .unwrap();
    // Well below the five seconds after which it would be killed: the status is its own.
    let status = plane.process.stop().unwrap();
    assert!(status.success(), "{status}");
    let answer = waiting.join().unwrap();
    // A poll that came in just then is answered or its connection closed, never left hanging.
    assert!(answer.is_err() || answer.is_ok_and(|reply| reply.status == 304));
}

#[test]
fn an_operator_gets_along_with_the_command_alone() {
    let scratch = Scratch::new("cli");
    let plane = start(&scratch);
    let workspace = plane.create_workspace("demo").unwrap();
    let run = |arguments: &[&str]| printed(&plane, &workspace, arguments);
    let file = |name: &str, text: &str| {
        let path = scratch.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };

    let policy = file(
        "house.yaml",
        "scope: global\nbudget:\n  daily_limit_usd: 10\n",
    );
    assert_eq!(
        run(&["policy", "apply", &policy]),
        "house version 1\nlive in revision 2\n"
    );
    assert_eq!(
        run(&["policy", "apply", &policy]),
        "house version 1 (unchanged)\nlive in revision 2\n"
    );
    let bad = file(
        "bad.yaml",
        "scope: global\nbudget:\n  daily_limit_usd: ten\n",
    );
    let fine = file("fine.yaml", "scope: team:blue\n");
    let refused = tollgate(&plane, &workspace, &["policy", "apply", &fine, &bad]);
    assert_eq!(refused.status.code(), Some(1));
    let why = String::from_utf8(refused.stderr).unwrap();
    assert!(why.contains("bad.yaml:3:20: error["), "{why}");
    assert!(!run(&["policy", "list"]).contains("fine"));
    assert_eq!(
        run(&["policy", "show", "house"]),
        "scope: global\nbudget:\n  daily_limit_usd: 10\n"
    );

    let agent = run(&["agent", "create", "bot", "--team", "blue", "--level", "L2"]);
    let agent = agent.trim();
    let token = run(&["agent", "token", "bot"]);
    assert_eq!(token.matches('.').count(), 2);
    // One that the bot sends. The bot's token is read from a file: what a command line says everybody on the machine may read.
    let helper = run(&["agent", "create", "helper"]);
    let sender = file("bot.token", &token);
    let sent = run(&["agent", "token", "helper", "--acts-for", &sender]);
    let claims = from_base64url(sent.split('.').nth(1).unwrap()).unwrap();
    let claims: Claims = serde_json::from_slice(&claims).unwrap();
    assert_eq!(claims.sub, agent);
    assert_eq!(claims.act.unwrap().sub, helper.trim());
    let none = file("none.token", "not-a-token");
    let refused = tollgate(
        &plane,
        &workspace,
        &["agent", "token", "helper", "--acts-for", &none],
    );
    let why = String::from_utf8(refused.stderr).unwrap();
    assert!(
        why.contains("the credential is not an agent token"),
        "{why}"
    );
    let record = format!(
        r#"{{"id":"r1","at_ms":0,"agent":"{agent}","model":"evil\u001b[2J","outcome":"deny","reasons":[{{"rule":"tools.deny"}}],"cost_nano_usd":"2500000"}}"#
    );
    let batch = Journal::new(&workspace).seal(&workspace, &record);
    assert_eq!(submit(plane.address, &workspace, &batch), Some(200));
    let listed = run(&["audit", "list"]);
    assert!(
        listed.contains("bot") && listed.contains("tools.deny") && listed.contains("$0.0025"),
        "{listed}"
    );
    assert!(
        !listed.contains('\u{1b}'),
        "a record reached the terminal as it was"
    );
    let json: Value = serde_json::from_str(&run(&["audit", "list", "--json"])).unwrap();
    assert_eq!(json[0]["record"]["id"], "r1");
    let shown: Value = serde_json::from_str(&run(&["audit", "show", "r1"])).unwrap();
    assert_eq!(shown, json[0]["record"]);
    let unknown = tollgate(&plane, &workspace, &["audit", "show", "r2"]);
    assert_eq!(unknown.status.code(), Some(1));
    // 1970, as the record says, is within no default time.
    let used = run(&[
        "usage",
        "--by",
        "agent",
        "--from",
        "1970-01-01T00:00:00Z",
        "--to",
        "1970-01-02T00:00:00Z",
    ]);
    assert!(used.contains("bot") && used.contains("$0.0025"), "{used}");
    assert!(run(&["status"]).contains("revision 2"));
    run(&["agent", "revoke", "bot"]);
    assert!(run(&["status"]).contains("revision 3"));

    let export = file("export", "");
    run(&["audit", "export", "-o", &export]);
    let key = workspace.trust[0]["public_key"].as_str().unwrap();
    let verify = |path: &str, pin: &[&str]| {
        let output = Command::new(built::tollgate())
            .args(["audit", "verify", path])
            .args(pin)
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
        )
    };
    let (code, line) = verify(&export, &["--public-key", key]);
    assert_eq!((code, line.lines().count()), (Some(0), 1));
    assert!(
        line.starts_with("whole: 1 records in 1 batches") && !line.contains("pinned"),
        "{line}"
    );
    let key_file = file("key", key);
    assert_eq!(verify(&export, &["--public-key", &key_file]), (code, line));
    assert!(verify(&export, &[]).1.contains("not pinned"));
    let text = std::fs::read_to_string(&export).unwrap();
    let tampered = file("tampered", &text.replace("\"deny\"", "\"edit\""));
    let (code, line) = verify(&tampered, &["--public-key", key]);
    assert_eq!(code, Some(1));
    assert!(line.starts_with("not whole: line 2: "), "{line}");
    assert_eq!(verify("/nonexistent", &[]).0, Some(2));
}

/// With channels from a file that are told, and nothing but the command.
#[test]
fn an_operator_approves_calls_with_the_command_alone() {
    const CALL: &str = "apr-0123456789abcdef0123456789abcdef";
    let (told, tells) = mpsc::channel();
    let channel = Server::start(move |request, stream| {
        let _ = stream.write_all(&wire::response(200, &[], b""));
        let _ = told.send(request);
    })
    .unwrap();
    let scratch = Scratch::new("approvals");
    let channels = scratch.path().join("channels.json");
    let json = serde_json::json!({"ops": {"workspaces": ["*"], "url": format!("http://{}/", channel.address)}});
    std::fs::write(&channels, json.to_string()).unwrap();
    let mut serve = Command::new(built::tollgate());
    serve.arg("serve").arg("--channels").arg(&channels);
    let log = scratch.path().join("control-plane.log");
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let data = scratch.path().join("data");
    let plane = ControlPlane::start(serve, &data, listen, &log).unwrap();
    let workspace = plane.create_workspace("acme").unwrap();
    let agent = plane.create_agent(&workspace, "robot", "robots").unwrap();
    let policy = "{apiVersion: tollgate/v1, kind: Policy, metadata: {name: p}, spec: {tools: {refund: {requires_approval_if: 'true'}}, \
                  approval: {timeout_seconds: 3000, escalation_role: org-admin, notify_channels: [ops]}}}";
    plane.apply_policy(&workspace, policy).unwrap();
    let command = |arguments: &[&str]| printed(&plane, &workspace, arguments);
    assert_eq!(
        command(&["approval", "list"]),
        "no call waits for approval\n"
    );

    // The clock is the machine's: a record of a while ago.
    let record = serde_json::json!({
        "id": "d-1", "at_ms": 1_000, "kind": "exchange", "agent": agent, "outcome": "hold", "approval": CALL,
        "method": "POST", "host": "shop.example", "path": "/mcp", "mcp_method": "tools/call", "tools": ["refund"],
        "reasons": [{"rule": "tools.refund.requires_approval_if", "document": "p"}],
        "content": {"request": "{\"usd\":5", "request_bytes": 9_000, "answer": null, "answer_bytes": null},
    });
    let batch = Journal::new(&workspace).seal(&workspace, &record.to_string());
    assert_eq!(submit(plane.address, &workspace, &batch), Some(200));
    let message = tells.recv_timeout(Duration::from_secs(20)).unwrap();
    let message: Value = serde_json::from_slice(&message.body).unwrap();
    let text = message["text"].as_str().unwrap();
    assert!(
        text.starts_with("robot (robots) wants to use refund at shop.example."),
        "{text}"
    );

    let listed = command(&["approval", "list"]);
    assert!(
        listed.contains(CALL) && listed.contains("pending") && listed.contains("robot"),
        "{listed}"
    );
    let shown = command(&["approval", "show", CALL]);
    for line in [
        "host     shop.example\n",
        "rules    tools.refund.requires_approval_if\n",
        "content  {\"usd\":5 … (8 of 9000 bytes: the rest is not on record)\n",
        "roles    org-admin\n",
        "notifies ops\n",
    ] {
        assert!(shown.contains(line), "{line}{shown}");
    }
    let grant = [
        "approval", "grant", CALL, "--reason", "seen it", "--for", "60",
    ];
    let refused = tollgate(&plane, &workspace, &grant);
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        why.contains("approved by `org-admin`") && refused.status.code() == Some(2),
        "{why}"
    );
    let made = Command::new(built::tollgate())
        .args(["operator", "create", "ada", "--role", "org-admin", "--json"])
        .env("TOLLGATE_URL", plane.url(""))
        .env("TOLLGATE_KEY_FILE", data.join("root.key"))
        .env("TOLLGATE_WORKSPACE", &workspace.id)
        .output()
        .unwrap();
    let made: Value = serde_json::from_slice(&made.stdout).unwrap();
    let ada = Workspace {
        operator_key: made["key"].as_str().unwrap().to_owned(),
        ..workspace.clone()
    };
    let granted = printed(&plane, &ada, &grant);
    assert!(
        granted.starts_with("granted until ")
            && granted.ends_with(": the call passes once when it is sent again\n"),
        "{granted}"
    );
    let listed = command(&["approval", "list", "--state", "granted"]);
    assert!(listed.contains(CALL) && listed.contains("ada"), "{listed}");
    let events = command(&["audit", "events"]);
    assert!(
        events.contains("approval_requested") && events.contains("seen it"),
        "{events}"
    );
    assert_eq!(
        command(&["approval", "deny", CALL, "--reason", "no"]),
        "denied\n"
    );
}

#[test]
fn an_operator_stops_runs_and_hears_what_still_stops_whom_it_lets_go() {
    let scratch = Scratch::new("stops");
    let plane = start(&scratch);
    let workspace = plane.create_workspace("demo").unwrap();
    let run = |arguments: &[&str]| printed(&plane, &workspace, arguments);
    let bot = plane.create_agent(&workspace, "bot", "blue").unwrap();
    let other = plane.create_agent(&workspace, "other", "green").unwrap();
    let order = |order: &[&str]| run(&[order, &["--reason", "INC-4711"]].concat());

    let paused = order(&["pause", "run", "bot", "night:7"]);
    assert!(
        paused.starts_with(&format!(
            "paused run night:7 of agent bot ({bot}); bundle revision "
        )),
        "{paused}"
    );
    order(&["kill", "run", &bot, "night:8"]);
    order(&["kill", "agent", "bot"]);
    order(&["pause", "agent", "other"]);
    let status = run(&["status"]);
    for line in [
        format!("paused         run night:7 of agent bot ({bot}), by "),
        format!("killed         run night:8 of agent bot ({bot}), by "),
    ] {
        assert!(status.contains(&line), "{status}");
    }

    let lines = |order: &[&str]| {
        let printed = run(&[order, &["--reason", "over"]].concat());
        let begin = |line: &str| line.split([',', ';']).next().unwrap_or(line).to_owned();
        printed.lines().map(begin).collect::<Vec<_>>()
    };
    // Of a team that was not stopped itself: what is stopped in it, and nothing of others.
    let mut still = lines(&["resume", "team", "blue"]);
    still[1..].sort();
    assert_eq!(
        still,
        [
            "nothing was stopped as team blue".to_owned(),
            format!("still killed agent bot ({bot})"),
            format!("still killed run night:8 of agent bot ({bot})"),
            format!("still paused run night:7 of agent bot ({bot})"),
        ]
    );
    // A run: what stops its agent, not other runs of it.
    assert_eq!(
        lines(&["resume", "run", "bot", "night:7"]),
        [
            format!("running run night:7 of agent bot ({bot})"),
            format!("still killed agent bot ({bot})")
        ]
    );
    assert_eq!(
        lines(&["resume", "agent", "bot"]),
        [
            format!("running agent bot ({bot})"),
            format!("still killed run night:8 of agent bot ({bot})")
        ]
    );
    assert_eq!(
        lines(&["resume", "agent", "other"]),
        [format!("running agent other ({other})")]
    );
    let refused = tollgate(
        &plane,
        &workspace,
        &["kill", "run", "bot", "two words", "--reason", "INC-4711"],
    );
    let why = String::from_utf8(refused.stderr).unwrap();
    assert!(
        refused.status.code() != Some(0) && why.contains("a run is 1 to 128 letters"),
        "{why}"
    );
}

#[test]
fn it_does_not_listen_in_the_clear_unless_told_to() {
    let scratch = Scratch::new("listen");
    let serve = |data: &Path| {
        Command::new(built::tollgate())
            .arg("serve")
            .arg("--data")
            .arg(data)
            .args(["--listen", "0.0.0.0:0"])
            .output()
            .unwrap()
    };
    let output = serve(&scratch.path().join("data"));
    assert_eq!(output.status.code(), Some(2));
    let why = String::from_utf8(output.stderr).unwrap();
    assert!(why.contains("not a loopback address"), "{why}");
    assert!(!scratch.path().join("data").exists());
}

#[test]
fn two_cannot_share_a_data_directory() {
    let scratch = Scratch::new("two");
    let _plane = start(&scratch);
    let output = Command::new(built::tollgate())
        .arg("serve")
        .arg("--data")
        .arg(scratch.path().join("data"))
        .args(["--listen", "127.0.0.1:0"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let why = String::from_utf8(output.stderr).unwrap();
    assert!(why.contains("another control plane is running"), "{why}");
}

#[test]
fn logs_are_json_with_request_and_workspace_and_without_keys() {
    let scratch = Scratch::new("logs");
    let plane = start(&scratch);
    let workspace = plane.create_workspace("demo").unwrap();
    let agent = plane.create_agent(&workspace, "bot", "blue").unwrap();
    let token = plane.issue_token(&workspace, &agent).unwrap();
    let log = scratch.path().join("control-plane.log");
    let status = plane.process.stop().unwrap();
    assert!(status.success(), "{status}");
    let log = std::fs::read_to_string(log).unwrap();
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    let issued = lines
        .iter()
        .find(|line| line["message"] == "agent token issued")
        .unwrap();
    assert_eq!(issued["span"]["workspace"], workspace.id.as_str());
    assert_eq!(issued["span"]["request_id"].as_str().unwrap().len(), 36);
    let secret = |key: &str| key.split_once('.').unwrap().1.to_owned();
    for secret in [
        secret(&plane.root_key),
        secret(&workspace.operator_key),
        secret(&workspace.enrolment_key),
        secret(&token),
    ] {
        assert!(!log.contains(&secret));
    }
}
