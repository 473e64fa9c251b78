//! Who may come in: keys, and the extractors that are the only way to a [`WorkspaceId`].
//!
//! A key is `<kind>_<id>.<secret>`, the secret 256 random bits. Stored is an HMAC of the whole key under a pepper that is not in the
//! database: a copy of the database opens nothing. Keys are random, so a slow hash would buy nothing.
//!
//! A key used on another workspace's path finds nothing there (404, as for a workspace that does not exist); the right workspace but
//! the wrong kind of key is 403; no key, an unknown or a revoked one is 401. What an agent asks for it asks for with its token.

use crate::{
    ControlPlane, agents,
    files::{self, DataDir},
    problem::{Kind, Problem},
    workspaces::WorkspaceId,
};
use axum::{
    RequestPartsExt as _,
    extract::{FromRequestParts, RawPathParams},
    http::{header, request::Parts},
};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use std::io;
use tollgate_engine::{
    bytes::{to_base64url, to_hex},
    identity::{Caller, IdentityError},
    time::Time,
};

/// `last_used` is written at most this often, so that reading does not become writing; later where the writer has more to do.
const LAST_USED_STEP_MS: i64 = 60_000;

/// Longest `authorization` header looked at; ours are below 80 bytes.
const MAX_KEY_BYTES: usize = 256;

/// What a key opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyKind {
    /// A person or their tool; in text `tgo_…`.
    Operator,
    /// A gate; in text `tge_…`.
    Gate,
}

impl KeyKind {
    const fn prefix(self) -> &'static str {
        match self {
            KeyKind::Operator => "tgo_",
            KeyKind::Gate => "tge_",
        }
    }

    /// The id in `key`, if it is of this kind.
    fn id_of(self, key: &str) -> Option<&str> {
        let (id, _) = key.strip_prefix(self.prefix())?.split_once('.')?;
        Some(id)
    }

    const fn lookup(self) -> &'static str {
        match self {
            KeyKind::Operator => {
                "SELECT workspace, hash, NULL AS seal_root, last_used_ms FROM operators WHERE id = $1 AND revoked_ms IS NULL"
            }
            KeyKind::Gate => {
                "SELECT workspace, hash, seal_root, last_used_ms FROM gates WHERE id = $1 AND revoked_ms IS NULL"
            }
        }
    }

    const fn touch(self) -> &'static str {
        match self {
            KeyKind::Operator => "UPDATE operators SET last_used_ms = $1 WHERE id = $2",
            KeyKind::Gate => "UPDATE gates SET last_used_ms = $1 WHERE id = $2",
        }
    }
}

#[derive(sqlx::FromRow)]
struct StoredKey {
    workspace: Option<String>,
    hash: Vec<u8>,
    seal_root: Option<Vec<u8>>,
    last_used_ms: Option<i64>,
}

/// A key that was just made; its text is shown once.
pub(crate) struct NewKey {
    /// Its public part.
    pub(crate) id: String,
    /// The whole key.
    pub(crate) text: String,
    /// What is stored.
    pub(crate) hash: [u8; 32],
}

/// Makes and checks keys.
pub(crate) struct Pepper([u8; 32]);

impl std::fmt::Debug for Pepper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pepper(…)")
    }
}

impl Pepper {
    pub(crate) fn open(data: &DataDir) -> io::Result<Pepper> {
        data.secret("pepper.key").map(Pepper)
    }

    pub(crate) fn new_key(&self, kind: KeyKind) -> io::Result<NewKey> {
        let id = to_hex(&files::random::<8>()?);
        let secret = to_base64url(&files::random::<32>()?);
        let text = format!("{}{id}.{secret}", kind.prefix());
        let hash = self.mac(&text).finalize().into_bytes().into();
        Ok(NewKey { id, text, hash })
    }

    fn matches(&self, key: &str, hash: &[u8]) -> bool {
        self.mac(key).verify_slice(hash).is_ok()
    }

    fn mac(&self, key: &str) -> Hmac<Sha256> {
        // HMAC takes keys of any length (RFC 2104 §3); the error type has no value that could occur here.
        let mut mac = match Hmac::<Sha256>::new_from_slice(&self.0) {
            Ok(mac) => mac,
            Err(_) => Hmac::<Sha256>::new(&Default::default()),
        };
        mac.update(key.as_bytes());
        mac
    }
}

/// Whose key it is.
enum Principal {
    Root {
        key: String,
    },
    Operator {
        workspace: WorkspaceId,
        key: String,
    },
    Gate {
        workspace: WorkspaceId,
        gate: String,
        seal_root: Vec<u8>,
    },
}

/// The bearer of the root key: makes workspaces and the first keys in them, and nothing else.
pub(crate) struct Root;

/// Whoever may hand out operator keys of the workspace in the path: one of its operators, or root.
pub(crate) struct KeyKeeper {
    pub(crate) workspace: WorkspaceId,
    pub(crate) key: String,
}

/// Any operator of any workspace, or root: for what is no workspace's.
pub(crate) struct AnyOperator;

/// Root (`None`) or an operator, with their workspace.
pub(crate) struct Visible(pub(crate) Option<WorkspaceId>);

/// An operator of the workspace in the path.
pub(crate) struct Operator {
    pub(crate) workspace: WorkspaceId,
    pub(crate) key: String,
}

/// A gate of the workspace in the path.
pub(crate) struct Gate {
    pub(crate) workspace: WorkspaceId,
    pub(crate) gate: String,
    pub(crate) seal_root: [u8; 32],
}

impl Gate {
    /// For requests that wait: 401 if the enrolment was revoked meanwhile.
    pub(crate) async fn still_enrolled(&self, state: &ControlPlane) -> Result<(), Problem> {
        let enrolled: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM gates WHERE workspace = $1 AND id = $2 AND revoked_ms IS NULL)",
        )
        .bind(self.workspace.as_str())
        .bind(&self.gate)
        .fetch_one(state.store().read())
        .await?;
        enrolled.then_some(()).ok_or_else(unauthenticated)
    }
}

/// An agent of the workspace in the path.
pub(crate) struct Agent {
    pub(crate) workspace: WorkspaceId,
    pub(crate) caller: Caller,
    /// When its token expires.
    pub(crate) expires: Time,
}

fn unauthenticated() -> Problem {
    // One answer for missing, unknown and revoked: the difference would tell a guesser that an id exists.
    Problem::new(
        Kind::Unauthenticated,
        "send a key that is in service as `authorization: Bearer …`",
    )
}

fn forbidden(needed: &'static str) -> Problem {
    Problem::new(Kind::Forbidden, needed)
}

fn not_found() -> Problem {
    Problem::new(Kind::NotFound, "this key's workspace is another one")
}

/// What the one `authorization` header bears.
fn bearer(parts: &Parts) -> Result<&str, Problem> {
    let mut values = parts.headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(unauthenticated());
    };
    value
        .to_str()
        .ok()
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, key)| key)
        .ok_or_else(unauthenticated)
}

async fn authenticate(parts: &Parts, state: &ControlPlane) -> Result<Principal, Problem> {
    let key = bearer(parts)?;
    if key.len() > MAX_KEY_BYTES {
        return Err(unauthenticated());
    }
    let (kind, id) = [KeyKind::Operator, KeyKind::Gate]
        .into_iter()
        .find_map(|kind| Some((kind, kind.id_of(key)?)))
        .ok_or_else(unauthenticated)?;
    let stored: StoredKey = sqlx::query_as(kind.lookup())
        .bind(id)
        .fetch_optional(state.store().read())
        .await?
        .ok_or_else(unauthenticated)?;
    if !state.pepper().matches(key, &stored.hash) {
        return Err(unauthenticated());
    }
    let now_ms = state.now().millis();
    // Either way: our clock may have been ahead.
    let step = |last: i64| now_ms.saturating_sub(last).saturating_abs() >= LAST_USED_STEP_MS;
    if stored.last_used_ms.is_none_or(step) {
        note_used(state, kind, id.to_owned(), now_ms);
    }
    let id = id.to_owned();
    match (
        kind,
        stored.workspace.map(WorkspaceId::stored),
        stored.seal_root,
    ) {
        (KeyKind::Operator, None, _) => Ok(Principal::Root { key: id }),
        (KeyKind::Operator, Some(workspace), _) => Ok(Principal::Operator { workspace, key: id }),
        (KeyKind::Gate, Some(workspace), Some(seal_root)) => Ok(Principal::Gate {
            workspace,
            gate: id,
            seal_root,
        }),
        (KeyKind::Gate, _, _) => Err(Problem::internal("enrolment", &"the stored row is damaged")),
    }
}

/// Notes that a key was used, beside the request: whoever only reads need not hear that the disk is full, nor wait for who writes. While the
/// writer is taken, by another such note as well, nothing is noted; the key's next request comes by here again.
fn note_used(state: &ControlPlane, kind: KeyKind, id: String, now_ms: i64) {
    let Some(mut writer) = state.store().free_writer() else {
        return;
    };
    tokio::spawn(async move {
        let noted = sqlx::query(kind.touch())
            .bind(now_ms)
            .bind(id)
            .execute(&mut *writer)
            .await;
        if let Err(error) = noted {
            tracing::debug!(cause = %error, "not noted that a key was used");
        }
    });
}

/// The `{workspace}` of the path, compared as text: what is no workspace of this key's is not found, well-formed or not.
async fn in_path(parts: &mut Parts) -> Result<String, Problem> {
    let params: RawPathParams = parts.extract().await.map_err(|_| not_found())?;
    params
        .iter()
        .find(|(name, _)| *name == "workspace")
        .map(|(_, value)| value.to_owned())
        .ok_or_else(not_found)
}

impl FromRequestParts<ControlPlane> for Root {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &ControlPlane) -> Result<Self, Problem> {
        match authenticate(parts, state).await? {
            Principal::Root { .. } => Ok(Root),
            Principal::Operator { .. } | Principal::Gate { .. } => {
                Err(forbidden("only the root key may do this"))
            }
        }
    }
}

impl FromRequestParts<ControlPlane> for AnyOperator {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &ControlPlane) -> Result<Self, Problem> {
        Visible::from_request_parts(parts, state)
            .await
            .map(|_| AnyOperator)
    }
}

impl FromRequestParts<ControlPlane> for Visible {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &ControlPlane) -> Result<Self, Problem> {
        match authenticate(parts, state).await? {
            Principal::Root { .. } => Ok(Visible(None)),
            Principal::Operator { workspace, .. } => Ok(Visible(Some(workspace))),
            Principal::Gate { .. } => Err(forbidden("this takes an operator key")),
        }
    }
}

impl FromRequestParts<ControlPlane> for KeyKeeper {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &ControlPlane) -> Result<Self, Problem> {
        let principal = authenticate(parts, state).await?;
        let wanted = in_path(parts).await?;
        match principal {
            Principal::Root { key } => {
                let workspace = WorkspaceId::existing(state, &wanted)
                    .await?
                    .ok_or_else(not_found)?;
                Ok(KeyKeeper { workspace, key })
            }
            Principal::Operator { workspace, key } if workspace.as_str() == wanted => {
                Ok(KeyKeeper { workspace, key })
            }
            Principal::Gate { workspace, .. } if workspace.as_str() == wanted => {
                Err(forbidden("this takes an operator key"))
            }
            Principal::Operator { .. } | Principal::Gate { .. } => Err(not_found()),
        }
    }
}

impl FromRequestParts<ControlPlane> for Operator {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &ControlPlane) -> Result<Self, Problem> {
        let principal = authenticate(parts, state).await?;
        let wanted = in_path(parts).await?;
        match principal {
            Principal::Operator { workspace, key } if workspace.as_str() == wanted => {
                Ok(Operator { workspace, key })
            }
            Principal::Gate { workspace, .. } if workspace.as_str() == wanted => {
                Err(forbidden("this takes an operator key"))
            }
            Principal::Root { .. } if WorkspaceId::existing(state, &wanted).await?.is_some() => {
                Err(forbidden(
                    "the root key only makes workspaces and operator keys; use an operator key of this workspace",
                ))
            }
            Principal::Root { .. } | Principal::Operator { .. } | Principal::Gate { .. } => {
                Err(not_found())
            }
        }
    }
}

impl FromRequestParts<ControlPlane> for Gate {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &ControlPlane) -> Result<Self, Problem> {
        let principal = authenticate(parts, state).await?;
        let wanted = in_path(parts).await?;
        match principal {
            Principal::Gate {
                workspace,
                gate,
                seal_root,
            } if workspace.as_str() == wanted => Ok(Gate {
                workspace,
                gate,
                seal_root: seal_root.try_into().map_err(|_| {
                    Problem::internal("enrolment", &"the stored seal root is not 32 bytes")
                })?,
            }),
            Principal::Operator { workspace, .. } if workspace.as_str() == wanted => {
                Err(forbidden("this takes a gate's enrolment key"))
            }
            Principal::Root { .. } if WorkspaceId::existing(state, &wanted).await?.is_some() => {
                Err(forbidden("this takes a gate's enrolment key"))
            }
            Principal::Root { .. } | Principal::Operator { .. } | Principal::Gate { .. } => {
                Err(not_found())
            }
        }
    }
}

impl FromRequestParts<ControlPlane> for Agent {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &ControlPlane) -> Result<Self, Problem> {
        let token = bearer(parts)?.to_owned();
        let wanted = in_path(parts).await?;
        if token.starts_with("tg") {
            // No token begins so: its header is an object, in base64url.
            return match authenticate(parts, state).await? {
                Principal::Operator { workspace, .. } | Principal::Gate { workspace, .. }
                    if workspace.as_str() != wanted =>
                {
                    Err(not_found())
                }
                Principal::Root { .. }
                    if WorkspaceId::existing(state, &wanted).await?.is_none() =>
                {
                    Err(not_found())
                }
                _ => Err(forbidden("this takes an agent's token")),
            };
        }
        let Some(workspace) = WorkspaceId::existing(state, &wanted).await? else {
            // The same answers as at a workspace that exists and is not the token's: who has none of ours learns nothing.
            return Err(match agents::signed(state, &wanted, &token) {
                Ok(_) | Err(IdentityError::Foreign) => not_found(),
                Err(_) => unauthenticated(),
            });
        };
        match agents::verify(state, &workspace, &token).await? {
            Ok((caller, expires)) => Ok(Agent {
                workspace,
                caller,
                expires,
            }),
            Err(IdentityError::Foreign) => Err(not_found()),
            Err(_) => Err(unauthenticated()),
        }
    }
}
