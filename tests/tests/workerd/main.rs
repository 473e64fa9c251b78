//! The Cloudflare Worker in the real workerd, with the real control plane, and a provider that remembers what reached it.
//!
//! Each test has a whole of its own. What a decision *is* belongs to the corpus; here is what only a running worker can show: that its Durable
//! Object holds when many call at once, and when processes die.

mod calls;
mod failures;
mod scene;
