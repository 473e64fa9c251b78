//! Who is calling: agent tokens.
//!
//! A token is a JWT (RFC 7519, compact JWS of RFC 7515) signed with Ed25519 (RFC 8037 `EdDSA`, RFC 9864 `Ed25519`), good for an hour.
//! The key decides the algorithm: a header that names another one, or brings `jku`, `jwk`, `x5u`, `crit`, `b64` or anything else
//! that a verifier could be talked into using, is refused. Verifying costs about 60 µs inside a V8 worker, so a token is verified once
//! and remembered until it expires.

use crate::{
    bytes,
    envelope::PublicKey,
    facts::Headers,
    json,
    sorted::{Map, sort_by_key},
    time::Time,
};
use alloc::{
    boxed::Box,
    rc::Rc,
    string::{String, ToString},
    vec::Vec,
};
use core::fmt;
use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;

/// The header in which an agent may bring its token when the API key's place is taken.
pub const TOKEN_HEADER: &str = "x-tollgate-token";

/// Longest life of a token: one hour.
pub const MAX_LIFE_SECS: i64 = 3_600;
/// Clocks may differ this much at `iat`. `exp` has no leeway: the issuer's hour is long enough.
const SKEW_SECS: i64 = 60;
/// Most agents of a token: the principal, and those that act for it.
pub const MAX_CHAIN: usize = 8;
/// Longest token looked at. Ours are about 600 bytes, and 200 more for each agent that acts for another.
const MAX_TOKEN_BYTES: usize = 4_096;
/// Verified tokens kept; the oldest half goes when full. 4,096 entries of about 900 bytes are 3.7 MB per worker.
const MAX_CACHED: usize = 4_096;
/// The `typ` of an agent token (RFC 8725 §3.11: explicit typing, so that no other JWT of the same issuer passes for one).
pub const TOKEN_TYPE: &str = "agent+jwt";
/// The `iss` of an agent token.
pub const ISSUER: &str = "tollgate";

/// The header of an agent token; a field more and it is refused.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenHeader {
    /// `EdDSA` or `Ed25519`.
    pub alg: String,
    /// [`TOKEN_TYPE`].
    pub typ: String,
    /// Names one of the bundle's token keys.
    pub kid: String,
}

/// The claims of an agent token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claims {
    /// [`ISSUER`].
    pub iss: String,
    /// The workspace, `ws-<uuid>`.
    pub aud: String,
    /// The agent, a UUID.
    pub sub: String,
    /// Organisation, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub org: Option<String>,
    /// Team, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team: Option<String>,
    /// Governance level.
    pub level: GovernanceLevel,
    /// Issued, seconds since the Unix epoch.
    pub iat: i64,
    /// Expires, seconds since the Unix epoch.
    pub exp: i64,
    /// Unique per token.
    pub jti: String,
    /// Who acts for `sub`, if somebody does (RFC 8693 §4.1). What stands above is then the principal's; the caller is here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub act: Option<Box<Actor>>,
}

/// An agent that acts for another one: the outermost is the caller, those within acted before it and for it (RFC 8693 §4.1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Actor {
    /// The agent, a UUID.
    pub sub: String,
    /// Organisation, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub org: Option<String>,
    /// Team, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team: Option<String>,
    /// Governance level.
    pub level: GovernanceLevel,
    /// For whom it was called upon, if not by the principal itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub act: Option<Box<Actor>>,
}

/// How closely an agent is watched, L0 (least) to L3.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum GovernanceLevel {
    /// L0.
    #[default]
    L0,
    /// L1.
    L1,
    /// L2.
    L2,
    /// L3.
    L3,
}

impl GovernanceLevel {
    /// Reads `L0` to `L3`.
    pub fn parse(text: &str) -> Option<GovernanceLevel> {
        match text {
            "L0" => Some(GovernanceLevel::L0),
            "L1" => Some(GovernanceLevel::L1),
            "L2" => Some(GovernanceLevel::L2),
            "L3" => Some(GovernanceLevel::L3),
            _ => None,
        }
    }
}

/// A verified caller.
///
/// One that acts for others is decided on as each of them as well, and what it spends counts for each: it can do what all of them may do, and
/// none of them gains a budget by sending it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The workspace, `ws-<uuid>`.
    pub workspace: String,
    /// The agent, a UUID.
    pub agent: String,
    /// Organisation, if any.
    pub org: Option<String>,
    /// Team, if any.
    pub team: Option<String>,
    /// Governance level.
    pub level: GovernanceLevel,
    /// For whom it acts: first the one that began it, last the one that sent this agent. These act for nobody.
    pub acts_for: Vec<Caller>,
}

impl Caller {
    /// The caller, and all for whom it acts.
    pub fn all(&self) -> impl Iterator<Item = &Caller> {
        core::iter::once(self).chain(&self.acts_for)
    }
}

/// Why a call has no caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum IdentityError {
    /// No token anywhere.
    Missing,
    /// A header that may carry a token comes twice, or two of them carry one.
    Ambiguous,
    /// Not a token: not three base64url parts of a known form, or not UTF-8.
    Malformed,
    /// Its header asks for an algorithm or a key lookup that is not ours.
    Algorithm,
    /// Signed by no key of the bundle.
    Untrusted,
    /// Its hour is over.
    Expired,
    /// Issued in the future, or for longer than an hour.
    Lifetime,
    /// Of another workspace or issuer.
    Foreign,
    /// The agent has been revoked.
    Revoked,
}

impl IdentityError {
    /// The rule a reason names.
    pub const fn rule(self) -> &'static str {
        match self {
            IdentityError::Missing => "identity.missing",
            IdentityError::Ambiguous => "identity.ambiguous",
            IdentityError::Malformed => "identity.malformed",
            IdentityError::Algorithm => "identity.algorithm",
            IdentityError::Untrusted => "identity.untrusted",
            IdentityError::Expired => "identity.expired",
            IdentityError::Lifetime => "identity.lifetime",
            IdentityError::Foreign => "identity.foreign",
            IdentityError::Revoked => "identity.revoked",
        }
    }

    /// What to tell the caller.
    pub const fn message(self) -> &'static str {
        match self {
            IdentityError::Missing => {
                "no agent token; send it as the API key or in x-tollgate-token"
            }
            IdentityError::Ambiguous => "more than one credential; send exactly one agent token",
            IdentityError::Malformed => "the credential is not an agent token",
            IdentityError::Algorithm => "the agent token's header is not one this workspace issues",
            IdentityError::Untrusted => "the agent token is not signed by this workspace",
            IdentityError::Expired => "the agent token has expired; request a new one",
            IdentityError::Lifetime => "the agent token's lifetime is not acceptable",
            IdentityError::Foreign => "the agent token is for another workspace",
            IdentityError::Revoked => "the agent has been revoked",
        }
    }
}

/// Finds the token among the headers: `x-tollgate-token`, else the API key an SDK sends (`authorization: Bearer`, `x-api-key`).
/// Two candidates, or one header twice, are ambiguous: whoever reads the call next might take the other one.
pub fn find_token<'a>(headers: Headers<'_, 'a>) -> Result<&'a [u8], IdentityError> {
    let only = |name| headers.only(name).map_err(|_| IdentityError::Ambiguous);
    let own = only(TOKEN_HEADER)?;
    let authorization = only("authorization")?;
    let api_key = only("x-api-key")?;
    let token = match (own, authorization, api_key) {
        (Some(token), _, _) => token,
        (None, Some(_), Some(_)) => return Err(IdentityError::Ambiguous),
        (None, Some(value), None) => {
            let (scheme, token) = value.split_at_checked(7).ok_or(IdentityError::Malformed)?;
            if !scheme.eq_ignore_ascii_case(b"Bearer ") {
                return Err(IdentityError::Malformed);
            }
            token
        }
        (None, None, Some(value)) => value,
        (None, None, None) => return Err(IdentityError::Missing),
    };
    if token.contains(&b',') {
        // Two lines in one: whoever passed the call on may join them (RFC 9110 §5.3), and no token has a comma.
        return Err(IdentityError::Ambiguous);
    }
    Ok(token)
}

/// Verifies `token` from scratch.
pub fn verify(
    token: &[u8],
    keys: &[PublicKey],
    workspace: &str,
    now: Time,
) -> Result<(Caller, Time), IdentityError> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err(IdentityError::Malformed);
    }
    let token = core::str::from_utf8(token).map_err(|_| IdentityError::Malformed)?;
    let mut parts = token.split('.');
    let (Some(header), Some(claims), Some(signature), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(IdentityError::Malformed);
    };
    let signed = token
        .get(..header.len() + 1 + claims.len())
        .ok_or(IdentityError::Malformed)?;
    let decode = |part| bytes::from_base64url(part).ok_or(IdentityError::Malformed);
    let header: TokenHeader = json::read(&decode(header)?).map_err(|_| IdentityError::Algorithm)?;
    if !matches!(header.alg.as_str(), "EdDSA" | "Ed25519") || header.typ != TOKEN_TYPE {
        return Err(IdentityError::Algorithm);
    }
    let signature = decode(signature)?;
    if !keys
        .iter()
        .any(|key| key.key_id == header.kid && key.verifies(signed.as_bytes(), &signature))
    {
        return Err(IdentityError::Untrusted);
    }
    let claims: Claims = json::read(&decode(claims)?).map_err(|_| IdentityError::Malformed)?;
    if claims.iss != ISSUER || claims.aud != workspace {
        return Err(IdentityError::Foreign);
    }
    if now.secs() >= claims.exp {
        return Err(IdentityError::Expired);
    }
    if claims.iat > now.secs().saturating_add(SKEW_SECS)
        || claims.exp.saturating_sub(claims.iat) > MAX_LIFE_SECS
        || claims.exp <= claims.iat
    {
        return Err(IdentityError::Lifetime);
    }
    let expires = Time::from_secs(claims.exp);
    Ok((caller(claims)?, expires))
}

impl Claims {
    /// What a token of `caller` says: the inverse of verifying it. Times are seconds since the Unix epoch.
    pub fn of(caller: &Caller, issued_at: i64, expires_at: i64, id: String) -> Claims {
        let principal = caller.acts_for.first().unwrap_or(caller);
        // Who was sent by the principal is innermost, the caller outermost.
        let sent = caller.acts_for.iter().skip(1).chain([caller]);
        let act = sent
            .filter(|_| !caller.acts_for.is_empty())
            .fold(None, |act, one| {
                Some(Box::new(Actor {
                    sub: one.agent.clone(),
                    org: one.org.clone(),
                    team: one.team.clone(),
                    level: one.level,
                    act,
                }))
            });
        Claims {
            iss: ISSUER.to_string(),
            aud: caller.workspace.clone(),
            sub: principal.agent.clone(),
            org: principal.org.clone(),
            team: principal.team.clone(),
            level: principal.level,
            iat: issued_at,
            exp: expires_at,
            jti: id,
            act,
        }
    }
}

/// The caller that claims name.
fn caller(claims: Claims) -> Result<Caller, IdentityError> {
    let one = |agent, org, team, level| Caller {
        workspace: claims.aud.clone(),
        agent,
        org,
        team,
        level,
        acts_for: Vec::new(),
    };
    // The principal, then its actors from the last to the first.
    let mut chain = Vec::from([one(claims.sub, claims.org, claims.team, claims.level)]);
    let mut actor = claims.act;
    while let Some(this) = actor {
        if chain.len() == MAX_CHAIN {
            return Err(IdentityError::Malformed);
        }
        chain.push(one(this.sub, this.org, this.team, this.level));
        actor = this.act;
    }
    let mut actors = chain.split_off(1).into_iter();
    let Some(caller) = actors.next() else {
        return chain.pop().ok_or(IdentityError::Malformed);
    };
    let mut acts_for = chain;
    acts_for.extend(actors.rev());
    Ok(Caller { acts_for, ..caller })
}

/// Tokens verified before. Emptied when a new bundle is installed, since its keys or revocations may differ.
///
/// They are found by a hash under a secret key (SipHash-1-3, Aumasson and Bernstein 2012), a tenth of a microsecond where a digest takes one. Only a
/// token of the same 64 bits is then compared with the one that is here, so how long a look-up takes tells who lacks the key nothing about it.
#[derive(Debug)]
pub struct TokenCache {
    hasher: SipHasher13,
    known: Map<u64, Known>,
}

struct Known {
    token: Vec<u8>,
    caller: Rc<Caller>,
    expires: Time,
}

impl fmt::Debug for Known {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Known")
            .field("caller", &self.caller)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

impl TokenCache {
    /// An empty one. Callers must not know `key`.
    pub fn new(key: &[u8; 16]) -> TokenCache {
        TokenCache {
            hasher: SipHasher13::new_with_key(key),
            known: Map::default(),
        }
    }

    /// The caller of `token`, verified now or earlier.
    pub fn verify(
        &mut self,
        token: &[u8],
        keys: &[PublicKey],
        workspace: &str,
        now: Time,
    ) -> Result<Rc<Caller>, IdentityError> {
        let place = self.hasher.hash(token);
        if let Some(known) = self.known.get(&place)
            && known.token == token
        {
            return if now < known.expires {
                Ok(known.caller.clone())
            } else {
                Err(IdentityError::Expired)
            };
        }
        let (caller, expires) = verify(token, keys, workspace, now)?;
        if self.known.len() >= MAX_CACHED {
            self.make_room(now);
        }
        let caller = Rc::new(caller);
        let known = Known {
            token: token.to_vec(),
            caller: caller.clone(),
            expires,
        };
        self.known.insert(place, known);
        Ok(caller)
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.known.clear();
    }

    /// Drops what has expired, and the half that expires first if that frees nothing.
    fn make_room(&mut self, now: Time) {
        self.known.retain(|_, known| now < known.expires);
        if self.known.len() >= MAX_CACHED {
            let mut times: Vec<Time> = self.known.values().map(|known| known.expires).collect();
            sort_by_key(&mut times, |time| *time);
            if let Some(median) = times.get(MAX_CACHED / 2).copied() {
                self.known.retain(|_, known| known.expires > median);
            }
        }
        if self.known.len() >= MAX_CACHED {
            self.known.clear();
        }
    }
}

/// The unsigned part of a token: what an issuer signs. The signature, base64url, follows after a dot.
pub fn signing_input(header: &TokenHeader, claims: &Claims) -> Option<String> {
    let encode = |json: Vec<u8>| bytes::to_base64url(&json);
    let header = encode(serde_json::to_vec(header).ok()?);
    let claims = encode(serde_json::to_vec(claims).ok()?);
    Some([header, claims].join(".").to_string())
}
