//! The Durable Object: a keeper, its storage, its alarm.

use crate::host::{self, Cloudflare, Setup, Stored};
use std::{
    cell::{Cell, OnceCell},
    rc::Rc,
};
use tollgate_edge_worker::{
    self as edge, Ahead, Alarm, GATHER_MS, Message, NOTE_MS, Platform as _, ROUND_MS,
};
use worker::{DurableObject, Env, Request, Response, Result, State, durable_object};

/// How long a keeper may take to read its storage, and between two looks at whether it has.
const OPENING_MS: u32 = 5_000;
const OPENING_PAUSE_MS: u32 = 5;

type Holder = edge::Keeper<Cloudflare, Ahead<Stored>>;

/// The Durable Object.
#[durable_object(alarm)]
pub struct Keeper {
    /// Empty until its storage is read; nothing where it cannot work.
    keeper: Rc<OnceCell<Option<Holder>>>,
    state: State,
    alarm: Alarm,
    /// Calls are about to be noted.
    noting: Rc<Cell<bool>>,
}

impl DurableObject for Keeper {
    /// Nothing is delivered to it before its storage is read.
    fn new(state: State, env: Env) -> Self {
        let keeper = Rc::new(OnceCell::new());
        let slot = Rc::clone(&keeper);
        let storage = state.storage();
        let _opened = state.block_concurrency_while(async move {
            match Setup::read(&env) {
                Ok(setup) => {
                    let stored = Stored::load(storage, env, setup.name()).await?;
                    let keeper =
                        edge::Keeper::open(Cloudflare, stored, setup.config, &setup.control_plane);
                    let _ = slot.set(Some(keeper.await));
                }
                Err(why) => {
                    Cloudflare.log(&format!("this keeper cannot work: {why}"));
                    let _ = slot.set(None);
                }
            }
            Ok(())
        });
        Keeper {
            keeper,
            state,
            alarm: Alarm::default(),
            noting: Rc::default(),
        }
    }

    async fn fetch(&self, request: Request) -> Result<Response> {
        let Some(keeper) = self.opened().await else {
            return host::unconfigured();
        };
        let in_header = host::reads_headers(&request);
        let message = host::said(request).await?;
        self.wake_in(GATHER_MS, ROUND_MS).await?;
        let reserves = matches!(message, Message::Reserve { .. } | Message::Lease { .. });
        let heard = keeper.handle(message).await;
        if reserves {
            self.note();
        }
        host::saying(&heard, in_header)
    }

    async fn alarm(&self) -> Result<Response> {
        self.alarm.rang();
        if let Some(keeper) = self.opened().await
            && let Some(next) = keeper.round().await
        {
            let wait_ms = next.millis_since(Cloudflare.now());
            self.wake_in(wait_ms, wait_ms).await?;
        }
        Response::empty()
    }
}

impl Keeper {
    /// Nothing is delivered before it is opened, but for the event under way when a panic has made this one anew.
    async fn opened(&self) -> Option<&Holder> {
        for _ in 0..OPENING_MS / OPENING_PAUSE_MS {
            if let Some(keeper) = self.keeper.get() {
                return keeper.as_ref();
            }
            Cloudflare.pause(OPENING_PAUSE_MS).await;
        }
        None
    }

    /// Sees to it that the calls under way are noted soon, unless that is so.
    fn note(&self) {
        if self.noting.replace(true) {
            return;
        }
        let (keeper, noting) = (Rc::clone(&self.keeper), Rc::clone(&self.noting));
        self.state.wait_until(async move {
            Cloudflare.pause(NOTE_MS).await;
            noting.set(false);
            if let Some(Some(keeper)) = keeper.get() {
                keeper.note().await;
            }
        });
    }

    /// Sees to it that the alarm rings in `wait_ms`, or leaves it as it is where it rings in `at_most_ms`.
    async fn wake_in(&self, wait_ms: i64, at_most_ms: i64) -> Result<()> {
        if !self.alarm.moves_to(Cloudflare.now(), wait_ms, at_most_ms) {
            return Ok(());
        }
        self.state.storage().set_alarm(wait_ms.max(0)).await
    }
}
