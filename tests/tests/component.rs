//! What the component promises its host, beyond what the corpus says of its decisions: it asks for nothing, errors instead of trapping, and
//! what traps all the same takes nobody else with it.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use tollgate_engine::time::Time;
use tollgate_tests::built;
use tollgate_tests::component::{
    Component, FUEL_PER_CALL, Instance, MAX_MEMORY_BYTES,
    calls::{
        Caller, Cause, CellOp, End, GovernanceLevel, Outcome, Output, Refusal, Refused, Span, Step,
    },
    ran_away,
    upkeep::{Ask, Response, Want},
};
use tollgate_tests::corpus::{
    case::{AGENT, Case, TokenKind, Upstream, WORKSPACE},
    control_plane::{self, ControlPlane},
};
use wasmtime::component::ResourceAny;

static COMPONENT: LazyLock<Component> =
    LazyLock::new(|| Component::load(built::component()).unwrap());

/// 53 bytes.
const CHAT: &str = r#"{"model":"gpt-4o-mini","max_tokens":10,"messages":[]}"#;

/// An instance with a gate that runs this policy.
struct Rig {
    instance: Instance,
    gate: ResourceAny,
    control_plane: ControlPlane,
    now: i64,
}

fn rig(spec: &str) -> Rig {
    let case = case(spec);
    let mut control_plane = ControlPlane::new(&case).unwrap();
    let now = case.start().unwrap().micros();
    let mut instance = COMPONENT.instance().unwrap();
    let (settings, secrets) = settings();
    let gate = open(&mut instance, &settings, &secrets).unwrap();
    let envelope = control_plane.bundle(1).unwrap();
    install(&mut instance, gate, &envelope, now).unwrap();
    Rig {
        instance,
        gate,
        control_plane,
        now,
    }
}

fn case(spec: &str) -> Case {
    let text = format!(
        "about: x\npolicies: |\n  apiVersion: tollgate/v1\n  kind: Policy\n  metadata: {{name: p}}\n  spec: {spec}\n\
         steps: [{{call: {{path: /}}, expect: {{outcome: allow}}}}]"
    );
    Case::read("component", &text).unwrap()
}

fn settings() -> (String, Vec<(String, String)>) {
    let (settings, secrets) = control_plane::settings(Upstream::Llm);
    let secrets = secrets
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    (settings, secrets)
}

fn open(
    instance: &mut Instance,
    settings: &str,
    secrets: &[(String, String)],
) -> Result<ResourceAny, String> {
    instance
        .calls(|calls, store| calls.gate().call_open(store, settings.as_bytes(), secrets))
        .unwrap()
}

fn install(
    instance: &mut Instance,
    gate: ResourceAny,
    envelope: &[u8],
    now: i64,
) -> Result<(), String> {
    instance
        .calls(|calls, store| calls.gate().call_install(store, gate, envelope, now))
        .unwrap()
        .map_err(|error| error.name)
}

fn header(name: &str, value: &str) -> (Vec<u8>, Vec<u8>) {
    (name.into(), value.into())
}

impl Rig {
    fn chat_headers(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let token = self.control_plane.token(TokenKind::Valid).unwrap().unwrap();
        vec![
            header(":method", "POST"),
            header(":path", "/v1/chat/completions"),
            header(":authority", "gate.example"),
            header("content-type", "application/json"),
            header("authorization", &format!("Bearer {token}")),
        ]
    }

    fn begin(&mut self) -> (ResourceAny, Step) {
        let (gate, now, headers) = (self.gate, self.now, self.chat_headers());
        self.instance
            .calls(|calls, store| {
                calls
                    .exchange()
                    .call_begin(store, gate, &headers, true, now, (0, 7))
            })
            .unwrap()
    }

    fn body(&mut self, exchange: ResourceAny, body: &[u8]) -> anyhow::Result<Step> {
        let (gate, now) = (self.gate, self.now);
        self.instance
            .calls(|calls, store| calls.exchange().call_body(store, exchange, gate, body, now))
    }

    fn swapped(&mut self, exchange: ResourceAny, outcome: Result<&[Vec<u8>], Refused>) -> Step {
        let (gate, now) = (self.gate, self.now);
        self.instance
            .calls(|calls, store| {
                calls
                    .exchange()
                    .call_swapped(store, exchange, gate, outcome, now)
            })
            .unwrap()
    }

    /// The cell as it is then.
    fn apply(
        &mut self,
        cells: &mut BTreeMap<String, Vec<u8>>,
        op: &CellOp,
    ) -> Result<Vec<u8>, Refusal> {
        let (old, now) = (cells.get(&op.key).map(Vec::as_slice), self.now);
        let new = self
            .instance
            .calls(|calls, store| calls.call_apply(store, &op.op, old, now))
            .unwrap()?;
        cells.insert(op.key.clone(), new.clone());
        Ok(new)
    }
}

#[test]
fn it_imports_nothing() {
    assert_eq!(COMPONENT.imports(), Vec::<String>::new());
}

/// The whole life of one call, each step as a host of another language would take it.
#[test]
fn a_call_waits_for_a_lease_goes_out_and_settles() {
    let mut rig = rig("{budget: {daily_limit_usd: 0.00003}}");
    let mut cells = BTreeMap::new();
    let (exchange, step) = rig.begin();
    // The default cap: 1 MiB.
    assert!(matches!(step, Step::NeedBody(1_048_576)), "{step:?}");
    let Step::Swap(reserve) = rig.body(exchange, CHAT.as_bytes()).unwrap() else {
        panic!("a budgeted call reserves")
    };
    let account = format!("agent:{AGENT}|nano_usd|day@UTC");
    assert_eq!(
        (reserve.len(), &reserve[0].account, &reserve[0].key),
        (1, &account, &format!("cell {account}"))
    );

    // Nobody has a lease yet.
    let refusal = rig.apply(&mut cells, &reserve[0]).unwrap_err();
    assert!(matches!(refusal, Refusal::NoLease), "{refusal:?}");
    let step = rig.swapped(
        exchange,
        Err(Refused {
            at: 0,
            why: refusal,
        }),
    );
    let Step::AwaitLease(wait) = step else {
        panic!("{step:?}")
    };
    assert!(wait.undo.is_empty());
    assert_eq!(wait.deadline, rig.now + 1_000_000);
    // gpt-4o-mini: 150 nano-USD per input token, 600 per output token; 53 bytes are at most 53 tokens: 53 x 150 + 10 x 600.
    assert_eq!(
        (&wait.wants[0].account, wait.wants[0].amount),
        (&account, 13_950)
    );

    // So it is asked for.
    let want = Want {
        account,
        span: wait.wants[0].span,
        amount: 0,
    };
    let ask = rig
        .instance
        .upkeep(|upkeep, store| upkeep.call_ask_op(store, &want))
        .unwrap()
        .unwrap();
    rig.apply(&mut cells, &ask).unwrap();
    let asks = [Ask {
        want,
        needed: wait.wants[0].amount,
        cell: cells[&ask.key].clone(),
    }];
    let (gate, now) = (rig.gate, rig.now);
    let holder = rig
        .instance
        .upkeep(|upkeep, store| upkeep.holder().call_constructor(store, (0, 1)))
        .unwrap();
    let errands = rig
        .instance
        .upkeep(|upkeep, store| upkeep.errands().call_constructor(store))
        .unwrap();
    let errand = rig
        .instance
        .upkeep(|upkeep, store| upkeep.call_lease_request(store, gate, holder, &asks))
        .unwrap();
    assert_eq!(
        (errand.method.as_str(), errand.path),
        ("POST", format!("/v1/workspaces/{WORKSPACE}/gate/leases"))
    );
    let (status, body) = rig
        .control_plane
        .answer("/gate/leases", &errand.body, Time::from_micros(now))
        .unwrap();
    let response = Response { status, body };
    let leased = rig
        .instance
        .upkeep(|upkeep, store| {
            upkeep
                .errands()
                .call_leases_answered(store, errands, gate, holder, &response, now, 0)
        })
        .unwrap()
        .unwrap();
    assert_eq!((leased.refills.len(), leased.epoch), (1, Some(1)));
    rig.apply(&mut cells, &leased.refills[0]).unwrap();

    // Now it goes out, with the gate's credential in place of the agent's.
    let step = rig
        .instance
        .calls(|calls, store| calls.exchange().call_retry(store, exchange))
        .unwrap();
    let Step::Swap(reserve) = step else {
        panic!("{step:?}")
    };
    let cell = rig.apply(&mut cells, &reserve[0]).unwrap();
    let step = rig.swapped(exchange, Ok(&[cell]));
    let Step::Forward(forward) = step else {
        panic!("{step:?}")
    };
    assert_eq!(
        forward.head.set,
        [(
            "authorization".to_owned(),
            "Bearer provider-key-of-the-corpus".to_owned()
        )]
    );
    // That is where the agent's was; nothing else is to be taken out.
    assert_eq!(forward.head.remove, Vec::<String>::new());
    assert_eq!(forward.body, None);

    let head = [
        header(":status", "200"),
        header("content-type", "application/json"),
    ];
    let edits = rig
        .instance
        .calls(|calls, store| calls.exchange().call_response_head(store, exchange, &head))
        .unwrap();
    // 30,000 - 13,950 are left, for 14 hours less five seconds.
    let set = [
        ("x-tollgate-decision", "d-00000000000000000000000000000007"),
        (
            "ratelimit-policy",
            r#""budget.daily_limit_usd/agent";q=30000;w=86400;qu="nano-usd""#,
        ),
        (
            "ratelimit",
            r#""budget.daily_limit_usd/agent";r=16050;t=50395"#,
        ),
    ];
    assert_eq!(
        edits.head.set,
        set.map(|(name, value)| (name.to_owned(), value.to_owned()))
    );
    let gate = rig.gate;
    let answer = br#"{"model":"gpt-4o-mini","usage":{"prompt_tokens":9,"completion_tokens":5,"total_tokens":14}}"#;
    let output = rig
        .instance
        .calls(|calls, store| {
            calls
                .exchange()
                .call_response_chunk(store, exchange, gate, answer, true)
        })
        .unwrap();
    assert!(matches!(output, Output::Pass));
    let finished = rig
        .instance
        .calls(|calls, store| {
            calls
                .exchange()
                .call_finish(store, exchange, End::Complete, now)
        })
        .unwrap();
    assert!(matches!(finished.observed.outcome, Outcome::Allow));
    assert!(!finished.observed.estimated);
    rig.apply(&mut cells, &finished.ops[0]).unwrap();
    // 9 x 150 + 5 x 600.
    let record: serde_json::Value = serde_json::from_slice(&finished.record).unwrap();
    assert_eq!(record["cost_nano_usd"], "4350");
    let cell = tollgate_engine::ledger::Cell::decode(&cells[&ask.key]);
    assert_eq!(
        (cell.slots()[0].settled, cell.slots()[0].reserved),
        (4_350, 0)
    );
}

/// The handle is gone with the exchange, so a call cannot settle twice, whatever the host does.
#[test]
fn a_finished_call_cannot_be_finished_again() {
    let mut rig = rig("{}");
    let (exchange, _) = rig.begin();
    let now = rig.now;
    let mut finish = || {
        rig.instance.calls(|calls, store| {
            calls
                .exchange()
                .call_finish(store, exchange, End::ClientLeft, now)
        })
    };
    assert!(finish().is_ok());
    let again = format!("{:#}", finish().unwrap_err());
    assert!(again.contains("handle"), "{again}");
}

#[test]
fn settings_that_do_not_hold_are_an_error_for_the_operator() {
    let mut instance = COMPONENT.instance().unwrap();
    let (good, secrets) = settings();
    let mut refused = |settings: &str, secrets: &[(String, String)]| {
        open(&mut instance, settings, secrets).unwrap_err()
    };
    assert!(refused("{", &secrets).starts_with("gate settings: "));
    assert!(refused("\u{0}", &secrets).starts_with("gate settings: "));
    assert_eq!(
        refused(&good.replace("ws-", "wx-"), &secrets),
        "gate settings: `workspace` must be ws-<uuid>"
    );
    assert_eq!(
        refused(&good, &[]),
        "gate settings: `enrolment_key` names the variable TOLLGATE_ENROLMENT_KEY, which is not set"
    );
    // The same instance still takes good ones.
    assert!(open(&mut instance, &good, &secrets).is_ok());
}

#[test]
fn an_envelope_that_does_not_hold_leaves_the_old_bundle_running() {
    let mut rig = rig("{}");
    let newer = rig.control_plane.bundle(3).unwrap();
    let older = rig.control_plane.bundle(2).unwrap();
    let (gate, now) = (rig.gate, rig.now);
    assert_eq!(install(&mut rig.instance, gate, &newer, now), Ok(()));
    for (envelope, why) in [
        (older, "rollback"),
        (b"{}".to_vec(), "not_an_envelope"),
        (newer[..newer.len() / 2].to_vec(), "not_an_envelope"),
    ] {
        assert_eq!(
            install(&mut rig.instance, gate, &envelope, now),
            Err(why.to_owned())
        );
    }
    let revision = rig
        .instance
        .calls(|calls, store| calls.gate().call_revision(store, gate))
        .unwrap();
    assert_eq!(revision, 3);
}

#[test]
fn decide_says_what_the_bundle_says_and_reserves_nothing() {
    let mut rig = rig("{capabilities: {deny: [\"model:gpt-4o\"]}, budget: {daily_limit_usd: 1}}");
    let (gate, now, headers) = (rig.gate, rig.now, rig.chat_headers());
    let caller = Caller {
        agent: AGENT.to_owned(),
        team: None,
        org: None,
        level: GovernanceLevel::L0,
        acts_for: Vec::new(),
    };
    let mut decide = |model: &str| {
        let body = CHAT.replace("gpt-4o-mini", model);
        rig.instance
            .calls(|calls, store| {
                calls.call_decide(store, gate, &caller, &headers, Some(body.as_bytes()), now)
            })
            .unwrap()
    };
    let allowed = decide("gpt-4o-mini");
    assert!(matches!(allowed.outcome, Outcome::Allow) && allowed.reasons.is_empty());
    // As above: 53 x 150 + 10 x 600.
    assert_eq!(allowed.worst_case_nano_usd, Some(13_950));
    let denied = decide("gpt-4o");
    assert!(matches!(denied.outcome, Outcome::Deny));
    let [reason] = denied.reasons.as_slice() else {
        panic!("{denied:?}")
    };
    assert_eq!(
        (reason.rule.as_str(), reason.document.as_deref()),
        ("capabilities.deny", Some("p"))
    );
    assert!(matches!(reason.cause, Cause::Policy));
}

/// A host that drives it wrongly, or hands it somebody else's bytes, gets a refusal.
#[test]
fn nothing_a_host_hands_in_traps() {
    let mut rig = rig("{budget: {daily_limit_usd: 1}}");
    let gate = rig.gate;
    for now in [i64::MIN, -1, 0, i64::MAX] {
        rig.now = now;
        let (exchange, step) = rig.begin();
        // The token holds at none of these times.
        assert!(matches!(step, Step::Reply(_)), "{step:?}");
        rig.body(exchange, CHAT.as_bytes()).unwrap();
        rig.body(exchange, b"\xff").unwrap();
        let step = rig.swapped(
            exchange,
            Err(Refused {
                at: u32::MAX,
                why: Refusal::Unreadable,
            }),
        );
        assert!(matches!(step, Step::Reply(_)), "{step:?}");
        rig.instance
            .calls(|calls, store| {
                let exchange_calls = calls.exchange();
                exchange_calls.call_retry(&mut *store, exchange)?;
                exchange_calls.call_response_chunk(&mut *store, exchange, gate, b"early", true)?;
                exchange_calls.call_response_head(
                    &mut *store,
                    exchange,
                    &[(vec![0xff], vec![0xff])],
                )?;
                exchange_calls.call_body_over_cap(&mut *store, exchange, gate, now)?;
                exchange_calls.call_finish(store, exchange, End::UpstreamBroken, now)
            })
            .unwrap();
    }
    let (_, step) = rig
        .instance
        .calls(|calls, store| {
            calls.exchange().call_begin(
                store,
                gate,
                &[(vec![0xff; 3], vec![0xff; 3])],
                false,
                0,
                (u64::MAX, u64::MAX),
            )
        })
        .unwrap();
    assert!(matches!(step, Step::Reply(reply) if reply.status == 400));
    let apply = |instance: &mut Instance, op: &[u8], old: Option<&[u8]>| {
        instance
            .calls(|calls, store| calls.call_apply(store, op, old, i64::MAX))
            .unwrap()
    };
    let ask = br#"{"ask":{"span":{"start":0,"end":60}}}"#;
    assert!(matches!(
        apply(&mut rig.instance, b"{}", None),
        Err(Refusal::Unreadable)
    ));
    // What is not a cell is an empty one.
    assert_eq!(
        apply(&mut rig.instance, ask, Some(b"\x01 not a cell")).unwrap(),
        apply(&mut rig.instance, ask, None).unwrap()
    );
    rig.instance
        .upkeep(|upkeep, store| {
            assert!(
                upkeep
                    .holder()
                    .call_decode(&mut *store, b"{\"id\":1}")?
                    .is_none()
            );
            assert!(upkeep.journal().call_decode(&mut *store, b"")?.is_none());
            let nobody = Want {
                account: "nobody".to_owned(),
                span: Span {
                    start: i64::MIN,
                    end: i64::MAX,
                },
                amount: u64::MAX,
            };
            assert!(upkeep.call_ask_op(&mut *store, &nobody)?.is_none());
            let errands = upkeep.errands().call_constructor(&mut *store)?;
            assert!(
                upkeep
                    .errands()
                    .call_plan(&mut *store, errands, "nobody", &[0xff; 300], i64::MIN)?
                    .is_empty()
            );
            // What cannot be read is an empty cell. It may go where it is of a run, and stays where it is not.
            let of_run = "agent:a|calls|run:r";
            for (account, may_go) in [
                ("nobody", false),
                ("agent:a|calls|hour", false),
                (of_run, true),
            ] {
                let goes = upkeep.errands().call_may_forget(
                    &mut *store,
                    errands,
                    account,
                    &[0xff; 300],
                    i64::MIN,
                )?;
                assert_eq!(goes, may_go, "{account}");
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn what_runs_away_traps_and_takes_nobody_with_it() {
    let mut bystander = rig("{}");
    let mut busy = rig("{}");
    let (exchange, _) = busy.begin();
    // A call of this size takes tens of thousands.
    busy.instance.limit_fuel(1_000);
    let error = busy.body(exchange, CHAT.as_bytes()).unwrap_err();
    assert!(ran_away(&error), "{error:#}");
    // The instance is lost, and says so instead of deciding anything.
    busy.instance.limit_fuel(FUEL_PER_CALL);
    let error = busy.body(exchange, CHAT.as_bytes()).unwrap_err();
    assert!(!ran_away(&error), "{error:#}");

    let mut greedy = rig("{}");
    let (exchange, _) = greedy.begin();
    let error = greedy
        .body(exchange, &vec![b' '; MAX_MEMORY_BYTES])
        .unwrap_err();
    assert!(!ran_away(&error), "{error:#}");

    let (exchange, _) = bystander.begin();
    let step = bystander.body(exchange, CHAT.as_bytes()).unwrap();
    assert!(matches!(step, Step::Forward(_)), "{step:?}");
}

/// Fuel is exact and the same on every machine, so it says what a clock in a test cannot: that deciding has not become slower.
#[test]
fn deciding_takes_a_known_amount_of_work() {
    let mut rig = rig("{data: {sensitive_patterns: [\"key-[a-z]{8}\"]}}");
    let text = "the quick brown fox ".repeat(100);
    let body = CHAT.replace("[]", &format!(r#"[{{"role":"user","content":"{text}"}}]"#));
    let mut decide = || {
        let (exchange, _) = rig.begin();
        let begun = FUEL_PER_CALL - rig.instance.fuel_left().unwrap();
        let step = rig.body(exchange, body.as_bytes()).unwrap();
        assert!(matches!(step, Step::Forward(_)), "{step:?}");
        begun + FUEL_PER_CALL - rig.instance.fuel_left().unwrap()
    };
    // The first call verifies the token and builds the automaton that the second finds built.
    let (first, second) = (decide(), decide());
    println!("fuel: {first} for the first decision on 2 KiB, {second} for the next");
    assert!(first < 4_000_000, "{first}");
    assert!(second < 300_000, "{second}");
}
