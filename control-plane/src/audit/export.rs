//! The export: everything a workspace's gates have sealed, in one file that can be checked without us.
//!
//! ```text
//! {"tollgate_export":1,"workspace":"ws-…","key":{"key_id":"…","public_key":"…"}}
//! <the batches, byte for byte as they came, in order of acceptance>
//! {"payload":"…","payloadType":"application/vnd.tollgate.checkpoint+json","signatures":[…]}
//! ```
//!
//! The last line is a signed [`Checkpoint`] over the digest of everything before it. The key in the first line only says which key to
//! look for; whoever checks should have got it another way.

use super::{Gap, digest, incidents};
use crate::{
    ControlPlane,
    access::Operator,
    problem::{Problem, WorkspaceProblems},
    store::amount,
    workspaces::WorkspaceId,
};
use axum::{
    body::{Body, Bytes},
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use futures_util::stream;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::{collections::VecDeque, io};
use tollgate_engine::{
    bytes::Digest,
    envelope::{CHECKPOINT_TYPE, PublicKey},
};

/// The export format written here.
pub(super) const FORMAT: u32 = 1;

/// Batches read at a time; at most a MiB each.
const BATCHES_AT_A_TIME: i64 = 8;

/// First line of an export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportHeader {
    /// The format: 1.
    pub tollgate_export: u32,
    /// The tenant.
    pub workspace: String,
    /// What the last line is signed with.
    pub key: PublicKey,
    /// Where journals begin whose first records were deleted, because no policy wanted them kept any longer. It is among the bytes that the
    /// checkpoint signs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub begins: Vec<HolderHead>,
}

/// What the last line says, signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// The tenant.
    pub workspace: String,
    /// SHA-256 of every byte before the last line.
    pub lines_sha256: Digest,
    /// Batches in the export.
    pub batches: u64,
    /// Records in the export.
    pub records: u64,
    /// Where every journal stands.
    pub holders: Vec<HolderHead>,
    /// What the control plane itself reports as wrong.
    pub gaps: Vec<Gap>,
    /// Signed at; milliseconds since the Unix epoch.
    pub issued_ms: i64,
}

/// Where one journal stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HolderHead {
    /// Who sealed it.
    pub holder: String,
    /// The holder's epoch.
    pub epoch: u64,
    /// Number of the next record.
    pub next_seq: u64,
    /// Head of its last batch.
    pub head: Digest,
}

/// Exports every batch of the workspace with a signed checkpoint; check it with `tollgate audit verify`.
#[utoipa::path(get, path = "/v1/workspaces/{workspace}/audit/export", tag = "audit", security(("operator" = [])),
    params(("workspace" = String, Path, description = "`ws-<uuid>`")),
    responses((status = 200, description = "Lines of JSON", content_type = "application/x-ndjson"), WorkspaceProblems))]
pub(super) async fn export(
    operator: Operator,
    State(state): State<ControlPlane>,
) -> Result<Response, Problem> {
    let export = Export::begin(state, operator.workspace).await?;
    let body = Body::from_stream(stream::try_unfold(export, |mut export| async {
        Ok::<_, io::Error>(export.next().await?.map(|bytes| (bytes, export)))
    }));
    let headers = [
        (header::CONTENT_TYPE, "application/x-ndjson"),
        (
            header::CONTENT_DISPOSITION,
            "attachment; filename=\"tollgate-audit.ndjson\"",
        ),
    ];
    Ok((headers, body).into_response())
}

/// An export under way. What is accepted after its beginning is not in it: batches come with ever higher ids, so a highest one is a snapshot, unless
/// old ones are deleted meanwhile.
struct Export {
    state: ControlPlane,
    workspace: WorkspaceId,
    upto: i64,
    after: i64,
    batches: u64,
    ready: VecDeque<Bytes>,
    hash: Sha256,
    checkpoint: Option<Checkpoint>,
}

impl Export {
    async fn begin(state: ControlPlane, workspace: WorkspaceId) -> Result<Export, Problem> {
        let mut snapshot = state.store().read().begin().await?;
        let (upto, batches, records): (i64, i64, i64) = sqlx::query_as(
            "SELECT COALESCE(MAX(id), 0), COUNT(*), COALESCE(SUM(count), 0) FROM batches WHERE workspace = $1",
        )
        .bind(workspace.as_str())
        .fetch_one(&mut *snapshot)
        .await?;
        let ends = "SELECT holder, epoch, first_seq + count, head FROM batches AS b WHERE workspace = $1 AND id =
               (SELECT MAX(id) FROM batches WHERE workspace = b.workspace AND holder = b.holder AND epoch = b.epoch)
             UNION ALL SELECT holder, epoch, next_seq, head FROM forgotten AS f WHERE workspace = $1 AND NOT EXISTS
               (SELECT 1 FROM batches WHERE workspace = f.workspace AND holder = f.holder AND epoch = f.epoch)
             ORDER BY holder, epoch";
        let holders = heads(&mut snapshot, &workspace, ends).await?;
        let begins = "SELECT holder, epoch, next_seq, head FROM forgotten WHERE workspace = $1 ORDER BY holder, epoch";
        let begins = heads(&mut snapshot, &workspace, begins).await?;
        let gaps = incidents(&mut snapshot, &workspace).await?;
        snapshot.commit().await?;
        let checkpoint = Checkpoint {
            workspace: workspace.to_string(),
            lines_sha256: Digest([0; 32]),
            batches: amount(batches),
            records: amount(records),
            holders,
            gaps,
            issued_ms: state.now().millis(),
        };
        let mut first = serde_json::to_vec(&ExportHeader {
            tollgate_export: FORMAT,
            workspace: workspace.to_string(),
            key: state.signer().public().clone(),
            begins,
        })
        .map_err(|error| Problem::internal("export", &error))?;
        first.push(b'\n');
        let mut hash = Sha256::new();
        hash.update(&first);
        Ok(Export {
            state,
            workspace,
            upto,
            after: 0,
            batches: 0,
            ready: VecDeque::from([Bytes::from(first)]),
            hash,
            checkpoint: Some(checkpoint),
        })
    }

    /// The next piece; `None` behind the last. An error cuts the answer short, and without its last line an export is not whole.
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        if self.ready.is_empty() && self.after < self.upto {
            self.read().await.map_err(io::Error::other)?;
        }
        if let Some(bytes) = self.ready.pop_front() {
            return Ok(Some(bytes));
        }
        let Some(mut checkpoint) = self.checkpoint.take() else {
            return Ok(None);
        };
        if self.batches != checkpoint.batches {
            let why = "records were deleted meanwhile, as policies say; export once more";
            return Err(io::Error::other(why));
        }
        checkpoint.lines_sha256 = Digest(self.hash.finalize_reset().into());
        let mut last = self.state.signer().seal(CHECKPOINT_TYPE, &checkpoint)?;
        last.push(b'\n');
        Ok(Some(Bytes::from(last)))
    }

    async fn read(&mut self) -> Result<(), sqlx::Error> {
        let rows: Vec<(i64, Vec<u8>)> = sqlx::query_as(
            "SELECT id, bytes FROM batches WHERE workspace = $1 AND id > $2 AND id <= $3 ORDER BY id LIMIT $4",
        )
        .bind(self.workspace.as_str())
        .bind(self.after)
        .bind(self.upto)
        .bind(BATCHES_AT_A_TIME)
        .fetch_all(self.state.store().read())
        .await?;
        if rows.is_empty() {
            self.after = self.upto;
        }
        for (id, bytes) in rows {
            self.after = id;
            self.batches = self.batches.saturating_add(1);
            self.hash.update(&bytes);
            self.ready.push_back(Bytes::from(bytes));
        }
        Ok(())
    }
}

/// Where journals stand, by a query for holder, epoch, next number and head.
async fn heads(
    connection: &mut sqlx::SqliteConnection,
    workspace: &WorkspaceId,
    sql: &'static str,
) -> Result<Vec<HolderHead>, Problem> {
    let rows: Vec<(String, i64, i64, Vec<u8>)> = sqlx::query_as(sql)
        .bind(workspace.as_str())
        .fetch_all(connection)
        .await?;
    rows.into_iter()
        .map(|(holder, epoch, next_seq, head)| {
            Ok(HolderHead {
                holder,
                epoch: amount(epoch),
                next_seq: amount(next_seq),
                head: digest(&head)?,
            })
        })
        .collect()
}
