//! A gate runs a verified bundle, and nothing an attacker sends takes its place.

mod issuer;
mod random;

use ed25519_dalek::SigningKey;
use issuer::{
    AGENT, KEY_ID, LISTED_HOST, NOW, OTHER_WORKSPACE, Towards, WORKSPACE, bundle, config, document,
    envelope, gate, house, json, key, payload, public, sealed,
};
use random::Random;
use tollgate_engine::{
    automaton::Compiled,
    bundle::{
        CLOCK_SKEW_SECS, FORMAT, InstallError, MAX_ENVELOPE_BYTES, MAX_REVISION_JUMP, Payload,
        Redaction,
    },
    bytes::to_base64,
    envelope::{
        BUNDLE_TYPE, CHECKPOINT_TYPE, Envelope, LEASES_TYPE, OpenError, pre_authentication_encoding,
    },
    exchange::{Exchange, Step},
    facts::Headers,
    gate::Gate,
    identity::{Caller, GovernanceLevel},
    lease::Answer,
    reply::REASON_HEADER,
    time::Time,
};

const UNTRUSTED: InstallError = InstallError::Envelope(OpenError::Untrusted);
const UNSIGNED: InstallError = InstallError::Envelope(OpenError::Unsigned);
const NOT_AN_ENVELOPE: InstallError = InstallError::Envelope(OpenError::Malformed);
const WRONG_TYPE: InstallError = InstallError::Envelope(OpenError::WrongType);

/// A gate that runs revision 10.
fn running() -> Gate {
    gate(Towards::Anywhere, &payload(10))
}

/// What it decides about a listed host, another host, and a listed host with a secret in the query.
fn decisions(gate: &mut Gate, now: Time) -> Vec<String> {
    [
        (LISTED_HOST, "/"),
        ("other.example.com", "/"),
        (LISTED_HOST, "/?q=key-abcdefgh"),
    ]
    .map(|(host, path)| {
        let headers: [(&[u8], &[u8]); 3] = [
            (b":method", b"GET"),
            (b":path", path.as_bytes()),
            (b":authority", host.as_bytes()),
        ];
        let caller = Caller {
            workspace: WORKSPACE.to_string(),
            agent: AGENT.to_string(),
            org: None,
            team: None,
            level: GovernanceLevel::L1,
            acts_for: Vec::new(),
        };
        match Exchange::begin_as(gate, caller, Headers(&headers), false, now, 1).1 {
            Step::Forward(_) => "allow".to_string(),
            Step::Reply { reply, .. } => {
                let mut headers = reply.headers.into_iter();
                headers.find(|(name, _)| *name == REASON_HEADER).unwrap().1
            }
            other => panic!("{other:?}"),
        }
    })
    .to_vec()
}

const AS_BEFORE: [&str; 3] = ["allow", "network.allowlist", "data.sensitive_patterns[0]"];

/// The gate refuses `attack` for this reason and goes on as before.
#[track_caller]
fn refuses_at(gate: &mut Gate, attack: &[u8], now: Time, why: InstallError) {
    let before = (gate.bundle().revision(), gate.bundle().etag());
    assert_eq!(gate.install(attack, now), Err(why));
    assert_eq!((gate.bundle().revision(), gate.bundle().etag()), before);
    assert_eq!(decisions(gate, NOW), AS_BEFORE);
}

#[track_caller]
fn refuses(attack: &[u8], why: InstallError) {
    refuses_at(&mut running(), attack, NOW, why);
}

fn with(change: impl FnOnce(&mut Payload)) -> Payload {
    let mut payload = payload(11);
    change(&mut payload);
    payload
}

fn signed_by(payload: &Payload, signers: &[(&str, &SigningKey)]) -> Vec<u8> {
    json(&envelope(BUNDLE_TYPE, &json(payload), signers))
}

#[test]
fn the_successor_is_installed_and_named() {
    let mut gate = running();
    let next = with(|payload| {
        payload
            .documents
            .change(|documents| documents[0].network.hosts = None);
    });
    gate.install(&bundle(&next), NOW).unwrap();
    assert_eq!(gate.bundle().revision(), 11);
    let etag = gate.bundle().etag().unwrap();
    assert!(etag.starts_with("\"11-") && etag.ends_with('"'), "{etag}");
    assert_eq!(
        decisions(&mut gate, NOW),
        ["allow", "allow", "data.sensitive_patterns[0]"]
    );
}

#[test]
fn before_the_first_bundle_everything_is_denied() {
    let mut gate = Gate::new(config(Towards::Anywhere));
    assert_eq!(gate.bundle().etag(), None);
    assert_eq!(decisions(&mut gate, NOW), ["bundle.missing"; 3]);
    assert!(gate.install(b"garbage", NOW).is_err());
    assert_eq!(decisions(&mut gate, NOW), ["bundle.missing"; 3]);
}

#[test]
fn rollback() {
    refuses(&bundle(&payload(9)), InstallError::Rollback);
    refuses(&bundle(&payload(0)), InstallError::Rollback);
}

#[test]
fn freeze_by_an_old_bundle() {
    // Newer than what runs, but its time is over: the last second in which it counts is the one before `expires_at`.
    let stale = with(|payload| payload.expires_at = NOW.secs());
    refuses(&bundle(&stale), InstallError::Expired);
    let last_second = with(|payload| payload.expires_at = NOW.secs() + 1);
    assert_eq!(running().install(&bundle(&last_second), NOW), Ok(()));
}

#[test]
fn freeze_by_withholding() {
    let mut gate = running();
    let expiry = Time::from_secs(payload(10).expires_at);
    assert_eq!(
        decisions(&mut gate, expiry.plus_millis(-1)),
        AS_BEFORE,
        "the last millisecond"
    );
    assert_eq!(decisions(&mut gate, expiry), ["bundle.expired"; 3]);
    // The same bytes do not bring it back, a newer bundle does.
    assert_eq!(
        gate.install(&bundle(&payload(10)), expiry),
        Err(InstallError::Expired)
    );
    let newer = with(|payload| payload.expires_at += 86_400);
    gate.install(&bundle(&newer), expiry).unwrap();
    assert_eq!(decisions(&mut gate, expiry), AS_BEFORE);
}

#[test]
fn fast_forward() {
    refuses(
        &bundle(&payload(10 + MAX_REVISION_JUMP + 1)),
        InstallError::FastForward,
    );
    refuses(&bundle(&payload(u64::MAX)), InstallError::FastForward);
    let furthest = bundle(&payload(10 + MAX_REVISION_JUMP));
    assert_eq!(running().install(&furthest, NOW), Ok(()));
}

#[test]
fn mixed_same_revision_other_content() {
    let other = Payload {
        documents: vec![document("nothing is forbidden")].into(),
        ..payload(10)
    };
    refuses(&bundle(&other), InstallError::Mixed);
    // One byte of white space is other content, too.
    let mut spaced = json(&payload(10));
    spaced.push(b' ');
    let spaced = json(&envelope(BUNDLE_TYPE, &spaced, &[(KEY_ID, &house())]));
    refuses(&spaced, InstallError::Mixed);
}

#[test]
fn mixed_payload_and_signature_of_two_bundles() {
    let mut mixed = envelope(BUNDLE_TYPE, &json(&payload(11)), &[(KEY_ID, &house())]);
    mixed.payload = json(&payload(12));
    refuses(&json(&mixed), UNTRUSTED);
}

#[test]
fn the_same_bytes_again_are_fine() {
    let mut gate = running();
    let etag = gate.bundle().etag();
    assert_eq!(gate.install(&bundle(&payload(10)), NOW), Ok(()));
    // The same payload, signed by another trusted key as well.
    let again = signed_by(&payload(10), &[("next", &key(8)), (KEY_ID, &house())]);
    assert_eq!(gate.install(&again, NOW), Ok(()));
    assert_eq!(gate.bundle().etag(), etag);
    assert_eq!(decisions(&mut gate, NOW), AS_BEFORE);
}

#[test]
fn stripped_signature() {
    refuses(&signed_by(&payload(11), &[]), UNSIGNED);
    let no_field = serde_json::json!({
        "payload": to_base64(&json(&payload(11))), "payloadType": BUNDLE_TYPE,
    });
    refuses(no_field.to_string().as_bytes(), NOT_AN_ENVELOPE);
    let null = serde_json::json!({
        "payload": to_base64(&json(&payload(11))), "payloadType": BUNDLE_TYPE, "signatures": null,
    });
    refuses(null.to_string().as_bytes(), NOT_AN_ENVELOPE);
    refuses(&json(&payload(11)), NOT_AN_ENVELOPE);
    let mut empty = envelope(BUNDLE_TYPE, &json(&payload(11)), &[(KEY_ID, &house())]);
    empty.signatures[0].sig = Vec::new();
    refuses(&json(&empty), UNTRUSTED);
}

#[test]
fn more_signatures_than_anyone_needs() {
    let house = house();
    let nine = signed_by(&payload(11), &[(KEY_ID, &house); 9]);
    refuses(&nine, UNSIGNED);
}

#[test]
fn unknown_key() {
    refuses(
        &signed_by(&payload(11), &[("stranger", &key(9))]),
        UNTRUSTED,
    );
    // The right key under a name nobody gave it.
    refuses(&signed_by(&payload(11), &[("", &house())]), UNTRUSTED);
}

#[test]
fn another_key_under_a_trusted_name() {
    refuses(&signed_by(&payload(11), &[(KEY_ID, &key(9))]), UNTRUSTED);
}

#[test]
fn token_keys_do_not_sign_bundles() {
    let mut gate = gate(
        Towards::Anywhere,
        &Payload {
            token_keys: vec![public("tokens", &key(9))],
            ..payload(10)
        },
    );
    let attack = signed_by(&payload(11), &[("tokens", &key(9))]);
    refuses_at(&mut gate, &attack, NOW, UNTRUSTED);
}

#[test]
fn type_confusion() {
    let answer = Answer {
        workspace: WORKSPACE.to_string(),
        holder: "h-1".to_string(),
        epoch: 1,
        issued_ms: NOW.millis(),
        learning: false,
        grants: Vec::new(),
    };
    // Signed and labelled as something else.
    refuses(&sealed(LEASES_TYPE, &answer), WRONG_TYPE);
    refuses(&sealed(LEASES_TYPE, &payload(11)), WRONG_TYPE);
    refuses(&sealed(CHECKPOINT_TYPE, &payload(11)), WRONG_TYPE);
    // Signed as something else, labelled as a bundle.
    for other in [LEASES_TYPE, CHECKPOINT_TYPE, "", "application/json"] {
        let mut relabelled = envelope(other, &json(&payload(11)), &[(KEY_ID, &house())]);
        relabelled.payload_type = BUNDLE_TYPE.to_string();
        refuses(&json(&relabelled), UNTRUSTED);
    }
    // Signed as a bundle, and none.
    refuses(&sealed(BUNDLE_TYPE, &answer), InstallError::Malformed);
    refuses(&sealed(BUNDLE_TYPE, &"text"), InstallError::Malformed);
}

#[test]
fn type_and_payload_do_not_bleed_into_each_other() {
    // The example of the DSSE protocol.
    assert_eq!(
        pre_authentication_encoding("http://example.com/HelloWorld", b"hello world"),
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    );
    // Moved by one byte from the payload into the type, the same text is signed as something else.
    assert_ne!(
        pre_authentication_encoding("a ", b"b"),
        pre_authentication_encoding("a", b" b")
    );
}

#[test]
fn foreign_workspace() {
    let foreign = with(|payload| payload.workspace = OTHER_WORKSPACE.to_string());
    refuses(&bundle(&foreign), InstallError::ForeignWorkspace);
}

#[test]
fn foreign_channel() {
    let foreign = with(|payload| payload.channel = "canary".to_string());
    refuses(&bundle(&foreign), InstallError::ForeignChannel);
}

#[test]
fn another_format() {
    for format in [0, FORMAT - 1, FORMAT + 1] {
        let other = with(|payload| payload.format = format);
        refuses(&bundle(&other), InstallError::Format);
        // With whatever else is in it.
        let other = serde_json::json!({"format": format, "documents": {"first": []}});
        refuses(&sealed(BUNDLE_TYPE, &other), InstallError::Format);
    }
}

#[test]
fn issued_in_the_future() {
    let ahead = |secs| bundle(&with(|payload| payload.issued_at = NOW.secs() + secs));
    refuses(&ahead(CLOCK_SKEW_SECS + 1), InstallError::FromTheFuture);
    refuses(&ahead(i64::MAX - NOW.secs()), InstallError::FromTheFuture);
    assert_eq!(running().install(&ahead(CLOCK_SKEW_SECS), NOW), Ok(()));
    // A clock that is behind by as much as is allowed, and one second more.
    let fresh = bundle(&with(|payload| payload.issued_at = NOW.secs()));
    let slow = NOW.plus_secs(-CLOCK_SKEW_SECS);
    assert_eq!(running().install(&fresh, slow), Ok(()));
    refuses_at(
        &mut running(),
        &fresh,
        slow.plus_millis(-1),
        InstallError::FromTheFuture,
    );
}

/// Another pattern of one kind or the other, and what it is compiled to.
fn searching(redact: bool, automata: impl FnOnce(&mut Vec<Compiled>)) -> Vec<u8> {
    let mut payload = issuer::whole(&with(|payload| {
        payload.documents.change(|documents| match redact {
            false => documents[0].data.patterns.push("other".to_string()),
            true => documents[0].data.redactions.push(Redaction {
                rule: "data.sensitive_patterns[1]".to_string(),
                patterns: vec!["other".to_string()],
            }),
        });
    }));
    automata(&mut payload.automata);
    sealed(BUNDLE_TYPE, &payload)
}

#[test]
fn a_pattern_that_is_not_compiled() {
    for redact in [false, true] {
        let good = searching(redact, |_| {});
        assert_eq!(running().install(&good, NOW), Ok(()));
        let none = searching(redact, |automata| automata.clear());
        refuses(&none, InstallError::Pattern);
        let another = searching(redact, |automata| automata[1].pattern.push('s'));
        refuses(&another, InstallError::Pattern);
        let cut = searching(redact, |automata| {
            automata[1].forward.0.pop();
        });
        refuses(&cut, InstallError::Pattern);
    }
}

#[test]
fn a_redaction_that_is_compiled_for_one_direction() {
    let one_way = |redact| searching(redact, |automata| automata[1].backward = None);
    assert_eq!(running().install(&one_way(false), NOW), Ok(()));
    refuses(&one_way(true), InstallError::Pattern);
    let cut = searching(true, |automata| {
        automata[1].backward.as_mut().unwrap().0.pop();
    });
    refuses(&cut, InstallError::Pattern);
}

/// They are looked up by bisection.
#[test]
fn automata_out_of_order_are_found() {
    let good = searching(false, |automata| automata.reverse());
    assert_eq!(running().install(&good, NOW), Ok(()));
}

#[test]
fn truncated_at_every_byte() {
    let whole = bundle(&payload(11));
    let mut gate = running();
    for end in 0..whole.len() {
        assert_eq!(
            gate.install(&whole[..end], NOW),
            Err(NOT_AN_ENVELOPE),
            "{end} bytes"
        );
    }
    assert_eq!(gate.bundle().revision(), 10);
    assert_eq!(decisions(&mut gate, NOW), AS_BEFORE);
    assert_eq!(gate.install(&whole, NOW), Ok(()));
}

/// The envelope with each of its bits flipped in turn.
fn flips(whole: &[u8]) -> impl Iterator<Item = (usize, Vec<u8>)> + '_ {
    (0..whole.len() * 8).map(|bit| {
        let mut flipped = whole.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        (bit / 8, flipped)
    })
}

/// With one signature every byte of an envelope matters: its form is fixed (no white space to flip, base64 with one spelling, unknown
/// fields refused), the payload and its type are signed, and the signature has one form.
#[test]
fn no_flipped_bit_is_accepted() {
    let mut gate = running();
    let mut tried = 0;
    let whole = bundle(&payload(11));
    for (at, flipped) in flips(&whole) {
        let installed = gate.install(&flipped, NOW);
        assert!(installed.is_err(), "a bit of byte {at}");
        tried += 1;
    }
    assert_eq!(tried, whole.len() * 8);
    assert_eq!(gate.bundle().revision(), 10);
    assert_eq!(decisions(&mut gate, NOW), AS_BEFORE);
}

/// With two signatures of which one is needed, the other may be damaged: what is installed is the very payload that was signed. So a
/// flipped bit passes only within the key name or the base64 of one of the signatures.
#[test]
fn a_flipped_bit_is_accepted_only_in_the_spare_signature() {
    let next = payload(11);
    let whole = signed_by(&next, &[("first", &key(1)), (KEY_ID, &house())]);
    let text = String::from_utf8(whole.clone()).unwrap();
    let spare = text.find("\"first\"").unwrap()..text.find(KEY_ID).unwrap();
    let etag = {
        let mut gate = running();
        gate.install(&whole, NOW).unwrap();
        gate.bundle().etag()
    };
    let mut accepted = 0;
    for (at, flipped) in flips(&whole) {
        let mut gate = running();
        if gate.install(&flipped, NOW).is_err() {
            continue;
        }
        accepted += 1;
        assert!(spare.contains(&at), "a bit of byte {at}");
        assert_eq!(gate.bundle().etag(), etag, "the same payload to the byte");
    }
    // At least the key name (5 letters; of each bit of a letter most give another printable ASCII character).
    assert!(accepted > 20, "{accepted} bits");
}

#[test]
fn random_damage_is_never_accepted_as_another_bundle() {
    let whole = bundle(&payload(11));
    let etag = {
        let mut gate = running();
        gate.install(&whole, NOW).unwrap();
        gate.bundle().etag()
    };
    let mut random = Random::new(1);
    let tokens: [&[u8]; 8] = [
        b" ",
        b"\n",
        b",",
        b"\"signatures\":[]",
        b"\\u0061",
        b"=",
        b"{",
        b"\xff",
    ];
    let mut gate = running();
    for _ in 0..5_000 {
        let mut damaged = whole.clone();
        random.mutate(&mut damaged, &tokens);
        if gate.install(&damaged, NOW).is_ok() {
            // White space between tokens, or nothing at all was changed.
            assert_eq!(gate.bundle().etag(), etag, "{}", damaged.escape_ascii());
            gate = running();
        }
        assert_eq!(gate.bundle().revision(), 10);
    }
}

#[test]
fn duplicate_keys_in_the_envelope() {
    let good = String::from_utf8(bundle(&payload(11))).unwrap();
    let evil = to_base64(&json(&payload(12)));
    for twice in [
        good.replacen('{', &format!("{{\"payload\":\"{evil}\","), 1),
        good.replacen('{', "{\"payloadType\":\"x\",", 1),
        good.replacen('{', "{\"signatures\":[],", 1),
        good.replacen("{\"keyid\"", "{\"keyid\":\"x\",\"keyid\"", 1),
        // The same key, spelt with an escape.
        good.replacen('{', &format!("{{\"\\u0070ayload\":\"{evil}\","), 1),
    ] {
        refuses(twice.as_bytes(), NOT_AN_ENVELOPE);
    }
}

#[test]
fn duplicate_keys_in_the_payload() {
    let good = String::from_utf8(json(&payload(11))).unwrap();
    for twice in [
        good.replacen('{', "{\"revision\":12,", 1),
        good.replacen("\"name\":", "\"network\":{},\"name\":", 1),
    ] {
        let signed = json(&envelope(
            BUNDLE_TYPE,
            twice.as_bytes(),
            &[(KEY_ID, &house())],
        ));
        refuses(&signed, InstallError::Malformed);
    }
}

#[test]
fn fields_too_many() {
    let good = String::from_utf8(bundle(&payload(11))).unwrap();
    for more in [
        good.replacen('{', "{\"alg\":\"none\",", 1),
        good.replacen("{\"keyid\"", "{\"alg\":\"none\",\"keyid\"", 1),
        format!("{good}{good}"),
        format!("{good} x"),
    ] {
        refuses(more.as_bytes(), NOT_AN_ENVELOPE);
    }
    let good = String::from_utf8(json(&payload(11))).unwrap();
    for more in [
        good.replacen('{', "{\"more\":1,", 1),
        good.replacen("\"name\":", "\"allow_everything\":true,\"name\":", 1),
        format!("{good}{good}"),
    ] {
        let signed = json(&envelope(
            BUNDLE_TYPE,
            more.as_bytes(),
            &[(KEY_ID, &house())],
        ));
        refuses(&signed, InstallError::Malformed);
    }
}

#[test]
fn oversized() {
    let mut padded = bundle(&payload(11));
    padded.resize(MAX_ENVELOPE_BYTES + 1, b' ');
    refuses(&padded, InstallError::TooLarge);
    padded.pop();
    assert_eq!(running().install(&padded, NOW), Ok(()));
}

#[test]
fn nested_too_deep() {
    refuses("[".repeat(100_000).as_bytes(), NOT_AN_ENVELOPE);
    let deep = format!("{{\"payload\":{}", "{\"a\":".repeat(100_000));
    refuses(deep.as_bytes(), NOT_AN_ENVELOPE);
}

/// A key is replaced in three steps: bundles are signed by old and new, gates get the new key, bundles are signed by the new one alone.
#[test]
fn keys_are_rotated() {
    let (old, new) = (key(1), key(2));
    let trusting = |keys: &[(&str, &SigningKey)]| {
        let mut config = config(Towards::Anywhere);
        config.trust = keys.iter().map(|(name, key)| public(name, key)).collect();
        Gate::new(config)
    };
    let both = signed_by(&payload(10), &[("new", &new), ("old", &old)]);
    let only_new = signed_by(&payload(11), &[("new", &new)]);

    let mut before = trusting(&[("old", &old)]);
    assert_eq!(before.install(&both, NOW), Ok(()));
    assert_eq!(before.install(&only_new, NOW), Err(UNTRUSTED));
    assert_eq!(before.bundle().revision(), 10);

    let mut during = trusting(&[("old", &old), ("new", &new)]);
    assert_eq!(during.install(&both, NOW), Ok(()));
    assert_eq!(during.install(&only_new, NOW), Ok(()));

    let mut after = trusting(&[("new", &new)]);
    assert_eq!(after.install(&both, NOW), Ok(()));
    assert_eq!(after.install(&only_new, NOW), Ok(()));

    let mut stranger = trusting(&[("other", &key(3))]);
    assert_eq!(stranger.install(&both, NOW), Err(UNTRUSTED));

    // The one that counts may be the last of as many as are looked at.
    let strangers: Vec<SigningKey> = (10..17).map(key).collect();
    let mut signers: Vec<(&str, &SigningKey)> =
        strangers.iter().map(|key| ("stranger", key)).collect();
    signers.push(("new", &new));
    assert_eq!(
        after.install(&signed_by(&payload(12), &signers), NOW),
        Ok(())
    );
}

#[test]
fn a_trusted_key_that_is_no_key_verifies_nothing() {
    let good = bundle(&payload(11));
    for bytes in [
        vec![],
        vec![0; 32],
        vec![0xff; 32],
        vec![7; 31],
        vec![7; 33],
    ] {
        let mut config = config(Towards::Anywhere);
        config.trust[0].public_key = bytes;
        assert_eq!(Gate::new(config).install(&good, NOW), Err(UNTRUSTED));
    }
}

/// Revocations are looked up by bisection; a list out of order must not hide one.
#[test]
fn an_unsorted_list_still_revokes() {
    let id = |last: char| AGENT.replace('a', &last.to_string());
    let gate = gate(
        Towards::Anywhere,
        &Payload {
            revoked_agents: vec![id('c'), id('b'), id('a')],
            ..payload(10)
        },
    );
    let revoked = &gate.bundle().payload().unwrap().revoked_agents;
    assert!(revoked.is_sorted() && revoked.len() == 3);
}

#[test]
fn every_refusal_has_a_name_for_metrics_and_words_for_people() {
    let all = [
        InstallError::TooLarge,
        NOT_AN_ENVELOPE,
        WRONG_TYPE,
        UNSIGNED,
        UNTRUSTED,
        InstallError::Malformed,
        InstallError::Format,
        InstallError::ForeignWorkspace,
        InstallError::ForeignChannel,
        InstallError::Rollback,
        InstallError::Mixed,
        InstallError::FastForward,
        InstallError::Expired,
        InstallError::FromTheFuture,
        InstallError::Pattern,
    ];
    let mut names: Vec<&str> = all.iter().map(|error| error.name()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all.len());
    assert!(all.iter().all(|error| !error.to_string().is_empty()));
}

/// What a gate trusts is what its settings say, and an envelope as this engine writes it is one it reads.
#[test]
fn an_envelope_reads_as_it_was_written() {
    let written = bundle(&payload(11));
    let read: Envelope = serde_json::from_slice(&written).unwrap();
    assert_eq!(json(&read), written);
    assert_eq!(read.payload, json(&payload(11)));
}
