//! The bundled stand-in provider as a process.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use crate::process::Process;
use crate::stack::Upstream;
use crate::{cargo, progress};

/// What the stand-in wants and the gate adds. It opens nothing else.
const PROVIDER_KEY: &str = "stand-in-provider-key";

/// A running stand-in.
#[derive(Debug)]
pub struct StandIn {
    /// The process.
    pub process: Process,
    /// Where it listens.
    pub address: SocketAddr,
}

impl StandIn {
    /// Builds it, `build_arguments` going to cargo, and starts it on a free port.
    ///
    /// # Errors
    /// When it does not build or does not start.
    pub fn start(log: &Path, build_arguments: &[&str]) -> Result<Self> {
        progress::say("Building", "the stand-in provider");
        let mut command = Command::new(cargo::build(
            "tollgate-stand-in",
            "stand-in",
            "",
            build_arguments,
        )?);
        command.env("STAND_IN_PROVIDER_KEY", PROVIDER_KEY);
        let mut process = Process::spawn("the stand-in provider", command, log)?;
        let address =
            process.wait_for_line("the stand-in's address", Duration::from_secs(10), |line| {
                serde_json::from_str::<Value>(line).ok()?["address"]
                    .as_str()?
                    .parse()
                    .ok()
            })?;
        Ok(Self { process, address })
    }

    /// It as what the gate passes calls on to. It speaks for both providers.
    #[must_use]
    pub fn upstream(&self) -> Upstream {
        let key = Some(PROVIDER_KEY.to_owned());
        Upstream {
            origin: self.address.into(),
            openai_key: key.clone(),
            anthropic_key: key,
        }
    }
}
