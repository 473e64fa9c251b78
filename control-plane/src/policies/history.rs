//! What was in service before: every version of a policy, who applied it, when, and what it changed; and the way back to one of them.

use super::{Policy, Source, parse};
use crate::{
    ControlPlane,
    access::Operator,
    bundles,
    problem::{BodyProblems, JsonBody, Kind, Path, Problem, Query, WorkspaceProblems},
    store::MAX_EXACT,
};
use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use tollgate_policy::Document;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

/// Versions in one answer: each is read and compared with the one before it.
const MAX_VERSIONS: u32 = 100;

pub(super) fn routes() -> OpenApiRouter<ControlPlane> {
    OpenApiRouter::new()
        .routes(routes!(versions))
        .routes(routes!(version))
        .routes(routes!(rollback))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Page {
    /// Versions before this one only.
    #[serde(default = "latest")]
    #[param(minimum = 1, maximum = 9_007_199_254_740_991_i64)]
    before: i64,
    /// How many.
    #[serde(default = "most")]
    #[param(minimum = 1, maximum = 100)]
    limit: u32,
}

const fn latest() -> i64 {
    MAX_EXACT
}

const fn most() -> u32 {
    MAX_VERSIONS
}

/// One version of a policy.
#[derive(Serialize, ToSchema)]
struct Version {
    /// Counts from 1.
    version: i64,
    /// Whether it took the policy out of service.
    deleted: bool,
    /// The earlier version it put back into service; null for one that was applied or deleted.
    restores: Option<i64>,
    /// The operator key that applied it.
    author: String,
    /// What that key is called.
    author_name: String,
    /// Milliseconds since the Unix epoch.
    applied_ms: i64,
    /// What it changed against the version before it; null where one of the two is not read any more.
    changes: Option<Vec<Change>>,
}

/// One difference to the version before.
#[derive(Serialize, ToSchema)]
struct Change {
    /// Whom it concerns.
    scope: String,
    /// The field; empty where the policy as a whole is meant.
    rule: String,
    /// `narrows`, `widens` or `alters` what may be called.
    effect: String,
    /// In words.
    message: String,
}

#[derive(sqlx::FromRow)]
struct Stored {
    version: i64,
    text: Option<String>,
    restores: Option<i64>,
    author: String,
    author_name: String,
    applied_ms: i64,
}

/// The document of a stored version; none for a deletion, `None` where it is not read any more.
fn document(name: &str, text: Option<&String>) -> Option<Vec<Document>> {
    let Some(text) = text else {
        return Some(Vec::new());
    };
    let parsed = parse(&Source::stored(name), text.as_bytes(), false);
    (!parsed.has_errors()).then_some(parsed.documents)
}

/// Every version of a policy, newest first: who applied it, when, and what it changed.
#[utoipa::path(get, path = "/v1/workspaces/{workspace}/policies/{name}/versions", tag = "policies", security(("operator" = [])),
    params(("workspace" = String, Path, description = "`ws-<uuid>`"), ("name" = String, Path, description = "Of the policy"), Page),
    responses((status = 200, body = Vec<Version>), WorkspaceProblems))]
async fn versions(
    operator: Operator,
    State(state): State<ControlPlane>,
    Path((_, name)): Path<(String, String)>,
    Query(page): Query<Page>,
) -> Result<Json<Vec<Version>>, Problem> {
    if !(1..=MAX_VERSIONS).contains(&page.limit) || !(1..=MAX_EXACT).contains(&page.before) {
        return Err(Problem::new(
            Kind::Malformed,
            format!("`limit` must be 1 to {MAX_VERSIONS}, `before` a version"),
        ));
    }
    // One more than asked for: the oldest is compared with the one before it.
    let stored: Vec<Stored> = sqlx::query_as(
        "SELECT p.version, p.text, p.restores, p.author, o.name AS author_name, p.applied_ms
         FROM policies AS p JOIN operators AS o ON o.id = p.author
         WHERE p.workspace = $1 AND p.name = $2 AND p.version < $3 ORDER BY p.version DESC LIMIT $4",
    )
    .bind(operator.workspace.as_str())
    .bind(&name)
    .bind(page.before)
    .bind(i64::from(page.limit).saturating_add(1))
    .fetch_all(state.store().read())
    .await?;
    if stored.is_empty() && page.before == MAX_EXACT {
        return Err(super::no_policy());
    }
    let documents: Vec<Option<Vec<Document>>> = stored
        .iter()
        .map(|version| document(&name, version.text.as_ref()))
        .collect();
    let limit = usize::try_from(page.limit).unwrap_or(usize::MAX);
    let before_the_first = Some(Vec::new());
    let versions = stored.iter().enumerate().take(limit).map(|(at, version)| {
        let older = documents.get(at.saturating_add(1));
        let older = older.unwrap_or(&before_the_first).as_ref();
        let newer = documents.get(at).and_then(Option::as_ref);
        Version {
            version: version.version,
            deleted: version.text.is_none(),
            restores: version.restores,
            author: version.author.clone(),
            author_name: version.author_name.clone(),
            applied_ms: version.applied_ms,
            changes: older.zip(newer).map(|(old, new)| changes(old, new)),
        }
    });
    Ok(Json(versions.collect()))
}

fn changes(old: &[Document], new: &[Document]) -> Vec<Change> {
    // What else was in service then is not looked up.
    tollgate_policy::diff_of_some(old, new)
        .into_iter()
        .map(|change| Change {
            scope: change.scope.to_string(),
            rule: change.rule,
            effect: change.effect.to_string(),
            message: change.message,
        })
        .collect()
}

/// Shows one version of a policy as it was applied.
#[utoipa::path(get, path = "/v1/workspaces/{workspace}/policies/{name}/versions/{version}", tag = "policies", security(("operator" = [])),
    params(("workspace" = String, Path, description = "`ws-<uuid>`"), ("name" = String, Path, description = "Of the policy"),
        ("version" = i64, Path, description = "Counts from 1", minimum = 1)),
    responses((status = 200, body = Policy), WorkspaceProblems))]
async fn version(
    operator: Operator,
    State(state): State<ControlPlane>,
    Path((_, name, version)): Path<(String, String, i64)>,
) -> Result<Json<Policy>, Problem> {
    sqlx::query_as(
        "SELECT name, version, text, author, applied_ms FROM policies WHERE workspace = $1 AND name = $2 AND version = $3",
    )
    .bind(operator.workspace.as_str())
    .bind(name)
    .bind(version)
    .fetch_optional(state.store().read())
    .await?
    .map(Json)
    .ok_or_else(no_version)
}

fn no_version() -> Problem {
    Problem::new(Kind::NotFound, "the policy has no such version")
}

/// Which version to go back to.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Target {
    /// An earlier version of the policy; the one before the newest when absent.
    #[serde(default)]
    #[schema(minimum = 1)]
    version: Option<i64>,
}

/// What came of it.
#[derive(Serialize, ToSchema)]
struct RolledBack {
    /// The policy.
    name: String,
    /// Its new version.
    version: i64,
    /// The version whose text it has.
    restores: i64,
    /// The bundle revision that holds it.
    revision: i64,
}

/// Puts an earlier version back into service, as a new version and in a new bundle. It is checked as if it were applied now.
#[utoipa::path(post, path = "/v1/workspaces/{workspace}/policies/{name}/rollback", tag = "policies", security(("operator" = [])),
    params(("workspace" = String, Path, description = "`ws-<uuid>`"), ("name" = String, Path, description = "Of the policy")),
    request_body = Target,
    responses((status = 200, body = RolledBack), BodyProblems))]
async fn rollback(
    operator: Operator,
    State(state): State<ControlPlane>,
    Path((_, name)): Path<(String, String)>,
    JsonBody(target): JsonBody<Target>,
) -> Result<Json<RolledBack>, Problem> {
    let mut write = state.store().write().await?;
    let newest: Option<i64> =
        sqlx::query_scalar("SELECT MAX(version) FROM policies WHERE workspace = $1 AND name = $2")
            .bind(operator.workspace.as_str())
            .bind(&name)
            .fetch_one(&mut *write)
            .await?;
    let newest = newest.ok_or_else(super::no_policy)?;
    let restores = target.version.unwrap_or(newest.saturating_sub(1));
    if restores == newest {
        return Err(Problem::new(
            Kind::Invalid,
            "this version is the newest; name an earlier one",
        ));
    }
    let text: Option<Option<String>> = sqlx::query_scalar(
        "SELECT text FROM policies WHERE workspace = $1 AND name = $2 AND version = $3",
    )
    .bind(operator.workspace.as_str())
    .bind(&name)
    .bind(restores)
    .fetch_optional(&mut *write)
    .await?;
    let text = text.ok_or_else(no_version)?.ok_or_else(|| {
        Problem::new(
            Kind::Invalid,
            "this version took the policy out of service; delete the policy to do so again",
        )
    })?;
    let source = Source::stored(&name);
    let parsed = parse(&source, text.as_bytes(), false);
    if parsed.has_errors() {
        // Applied under an older version of this program, which took what this one does not.
        return Err(Problem::policy_refused(super::findings(&parsed, &source)));
    }
    let version = super::insert(
        &mut write,
        (&operator.workspace, &operator.key),
        &name,
        newest,
        super::Content::Restored {
            restores,
            text: &text,
        },
        state.now().millis(),
    )
    .await?;
    let published = bundles::publish(
        &state,
        &mut write,
        &operator.workspace,
        bundles::Change::Policies,
    )
    .await?;
    write.commit().await?;
    published.announce(&state);
    tracing::info!(
        policy = name,
        restores,
        by = operator.key,
        "policy rolled back"
    );
    Ok(Json(RolledBack {
        name,
        version,
        restores,
        revision: published.revision,
    }))
}
