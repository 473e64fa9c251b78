//! The JSON reader accepts RFC 8259 minus what two readers may understand differently, and edits leave other bytes alone.

use std::borrow::Cow;

use tollgate_engine::json::{self, Edit, ErrorKind, Kind, MAX_DEPTH, MAX_NODES, Role};

fn refusal(text: &[u8]) -> (ErrorKind, usize) {
    let error = json::parse(text).expect_err(&String::from_utf8_lossy(text));
    (error.kind, error.offset)
}

#[test]
fn accepts_the_grammar() {
    let texts = [
        "null",
        " \t\r\n true \n",
        "false",
        "0",
        "-0",
        "10",
        "-1.5",
        "0.0",
        "1e1",
        "1E+2",
        "1.5e-07",
        "123456789012345678901234567890",
        "1e999999",
        r#""""#,
        r#""\"\\\/\b\f\n\r\t\u0041\uD83D\uDE00""#,
        "\"é😀\u{7f}\u{2028}\"",
        r#""\u0000""#,
        "[]",
        "[ ]",
        "{}",
        "{ }",
        "[1,2]",
        "[[],{}]",
        r#"{"a":1}"#,
        r#"{"":0}"#,
        r#" { "a" : [ 1 , { "b" : null } ] , "c" : "" } "#,
        r#"{"a":{"a":{"a":1}}}"#,
        r#"[{"a":1},{"a":1}]"#,
        r#"{"a":1,"A":2,"a ":3}"#,
    ];
    for text in texts {
        json::parse(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"));
        serde_json::from_str::<&serde_json::value::RawValue>(text).expect(text);
    }
}

#[test]
fn refuses_what_the_grammar_does_not_have() {
    use ErrorKind::*;
    let cases: &[(&[u8], ErrorKind, usize)] = &[
        (b"", UnexpectedEnd, 0),
        (b"  ", UnexpectedEnd, 2),
        (b"[", UnexpectedEnd, 1),
        (b"{", UnexpectedEnd, 1),
        (b"[1", UnexpectedEnd, 2),
        (b"[1,", UnexpectedEnd, 3),
        (b"{\"a\"", UnexpectedEnd, 4),
        (b"{\"a\":", UnexpectedEnd, 5),
        (b"{\"a\":1", UnexpectedEnd, 6),
        (b"\"abc", UnexpectedEnd, 4),
        (b"\"abc\\", UnexpectedEnd, 4),
        (b"\"abc\\u00", UnexpectedEnd, 4),
        (b"tru", UnexpectedEnd, 3),
        (b"-", UnexpectedEnd, 1),
        (b"1.", UnexpectedEnd, 2),
        (b"1e", UnexpectedEnd, 2),
        (b"1e+", UnexpectedEnd, 3),
        (b"]", UnexpectedByte, 0),
        (b"}", UnexpectedByte, 0),
        (b",", UnexpectedByte, 0),
        (b"[,1]", UnexpectedByte, 1),
        (b"[1,]", UnexpectedByte, 3),
        (b"[1 2]", UnexpectedByte, 3),
        (b"[1}", UnexpectedByte, 2),
        (b"{\"a\":1]", UnexpectedByte, 6),
        (b"{\"a\":1,}", UnexpectedByte, 7),
        (b"{\"a\" 1}", UnexpectedByte, 5),
        (b"{\"a\"=1}", UnexpectedByte, 4),
        (b"{\"a\":}", UnexpectedByte, 5),
        (b"{,}", UnexpectedByte, 1),
        (b"{a:1}", UnexpectedByte, 1),
        (b"{'a':1}", UnexpectedByte, 1),
        (b"{1:1}", UnexpectedByte, 1),
        (b"True", UnexpectedByte, 0),
        (b"nUll", UnexpectedByte, 1),
        (b"NaN", UnexpectedByte, 0),
        (b"Infinity", UnexpectedByte, 0),
        (b"+1", UnexpectedByte, 0),
        (b".5", UnexpectedByte, 0),
        (b"// c\n1", UnexpectedByte, 0),
        (b"[1/**/]", UnexpectedByte, 2),
        (b"\x0c1", UnexpectedByte, 0),
        ("\u{a0}1".as_bytes(), UnexpectedByte, 0),
        (b"01", BadNumber, 1),
        (b"-01", BadNumber, 2),
        (b"[1.]", BadNumber, 3),
        (b"[1.e5]", BadNumber, 3),
        (b"[-]", BadNumber, 2),
        (b"[1e]", BadNumber, 3),
        (b"[0x1]", BadNumber, 2),
        (b"[1.2.3]", BadNumber, 4),
        (b"[1-2]", BadNumber, 2),
        (b"[-Infinity]", BadNumber, 2),
        (b"1 2", TrailingData, 2),
        (b"{}{}", TrailingData, 2),
        (b"null,", TrailingData, 4),
        (b"{}\0", TrailingData, 2),
        (b"\"\x1f\"", ControlCharacter, 1),
        (b"\"a\nb\"", ControlCharacter, 2),
        (b"\"a\tb\"", ControlCharacter, 2),
        (b"\"\0\"", ControlCharacter, 1),
        (b"\"12345678\x1f234567\"", ControlCharacter, 9),
        (b"\"\\x41\"", BadEscape, 1),
        (b"\"\\'\"", BadEscape, 1),
        (b"\"\\U0041\"", BadEscape, 1),
        (b"\"\\u00g0\"", BadEscape, 1),
        (b"\"\\u+123\"", BadEscape, 1),
        (b"\"\\ud800\"", LoneSurrogate, 1),
        (b"\"\\udc00\"", LoneSurrogate, 1),
        (b"\"\\ud800x\"", LoneSurrogate, 1),
        (b"\"\\ud800\\n\"", LoneSurrogate, 1),
        (b"\"\\ud800\\ud800\"", LoneSurrogate, 1),
        (b"\"\\udc00\\ud800\"", LoneSurrogate, 1),
        (b"\xEF\xBB\xBF{}", ByteOrderMark, 0),
        (b"\xFE\xFF\0{\0}", NotUtf8, 0),
        (b"{\0}\0", UnexpectedByte, 1),
        (b"\"\xff\"", NotUtf8, 1),
        (b"\"\xc0\xaf\"", NotUtf8, 1),
        (b"\"\xed\xa0\x80\"", NotUtf8, 1),
        (b"\"\xf4\x90\x80\x80\"", NotUtf8, 1),
        (b"\"\xe2\x82\"", NotUtf8, 1),
    ];
    for (text, kind, offset) in cases {
        assert_eq!(
            refusal(text),
            (*kind, *offset),
            "{:?}",
            text.escape_ascii().to_string()
        );
    }
}

#[test]
fn refuses_a_repeated_key_however_it_is_written() {
    use ErrorKind::DuplicateKey;
    assert_eq!(refusal(br#"{"a":1,"a":1}"#), (DuplicateKey, 7));
    assert_eq!(refusal(br#"{"":1,"":2}"#), (DuplicateKey, 6));
    // \u006d is "m", \/ is "/", 😀 is U+1F600.
    assert_eq!(
        refusal(br#"{"model":"x","\u006dodel":"y"}"#),
        (DuplicateKey, 13)
    );
    assert_eq!(
        refusal(br#"{"\u006dodel":"x","model":"y"}"#),
        (DuplicateKey, 18)
    );
    assert_eq!(refusal(br#"{"a\/b":1,"a/b":2}"#), (DuplicateKey, 10));
    assert_eq!(
        refusal("{\"\\ud83d\\ude00\":1,\"😀\":2}".as_bytes()),
        (DuplicateKey, 18)
    );
    // In any object, the innermost seen first.
    assert_eq!(
        refusal(br#"[0,{"x":{"k":1,"k":2},"x":1}]"#),
        (DuplicateKey, 15)
    );
}

#[test]
fn finds_the_repeated_key_among_many() {
    let keys: Vec<String> = (0..5000).map(|i| format!("\"key{i}\":{i}")).collect();
    let good = format!("{{{}}}", keys.join(","));
    assert_eq!(
        json::parse(good.as_bytes())
            .unwrap()
            .root()
            .entries()
            .count(),
        5000
    );

    // One more, equal to an early one, written with an escape (\u006b is "k").
    let bad = format!("{{{},\"\\u006bey17\":0}}", keys.join(","));
    assert_eq!(
        refusal(bad.as_bytes()),
        (ErrorKind::DuplicateKey, good.len())
    );
}

#[test]
fn keys_on_both_sides_of_the_pairwise_limit_are_checked() {
    for count in 1..40 {
        let mut keys: Vec<String> = (0..count).map(|i| format!("\"k{i}\":0")).collect();
        json::parse(format!("{{{}}}", keys.join(",")).as_bytes()).unwrap();
        keys.push("\"k0\":1".into());
        let text = format!("{{{}}}", keys.join(","));
        assert_eq!(
            refusal(text.as_bytes()).0,
            ErrorKind::DuplicateKey,
            "{count} keys"
        );
    }
}

#[test]
fn depth_ends_at_the_limit() {
    assert_eq!(
        MAX_DEPTH, 64,
        "the number that the message and the documentation give"
    );
    let nested = |depth: usize| [vec![b'['; depth], vec![b']'; depth]].concat();
    json::parse(&nested(MAX_DEPTH)).unwrap();
    assert_eq!(
        refusal(&nested(MAX_DEPTH + 1)),
        (ErrorKind::TooDeep, MAX_DEPTH)
    );

    let objects = |depth: usize| format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
    json::parse(objects(MAX_DEPTH).as_bytes()).unwrap();
    assert_eq!(
        refusal(objects(MAX_DEPTH + 1).as_bytes()),
        (ErrorKind::TooDeep, 5 * MAX_DEPTH)
    );

    // Depth is nesting, not a count: siblings do not add up.
    let wide = format!("[{}]", vec!["[[]]"; 1000].join(","));
    json::parse(wide.as_bytes()).unwrap();
    assert_eq!(
        refusal(&vec![b'['; 1 << 20]),
        (ErrorKind::TooDeep, MAX_DEPTH)
    );
}

#[test]
fn the_number_of_values_is_limited() {
    // The array is a node itself.
    let array = |elements: usize| format!("[{}]", vec!["1"; elements].join(","));
    json::parse(array(MAX_NODES - 1).as_bytes()).unwrap();
    assert_eq!(
        refusal(array(MAX_NODES).as_bytes()).0,
        ErrorKind::TooManyValues
    );
}

#[test]
fn navigates_without_recursion() {
    let text = r#"{"a":[1,{"b":"x"},[]],"c":{"d":null},"e\n":true}"#;
    let doc = json::parse(text.as_bytes()).unwrap();
    let root = doc.root();
    assert_eq!(root.kind(), Kind::Object);
    assert_eq!(root.span(), 0..text.len());

    let keys: Vec<_> = root.entries().map(|(key, _)| key.into_owned()).collect();
    assert_eq!(keys, ["a", "c", "e\n"]);
    let a = root.get("a").unwrap();
    let items: Vec<_> = a.items().map(|value| value.raw()).collect();
    assert_eq!(items, ["1", r#"{"b":"x"}"#, "[]"]);
    assert_eq!(
        a.items()
            .nth(1)
            .unwrap()
            .get("b")
            .unwrap()
            .as_str()
            .unwrap(),
        "x"
    );
    assert_eq!(a.items().nth(2).unwrap().items().count(), 0);
    assert!(root.get("c").unwrap().get("d").unwrap().is_null());
    assert_eq!(root.get("e\n").unwrap().as_bool(), Some(true));

    assert!(root.get("b").is_none(), "a nested key is no member");
    assert!(root.get("e").is_none());
    assert!(a.get("b").is_none(), "an array has no members");
    assert_eq!(root.items().count(), 0, "an object has no elements");
    assert_eq!(a.entries().count(), 0);
    assert_eq!(a.as_str(), None);
    assert_eq!(root.get("c").unwrap().as_u64(), None);
}

#[test]
fn strings_outlive_the_document() {
    let body = br#"{"model":"gpt-4o"}"#;
    let model = {
        let doc = json::parse(body).unwrap();
        doc.root().get("model").and_then(|v| v.as_str()).unwrap()
    };
    assert!(matches!(model, Cow::Borrowed("gpt-4o")));
}

#[test]
fn unescapes() {
    let text = r#"["plain","\"\\\/\b\f\n\r\t","\u0041\u00e9\u20ac\ud83d\ude00","a\u0000b"]"#;
    let doc = json::parse(text.as_bytes()).unwrap();
    let strings: Vec<_> = doc.root().items().map(|v| v.as_str().unwrap()).collect();
    assert_eq!(strings, ["plain", "\"\\/\u{8}\u{c}\n\r\t", "Aé€😀", "a\0b"]);
    assert!(matches!(strings[0], Cow::Borrowed(_)));
    // 1 + 2 + 3 + 4 bytes of UTF-8.
    assert_eq!(doc.root().items().nth(2).unwrap().text().unwrap().len(), 10);
}

#[test]
fn integers_are_read_only_where_there_is_one_reading() {
    let read = |text: &str| json::parse(text.as_bytes()).unwrap().root().as_u64();
    assert_eq!(read("0"), Some(0));
    assert_eq!(read("18446744073709551615"), Some(u64::MAX));
    for other in [
        "18446744073709551616",
        "-1",
        "-0",
        "1.0",
        "1e3",
        "\"1\"",
        "null",
        "true",
    ] {
        assert_eq!(read(other), None, "{other}");
    }
    let doc = json::parse(b"-1.50e+3").unwrap();
    assert_eq!(doc.root().as_number(), Some("-1.50e+3"));
}

#[test]
fn every_string_and_number_is_listed_for_scanning() {
    let text = r#"{"ke\u0079":["v",4111111111111111,{"deep":""}],"n":-1e2,"b":true,"z":null}"#;
    let doc = json::parse(text.as_bytes()).unwrap();
    let mut scratch = String::new();
    let listed: Vec<_> = doc
        .strings()
        .map(|text| (text.role(), text.resolve(&mut scratch).to_owned()))
        .collect();
    let expected = [
        (Role::Key, "key"),
        (Role::String, "v"),
        (Role::Number, "4111111111111111"),
        (Role::Key, "deep"),
        (Role::String, ""),
        (Role::Key, "n"),
        (Role::Number, "-1e2"),
        (Role::Key, "b"),
        (Role::Key, "z"),
    ];
    assert_eq!(listed, expected.map(|(role, text)| (role, text.to_owned())));
    for token in doc.strings() {
        assert_eq!(&text[token.span()], token.raw());
    }
}

fn set(text: &str, path: &[&str], members: &[(&str, &str)]) -> String {
    let doc = json::parse(text.as_bytes()).unwrap();
    let object = path
        .iter()
        .fold(doc.root(), |value, key| value.get(key).unwrap());
    let edits = object.set_members(members).unwrap();
    let out = String::from_utf8(json::splice(text.as_bytes(), edits).unwrap()).unwrap();
    json::parse(out.as_bytes()).unwrap();
    out
}

#[test]
fn members_are_set_in_place() {
    // Odd spacing and escapes of the original survive.
    assert_eq!(
        set(
            "{ \"a\" : 1.50 ,\n \"b\":\"\\u0041\" }\n",
            &[],
            &[("c", "[2]")]
        ),
        "{ \"a\" : 1.50 ,\n \"b\":\"\\u0041\",\"c\":[2] }\n"
    );
    assert_eq!(
        set(
            r#"{"max_tokens" : 9999, "x":{"max_tokens":1}}"#,
            &[],
            &[("max_tokens", "16")]
        ),
        r#"{"max_tokens" : 16, "x":{"max_tokens":1}}"#
    );
    assert_eq!(
        set(r#"{"\u0061":[1,{}]}"#, &[], &[("a", "2")]),
        r#"{"\u0061":2}"#
    );
    assert_eq!(
        set("{ }", &[], &[("a", "1"), ("b", "2")]),
        r#"{"a":1,"b":2 }"#
    );
    assert_eq!(
        set(
            r#"{"a":0,"z":{}}"#,
            &[],
            &[("b", "1"), ("a", "2"), ("c", "3")]
        ),
        r#"{"a":2,"z":{},"b":1,"c":3}"#
    );
    assert_eq!(
        set(
            r#"{"s":{"x":false},"t":1}"#,
            &["s"],
            &[("include_usage", "true")]
        ),
        r#"{"s":{"x":false,"include_usage":true},"t":1}"#
    );
    assert_eq!(set("{}", &[], &[("q\"\n", "0")]), r#"{"q\"\n":0}"#);
    assert_eq!(
        json::parse(b"[]")
            .unwrap()
            .root()
            .set_members(&[("a", "1")]),
        None
    );
}

#[test]
fn splice_keeps_order_and_refuses_overlap() {
    let edit = |start: usize, end: usize, with: &str| Edit::new(start..end, with);
    let spliced = |edits: Vec<Edit>| json::splice(b"abcdef", edits);
    assert_eq!(spliced(vec![]).unwrap(), b"abcdef");
    assert_eq!(
        spliced(vec![edit(4, 5, "E"), edit(0, 2, "")]).unwrap(),
        b"cdEf"
    );
    assert_eq!(
        spliced(vec![edit(3, 3, "1"), edit(3, 3, "2")]).unwrap(),
        b"abc12def"
    );
    assert_eq!(spliced(vec![edit(6, 6, "!")]).unwrap(), b"abcdef!");
    assert_eq!(spliced(vec![edit(0, 3, ""), edit(2, 4, "")]), None);
    assert_eq!(spliced(vec![edit(5, 7, "")]), None);
    assert_eq!(spliced(vec![edit(9, 9, "")]), None);
    #[expect(clippy::reversed_empty_ranges)]
    let reversed = Edit::new(3..2, "");
    assert_eq!(spliced(vec![reversed]), None);
}

#[test]
fn quoted_text_reads_back() {
    let mut all: String = (0..0x250).filter_map(char::from_u32).collect();
    all.push_str("😀\u{2028}\u{10FFFF}");
    let mut quoted = String::new();
    json::quote(&all, &mut quoted);
    let doc = json::parse(quoted.as_bytes()).unwrap();
    assert_eq!(doc.root().as_str().unwrap(), all);
    assert_eq!(serde_json::from_str::<String>(&quoted).unwrap(), all);
}

#[test]
fn neither_errors_nor_debug_output_hold_content() {
    let error = json::parse(br#"{"hunter2":1,"hunter2":2}"#).unwrap_err();
    assert_eq!(
        error.to_string(),
        "json object repeats a key, send each key once (byte 13)"
    );
    let doc = json::parse(br#"["hunter2"]"#).unwrap();
    let value = doc.root().items().next().unwrap();
    assert_eq!(format!("{value:?}"), "String at 1..10");
    assert_eq!(format!("{:?}", value.text().unwrap()), "String at 2..9");
}
