//! One whole, with the gate in workerd.

use std::net::SocketAddr;

use serde_json::Value;
use tollgate_tests::stand_in::StandIn;
use tollgate_tests::whole::{PROVIDER_KEY, Whole, upstream};
use tollgate_tests::{Scratch, built};
use xtask::control_plane::{ControlPlane, Workspace};
use xtask::stack::{EdgePlan, EdgeStack, LOOPBACK};

pub(crate) struct Scene {
    pub(crate) stack: EdgeStack,
    pub(crate) token: String,
    provider: StandIn,
    _scratch: Scratch,
}

impl Scene {
    /// Everything up, the policy in the gate.
    pub(crate) fn start(name: &str, policy: &str) -> Scene {
        Scene::start_as(name, policy, |_| {})
    }

    /// The same with a plan of its own.
    pub(crate) fn start_as(name: &str, policy: &str, change: impl FnOnce(&mut EdgePlan)) -> Scene {
        let scratch = Scratch::new(&format!("workerd-{name}"));
        let provider = StandIn::start(LOOPBACK, PROVIDER_KEY).unwrap();
        let mut plan = EdgePlan {
            folder: scratch.path().to_owned(),
            tollgate: built::tollgate().to_owned(),
            workerd: built::workerd().to_owned(),
            worker: built::cloudflare().to_owned(),
            upstream: upstream(&provider),
            gate: LOOPBACK,
            control_plane: LOOPBACK,
            bundles: None,
            pass_through: false,
            environment: Vec::new(),
        };
        change(&mut plan);
        let mut agent = String::new();
        let stack = EdgeStack::start(plan, |control_plane| {
            let workspace = control_plane.create_workspace(name)?;
            agent = control_plane.create_agent(&workspace, "robot", "robots")?;
            control_plane.apply_policy(&workspace, policy)?;
            Ok(workspace)
        })
        .unwrap_or_else(|error| panic!("{error:#}"));
        let token = stack
            .control_plane
            .issue_token(&stack.workspace, &agent)
            .unwrap();
        Scene {
            stack,
            token,
            provider,
            _scratch: scratch,
        }
    }
}

impl Whole for Scene {
    fn gate(&self) -> SocketAddr {
        self.stack.gate.listen
    }

    fn token(&self) -> &str {
        &self.token
    }

    fn provider(&self) -> &StandIn {
        &self.provider
    }

    fn control_plane(&self) -> (&ControlPlane, &Workspace) {
        (&self.stack.control_plane, &self.stack.workspace)
    }

    /// Without those that asked whether the gate is there.
    fn is_of_a_test(record: &Value) -> bool {
        !record["agent"].is_null()
    }
}
