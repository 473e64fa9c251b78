//! Findings in the forms that other programs read.

use super::severity;
use serde_json::{Value, json};
use std::{fmt::Write as _, path::PathBuf};
use tollgate_policy::{Parsed, Severity, codes};

/// GitHub's workflow commands: each finding becomes an annotation at its line (docs.github.com, "Workflow commands").
pub(super) fn github(paths: &[PathBuf], files: &[Parsed]) -> String {
    let mut out = String::new();
    for (path, file) in paths.iter().zip(files) {
        for finding in &file.diagnostics {
            let title = match finding.path.as_str() {
                "" => finding.code.to_owned(),
                field => format!("{} {field}", finding.code),
            };
            // Writing to a string cannot fail.
            let _ = writeln!(
                out,
                "::{} file={},line={},col={},title={}::{}",
                severity(finding.severity),
                property(&path.to_string_lossy()),
                finding.line,
                finding.column,
                property(&title),
                data(&finding.message),
            );
        }
    }
    out
}

/// What would end the command or its line, escaped.
fn data(text: &str) -> String {
    text.replace('%', "%25")
        .replace('\r', "%0D")
        .replace('\n', "%0A")
}

/// …and in a property also what would end that.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

/// SARIF 2.1.0 (OASIS), for code scanning.
pub(super) fn sarif(paths: &[PathBuf], files: &[Parsed]) -> Value {
    let results: Vec<Value> = paths
        .iter()
        .zip(files)
        .flat_map(|(path, file)| {
            let uri = path.to_string_lossy().replace('\\', "/");
            file.diagnostics.iter().map(move |finding| {
                let mut location = json!({
                    "physicalLocation": {
                        "artifactLocation": {"uri": uri},
                        "region": {"startLine": finding.line, "startColumn": finding.column},
                    },
                });
                if !finding.path.is_empty() {
                    location["logicalLocations"] = json!([{"fullyQualifiedName": finding.path}]);
                }
                json!({
                    "ruleId": finding.code,
                    "level": match finding.severity {
                        Severity::Error => "error",
                        Severity::Warning => "warning",
                    },
                    "message": {"text": finding.message},
                    "locations": [location],
                })
            })
        })
        .collect();
    let rules: Vec<Value> = codes::ALL
        .iter()
        .map(|code| json!({"id": code, "shortDescription": {"text": codes::meaning(code)}}))
        .collect();
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {"name": "tollgate", "version": env!("CARGO_PKG_VERSION"), "rules": rules}},
            "columnKind": "unicodeCodePoints",
            "results": results,
        }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(source: &str) -> Vec<Parsed> {
        vec![tollgate_policy::parse("p.yaml", source.as_bytes(), false)]
    }

    #[test]
    fn an_annotation_is_one_line_whatever_a_path_holds() {
        let paths = [PathBuf::from("a,b:c%.yaml")];
        assert_eq!(
            github(&paths, &parsed("scope: nobody\nextra: 1\n")),
            "::error file=a%2Cb%3Ac%25.yaml,line=1,col=8,title=P201 scope::must be `global`, `org:<id>`, \
             `team:<id>`, `agent:<uuid>` or `tool:<name>`, found `nobody`\n\
             ::warning file=a%2Cb%3Ac%25.yaml,line=2,col=1,title=P101 extra::unknown key `extra`, which is ignored\n"
        );
        assert_eq!(data("50%\r\nmore"), "50%25%0D%0Amore");
    }

    #[test]
    fn sarif_names_rule_place_and_level() {
        let log = sarif(
            &[PathBuf::from("dir/p.yaml")],
            &parsed("scope: nobody\nextra: 1\n"),
        );
        assert_eq!(log["version"], "2.1.0");
        let run = &log["runs"][0];
        assert_eq!(run["results"].as_array().map(Vec::len), Some(2));
        let first = &run["results"][0];
        assert_eq!(first["ruleId"], "P201");
        assert_eq!(first["level"], "error");
        let place = &first["locations"][0];
        assert_eq!(
            place["physicalLocation"],
            json!({"artifactLocation": {"uri": "dir/p.yaml"}, "region": {"startLine": 1, "startColumn": 8}})
        );
        assert_eq!(place["logicalLocations"][0]["fullyQualifiedName"], "scope");
        assert_eq!(run["results"][1]["level"], "warning");
        let rules = run["tool"]["driver"]["rules"].as_array().expect("rules");
        assert_eq!(rules.len(), codes::ALL.len());
        assert!(
            rules
                .iter()
                .all(|rule| rule["shortDescription"]["text"] != "")
        );
    }
}
