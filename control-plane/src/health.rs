//! Health, metrics and the API document.

use crate::{
    ControlPlane,
    access::AnyOperator,
    problem::{KeyProblems, Kind, Problem},
};
use axum::{
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::Registry,
};
use utoipa_axum::{router::OpenApiRouter, routes};

pub(crate) fn routes() -> OpenApiRouter<ControlPlane> {
    OpenApiRouter::new()
        .routes(routes!(healthz))
        .routes(routes!(readyz))
        .routes(routes!(metrics))
        .routes(routes!(openapi))
}

/// Labels of an answered request. The route is the pattern, never the path: its values are bounded, and it names no tenant.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct Answered {
    pub(crate) method: &'static str,
    pub(crate) route: String,
    pub(crate) status: u16,
}

/// What is counted. Sums over all workspaces: a tenant's own figures are on its own routes.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) requests: Family<Answered, Counter>,
    pub(crate) request_seconds: Histogram,
    pub(crate) bundles_published: Counter,
    pub(crate) bundles_failed: Counter,
    pub(crate) leases_granted: Counter,
    pub(crate) leases_short: Counter,
    pub(crate) recalls: Counter,
    pub(crate) leases_stale: Counter,
    pub(crate) batches_accepted: Counter,
    pub(crate) batches_repeated: Counter,
    pub(crate) batches_refused: Counter,
    pub(crate) forks: Counter,
    pub(crate) records: Counter,
    pub(crate) records_missing: Counter,
    pub(crate) records_dropped: Counter,
}

impl Metrics {
    pub(crate) fn new() -> Metrics {
        let mut registry = Registry::with_prefix("tollgate");
        let requests = Family::default();
        registry.register("requests", "Requests answered", requests.clone());
        // From a lookup to a group of commits on a slow disk.
        let request_seconds = Histogram::new([0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0]);
        registry.register(
            "request_seconds",
            "Time to answer, long polls included",
            request_seconds.clone(),
        );
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        Metrics {
            bundles_published: counter("bundles_published", "Bundle revisions published"),
            bundles_failed: counter("bundles_failed", "Bundles that could not be published"),
            leases_granted: counter("leases_granted", "Lease asks met in full"),
            leases_short: counter("leases_short", "Lease asks the account did not cover"),
            recalls: counter(
                "recalls",
                "Times that gates were asked for what they do not use",
            ),
            leases_stale: counter("leases_stale", "Lease requests of an epoch gone by"),
            batches_accepted: counter("audit_batches_accepted", "Audit batches stored"),
            batches_repeated: counter("audit_batches_repeated", "Audit batches sent again"),
            batches_refused: counter("audit_batches_refused", "Audit batches refused"),
            forks: counter("audit_forks", "Audit batches that did not follow"),
            records: counter("audit_records", "Audit records stored"),
            records_missing: counter("audit_records_missing", "Audit records that never came"),
            records_dropped: counter(
                "audit_records_dropped",
                "Audit records that gates dropped themselves",
            ),
            requests,
            request_seconds,
            registry,
        }
    }
}

/// Whether the process runs. Open, and says nothing else.
#[utoipa::path(get, path = "/healthz", tag = "health", security(()),
    responses((status = 200, description = "It runs")))]
async fn healthz() -> StatusCode {
    StatusCode::OK
}

/// Whether the database takes writes. Open, and says nothing else.
#[utoipa::path(get, path = "/readyz", tag = "health", security(()),
    responses((status = 200, description = "Ready"), (status = 503, description = "Not ready")))]
async fn readyz(State(state): State<ControlPlane>) -> StatusCode {
    let ready = async {
        if *state.stopping().borrow() {
            return Err(sqlx::Error::PoolClosed);
        }
        let mut write = state.store().write().await?;
        // Takes the write lock and changes nothing.
        sqlx::query("DELETE FROM leases WHERE workspace IS NULL")
            .execute(&mut *write)
            .await?;
        write.rollback().await
    };
    match ready.await {
        Ok(()) => StatusCode::OK,
        Err(error) => {
            tracing::warn!(cause = %error, "not ready");
            StatusCode::SERVICE_UNAVAILABLE
        }
    }
}

/// Counters in the OpenMetrics text format.
#[utoipa::path(get, path = "/metrics", tag = "health", security(("operator" = [])),
    responses((status = 200, description = "OpenMetrics text", content_type = "application/openmetrics-text"), KeyProblems))]
async fn metrics(_: AnyOperator, State(state): State<ControlPlane>) -> Result<Response, Problem> {
    let mut text = String::new();
    encode(&mut text, &state.metrics().registry)
        .map_err(|error| Problem::internal("metrics", &error))?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

/// This API as an OpenAPI document.
#[utoipa::path(get, path = "/openapi.json", tag = "health", security(("operator" = [])),
    responses((status = 200, description = "OpenAPI 3.1", content_type = "application/json"), KeyProblems))]
async fn openapi(_: AnyOperator) -> Result<Response, Problem> {
    let document = crate::openapi()
        .to_json()
        .map_err(|error| Problem::internal("API document", &error))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], document).into_response())
}

pub(crate) async fn nowhere() -> Problem {
    Problem::new(Kind::NotFound, "there is nothing at this path")
}

pub(crate) async fn wrong_method() -> Problem {
    Problem::new(
        Kind::MethodNotAllowed,
        "this path has other methods; /openapi.json lists them",
    )
}
