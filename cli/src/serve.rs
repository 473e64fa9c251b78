//! `tollgate serve`: the control plane.

use anyhow::{Context as _, anyhow, ensure};
use std::{
    io::{self, Write as _},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tollgate_control_plane::{Channels, ControlPlane, Settings, read_channels};
use tracing_subscriber::EnvFilter;

/// Run the control plane. The first start makes what is missing in the data directory, the root key (`root.key`) among it.
///
/// Prints one line, `{"listening": "ADDRESS"}`, when it answers; logs go to standard error as JSON.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Data directory: database, signing key, root key. One control plane at a time may use it.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Where to listen; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7410")]
    listen: SocketAddr,
    /// Listen on more than the loopback without TLS. Keys and policies then cross the network readable: only behind a TLS proxy.
    #[arg(long)]
    allow_plain_http: bool,
    /// How long a gate may spend from a lease without being heard of.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(5..=3_600))]
    lease_term_secs: u32,
    /// How long a gate goes on with a bundle without a newer one.
    #[arg(long, value_name = "SECONDS", default_value_t = 86_400, value_parser = clap::value_parser!(u32).range(60..=31_536_000))]
    bundle_ttl_secs: u32,
    /// Who is told of calls that wait for approval, by the names that policies use in `notify_channels`: a file of JSON such as
    /// {"slack:approvals": {"workspaces": ["ws-…"], "url": "https://…", "secret": "…"}}. With a secret, requests are signed.
    #[arg(long, value_name = "FILE")]
    channels: Option<PathBuf>,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    ensure!(
        args.listen.ip().is_loopback() || args.allow_plain_http,
        "`{}` is not a loopback address and there is no TLS here, so keys would cross the network readable; \
         listen on 127.0.0.1 behind a TLS proxy, or say --allow-plain-http",
        args.listen
    );
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_span_list(false)
        .with_writer(io::stderr)
        .with_env_filter(
            EnvFilter::try_from_env("TOLLGATE_LOG").unwrap_or_else(|_| EnvFilter::new("info")),
        )
        .init();
    tokio::runtime::Runtime::new()?.block_on(serve(args))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(args: Args) -> anyhow::Result<()> {
    let channels = match &args.channels {
        None => Channels::new(),
        Some(file) => {
            let text = std::fs::read_to_string(file)
                .with_context(|| format!("cannot read `{}`", file.display()))?;
            read_channels(&text).map_err(|why| anyhow!("`{}`: {why}", file.display()))?
        }
    };
    let settings = Settings {
        channels,
        lease_term_secs: args.lease_term_secs,
        bundle_ttl_secs: args.bundle_ttl_secs,
        ..Settings::default()
    };
    // Before anything is announced: a signal that comes now must not be lost.
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    let state = ControlPlane::open(&args.data, settings).await?;
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("cannot listen on `{}`", args.listen))?;
    let address = listener.local_addr()?;
    let mut out = io::stdout();
    writeln!(out, "{}", serde_json::json!({"listening": address}))?;
    out.flush()?;
    tollgate_control_plane::run(state, listener, async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
    .await;
    Ok(())
}
