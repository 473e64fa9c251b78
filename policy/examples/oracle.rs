//! Answers what other implementations are asked too, for the comparisons in `tests/oracles/`: a question per line on standard input, the
//! answer on the same line of standard output, both JSON.
//!
//! ```text
//! {"zone":"Europe/Berlin","from":0,"until":86400,"hours":[[540,1080]]}   →  {"days":[…],"weeks":[…],"months":[…],"open":[[[…,…]]]}
//! {"pattern":"a+","texts":["b","aa"]}                                    →  {"found":[false,true]}, or {"refused":"P208"}
//! {"condition":"args.x > 1","args":{"x":2}}                              →  {"holds":true}, {"unknown":"why"} or {"refused":"why"}
//! ```

use serde_json::{Value, json};
use std::{
    error::Error,
    io::{self, BufRead as _, BufWriter, Write as _},
};
use tollgate_engine::{
    condition::Call,
    facts::{Facts, Head, Headers, Upstream},
    identity::{Caller, GovernanceLevel},
    json as engine_json,
    scan::{Hits, Scanner},
    time::Time,
};
use tollgate_policy::{condition, parse, zone};

fn main() -> Result<(), Box<dyn Error>> {
    let mut out = BufWriter::new(io::stdout().lock());
    for line in io::stdin().lock().lines() {
        let asked: Value = serde_json::from_str(&line?)?;
        let answer = if asked.get("zone").is_some() {
            days_and_hours(&asked)
        } else if asked.get("pattern").is_some() {
            search(&asked)
        } else {
            ask(&asked)
        };
        let answer = answer.ok_or_else(|| format!("not a question: {asked}"))?;
        writeln!(out, "{answer}")?;
    }
    Ok(out.flush()?)
}

fn days_and_hours(asked: &Value) -> Option<Value> {
    let name = asked["zone"].as_str()?;
    let (from, until) = (asked["from"].as_i64()?, asked["until"].as_i64()?);
    let open: Vec<_> = asked["hours"]
        .as_array()?
        .iter()
        .map(|hours| {
            let minutes = |at: usize| u32::try_from(hours[at].as_u64()?).ok();
            zone::open_hours(name, minutes(0)?, minutes(1)?, from, until)
        })
        .collect::<Option<_>>()?;
    Some(json!({
        "days": zone::midnights(name, from, until)?,
        "weeks": zone::mondays(name, from, until)?,
        "months": zone::months(name, from, until)?,
        "open": open,
    }))
}

/// Takes the way of a policy file, so that what is compared is what an author gets.
fn search(asked: &Value) -> Option<Value> {
    let document = json!({"scope": "global", "data": {"sensitive_patterns": [asked["pattern"]]}});
    let parsed = parse("oracle.json", document.to_string().as_bytes(), false);
    if let Some(error) = parsed.diagnostics.iter().find(|found| found.is_error()) {
        return Some(json!({"refused": error.code}));
    }
    let pattern = parsed.documents.first()?.data.patterns.first()?;
    let mut scanner = Scanner::new(&[&pattern.compile()?.forward]).ok()?;
    let found: Vec<bool> = asked["texts"]
        .as_array()?
        .iter()
        .map(|text| {
            let mut hits = Hits::default();
            scanner.search(text.as_str()?.as_bytes(), &mut hits);
            Some(!hits.is_empty())
        })
        .collect::<Option<_>>()?;
    Some(json!({"found": found}))
}

/// 2026-11-20T10:30:00Z, a Friday.
const NOW: i64 = 20_777 * 86_400 + 37_800;

fn ask(asked: &Value) -> Option<Value> {
    let program = match condition::compile(asked["condition"].as_str()?) {
        Ok(program) => program,
        Err(errors) => return Some(json!({"refused": errors.first()?.to_string()})),
    };
    let pairs: &[(&[u8], &[u8])] = &[
        (b":method", b"POST"),
        (b":authority", b"tools.example"),
        (b":path", b"/mcp?x=1"),
    ];
    let upstream = Upstream {
        host: None,
        llm: false,
    };
    let head = Head::read(Headers(pairs), &upstream).ok()?;
    let mut facts = Facts::of_head(&head, false);
    facts.said.mcp_tool = Some("Bash".to_string());
    let caller = Caller {
        workspace: "ws".to_string(),
        agent: "00000000-0000-4000-8000-00000000000a".to_string(),
        org: None,
        team: Some("platform".to_string()),
        level: GovernanceLevel::L1,
        acts_for: Vec::new(),
    };
    let arguments = asked["args"].to_string();
    let arguments = engine_json::parse(arguments.as_bytes()).ok()?;
    let holds = program.holds(&Call {
        caller: &caller,
        head: &head,
        facts: &facts,
        tool: "Bash",
        args: Some(arguments.root()),
        cost_nano_usd: Some(1_500_000_000),
        now: Time::from_secs(NOW),
    });
    Some(match holds {
        Ok(holds) => json!({"holds": holds}),
        Err(why) => json!({"unknown": why}),
    })
}
