//! Audit: takes in sealed batches, keeps them as they came, and shows, exports and counts what is in them.
//!
//! A batch is acknowledged only when it is on the disk. The same bytes again are acknowledged again; other bytes for a sequence that is
//! taken, or a batch that does not follow the one before, is a fork: refused and put on record. A batch that begins too late is kept,
//! and the hole before it put on record.

mod export;
mod retention;
mod verify;

pub use export::{Checkpoint, ExportHeader, HolderHead};
pub(crate) use retention::{Looked, forget};
pub use verify::{Fault, Whole, verify};

use crate::{
    ControlPlane,
    access::{Gate, Operator},
    approvals, gates,
    problem::{Kind, Problem, ProblemBody, Query, RawBody, WorkspaceProblems},
    store::{MAX_EXACT, Write, amount, stored},
    usage::Tally,
    workspaces::WorkspaceId,
};
use axum::{
    Json,
    extract::{DefaultBodyLimit, State},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tollgate_engine::{
    bundle::CLOCK_SKEW_SECS,
    bytes::Digest,
    journal::{Batch, BatchFault, MAX_BATCH_BYTES, Position, Receipt, SealKey},
    time::Time,
};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

/// Forks put on record per holder and epoch. A gate that forks is broken or not ours; the first few say all there is to say.
const MAX_FORKS: i64 = 16;

pub(crate) fn routes() -> OpenApiRouter<ControlPlane> {
    OpenApiRouter::new()
        .routes(routes!(submit))
        .layer(DefaultBodyLimit::max(MAX_BATCH_BYTES))
        .routes(routes!(list))
        .routes(routes!(gaps))
        .routes(routes!(export::export))
}

/// What the control plane reads of a record. Gates of other versions may leave out or add fields; what is not understood stays in the
/// record itself, uncounted.
#[derive(Debug, Default)]
pub(crate) struct RecordFields {
    pub(crate) id: Option<String>,
    pub(crate) kind: Option<String>,
    pub(crate) at_ms: Option<i64>,
    pub(crate) agent: Option<String>,
    pub(crate) team: Option<String>,
    pub(crate) org: Option<String>,
    pub(crate) outcome: Option<String>,
    /// The approval that the call waits for, or was let through by.
    pub(crate) approval: Option<String>,
    /// Rules and the documents that they stand in.
    pub(crate) reasons: Vec<(String, String)>,
    /// How many more ask for approval than stand there.
    pub(crate) asked_by_more: u64,
    pub(crate) model: Option<String>,
    pub(crate) tools: Vec<String>,
    pub(crate) usage: RecordedUsage,
    pub(crate) cost_nano_usd: i64,
    pub(crate) estimated: bool,
}

/// Tokens of a record; 0 where it does not say.
#[derive(Debug, Default)]
pub(crate) struct RecordedUsage {
    pub(crate) input_tokens: i64,
    pub(crate) output_tokens: i64,
    pub(crate) cached_input_tokens: i64,
    pub(crate) cache_write_tokens: i64,
    pub(crate) reasoning_tokens: i64,
}

impl RecordFields {
    fn read(record: &[u8]) -> RecordFields {
        let Ok(value) = serde_json::from_slice::<serde_json::Value>(record) else {
            return RecordFields::default();
        };
        let text = |key: &str| value.get(key)?.as_str().map(str::to_owned);
        let tokens = |key: &str| {
            value
                .get("usage")
                .and_then(|usage| usage.get(key))
                .and_then(serde_json::Value::as_i64)
                .map_or(0, |tokens| tokens.max(0))
        };
        RecordFields {
            id: text("id"),
            kind: text("kind"),
            at_ms: value.get("at_ms").and_then(serde_json::Value::as_i64),
            agent: text("agent"),
            team: text("team"),
            org: text("org"),
            outcome: text("outcome"),
            approval: text("approval"),
            reasons: value
                .get("reasons")
                .and_then(serde_json::Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(|reason| {
                    let part = |key: &str| Some(reason.get(key)?.as_str()?.to_owned());
                    Some((part("rule")?, part("document")?))
                })
                .collect(),
            asked_by_more: value
                .get("asked_by_more")
                .and_then(serde_json::Value::as_u64)
                .unwrap_or(0),
            model: text("model"),
            tools: value
                .get("tools")
                .and_then(serde_json::Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(serde_json::Value::as_str)
                .map(str::to_owned)
                .collect(),
            usage: RecordedUsage {
                input_tokens: tokens("input_tokens"),
                output_tokens: tokens("output_tokens"),
                cached_input_tokens: tokens("cached_input_tokens"),
                cache_write_tokens: tokens("cache_write_tokens"),
                reasoning_tokens: tokens("reasoning_tokens"),
            },
            cost_nano_usd: text("cost_nano_usd")
                .and_then(|cost| cost.parse::<i64>().ok())
                .map_or(0, |cost| cost.max(0)),
            estimated: value.get("estimated") == Some(&serde_json::Value::Bool(true)),
        }
    }

    /// When it happened: as the gate says, unless its clock is ahead of ours or it says nothing.
    fn happened_ms(&self, received: Time) -> i64 {
        self.at_ms
            .filter(|at| (0..=received.plus_secs(CLOCK_SKEW_SECS).millis()).contains(at))
            .unwrap_or(received.millis())
    }
}

/// That a batch is stored for good. (Describes `engine::journal::Receipt` in the API document.)
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes a type of the engine")]
struct BatchReceipt {
    /// Number of the record expected next.
    next_seq: i64,
    /// Head of the batch, 64 hex digits.
    head: String,
    /// HMAC-SHA256 of the head under the holder's seal key, 64 hex digits.
    receipt: String,
}

/// Takes in one sealed batch; answers when it is stored for good.
#[utoipa::path(post, path = "/v1/workspaces/{workspace}/gate/audit", tag = "gate", security(("gate" = [])),
    params(("workspace" = String, Path, description = "`ws-<uuid>`")),
    request_body(description = "The batch, lines of JSON", content_type = "application/x-ndjson"),
    responses((status = 200, description = "Stored", body = BatchReceipt),
        (status = 409, description = "Does not follow what is stored: a fork", body = ProblemBody, content_type = "application/problem+json"),
        (status = 413, description = "Larger than a batch may be", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "A number or name in the header is out of range", body = ProblemBody, content_type = "application/problem+json"), WorkspaceProblems))]
async fn submit(
    gate: Gate,
    State(state): State<ControlPlane>,
    RawBody(body): RawBody,
) -> Result<Json<Receipt>, Problem> {
    let taken = take_in(&state, &gate, &body).await;
    if taken.is_err() {
        state.metrics().batches_refused.inc();
    }
    taken.map(Json)
}

async fn take_in(state: &ControlPlane, gate: &Gate, body: &[u8]) -> Result<Receipt, Problem> {
    let batch =
        Batch::read(body).map_err(|fault| Problem::new(Kind::Malformed, fault.to_string()))?;
    if batch.len != body.len() {
        return Err(Problem::new(
            Kind::Malformed,
            "there is more than one batch in the body; send one at a time",
        ));
    }
    let header = &batch.header;
    if header.workspace != gate.workspace.as_str() {
        return Err(Problem::new(
            Kind::Forbidden,
            "the batch is of another workspace",
        ));
    }
    let key = SealKey::derive(&gate.seal_root, &header.holder);
    batch
        .verify(&key)
        .map_err(|fault: BatchFault| Problem::new(Kind::Forbidden, fault.to_string()))?;
    let entry = BatchEntry::of(&batch).ok_or_else(|| {
        Problem::new(
            Kind::Invalid,
            "a number in the batch's header is beyond 2⁶³−1",
        )
    })?;

    let now = state.now();
    let mut write = state.store().write().await?;
    gates::heard_of(&mut write, &gate.workspace, &gate.gate, &header.holder, now).await?;
    if entry.is_stored(&mut write, &gate.workspace, body).await? {
        write.commit().await?;
        state.metrics().batches_repeated.inc();
        return Ok(Receipt::of(&batch, &key));
    }
    let expected = entry.expected(&mut write, &gate.workspace).await?;
    let follows = header.first_seq == expected.next_seq && header.previous == expected.head;
    let skips = header.first_seq > expected.next_seq;
    if !follows && !skips {
        entry.record_fork(&mut write, &gate.workspace, now).await?;
        write.commit().await?;
        state.metrics().forks.inc();
        tracing::warn!(
            holder = header.holder,
            epoch = header.epoch,
            first_seq = header.first_seq,
            "fork in a journal"
        );
        return Err(Problem::new(
            Kind::Fork,
            format!(
                "this journal goes on with record {} after head {}; the batch does not follow",
                expected.next_seq, expected.head
            ),
        ));
    }
    if skips {
        let missing = header.first_seq.saturating_sub(expected.next_seq);
        entry
            .record_incident(
                &mut write,
                &gate.workspace,
                "missing",
                expected.next_seq,
                missing,
                now,
            )
            .await?;
        state.metrics().records_missing.inc_by(missing);
        tracing::warn!(
            holder = header.holder,
            epoch = header.epoch,
            missing,
            "gap in a journal"
        );
    }
    if header.dropped > 0 {
        entry
            .record_incident(
                &mut write,
                &gate.workspace,
                "dropped",
                header.first_seq,
                header.dropped,
                now,
            )
            .await?;
        state.metrics().records_dropped.inc_by(header.dropped);
    }
    entry
        .insert(&mut write, &gate.workspace, &batch, body, now)
        .await?;
    write.commit().await?;
    state.metrics().batches_accepted.inc();
    state.metrics().records.inc_by(header.count);
    Ok(Receipt::of(&batch, &key))
}

/// A batch as the database names it.
struct BatchEntry {
    holder: String,
    epoch: i64,
    first_seq: i64,
    count: i64,
    dropped: i64,
    head: Digest,
}

impl BatchEntry {
    fn of(batch: &Batch<'_>) -> Option<BatchEntry> {
        let header = &batch.header;
        // That the last record has a number too keeps every later sum in range.
        header
            .first_seq
            .checked_add(header.count)
            .and_then(stored)?;
        Some(BatchEntry {
            holder: header.holder.clone(),
            epoch: stored(header.epoch)?,
            first_seq: stored(header.first_seq)?,
            count: stored(header.count)?,
            dropped: stored(header.dropped)?,
            head: batch.seal.head,
        })
    }

    /// Whether exactly these bytes are stored, or were, last before what is left.
    async fn is_stored(
        &self,
        write: &mut Write,
        workspace: &WorkspaceId,
        body: &[u8],
    ) -> Result<bool, sqlx::Error> {
        let bytes: Option<Vec<u8>> = sqlx::query_scalar(
            "SELECT bytes FROM batches WHERE workspace = $1 AND holder = $2 AND epoch = $3 AND head = $4
             UNION ALL SELECT $5 FROM forgotten WHERE workspace = $1 AND holder = $2 AND epoch = $3 AND head = $4",
        )
        .bind(workspace.as_str())
        .bind(&self.holder)
        .bind(self.epoch)
        .bind(&self.head.0[..])
        .bind(body)
        .fetch_optional(&mut **write)
        .await?;
        Ok(bytes.is_some_and(|bytes| bytes == body))
    }

    /// Where this journal stands.
    async fn expected(
        &self,
        write: &mut Write,
        workspace: &WorkspaceId,
    ) -> Result<Position, Problem> {
        let last: Option<(i64, Vec<u8>)> = sqlx::query_as(
            "SELECT first_seq + count, head FROM batches WHERE workspace = $1 AND holder = $2 AND epoch = $3
             ORDER BY id DESC LIMIT 1",
        )
        .bind(workspace.as_str())
        .bind(&self.holder)
        .bind(self.epoch)
        .fetch_optional(&mut **write)
        .await?;
        let last = match last {
            Some(last) => Some(last),
            None => {
                sqlx::query_as(
                    "SELECT next_seq, head FROM forgotten WHERE workspace = $1 AND holder = $2 AND epoch = $3",
                )
                .bind(workspace.as_str())
                .bind(&self.holder)
                .bind(self.epoch)
                .fetch_optional(&mut **write)
                .await?
            }
        };
        Ok(match last {
            None => Position::start(workspace.as_str(), &self.holder, amount(self.epoch)),
            Some((next_seq, head)) => Position {
                next_seq: amount(next_seq),
                head: digest(&head)?,
            },
        })
    }

    async fn insert(
        &self,
        write: &mut Write,
        workspace: &WorkspaceId,
        batch: &Batch<'_>,
        body: &[u8],
        now: Time,
    ) -> Result<(), Problem> {
        let id: i64 = sqlx::query_scalar(
            "INSERT INTO batches (workspace, holder, epoch, first_seq, count, dropped, head, received_ms, bytes)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) RETURNING id",
        )
        .bind(workspace.as_str())
        .bind(&self.holder)
        .bind(self.epoch)
        .bind(self.first_seq)
        .bind(self.count)
        .bind(self.dropped)
        .bind(&self.head.0[..])
        .bind(now.millis())
        .bind(body)
        .fetch_one(&mut **write)
        .await?;
        let mut tally = Tally::default();
        let mut seq = self.first_seq;
        // The records stand one after the other behind the header, each with its newline.
        let mut start = body
            .iter()
            .position(|byte| *byte == b'\n')
            .map_or(0, |end| end + 1);
        for record in &batch.records {
            let fields = RecordFields::read(record);
            let at_ms = fields.happened_ms(now);
            sqlx::query(
                "INSERT INTO records (workspace, batch, seq, start, length, at_ms, agent, outcome, decision)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            )
            .bind(workspace.as_str())
            .bind(id)
            .bind(seq)
            .bind(i64::try_from(start).unwrap_or(i64::MAX))
            .bind(i64::try_from(record.len()).unwrap_or(i64::MAX))
            .bind(at_ms)
            .bind(&fields.agent)
            .bind(&fields.outcome)
            .bind(&fields.id)
            .execute(&mut **write)
            .await?;
            if fields.approval.is_some() {
                match fields.outcome.as_deref() {
                    Some("hold") => {
                        approvals::asked(write, workspace, &fields, record, at_ms, now).await?;
                    }
                    _ => {
                        let by = (self.holder.as_str(), self.epoch);
                        approvals::used(write, workspace, &fields, by, at_ms).await?;
                    }
                }
            }
            tally.count(workspace, &fields, at_ms);
            seq = seq.saturating_add(1);
            start = start.saturating_add(record.len()).saturating_add(1);
        }
        tally.add(write, workspace).await?;
        Ok(())
    }

    async fn record_incident(
        &self,
        write: &mut Write,
        workspace: &WorkspaceId,
        kind: &'static str,
        from_seq: u64,
        records: u64,
        now: Time,
    ) -> Result<(), sqlx::Error> {
        sqlx::query(
            "INSERT INTO incidents (workspace, holder, epoch, kind, from_seq, records, head, found_ms)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING",
        )
        .bind(workspace.as_str())
        .bind(&self.holder)
        .bind(self.epoch)
        .bind(kind)
        .bind(stored(from_seq).unwrap_or(i64::MAX))
        .bind(stored(records).unwrap_or(i64::MAX))
        .bind(&self.head.0[..])
        .bind(now.millis())
        .execute(&mut **write)
        .await?;
        Ok(())
    }

    async fn record_fork(
        &self,
        write: &mut Write,
        workspace: &WorkspaceId,
        now: Time,
    ) -> Result<(), sqlx::Error> {
        let recorded: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM incidents WHERE workspace = $1 AND holder = $2 AND epoch = $3 AND kind = 'fork'",
        )
        .bind(workspace.as_str())
        .bind(&self.holder)
        .bind(self.epoch)
        .fetch_one(&mut **write)
        .await?;
        if recorded >= MAX_FORKS {
            return Ok(());
        }
        self.record_incident(
            write,
            workspace,
            "fork",
            amount(self.first_seq),
            amount(self.count),
            now,
        )
        .await
    }
}

fn digest(stored: &[u8]) -> Result<Digest, Problem> {
    stored
        .try_into()
        .map(Digest)
        .map_err(|_| Problem::internal("audit", &"a stored head is not 32 bytes"))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Asked {
    /// Records after this one, as `next` of the former answer; 0 begins at the oldest.
    #[serde(default)]
    #[param(minimum = 0, maximum = 9007199254740991i64)]
    after: i64,
    /// How many records to read at most. An answer ends before 4 MiB of records are passed, too.
    #[serde(default = "default_limit")]
    #[param(minimum = 1, maximum = 1000)]
    limit: u32,
    /// Only records of this agent.
    agent: Option<String>,
    /// Only records with this outcome: `allow`, `redact`, `hold` or `deny`.
    outcome: Option<String>,
    /// Only the record of this decision, as its caller was told in `x-tollgate-decision`.
    id: Option<String>,
    /// The newest records instead of the oldest, newest first; `after` then means before.
    #[serde(default)]
    newest: bool,
}

fn default_limit() -> u32 {
    100
}

/// Most records of one answer: at 2 KiB each, 2 MiB.
const MAX_LIMIT: u32 = 1_000;

/// Bytes of records of one answer, where there is more than one record: records with content are longer than 2 KiB, and a batch of one may have
/// 1 MiB.
const MAX_PAGE_BYTES: i64 = 4 << 20;

/// Records in order of acceptance.
#[derive(Serialize, ToSchema)]
struct Records {
    /// The records.
    records: Vec<ListedRecord>,
    /// What to give as `after` to go on; null when there are no more now.
    next: Option<i64>,
}

/// A record and where it stands.
#[derive(Serialize, ToSchema)]
struct ListedRecord {
    /// Place in the workspace's order of acceptance.
    id: i64,
    /// Who sealed it.
    holder: String,
    /// The holder's epoch.
    epoch: i64,
    /// Its number in the holder's journal.
    seq: i64,
    /// The record as the gate wrote it.
    #[schema(value_type = Object)]
    record: Box<RawValue>,
}

#[derive(sqlx::FromRow)]
struct Place {
    id: i64,
    batch: i64,
    seq: i64,
    start: i64,
    length: i64,
}

#[derive(sqlx::FromRow)]
struct StoredBatch {
    holder: String,
    epoch: i64,
    bytes: Vec<u8>,
}

/// Lists audit records as they were sealed.
#[utoipa::path(get, path = "/v1/workspaces/{workspace}/audit", tag = "audit", security(("operator" = [])),
    params(("workspace" = String, Path, description = "`ws-<uuid>`"), Asked),
    responses((status = 200, body = Records), WorkspaceProblems))]
async fn list(
    operator: Operator,
    State(state): State<ControlPlane>,
    Query(asked): Query<Asked>,
) -> Result<Json<Records>, Problem> {
    if !(0..=MAX_EXACT).contains(&asked.after) || !(1..=MAX_LIMIT).contains(&asked.limit) {
        return Err(Problem::new(
            Kind::Malformed,
            format!("`after` must be between 0 and {MAX_EXACT}, `limit` between 1 and {MAX_LIMIT}"),
        ));
    }
    let mut connection = state.store().read().acquire().await?;
    let query = if asked.newest {
        sqlx::query_as(
            "SELECT id, batch, seq, start, length FROM records WHERE workspace = $1 AND ($2 = 0 OR id < $2)
               AND ($3 IS NULL OR agent = $3) AND ($4 IS NULL OR outcome = $4)
               AND ($5 IS NULL OR decision = $5)
             ORDER BY id DESC LIMIT $6",
        )
    } else {
        sqlx::query_as(
            "SELECT id, batch, seq, start, length FROM records WHERE workspace = $1 AND id > $2
               AND ($3 IS NULL OR agent = $3) AND ($4 IS NULL OR outcome = $4)
               AND ($5 IS NULL OR decision = $5)
             ORDER BY id LIMIT $6",
        )
    };
    let places: Vec<Place> = query
        .bind(operator.workspace.as_str())
        .bind(asked.after)
        .bind(&asked.agent)
        .bind(&asked.outcome)
        .bind(&asked.id)
        .bind(i64::from(asked.limit))
        .fetch_all(&mut *connection)
        .await?;
    // The records of a batch stand together, so that one batch in memory is enough.
    let mut read: Option<(i64, StoredBatch)> = None;
    let mut records: Vec<ListedRecord> = Vec::new();
    let mut bytes = 0_i64;
    for place in &places {
        bytes = bytes.saturating_add(place.length);
        if bytes > MAX_PAGE_BYTES && !records.is_empty() {
            break;
        }
        let batch = match read.take() {
            Some((id, batch)) if id == place.batch => batch,
            _ => {
                sqlx::query_as(
                    "SELECT holder, epoch, bytes FROM batches WHERE workspace = $1 AND id = $2",
                )
                .bind(operator.workspace.as_str())
                .bind(place.batch)
                .fetch_one(&mut *connection)
                .await?
            }
        };
        records.push(ListedRecord {
            id: place.id,
            holder: batch.holder.clone(),
            epoch: batch.epoch,
            seq: place.seq,
            record: cut(&batch.bytes, place)
                .ok_or_else(|| Problem::internal("audit", &"the index does not fit its batch"))?,
        });
        read = Some((place.batch, batch));
    }
    let full = u32::try_from(places.len()).is_ok_and(|found| found == asked.limit);
    let cut_short = records.len() < places.len();
    Ok(Json(Records {
        next: records
            .last()
            .filter(|_| full || cut_short)
            .map(|record| record.id),
        records,
    }))
}

fn cut(bytes: &[u8], place: &Place) -> Option<Box<RawValue>> {
    let start = usize::try_from(place.start).ok()?;
    let end = start.checked_add(usize::try_from(place.length).ok()?)?;
    let text = std::str::from_utf8(bytes.get(start..end)?).ok()?;
    RawValue::from_string(text.to_owned()).ok()
}

/// Something wrong with a journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, sqlx::FromRow)]
#[serde(deny_unknown_fields)]
pub struct Gap {
    /// Whose journal.
    pub holder: String,
    /// The holder's epoch.
    pub epoch: i64,
    /// `missing`: records that never came. `dropped`: records the gate lost itself and says so. `fork`: a batch that was refused
    /// because it did not follow what is stored.
    pub kind: String,
    /// The first record concerned; for `dropped`, the first after them.
    pub from_seq: i64,
    /// How many records.
    pub records: i64,
    /// Head of the batch that showed it, 64 hex digits.
    pub head: String,
    /// Milliseconds since the Unix epoch.
    pub found_ms: i64,
}

pub(crate) async fn incidents(
    connection: &mut sqlx::SqliteConnection,
    workspace: &WorkspaceId,
) -> Result<Vec<Gap>, sqlx::Error> {
    sqlx::query_as(
        "SELECT holder, epoch, kind, from_seq, records, lower(hex(head)) AS head, found_ms FROM incidents
         WHERE workspace = $1 ORDER BY id",
    )
    .bind(workspace.as_str())
    .fetch_all(connection)
    .await
}

/// Lists what is wrong with the workspace's journals; an empty list is good news.
#[utoipa::path(get, path = "/v1/workspaces/{workspace}/audit/gaps", tag = "audit", security(("operator" = [])),
    params(("workspace" = String, Path, description = "`ws-<uuid>`")),
    responses((status = 200, body = Vec<Gap>), WorkspaceProblems))]
async fn gaps(
    operator: Operator,
    State(state): State<ControlPlane>,
) -> Result<Json<Vec<Gap>>, Problem> {
    let mut connection = state.store().read().acquire().await?;
    Ok(Json(incidents(&mut connection, &operator.workspace).await?))
}
