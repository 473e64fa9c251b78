//! The driver that edge workers share: one call from its first header to its settlement, and what has to be done between calls.
//!
//! Like every gate it translates and carries out, and decides nothing: there is no branch on a policy, a budget or a tenant in it. It is
//! generic over what differs between platforms, and that is little. A platform's crate brings
//!
//! 1. a [`Platform`]: a clock, entropy, an HTTP client, a pause, a log;
//! 2. a [`Store`]: small values with an atomic swap;
//! 3. a [`Line`]: how the code that serves calls reaches the keeper.
//!
//! # Two parts
//! The [`Keeper`] is the **holder**: leases in cells, the journal, the name under which the control plane knows it. There is one of it for
//! whatever has one [`Store`], and all of its state that matters is there, so that it may die at any time. It takes a [`Message`] at a time,
//! many at once, and between them the platform calls [`Keeper::round`].
//!
//! An [`Edge`] is what the calls of one instance share: the verified bundle, and nothing else that would be missed. [`Edge::serve`] is one call.
//! Where keeper and calls live in the same instance, a `&Keeper` is its own [`Line`].
//!
//! # What a platform does with them
//! - For every request: [`Edge::serve`]. It gives the answer, and `rest`, a future that meters the answer on its way and settles it. Answer with
//!   the one, and run the other **to its end**, also after the answer is through and when the caller has left (`waitUntil`, a spawned task). An
//!   answer that is dropped counts as a caller who has left.
//! - [`GATHER_MS`] after a message to the keeper ([`ROUND_MS`] where calls keep coming), or at a time of its choice: [`Keeper::round`], which does what is due once (is there a newer bundle,
//!   leases to report and renew, records to deliver) and says when to come again. Rounds that come late cost freshness, nothing else. Where a platform has
//!   one alarm for both, an [`Alarm`] knows which of them comes first; where it has none, calls that have ended do the [`Rounds`].
//! - Where the store is an [`Ahead`], [`NOTE_MS`] after a [`Message::Reserve`] or [`Message::Lease`] was answered: [`Keeper::note`].
//! - At a cold start: [`Edge::install`] with an envelope from whatever cache there is, if there is one. It is verified like any other.
//!
//! # What holds
//! - Messages may be lost, and their answers. A reservation is noted under its call's id, so a [`Message::Reserve`] or [`Message::Close`] that
//!   comes twice changes nothing the second time.
//! - A call that reserved and was never closed ([`OPEN_LIMIT_MS`]) is told to the control plane as a record that this gate lost. Its
//!   reservation stays until its window ends: what a lost call had is never spent twice. Where that cannot be said of each call, because its keeper
//!   died before it was noted, there is a record `worker_lost`.
//! - A call is decided by the bundle that the keeper ran at most [`FRESH_MS`] before; and a keeper that has slept asks the control plane before it answers.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]
#![expect(
    async_fn_in_trait,
    reason = "instances of edge platforms have one thread, so no future has to be `Send`"
)]

mod ahead;
mod alarm;
mod edge;
mod keeper;
mod message;
mod parts;
mod places;
mod platform;
mod store;

pub use ahead::{Ahead, Disk};
pub use alarm::Alarm;
pub use edge::{Answer, AnswerBody, Call, Edge, FRESH_MS, ReplyStream, Served};
pub use keeper::{GATHER_MS, Keeper, NOTE_MS, OPEN_LIMIT_MS, ROUND_MS, Rounds};
pub use message::{Change, Heard, Line, Message, Refused, Want};
pub use parts::{joined, parts};
pub use places::Places;
pub use platform::{Broken, Headers, Platform, Request, RequestBody, Response, Unreachable};
pub use store::{BUNDLE, Memory, Store, Unavailable, written_once};
