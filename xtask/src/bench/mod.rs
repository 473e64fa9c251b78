//! `cargo xtask bench`: what the gate adds to Envoy, in processor time per request, beside Envoy's own filters.
//!
//! Processor time is what the operating system counted for the Envoy process, so a busy machine stretches the clock and not the
//! figure. Every variant runs in every round, and the order turns round by round, so that drift falls on all of them alike.

mod budgets;
mod cost;
mod edge;
mod filter;
mod load;
mod policy;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};
use serde_json::json;
use xtask::envoy::{Envoy, Run};
use xtask::run_folder::RunFolder;
use xtask::stack::{Plan, Programs, Stack};
use xtask::stand_in::StandIn;
use xtask::{cargo, progress, tools, wasm};

use load::Target;

/// Enough to keep Envoy busy on a small machine, few enough that they don't wait for each other.
const CONNECTIONS: u32 = 8;

const CONCURRENCY: u32 = 2;

/// A budget and a rate that are kept account of and never reached, and the patterns of the demo policy.
const POLICY: &str = r#"
apiVersion: tollgate/v1
kind: Policy
metadata: {name: bench}
spec:
  scope: team:bench
  capabilities: {allow: ["model:gpt-5-mini*"]}
  data: {sensitive_patterns: ['sk-[A-Za-z0-9_-]{20,}', 'AKIA[0-9A-Z]{16}']}
  budget: {per: team, daily_limit_usd: 1000000}
  rate: {per: team, requests_per_minute: 1000000000}
"#;

/// What Envoy ships that comes closest. It does far less: no identity, no body, no budget, no record.
const NATIVE_FILTERS: &str = r#"- name: envoy.filters.http.rbac
                    typed_config:
                      "@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC
                      rules:
                        action: ALLOW
                        policies:
                          bench:
                            permissions: [{ or_rules: { rules: [{ url_path: { path: { prefix: /nope } } }, { any: true }] } }]
                            principals: [{ any: true }]
                  - name: envoy.filters.http.local_ratelimit
                    typed_config:
                      "@type": type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit
                      stat_prefix: bench
                      token_bucket: { max_tokens: 100000000, tokens_per_fill: 100000000, fill_interval: 1s }
                      filter_enabled: { default_value: { numerator: 100 } }
                      filter_enforced: { default_value: { numerator: 100 } }
                  "#;

/// Where the hand-written end of a report begins.
const NOTES: &str = "\n## Notes\n";

/// A part of the report that is measured by itself.
#[derive(Clone, Copy, ValueEnum)]
enum Section {
    /// What a call takes inside the filter, by callback and by call to Envoy.
    Filter,
    /// Decisions without a gate, beside other policy engines.
    Policy,
    /// Leases, how well they use a budget, and what accounts cost a call.
    Budgets,
    /// The component, the Cloudflare Worker and the Spin component.
    Edge,
    /// Of those the Cloudflare Worker alone, for those who work on it; nothing is written.
    Worker,
}

#[derive(Args)]
pub(crate) struct Options {
    /// Measure this section only.
    #[arg(long, value_name = "SECTION")]
    only: Option<Section>,
    /// How often every variant is measured.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// How long one measurement takes.
    #[arg(long, value_name = "S", default_value_t = 4)]
    seconds: u64,
    /// Requests per second where latencies are measured.
    #[arg(long, default_value_t = 1000)]
    rate: u32,
    /// Write the report here as well as to standard output. A section `## Notes` that stands there is kept.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// One Envoy under test.
struct Variant<'e> {
    name: &'static str,
    envoy: &'e Envoy,
    /// The credential that gets a request through.
    credential: String,
}

/// One kind of request.
struct Workload {
    name: &'static str,
    method: &'static str,
    path: &'static str,
    body: String,
    /// What the gate may add at most.
    goal_micros: f64,
}

/// What one variant did in one round of one workload.
#[derive(Clone, Copy)]
struct Sample {
    cpu_micros: f64,
    requests_per_s: f64,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    match options.only {
        Some(Section::Filter) => filter::run(options),
        Some(Section::Policy) => policy::run(options.output.as_deref()),
        Some(Section::Budgets) => budgets::run(options),
        Some(Section::Edge) => edge::run(options),
        Some(Section::Worker) => edge::worker(options),
        None => envoy(options),
    }
}

fn programs() -> Result<Programs> {
    progress::say("Building", "the control plane");
    Ok(Programs {
        envoy: tools::envoy(None)?,
        filter: wasm::filter()?,
        tollgate: cargo::build("tollgate", "tollgate", "", &["--release"])?,
    })
}

/// A gate with its control plane, and the token of an agent of each of these teams.
fn gate(
    folder: &Path,
    programs: &Programs,
    stand_in: &StandIn,
    policy: &str,
    teams: &[&str],
) -> Result<(Stack, Vec<String>)> {
    let mut tokens = Vec::new();
    let stack = Stack::start(
        Plan::new(folder.join("gate"), programs.clone(), stand_in.upstream()),
        |control_plane| {
            let workspace = control_plane.create_workspace("bench")?;
            control_plane.apply_policy(&workspace, policy)?;
            for team in teams {
                let agent = control_plane.create_agent(&workspace, team, team)?;
                tokens.push(control_plane.issue_token(&workspace, &agent)?);
            }
            Ok(workspace)
        },
    )?;
    Ok((stack, tokens))
}

fn envoy(options: &Options) -> Result<()> {
    let run_folder = RunFolder::new("bench")?;
    let folder = run_folder.path();
    let programs = programs()?;
    let stand_in = StandIn::start(&folder.join("stand-in.log"), &["--release"])?;
    let (stack, mut tokens) = gate(folder, &programs, &stand_in, POLICY, &["bench"])?;
    let provider_key = stand_in.upstream().openai_key.unwrap_or_default();
    let rendered = fs::read_to_string(folder.join("gate/envoy.yaml"))?;
    let plain = |name: &str, filters: &str| -> Result<Envoy> {
        let folder = folder.join(name);
        fs::create_dir_all(&folder)?;
        let run = Run {
            binary: programs.envoy.clone(),
            folder,
            concurrency: CONCURRENCY,
            environment: Vec::new(),
        };
        Envoy::start(&run, &with_filters(&rendered, filters)?)
    };
    let (bare, native) = (plain("bare", "")?, plain("native", NATIVE_FILTERS)?);
    let variant = |name: &'static str, envoy, credential| Variant {
        name,
        envoy,
        credential,
    };
    let variants = [
        variant("bare", &bare, provider_key.clone()),
        variant("native", &native, provider_key),
        variant("tollgate", &stack.envoy, tokens.remove(0)),
    ];
    let idle_memory = variants
        .iter()
        .map(|variant| cost::memory_bytes(variant.envoy.process.id()))
        .collect::<Result<Vec<_>>>()?;

    let mut report = header(&programs)?;
    for workload in workloads() {
        let samples = measure(&variants, &workload, options)?;
        let latencies = measure_latencies(&variants, &workload, options)?;
        write_table(
            &mut report,
            &variants,
            &workload,
            &samples,
            &latencies,
            options,
        )?;
    }
    write_memory(&mut report, &variants, &idle_memory)?;
    println!("{report}");
    drop((bare, native, stack, stand_in));
    run_folder.remove()?;
    if let Some(output) = &options.output {
        let former = fs::read_to_string(output).unwrap_or_default();
        let notes = former.find(NOTES).map_or("", |start| &former[start..]);
        fs::write(output, format!("{report}{notes}"))
            .with_context(|| format!("cannot write `{}`", output.display()))?;
    }
    Ok(())
}

fn workloads() -> [Workload; 2] {
    // 2,000 characters of prompt and the JSON around it: a short question with some context.
    let prompt = "The quick brown fox jumps over the lazy dog. "
        .repeat(45)
        .chars()
        .take(2000)
        .collect::<String>();
    let body = json!({"model": "gpt-5-mini", "max_completion_tokens": 100, "messages": [{"role": "user", "content": prompt}]});
    [
        Workload {
            name: "headers only",
            method: "GET",
            path: "/healthz",
            body: String::new(),
            goal_micros: 10.0,
        },
        Workload {
            name: "chat, 2 KB: parsed, scanned, budgeted, metered, recorded",
            method: "POST",
            path: "/v1/chat/completions",
            body: body.to_string(),
            goal_micros: 30.0,
        },
    ]
}

/// The gate's configuration with other filters in its place: everything else is equal.
fn with_filters(rendered: &str, filters: &str) -> Result<String> {
    let (before, rest) = rendered
        .split_once("- name: envoy.filters.http.wasm")
        .context("the gate's configuration has no wasm filter")?;
    let (_, after) = rest
        .split_once("- name: envoy.filters.http.router")
        .context("the gate's configuration has no router")?;
    Ok(format!(
        "{before}{filters}- name: envoy.filters.http.router{after}"
    ))
}

fn measure(
    variants: &[Variant<'_>],
    workload: &Workload,
    options: &Options,
) -> Result<Vec<Vec<Sample>>> {
    let mut samples = vec![Vec::new(); variants.len()];
    let duration = Duration::from_secs(options.seconds);
    for round in 0..options.rounds {
        progress::say(
            "Measuring",
            format!(
                "{}, round {} of {}",
                workload.name,
                round + 1,
                options.rounds
            ),
        );
        let mut order: Vec<usize> = (0..variants.len()).collect();
        order.rotate_left(round % variants.len());
        if round % 2 == 1 {
            order.reverse();
        }
        for index in order {
            let variant = &variants[index];
            let request = workload.request(&variant.credential);
            let target = Target {
                address: variant.envoy.listen,
                request: &request,
                connections: CONNECTIONS,
            };
            // Connections, leases and caches of the machine settle first.
            load::closed_loop(target, duration / 8)?;
            let before = cost::cpu_time(variant.envoy.process.id())?;
            let count = load::closed_loop(target, duration)?;
            let spent = cost::cpu_time(variant.envoy.process.id())? - before;
            ensure!(count > 0, "no request came through {}", variant.name);
            let count = count as f64;
            samples[index].push(Sample {
                cpu_micros: spent.as_secs_f64() * 1e6 / count,
                requests_per_s: count / duration.as_secs_f64(),
            });
        }
    }
    Ok(samples)
}

/// p50 and p99 at a fixed rate, the best of the rounds: what the gate does, not what the machine did besides.
fn measure_latencies(
    variants: &[Variant<'_>],
    workload: &Workload,
    options: &Options,
) -> Result<Vec<(Duration, Duration)>> {
    let mut best = vec![(Duration::MAX, Duration::MAX); variants.len()];
    for round in 0..options.rounds.min(3) {
        progress::say(
            "Measuring",
            format!("{}, latencies, round {}", workload.name, round + 1),
        );
        for (variant, best) in variants.iter().zip(&mut best) {
            let request = workload.request(&variant.credential);
            let target = Target {
                address: variant.envoy.listen,
                request: &request,
                connections: CONNECTIONS,
            };
            let latencies =
                load::fixed_rate(target, options.rate, Duration::from_secs(options.seconds))?;
            *best = (
                best.0.min(load::percentile(&latencies, 50)),
                best.1.min(load::percentile(&latencies, 99)),
            );
        }
    }
    Ok(best)
}

impl Workload {
    fn request(&self, credential: &str) -> Vec<u8> {
        let Self {
            method, path, body, ..
        } = self;
        let length = body.len();
        let content = if body.is_empty() {
            ""
        } else {
            "content-type: application/json\r\n"
        };
        format!(
            "{method} {path} HTTP/1.1\r\nhost: api.openai.com\r\nauthorization: Bearer {credential}\r\n\
             user-agent: tollgate-bench\r\naccept: application/json\r\n{content}content-length: {length}\r\n\r\n{body}"
        )
        .into_bytes()
    }
}

fn header(programs: &Programs) -> Result<String> {
    let wasm_bytes = fs::metadata(&programs.filter)?.len();
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or("")
        .trim_start_matches([' ', '\t', ':']);
    let cores = thread::available_parallelism().map_or(0, usize::from);
    let load = load_average();
    Ok(format!(
        "# Benchmarks\n\n`cargo xtask bench` on {cores} × {cpu}, load average {load} at the start; Envoy {} with {CONCURRENCY} \
         workers, {CONNECTIONS} connections, the stand-in provider as upstream. The filter has {} KB of wasm.\n\n\
         Processor time is Envoy's own per request, as the operating system counts it: the median of the rounds, with the least and the \
         most. *Added* is the median of the differences to *bare* in the same round. *native* is Envoy's rbac and local_ratelimit. \
         Latencies are the best of three rounds at a fixed rate, p99 of a shared machine is mostly the machine's.\n",
        tools::ENVOY_VERSION,
        wasm_bytes.div_ceil(1000),
    ))
}

fn write_table(
    report: &mut String,
    variants: &[Variant<'_>],
    workload: &Workload,
    samples: &[Vec<Sample>],
    latencies: &[(Duration, Duration)],
    options: &Options,
) -> Result<()> {
    let Workload {
        name, goal_micros, ..
    } = workload;
    writeln!(report, "\n## {}\n", capitalised(name))?;
    writeln!(
        report,
        "| variant | CPU µs/request (least, most) | added µs | requests/s | p50, p99 at {}/s |\n|---|---|---|---|---|",
        options.rate
    )?;
    for ((variant, samples_of), (p50, p99)) in variants.iter().zip(samples).zip(latencies) {
        let cpu = sorted(samples_of.iter().map(|sample| sample.cpu_micros));
        let added = added(samples_of, &samples[0]);
        let rates = sorted(samples_of.iter().map(|sample| sample.requests_per_s));
        writeln!(
            report,
            "| {} | {:.1} ({:.1}, {:.1}) | {:+.1} | {:.0} | {} µs, {} µs |",
            variant.name,
            middle(&cpu),
            cpu[0],
            cpu[cpu.len() - 1],
            added,
            middle(&rates),
            p50.as_micros(),
            p99.as_micros(),
        )?;
    }
    writeln!(report, "\nGoal: at most {goal_micros:.0} µs added.")?;
    Ok(())
}

/// By how much more processor time the one took than the other: the median over the rounds, in microseconds.
fn added(samples: &[Sample], to: &[Sample]) -> f64 {
    let pairs = samples.iter().zip(to);
    middle(&sorted(
        pairs.map(|(sample, other)| sample.cpu_micros - other.cpu_micros),
    ))
}

fn write_memory(report: &mut String, variants: &[Variant<'_>], idle: &[u64]) -> Result<()> {
    writeln!(
        report,
        "\n## Memory\n\n| variant | resident at the start | after the load |\n|---|---|---|"
    )?;
    for (variant, idle) in variants.iter().zip(idle) {
        let loaded = cost::memory_bytes(variant.envoy.process.id())?;
        writeln!(
            report,
            "| {} | {} MB | {} MB |",
            variant.name,
            idle / 1_000_000,
            loaded / 1_000_000
        )?;
    }
    // The main thread has a VM too.
    let added = idle
        .last()
        .unwrap_or(&0)
        .saturating_sub(*idle.first().unwrap_or(&0));
    writeln!(
        report,
        "\nThe filter adds {} MB to {CONCURRENCY} workers and the main thread.",
        added / 1_000_000
    )?;
    Ok(())
}

/// Of the last minute, as the operating system has it.
fn load_average() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').next().unwrap_or("?").to_owned()
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values
}

fn middle(sorted: &[f64]) -> f64 {
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// Puts `section` into a report, in the place of the one that begins with its first line, up to the next of its kind; at the end when there is none.
fn write_section(report: &Path, section: &str) -> Result<()> {
    let former = fs::read_to_string(report)
        .with_context(|| format!("cannot read `{}`", report.display()))?;
    fs::write(report, with_section(&former, section))
        .with_context(|| format!("cannot write `{}`", report.display()))
}

fn with_section(report: &str, section: &str) -> String {
    let (before, _, after) = around(report, section);
    let mut parts = vec![before.trim_end(), section.trim()];
    parts.extend(Some(after.trim()).filter(|after| !after.is_empty()));
    parts.join("\n\n") + "\n"
}

/// What stands before the section that begins with the first line of `section`, it, and what stands after it.
fn around<'a>(report: &'a str, section: &str) -> (&'a str, &'a str, &'a str) {
    let title = section.trim_start().lines().next().unwrap_or_default();
    let Some(start) = report.find(&format!("\n{title}\n")) else {
        return (report, "", "");
    };
    let (before, rest) = report.split_at(start + 1);
    let length = rest.find("\n## ").map_or(rest.len(), |next| next + 1);
    let (former, after) = rest.split_at(length);
    (before, former, after)
}

fn capitalised(text: &str) -> String {
    let mut characters = text.chars();
    characters
        .next()
        .map(|first| first.to_uppercase().chain(characters).collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_goes_where_it_stood_and_leaves_the_others_alone() {
        let report = "# All\n\n## One\n\nold\n\n### Notes\n\nkept\n\n## Two\n\ntext\n";
        assert_eq!(
            with_section(report, "## One\n\nnew\n"),
            "# All\n\n## One\n\nnew\n\n## Two\n\ntext\n"
        );
        assert_eq!(
            with_section(report, "## Two\n\nnew\n"),
            "# All\n\n## One\n\nold\n\n### Notes\n\nkept\n\n## Two\n\nnew\n"
        );
        assert_eq!(
            with_section("# All\n", "## Three\n\nnew\n"),
            "# All\n\n## Three\n\nnew\n"
        );
    }
}
