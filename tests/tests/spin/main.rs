//! The gate as a Spin component in front of a provider: instances that serve one request each, and instances that serve many.
//!
//! It runs in the stand-in for Spin (`tollgate_tests::spin_host`), since no package registry has Spin itself. With `SPIN_BIN` in the environment the same
//! tests run on that Spin instead.

mod calls;
mod scene;
