//! Policies: documents as people wrote them, every version of each, and who applied it.

mod history;

use crate::{
    ControlPlane,
    access::Operator,
    bundles,
    problem::{
        BodyProblems, Diagnostic, JsonBody, Kind, Path, Problem, ProblemBody, Query, RawBody,
        WorkspaceProblems,
    },
    store::Write,
    text,
    workspaces::WorkspaceId,
};
use axum::{
    Json,
    extract::{DefaultBodyLimit, State},
    http::StatusCode,
};
use serde::{Deserialize, Serialize};
use tollgate_engine::time::Time;
use tollgate_policy::{Document, MAX_FILE_BYTES, Parsed, Rollout, Severity};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

/// Bytes of a set of files: what makes a bundle of 4 MiB, and as much again for comments and JSON's escapes.
const MAX_SET_BYTES: usize = 8 << 20;

/// Characters of a file's path.
const MAX_PATH_CHARS: usize = 1_024;

/// Files of a set.
const MAX_SET_FILES: usize = 1_024;

pub(crate) fn routes() -> OpenApiRouter<ControlPlane> {
    let one_file = OpenApiRouter::new()
        // One byte more than the reader takes, so that its own diagnostic says how long a file may be.
        .routes(routes!(list, apply))
        .layer(DefaultBodyLimit::max(MAX_FILE_BYTES + 1));
    let set = OpenApiRouter::new()
        .routes(routes!(apply_set))
        .layer(DefaultBodyLimit::max(MAX_SET_BYTES));
    OpenApiRouter::new()
        .merge(one_file)
        .merge(set)
        .routes(routes!(show, delete))
        .merge(history::routes())
}

/// How a set of policies is applied.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Applying {
    /// Names a document that does not name itself.
    #[serde(default = "unnamed")]
    #[param(min_length = 1, max_length = 128)]
    name: String,
    /// Unknown keys are errors, not warnings.
    #[serde(default)]
    strict: bool,
}

fn unnamed() -> String {
    "policy".to_owned()
}

/// What came of it.
#[derive(Serialize, ToSchema)]
struct Applied {
    /// The documents, in order.
    applied: Vec<AppliedPolicy>,
    /// What their author should look at again.
    warnings: Vec<Diagnostic>,
    /// The bundle revision that holds them.
    revision: i64,
}

/// One document that was applied.
#[derive(Serialize, ToSchema)]
struct AppliedPolicy {
    /// Its name.
    name: String,
    /// Its version: the former one when nothing changed.
    version: i64,
    /// Whether it differs from the former version.
    changed: bool,
}

/// One version of a policy.
#[derive(Serialize, ToSchema, sqlx::FromRow)]
struct Policy {
    /// Its name.
    name: String,
    /// Counts from 1.
    version: i64,
    /// As it was applied; null for a deletion.
    text: Option<String>,
    /// The operator key that applied it.
    author: String,
    /// Milliseconds since the Unix epoch.
    applied_ms: i64,
}

/// Several files, to be applied as one set.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewSet {
    /// The files.
    #[schema(min_items = 1, max_items = 1024)]
    files: Vec<NewFile>,
    /// Unknown keys are errors, not warnings.
    #[serde(default)]
    strict: bool,
}

/// A file of one or more documents.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewFile {
    /// What findings call it; its last part, without the ending, names a document that does not name itself.
    #[schema(
        min_length = 1,
        max_length = 1024,
        pattern = r"^[^\u0000-\u001f\u007f-\u009f]+$"
    )]
    path: String,
    /// YAML or JSON.
    text: String,
}

/// Where a text comes from.
struct Source {
    /// What the reader takes it for: a document that does not name itself is named as the file.
    file: String,
    /// What findings call it; `None` where there is only one.
    shown: Option<String>,
}

impl Source {
    fn named(name: &str) -> Source {
        Source {
            file: format!("{name}.yaml"),
            shown: None,
        }
    }

    /// The text of a policy that has been applied.
    fn stored(name: &str) -> Source {
        Source::named(name)
    }
}

fn parse(source: &Source, text: &[u8], strict: bool) -> Parsed {
    tollgate_policy::parse(&source.file, text, strict)
}

fn findings(parsed: &Parsed, source: &Source) -> Vec<Diagnostic> {
    let findings = parsed.diagnostics.iter();
    findings.map(|found| finding(found, source)).collect()
}

fn finding(diagnostic: &tollgate_policy::Diagnostic, source: &Source) -> Diagnostic {
    let narrow = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
    Diagnostic {
        file: source.shown.clone(),
        severity: match diagnostic.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        },
        code: diagnostic.code,
        path: diagnostic.path.clone(),
        message: diagnostic.message.clone(),
        line: narrow(diagnostic.line),
        column: narrow(diagnostic.column),
        suggestion: diagnostic.suggestion.clone(),
    }
}

/// Takes a file of several YAML documents apart. A line that starts with `---` is a document marker wherever it stands, in a block
/// scalar too (YAML 1.2.2 §9.1.2, `c-forbidden`).
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    for line in text.split_inclusive('\n') {
        let marker = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if marker {
            parts.push(String::new());
        }
        let bare = marker && line.trim_end() == "---";
        if let Some(part) = parts.last_mut()
            && !bare
        {
            part.push_str(line);
        }
    }
    parts
}

/// The text of each document of `parsed`, such that reading it alone gives the same document. `None` when the file cannot be taken
/// apart that way.
fn texts(file: &File, parsed: &Parsed) -> Option<Vec<String>> {
    if let [_] = parsed.documents.as_slice() {
        return Some(vec![file.text.clone()]);
    }
    let mut parts = split(&file.text).into_iter();
    parsed
        .documents
        .iter()
        .map(|document| {
            parts.find(|part| {
                let source = Source::named(&document.name);
                let alone = parse(&source, part.as_bytes(), false).documents;
                matches!(alone.as_slice(), [only] if compiled(only) == compiled(document))
            })
        })
        .collect()
}

/// What a document comes to, for comparing.
fn compiled(document: &Document) -> Option<String> {
    let compiled = tollgate_policy::compile(std::slice::from_ref(document), 0, 1).ok()?;
    serde_json::to_string(&(compiled.documents, compiled.shadow)).ok()
}

/// A policy as it was applied, read once more.
fn stored(name: &str, text: &str) -> Option<Document> {
    let parsed = parse(&Source::stored(name), text.as_bytes(), false);
    parsed.documents.into_iter().next()
}

/// The documents that count now.
pub(crate) async fn live(
    write: &mut Write,
    workspace: &WorkspaceId,
) -> Result<Vec<Document>, Problem> {
    let rows = texts_of(write, workspace).await?;
    rows.into_iter()
        .map(|(name, text)| {
            stored(&name, &text).ok_or_else(|| {
                // Never silently one policy less: gates keep the last bundle until somebody mends this.
                Problem::internal("stored policy", &format!("`{name}` is not read any more"))
            })
        })
        .collect()
}

/// The documents that count now and are no trial.
pub(crate) struct Enforced {
    pub(crate) documents: Vec<Document>,
    /// The names of those that are not read any more.
    pub(crate) unread: Vec<String>,
}

/// The enforced documents that count now. What a document says, only its reader knows: there are many ways to write a key.
pub(crate) async fn enforced(
    write: &mut Write,
    workspace: &WorkspaceId,
) -> Result<Enforced, Problem> {
    let mut enforced = Enforced {
        documents: Vec::new(),
        unread: Vec::new(),
    };
    for (name, text) in texts_of(write, workspace).await? {
        match stored(&name, &text) {
            Some(document) if document.rollout == Rollout::Enforce => {
                enforced.documents.push(document);
            }
            Some(_) => {}
            None => enforced.unread.push(name),
        }
    }
    Ok(enforced)
}

/// Names and texts of the documents that count now.
async fn texts_of(
    write: &mut Write,
    workspace: &WorkspaceId,
) -> Result<Vec<(String, String)>, sqlx::Error> {
    sqlx::query_as(
        "SELECT name, text FROM policies AS p WHERE workspace = $1 AND text IS NOT NULL AND version =
           (SELECT MAX(version) FROM policies WHERE workspace = p.workspace AND name = p.name)
         ORDER BY name",
    )
    .bind(workspace.as_str())
    .fetch_all(&mut **write)
    .await
}

/// The document of this name that counts now.
pub(crate) async fn named(
    write: &mut Write,
    workspace: &WorkspaceId,
    name: &str,
) -> Result<Option<Document>, Problem> {
    let text: Option<Option<String>> = sqlx::query_scalar(
        "SELECT text FROM policies WHERE workspace = $1 AND name = $2 ORDER BY version DESC LIMIT 1",
    )
    .bind(workspace.as_str())
    .bind(name)
    .fetch_optional(&mut **write)
    .await?;
    Ok(text.flatten().and_then(|text| stored(name, &text)))
}

/// Lists the policies that count now, without their text.
#[utoipa::path(get, path = "/v1/workspaces/{workspace}/policies", tag = "policies", security(("operator" = [])),
    params(("workspace" = String, Path, description = "`ws-<uuid>`")),
    responses((status = 200, body = Vec<LivePolicy>), WorkspaceProblems))]
async fn list(
    operator: Operator,
    State(state): State<ControlPlane>,
) -> Result<Json<Vec<LivePolicy>>, Problem> {
    let policies = sqlx::query_as(
        "SELECT p.name, p.version, p.author, o.name AS author_name, p.applied_ms
         FROM policies AS p JOIN operators AS o ON o.id = p.author
         WHERE p.workspace = $1 AND p.text IS NOT NULL AND p.version =
           (SELECT MAX(version) FROM policies WHERE workspace = p.workspace AND name = p.name)
         ORDER BY p.name",
    )
    .bind(operator.workspace.as_str())
    .fetch_all(state.store().read())
    .await?;
    Ok(Json(policies))
}

/// A policy that counts now.
#[derive(Serialize, ToSchema, sqlx::FromRow)]
struct LivePolicy {
    /// Its name.
    name: String,
    /// Counts from 1.
    version: i64,
    /// The operator key that applied it.
    author: String,
    /// What that key is called.
    author_name: String,
    /// Milliseconds since the Unix epoch.
    applied_ms: i64,
}

/// Applies a set of documents (YAML or JSON, one or more): each takes the place of the one of its name. All of them go live in one
/// bundle, or, when anything is wrong with any of them, none.
#[utoipa::path(put, path = "/v1/workspaces/{workspace}/policies", tag = "policies", security(("operator" = [])),
    params(("workspace" = String, Path, description = "`ws-<uuid>`"), Applying),
    request_body(description = "YAML or JSON", content_type = "application/yaml"),
    responses((status = 200, body = Applied), WorkspaceProblems,
        (status = 413, description = "Longer than policies may be", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "Something is wrong with them", body = ProblemBody, content_type = "application/problem+json")))]
async fn apply(
    operator: Operator,
    State(state): State<ControlPlane>,
    Query(applying): Query<Applying>,
    RawBody(body): RawBody,
) -> Result<Json<Applied>, Problem> {
    text::name("name", &applying.name)?;
    let file = std::str::from_utf8(&body).map(str::to_owned);
    let source = Source::named(&applying.name);
    // What is not UTF-8 is not read either, and the reader says where it stops being.
    let parsed = parse(&source, &body, applying.strict);
    let file = File {
        source,
        text: file.unwrap_or_default(),
        parsed,
    };
    put_into_service(&state, &operator, vec![file]).await
}

/// Applies the documents of several files as one set: all of them go live in one bundle, or, when anything is wrong with any of them,
/// none.
#[utoipa::path(post, path = "/v1/workspaces/{workspace}/policies", tag = "policies", security(("operator" = [])),
    params(("workspace" = String, Path, description = "`ws-<uuid>`")),
    request_body = NewSet,
    responses((status = 200, body = Applied), BodyProblems))]
async fn apply_set(
    operator: Operator,
    State(state): State<ControlPlane>,
    JsonBody(set): JsonBody<NewSet>,
) -> Result<Json<Applied>, Problem> {
    if !(1..=MAX_SET_FILES).contains(&set.files.len()) {
        return Err(Problem::new(
            Kind::Invalid,
            format!("a set has 1 to {MAX_SET_FILES} files"),
        ));
    }
    let mut files = Vec::with_capacity(set.files.len());
    for NewFile { path, text } in set.files {
        text::line("path", &path, MAX_PATH_CHARS)?;
        let source = Source {
            file: path.clone(),
            shown: Some(path),
        };
        let parsed = parse(&source, text.as_bytes(), set.strict);
        files.push(File {
            source,
            text,
            parsed,
        });
    }
    put_into_service(&state, &operator, files).await
}

/// A file that has been read.
struct File {
    source: Source,
    text: String,
    parsed: Parsed,
}

/// Puts every document of `files` into service, in one transaction and one bundle.
async fn put_into_service(
    state: &ControlPlane,
    operator: &Operator,
    mut files: Vec<File>,
) -> Result<Json<Applied>, Problem> {
    let mut parsed: Vec<Parsed> = files
        .iter_mut()
        .map(|file| std::mem::take(&mut file.parsed))
        .collect();
    tollgate_policy::check_together(&mut parsed);
    let findings: Vec<Diagnostic> = files
        .iter()
        .zip(&parsed)
        .flat_map(|(file, parsed)| self::findings(parsed, &file.source))
        .collect();
    if parsed.iter().any(Parsed::has_errors) {
        return Err(Problem::policy_refused(findings));
    }
    let now = state.now();
    let mut write = state.store().write().await?;
    let mut applied = Vec::new();
    for (file, parsed) in files.iter().zip(&parsed) {
        let texts = texts(file, parsed).ok_or_else(|| {
            Problem::new(
                Kind::Invalid,
                "the documents of this file cannot be told apart; apply them as files of their own",
            )
        })?;
        for (document, text) in parsed.documents.iter().zip(&texts) {
            text::name("metadata.name", &document.name)?;
            let former: Option<(i64, Option<String>)> = sqlx::query_as(
                "SELECT version, text FROM policies WHERE workspace = $1 AND name = $2 ORDER BY version DESC LIMIT 1",
            )
            .bind(operator.workspace.as_str())
            .bind(&document.name)
            .fetch_optional(&mut *write)
            .await?;
            let (former_version, former) = former.unwrap_or((0, None));
            let changed = former.as_ref() != Some(text);
            if changed {
                check_replaced(document, former.as_deref(), &file.source)?;
            }
            let version = if changed {
                insert(
                    &mut write,
                    (&operator.workspace, &operator.key),
                    &document.name,
                    former_version,
                    Content::Applied(text),
                    now.millis(),
                )
                .await?
            } else {
                former_version
            };
            applied.push(AppliedPolicy {
                name: document.name.clone(),
                version,
                changed,
            });
        }
    }
    let published = bundles::publish(
        state,
        &mut write,
        &operator.workspace,
        bundles::Change::Policies,
    )
    .await?;
    write.commit().await?;
    published.announce(state);
    tracing::info!(
        documents = applied.len(),
        by = operator.key,
        "policies applied"
    );
    Ok(Json(Applied {
        applied,
        warnings: findings,
        revision: published.revision,
    }))
}

/// What a version is.
#[derive(Clone, Copy)]
enum Content<'c> {
    /// As somebody wrote it.
    Applied(&'c str),
    /// The text of an earlier version.
    Restored { restores: i64, text: &'c str },
    /// Out of service.
    Deleted,
}

/// Refuses a document that was written to take the place of another than `former`: somebody has applied one meanwhile that its author does not
/// know.
fn check_replaced(
    document: &Document,
    former: Option<&str>,
    source: &Source,
) -> Result<(), Problem> {
    let Some(replaces) = &document.replaces else {
        return Ok(());
    };
    let former = former.map(|text| stored(&document.name, text));
    let there = match former {
        None => "there is none of this name".to_owned(),
        Some(former) => match former.and_then(|former| former.version) {
            Some(version) if version == replaces.version => return Ok(()),
            Some(version) => format!("the one in place is version `{version}`"),
            None => "the one in place has no version".to_owned(),
        },
    };
    let found = tollgate_policy::Diagnostic {
        severity: Severity::Error,
        code: tollgate_policy::codes::REPLACES_ANOTHER,
        path: "metadata.replaces".to_owned(),
        message: format!(
            "replaces version `{}` of `{}`, but {there}; look at it and name the version you have seen",
            replaces.version, document.name
        ),
        line: replaces.at.line,
        column: replaces.at.column,
        suggestion: None,
    };
    Err(Problem::policy_refused(vec![finding(&found, source)]))
}

/// Writes the first policy of a new workspace.
pub(crate) async fn start(
    write: &mut Write,
    workspace: &WorkspaceId,
    author: &str,
    now: Time,
) -> Result<(), sqlx::Error> {
    let (name, content) = (
        tollgate_policy::GUARDRAILS_NAME,
        Content::Applied(tollgate_policy::GUARDRAILS),
    );
    insert(write, (workspace, author), name, 0, content, now.millis()).await?;
    Ok(())
}

/// Writes the version after `former` and returns its number.
async fn insert(
    write: &mut Write,
    (workspace, author): (&WorkspaceId, &str),
    name: &str,
    former: i64,
    content: Content<'_>,
    now_ms: i64,
) -> Result<i64, sqlx::Error> {
    let version = former.saturating_add(1);
    let (text, restores) = match content {
        Content::Applied(text) => (Some(text), None),
        Content::Restored { restores, text } => (Some(text), Some(restores)),
        Content::Deleted => (None, None),
    };
    sqlx::query(
        "INSERT INTO policies (workspace, name, version, text, author, applied_ms, restores) VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(workspace.as_str())
    .bind(name)
    .bind(version)
    .bind(text)
    .bind(author)
    .bind(now_ms)
    .bind(restores)
    .execute(&mut **write)
    .await?;
    Ok(version)
}

fn no_policy() -> Problem {
    Problem::new(Kind::NotFound, "no policy has this name")
}

/// Shows a policy as it was applied.
#[utoipa::path(get, path = "/v1/workspaces/{workspace}/policies/{name}", tag = "policies", security(("operator" = [])),
    params(("workspace" = String, Path, description = "`ws-<uuid>`"), ("name" = String, Path, description = "Of the policy")),
    responses((status = 200, body = Policy), WorkspaceProblems))]
async fn show(
    operator: Operator,
    State(state): State<ControlPlane>,
    Path((_, name)): Path<(String, String)>,
) -> Result<Json<Policy>, Problem> {
    let newest: Option<Policy> = sqlx::query_as(
        "SELECT name, version, text, author, applied_ms FROM policies WHERE workspace = $1 AND name = $2
         ORDER BY version DESC LIMIT 1",
    )
    .bind(operator.workspace.as_str())
    .bind(name)
    .fetch_optional(state.store().read())
    .await?;
    newest
        .filter(|policy| policy.text.is_some())
        .map(Json)
        .ok_or_else(no_policy)
}

/// Takes a policy out of service. Its versions are kept.
#[utoipa::path(delete, path = "/v1/workspaces/{workspace}/policies/{name}", tag = "policies", security(("operator" = [])),
    params(("workspace" = String, Path, description = "`ws-<uuid>`"), ("name" = String, Path, description = "Of the policy")),
    responses((status = 204, description = "Out of service"), WorkspaceProblems))]
async fn delete(
    operator: Operator,
    State(state): State<ControlPlane>,
    Path((_, name)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    let mut write = state.store().write().await?;
    let newest: Option<(i64, Option<String>)> = sqlx::query_as(
        "SELECT version, text FROM policies WHERE workspace = $1 AND name = $2 ORDER BY version DESC LIMIT 1",
    )
    .bind(operator.workspace.as_str())
    .bind(&name)
    .fetch_optional(&mut *write)
    .await?;
    let Some((version, Some(_))) = newest else {
        return Err(no_policy());
    };
    insert(
        &mut write,
        (&operator.workspace, &operator.key),
        &name,
        version,
        Content::Deleted,
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
    tracing::info!(policy = name, by = operator.key, "policy deleted");
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, text: &str) -> (File, Parsed) {
        let source = Source::named(name);
        let parsed = parse(&source, text.as_bytes(), false);
        let file = File {
            source,
            text: text.to_owned(),
            parsed: Parsed::default(),
        };
        (file, parsed)
    }

    #[test]
    fn a_file_of_several_documents_is_taken_apart_at_its_markers() {
        let file = "# both\n---\nscope: global\nnetwork:\n  allowlist: [a.example]\n--- # second\nscope: team:x\nnetwork:\n  allowlist: [b.example]\n";
        let (file, parsed) = read("pair", file);
        assert_eq!(parsed.documents.len(), 2, "{:?}", parsed.diagnostics);
        assert_eq!(
            texts(&file, &parsed),
            Some(vec![
                "scope: global\nnetwork:\n  allowlist: [a.example]\n".to_owned(),
                "--- # second\nscope: team:x\nnetwork:\n  allowlist: [b.example]\n".to_owned(),
            ])
        );
    }

    #[test]
    fn one_document_is_kept_as_it_came() {
        let text = "# mine\nscope: global\n";
        let (file, parsed) = read("one", text);
        assert_eq!(texts(&file, &parsed), Some(vec![text.to_owned()]));
    }
}
