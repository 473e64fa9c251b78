//! What a call takes inside the filter, as a filter measures that is built for it.

use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use xtask::run_folder::RunFolder;
use xtask::stack::Programs;
use xtask::stand_in::StandIn;
use xtask::{progress, wasm};

use super::load::{self, Target};

const TITLE: &str = "## Inside the filter";

/// What Envoy calls; everything else is what the filter calls.
const CALLBACKS: [&str; 5] = [
    "request headers",
    "request body",
    "response headers",
    "response body",
    "end",
];

/// Something that was run for each call, or for some.
struct Row {
    what: String,
    times: u64,
    nanos: u64,
}

pub(crate) fn run(options: &super::Options) -> Result<()> {
    let programs = super::programs()?;
    // In the place of the usual one, so after it.
    let programs = Programs {
        filter: wasm::measuring_filter()?,
        ..programs
    };
    let mut section = format!(
        "{TITLE}\n\n`cargo xtask bench --only filter`, load average {} at the start. Each callback of Envoy and each call to Envoy by Envoy's clock: how often for a call of the workload, \
         the mean of the faster 95 %, and what that comes to. A callback has in it what it calls, and some tenths of a microsecond each for measuring that.\n",
        super::load_average()
    );
    for workload in super::workloads() {
        progress::say("Measuring", workload.name);
        let mut rows = measure(&programs, &workload, options)?;
        let calls = rows
            .iter()
            .find(|row| row.what == CALLBACKS[0])
            .map_or(0, |row| row.times);
        ensure!(calls > 0, "the filter has measured nothing");
        let of_all = |row: &Row| row.times as f64 * row.nanos as f64 / calls as f64 / 1_000.0;
        rows.sort_by(|one, other| of_all(other).total_cmp(&of_all(one)));
        let (callbacks, calls_out): (Vec<&Row>, Vec<&Row>) =
            rows.iter().partition(|row| CALLBACKS.contains(&&*row.what));
        let sum = |rows: &[&Row]| rows.iter().map(|row| of_all(row)).sum::<f64>();
        writeln!(section, "\n### {}\n", super::capitalised(workload.name))?;
        writeln!(
            section,
            "| | times | µs each | µs a call |\n|---|---|---|---|"
        )?;
        for (name, rows) in [("callbacks", callbacks), ("calls to Envoy", calls_out)] {
            writeln!(section, "| **{name}** | | | **{:.1}** |", sum(&rows))?;
            for row in rows.iter().filter(|row| of_all(row) >= 0.1) {
                writeln!(
                    section,
                    "| {} | {:.2} | {:.1} | {:.1} |",
                    row.what,
                    row.times as f64 / calls as f64,
                    row.nanos as f64 / 1_000.0,
                    of_all(row)
                )?;
            }
        }
    }
    print!("{section}");
    match &options.output {
        Some(report) => super::write_section(report, &section),
        None => Ok(()),
    }
}

/// Runs one workload through a gate of its own, and reads what its filter has told.
fn measure(
    programs: &Programs,
    workload: &super::Workload,
    options: &super::Options,
) -> Result<Vec<Row>> {
    let run_folder = RunFolder::new("bench-filter")?;
    let folder = run_folder.path();
    let stand_in = StandIn::start(&folder.join("stand-in.log"), &["--release"])?;
    let (stack, tokens) = super::gate(folder, programs, &stand_in, super::POLICY, &["bench"])?;
    let target = Target {
        address: stack.envoy.listen,
        request: &workload.request(&tokens[0]),
        connections: super::CONNECTIONS,
    };
    load::closed_loop(target, Duration::from_secs(options.seconds))?;
    // Envoy writes its log to the end when it ends.
    drop((stack, stand_in));
    let log = fs::read_to_string(folder.join("gate/envoy.log"))?;
    run_folder.remove()?;
    let mut rows: Vec<Row> = Vec::new();
    for told in log.lines().filter_map(|line| line.split_once("profile [")) {
        let told: Vec<Value> = serde_json::from_str(&format!("[{}", told.1))?;
        for measured in told {
            let number = |field: &str| measured[field].as_u64().unwrap_or_default();
            let what = measured["what"].as_str().unwrap_or_default();
            let (times, nanos) = (number("times"), number("nanos"));
            match rows.iter_mut().find(|row| row.what == what) {
                Some(row) => {
                    let all = row.times + times;
                    row.nanos = (row.times * row.nanos + times * nanos) / all.max(1);
                    row.times = all;
                }
                None => rows.push(Row {
                    what: what.to_owned(),
                    times,
                    nanos,
                }),
            }
        }
    }
    Ok(rows)
}
