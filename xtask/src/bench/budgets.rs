//! How fast the control plane leases, how much of a budget is used before the first refusal, and what four accounts cost a call, native and in Envoy.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use serde_json::{Value, json};
use xtask::control_plane::{ControlPlane, Workspace};
use xtask::run_folder::RunFolder;
use xtask::stack::{LOOPBACK, Programs};
use xtask::stand_in::StandIn;
use xtask::{cargo, process, progress, wasm};

const TITLE: &str = "## Budgets";

/// Gates that ask at once, each over a connection of its own.
const HOLDERS: usize = 8;
/// Accounts in one request.
const ACCOUNTS: usize = 64;
const DURATION: Duration = Duration::from_secs(10);
/// The loop in Envoy runs two seconds after its start, and takes one.
const LOOP_TIMEOUT: Duration = Duration::from_secs(60);

/// Two teams with the same rules; one has four accounts, never used up.
const POLICY: &str = "
apiVersion: tollgate/v1
kind: Policy
metadata: {name: rules}
spec: {capabilities: {allow: ['model:gpt-5-mini*']}}
---
apiVersion: tollgate/v1
kind: Policy
metadata: {name: accounts}
spec:
  scope: team:four
  budget: {per: team, daily_limit_usd: 1000000, daily_limit_tokens: 1000000000000, monthly_limit_usd: 1000000}
  rate: {per: team, requests_per_minute: 1000000000}
";

pub(crate) fn run(options: &super::Options) -> Result<()> {
    let programs = super::programs()?;
    progress::say("Building", "the simulator");
    let budgets = cargo::build("tollgate-tests", "budgets", "", &["--release"])?;
    let folder = RunFolder::new("bench-budgets")?;
    let mut serve = Command::new(&programs.tollgate);
    serve.arg("serve");
    let log = folder.path().join("control-plane.log");
    let control_plane = ControlPlane::start(serve, &folder.path().join("data"), LOOPBACK, &log)?;
    let workspace = control_plane.create_workspace("bench")?;
    let (requests, elapsed) = leases(&control_plane, &workspace)?;
    drop(control_plane);
    folder.remove()?;
    let per_second = |count: usize| count as f64 / elapsed.as_secs_f64();
    progress::say("Running", "simulated installations");
    let simulated = process::capture(&mut Command::new(budgets))?;
    let mut section = format!(
        "{TITLE}\n\n`cargo xtask bench --only budgets`, load average {} at the start.\n\n",
        super::load_average()
    );
    writeln!(
        section,
        "The control plane on SQLite, every answer durable before it is given: {HOLDERS} gates report and ask at once for {ACCOUNTS} accounts each, over HTTP. \
         {:.0} leases a second, in {:.0} requests (goal: 5,000 leases).\n",
        per_second(requests * ACCOUNTS),
        per_second(requests),
    )?;
    section += "Twenty gates in fair weather, one of them with nine tenths of the calls; a budget of the workspace for a day, and a quarter more calls than it is for. \
                Kept is what one gate had and no call under way could use, once it had reported; at risk is the same just before it reported, \
                with what the calls of the last second had reserved and not used: the most that is forfeited if it dies. Goals: 95 % and 2 %.\n\n";
    section += &simulated;
    section += &in_envoy(&programs, options)?;
    section += &looped_in_envoy(programs)?;
    print!("{section}");
    match &options.output {
        Some(report) => super::write_section(report, &section),
        None => Ok(()),
    }
}

/// What four accounts add to a call of an agent that has none, on the same Envoy.
fn in_envoy(programs: &Programs, options: &super::Options) -> Result<String> {
    let run_folder = RunFolder::new("bench-accounts")?;
    let folder = run_folder.path();
    let stand_in = StandIn::start(&folder.join("stand-in.log"), &["--release"])?;
    let (stack, tokens) = super::gate(folder, programs, &stand_in, POLICY, &["none", "four"])?;
    let variants = ["none", "four"].into_iter().zip(tokens);
    let variants = variants.map(|(name, credential)| super::Variant {
        name,
        envoy: &stack.envoy,
        credential,
    });
    let [_, chat] = super::workloads();
    let samples = super::measure(&variants.collect::<Vec<_>>(), &chat, options)?;
    let [none, four] = &samples[..] else {
        return Err(anyhow!("two variants have two samples"));
    };
    let each_takes = |samples: &[super::Sample]| {
        super::middle(&super::sorted(
            samples.iter().map(|sample| sample.cpu_micros),
        ))
    };
    let section = format!(
        "\nThe same on a real Envoy, in processor time of a whole chat of 2 KB, of an agent with these accounts and one with none on the same Envoy, turn by turn: \
         {:.1} µs and {:.1} µs, {:+.1} µs at the median of {} rounds.\n",
        each_takes(four),
        each_takes(none),
        super::added(four, none),
        options.rounds,
    );
    drop((stack, stand_in));
    run_folder.remove()?;
    Ok(section)
}

/// What four accounts take in a loop inside an Envoy, in its shared data; as a filter says that is built to measure itself.
fn looped_in_envoy(programs: Programs) -> Result<String> {
    // In the place of the usual one, so after it.
    let programs = Programs {
        filter: wasm::measuring_filter()?,
        ..programs
    };
    let run_folder = RunFolder::new("bench-loop")?;
    let folder = run_folder.path();
    let stand_in = StandIn::start(&folder.join("stand-in.log"), &["--release"])?;
    let (mut stack, tokens) = super::gate(folder, &programs, &stand_in, POLICY, &["none"])?;
    let envoy = &mut stack.envoy.process;
    let log = envoy.log().to_owned();
    let told = || {
        let log = fs::read_to_string(&log).ok()?;
        let (_, rest) = log.split_once("four accounts ")?;
        serde_json::from_str(rest.lines().next()?).ok()
    };
    let [one, three]: [u64; 2] =
        envoy.wait_until("what the filter's loop took", LOOP_TIMEOUT, told)?;
    drop((stack, tokens, stand_in));
    run_folder.remove()?;
    Ok(format!(
        "\nIn a loop inside a real Envoy, by its shared data: {one} ns for four accounts of one team, whose cells lie together (goal: 5,000 ns); \
         {three} ns for those of the native loop, which lie in three places.\n"
    ))
}

/// Has several gates lease and report as fast as they are answered; gives how many requests were answered, and in what time.
fn leases(control_plane: &ControlPlane, workspace: &Workspace) -> Result<(usize, Duration)> {
    let policy = "apiVersion: tollgate/v1\nkind: Policy\nmetadata: {name: bench}\nspec: {budget: {daily_limit_tokens: 1000000000}}\n";
    control_plane.apply_policy(workspace, policy)?;
    let agents = (0..ACCOUNTS)
        .map(|number| control_plane.create_agent(workspace, &format!("a{number}"), "bench"))
        .collect::<Result<Vec<_>>>()?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let today = now.as_secs() / 86_400 * 86_400;
    let ask = |agent: &String, epoch: u64, seq: usize| {
        json!({"account": format!("agent:{agent}|tokens|day@UTC"), "window_start": today, "seq": seq, "epoch": epoch,
            "granted": "0", "returned": "0", "settled": (seq * 10).to_string(), "reserved": "0", "want": "10"})
    };
    let path = format!("/v1/workspaces/{}/gate/leases", workspace.id);
    let say = |holder: usize, epoch: u64, asks: Vec<Value>| {
        let request = json!({"holder": format!("h-{holder:032x}"), "epoch": epoch, "revision": 0, "asks": asks});
        control_plane.call(
            &workspace.enrolment_key,
            "POST",
            &path,
            &request.to_string(),
        )
    };
    let start = Instant::now();
    let gate = |holder: usize| -> Result<usize> {
        say(holder, 0, Vec::new())?;
        let mut requests = 0;
        while start.elapsed() < DURATION {
            requests += 1;
            say(
                holder,
                1,
                agents.iter().map(|agent| ask(agent, 1, requests)).collect(),
            )?;
        }
        Ok(requests)
    };
    let counts: Vec<Result<usize>> = thread::scope(|scope| {
        let gates: Vec<_> = (1..=HOLDERS)
            .map(|holder| scope.spawn(move || gate(holder)))
            .collect();
        let joined = gates.into_iter().map(|gate| gate.join());
        joined
            .map(|count| count.unwrap_or_else(|_| Err(anyhow!("a gate of the benchmark panicked"))))
            .collect()
    });
    let requests = counts.into_iter().sum::<Result<usize>>()?;
    Ok((requests, start.elapsed()))
}
