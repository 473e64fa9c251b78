//! The Envoy gate: a proxy-wasm filter around [`tollgate_engine`].
//!
//! It translates and carries out, and decides nothing: headers and bytes go into an exchange, its steps come out and are done with Envoy's
//! means. Cells are in Envoy's shared data, errands are Envoy's HTTP calls, records go through a shared queue.
//!
//! - `host` speaks to Envoy, alone.
//! - `call` drives one exchange per HTTP stream.
//! - `worker` is what the calls of one Envoy thread share; `errands` is what it does between them.
//! - `store` is what the threads share.
//! - `profile` measures all that, where the filter is built for it.
//!
//! Envoy makes one VM per thread, the main thread's included, and throws a crashed one away. So nothing that matters lives in a VM alone.

mod call;
mod errands;
mod host;
mod metrics;
mod profile;
mod root;
mod store;
mod worker;
