//! `cargo xtask bench --only edge`: what the gate costs as a component, as a Cloudflare Worker and on Spin, each beside what does nothing but pass
//! calls on in the same runtime.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use flate2::{Compression, write::GzEncoder};
use serde::Deserialize;
use xtask::control_plane::{ControlPlane, Workspace};
use xtask::run_folder::RunFolder;
use xtask::spin::{App, Spin};
use xtask::stack::{self, EdgePlan, EdgeStack, LOOPBACK, Upstream};
use xtask::stand_in::StandIn;
use xtask::{cargo, process, progress, tools, wasm};

use super::load::{self, Target};
use super::{Options, POLICY, around, cost, middle, sorted, workloads, write_section};

/// Begins this section of the report.
const TITLE: &str = "## Edge";
/// Begins what is written by hand at its end, and kept.
const NOTES: &str = "\n### Notes\n";

/// Calls a second: so few that none waits for the one before it, for what a call takes and not how many there can be at once. With the fewer the
/// machine's caches have forgotten the code between two calls.
const RATES: [u32; 2] = [25, 100];

/// What `measure` of the `tests` crate says.
#[derive(Deserialize)]
struct Component {
    call_ns: u64,
    decide_ns: u64,
    exchange_ns: u64,
    instance_ns: u64,
    body_bytes: usize,
}

/// A runtime with the gate in it and, in the same process or in one like it, what only passes calls on.
struct Pair {
    name: &'static str,
    gate: Measured,
    pass_through: Measured,
}

struct Measured {
    address: SocketAddr,
    process: u32,
    credential: String,
}

/// What one of them did in one round.
#[derive(Clone, Copy)]
struct Sample {
    p50: Duration,
    p99: Duration,
    cpu: Duration,
}

pub(super) fn run(options: &Options) -> Result<()> {
    let run_folder = RunFolder::new("bench-edge")?;
    let folder = run_folder.path();
    let component = component()?;
    let worker = Worker::start(folder)?;
    // The agent of this token is known to one control plane, which serves both gates.
    let (gate, pass_through) = spin(
        folder,
        &worker.stack.workspace,
        &worker.stack.control_plane,
        &worker.stand_in.upstream(),
    )?;
    let pairs = [
        worker.pair()?,
        Pair {
            name: "Spin component in the stand-in for Spin",
            gate: Measured {
                address: gate.listen,
                process: gate.process.id(),
                credential: worker.token.clone(),
            },
            pass_through: Measured {
                address: pass_through.listen,
                process: pass_through.process.id(),
                credential: worker.provider_key(),
            },
        },
    ];

    let mut report = head(&component, &worker.files)?;
    for pair in &pairs {
        write_pair(&mut report, pair, options)?;
    }
    println!("{report}");
    drop((worker, gate, pass_through));
    run_folder.remove()?;
    if let Some(output) = &options.output {
        let former = fs::read_to_string(output).unwrap_or_default();
        let (_, former, _) = around(&former, TITLE);
        let notes = former.find(NOTES).map_or("", |start| &former[start..]);
        write_section(output, &format!("{report}{notes}"))?;
    }
    Ok(())
}

/// The Cloudflare Worker by itself.
pub(super) fn worker(options: &Options) -> Result<()> {
    ensure!(
        options.output.is_none(),
        "`--only worker` writes no report: `--only edge` does"
    );
    let run_folder = RunFolder::new("bench-worker")?;
    let worker = Worker::start(run_folder.path())?;
    let mut report = String::new();
    write_pair(&mut report, &worker.pair()?, options)?;
    println!("{report}");
    drop(worker);
    run_folder.remove()
}

/// The Cloudflare Worker, and beside it in the same workerd the one that passes calls on.
struct Worker {
    stack: EdgeStack,
    stand_in: StandIn,
    files: PathBuf,
    /// The agent's.
    token: String,
}

impl Worker {
    fn start(folder: &Path) -> Result<Worker> {
        let files = wasm::cloudflare()?;
        progress::say("Building", "the control plane");
        let tollgate = cargo::build("tollgate", "tollgate", "", &["--release"])?;
        let stand_in = StandIn::start(&folder.join("stand-in.log"), &["--release"])?;
        let mut token = String::new();
        let prepare = |control_plane: &ControlPlane| {
            let workspace = control_plane.create_workspace("bench")?;
            control_plane.apply_policy(&workspace, POLICY)?;
            let agent = control_plane.create_agent(&workspace, "bench", "bench")?;
            token = control_plane.issue_token(&workspace, &agent)?;
            Ok(workspace)
        };
        let stack = EdgeStack::start(
            EdgePlan {
                folder: folder.join("workerd"),
                tollgate,
                workerd: tools::workerd()?,
                worker: files.clone(),
                upstream: stand_in.upstream(),
                gate: LOOPBACK,
                control_plane: LOOPBACK,
                bundles: None,
                pass_through: true,
                environment: Vec::new(),
            },
            prepare,
        )?;
        Ok(Worker {
            stack,
            stand_in,
            files,
            token,
        })
    }

    fn provider_key(&self) -> String {
        self.stand_in.upstream().openai_key.unwrap_or_default()
    }

    fn pair(&self) -> Result<Pair> {
        let gate = &self.stack.gate;
        let in_workerd = |address, credential| Measured {
            address,
            process: gate.process.id(),
            credential,
        };
        let beside = gate.pass_through.context("no pass-through worker")?;
        Ok(Pair {
            name: "Cloudflare Worker in workerd",
            gate: in_workerd(gate.listen, self.token.clone()),
            pass_through: in_workerd(beside, self.provider_key()),
        })
    }
}

fn component() -> Result<Component> {
    progress::say("Measuring", "calls into the component");
    let said = process::capture(cargo::cargo("run").args([
        "--quiet",
        "--release",
        "--package",
        "tollgate-tests",
        "--bin",
        "measure",
    ]))?;
    let figures = said.lines().last().unwrap_or_default();
    serde_json::from_str(figures).with_context(|| format!("not figures: {figures}"))
}

/// The gate on Spin's stand-in, and beside it what only passes calls on.
fn spin(
    folder: &Path,
    workspace: &Workspace,
    control_plane: &ControlPlane,
    upstream: &Upstream,
) -> Result<(Spin, Spin)> {
    let start = |name: &str, app: App| {
        let folder = folder.join(name);
        fs::create_dir_all(&folder)?;
        let app = App {
            optimised: true,
            ..app
        };
        Spin::start(&app, &folder, &["--release"])
    };
    let gate = App::gate(
        wasm::spin()?,
        &stack::gate_settings(workspace, upstream),
        &upstream.origin,
        control_plane.address,
        &stack::gate_secrets(workspace, upstream),
    );
    let pass_through = App::pass_through(wasm::spin_pass_through()?, &upstream.origin);
    Ok((
        start("spin", gate)?,
        start("spin-pass-through", pass_through)?,
    ))
}

fn head(component: &Component, worker: &Path) -> Result<String> {
    let module = fs::read(worker.join("index_bg.wasm"))?;
    let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
    gzip.write_all(&module)?;
    let gzipped = gzip.finish()?.len();
    let mut report = format!(
        "{TITLE}

`cargo xtask bench --only edge`, load average {} at the start; workerd {}, wasmtime 48, the stand-in provider as upstream.

### The component in wasmtime

| | ns |
|---|---|
| a call that gives back a number | {} |
| `decide` on a chat of {} bytes | {} |
| the same as an exchange, token and all, up to its reservation | {} |
| a new instance, without a bundle | {} |

With fuel counted, best of nine rounds.

### The Cloudflare Worker's size

The module has {} bytes, stripped, and {gzipped} gzipped. Goal: 250,000.
",
        super::load_average(),
        tools::WORKERD_VERSION,
        component.call_ns,
        component.body_bytes,
        component.decide_ns,
        component.exchange_ns,
        component.instance_ns,
        module.len(),
    );
    writeln!(
        report,
        "\nBelow: a chat of 2 KB, one connection; medians of the rounds. Processor time is that of the whole process."
    )?;
    Ok(report)
}

fn write_pair(report: &mut String, pair: &Pair, options: &Options) -> Result<()> {
    writeln!(
        report,
        "\n### {}\n\n| calls a second | | p50 µs | p99 µs | CPU µs/request |\n|---|---|---|---|---|",
        pair.name
    )?;
    for rate in RATES {
        write_rate(report, pair, rate, options)?;
    }
    Ok(())
}

/// The lines of one rate.
fn write_rate(report: &mut String, pair: &Pair, rate: u32, options: &Options) -> Result<()> {
    let both = [&pair.pass_through, &pair.gate];
    let mut samples = [Vec::new(), Vec::new()];
    for round in 0..options.rounds {
        let what = format!("{}, {rate} calls a second, round {}", pair.name, round + 1);
        progress::say("Measuring", what);
        for turn in 0..2 {
            let which = (round + turn) % 2;
            samples[which].push(measure(both[which], rate, options)?);
        }
    }
    let micros = |samples: &[Sample], of: fn(&Sample) -> Duration| {
        middle(&sorted(
            samples.iter().map(|sample| of(sample).as_secs_f64() * 1e6),
        ))
    };
    let figures = samples.map(|samples| {
        [
            micros(&samples, |sample| sample.p50),
            micros(&samples, |sample| sample.p99),
            micros(&samples, |sample| sample.cpu),
        ]
    });
    let [passed, gated] = figures;
    for (name, [p50, p99, cpu]) in [
        ("passes calls on", passed),
        ("the gate", gated),
        (
            "added",
            [0, 1, 2].map(|column| gated[column] - passed[column]),
        ),
    ] {
        writeln!(
            report,
            "| {rate} | {name} | {p50:.0} | {p99:.0} | {cpu:.0} |"
        )?;
    }
    Ok(())
}

fn measure(measured: &Measured, rate: u32, options: &Options) -> Result<Sample> {
    let [_, chat] = workloads();
    let request = chat.request(&measured.credential);
    let target = Target {
        address: measured.address,
        request: &request,
        connections: 1,
    };
    let duration = Duration::from_secs(options.seconds);
    load::fixed_rate(target, rate, duration / 4)?;
    let before = cost::cpu_time(measured.process)?;
    let latencies = load::fixed_rate(target, rate, duration)?;
    let spent = cost::cpu_time(measured.process)? - before;
    let count = u32::try_from(latencies.len().max(1))?;
    Ok(Sample {
        p50: load::percentile(&latencies, 50),
        p99: load::percentile(&latencies, 99),
        cpu: spent / count,
    })
}
