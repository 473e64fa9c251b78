//! Denials that clients understand: each in the shape its SDK already knows how to show.

use crate::{
    decide::{Cause, Reason},
    facts::Dialect,
    json::quote,
};
use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};

/// Names the alerts that are exceeded, in the response to a call that passed.
pub const WARNING_HEADER: &str = "x-tollgate-warning";

/// Says in the response to a call how many stretches of its body were taken out.
pub const REDACTED_HEADER: &str = "x-tollgate-redacted";

/// Says in the response to a call how many output tokens it was kept to, because a budget covers no more.
pub const LOWERED_HEADER: &str = "x-tollgate-lowered-max-tokens";

/// Names the decision in every answer, so that a person can find its record.
pub const DECISION_HEADER: &str = "x-tollgate-decision";
/// Names the first reason's rule in a denial, or [`APPROVAL_REQUIRED`].
pub const REASON_HEADER: &str = "x-tollgate-reason";
/// Names the approval that a held call waits for; see [`crate::approval`].
pub const APPROVAL_HEADER: &str = "x-tollgate-approval";
/// Stands for the rule where a call is held: programs that wait for approvals look for one word, whatever the tool.
pub const APPROVAL_REQUIRED: &str = "approval.required";

/// An answer the gate gives itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Headers; names in lower case.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: String,
}

/// Writes the denial of a call. `reasons` must not be empty; the first one sets the status, unless a later one weighs more
/// (a budget denial beside a policy denial is a policy denial: waiting would not help). `retry_after_secs` where waiting helps; `approval` names the
/// approval that is waited for.
pub fn denial(
    dialect: Dialect,
    reasons: &[Reason],
    decision_id: &str,
    mcp_id: Option<&str>,
    retry_after_secs: Option<i64>,
    approval: Option<&str>,
) -> Reply {
    let cause = cause_of(reasons);
    let first = reasons.iter().find(|reason| reason.cause == cause);
    let rule: &str = match cause {
        Cause::Approval => APPROVAL_REQUIRED,
        Cause::Identity
        | Cause::Halted
        | Cause::Policy
        | Cause::Redaction
        | Cause::Rate
        | Cause::Budget
        | Cause::Malformed
        | Cause::TooLarge
        | Cause::Unavailable => first.map_or("unknown", |reason| &reason.rule),
    };
    let mut message = message_of(reasons);
    let mut headers = Vec::from([
        (DECISION_HEADER, decision_id.to_string()),
        (REASON_HEADER, header_safe(rule)),
    ]);
    let mut member = String::new();
    if let Some(approval) = approval {
        headers.push((APPROVAL_HEADER, approval.to_string()));
        message += &format!("; once `{approval}` has been granted, send the same call again");
        member = format!(r#","approval":{}"#, quoted(approval));
    }
    if let Some(secs) = retry_after_secs {
        headers.push(("retry-after", secs.max(1).to_string()));
    }
    if matches!(cause, Cause::Rate | Cause::Budget) {
        // Both vendors' SDKs retry 429 by themselves unless told otherwise; against a limit that only wears the limit out.
        headers.push(("x-should-retry", "false".to_string()));
    }
    if cause == Cause::Identity {
        // RFC 9110 §11.6.1: a 401 names the scheme.
        headers.push(("www-authenticate", "Bearer".to_string()));
    }
    let (content_type, body) = match dialect {
        Dialect::OpenAi => (
            "application/json",
            format!(
                r#"{{"error":{{"message":{},"type":"{}","param":null,"code":{}}}}}"#,
                quoted(&message),
                openai_type(cause),
                quoted(rule)
            ),
        ),
        Dialect::Anthropic => (
            "application/json",
            format!(
                r#"{{"type":"error","error":{{"type":"{}","message":{}}},"request_id":{}}}"#,
                anthropic_type(cause),
                quoted(&message),
                quoted(decision_id)
            ),
        ),
        Dialect::Mcp => (
            "application/json",
            format!(
                r#"{{"jsonrpc":"2.0","id":{},"error":{{"code":{MCP_DENIED},"message":{},"data":{{"rule":{},"decision":{}{member}}}}}}}"#,
                mcp_id.unwrap_or("null"),
                quoted(&message),
                quoted(rule),
                quoted(decision_id)
            ),
        ),
        Dialect::Problem => (
            "application/problem+json",
            format!(
                r#"{{"type":"about:blank","title":"{}","status":{},"detail":{},"rule":{},"decision":{}{member}}}"#,
                title(cause),
                cause.status(),
                quoted(&message),
                quoted(rule),
                quoted(decision_id)
            ),
        ),
    };
    headers.push(("content-type", content_type.to_string()));
    Reply {
        status: cause.status(),
        headers,
        body,
    }
}

/// Server-defined error (JSON-RPC 2.0 §5.1 reserves -32000 to -32099 for servers).
const MCP_DENIED: i32 = -32_001;

/// The cause that weighs most: what cannot be cured by waiting comes before what can.
pub fn cause_of(reasons: &[Reason]) -> Cause {
    let weight = |cause: Cause| match cause {
        Cause::Identity => 9,
        Cause::Halted => 8,
        Cause::TooLarge => 7,
        Cause::Malformed => 6,
        Cause::Policy => 5,
        Cause::Unavailable => 4,
        Cause::Budget => 3,
        Cause::Rate => 2,
        // Whatever denies the call denies it approved, too.
        Cause::Approval => 1,
        // No answer of a gate comes of this alone.
        Cause::Redaction => 0,
    };
    reasons
        .iter()
        .map(|reason| reason.cause)
        .max_by_key(|cause| weight(*cause))
        .unwrap_or(Cause::Unavailable)
}

fn message_of(reasons: &[Reason]) -> String {
    let mut out = String::from("tollgate: ");
    let mut said: Vec<(&str, &Option<String>)> = Vec::new();
    for reason in reasons {
        // Two rules of a document may have the same to say.
        let this = (&*reason.message, &reason.document);
        if said.contains(&this) {
            continue;
        }
        if !said.is_empty() {
            out.push_str("; ");
        }
        said.push(this);
        out.push_str(&reason.message);
        if let Some(document) = &reason.document {
            out.push_str(" (policy `");
            out.push_str(document);
            out.push_str("`)");
        }
    }
    out
}

fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    quote(text, &mut out);
    out
}

/// A rule may contain a tool's name as its author wrote it; a header holds visible ASCII only (RFC 9110 §5.5).
fn header_safe(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_ascii_graphic() { c } else { '?' })
        .collect()
}

/// OpenAI, API reference, "Error codes".
const fn openai_type(cause: Cause) -> &'static str {
    match cause {
        Cause::Identity => "authentication_error",
        Cause::Halted | Cause::Policy | Cause::Redaction | Cause::Approval => "permission_error",
        Cause::Rate => "rate_limit_error",
        Cause::Budget => "insufficient_quota",
        Cause::Malformed | Cause::TooLarge => "invalid_request_error",
        Cause::Unavailable => "server_error",
    }
}

/// Anthropic, API reference, "Errors".
const fn anthropic_type(cause: Cause) -> &'static str {
    match cause {
        Cause::Identity => "authentication_error",
        Cause::Halted | Cause::Policy | Cause::Redaction | Cause::Approval => "permission_error",
        Cause::Rate | Cause::Budget => "rate_limit_error",
        Cause::Malformed => "invalid_request_error",
        Cause::TooLarge => "request_too_large",
        Cause::Unavailable => "api_error",
    }
}

const fn title(cause: Cause) -> &'static str {
    match cause {
        Cause::Identity => "who is calling is not established",
        Cause::Halted => "stopped by an operator",
        Cause::Policy => "denied by policy",
        Cause::Redaction => "content was taken out",
        Cause::Approval => "needs approval",
        Cause::Rate => "too many calls",
        Cause::Budget => "budget used up",
        Cause::Malformed => "the request has no single reading",
        Cause::TooLarge => "the body is too large",
        Cause::Unavailable => "the gate cannot decide now",
    }
}

/// The well-formed end of a stream of events that is cut, in the caller's dialect. `mcp_id` is of the request that the stream answers.
pub fn final_event(dialect: Dialect, reason: &Reason, mcp_id: Option<&str>) -> String {
    let message = quoted(&message_of(core::slice::from_ref(reason)));
    let code = quoted(&reason.rule);
    match dialect {
        Dialect::Anthropic => format!(
            "event: error\ndata: {{\"type\":\"error\",\"error\":{{\"type\":\"{}\",\"message\":{message}}}}}\n\n",
            anthropic_type(reason.cause)
        ),
        // An answer where there is a request to answer; else (JSON-RPC 2.0 §4.1) a notification.
        Dialect::Mcp => match mcp_id {
            Some(id) => format!(
                "data: {{\"jsonrpc\":\"2.0\",\"id\":{id},\"error\":{{\"code\":{MCP_DENIED},\"message\":{message},\"data\":{{\"rule\":{code}}}}}}}\n\n"
            ),
            None => format!(
                "data: {{\"jsonrpc\":\"2.0\",\"method\":\"notifications/message\",\"params\":{{\"level\":\"error\",\"data\":{message}}}}}\n\n"
            ),
        },
        Dialect::OpenAi | Dialect::Problem => format!(
            "data: {{\"error\":{{\"message\":{message},\"type\":\"{}\",\"param\":null,\"code\":{code}}}}}\n\n",
            openai_type(reason.cause)
        ),
    }
}
