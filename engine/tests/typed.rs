//! What is read as a value of a type is what `serde_json` reads, but for what two readers may take differently: that is refused.

mod issuer;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{collections::BTreeMap, fmt::Debug};
use tollgate_engine::{bundle::Payload, json};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Whole {
    number: u64,
    #[serde(default)]
    signed: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(default)]
    forms: Vec<Form>,
    #[serde(default)]
    by_name: BTreeMap<String, bool>,
    #[serde(default)]
    pair: (u8, Wrapped),
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Wrapped(String);

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Form {
    Bare,
    One(u32),
    Two(u32, String),
    Named { a: bool },
}

#[track_caller]
fn same<T: DeserializeOwned + PartialEq + Debug>(text: &str) {
    let ours = json::read::<T>(text.as_bytes()).unwrap();
    assert_eq!(ours, serde_json::from_str(text).unwrap(), "{text}");
}

#[track_caller]
fn refused<T: DeserializeOwned + Debug>(text: &str) -> String {
    json::read::<T>(text.as_bytes()).unwrap_err().to_string()
}

#[test]
fn types_of_every_kind_are_read() {
    same::<Whole>(r#"{"number":18446744073709551615}"#);
    same::<Whole>(
        r#" {"forms":["bare",{"one":7},{"two":[1,"x"]},{"named":{"a":true}}],"text":"\u00e9\n",
            "signed":-9223372036854775808,"number":0,"by_name":{"a":true,"\u0062":false},"pair":[255,"w"]} "#,
    );
    same::<Whole>(r#"{"number":1,"text":null,"forms":[],"by_name":{}}"#);
    same::<Vec<Option<i64>>>("[null,-1,9223372036854775807]");
    same::<String>(r#""\ud83d\ude00 \"""#);
    let bundle = issuer::json(&issuer::budgeted(3));
    let read: Payload = json::read(&bundle).unwrap();
    assert_eq!(issuer::json(&read), bundle);
}

#[test]
fn what_does_not_fit_is_refused() {
    for text in [
        "",
        "[]",
        "{}",
        r#"{"number":1,"number":1}"#,
        r#"{"number":1,"more":1}"#,
        r#"{"number":-1}"#,
        r#"{"number":1.0}"#,
        r#"{"number":1e2}"#,
        r#"{"number":"1"}"#,
        r#"{"number":18446744073709551616}"#,
        r#"{"number":1,"text":7}"#,
        r#"{"number":1,"text":"\ud800"}"#,
        r#"{"number":1,"forms":{}}"#,
        r#"{"number":1,"forms":["other"]}"#,
        r#"{"number":1,"forms":["one"]}"#,
        r#"{"number":1,"forms":[{"bare":1}]}"#,
        r#"{"number":1,"forms":[{}]}"#,
        r#"{"number":1,"forms":[{"one":1,"two":[1,"x"]}]}"#,
        r#"{"number":1,"forms":[{"two":[1]}]}"#,
        r#"{"number":1,"forms":[{"two":[1,"x",2]}]}"#,
        r#"{"number":1,"forms":[{"named":{}}]}"#,
        r#"{"number":1,"by_name":{"a":1}}"#,
        r#"{"number":1,"by_name":{"a":true,"\u0061":true}}"#,
        r#"{"number":1,"pair":[256,"w"]}"#,
        r#"{"number":1}{"#,
        r#"[1]"#,
    ] {
        refused::<Whole>(text);
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Late {
    #[serde(default = "seven")]
    first: u8,
    #[serde(default)]
    second: Option<Box<Late>>,
    #[serde(default)]
    third: Vec<Late>,
    last: String,
}

/// `null` is something.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Nullable {
    only: Option<u8>,
}

fn seven() -> u8 {
    7
}

/// Members come in any order, and a struct has what it says in the place of those that do not come.
#[test]
fn members_come_in_any_order_and_some_do_not_come() {
    same::<Late>(r#"{"last":"x"}"#);
    same::<Nullable>(r#"{"only":null}"#);
    same::<Late>(r#"{"last":"x","first":1}"#);
    same::<Late>(r#"{"third":[{"last":"y","second":null}],"last":"x","first":1}"#);
    same::<Late>(r#"{"second":{"first":0,"l\u0061st":"y"},"third":[],"last":"x"}"#);
    assert_eq!(refused::<Late>(r#"{"first":1}"#), "missing field `last`");
    assert_eq!(refused::<Nullable>("{}"), "missing field `only`");
    // What is wrong is said, and not what might have been there before it.
    let wrong = refused::<Late>(r#"{"last":1}"#);
    assert!(wrong.starts_with("expected "), "{wrong}");
    let within = refused::<Late>(r#"{"third":[{}],"last":"x"}"#);
    assert_eq!(within, "missing field `last`");
    let twice = refused::<Late>(r#"{"last":"x","l\u0061st":"x"}"#);
    assert!(twice.contains("repeats a key"), "{twice}");
}

#[test]
fn one_member_is_read_of_an_object_that_has_others() {
    let text = br#"{"other":[{}],"first":3,"second":null}"#;
    assert_eq!(json::read_member(text, "first"), Ok(3_u8));
    assert_eq!(json::read_member(text, "second"), Ok(None::<u8>));
    assert!(json::read_member::<u8>(text, "second").is_err());
    let missing = json::read_member::<u8>(text, "third").unwrap_err();
    assert_eq!(missing.to_string(), "missing field `third`");
    assert!(json::read_member::<u8>(b"[3]", "first").is_err());
    assert!(json::read_member::<u8>(br#"{"first":3"#, "first").is_err());
}

/// A key may be said, what stands there may not: it could be a secret in the wrong place.
#[test]
fn a_refusal_names_keys_and_no_values() {
    assert_eq!(
        refused::<Whole>(r#"{"signed":0}"#),
        "missing field `number`"
    );
    let unknown = refused::<Whole>(r#"{"numbre":5}"#);
    assert!(unknown.starts_with("unknown field `numbre`"), "{unknown}");
    for text in [
        r#"{"number":"canary"}"#,
        r#"{"number":1,"text":["canary"]}"#,
    ] {
        let why = refused::<Whole>(text);
        assert!(
            why.starts_with("expected ") && !why.contains("canary"),
            "{why}"
        );
    }
}
