//! The Spin component in the tests' stand-in for Spin: configured, started.
//!
//! No package registry has Spin itself. What stands in for it is a program of the `tests` crate, since it is made of wasmtime and nothing here is.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cargo;
use crate::envoy::Origin;
use crate::process::Process;

/// The component is compiled to machine code at the start, without optimisation: seconds, on a busy machine.
const START_DEADLINE: Duration = Duration::from_secs(120);

/// As docs/hosts.md has Spin started.
const REQUESTS_PER_INSTANCE: usize = 16;

/// What the stand-in is started with; it reads this as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct App {
    /// The component.
    pub component: PathBuf,
    /// Spin variables, by name.
    pub variables: BTreeMap<String, String>,
    /// `scheme://host:port` of all that may be reached.
    pub allowed_outbound_hosts: Vec<String>,
    /// Requests in the life of an instance, and at once.
    pub requests_per_instance: usize,
    /// Whether to have the machine code optimised, for measurements: it takes longer to start.
    pub optimised: bool,
}

impl App {
    /// What only passes calls on.
    #[must_use]
    pub fn pass_through(component: PathBuf, upstream: &Origin) -> Self {
        Self {
            component,
            variables: BTreeMap::from([("upstream".to_owned(), upstream.url())]),
            allowed_outbound_hosts: vec![upstream.url()],
            requests_per_instance: REQUESTS_PER_INSTANCE,
            optimised: false,
        }
    }

    /// The gate, as its `spin.toml` and an operator would have it.
    #[must_use]
    pub fn gate(
        component: PathBuf,
        settings: &Value,
        upstream: &Origin,
        control_plane: SocketAddr,
        secrets: &[(OsString, OsString)],
    ) -> Self {
        let hosts = [upstream.url(), Origin::from(control_plane).url()];
        let mut variables = BTreeMap::from([
            ("gate".to_owned(), settings.to_string()),
            ("upstream".to_owned(), hosts[0].clone()),
            ("control_plane".to_owned(), hosts[1].clone()),
        ]);
        for (name, value) in secrets {
            let (name, value) = (name.to_string_lossy(), value.to_string_lossy());
            variables.insert(name.to_lowercase(), value.into_owned());
        }
        Self {
            component,
            variables,
            allowed_outbound_hosts: hosts.to_vec(),
            requests_per_instance: REQUESTS_PER_INSTANCE,
            optimised: false,
        }
    }
}

/// A running stand-in.
#[derive(Debug)]
pub struct Spin {
    /// The process.
    pub process: Process,
    /// Where it listens.
    pub listen: SocketAddr,
}

impl Spin {
    /// Builds the stand-in, `build_arguments` going to cargo, and starts it; its settings and its log go to `folder`.
    ///
    /// # Errors
    /// When it does not come up; with the end of its log.
    pub fn start(app: &App, folder: &Path, build_arguments: &[&str]) -> Result<Self> {
        let arguments = [&["--bin", "spin"], build_arguments].concat();
        let program = cargo::build("tollgate-tests", "spin", "", &arguments)?;
        let settings = folder.join("spin.json");
        fs::write(&settings, serde_json::to_string(app)?)?;
        let mut command = Command::new(program);
        command.arg(&settings);
        let mut process =
            Process::spawn("the stand-in for Spin", command, &folder.join("spin.log"))?;
        let listen = process.wait_for_line("its address", START_DEADLINE, |line| {
            line.strip_prefix("listens on ")?.parse().ok()
        })?;
        Ok(Self { process, listen })
    }

    /// The URL of `path` at it.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.listen)
    }
}
