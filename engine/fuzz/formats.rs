//! What arrives signed or sealed, as any bytes whatever: as they are, and as the content of something properly signed. The fuzz targets and
//! `engine/tests/formats_fuzz.rs` call the same functions.

use crate::issuer::{self, KEY_ID, NOW, Towards, WORKSPACE};
use tollgate_engine::{
    automaton::{Automaton, Compiled},
    bytes::sha256,
    envelope::{BUNDLE_TYPE, LEASES_TYPE},
    exchange::{Exchange, Step},
    facts::Headers,
    gate::Gate,
    identity::{self, Caller, GovernanceLevel, MAX_LIFE_SECS},
    journal::{Batch, SealKey},
    ledger::{Account, Cell, Op},
    redact::Masker,
    scan::{Hits, Scanner},
    shelf::Shelf,
    upkeep::{Holder, Response, Upkeep},
};

/// The holder of [`lease_answer`].
pub(crate) const HOLDER: u128 = 1;

/// Without a signature nothing is installed; with one, whatever is installed can be run.
pub(crate) fn bundle(data: &[u8]) {
    let mut gate = issuer::gate(Towards::Anywhere, &issuer::payload(10));
    let before = gate.bundle().etag();
    match gate.install(data, NOW) {
        Err(why) => {
            assert!(!why.name().is_empty());
            assert_eq!(gate.bundle().etag(), before);
        }
        // Only what the house has signed: one of the seeds, the same to the last byte of its payload.
        Ok(()) => assert!(SEEDS.with(|seeds| seeds.contains(&gate.bundle().etag()))),
    }
    run(&mut gate);

    let signed = issuer::envelope(BUNDLE_TYPE, data, &[(KEY_ID, &issuer::house())]);
    let mut gate = issuer::gate(Towards::Anywhere, &issuer::payload(10));
    if gate.install(&issuer::json(&signed), NOW).is_ok() {
        let payload = gate.bundle().payload().expect("installed");
        assert_eq!(payload.workspace, WORKSPACE);
        assert!(payload.revision >= 10 && payload.expires_at > NOW.secs());
    } else {
        assert_eq!(gate.bundle().etag(), before);
    }
    run(&mut gate);
}

thread_local! {
    /// Entity tags of the bundles that tests start from.
    static SEEDS: Vec<Option<String>> = bundle_seeds()
        .iter()
        .map(|seed| {
            let mut gate = Gate::new(issuer::config(Towards::Anywhere));
            gate.install(seed, NOW).unwrap();
            gate.bundle().etag()
        })
        .collect();
}

/// Bundles that a gate at revision 10 installs.
pub(crate) fn bundle_seeds() -> Vec<Vec<u8>> {
    vec![
        issuer::bundle(&issuer::payload(11)),
        issuer::bundle(&issuer::budgeted(12)),
        issuer::bundle(&issuer::payload(10)),
    ]
}

/// One call by each kind of caller: it is decided, one way or the other.
fn run(gate: &mut Gate) {
    let headers: [(&[u8], &[u8]); 3] = [
        (b":method", b"POST"),
        (b":path", b"/v1/chat/completions"),
        (b":authority", issuer::LISTED_HOST.as_bytes()),
    ];
    let caller = Caller {
        workspace: WORKSPACE.to_string(),
        agent: issuer::AGENT.to_string(),
        org: Some("acme".to_string()),
        team: Some("platform".to_string()),
        level: GovernanceLevel::L3,
        acts_for: Vec::new(),
    };
    let (mut exchange, mut step) =
        Exchange::begin_as(gate, caller, Headers(&headers), true, NOW, 1);
    if let Step::NeedBody { .. } = step {
        let body = br#"{"model":"gpt-4o","messages":[],"max_tokens":9,"tools":[{"name":"git"}]}"#;
        step = exchange.body(gate, body, NOW);
    }
    assert!(!matches!(
        step,
        Step::NeedBody { .. } | Step::AwaitLease { .. }
    ));
}

/// Without a signature an answer changes nothing; with one, whatever it grants is applied without a fault.
pub(crate) fn lease_answer(data: &[u8]) {
    let gate = Gate::new(issuer::config(Towards::Llm));
    let holder = Holder {
        epoch: 3,
        ..Holder::new(HOLDER)
    };
    let take = |body: &[u8]| {
        let response = Response { status: 200, body };
        Upkeep::default().leases_answered(&gate, &holder, response, NOW, 0)
    };
    // The seeds are answers that are not signed.
    assert_eq!(take(data), None);
    let signed = issuer::envelope(LEASES_TYPE, data, &[(KEY_ID, &issuer::house())]);
    let Some((refills, epoch)) = take(&issuer::json(&signed)) else {
        return;
    };
    assert!(epoch.is_none_or(|epoch| epoch > 3));
    for refill in refills {
        let once = refill.op.apply(None, NOW).expect("a refill is not refused");
        let twice = refill.op.apply(Some(&once), NOW);
        assert_eq!(twice.as_ref(), Ok(&once), "a replay changes nothing");
        assert_eq!(Cell::decode(&once).encode(), once);
        let text = refill.account.to_string();
        assert_eq!(Account::parse(&text), Some(refill.account));
    }
}

/// A batch that is read is one whose head follows from its bytes, and those bytes are all there is to it.
pub(crate) fn batch(data: &[u8]) {
    let Ok(batch) = Batch::read(data) else {
        return;
    };
    let bytes = &data[..batch.len];
    assert!(bytes.ends_with(b"\n"));
    let lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
    let (seal, before) = lines.split_last().expect("a last line");
    assert_eq!(before.len() as u64, batch.header.count + 1);
    assert_eq!(batch.records.len() as u64, batch.header.count);
    for (line, record) in before[1..].iter().zip(&batch.records) {
        assert_eq!(line.strip_suffix(b"\n"), Some(*record));
    }
    let previous = batch.header.previous.0;
    let head = sha256(&[b"tollgate batch 1\n", &previous, &before.concat()]);
    assert_eq!(batch.seal.head.0, head);
    assert_eq!(
        *seal,
        format!(
            "{{\"head\":\"{}\",\"seal\":\"{}\"}}\n",
            batch.seal.head, batch.seal.seal
        )
        .as_bytes()
    );
    // Nobody but the holder of the key can have sealed it; the seeds are sealed with another one.
    let stranger = SealKey::derive(&[0; 32], "h-0");
    assert!(batch.verify(&stranger).is_err());
}

/// A token that is accepted says what the house has signed, for this workspace, for no longer than it may.
pub(crate) fn token(data: &[u8]) {
    let keys = [issuer::public(KEY_ID, &issuer::house())];
    let check = |token: &[u8]| {
        let verified = identity::verify(token, &keys, WORKSPACE, NOW);
        if let Ok((caller, expires)) = &verified {
            assert_eq!(caller.workspace, WORKSPACE);
            assert!(*expires > NOW && *expires <= NOW.plus_secs(MAX_LIFE_SECS + 60));
        }
        verified.is_ok()
    };
    if check(data) {
        let known = issuer::token(&issuer::claims());
        assert_eq!(data, known.as_bytes(), "forged");
    }
    check(issuer::signed_parts(&issuer::json(&issuer::token_header()), data).as_bytes());
    if check(issuer::signed_parts(data, &issuer::json(&issuer::claims())).as_bytes()) {
        let header: identity::TokenHeader = serde_json::from_slice(data).expect("a header");
        assert!(["EdDSA", "Ed25519"].contains(&header.alg.as_str()));
        assert_eq!(header.typ, identity::TOKEN_TYPE);
    }
}

/// What lies in a host's store, or comes from another module of the host, is applied or refused; nothing of it fails.
pub(crate) fn stored(data: &[u8]) {
    let cell = Cell::decode(data);
    assert!(cell.slots().len() <= 2);
    if cell != Cell::default() {
        assert_eq!(cell.encode(), data);
    }
    let shelf = Shelf::decode(data.to_vec());
    if shelf != Shelf::default() {
        assert_eq!(shelf.into_bytes(), data);
    }
    if let Some(op) = Op::decode(data) {
        assert_eq!(Op::decode(&op.encode()), Some(op.clone()));
        if let Ok(cell) = op.apply(None, NOW) {
            assert!(op.apply(Some(&cell), NOW).is_ok() || matches!(op, Op::Ask { .. }));
        }
    }
    if let Some(account) = std::str::from_utf8(data).ok().and_then(Account::parse) {
        assert_eq!(account.to_string().as_bytes(), data);
    }
}

/// What passes for an automaton searches, in both directions, and comes to an end. Whether it passes.
pub(crate) fn automaton(data: &[u8]) -> bool {
    const TEXT: &[u8] = b"aab bc\n\xc3\xa9-ab\xff a";
    let automaton = Automaton(data.to_vec());
    let scanner = Scanner::new(&[&automaton]);
    let masker = Masker::new(&Compiled {
        pattern: String::new(),
        forward: automaton.clone(),
        backward: Some(automaton),
    });
    assert_eq!(scanner.is_ok(), masker.is_ok());
    let (Ok(mut scanner), Ok(mut masker)) = (scanner, masker) else {
        return false;
    };
    scanner.search(TEXT, &mut Hits::default());
    let mut found = Vec::new();
    if masker.find(TEXT, 0, &mut found).is_ok() {
        assert!(found.iter().all(|range| range.end <= TEXT.len()));
    }
    true
}
