//! Entries of `network.allowlist`.

use tollgate_policy::{Denied, Host, codes, parse};

#[test]
fn hosts_are_brought_into_one_form() {
    let exact = |host: &str| Ok(Host::Exact(host.to_string()));
    let below = |host: &str| Ok(Host::Below(host.to_string()));
    assert_eq!(Host::parse("api.openai.com"), exact("api.openai.com"));
    assert_eq!(Host::parse("API.OpenAI.com."), exact("api.openai.com"));
    assert_eq!(Host::parse("localhost"), exact("localhost"));
    assert_eq!(Host::parse("my_service"), exact("my_service"));
    assert_eq!(Host::parse("10.0.0.1"), exact("10.0.0.1"));
    assert_eq!(
        Host::parse("xn--bcher-kva.example"),
        exact("xn--bcher-kva.example")
    );
    assert_eq!(Host::parse("*.Slack.com"), below("slack.com"));
    assert_eq!(Host::parse(".gov"), below("gov"));
    assert_eq!(Host::parse(".Example.com."), below("example.com"));
    assert_eq!(Host::parse("*"), Ok(Host::Any));
    let longest = format!(
        "{}.{}.{}.{}",
        "a".repeat(63),
        "b".repeat(63),
        "c".repeat(63),
        "d".repeat(61)
    );
    assert_eq!(longest.len(), 253);
    assert_eq!(Host::parse(&longest), exact(&longest));
}

#[test]
fn what_is_no_host_is_refused_with_advice() {
    for (text, advice) in [
        ("https://api.openai.com", "without scheme"),
        ("api.openai.com/v1", "without scheme"),
        ("10.0.0.0/8", "address range"),
        ("api.openai.com:443", "without a port"),
        ("[::1]", "IPv6"),
        ("::1", "IPv6"),
        ("bücher.example", "punycode"),
        ("api.*.com", "whole first label"),
        ("*api.example.com", "whole first label"),
        ("**.example.com", "whole first label"),
        ("*.*.example.com", "whole first label"),
        ("*.", "whole first label"),
        ("..example.com", "not a host name"),
        (".", "not a host name"),
        ("a..b", "not a host name"),
        ("a.example..", "not a host name"),
        ("-a.example", "not a host name"),
        ("a-.example", "not a host name"),
        ("user@example.com", "not a host name"),
        ("exa mple.com", "not a host name"),
        ("127.1", "IPv4"),
        ("0x7f.0.0.1", "IPv4"),
        ("0x7f000001", "IPv4"),
        ("2130706433", "IPv4"),
        ("010.0.0.1", "IPv4"),
        ("1.2.3.4.5", "IPv4"),
        ("*.0.0.1", "IPv4"),
    ] {
        match Host::parse(text) {
            Ok(host) => panic!("`{text}` was read as {host:?}"),
            Err(why) => assert!(why.contains(advice), "`{text}`: {why}"),
        }
    }
    assert!(Host::parse(&"a".repeat(64)).is_err());
}

#[test]
fn denied_entries_are_hosts_addresses_and_a_word() {
    for text in [
        "private",
        "a.example",
        "*.a.example",
        "10.0.0.0/8",
        "::1",
        "fe80::/10",
        "10.0.0.1",
    ] {
        assert_eq!(Denied::parse(text).unwrap().to_string(), text);
    }
    for (text, advice) in [
        ("*", "empty `allowlist`"),
        ("10.0.0.1/8", "first address"),
        ("10.0.0.0/33", "first address"),
        ("a.example/b", "first address"),
        ("https://a.example", "without scheme"),
        ("0x7f.1", "IPv4"),
        ("Private", "lower case"),
        ("[::1]", "without brackets"),
        ("[::1]:443", "without brackets"),
        ("a.example:443", "without a port"),
    ] {
        match Denied::parse(text) {
            Ok(denied) => panic!("`{text}` was read as {denied:?}"),
            Err(why) => assert!(why.contains(advice), "`{text}`: {why}"),
        }
    }
    let findings = |text: &str| -> Vec<String> {
        let parsed = parse("case.yaml", text.as_bytes(), false);
        let shown = parsed
            .diagnostics
            .iter()
            .map(|d| format!("{} {}", d.code, d.path));
        shown.collect()
    };
    let v1 = |network: &str| {
        findings(&format!(
            "{{apiVersion: tollgate/v1, kind: Policy, metadata: {{name: n}}, spec: {{network: {network}}}}}"
        ))
    };
    assert_eq!(v1("{denylist: [private, 10.0.0.0/8]}"), [""; 0]);
    assert_eq!(
        v1("{denylist: ['', 10.0.0.0/7, '*']}"),
        [
            "P105 spec.network.denylist[0]",
            "P202 spec.network.denylist[2]"
        ]
    );
    assert_eq!(v1("{denylist: private}"), ["P102 spec.network.denylist"]);
    assert_eq!(
        findings("network: {denylist: [private]}"),
        ["P107 network.denylist"]
    );
}

#[test]
fn an_allowlist_does_not_know_the_word_of_denylists() {
    let allowed = |entry: &str| {
        let text = format!("network: {{allowlist: ['{entry}']}}");
        let parsed = parse("case.yaml", text.as_bytes(), false);
        let found = parsed.diagnostics.iter();
        found.map(|d| d.to_string()).collect::<Vec<_>>()
    };
    for word in ["private", "Private"] {
        let found = allowed(word);
        assert_eq!(found.len(), 1);
        let start = format!(
            "1:23: error[P202] network.allowlist[0]: `{word}`: this is a word of `denylist`"
        );
        assert!(found[0].starts_with(&start), "{found:?}");
    }
    assert_eq!(allowed("private."), [""; 0]);
    // Below a name that nobody can register: broad for all that this knows.
    assert_eq!(allowed("*.a.private"), [""; 0]);
}

#[test]
fn broad_entries_are_warned_about() {
    let text = "network: {allowlist: ['*', '*.com', '*.example.com']}";
    let parsed = parse("case.yaml", text.as_bytes(), false);
    let found: Vec<_> = parsed
        .diagnostics
        .iter()
        .map(|d| (d.code, d.path.as_str()))
        .collect();
    assert_eq!(
        found,
        [
            (codes::BROAD, "network.allowlist[0]"),
            (codes::BROAD, "network.allowlist[1]")
        ]
    );
    assert!(!parsed.has_errors());
}
