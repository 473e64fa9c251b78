//! Batches in, records and exports out.

use serde_json::{Value, json};
use tollgate_control_plane::audit::verify;
use tollgate_engine::journal::SealKey;

use crate::harness::{Gate, Journal, Plane, START, Workspace, holder, text};

async fn accepted(gate: &Gate<'_>, batch: &[u8], next_seq: u64) {
    let reply = gate.submit(batch).await;
    assert_eq!(reply.status, 200, "{}", reply.json());
    assert_eq!(reply.json()["next_seq"], next_seq);
}

async fn refused(gate: &Gate<'_>, batch: &[u8], status: u16, problem: &str) {
    let reply = gate.submit(batch).await;
    assert_eq!(
        (reply.status.as_u16(), reply.problem().as_str()),
        (status, problem)
    );
}

async fn ids(workspace: &Workspace<'_>, query: &str) -> Vec<String> {
    let page = workspace.get(&format!("/audit{query}")).await;
    let records = page["records"].as_array().unwrap();
    records
        .iter()
        .map(|row| row["record"]["id"].as_str().unwrap().to_owned())
        .collect()
}

async fn export(workspace: &Workspace<'_>) -> Vec<u8> {
    let path = workspace.path("/audit/export");
    let reply = workspace.plane.get(&workspace.operator, &path).await;
    assert_eq!(reply.status, 200);
    reply.body
}

#[tokio::test]
async fn a_batch_is_stored_once_however_often_it_comes() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let gate = workspace.gate().await;
    let mut journal = gate.journal(&holder(1), 1);
    let first = journal.seal(&["a", "b"]);
    accepted(&gate, &first, 3).await;
    accepted(&gate, &first, 3).await;
    let second = journal.seal(&["c"]);
    accepted(&gate, &second, 4).await;
    // An old one again is answered as it was, not as the journal stands now.
    accepted(&gate, &first, 3).await;
    assert_eq!(ids(&workspace, "").await, ["a", "b", "c"]);
    assert_eq!(workspace.get("/audit/gaps").await, json!([]));
    let usage = workspace.get("/usage").await;
    assert_eq!(usage["rows"][0]["calls"], 3);
}

#[tokio::test]
async fn a_fork_is_refused_and_put_on_record() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let gate = workspace.gate().await;
    let mut journal = gate.journal(&holder(1), 1);
    let mut other: Journal = journal.clone();
    accepted(&gate, &journal.seal(&["a"]), 2).await;
    // Other content for the same number, and then a batch that follows that other content.
    let forged = other.seal(&["x"]);
    refused(&gate, &forged, 409, "fork").await;
    refused(&gate, &forged, 409, "fork").await;
    refused(&gate, &other.seal(&["y"]), 409, "fork").await;
    // What is stored is one chain; that there was another is told.
    let fault = verify(&export(&workspace).await, None).unwrap_err();
    assert!(fault.what.contains("a fork at record 1"), "{fault}");
    assert_eq!(ids(&workspace, "").await, ["a"]);
    let gaps = workspace.get("/audit/gaps").await;
    let kinds: Vec<(&Value, &Value)> = gaps
        .as_array()
        .unwrap()
        .iter()
        .map(|gap| (&gap["kind"], &gap["from_seq"]))
        .collect();
    assert_eq!(
        kinds,
        [(&json!("fork"), &json!(1)), (&json!("fork"), &json!(2))]
    );
    // The true journal goes on.
    accepted(&gate, &journal.seal(&["b"]), 3).await;
}

#[tokio::test]
async fn a_gap_is_kept_and_reported() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let gate = workspace.gate().await;
    let mut journal = gate.journal(&holder(1), 1);
    accepted(&gate, &journal.seal(&["a"]), 2).await;
    let lost = journal.seal(&["b", "c"]);
    accepted(&gate, &journal.seal(&["d"]), 5).await;
    // What was lost does not come back through the rear door: the journal has gone on.
    refused(&gate, &lost, 409, "fork").await;
    let gaps = workspace.get("/audit/gaps").await;
    assert_eq!(gaps[0]["kind"], "missing");
    assert_eq!(
        (&gaps[0]["from_seq"], &gaps[0]["records"]),
        (&json!(2), &json!(2))
    );
    let fault = verify(&export(&workspace).await, None).unwrap_err();
    // The header is line 1, the first batch lines 2 to 4.
    assert_eq!(fault.line, 5);
    assert!(
        fault.what.ends_with("records 2 to 3 are missing"),
        "{fault}"
    );
}

#[tokio::test]
async fn a_journal_whose_begin_is_missing_is_not_whole() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let gate = workspace.gate().await;
    let mut journal = gate.journal(&holder(1), 1);
    journal.seal(&["a", "b"]);
    accepted(&gate, &journal.seal(&["c"]), 4).await;
    let fault = verify(&export(&workspace).await, None).unwrap_err();
    assert!(
        fault.what.ends_with("records 1 to 2 are missing"),
        "{fault}"
    );
}

#[tokio::test]
async fn what_a_gate_dropped_is_reported() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let gate = workspace.gate().await;
    let mut journal = gate.journal(&holder(1), 1);
    accepted(&gate, &journal.seal_records(&[json!({"id": "a"})], 7), 2).await;
    // A batch without records still says what was dropped, and the chain goes on behind it.
    accepted(&gate, &journal.seal_records(&[], 2), 2).await;
    accepted(&gate, &journal.seal(&["b"]), 3).await;
    let gaps = workspace.get("/audit/gaps").await;
    let dropped: Vec<&Value> = gaps
        .as_array()
        .unwrap()
        .iter()
        .inspect(|gap| assert_eq!(gap["kind"], "dropped"))
        .map(|gap| &gap["records"])
        .collect();
    assert_eq!(dropped, [7, 2]);
    let fault = verify(&export(&workspace).await, None).unwrap_err();
    assert!(
        fault
            .what
            .contains("the gate dropped 7 records before record 1"),
        "{fault}"
    );
}

#[tokio::test]
async fn only_the_holder_can_seal() {
    let plane = Plane::new().await;
    let (workspace, elsewhere) = (plane.workspace().await, plane.workspace().await);
    let (gate, other) = (workspace.gate().await, workspace.gate().await);
    let journal = gate.journal(&holder(1), 1);
    // Sealed with another key.
    let mut wrong = journal.clone();
    wrong.key = SealKey::derive(&SealKey::root(&other.key), &holder(1));
    refused(&gate, &wrong.seal(&["a"]), 403, "forbidden").await;
    // Of another workspace.
    let foreign = elsewhere.gate().await;
    refused(
        &gate,
        &foreign.journal(&holder(1), 1).seal(&["a"]),
        403,
        "forbidden",
    )
    .await;
    // Another gate under this holder's name.
    accepted(&gate, &journal.clone().seal(&["a"]), 2).await;
    refused(
        &other,
        &other.journal(&holder(1), 2).seal(&["a"]),
        403,
        "forbidden",
    )
    .await;
    assert_eq!(ids(&workspace, "").await, ["a"]);
}

#[tokio::test]
async fn what_is_no_batch_is_refused() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let gate = workspace.gate().await;
    let good = gate.journal(&holder(1), 1).seal(&["a", "b"]);
    refused(&gate, b"", 400, "malformed").await;
    refused(&gate, b"{}\n", 400, "malformed").await;
    refused(&gate, &good[..good.len() - 1], 400, "malformed").await;
    refused(&gate, &[&good[..], &good[..]].concat(), 400, "malformed").await;
    let text = String::from_utf8(good.clone()).unwrap();
    refused(
        &gate,
        text.replace("\"a\"", "\"x\"").as_bytes(),
        400,
        "malformed",
    )
    .await;
    refused(&gate, &vec![b' '; (1 << 20) + 1], 413, "too-large").await;
    let mut far = gate.journal(&holder(1), 1);
    far.position.next_seq = u64::MAX - 1;
    refused(&gate, &far.seal(&["a"]), 422, "invalid").await;
    let mut nameless = gate.journal("h-1", 1);
    refused(&gate, &nameless.seal(&["a"]), 422, "invalid").await;
    assert_eq!(ids(&workspace, "").await, [""; 0]);
    accepted(&gate, &good, 3).await;
}

#[tokio::test]
async fn records_are_listed_as_they_were_sealed() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let gate = workspace.gate().await;
    let mut journal = gate.journal(&holder(1), 1);
    let record = |id: &str, agent: &str, outcome: &str| json!({"id": id, "agent": agent, "outcome": outcome, "unknown": [1.5]});
    let batch = journal.seal_records(&[record("1", "x", "allow"), record("2", "y", "deny")], 0);
    accepted(&gate, &batch, 3).await;
    accepted(
        &gate,
        &journal.seal_records(&[record("3", "x", "deny")], 0),
        4,
    )
    .await;
    let page = workspace.get("/audit?limit=2").await;
    assert_eq!(page["records"][1]["record"], record("2", "y", "deny"));
    assert_eq!(page["records"][1]["seq"], 2);
    let next = format!("?limit=2&after={}", page["next"]);
    assert_eq!(ids(&workspace, &next).await, ["3"]);
    assert_eq!(ids(&workspace, "?agent=x").await, ["1", "3"]);
    assert_eq!(ids(&workspace, "?id=2").await, ["2"]);
    assert_eq!(ids(&workspace, "?outcome=deny").await, ["2", "3"]);
    assert_eq!(ids(&workspace, "?newest=true&limit=2").await, ["3", "2"]);
}

/// Records with content are long: an answer has 4 MiB of them at most, and says where to go on.
#[tokio::test]
async fn a_page_of_long_records_ends_before_its_limit() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let gate = workspace.gate().await;
    let mut journal = gate.journal(&holder(1), 1);
    // Each some bytes more than 800,000: five of them are less than 4,194,304, and six are more.
    for number in 0..7 {
        let record = json!({"id": format!("r{number}"), "content": "c".repeat(800_000)});
        accepted(&gate, &journal.seal_records(&[record], 0), number + 2).await;
    }
    let read = async |query: &str| {
        let page = workspace.get(&format!("/audit?{query}")).await;
        let ids: Vec<String> = page["records"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| text(&row["record"]["id"]))
            .collect();
        (ids, page["next"].as_i64())
    };
    let (first, next) = read("").await;
    assert_eq!(first, ["r0", "r1", "r2", "r3", "r4"]);
    let (rest, end) = read(&format!("after={}", next.unwrap())).await;
    assert_eq!((rest, end), (vec!["r5".to_owned(), "r6".to_owned()], None));
    let (newest, next) = read("newest=true").await;
    assert_eq!(newest, ["r6", "r5", "r4", "r3", "r2"]);
    let (rest, end) = read(&format!("newest=true&after={}", next.unwrap())).await;
    assert_eq!((rest, end), (vec!["r1".to_owned(), "r0".to_owned()], None));
}

/// Two journals, three batches, four records.
async fn exported() -> (Vec<u8>, tollgate_engine::envelope::PublicKey) {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let gate = workspace.gate().await;
    let (mut one, mut two) = (gate.journal(&holder(1), 1), gate.journal(&holder(2), 1));
    accepted(&gate, &one.seal(&["a", "b"]), 3).await;
    accepted(&gate, &two.seal(&["c"]), 2).await;
    accepted(&gate, &one.seal(&["d"]), 4).await;
    (export(&workspace).await, gate.trust[0].clone())
}

#[tokio::test]
async fn a_whole_export_verifies() {
    let (export, key) = exported().await;
    let whole = verify(&export, Some(&key)).unwrap();
    assert_eq!((whole.batches, whole.records, whole.journals), (3, 4, 2));
    assert!(whole.pinned);
    assert_eq!(whole.issued.secs(), START);
    assert!(!verify(&export, None).unwrap().pinned);
}

#[tokio::test]
async fn no_byte_and_no_line_of_an_export_can_change_unseen() {
    let (export, key) = exported().await;
    for at in 0..export.len() {
        let mut changed = export.clone();
        changed[at] ^= 1;
        // The first line names a key; a pinned one takes no notice of that, but the digest does.
        assert!(verify(&changed, Some(&key)).is_err(), "byte {at}");
    }
    let lines: Vec<&[u8]> = export.split_inclusive(|byte| *byte == b'\n').collect();
    for line in 0..lines.len() {
        let mut dropped = lines.clone();
        dropped.remove(line);
        assert!(
            verify(&dropped.concat(), Some(&key)).is_err(),
            "without line {}",
            line + 1
        );
        let mut twice = lines.clone();
        twice.insert(line, lines[line]);
        assert!(
            verify(&twice.concat(), Some(&key)).is_err(),
            "line {} twice",
            line + 1
        );
    }
    for end in 0..export.len() {
        assert!(verify(&export[..end], Some(&key)).is_err(), "cut at {end}");
    }
}

#[tokio::test]
async fn a_fault_names_its_line() {
    let (export, key) = exported().await;
    let lines: Vec<&[u8]> = export.split_inclusive(|byte| *byte == b'\n').collect();
    // 1 header; 2-5 batch of holder 1; 6-8 of holder 2; 9-11 of holder 1; 12 checkpoint.
    assert_eq!(lines.len(), 12);
    let line_of = |lines: &[&[u8]]| verify(&lines.concat(), Some(&key)).unwrap_err().line;
    // The batch of holder 1 that follows its first, without that: records are missing, and what proves it is the digest at the end.
    let mut without = lines.clone();
    without.drain(1..5);
    assert_eq!(line_of(&without), 8);
    // The batches of holder 1 the other way round: the second one's turn comes at line 5.
    let mut swapped = vec![lines[0]];
    swapped.extend(&lines[8..11]);
    swapped.extend(&lines[1..5]);
    swapped.extend(&lines[5..8]);
    swapped.push(lines[11]);
    assert_eq!(line_of(&swapped), 5);
    // A record that is no JSON.
    let mut broken = lines.clone();
    broken[6] = b"nonsense\n";
    assert_eq!(line_of(&broken), 7);
    // Cut short, and something behind the end.
    assert_eq!(line_of(&lines[..11]), 12);
    let mut behind = lines.clone();
    behind.push(b"\n");
    assert_eq!(line_of(&behind), 13);
}

#[tokio::test]
async fn an_export_signed_by_another_key_is_not_ours() {
    let (export, _) = exported().await;
    let (_, other) = exported().await;
    let fault = verify(&export, Some(&other)).unwrap_err();
    assert_eq!(fault.line, 12);
    assert!(
        fault.what.contains("no signature by a trusted key"),
        "{fault}"
    );
}

/// As long as the policy with the longest period wants for the agent; and what is left, and its export, is one chain.
#[tokio::test]
async fn records_are_forgotten_when_no_policy_wants_them_kept_any_longer() {
    const DAY: i64 = 86_400;
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let gate = workspace.gate().await;
    let (short, long) = (
        workspace.agent("short").await,
        workspace.agent("long").await,
    );
    let policy = |name: &str, scope: &str, days: u32| {
        format!(
            "---\n{{apiVersion: tollgate/v1, kind: Policy, metadata: {{name: {name}}}, spec: {{scope: '{scope}', agent: {{audit: {{retention_days: {days}}}}}}}}}\n"
        )
    };
    let record = |id: &str, agent: Option<&str>| json!({"id": id, "agent": agent});
    let (mut one, mut two) = (gate.journal(&holder(1), 1), gate.journal(&holder(2), 1));
    let first = one.seal_records(&[record("a", Some(&short)), record("b", Some(&short))], 0);
    accepted(&gate, &first, 3).await;
    accepted(&gate, &one.seal_records(&[record("c", Some(&long))], 0), 4).await;
    accepted(&gate, &one.seal_records(&[record("d", Some(&short))], 0), 5).await;
    accepted(&gate, &two.seal_records(&[record("e", Some(&short))], 0), 2).await;
    accepted(&gate, &two.seal_records(&[record("f", None)], 0), 3).await;
    let after = async |days: i64| {
        let secs = START + days * DAY + 1 - plane.now().secs();
        plane.advance(secs);
        plane.state.upkeep().await.unwrap();
        ids(&workspace, "").await
    };
    // Nobody says anything: for ever.
    assert_eq!(after(400).await, ["a", "b", "c", "d", "e", "f"]);
    plane.advance(-400 * DAY);

    let policies = policy("brief", "team:short", 30) + &policy("lasting", "team:long", 90);
    assert_eq!(workspace.apply(&policies).await.status, 200);
    assert_eq!(after(29).await, ["a", "b", "c", "d", "e", "f"]);
    // What stands behind a record that has to stay stays with it, and so does what is of nobody.
    assert_eq!(after(30).await, ["c", "d", "f"]);
    let whole = verify(&export(&workspace).await, Some(&gate.trust[0])).unwrap();
    assert_eq!(
        (
            whole.batches,
            whole.records,
            whole.journals,
            whole.forgotten
        ),
        (3, 3, 2, 3)
    );
    assert!(
        whole
            .to_string()
            .contains("before them 3 records were deleted, as policies say"),
        "{whole}"
    );
    // One that is told again whose receipt was lost is no fork…
    accepted(&gate, &first, 3).await;
    assert_eq!(workspace.get("/audit/gaps").await, json!([]));
    assert_eq!(after(90).await, ["f"]);
    // …and the journal goes on where it stood.
    accepted(&gate, &one.seal_records(&[record("g", Some(&short))], 0), 6).await;
    assert_eq!(workspace.get("/audit/gaps").await, json!([]));
    let global = policy("all", "global", 1);
    assert_eq!(workspace.apply(&global).await.status, 200);
    assert_eq!(after(91).await, ["g"]);
    let whole = verify(&export(&workspace).await, Some(&gate.trust[0])).unwrap();
    assert_eq!(
        (
            whole.batches,
            whole.records,
            whole.journals,
            whole.forgotten
        ),
        (1, 1, 2, 6)
    );

    // Where a journal begins is signed like the rest.
    let export = String::from_utf8(export(&workspace).await).unwrap();
    let (head, rest) = export.split_once('\n').unwrap();
    let mut header: Value = serde_json::from_str(head).unwrap();
    header["begins"].as_array_mut().unwrap().remove(1);
    let forged = format!("{header}\n{rest}");
    assert!(verify(forged.as_bytes(), Some(&gate.trust[0])).is_err());
}
