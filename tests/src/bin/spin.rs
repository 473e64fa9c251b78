//! The stand-in for Spin as a program, for `cargo xtask`: takes a file with its settings, says where it listens, and runs until it is stopped.

use anyhow::{Context as _, Result};
use std::{io::Write as _, path::PathBuf, thread};
use tollgate_tests::spin_host::{App, Clock, Reuse, SpinHost, Values};
use xtask::spin;

fn main() -> Result<()> {
    let settings = std::env::args_os().nth(1).map(PathBuf::from);
    let settings = settings.context("usage: spin SETTINGS, a file that `cargo xtask` writes")?;
    let settings = std::fs::read_to_string(&settings)
        .with_context(|| format!("cannot read `{}`", settings.display()))?;
    let settings: spin::App = serde_json::from_str(&settings)?;
    let app = App {
        variables: settings.variables,
        allowed_outbound_hosts: settings.allowed_outbound_hosts,
        values: Values::default(),
        reuse: Reuse {
            requests: settings.requests_per_instance,
            at_once: settings.requests_per_instance,
        },
        clock: Clock::default(),
        optimised: settings.optimised,
    };
    let host = SpinHost::start(&settings.component, app)?;
    println!("listens on {}", host.listen);
    std::io::stdout().flush()?;
    loop {
        thread::park();
    }
}
