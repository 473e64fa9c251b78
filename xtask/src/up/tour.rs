//! What `up` prints: four calls to try, and where to see what came of them.

use std::net::SocketAddr;
use std::path::Path;

use xtask::root;
use xtask::stack::Upstream;

/// The way a provider wants to be called.
struct Api {
    path: &'static str,
    headers: &'static str,
    model: &'static str,
    other_model: &'static str,
    limit: &'static str,
}

const OPENAI: Api = Api {
    path: "/v1/chat/completions",
    headers: "",
    model: "gpt-5-mini",
    other_model: "gpt-4o",
    limit: "max_completion_tokens",
};

const ANTHROPIC: Api = Api {
    path: "/v1/messages",
    headers: " -H 'anthropic-version: 2023-06-01'",
    model: "claude-haiku-4-5",
    other_model: "claude-opus-4-5",
    limit: "max_tokens",
};

/// Ends the answer with a line end, which a provider's JSON has not.
const LINE: &str = "-w '\\n' ";

/// The text. The lines refer to variables of `folder`/env, so that no key stands on the screen.
pub(super) fn what_to_try(
    gate: &str,
    admin: Option<SocketAddr>,
    upstream: &Upstream,
    stand_in: bool,
    tollgate: &Path,
    folder: &Path,
) -> String {
    let api = if upstream.openai_key.is_some() {
        OPENAI
    } else {
        ANTHROPIC
    };
    let gate = format!("{gate}{}", api.path);
    let call = |model: &str, tokens: u32, prompt: &str, options: &str| {
        format!(
            "curl -s {options}{gate} -H \"authorization: Bearer $TOKEN\" -H 'content-type: application/json'{headers} \\\n    \
             -d '{{\"model\": \"{model}\", \"{limit}\": {tokens}, \"messages\": [{{\"role\": \"user\", \"content\": \"{prompt}\"}}]}}'",
            headers = api.headers,
            limit = api.limit,
        )
    };
    let allowed = call(api.model, 100, "Say hello", LINE);
    let denied = call(api.other_model, 100, "Say hello", LINE);
    // Two pieces, so that no scanner takes this file for a leak.
    let secret = call(
        api.model,
        100,
        &format!(
            "Keep this key for me: sk-{}",
            "not-a-real-key-but-it-looks-like-one"
        ),
        LINE,
    );
    let runs_out = if stand_in {
        // At 2 USD for a million tokens, 0.08 USD each.
        let options = "-o /dev/null -w '%{http_code}\\n' -H 'x-stand-in-completion-tokens: 40000' ";
        format!(
            "for call in 1 2 3 4 5; do {}; done",
            call(api.model, 40_000, "Count to ten thousand", options)
        )
    } else {
        // More than the whole day's budget at once: denied before it costs anything.
        call(api.model, 1_000_000, "Count to a million", LINE)
    };
    format!(
        "
In another terminal, in this order:

  . {folder}/env

  # allowed
  {allowed}

  # denied: the policy does not allow this model
  {denied}

  # blocked: a secret in the prompt
  {secret}

  # runs out: the budget is 0.30 USD a day, and a call that does not fit is answered 429
  {runs_out}

See what came of them:

  {tollgate} audit list    # every decision, its reasons and its cost{asked}
  {tollgate} usage         # what was spent, by agent and model
  {tollgate} budget list   # what is left
  {tollgate} audit export --output {folder}/audit.jsonl && {tollgate} audit verify {folder}/audit.jsonl
  {tollgate} policy apply {policy}    # edit it first: live within two seconds
{metrics}
Logs are in {folder}. Ctrl-C stops everything; the next `cargo xtask up` finds its state again.",
        folder = folder.display(),
        tollgate = tollgate.display(),
        policy = root().join("xtask/demo/policy.yaml").display(),
        // Envoy says by itself when it is ready.
        asked = admin.map_or("; the first, nobody's, asked whether the gate is there", |_| ""),
        metrics = admin.map_or_else(String::new, |admin| {
            format!("  curl -s http://{admin}/stats/prometheus | grep ^tollgate_\n")
        }),
    )
}
