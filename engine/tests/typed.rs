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
