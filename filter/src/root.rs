//! The filter's life in one VM: configured, ticking, handing its answers on.

use crate::{call::Stream, host, profile, worker::Worker};
use proxy_wasm::{
    traits::{Context, HttpContext, RootContext},
    types::{Action, BufferType, ContextType, LogLevel},
};
use serde::Deserialize;
use std::rc::Rc;
use tollgate_engine::{
    gate::{self, Config, Gate},
    json,
};

/// How often a VM looks after its errands when nothing presses; milliseconds.
pub(crate) const TICK_MS: u32 = 100;

/// The plugin's configuration.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    gate: gate::Settings,
    /// Envoy's cluster that leads to the control plane.
    #[serde(default = "default_cluster")]
    control_plane_cluster: String,
    /// The `host` that the control plane, or what stands before it, wants to be called by.
    #[serde(default = "default_authority")]
    control_plane_authority: String,
}

fn default_cluster() -> String {
    "control_plane".to_owned()
}

fn default_authority() -> String {
    "control-plane".to_owned()
}

proxy_wasm::main! {{
    proxy_wasm::set_root_context(|context| Box::new(Root::new(context)));
}}

struct Root {
    context: u32,
    worker: Option<Rc<Worker>>,
}

impl Root {
    fn new(context: u32) -> Root {
        Root {
            context,
            worker: None,
        }
    }

    fn configure(&self) -> Result<Worker, String> {
        let text = host::buffer(BufferType::PluginConfiguration, usize::MAX)
            .map_err(|_| "it cannot be read".to_owned())?;
        let settings: Settings =
            json::read(&text).map_err(|error| format!("filter settings: {error}"))?;
        let config = Config::resolve(settings.gate, |name| std::env::var(name).ok())?;
        let id = host::random().map_err(|_| "there is no randomness".to_owned())?;
        host::set_tick_period(TICK_MS).map_err(|_| "there is no timer".to_owned())?;
        Ok(Worker::new(
            self.context,
            id,
            Gate::new(config),
            settings.control_plane_cluster,
            settings.control_plane_authority,
        ))
    }
}

impl Context for Root {
    fn on_http_call_response(&mut self, token: u32, _: usize, body_size: usize, _: usize) {
        if let Some(worker) = &self.worker {
            worker.answered(token, body_size);
        }
    }

    /// Envoy has taken in another configuration, or ends.
    fn on_done(&mut self) -> bool {
        if let Some(worker) = &self.worker {
            worker.leave();
        }
        true
    }
}

impl RootContext for Root {
    /// Runs on every thread and once more in a VM that Envoy throws away, so it starts nothing: the first tick does. `false` keeps Envoy from
    /// starting, or from taking a changed configuration in.
    fn on_configure(&mut self, _: usize) -> bool {
        match self.configure() {
            Ok(worker) => {
                self.worker = Some(Rc::new(worker));
                true
            }
            Err(why) => {
                host::log(
                    LogLevel::Error,
                    &format!("this gate's configuration is not usable: {why}"),
                );
                false
            }
        }
    }

    fn on_tick(&mut self) {
        if let Some(worker) = &self.worker {
            worker.tick();
            profile::tell(&worker.store);
        }
    }

    fn create_http_context(&self, context: u32) -> Option<Box<dyn HttpContext>> {
        Some(match &self.worker {
            Some(worker) => Box::new(Stream::new(Rc::clone(worker), context)),
            None => Box::new(Unconfigured),
        })
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

/// A stream of a root without a configuration. Envoy makes none; if it did, it would get nowhere.
struct Unconfigured;

impl Context for Unconfigured {}

impl HttpContext for Unconfigured {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
        let _ = host::reply(503, &[], b"");
        Action::Pause
    }
}
