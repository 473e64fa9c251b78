//! Which call somebody is asked to approve.
//!
//! A call that is held is named after what it says and what was asked of it, so whoever sends the same call again asks for the same approval, at
//! whichever gate. An approval is the right to one such call: the account `agent:<id>|approvals|run:<name>`, from which nothing can be leased until
//! an operator grants it, and then one call, to one gate. So what makes budgets exact makes an approval good for one call; and whoever sends the
//! call again needs to bring nothing.
//!
//! The name covers the agent and all it acts for, method, host, path and query; a tool's name and arguments, or the whole body where it is no tool that is
//! called; and the rules that ask, with their conditions. Another argument is another call, in the query too; a rule that has been changed asks anew. How JSON is
//! laid out and in which order its members come makes no difference.

use crate::{
    bundle::{Document, Level},
    bytes::to_hex,
    decide::{Cause, Charge, Reason},
    facts::{Facts, Head},
    identity::Caller,
    json::{self, Kind, Value},
    ledger::{Account, Span, Unit, Window},
    sorted::sort_by,
};
use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};
use sha2::{Digest as _, Sha256};

/// Begins every name.
const PREFIX: &str = "apr-";
/// Bytes of a digest in a name. At 128 bits nobody finds two calls that come to the same.
const NAME_BYTES: usize = 16;

/// Whether this is the name of a call that somebody may be asked to approve: `apr-` and 32 hex digits.
pub fn is_name(text: &str) -> bool {
    text.strip_prefix(PREFIX).is_some_and(|hex| {
        hex.len() == NAME_BYTES * 2
            && hex
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// The account of a call of this name.
fn account(agent: &str, name: &str) -> Account {
    Account {
        level: Level::Agent,
        id: agent.to_string(),
        unit: Unit::Approvals,
        window: Window::Run,
        tool: None,
        model: None,
        run: Some(name.to_string()),
    }
}

/// The rules among `reasons` that ask for approval, each as the document has it and with its condition.
pub(crate) fn demands(met: &[&Document], reasons: &[Reason]) -> Vec<Vec<u8>> {
    let asks = reasons
        .iter()
        .filter(|reason| reason.cause == Cause::Approval);
    let mut demands: Vec<Vec<u8>> = asks
        .map(|reason| {
            let name = reason.document.as_deref().unwrap_or_default();
            let mut documents = met.iter().filter(|document| document.name == name);
            let condition = documents.find_map(|document| document.approval(&reason.rule));
            let condition = serde_json::to_vec(&condition).unwrap_or_default();
            let mut demand = Vec::new();
            for part in [name.as_bytes(), reason.rule.as_bytes(), &condition] {
                demand.extend(length(part.len()));
                demand.extend(part);
            }
            demand
        })
        .collect();
    // In whatever order documents come.
    sort_by(&mut demands, Vec::cmp);
    demands
}

/// The name of a call that is held. `body` is what would go out.
pub(crate) fn name(
    caller: &Caller,
    head: &Head,
    facts: &Facts,
    body: &[u8],
    demands: &[Vec<u8>],
) -> String {
    let mut hash = Sha256::new();
    hash.update(b"tollgate approval 1\n");
    let agents: Vec<&[u8]> = caller.all().map(|one| one.agent.as_bytes()).collect();
    list(&mut hash, &agents);
    let mut place = Vec::from([&head.method, &head.host, &head.path].map(|part| part.as_bytes()));
    // With the query, where there is one.
    place.extend((head.target != head.path.as_bytes()).then_some(head.target.as_slice()));
    list(&mut hash, &place);
    list(&mut hash, demands);
    match &facts.said.mcp_tool {
        Some(tool) => {
            part(&mut hash, tool.as_bytes());
            let arguments = facts.said.mcp_arguments.as_ref();
            let arguments = arguments.map_or("", |arguments| arguments.json());
            content(&mut hash, arguments.as_bytes());
        }
        None => content(&mut hash, body),
    }
    let digest: [u8; 32] = hash.finalize().into();
    format!(
        "{PREFIX}{}",
        to_hex(digest.get(..NAME_BYTES).unwrap_or_default())
    )
}

/// What takes an approval of the call `name` from its account, for one of the reasons to ask.
pub(crate) fn charge(caller: &Caller, name: &str, reason: &Reason) -> Charge {
    Charge {
        account: account(&caller.agent, name),
        principal: 0,
        span: Span::RUN,
        amount: 1,
        limit: 1,
        suspend: false,
        alert: false,
        lowers: false,
        rule: reason.rule.to_string(),
        document: reason.document.clone().unwrap_or_default(),
    }
}

fn length(bytes: usize) -> [u8; 8] {
    u64::try_from(bytes).unwrap_or(u64::MAX).to_le_bytes()
}

/// A part, so that where it ends is part of it.
fn part(hash: &mut Sha256, bytes: &[u8]) {
    hash.update(length(bytes.len()));
    hash.update(bytes);
}

fn list(hash: &mut Sha256, parts: &[impl AsRef<[u8]>]) {
    hash.update(length(parts.len()));
    parts.iter().for_each(|bytes| part(hash, bytes.as_ref()));
}

/// JSON by what it says, anything else by its bytes.
fn content(hash: &mut Sha256, bytes: &[u8]) {
    match json::parse(bytes) {
        Ok(document) => value(hash, document.root()),
        Err(_) => {
            hash.update(b"bytes");
            part(hash, bytes);
        }
    }
}

/// As deep as [`json::parse`] reads.
fn value(hash: &mut Sha256, one: Value<'_, '_>) {
    match one.kind() {
        Kind::Object => {
            let mut members: Vec<_> = one.entries().collect();
            sort_by(&mut members, |(one, _), (other, _)| one.cmp(other));
            hash.update(b"{");
            hash.update(length(members.len()));
            for (key, member) in members {
                part(hash, key.as_bytes());
                value(hash, member);
            }
        }
        Kind::Array => {
            hash.update(b"[");
            hash.update(length(one.items().count()));
            one.items().for_each(|item| value(hash, item));
        }
        Kind::String => {
            hash.update(b"\"");
            part(hash, one.as_str().unwrap_or_default().as_bytes());
        }
        // As written: what a server makes of `1.0` is its own choice.
        Kind::Number | Kind::Bool | Kind::Null => {
            hash.update(b"=");
            part(hash, one.raw().as_bytes());
        }
    }
}
