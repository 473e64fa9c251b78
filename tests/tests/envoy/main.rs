//! The gate as it is deployed: a real Envoy with two workers, the real control plane, and a provider that remembers what reached it.
//!
//! Each test has a whole of its own. What a decision *is* belongs to the corpus; here is what only a running Envoy can show: that it is
//! carried out, by two threads at once, and that it holds when processes die.

mod budgets;
mod calls;
mod failures;
mod halts;
mod killed;
mod recall;
mod scene;
mod streams;
mod upstream;
mod watched;
