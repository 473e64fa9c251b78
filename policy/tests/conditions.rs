//! Conditions: what is refused when they are written, and what they say to a call.

use tollgate_engine::{
    condition::Call,
    facts::{Facts, Head, Headers, Upstream, read_json},
    identity::{Caller, GovernanceLevel},
    json,
    time::Time,
};
use tollgate_policy::condition::{ConditionError, compile};

/// 2026-11-20T10:30:00Z, a Friday.
const NOW: i64 = 20_777 * 86_400 + 37_800;

/// What `condition` says to a call of the MCP tool `Bash` by an L1 agent of the team `platform`, in no organisation.
fn says(condition: &str) -> Result<bool, &'static str> {
    let body = br#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"Bash","arguments":
        {"command":"rm -rf /tmp/x","count":3,"half":0.5,"big":9223372036854775808,"force":true,"none":null,
         "paths":["/etc/passwd","/tmp"],"deep":{"er":{"name":"x"}}}}}"#;
    let pairs: &[(&[u8], &[u8])] = &[
        (b":method", b"POST"),
        (b":authority", b"tools.example"),
        (b":path", b"/mcp?x=1"),
        (b"content-type", b"application/json"),
    ];
    let upstream = Upstream {
        host: None,
        llm: false,
    };
    let head = Head::read(Headers(pairs), &upstream).unwrap();
    let doc = json::parse(body).unwrap();
    let facts = read_json(&head, &doc).unwrap();
    let caller = Caller {
        workspace: "ws".to_string(),
        agent: "00000000-0000-4000-8000-00000000000a".to_string(),
        org: None,
        team: Some("platform".to_string()),
        level: GovernanceLevel::L1,
        acts_for: Vec::new(),
    };
    let program = compile(condition).unwrap_or_else(|errors| panic!("{condition}: {errors:?}"));
    let args = doc
        .root()
        .get("params")
        .and_then(|params| params.get("arguments"));
    program.holds(&Call {
        caller: &caller,
        head: &head,
        facts: &facts,
        tool: "Bash",
        args,
        cost_nano_usd: Some(1_500_000_000),
        now: Time::from_secs(NOW),
    })
}

#[test]
fn true_conditions_hold_and_their_opposites_do_not() {
    for condition in [
        "true",
        "!false",
        "!!true",
        "governance_level >= L1",
        "governance_level < L2 && governance_level != L0",
        "governance_level in [L1, L3]",
        "team == 'platform'",
        "org == ''",
        "agent.startsWith(\"00000000-\")",
        "tool == 'Bash' && tool.lowerAscii() == 'bash'",
        "'Bash' in tools && size(tools) == 1",
        "model == ''",
        "method == 'POST' && host == 'tools.example' && path == '/mcp'",
        "host.endsWith('.example')",
        "args.command.contains('rm -rf')",
        "args['command'].startsWith('rm')",
        "args.count > 2 && args.count <= 3",
        "args.count * 2 + 1 == 7",
        "7 / 2 == 3 && 7 % 2 == 1 && -7 / 2 == -3",
        "1 + 2 * 3 == 7 && (1 + 2) * 3 == 9",
        "10 - 3 - 2 == 5",
        "args.force",
        "args.force == true",
        "args.force <= args.force && !(args.force < args.force)",
        "args.command < 'rn' && args.command > 'rm' && 'a' <= 'a' && !('b' <= 'a')",
        "args.none == args.none",
        "args.paths[0] == '/etc/passwd'",
        "'/tmp' in args.paths",
        "size(args.paths) == 2",
        "args.deep.er.name == 'x'",
        "has(args.command) && !has(args.missing) && has(args.deep.er)",
        "'command' in args",
        "size('käse') == 4",
        "estimated_cost_usd > 1",
        "estimated_cost_usd >= 1.50 && estimated_cost_usd < 1.500000001",
        "estimated_cost_usd * 2 == 3",
        "estimated_cost_usd - 0.5 == 1.0",
        "now.getHours() == 10 && now.getMinutes() == 30",
        "now.getDayOfWeek() == 5",
        "now < timestamp('2026-11-20T10:30:01Z')",
        "now == timestamp(\"2026-11-20T11:30:00+01:00\")",
        // `&&` binds tighter than `||`.
        "true || false && false",
        "'a\\'b' == \"a'b\"",
        // Values of other types are not the same.
        "args.count != 'three'",
        "args.command != 3",
        "!(args.count in args.deep)",
    ] {
        assert_eq!(says(condition), Ok(true), "{condition}");
        assert_eq!(says(&format!("!({condition})")), Ok(false), "{condition}");
    }
}

#[test]
fn what_cannot_be_known_is_an_error_unless_the_other_side_decides() {
    for condition in [
        "args.missing == 1",
        "args.missing.more == 1",
        "args.paths[2] == 'x'",
        "args.paths[-1] == 'x'",
        "args.count < 'three'",
        "args.command > 3",
        "args.half > 0",
        "args.big == 1",
        "args.count",
        "!args.count",
        "args.none.x == 1",
        "has(args.missing.x)",
        "args.command.size() > args.paths",
        "1 / 0 == 1",
        "1 % 0 == 1",
        "9223372036854775807 + 1 > 0",
        "args.missing == 1 || false",
        "args.missing == 1 && true",
        "!(args.missing == 1)",
        "args.missing in ['a']",
        "args.count in [args.count, args.missing]",
        "args.paths == args.paths",
    ] {
        assert!(says(condition).is_err(), "{condition}");
    }
    let wrong_type = "a value in the call has another type than the condition needs";
    assert_eq!(says("args.count"), Err(wrong_type));
    for (condition, expected) in [
        ("args.missing == 1 || true", true),
        ("true || args.missing == 1", true),
        ("args.missing == 1 && false", false),
        ("false && args.missing == 1", false),
        ("has(args.missing) && args.missing == 1", false),
    ] {
        assert_eq!(says(condition), Ok(expected), "{condition}");
    }
}

#[test]
fn mistakes_are_found_where_they_stand() {
    for (condition, at, part) in [
        (
            "governance_level >= L4",
            21,
            "`L4` is not a governance level",
        ),
        (
            "goverance_level >= L2",
            1,
            "did you mean `governance_level`?",
        ),
        (
            "governance_level >= 2",
            18,
            "does not go between a governance level and a whole number",
        ),
        (
            "team == 3",
            6,
            "does not go between a text and a whole number",
        ),
        (
            "team",
            1,
            "a condition must be true or false; this is a text",
        ),
        ("args.x == 1 &&", 13, "expected a value behind this"),
        ("", 1, "expected a value"),
        ("(true", 2, "expected `)`"),
        ("true false", 6, "expected an operator or the end"),
        ("team = 'a'", 6, "write `==`"),
        ("true & true", 6, "write `&&`"),
        ("true ? true : false", 6, "there is no `? :`"),
        ("team == 'a", 9, "no closing quote"),
        ("team == 'a\\d'", 11, "may follow a backslash"),
        ("team.matches('a')", 5, "there is no function `matches`"),
        ("team.startWith('a')", 5, "did you mean `startsWith`?"),
        ("team.startsWith(1)", 17, "needs a text"),
        ("team.name == 'a'", 1, "has no members"),
        ("has(team)", 5, "`has` needs a member"),
        (
            "now > 3",
            5,
            "does not go between an instant and a whole number",
        ),
        ("timestamp('soon') < now", 11, "not an instant"),
        ("1.5 == 1.5 && 1e3 == 1", 15, "is not a number"),
        ("team in [1]", 6, "does not go between"),
        ("team in ['a', 1]", 15, "must be of one kind"),
        ("team in []", 9, "an empty list"),
        ("[1] == [1]", 5, "does not go between"),
        ("-team == 'a'", 1, "cannot be applied to a text"),
        ("!1 == 1", 1, "cannot be applied to a whole number"),
        ("true + true", 6, "does not go between"),
        ("99999999999999999999 > 1", 1, "is too large"),
        ("args.x.y(1)", 7, "there is no function `y`"),
        ("cost > 1", 1, "did you mean `estimated_cost_usd`?"),
        ("size()", 1, "takes one value"),
        ("team.startsWith()", 5, "is written `x.startsWith(y)`"),
        (
            "tool.lowerAscii('a') == 'b'",
            5,
            "is written `x.lowerAscii()`",
        ),
        (
            "estimated_cost_usd / 2 > 1",
            20,
            "`/` does not go between an amount in US dollars and a whole number; an amount can be multiplied",
        ),
        (
            "estimated_cost_usd * 0.5 > 1",
            20,
            "an amount can be multiplied by a whole number",
        ),
    ] {
        let error = refusal(condition);
        assert!(error.message.contains(part), "{condition}: {error}");
        assert_eq!(error.at, at, "{condition}: {error}");
    }
}

#[test]
fn what_can_never_be_the_same_is_refused() {
    const ID: &str = "0123ABCD-89ab-cdef-0123-456789abcdef";
    for (condition, at, part) in [
        ("args.amount > 0.5", 13, "numbers in arguments are whole"),
        ("args.amount == 1.0", 13, "numbers in arguments are whole"),
        (
            "estimated_cost_usd < args.most",
            20,
            "numbers in arguments are whole",
        ),
        (
            "args.level >= L2",
            12,
            "does not go between something in the arguments and a governance level",
        ),
        ("now > args.since", 5, "does not go between an instant"),
        ("L1 in args.levels", 4, "does not go between"),
        ("args.level in [L1]", 12, "does not go between"),
        ("host == 'API.OpenAI.com'", 9, "write `api.openai.com`"),
        ("'API.OpenAI.com' != host", 1, "write `api.openai.com`"),
        ("host == 'api.openai.com:443'", 9, "write `api.openai.com`"),
        ("host == 'api.openai.com.'", 9, "write `api.openai.com`"),
        ("host == '[::1]'", 9, "write `::1`"),
        ("host == 'https://a.example'", 9, "is not a host"),
        ("host == ''", 9, "is not a host"),
        (
            "host in ['a.example', 'B.example']",
            23,
            "write `b.example`",
        ),
        ("host.endsWith('.OpenAI.com')", 15, "write `.openai.com`"),
        ("method == 'post'", 11, "write `POST`"),
        ("method in ['GET', 'Head']", 19, "write `HEAD`"),
        ("method.startsWith('p')", 19, "write `P`"),
        ("tool.lowerAscii() == 'Bash'", 22, "write `bash`"),
        ("tool.lowerAscii().contains('Git')", 28, "write `git`"),
        ("agent == 'support-bot'", 10, "is not the UUID of an agent"),
        ("agent.startsWith('ABC')", 18, "write `abc`"),
        (
            &format!("agent in ['{ID}']"),
            11,
            "write `0123abcd-89ab-cdef-0123-456789abcdef`",
        ),
    ] {
        let error = refusal(condition);
        assert!(error.message.contains(part), "{condition}: {error}");
        assert_eq!(error.at, at, "{condition}: {error}");
    }
    // Every one of a list is told.
    let found = compile("host in ['A', 'b', 'C']").expect_err("two are in upper case");
    let places: Vec<usize> = found.iter().map(|error| error.at).collect();
    assert_eq!(places, [10, 20]);
    for condition in [
        "args.amount > 0",
        "args.host == 'API.OpenAI.com'",
        "tool == 'Bash'",
        "path == '/V1'",
        "team == 'Platform'",
        "host == '::1' || host == 'a_b' || host.startsWith('10.')",
        "agent == '0123abcd-89ab-cdef-0123-456789abcdef'",
        "method.lowerAscii() == 'post'",
        "args.host in [host, 'A']",
    ] {
        assert!(compile(condition).is_ok(), "{condition}");
    }
}

/// The first thing that is wrong.
fn refusal(condition: &str) -> ConditionError {
    compile(condition).expect_err(condition).remove(0)
}

#[test]
fn every_wrong_name_and_type_is_told_at_once() {
    let places = |condition: &str| -> Vec<usize> {
        let errors = compile(condition).expect_err(condition);
        errors.iter().map(|error| error.at).collect()
    };
    let condition = "args.path.startWith(temp) && governance_level > L5 || !(1 in [tool, 2])";
    assert_eq!(places(condition), [10, 21, 49, 69]);
    // A type that only follows from a wrong name is not wrong by itself.
    assert_eq!(places("size(nothing) > 'a' && tools[team]"), [6, 30]);
    assert_eq!(places("nothing == team || neither.x[2].y"), [1, 20]);
}

#[test]
fn long_and_deep_conditions_are_refused_and_not_followed() {
    let deep = format!("{}true{}", "(".repeat(100), ")".repeat(100));
    assert!(refusal(&deep).message.contains("deep"));
    assert!(refusal(&"!".repeat(400)).message.contains("deep"));
    let deep = format!("{}true", "!".repeat(20));
    assert!(compile(&deep).is_ok());
    // 128 constants and 127 operators are 255 steps.
    let chain = |count: usize| vec!["true"; count].join(" && ");
    assert!(compile(&chain(128)).is_ok());
    // With a `!` they are 256, and a gate runs them.
    assert_eq!(says(&chain(128).replacen("true", "!false", 1)), Ok(true));
    assert!(compile(&chain(128).replacen("true", "!!true", 1)).is_err());
    assert!(refusal(&chain(129)).message.contains("too long"));
    assert!(refusal(&chain(30_000)).message.contains("too long"));
}

#[test]
fn arguments_of_an_offered_tool_are_unknown() {
    let pairs: &[(&[u8], &[u8])] = &[
        (b":method", b"GET"),
        (b":authority", b"tools.example"),
        (b":path", b"/"),
    ];
    let upstream = Upstream {
        host: None,
        llm: false,
    };
    let head = Head::read(Headers(pairs), &upstream).unwrap();
    let caller = Caller {
        workspace: String::new(),
        agent: String::new(),
        org: None,
        team: None,
        level: GovernanceLevel::L0,
        acts_for: Vec::new(),
    };
    let call = Call {
        caller: &caller,
        head: &head,
        facts: &Facts::of_head(&head, false),
        tool: "bash",
        args: None,
        cost_nano_usd: None,
        now: Time::from_secs(NOW),
    };
    for condition in [
        "args.x == 1",
        "has(args.x)",
        "'x' in args",
        "estimated_cost_usd > 1",
    ] {
        assert!(
            compile(condition).unwrap().holds(&call).is_err(),
            "{condition}"
        );
    }
}
