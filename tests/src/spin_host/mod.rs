//! As much of Spin as the gate needs, to run its component in this process, since no package registry has Spin itself.
//!
//! wasmtime, WASI and HTTP are those that Spin is made of, its way to use one instance for many requests is too (`wasmtime_wasi_http::handler`). By
//! hand, in [`store`]: the key-value store, with the quirks that Spin's own has, and variables. A test holds the wall clock.

mod store;

pub use store::Values;

use anyhow::{Context as _, Result};
use http_body_util::BodyExt as _;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    task::{Context as Wakes, Poll},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::{net::TcpListener, runtime::Runtime, time::Sleep};
use tollgate_engine::time::Time;
use wasmtime::{
    Config, Engine, OptLevel, Store, StoreContextMut,
    component::{Component, GuestTaskId, Linker, ResourceTable},
};
use wasmtime_wasi::{
    HostWallClock, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView, p2::pipe::MemoryOutputPipe,
};
use wasmtime_wasi_http::{
    Error, RequestOptions, WasiBody, WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks, WasiHttpView,
    handler::{
        HandlerState, Instance, Proxy, ProxyHandler, ShouldAccept, WorkerExpiration, WorkerState,
        WorkerStatus,
    },
    io::TokioIo,
    p3::bindings::ServicePre,
};

/// After so long without work Spin drops an instance.
const IDLE: Duration = Duration::from_secs(1);
/// Of what the component logs.
const LOG_BYTES: usize = 1 << 20;

/// How instances are used.
#[derive(Clone, Copy, Debug)]
pub struct Reuse {
    /// Requests in the life of one.
    pub requests: usize,
    /// Requests at once.
    pub at_once: usize,
}

impl Reuse {
    /// A fresh instance for each request, as Spin makes them where requests are rare.
    pub const NEVER: Reuse = Reuse {
        requests: 1,
        at_once: 1,
    };
    /// As `docs/hosts.md` has Spin started.
    pub const SPIN: Reuse = Reuse {
        requests: 16,
        at_once: 16,
    };
}

/// What is run, and how.
#[derive(Clone, Debug)]
pub struct App {
    /// By name.
    pub variables: BTreeMap<String, String>,
    /// `scheme://host:port`.
    pub allowed_outbound_hosts: Vec<String>,
    /// The key-value store.
    pub values: Values,
    /// How instances are used.
    pub reuse: Reuse,
    /// The wall clock.
    pub clock: Clock,
    /// Whether the component's machine code is optimised, for measurements; by the first host of a program, for all.
    pub optimised: bool,
}

/// A wall clock that a test holds; shows the real time until it is set.
#[derive(Clone, Debug, Default)]
pub struct Clock(Arc<AtomicI64>);

impl Clock {
    /// Stops it at this instant.
    pub fn set(&self, now: Time) {
        self.0.store(now.micros(), Ordering::SeqCst);
    }
}

impl HostWallClock for Clock {
    fn resolution(&self) -> Duration {
        Duration::from_micros(1)
    }

    fn now(&self) -> Duration {
        match u64::try_from(self.0.load(Ordering::SeqCst)) {
            Ok(micros @ 1..) => Duration::from_micros(micros),
            _ => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default(),
        }
    }
}

/// A running host; gone with its value.
#[derive(Debug)]
pub struct SpinHost {
    /// Where it listens.
    pub listen: SocketAddr,
    seen: Arc<Observed>,
    runtime: Option<Runtime>,
}

/// What a host saw of its instances.
#[derive(Debug)]
struct Observed {
    log: MemoryOutputPipe,
    instances: AtomicU64,
    ended: AtomicU64,
    traps: Mutex<Vec<String>>,
}

impl SpinHost {
    /// Starts the component in the file at `path` on a free port.
    ///
    /// # Errors
    /// When it is no component that Spin could run, or there is no port.
    pub fn start(path: &Path, app: App) -> Result<SpinHost> {
        let compiled = compiled(path, app.optimised)?;
        let seen = Arc::new(Observed {
            log: MemoryOutputPipe::new(LOG_BYTES),
            instances: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            traps: Mutex::default(),
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
        let listen = listener.local_addr()?;
        let handler = ProxyHandler::new(Instances {
            compiled,
            app: Arc::new(app),
            seen: Arc::clone(&seen),
        });
        runtime.spawn(serve(listener, handler));
        Ok(SpinHost {
            listen,
            seen,
            runtime: Some(runtime),
        })
    }

    /// What the component has logged.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&self.seen.log.contents()).into_owned()
    }

    /// How many instances there were.
    #[must_use]
    pub fn instances(&self) -> u64 {
        self.seen.instances.load(Ordering::SeqCst)
    }

    /// How many there still are.
    #[must_use]
    pub fn running(&self) -> u64 {
        let ended = self.seen.ended.load(Ordering::SeqCst);
        self.instances().saturating_sub(ended)
    }

    /// How those ended that did not end well.
    #[must_use]
    pub fn traps(&self) -> Vec<String> {
        let traps = &self.seen.traps;
        traps.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for SpinHost {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Compiled once for all hosts of a program.
#[derive(Clone)]
struct Compiled {
    engine: Engine,
    service: ServicePre<Guest>,
}

fn compiled(path: &Path, optimised: bool) -> Result<Compiled> {
    static COMPILED: OnceLock<Result<Compiled, String>> = OnceLock::new();
    let compile = || -> wasmtime::Result<Compiled> {
        let mut config = Config::new();
        config.wasm_component_model_async(true);
        config.cranelift_opt_level(match optimised {
            true => OptLevel::Speed,
            false => OptLevel::None,
        });
        let engine = Engine::new(&config)?;
        let component = Component::from_file(&engine, path)?;
        let mut linker = Linker::new(&engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
        wasmtime_wasi::p3::add_to_linker(&mut linker)?;
        wasmtime_wasi_http::p3::add_to_linker(&mut linker)?;
        store::add_to_linker(&mut linker)?;
        let service = ServicePre::new(linker.instantiate_pre(&component)?)?;
        Ok(Compiled { engine, service })
    };
    let compiled = COMPILED.get_or_init(|| compile().map_err(|error| format!("{error:#}")));
    compiled
        .clone()
        .map_err(anyhow::Error::msg)
        .with_context(|| format!("cannot run `{}`", path.display()))
}

async fn serve(listener: TcpListener, handler: ProxyHandler<Instances>) {
    while let Ok((stream, _)) = listener.accept().await {
        let handler = handler.clone();
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            let answer = service_fn(move |request: hyper::Request<Incoming>| {
                let handler = handler.clone();
                async move {
                    let request =
                        absolute(request).map(|body| body.map_err(Error::from).boxed_unsync());
                    handler
                        .handle((), request)
                        .await
                        .map_err(anyhow::Error::from)
                }
            });
            // Whoever breaks off gets no answer, and the others are not concerned.
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), answer)
                .await;
        });
    }
}

/// The component hears of scheme and authority only if they are in the URI. As in Spin, they come from the connection and the `host` header.
fn absolute(request: hyper::Request<Incoming>) -> hyper::Request<Incoming> {
    let (mut parts, body) = request.into_parts();
    let authority = parts
        .headers
        .get("host")
        .and_then(|host| host.to_str().ok());
    let mut uri = parts.uri.clone().into_parts();
    if uri.authority.is_none()
        && let Some(authority) = authority.and_then(|host| host.parse().ok())
    {
        uri.authority = Some(authority);
        uri.scheme = Some(hyper::http::uri::Scheme::HTTP);
        if let Ok(uri) = hyper::Uri::from_parts(uri) {
            parts.uri = uri;
        }
    }
    hyper::Request::from_parts(parts, body)
}

/// What an instance has in its store.
pub(crate) struct Guest {
    wasi: WasiCtx,
    http: WasiHttpCtx,
    table: ResourceTable,
    outbound: Outbound,
    app: Arc<App>,
    /// Handles that were swapped with and, as in Spin, never given back.
    swapped: usize,
}

impl WasiView for Guest {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

impl WasiHttpView for Guest {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView {
            hooks: &mut self.outbound,
            table: &mut self.table,
            ctx: &mut self.http,
        }
    }
}

/// Lets only allowed hosts be reached.
struct Outbound(Arc<App>);

type Transfer = Box<dyn Future<Output = Result<(), Error>> + Send>;

impl WasiHttpHooks for Outbound {
    fn send_request(
        &mut self,
        request: hyper::Request<WasiBody>,
        options: Option<RequestOptions>,
        _: Transfer,
    ) -> Box<dyn Future<Output = Result<(hyper::Response<WasiBody>, Transfer), Error>> + Send> {
        let uri = request.uri();
        let scheme = uri.scheme_str().unwrap_or_default();
        let host = uri.authority().map_or("", |authority| authority.as_str());
        let host = format!("{scheme}://{host}");
        let allowed = self.0.allowed_outbound_hosts.contains(&host);
        Box::new(async move {
            if !allowed {
                return Err(Error::HttpRequestDenied);
            }
            let (response, transfer) =
                wasmtime_wasi_http::default_send_request(request, options).await?;
            let transfer: Transfer = Box::new(transfer);
            Ok((response.map(|body| body.boxed_unsync()), transfer))
        })
    }
}

/// Makes instances.
struct Instances {
    compiled: Compiled,
    app: Arc<App>,
    seen: Arc<Observed>,
}

impl HandlerState for Instances {
    type StoreData = Guest;
    type WorkerExpiration = Idle;
    type WorkerState = Worker;

    async fn instantiate(&self) -> wasmtime::Result<Instance<Guest, Idle, Worker>> {
        self.seen.instances.fetch_add(1, Ordering::SeqCst);
        let wasi = WasiCtxBuilder::new()
            .wall_clock(self.app.clock.clone())
            .stderr(self.seen.log.clone())
            .build();
        let guest = Guest {
            wasi,
            http: WasiHttpCtx::new(),
            table: ResourceTable::new(),
            outbound: Outbound(Arc::clone(&self.app)),
            app: Arc::clone(&self.app),
            swapped: 0,
        };
        let mut store = Store::new(&self.compiled.engine, guest);
        let service = self.compiled.service.instantiate_async(&mut store).await?;
        Ok(Instance {
            store,
            proxy: Proxy::P3(service),
            view: Guest::http,
            expiration: Idle(None),
            state: Worker {
                reuse: self.app.reuse,
                seen: Arc::clone(&self.seen),
            },
        })
    }
}

/// Ends an instance that has nothing to do.
#[derive(Default)]
struct Idle(Option<(Instant, Pin<Box<Sleep>>)>);

impl WorkerExpiration for Idle {
    fn poll(
        mut self: Pin<&mut Self>,
        wakes: &mut Wakes<'_>,
        status: WorkerStatus,
        since: Instant,
    ) -> Poll<()> {
        if status != WorkerStatus::Idle {
            self.0 = None;
            return Poll::Pending;
        }
        if self.0.as_ref().is_none_or(|(known, _)| *known != since) {
            let end = tokio::time::sleep_until((since + IDLE).into());
            self.0 = Some((since, Box::pin(end)));
        }
        match &mut self.0 {
            Some((_, end)) => end.as_mut().poll(wakes),
            None => Poll::Pending,
        }
    }
}

struct Worker {
    reuse: Reuse,
    seen: Arc<Observed>,
}

impl WorkerState for Worker {
    type StoreData = Guest;
    type RequestData = ();

    fn should_accept_request(&self, at_once: usize, requests: usize) -> ShouldAccept {
        if requests >= self.reuse.requests {
            ShouldAccept::Never
        } else if at_once >= self.reuse.at_once {
            ShouldAccept::No
        } else {
            ShouldAccept::Yes
        }
    }

    fn on_request_start(
        &self,
        _: StoreContextMut<'_, Guest>,
        (): (),
        _: GuestTaskId,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + Sync>> {
        Box::pin(std::future::pending())
    }

    fn drop(&self, _: Store<Guest>, result: wasmtime::Result<()>) {
        self.seen.ended.fetch_add(1, Ordering::SeqCst);
        if let Err(error) = result {
            let traps = &self.seen.traps;
            traps
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(format!("{error:#}"));
        }
    }
}
