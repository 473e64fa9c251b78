//! The gate as a Spin component: [`tollgate_edge_worker`] with Spin's means.
//!
//! Calls and keeper live in the same instance. Spin makes and drops instances as it likes, one for a request or one for many at once, so an instance
//! keeps nothing that would be missed: what the keeper knows is in the key-value store, where all instances share it. After its answer a call goes
//! on until it is settled, and then until the control plane has heard what it has to, a few rounds at most; what it has not heard by then it hears
//! with the next call. There is no other clock here: Spin wakes nobody who has no request.
//!
//! `host` speaks HTTP, `ledger` to the key-value store; here is the entry point.
//!
//! | variable | |
//! |---|---|
//! | `gate` | the engine's gate settings, as JSON |
//! | `upstream` | the URL under which the upstream's paths are |
//! | `control_plane` | the URL of the control plane |
//! | `ledger` | `shared` (also when absent): one holder for all instances, in the key-value store. `instance`: every instance its own, in memory |
//! | whatever `gate` names with `env:`, in lower case | secrets: the enrolment key, the provider's keys |
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

mod alone;
mod host;
mod ledger;

use alone::Call;
use host::{Setup, Spin};
use ledger::Ledger;
use spin_sdk::wasip3::{
    self,
    exports::http::handler::Guest,
    http::types::{ErrorCode, Request, Response},
};
use std::{cell::RefCell, rc::Rc};
use tollgate_edge_worker::{Edge, Keeper, Platform as _, Rounds};

thread_local! {
    /// What the calls of this instance share; made by the first.
    static INSTANCE: RefCell<Option<Rc<Instance>>> = const { RefCell::new(None) };
}

struct Instance {
    edge: Rc<Edge>,
    keeper: Rc<Keeper<Spin, Ledger>>,
    /// Spin keeps the instance for them.
    rounds: Rounds,
}

impl Instance {
    async fn start() -> Result<Rc<Instance>, String> {
        if let Some(instance) = INSTANCE.with_borrow(Clone::clone) {
            return Ok(instance);
        }
        let setup = Setup::read().await?;
        let ledger = Ledger::open(&setup.ledger).await?;
        let edge = Edge::new(setup.config.clone(), &setup.upstream);
        let keeper = Keeper::open(Spin, ledger, setup.config, &setup.control_plane).await;
        let instance = Rc::new(Instance {
            edge: Rc::new(edge),
            keeper: Rc::new(keeper),
            rounds: Rounds::default(),
        });
        // Another first call may have been faster.
        Ok(INSTANCE.with_borrow_mut(|shared| Rc::clone(shared.get_or_insert(instance))))
    }
}

struct Component;

wasip3::http::service::export!(Component with_types_in wasip3);

impl Guest for Component {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let instance = match Instance::start().await {
            Ok(instance) => instance,
            Err(why) => {
                Spin.log(&format!("this gate cannot work: {why}"));
                return host::unconfigured();
            }
        };
        let bodiless = host::wants_no_body(&request);
        let call = Call::new();
        let (edge, keeper) = (Rc::clone(&instance.edge), Rc::clone(&instance.keeper));
        let served = call.alone(async move {
            let call = host::call(request).await;
            edge.serve(Spin, keeper, call).await
        });
        let served = served.await;
        wasip3::spawn(call.alone(async move {
            served.rest.await;
            instance.rounds.after_a_call(&instance.keeper).await;
        }));
        host::response(served.answer, bodiless)
    }
}
