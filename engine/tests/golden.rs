//! The formats as they travel and are stored, to the byte, in `tests/golden`.
//!
//! A difference here means that gates and control planes of two versions no longer understand each other, or that a journal on disk is
//! no longer read. Where that is meant, the format's number changes with it, and
//! `TOLLGATE_WRITE_GOLDEN=1 cargo test -p tollgate-engine --test golden` writes the files anew.

mod issuer;

use issuer::{
    AGENT, KEY_ID, NOW, Towards, WORKSPACE, budgeted, bundle, claims, config, gate, house, payload,
    public, sealed, token,
};
use std::{fs, path::PathBuf};
use tollgate_engine::{
    address::Range,
    bundle::{
        ActiveHours, Approval, Bundle, Calendar, Data, HostPattern, Level, Limit, Names, Network,
        OtherTools, Payload, Redaction, Scope, Searched, Texts, ToolCost, Tools,
    },
    condition::{Fact, Instruction, Program},
    envelope::{self, LEASES_TYPE},
    exchange::CellOp,
    gate::Gate,
    halt,
    identity::{self, GovernanceLevel},
    journal::{Batch, Position, SealKey, seal},
    lease::{Answer, Ask, Grant},
    ledger::{Account, Cell, Op, Span, Unit, Window},
    shelf::Shelf,
    upkeep::{Holder, Journal, lease_request},
};

const HOLDER: &str = "h-00000000000000000000000000000001";

/// The file's bytes, which must be these.
#[track_caller]
fn golden(name: &str, written: &[u8]) -> Vec<u8> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    let path = folder.join(name);
    if std::env::var_os("TOLLGATE_WRITE_GOLDEN").is_some() {
        fs::write(&path, written).unwrap();
    }
    let kept = fs::read(&path).unwrap();
    assert!(
        kept == written,
        "{name} is now written as {}",
        written.escape_ascii()
    );
    kept
}

/// Everything a bundle can hold.
fn full_payload() -> Payload {
    let mut payload = budgeted(42);
    payload.issued_at = NOW.secs();
    payload.documents.change(|documents| {
        documents[0].network.denied = true;
        documents[0].models = Names {
            allow: Some(Texts::from_iter(["gpt-*"])),
            deny: Texts::from_iter(["gpt-4o-audio*"]),
        };
        documents[0].mcp_tools = Names {
            allow: None,
            deny: Texts::from_iter(["shell"]),
        }
        .into();
        for scope in [
            "org:acme",
            "team:platform",
            &format!("agent:{AGENT}"),
            "tool:git",
        ] {
            documents.push(tollgate_engine::bundle::Document {
                scope: Scope::parse(scope).unwrap(),
                ..issuer::document(scope)
            });
        }
        documents[0].limits[2].suspend = true;
        documents[0].active = Some(Box::new(ActiveHours {
            hours: "09:00-18:00 UTC".to_string(),
            open: vec![Span {
                start: 1_795_165_200,
                end: 1_795_197_600,
            }],
        }));
        documents[0].tools.approvals.push(Approval {
            tool: "git".to_string(),
            // governance_level >= L2 || "main" in [args.branch]
            condition: Program(vec![
                Instruction::Fact(Fact::GovernanceLevel),
                Instruction::Level(GovernanceLevel::L2),
                Instruction::AtLeast,
                Instruction::Text("main".to_string()),
                Instruction::Fact(Fact::Args),
                Instruction::Member("branch".to_string()),
                Instruction::List(1),
                Instruction::In,
                Instruction::Or,
            ]),
        });
        documents[0].limits.push(Limit {
            rule: "tools.git.limit_per_hour".to_string(),
            per: Level::Agent,
            unit: Unit::Calls,
            window: Window::Hour,
            tool: Some("git".to_string()),
            each_model: false,
            amount: 10,
            suspend: false,
            alert: false,
            warn_at: Vec::new(),
            release_lost: false,
            lowers: false,
            unknown_model: None,
        });
        documents[0].limits.push(Limit {
            rule: "agent.termination.error_threshold".to_string(),
            per: Level::Agent,
            unit: Unit::Errors,
            window: Window::Run,
            tool: None,
            each_model: false,
            amount: 5,
            suspend: false,
            alert: false,
            warn_at: Vec::new(),
            release_lost: false,
            lowers: false,
            unknown_model: None,
        });
    });
    payload.calendars = vec![Calendar {
        zone: "UTC".to_string(),
        // 2026-11-20 and the midnights on either side.
        days: vec![1_795_046_400, 1_795_132_800, 1_795_219_200],
        // Mondays 2026-11-16 and 23.
        weeks: vec![1_794_787_200, 1_795_392_000],
        // November and December.
        months: vec![1_793_491_200, 1_796_083_200],
    }];
    payload.shadow = vec![tollgate_engine::bundle::Document {
        network: Network {
            denied_hosts: vec![HostPattern("*.internal".to_string())],
            denied_addresses: ["169.254.169.254", "10.0.0.0/8", "fe80::/10"]
                .iter()
                .filter_map(|range| Range::parse(range))
                .collect(),
            ..Network::default()
        }
        .into(),
        tools: Tools {
            denied: Texts::from_iter(["mail"]),
            others: Some(OtherTools {
                named: Texts::from_iter(["mail", "git"]),
                denied: true,
                approval: Some(Program(vec![Instruction::Bool(true)])),
                cost_nano_usd: Some(1_000_000),
            }),
            costs: vec![ToolCost {
                tool: "calc".to_string(),
                nano_usd: 2_000_000,
            }],
            ..Tools::default()
        }
        .into(),
        data: Data {
            redactions: vec![Redaction {
                rule: "data.sensitive_patterns[0]".to_string(),
                patterns: vec!["[0-9]{16}".to_string()],
            }],
            searched_in: Searched::Requests,
            unsearched_tools: Texts::from_iter(["calc"]),
            tool_output_is_data: true,
            ..Data::default()
        }
        .into(),
        ..issuer::document("tried")
    }]
    .into();
    payload.revoked_agents = vec!["00000000-0000-4000-8000-00000000000b".to_string()];
    payload.halts = vec![
        issuer::halt("global", halt::Kind::Paused),
        issuer::halt("team:platform", halt::Kind::Killed),
    ];
    payload
}

#[test]
fn bundle_envelope() {
    let kept = golden("bundle.json", &bundle(&full_payload()));
    let mut gate = Gate::new(config(Towards::Anywhere));
    gate.install(&kept, NOW).unwrap();
    let read = gate.bundle().payload().unwrap();
    assert_eq!((read.format, read.revision), (4, 42));
    assert_eq!(read.documents.len(), 5);
    assert_eq!(read.documents[1].scope, Scope::Org("acme".into()));
    assert_eq!(read.documents[0].limits.len(), 5);
    assert_eq!(read.revoked_agents.len(), 1);
    assert_eq!(read.shadow[0].tools.denied, Texts::from_iter(["mail"]));
    assert_eq!(read.shadow[0].network.denied_addresses.len(), 3);
}

/// What is in the envelope, for people to read.
#[test]
fn bundle_payload() {
    let kept = golden(
        "bundle-payload.json",
        &issuer::json(&issuer::whole(&full_payload())),
    );
    let read: Payload = serde_json::from_slice(&kept).unwrap();
    assert_eq!(Bundle::local(read).revision(), 42);
}

fn account(text: &str) -> Account {
    Account::parse(text).unwrap()
}

#[test]
fn lease_request_and_answer() {
    let holder = Holder {
        id: HOLDER.to_string(),
        epoch: 3,
    };
    let asks = vec![Ask {
        account: account("team:platform|nano_usd|day@UTC"),
        window_start: 1_795_132_800,
        seq: 7,
        epoch: 3,
        granted: 4_000_000_000,
        returned: 10,
        settled: 1_500,
        reserved: 250,
        want: u64::MAX,
        ahead: false,
    }];
    let gate = gate(Towards::Llm, &payload(42));
    let errand = lease_request(&gate, &holder, asks);
    assert_eq!(
        errand.path,
        format!("/v1/workspaces/{WORKSPACE}/gate/leases")
    );
    golden("lease-request.json", &errand.body);

    let answer = Answer {
        workspace: WORKSPACE.to_string(),
        holder: HOLDER.to_string(),
        epoch: 3,
        issued_ms: NOW.millis(),
        learning: false,
        grants: vec![Grant {
            account: account("team:platform|nano_usd|day@UTC"),
            window_start: 1_795_132_800,
            window_end: 1_795_219_200,
            seq: 7,
            granted: 5_000_000_000,
            returned: 10,
            settled: 1_500,
            spent: 2_500,
            lifted_ms: NOW.millis() - 1,
            expires_ms: NOW.millis() + 60_000,
            retry_ms: 0,
            keep: u64::MAX,
        }],
    };
    golden("lease-answer-payload.json", &issuer::json(&answer));
    let kept = golden("lease-answer.json", &sealed(LEASES_TYPE, &answer));
    let opened = envelope::open(&kept, LEASES_TYPE, &[public(KEY_ID, &house())]).unwrap();
    assert_eq!(serde_json::from_slice::<Answer>(&opened).unwrap(), answer);
}

#[test]
fn batches() {
    let key = SealKey::derive(&SealKey::root("test-enrolment-key"), HOLDER);
    let mut position = Position::start(WORKSPACE, HOLDER, 3);
    let mut write = |records: &[&str], dropped| {
        let records: Vec<Vec<u8>> = records
            .iter()
            .map(|record| record.as_bytes().to_vec())
            .collect();
        seal(
            &key,
            WORKSPACE,
            HOLDER,
            3,
            &mut position,
            &records,
            dropped,
            NOW,
        )
    };
    let mut written = write(&[r#"{"id":"d-1"}"#, r#"{"id":"d-2"}"#], 0);
    written.extend(write(&[r#"{"id":"d-3"}"#], 4));
    let kept = golden("batches.ndjson", &written);
    let first = Batch::read(&kept).unwrap();
    assert_eq!(first.verify(&key), Ok(()));
    assert_eq!(first.records.len(), 2);
    let second = Batch::read(&kept[first.len..]).unwrap();
    assert_eq!(second.verify(&key), Ok(()));
    assert_eq!(second.header.previous, first.seal.head);
    assert_eq!((second.header.first_seq, second.header.dropped), (3, 4));
}

#[test]
fn agent_token() {
    let kept = golden("token.txt", token(&claims()).as_bytes());
    let keys = [public(KEY_ID, &house())];
    let (caller, expires) = identity::verify(&kept, &keys, WORKSPACE, NOW).unwrap();
    assert_eq!(caller.agent, AGENT);
    assert_eq!(expires, NOW.plus_secs(3_600));
}

/// What gates keep in their stores over an upgrade.
#[test]
fn stored_values() {
    let holder = Holder {
        id: HOLDER.to_string(),
        epoch: 3,
    };
    let kept = golden("holder.json", &holder.encode());
    assert_eq!(Holder::decode(&kept), Some(holder.clone()));

    let mut journal = Journal::start(WORKSPACE, &holder);
    let gate = gate(Towards::Llm, &payload(42));
    journal.seal(&gate, &holder, &[br#"{"id":"d-1"}"#.to_vec()], 0, NOW);
    let kept = golden("journal.bin", &journal.encode());
    assert_eq!(Journal::decode(&kept), Some(journal));

    let refill = Op::Refill {
        grant: Grant {
            account: account("agent:a|calls|minute"),
            window_start: 60,
            window_end: 120,
            seq: 1,
            granted: 1_000,
            returned: 0,
            settled: 0,
            spent: 0,
            lifted_ms: 0,
            expires_ms: 100_000,
            retry_ms: 0,
            keep: u64::MAX,
        },
        epoch: 3,
    };
    let reserve = Op::Reserve {
        span: Span {
            start: 60,
            end: 120,
        },
        amount: 258,
    };
    let cell = refill.apply(None, NOW).unwrap();
    let cell = reserve
        .apply(Some(&cell), tollgate_engine::time::Time::from_secs(61))
        .unwrap();
    let kept = golden("cell.bin", &cell);
    // Format 4, then eighteen numbers of eight bytes: start, end, granted, returned, settled, reserved (258 = 0x0102), …
    assert_eq!(kept.len(), 145);
    assert_eq!(kept[..9], [4, 60, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(kept[41..49], [2, 1, 0, 0, 0, 0, 0, 0]);
    assert_eq!(Cell::decode(&kept).slots()[0].reserved, 258);
    // On a shelf: format 1, 0x14 bytes of account, the account, 0x91 bytes of cell, the cell.
    let account = account("agent:a|calls|minute");
    let mut shelf = Shelf::default();
    for op in [refill, reserve] {
        let account = account.clone();
        let at = tollgate_engine::time::Time::from_secs(61);
        shelf.apply(&CellOp { account, op }, at).unwrap();
    }
    let stored = shelf.into_bytes();
    assert_eq!(stored[..3], [1, 0x14, 0]);
    assert_eq!(stored[3..25], *b"agent:a|calls|minute\x91\x00");
    assert_eq!(stored[25..], cell);
}
