//! Usage: who used what, when, counted from settled records as they are taken in.

use crate::{
    ControlPlane,
    access::Operator,
    audit::RecordFields,
    problem::{Kind, Problem, ProblemBody, Query, WorkspaceProblems},
    store::Write,
    workspaces::WorkspaceId,
};
use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

const HOUR_SECS: i64 = 3_600;
const DAY_SECS: i64 = 86_400;

/// Different keys counted per hour and dimension; what comes after them counts as [`OTHER`]. Callers choose model and tool names, so
/// without a bound one of them could fill the disk.
const MAX_KEYS: i64 = 1_000;
const OTHER: &str = "(other)";

/// Bytes of a key.
const MAX_KEY_BYTES: usize = 200;

/// Rows of one answer.
const MAX_ROWS: usize = 10_000;

pub(crate) fn routes() -> OpenApiRouter<ControlPlane> {
    OpenApiRouter::new().routes(routes!(show))
}

/// What usage is counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Dimension {
    /// All of it together.
    Workspace,
    /// The callers' organisations.
    Org,
    /// The callers' teams.
    Team,
    /// The callers.
    Agent,
    /// Models, as they were asked for.
    Model,
    /// Tools. A call that names several counts for each of them.
    Tool,
}

impl Dimension {
    const fn name(self) -> &'static str {
        match self {
            Dimension::Workspace => "workspace",
            Dimension::Org => "org",
            Dimension::Team => "team",
            Dimension::Agent => "agent",
            Dimension::Model => "model",
            Dimension::Tool => "tool",
        }
    }
}

/// Sums of one key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, sqlx::FromRow)]
struct Counters {
    calls: i64,
    denied: i64,
    estimated: i64,
    input_tokens: i64,
    output_tokens: i64,
    cached_input_tokens: i64,
    cache_write_tokens: i64,
    reasoning_tokens: i64,
    cost_nano_usd: i64,
}

impl Counters {
    fn of(record: &RecordFields) -> Counters {
        let usage = &record.usage;
        Counters {
            calls: 1,
            denied: i64::from(record.outcome.as_deref() == Some("deny")),
            estimated: i64::from(record.estimated),
            input_tokens: usage.input_tokens,
            output_tokens: usage.output_tokens,
            cached_input_tokens: usage.cached_input_tokens,
            cache_write_tokens: usage.cache_write_tokens,
            reasoning_tokens: usage.reasoning_tokens,
            cost_nano_usd: record.cost_nano_usd,
        }
    }

    fn plus(self, more: Counters) -> Counters {
        Counters {
            calls: self.calls.saturating_add(more.calls),
            denied: self.denied.saturating_add(more.denied),
            estimated: self.estimated.saturating_add(more.estimated),
            input_tokens: self.input_tokens.saturating_add(more.input_tokens),
            output_tokens: self.output_tokens.saturating_add(more.output_tokens),
            cached_input_tokens: self
                .cached_input_tokens
                .saturating_add(more.cached_input_tokens),
            cache_write_tokens: self
                .cache_write_tokens
                .saturating_add(more.cache_write_tokens),
            reasoning_tokens: self.reasoning_tokens.saturating_add(more.reasoning_tokens),
            cost_nano_usd: self.cost_nano_usd.saturating_add(more.cost_nano_usd),
        }
    }
}

#[derive(sqlx::FromRow)]
struct Recorded {
    hour: i64,
    key: String,
    #[sqlx(flatten)]
    counters: Counters,
}

/// What a batch adds up to.
#[derive(Debug, Default)]
pub(crate) struct Tally(BTreeMap<(Dimension, i64, String), Counters>);

impl Tally {
    /// Counts a record that is about a call; `at_ms` is when it happened, as far as we believe it.
    pub(crate) fn count(&mut self, workspace: &WorkspaceId, record: &RecordFields, at_ms: i64) {
        if record
            .kind
            .as_deref()
            .is_some_and(|kind| kind != "exchange")
        {
            return;
        }
        let hour = hour_of(at_ms.div_euclid(1_000));
        let counters = Counters::of(record);
        let one = |dimension, key: &Option<String>| key.clone().map(|key| (dimension, key));
        let keys = [
            Some((Dimension::Workspace, workspace.to_string())),
            one(Dimension::Org, &record.org),
            one(Dimension::Team, &record.team),
            one(Dimension::Agent, &record.agent),
            one(Dimension::Model, &record.model),
        ];
        let tools = record
            .tools
            .iter()
            .map(|tool| (Dimension::Tool, tool.clone()));
        for (dimension, key) in keys.into_iter().flatten().chain(tools) {
            let sum = self.0.entry((dimension, hour, bounded(&key))).or_default();
            *sum = sum.plus(counters);
        }
    }

    /// Adds the sums to what is on record.
    pub(crate) async fn add(
        self,
        write: &mut Write,
        workspace: &WorkspaceId,
    ) -> Result<(), sqlx::Error> {
        for ((dimension, hour, mut key), counters) in self.0 {
            let mut former = recorded(write, workspace, dimension, hour, &key).await?;
            if former.is_none() {
                let keys: i64 = sqlx::query_scalar(
                    "SELECT COUNT(*) FROM usage WHERE workspace = $1 AND dimension = $2 AND hour = $3",
                )
                .bind(workspace.as_str())
                .bind(dimension.name())
                .bind(hour)
                .fetch_one(&mut **write)
                .await?;
                if keys >= MAX_KEYS {
                    OTHER.clone_into(&mut key);
                    former = recorded(write, workspace, dimension, hour, &key).await?;
                }
            }
            let sum = former.unwrap_or_default().plus(counters);
            sqlx::query(
                "INSERT INTO usage (workspace, dimension, hour, key, calls, denied, estimated, input_tokens, output_tokens,
                   cached_input_tokens, cache_write_tokens, reasoning_tokens, cost_nano_usd)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
                 ON CONFLICT (workspace, dimension, hour, key) DO UPDATE SET
                   calls = excluded.calls, denied = excluded.denied, estimated = excluded.estimated,
                   input_tokens = excluded.input_tokens, output_tokens = excluded.output_tokens,
                   cached_input_tokens = excluded.cached_input_tokens, cache_write_tokens = excluded.cache_write_tokens,
                   reasoning_tokens = excluded.reasoning_tokens, cost_nano_usd = excluded.cost_nano_usd",
            )
            .bind(workspace.as_str())
            .bind(dimension.name())
            .bind(hour)
            .bind(key)
            .bind(sum.calls)
            .bind(sum.denied)
            .bind(sum.estimated)
            .bind(sum.input_tokens)
            .bind(sum.output_tokens)
            .bind(sum.cached_input_tokens)
            .bind(sum.cache_write_tokens)
            .bind(sum.reasoning_tokens)
            .bind(sum.cost_nano_usd)
            .execute(&mut **write)
            .await?;
        }
        Ok(())
    }
}

async fn recorded(
    write: &mut Write,
    workspace: &WorkspaceId,
    dimension: Dimension,
    hour: i64,
    key: &str,
) -> Result<Option<Counters>, sqlx::Error> {
    sqlx::query_as(
        "SELECT calls, denied, estimated, input_tokens, output_tokens, cached_input_tokens, cache_write_tokens,
           reasoning_tokens, cost_nano_usd
         FROM usage WHERE workspace = $1 AND dimension = $2 AND hour = $3 AND key = $4",
    )
    .bind(workspace.as_str())
    .bind(dimension.name())
    .bind(hour)
    .bind(key)
    .fetch_optional(&mut **write)
    .await
}

/// The begin of the hour that a second is in.
fn hour_of(secs: i64) -> i64 {
    secs.div_euclid(HOUR_SECS).saturating_mul(HOUR_SECS)
}

fn bounded(key: &str) -> String {
    let mut end = key.len().min(MAX_KEY_BYTES);
    while !key.is_char_boundary(end) {
        end -= 1;
    }
    key.get(..end).unwrap_or_default().to_owned()
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Asked {
    /// What to count by.
    #[serde(default = "by_workspace")]
    by: Dimension,
    /// From this hour on; seconds since the Unix epoch. The hour of 24 hours before `to`, or before now, unless told otherwise.
    #[param(minimum = 0, maximum = 253402300800i64)]
    from: Option<i64>,
    /// Up to and not including this hour; seconds since the Unix epoch. The running hour included unless told otherwise.
    #[param(minimum = 0, maximum = 253402300800i64)]
    to: Option<i64>,
    /// A row per hour or UTC day; one row for the whole time without it.
    #[param(inline)]
    step: Option<Step>,
}

fn by_workspace() -> Dimension {
    Dimension::Workspace
}

/// Length of the time one row stands for.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Step {
    /// Full hours UTC.
    Hour,
    /// Days UTC.
    Day,
}

/// Counters by key and time.
#[derive(Serialize, ToSchema)]
struct Usage {
    /// What it is counted by.
    by: Dimension,
    /// Seconds since the Unix epoch.
    from: i64,
    /// Seconds since the Unix epoch.
    to: i64,
    /// By time, then by key.
    rows: Vec<UsageRow>,
}

/// What one key used.
#[derive(Serialize, ToSchema)]
struct UsageRow {
    /// Start of the hour or day, or of the whole time; seconds since the Unix epoch.
    start: i64,
    /// The team, agent, model…
    key: String,
    /// Calls, denied ones included.
    calls: i64,
    /// Calls that were denied.
    denied: i64,
    /// Calls whose use was estimated because the provider did not report it.
    estimated: i64,
    /// Tokens sent.
    input_tokens: i64,
    /// Tokens received.
    output_tokens: i64,
    /// Of the tokens sent, read from the provider's cache.
    cached_input_tokens: i64,
    /// Of the tokens sent, written to the provider's cache.
    cache_write_tokens: i64,
    /// Of the tokens received, spent on reasoning.
    reasoning_tokens: i64,
    /// 10⁻⁹ US dollars, in decimal digits.
    cost_nano_usd: String,
}

/// The last second that RFC 3339 can name.
const LAST_SECOND: i64 = 253_402_300_800;

/// Counts calls, tokens and cost.
#[utoipa::path(get, path = "/v1/workspaces/{workspace}/usage", tag = "usage", security(("operator" = [])),
    params(("workspace" = String, Path, description = "`ws-<uuid>`"), Asked),
    responses((status = 200, body = Usage), WorkspaceProblems,
        (status = 422, description = "`from` after `to`, or too many rows", body = ProblemBody, content_type = "application/problem+json")))]
async fn show(
    operator: Operator,
    State(state): State<ControlPlane>,
    Query(asked): Query<Asked>,
) -> Result<Json<Usage>, Problem> {
    let now = state.now().secs();
    let to = asked.to.unwrap_or_else(|| now.saturating_add(HOUR_SECS));
    let from = asked.from.unwrap_or_else(|| {
        let day_before = asked.to.unwrap_or(now).saturating_sub(DAY_SECS).max(0);
        hour_of(day_before)
    });
    let times = 0..=LAST_SECOND;
    if !times.contains(&from) || !times.contains(&to) {
        return Err(Problem::new(
            Kind::Malformed,
            format!("`from` and `to` must be seconds since the Unix epoch, {LAST_SECOND} at most"),
        ));
    }
    if from > to {
        return Err(Problem::new(Kind::Invalid, "`from` must not be after `to`"));
    }
    let rows: Vec<Recorded> = sqlx::query_as(
        "SELECT hour, key, calls, denied, estimated, input_tokens, output_tokens, cached_input_tokens, cache_write_tokens,
           reasoning_tokens, cost_nano_usd
         FROM usage WHERE workspace = $1 AND dimension = $2 AND hour >= $3 AND hour < $4",
    )
    .bind(operator.workspace.as_str())
    .bind(asked.by.name())
    .bind(hour_of(from))
    .bind(to)
    .fetch_all(state.store().read())
    .await?;
    let mut sums: BTreeMap<(i64, String), Counters> = BTreeMap::new();
    for row in rows {
        let start = match asked.step {
            None => from,
            Some(Step::Hour) => row.hour,
            Some(Step::Day) => row.hour.div_euclid(DAY_SECS).saturating_mul(DAY_SECS),
        };
        let sum = sums.entry((start, row.key)).or_default();
        *sum = sum.plus(row.counters);
        if sums.len() > MAX_ROWS {
            return Err(Problem::new(
                Kind::Invalid,
                format!("more than {MAX_ROWS} rows; ask for a shorter time or longer steps"),
            ));
        }
    }
    let rows = sums
        .into_iter()
        .map(|((start, key), sum)| UsageRow {
            start,
            key,
            calls: sum.calls,
            denied: sum.denied,
            estimated: sum.estimated,
            input_tokens: sum.input_tokens,
            output_tokens: sum.output_tokens,
            cached_input_tokens: sum.cached_input_tokens,
            cache_write_tokens: sum.cache_write_tokens,
            reasoning_tokens: sum.reasoning_tokens,
            cost_nano_usd: sum.cost_nano_usd.to_string(),
        })
        .collect();
    Ok(Json(Usage {
        by: asked.by,
        from,
        to,
        rows,
    }))
}
