//! The gate as a Cloudflare Worker: [`tollgate_edge_worker`] with Cloudflare's means.
//!
//! - Isolates serve calls. What they keep is the verified bundle; a cold one finds its envelope in Workers KV, where there is a binding for it.
//! - A Durable Object is the keeper, one for each workspace and channel. Its storage holds the leases, the journal and the bundle; what was written is
//!   durable before an answer leaves it (the output gate). Its alarm calls the rounds, and is itself durable: after a crash they go on.
//! - `waitUntil` keeps a call alive until it is settled, whether its caller is still there or not.
//!
//! `host` speaks to Cloudflare; here are its entry points. `entry.js` stands before them: it replaces a wasm instance that has panicked.
//!
//! | binding | kind | |
//! |---|---|---|
//! | `GATE` | variable | the engine's gate settings, as an object or as JSON |
//! | `UPSTREAM` | variable | the URL under which the upstream's paths are |
//! | `CONTROL_PLANE` | variable | the URL of the control plane |
//! | whatever `GATE` names with `env:` | secrets | the enrolment key, the provider's keys |
//! | `KEEPER` | Durable Object namespace | class `Keeper` |
//! | `BUNDLES` | KV namespace | optional: bundles for cold isolates |
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

mod host;
mod keeper;

use host::{Cloudflare, KeeperLine, Setup};
use std::{cell::RefCell, rc::Rc};
use tollgate_edge_worker::{Edge, Platform as _};
use worker::{Context, Env, Request, Response, Result, event};

/// What the calls of this isolate share.
#[derive(Clone)]
struct Shared {
    edge: Rc<Edge>,
    /// The keeper's.
    name: Rc<str>,
}

thread_local! {
    /// Made by the first call.
    static SHARED: RefCell<Option<Shared>> = const { RefCell::new(None) };
}

/// The error is a sentence for the operator.
async fn shared(env: &Env) -> std::result::Result<Shared, String> {
    if let Some(shared) = SHARED.with_borrow(Clone::clone) {
        return Ok(shared);
    }
    let setup = Setup::read(env)?;
    let name = setup.name();
    let edge = Edge::new(setup.config, &setup.upstream);
    if let Some(envelope) = host::cached_bundle(env, &name).await
        && let Err(why) = edge.install(&envelope, Cloudflare.now())
    {
        Cloudflare.log(&format!("the cached bundle is not run: {why}"));
    }
    let shared = Shared {
        edge: Rc::new(edge),
        name: name.into(),
    };
    // Another first call may have been faster.
    Ok(SHARED.with_borrow_mut(|there| there.get_or_insert(shared).clone()))
}

/// One call. All of it runs under `waitUntil`, so that a caller who leaves takes nothing along: what comes before the answer by `entry.js`, and the rest
/// from here.
#[event(fetch)]
async fn fetch(request: Request, env: Env, context: Context) -> Result<Response> {
    let call = host::call(&request)?;
    let Shared { edge, name } = match shared(&env).await {
        Ok(shared) => shared,
        Err(why) => {
            Cloudflare.log(&format!("this gate's configuration is not usable: {why}"));
            return host::unconfigured();
        }
    };
    let line = KeeperLine::new(env, name);
    let served = edge.serve(Cloudflare, line, call).await;
    context.wait_until(served.rest);
    host::response(served.answer)
}
