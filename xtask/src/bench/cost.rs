//! What a process costs, as the operating system counts it.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// `/proc/PID/stat` counts in these on every Linux that Envoy runs on (`USER_HZ`).
const TICKS_PER_SECOND: u64 = 100;

/// Processor time of all threads since the process started.
pub(super) fn cpu_time(process: u32) -> Result<Duration> {
    let path = format!("/proc/{process}/stat");
    let stat = fs::read_to_string(&path)
        .with_context(|| format!("cannot read `{path}`: the benchmark needs Linux"))?;
    // The second field is the program's name in brackets, with anything in it; utime and stime are the 14th and 15th of all.
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let ticks = |field: usize| {
        fields
            .get(field - 3)
            .and_then(|field| field.parse::<u64>().ok())
            .context("no CPU time in `stat`")
    };
    Ok(Duration::from_millis(
        (ticks(14)? + ticks(15)?) * 1000 / TICKS_PER_SECOND,
    ))
}

/// Resident memory in bytes.
pub(super) fn memory_bytes(process: u32) -> Result<u64> {
    let path = format!("/proc/{process}/status");
    let status = fs::read_to_string(&path)
        .with_context(|| format!("cannot read `{path}`: the benchmark needs Linux"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("no VmRSS in `status`")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse::<u64>()? * 1024)
}
