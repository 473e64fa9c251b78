//! The control plane: signs policy into bundles, leases budgets, takes in audit batches, counts usage.
//!
//! One folder or file per thing an operator knows, each with its rules, its SQL and its routes, and one line in [`app`]'s router.
//! Beside them stands what all of them need: `access` (keys, and who may do what), `problem` (errors), `store` (the database),
//! `signing`, `files`.
//!
//! Deliberately not here: TLS (put a proxy in front; without one it listens on the loopback only), people and their passwords, and
//! anything a gate needs to decide a call: gates go on without us until their leases or bundles end.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

mod access;
mod agents;
mod approvals;
pub mod audit;
mod bundles;
mod connections;
mod events;
mod files;
mod gates;
mod halts;
mod health;
pub mod leases;
mod notify;
mod operators;
mod policies;
mod problem;
mod signing;
mod store;
mod text;
mod usage;
mod workspaces;

use access::{KeyKind, NewKey, Pepper};
use axum::{
    Router,
    extract::{DefaultBodyLimit, MatchedPath, RawPathParams, Request, State},
    http::{HeaderValue, Method},
    middleware::{self, Next},
    response::Response,
};
use files::{DataDir, Mark};
use health::{Answered, Metrics};
pub use notify::{Channel, Channels, read_channels};
use problem::Problem;
use signing::Signer;
pub use signing::public_key;
use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use store::Store;
use tokio::{net::TcpListener, sync::watch};
use tollgate_engine::time::Time;
use tracing::Instrument as _;
use utoipa::openapi::{
    Info, OpenApi,
    security::{Http, HttpAuthScheme, SecurityScheme},
};
use utoipa_axum::router::OpenApiRouter;

/// How often bundles are looked at for re-signing and old leases forgotten; more often where bundles live for less than four of these.
const UPKEEP_EVERY: Duration = Duration::from_secs(60);

/// How long the end waits for the database. What was committed is on the disk, closed or not.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of a body where a route does not set its own limit: names and little else.
const MAX_BODY_BYTES: usize = 16 << 10;

/// Tells the time. A test may tell another.
pub type Clock = Arc<dyn Fn() -> Time + Send + Sync>;

/// What an operator of the installation may set.
#[derive(Clone)]
pub struct Settings {
    /// How long a lease lasts without being renewed.
    pub lease_term_secs: u32,
    /// How long a bundle lasts without being re-signed; a minute at least, so that a gate has a quarter of it to fetch the next.
    pub bundle_ttl_secs: u32,
    /// Who may be told that a call waits for approval, by the names that policies use.
    pub channels: Channels,
    /// What time it is.
    pub clock: Clock,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            lease_term_secs: 60,
            bundle_ttl_secs: 86_400,
            channels: Channels::new(),
            clock: Arc::new(|| {
                let since = SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .unwrap_or_default();
                Time::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
            }),
        }
    }
}

impl Settings {
    /// A bundle is signed anew by the first upkeep after half of its life. With four in a life, a quarter is left for gates to fetch it.
    fn upkeep_every(&self) -> Duration {
        let quarter = Duration::from_secs(self.bundle_ttl_secs.into()) / 4;
        quarter.clamp(Duration::from_secs(1), UPKEEP_EVERY)
    }

    fn lease_term_ms(&self) -> i64 {
        i64::from(self.lease_term_secs).saturating_mul(1_000)
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("lease_term_secs", &self.lease_term_secs)
            .field("bundle_ttl_secs", &self.bundle_ttl_secs)
            .field("channels", &self.channels)
            .finish_non_exhaustive()
    }
}

/// Why a control plane did not start.
#[derive(Debug)]
pub enum OpenError {
    /// A file of the data directory.
    Files(PathBuf, io::Error),
    /// The database.
    Database(sqlx::Error),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::Files(path, error) => {
                write!(f, "data directory `{}`: {error}", path.display())
            }
            OpenError::Database(error) => write!(f, "database: {error}"),
        }
    }
}

impl std::error::Error for OpenError {}

/// A control plane on its data directory. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ControlPlane(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    data: DataDir,
    mark: Mark,
    settings: Settings,
    store: Store,
    signer: Signer,
    pepper: Pepper,
    metrics: Metrics,
    announcements: bundles::Announcements,
    payloads: bundles::Payloads,
    recalls: leases::recall::Recalls,
    looked_at_records: audit::Looked,
    listening_since: OnceLock<Time>,
    stopping: watch::Sender<bool>,
}

impl ControlPlane {
    /// Opens the data directory, making what is missing: database, signing key, and the root operator's key in `root.key`.
    ///
    /// # Errors
    /// When the directory is in use by another control plane, or a file in it cannot be read or written.
    pub async fn open(data: &Path, settings: Settings) -> Result<ControlPlane, OpenError> {
        let files = |error| OpenError::Files(data.to_owned(), error);
        let dir = DataDir::open(data).map_err(files)?;
        // The database last: with it the directory counts as in use, and keys that are missing are lost.
        let signer = Signer::open(&dir).map_err(files)?;
        let pepper = Pepper::open(&dir).map_err(files)?;
        let database = dir.database().map_err(files)?;
        let store = Store::open(&database).await.map_err(OpenError::Database)?;
        let mark = dir.mark().map_err(files)?;
        let state = ControlPlane(Arc::new(Inner {
            data: dir,
            mark,
            settings,
            store,
            signer,
            pepper,
            metrics: Metrics::new(),
            announcements: bundles::Announcements::default(),
            payloads: bundles::Payloads::default(),
            recalls: leases::recall::Recalls::default(),
            looked_at_records: audit::Looked::default(),
            listening_since: OnceLock::new(),
            stopping: watch::Sender::new(false),
        }));
        state.make_root_key().await?;
        leases::look_back(&state)
            .await
            .map_err(OpenError::Database)?;
        bundles::refresh(&state)
            .await
            .map_err(OpenError::Database)?;
        // The last of all: what comes before may take long.
        state.listening_since();
        Ok(state)
    }

    /// Makes a root key when there is no `root.key`: at the first start, and after somebody removed the file to have another one.
    async fn make_root_key(&self) -> Result<(), OpenError> {
        let file = self.0.data.root_key();
        let files = |error| OpenError::Files(file.clone(), error);
        if file.exists() {
            return files::keep_private(&file).map_err(files);
        }
        let key = self.0.pepper.new_key(KeyKind::Operator).map_err(files)?;
        let stored = async {
            let mut write = self.store().write().await?;
            operators::replace_root(&mut write, &key, self.now()).await?;
            write.commit().await
        };
        stored.await.map_err(OpenError::Database)?;
        // After the database: a crash between the two leaves no file, and the next start makes another key.
        files::write_private(&file, &key.text).map_err(files)?;
        tracing::info!(file = %file.display(), "root key made");
        Ok(())
    }

    /// Ends its work with the database. What was committed is there for the next.
    pub async fn close(self) {
        self.store().close().await;
    }

    fn now(&self) -> Time {
        (self.0.settings.clock)()
    }

    fn settings(&self) -> &Settings {
        &self.0.settings
    }

    fn store(&self) -> &Store {
        &self.0.store
    }

    fn mark(&self) -> &Mark {
        &self.0.mark
    }

    fn signer(&self) -> &Signer {
        &self.0.signer
    }

    fn pepper(&self) -> &Pepper {
        &self.0.pepper
    }

    fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    fn announcements(&self) -> &bundles::Announcements {
        &self.0.announcements
    }

    fn payloads(&self) -> &bundles::Payloads {
        &self.0.payloads
    }

    fn recalls(&self) -> &leases::recall::Recalls {
        &self.0.recalls
    }

    fn looked_at_records(&self) -> &audit::Looked {
        &self.0.looked_at_records
    }

    /// When we began to listen: who said something before that was not heard.
    fn listening_since(&self) -> Time {
        *self.0.listening_since.get_or_init(|| self.now())
    }

    fn stopping(&self) -> watch::Receiver<bool> {
        self.0.stopping.subscribe()
    }

    fn new_key(&self, kind: KeyKind) -> Result<NewKey, Problem> {
        self.pepper()
            .new_key(kind)
            .map_err(|error| Problem::internal("random numbers", &error))
    }

    /// What is due between requests: re-signs bundles, forgets leases of windows long past and records that policies want kept no longer.
    ///
    /// # Errors
    /// When the database does not answer; it is tried again with the next call.
    pub async fn upkeep(&self) -> Result<(), OpenError> {
        bundles::refresh(self).await.map_err(OpenError::Database)?;
        leases::release_lost(self)
            .await
            .map_err(OpenError::Database)?;
        leases::prune(self).await.map_err(OpenError::Database)?;
        audit::forget(self).await.map_err(OpenError::Database)
    }

    /// Tells the channels that policies name of calls that wait.
    ///
    /// # Errors
    /// When the database does not answer; what was not told is told with the next call.
    pub async fn notify(&self) -> Result<(), OpenError> {
        notify::send_due(self).await.map_err(OpenError::Database)
    }
}

fn router() -> OpenApiRouter<ControlPlane> {
    OpenApiRouter::new()
        .merge(health::routes())
        .merge(workspaces::routes())
        .merge(operators::routes())
        .merge(agents::routes())
        .merge(halts::routes())
        .merge(approvals::routes())
        .merge(events::routes())
        .merge(policies::routes())
        .merge(bundles::routes())
        .merge(gates::routes())
        .merge(leases::routes())
        .merge(audit::routes())
        .merge(usage::routes())
}

/// The API document: every route there is, since a route is registered and documented by the same line.
pub fn openapi() -> OpenApi {
    let mut api = router().into_openapi();
    api.info = Info::new("Tollgate control plane", env!("CARGO_PKG_VERSION"));
    api.info.description = Some(
        "Every route but `/healthz` and `/readyz` needs a key: `authorization: Bearer tgo_…` for operators, `tge_…` for gates, its token for an agent. \
         No or an unknown key is 401, another workspace's 404, the wrong kind of key 403. Problems are `application/problem+json` (RFC 9457)."
            .to_owned(),
    );
    // Handlers are named within their module; the document wants one name each.
    for item in api.paths.paths.values_mut() {
        for operation in [
            &mut item.get,
            &mut item.post,
            &mut item.put,
            &mut item.delete,
        ] {
            if let Some(operation) = operation
                && let (Some(tags), Some(id)) = (&operation.tags, &operation.operation_id)
            {
                operation.operation_id = Some(format!("{}.{id}", tags.join(".")));
            }
        }
    }
    let components = api.components.get_or_insert_default();
    for (name, description) in [
        ("operator", "An operator key, `tgo_…`"),
        ("gate", "A gate's enrolment key, `tge_…`"),
        ("agent", "An agent's token, good for an hour"),
    ] {
        let mut scheme = Http::new(HttpAuthScheme::Bearer);
        scheme.description = Some(description.to_owned());
        components.add_security_scheme(name, SecurityScheme::Http(scheme));
    }
    api
}

/// The service, without a socket.
pub fn app(state: ControlPlane) -> Router {
    let (router, _) = router().split_for_parts();
    router
        .fallback(health::nowhere)
        .method_not_allowed_fallback(health::wrong_method)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(middleware::from_fn_with_state(state.clone(), observe))
        .with_state(state)
}

/// Gives every request an id, its log lines a span, and counts the answer. Never looks at headers or bodies.
async fn observe(
    State(state): State<ControlPlane>,
    route: Option<MatchedPath>,
    params: Result<RawPathParams, axum::extract::rejection::RawPathParamsRejection>,
    request: Request,
    next: Next,
) -> Response {
    let id = uuid::Uuid::now_v7().to_string();
    // A method may be any word; only those that mean something here become a label.
    let method = match *request.method() {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        _ => "(other)",
    };
    let route = route.map_or_else(|| "(none)".to_owned(), |route| route.as_str().to_owned());
    let workspace = params
        .ok()
        .and_then(|params| {
            let found = params.iter().find(|(name, _)| *name == "workspace");
            found.map(|(_, value)| value.to_owned())
        })
        // Whoever calls chooses this text; only what can be a workspace goes into the log.
        .filter(|value| {
            value
                .strip_prefix("ws-")
                .is_some_and(|id| uuid::Uuid::try_parse(id).is_ok())
        });
    let routine = route.contains("/gate/") || !route.starts_with("/v1/");
    let span = tracing::info_span!("request", request_id = id, method, route, workspace);
    let start = Instant::now();
    let mut response = next.run(request).instrument(span.clone()).await;
    let status = response.status().as_u16();
    span.in_scope(|| {
        let millis = start.elapsed().as_secs_f64() * 1_000.0;
        // Every gate reports every second or so, and probes and scrapers knock as often.
        if routine && status < 400 {
            tracing::debug!(status, millis, "answered");
        } else {
            tracing::info!(status, millis, "answered");
        }
    });
    state
        .metrics()
        .requests
        .get_or_create(&Answered {
            method,
            route,
            status,
        })
        .inc();
    state
        .metrics()
        .request_seconds
        .observe(start.elapsed().as_secs_f64());
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert("x-request-id", id);
    }
    response
}

/// Serves until `shutdown` ends, then answers what is under way, long polls at once, and closes the database. What is not answered after ten
/// seconds is cut off.
pub async fn run(
    state: ControlPlane,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send + 'static,
) {
    let upkeep = tokio::spawn({
        let state = state.clone();
        async move {
            let mut ticks = tokio::time::interval(state.settings().upkeep_every());
            loop {
                ticks.tick().await;
                if let Err(error) = state.upkeep().await {
                    tracing::error!(cause = %error, "upkeep failed; it is tried again within a minute");
                }
            }
        }
    });
    let notify = tokio::spawn({
        let state = state.clone();
        async move {
            let mut ticks = tokio::time::interval(notify::EVERY);
            let mut rounds = tokio::task::JoinSet::new();
            loop {
                ticks.tick().await;
                while rounds.try_join_next().is_some() {}
                if rounds.len() >= notify::MAX_ROUNDS {
                    continue;
                }
                let state = state.clone();
                rounds.spawn(async move {
                    if let Err(error) = state.notify().await {
                        tracing::error!(cause = %error, "channels were not told; it is tried again in a second");
                    }
                });
            }
        }
    });
    let stopping = state.clone();
    let limits = connections::Limits::of_this_process();
    connections::serve(listener, app(state.clone()), limits, async move {
        shutdown.await;
        tracing::info!("stopping");
        stopping.0.stopping.send_replace(true);
    })
    .await;
    upkeep.abort();
    notify.abort();
    if tokio::time::timeout(CLOSE_TIMEOUT, state.close())
        .await
        .is_err()
    {
        tracing::warn!(
            "the database is not closed, something still uses it; the next start mends that"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_of_any_life_is_looked_at_in_time() {
        let every = |bundle_ttl_secs| {
            let settings = Settings {
                bundle_ttl_secs,
                ..Settings::default()
            };
            settings.upkeep_every().as_millis()
        };
        // 60 s: signed anew after 45 s at the latest, 15 s before its end. 119 s: after 59.5 + 29.75, so as long before its end.
        assert_eq!((every(60), every(119)), (15_000, 29_750));
        assert_eq!((every(240), every(86_400)), (60_000, 60_000));
        assert_eq!(every(0), 1_000);
    }
}
