//! What tests of the whole share, whatever the gate runs in: calls as an agent makes them, and what the provider and an operator see of them.

use std::io::Read as _;
use std::net::SocketAddr;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tollgate_stand_in::StandIn;
use tollgate_stand_in::requests::Received;
use ureq::Agent;
use ureq::http::{HeaderMap, Request, Response, request};
use xtask::control_plane::{ControlPlane, Workspace};
use xtask::process;
use xtask::stack::Upstream;

/// How long anything may take that happens by itself.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// What the stand-in wants to see. Opens nothing.
pub const PROVIDER_KEY: &str = "provider-key-of-a-test";

/// The model of the tests: 250 nano-USD per input token, 2,000 per output token (`policy/prices`).
pub const MODEL: &str = "gpt-5-mini";

/// Control plane, workspace, agent, gate, provider: everything up, the policy in the gate. All of it panics where a test has failed.
pub trait Whole {
    /// Where agents connect.
    fn gate(&self) -> SocketAddr;

    /// The agent's.
    fn token(&self) -> &str;

    /// The one behind the gate.
    fn provider(&self) -> &StandIn;

    /// The one that the gate belongs to.
    fn control_plane(&self) -> (&ControlPlane, &Workspace);

    /// Whether a record is of a call that the test has made.
    fn is_of_a_test(_record: &Value) -> bool {
        true
    }

    /// A chat completion, as OpenAI's SDK would ask for it.
    fn chat(&self, prompt: &str, headers: &[(&str, &str)]) -> Answer {
        self.post("/v1/chat/completions", &chat_body(prompt), headers)
    }

    /// A JSON body with the agent's token.
    fn post(&self, path: &str, body: &Value, headers: &[(&str, &str)]) -> Answer {
        self.send(path, body.to_string().as_bytes(), headers)
    }

    /// Any body with the agent's token.
    fn send(&self, path: &str, body: &[u8], headers: &[(&str, &str)]) -> Answer {
        answer(self.request(path, headers).body(body.to_vec()).unwrap())
    }

    /// A request with the agent's token, without its body.
    fn request(&self, path: &str, headers: &[(&str, &str)]) -> request::Builder {
        let mut request = Request::post(format!("http://{}{path}", self.gate()))
            .header("authorization", format!("Bearer {}", self.token()))
            .header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request
    }

    /// What reached the provider.
    fn reached(&self) -> Vec<Received> {
        self.provider().requests()
    }

    /// An operator's `GET` below the workspace.
    fn ask(&self, path: &str) -> Value {
        let (control_plane, workspace) = self.control_plane();
        let path = format!("/v1/workspaces/{}/{path}", workspace.id);
        control_plane
            .call(&workspace.operator_key, "GET", &path, "")
            .unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// The records of a test's calls, by the time they began, once there are this many. (The journal has them in the order of their ends.)
    fn records(&self, count: usize) -> Vec<Value> {
        wait_for("the records", || {
            let answer = self.ask("audit?limit=1000");
            let entries = answer["records"].as_array()?.iter();
            let records = entries.map(|entry| entry["record"].clone());
            let mut records: Vec<_> = records.filter(Self::is_of_a_test).collect();
            records.sort_by_key(|record| record["at_ms"].as_i64());
            Some(records).filter(|records| records.len() >= count)
        })
    }

    /// The budget whose account ends in this, as the control plane has it.
    fn budget(&self, account: &str) -> Option<Value> {
        let budgets = self.ask("budgets");
        let mut budgets = budgets.as_array()?.iter();
        budgets
            .find(|budget| {
                budget["account"]
                    .as_str()
                    .is_some_and(|name| name.ends_with(account))
            })
            .cloned()
    }
}

/// The provider as a gate is told of it, with its keys.
#[must_use]
pub fn upstream(provider: &StandIn) -> Upstream {
    Upstream {
        origin: provider.address().into(),
        openai_key: Some(PROVIDER_KEY.to_owned()),
        anthropic_key: Some(PROVIDER_KEY.to_owned()),
    }
}

/// What a caller got.
#[derive(Debug)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: String,
}

impl Answer {
    /// A header's value; empty when there is none.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name).map(|value| value.to_str());
        value.and_then(Result::ok).unwrap_or_default()
    }

    /// The body.
    ///
    /// # Panics
    /// When it is no JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// Status and first reason.
    #[must_use]
    pub fn verdict(&self) -> (u16, &str) {
        (self.status, self.header("x-tollgate-reason"))
    }
}

/// What a holder of a budget has used, and what it holds beside that.
#[must_use]
pub fn share(holder: &Value) -> Option<(u64, u64)> {
    let amount = |field: &str| holder[field].as_str()?.parse::<u64>().ok();
    let settled = amount("settled")?;
    let held = amount("granted")? - amount("returned")?;
    Some((settled, held.saturating_sub(settled)))
}

/// A policy: so many dollars a day for each agent.
#[must_use]
pub fn budget(per_day_usd: &str) -> String {
    format!(
        "
apiVersion: tollgate/v1
kind: Policy
metadata:
  name: budget
spec:
  scope: global
  budget:
    per: agent
    daily_limit_usd: {per_day_usd}
"
    )
}

/// A policy: these models and no others, as a list in YAML.
#[must_use]
pub fn models(allowed: &str) -> String {
    format!(
        "
apiVersion: tollgate/v1
kind: Policy
metadata:
  name: models
spec:
  scope: global
  capabilities:
    allow: {allowed}
"
    )
}

/// A policy: whoever offers `send_mail` to a model needs somebody's approval.
pub const APPROVAL: &str = "
apiVersion: tollgate/v1
kind: Policy
metadata:
  name: mail
spec:
  scope: global
  tools:
    send_mail: {requires_approval_if: 'true'}
  approval: {timeout_seconds: 60}
  budget:
    per: agent
    daily_limit_usd: 1
";

/// Under [`APPROVAL`] a call waits until an operator grants it, and then passes once, however many send it at the same time.
///
/// # Panics
/// When it does not.
pub fn a_grant_lets_one_call_pass<W: Whole + Sync>(scene: &W) {
    let mut body = chat_body("tell them");
    body["tools"] = json!([{"type": "function", "function": {"name": "send_mail"}}]);
    let held = scene.post("/v1/chat/completions", &body, &[]);
    assert_eq!(held.verdict(), (403, "approval.required"), "{}", held.body);
    let name = held.header("x-tollgate-approval").to_owned();
    assert!(held.body.contains(&name), "{}", held.body);
    let asked = wait_for("the request", || {
        let pending = scene.ask("approvals?state=pending");
        pending.as_array()?.first().cloned()
    });
    assert_eq!(
        (&asked["name"], &asked["number"]),
        (&json!(name), &json!(1))
    );
    assert_eq!(asked["record"]["tools"], json!(["send_mail"]));

    let (control_plane, workspace) = scene.control_plane();
    let path = format!("/v1/workspaces/{}/approvals/{name}", workspace.id);
    let yes = json!({"verdict": "granted", "reason": "they should know"}).to_string();
    control_plane
        .call(&workspace.operator_key, "PUT", &path, &yes)
        .unwrap_or_else(|error| panic!("{error:#}"));
    let mut passed = 0;
    let mut at_once = || {
        let request = || {
            let request = scene.request("/v1/chat/completions", &[]);
            request.body(body.to_string().into_bytes()).unwrap()
        };
        for answer in at_once(8, request) {
            match answer.verdict() {
                (200, _) => passed += 1,
                verdict => assert_eq!(verdict, (403, "approval.required"), "{}", answer.body),
            }
        }
        passed
    };
    wait_for("the call to pass", || (at_once() > 0).then_some(()));
    let used = wait_for("the use to be on record", || {
        let used = scene.ask(&format!("approvals/{name}"));
        // Held once more since, it asks once more.
        let first = scene.ask("approvals?state=used");
        (used["number"] != 1 || used["state"] == "used").then(|| first[0].clone())
    });
    assert_eq!(used["number"], 1);
    assert_eq!(at_once(), 1);
    assert_eq!(scene.reached().len(), 1);
    let record = scene.ask(&format!("audit?id={}", used["used_by"].as_str().unwrap()));
    let record = &record["records"][0]["record"];
    assert_eq!(
        (&record["outcome"], &record["approval"], &record["reasons"]),
        (&json!("allow"), &json!(name), &json!([])),
        "{record}"
    );
}

/// A chat completion with a bound, so that its worst case is known.
#[must_use]
pub fn chat_body(prompt: &str) -> Value {
    json!({
        "model": MODEL,
        "max_completion_tokens": 100,
        "messages": [{"role": "user", "content": prompt}],
    })
}

/// The same, as a stream.
#[must_use]
pub fn stream_body() -> Value {
    let mut body = chat_body("three short words");
    body["stream"] = true.into();
    body
}

/// Sends a request; every status is an answer.
///
/// # Panics
/// When there is no answer.
#[must_use]
pub fn answer(request: Request<Vec<u8>>) -> Answer {
    read(client().run(request).unwrap())
}

/// Reads a response to its end.
///
/// # Panics
/// When it breaks off, or is no text.
#[must_use]
pub fn read(mut response: Response<ureq::Body>) -> Answer {
    let mut body = Vec::new();
    response
        .body_mut()
        .as_reader()
        .read_to_end(&mut body)
        .unwrap();
    Answer {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        body: String::from_utf8(body).unwrap(),
    }
}

/// A client with connections of its own.
#[must_use]
pub fn client() -> Agent {
    Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(DEADLINE))
        .proxy(None)
        .build()
        .into()
}

/// Sends `count` requests at once, each on a connection of its own, and gives the answers.
///
/// # Panics
/// When one of them is not answered.
#[must_use]
pub fn at_once(count: usize, request: impl Fn() -> Request<Vec<u8>> + Sync) -> Vec<Answer> {
    let start = Barrier::new(count);
    thread::scope(|scope| {
        let calls: Vec<_> = (0..count)
            .map(|_| {
                scope.spawn(|| {
                    let request = request();
                    start.wait();
                    answer(request)
                })
            })
            .collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    })
}

/// Has four callers call, each again and again, until `meanwhile` is over; gives what came of all their calls, and of it.
///
/// # Panics
/// When one of them does.
pub fn under_load<T: Send, R>(
    call: impl Fn() -> T + Sync,
    meanwhile: impl FnOnce() -> R,
) -> (Vec<T>, R) {
    /// Ends the calls, also where a test has failed: who waits for them would wait for ever.
    struct Stop<'s>(&'s AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let stopped = AtomicBool::new(false);
    thread::scope(|scope| {
        let calls_on = || {
            let mut came = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                came.push(call());
            }
            came
        };
        let callers: Vec<_> = (0..4).map(|_| scope.spawn(calls_on)).collect();
        let stop = Stop(&stopped);
        let came_of_it = meanwhile();
        drop(stop);
        let calls = callers
            .into_iter()
            .flat_map(|caller| caller.join().unwrap());
        (calls.collect(), came_of_it)
    })
}

/// Looks until there is something.
///
/// # Panics
/// When there is nothing by the [`DEADLINE`].
pub fn wait_for<T>(what: &str, probe: impl FnMut() -> Option<T>) -> T {
    process::wait_until(what, DEADLINE, probe).unwrap_or_else(|error| panic!("{error:#}"))
}

/// The UTC minute it is, for tests whose limits count by the minute.
///
/// # Panics
/// Before 1970.
#[must_use]
pub fn minute() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
        / 60
}

/// Runs `attempt` until no minute has begun in its middle, each time in another one.
///
/// # Panics
/// When that takes longer than three of them.
pub fn within_a_minute<T>(mut attempt: impl FnMut() -> T) -> T {
    let begun = Instant::now();
    loop {
        let before = minute();
        let result = attempt();
        let after = minute();
        if after == before {
            return result;
        }
        // What it has used of this minute it does not have again.
        let next = || (minute() > after).then_some(());
        process::wait_until("the next minute", Duration::from_secs(61), next)
            .unwrap_or_else(|error| panic!("{error:#}"));
        assert!(
            begun.elapsed() < Duration::from_secs(180),
            "never within one minute"
        );
    }
}
