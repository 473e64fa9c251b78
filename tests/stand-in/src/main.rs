//! The stand-in provider as a program: prints where it listens as one line of JSON, then serves until it is stopped.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use clap::Parser;
use serde_json::json;
use tollgate_stand_in::StandIn;

#[derive(Parser)]
#[command(
    about = "An LLM provider on the loopback that speaks OpenAI's and Anthropic's wire formats."
)]
struct Arguments {
    /// Where to listen; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// The API key that callers must present.
    #[arg(long, env = "STAND_IN_PROVIDER_KEY", hide_env_values = true)]
    provider_key: String,
}

fn main() -> Result<()> {
    let Arguments {
        listen,
        provider_key,
    } = Arguments::parse();
    let stand_in = StandIn::start(listen, &provider_key)
        .with_context(|| format!("cannot listen on {listen}"))?;
    println!("{}", json!({"address": stand_in.address().to_string()}));
    stand_in.wait();
    Ok(())
}
