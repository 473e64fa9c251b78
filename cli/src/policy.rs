//! `tollgate policy`: what is in service, what was before, and the way from one to the other.

use crate::{
    api::{self, Connection, Finding, Problem, query, segment},
    operate::{Output, show},
    table::{self, printable, text, when_ms},
};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::{path::PathBuf, process::ExitCode};
use tollgate_policy::MAX_FILE_BYTES;

/// Put policies into service, see what was before, and go back.
#[derive(Debug, Args)]
pub(crate) struct Policy {
    #[command(subcommand)]
    command: PolicyCommand,
}

#[derive(Debug, Subcommand)]
enum PolicyCommand {
    /// Apply policy files; each document takes the place of the one of its name. The files are one set: all of it goes live at once, or,
    /// when anything is wrong with it, nothing. Exit code 1: refused.
    Apply {
        /// YAML or JSON, one or more documents each.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Take unknown keys for errors.
        #[arg(long)]
        strict: bool,
        #[command(flatten)]
        connection: Connection,
        #[command(flatten)]
        output: Output,
    },
    /// List the policies in service.
    List {
        #[command(flatten)]
        connection: Connection,
        #[command(flatten)]
        output: Output,
    },
    /// Print a policy as it was applied.
    Show {
        /// Its name.
        name: String,
        /// This version of it; the one in service otherwise.
        #[arg(long, value_name = "N")]
        version: Option<u32>,
        #[command(flatten)]
        connection: Connection,
        #[command(flatten)]
        output: Output,
    },
    /// List the versions of a policy, newest first: who applied each, when, and what it changed.
    History {
        /// Its name.
        name: String,
        /// Versions before this one only.
        #[arg(long, value_name = "N")]
        before: Option<u32>,
        #[command(flatten)]
        connection: Connection,
        #[command(flatten)]
        output: Output,
    },
    /// Put an earlier version of a policy back into service, as a new version. Exit code 1: it is not read any more.
    Rollback {
        /// Its name.
        name: String,
        /// To this version; to the one before the newest otherwise.
        #[arg(long, value_name = "N")]
        to: Option<u32>,
        #[command(flatten)]
        connection: Connection,
        #[command(flatten)]
        output: Output,
    },
    /// Take a policy out of service.
    Delete {
        /// Its name.
        name: String,
        #[command(flatten)]
        connection: Connection,
    },
}

impl Policy {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            PolicyCommand::Apply {
                files,
                strict,
                connection,
                output,
            } => apply(&files, strict, connection, &output),
            PolicyCommand::List { connection, output } => {
                let api = connection.open()?;
                let policies = api.get(&api.at("/policies")?)?;
                show(&output, &policies, || {
                    Ok(table::print(
                        &policies,
                        &[
                            ("NAME", &|row| text(row, "name")),
                            ("VERSION", &|row| text(row, "version")),
                            ("APPLIED", &|row| when_ms(row, "applied_ms")),
                            ("BY", &|row| text(row, "author_name")),
                        ],
                        "no policies, so every call is denied; `tollgate policy apply FILE` applies one",
                    )?)
                })
            }
            PolicyCommand::Show {
                name,
                version,
                connection,
                output,
            } => {
                let api = connection.open()?;
                let version = version.map_or(String::new(), |n| format!("/versions/{n}"));
                let path = format!("/policies/{}{version}", segment(&name));
                let policy = api.get(&api.at(&path)?)?;
                show(&output, &policy, || {
                    match policy["text"].is_null() {
                        true => println!("this version took the policy out of service"),
                        false => print!("{}", text(&policy, "text")),
                    }
                    Ok(())
                })
            }
            PolicyCommand::History {
                name,
                before,
                connection,
                output,
            } => {
                let api = connection.open()?;
                let before = query(&[("before", before.map(|n| n.to_string()))]);
                let path = format!("/policies/{}/versions{before}", segment(&name));
                let versions = api.get(&api.at(&path)?)?;
                show(&output, &versions, || {
                    print!("{}", history(&versions));
                    Ok(())
                })
            }
            PolicyCommand::Rollback {
                name,
                to,
                connection,
                output,
            } => {
                let api = connection.open()?;
                let path = api.at(&format!("/policies/{}/rollback", segment(&name)))?;
                let target = to.map_or(json!({}), |version| json!({"version": version}));
                match api.post(&path, &target) {
                    Ok(done) => show(&output, &done, || {
                        println!(
                            "{} version {}, which is version {} again",
                            printable(&text(&done, "name")),
                            text(&done, "version"),
                            text(&done, "restores")
                        );
                        println!("live in revision {}", text(&done, "revision"));
                        Ok(())
                    }),
                    Err(error) => refused(error),
                }
            }
            PolicyCommand::Delete { name, connection } => {
                let api = connection.open()?;
                api.delete(&api.at(&format!("/policies/{}", segment(&name)))?)?;
                println!("deleted {}", printable(&name));
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

fn apply(
    files: &[PathBuf],
    strict: bool,
    connection: Connection,
    output: &Output,
) -> anyhow::Result<ExitCode> {
    let bodies = files
        .iter()
        .map(|path| api::file(path, MAX_FILE_BYTES))
        .collect::<anyhow::Result<Vec<_>>>()?;
    // Checked here first, so that mistakes are found without a control plane, and also what is not UTF-8.
    let mut parsed: Vec<tollgate_policy::Parsed> = files
        .iter()
        .zip(&bodies)
        .map(|(path, body)| tollgate_policy::parse(&path.to_string_lossy(), body, strict))
        .collect();
    tollgate_policy::check_together(&mut parsed);
    if parsed.iter().any(tollgate_policy::Parsed::has_errors) {
        for (path, parsed) in files.iter().zip(&parsed) {
            for diagnostic in &parsed.diagnostics {
                eprintln!("{}:{}", path.display(), printable(&diagnostic.to_string()));
            }
        }
        eprintln!("error: nothing was applied; mend what is listed and apply again");
        return Ok(ExitCode::from(1));
    }
    let api = connection.open()?;
    let set: Vec<Value> = files
        .iter()
        .zip(&bodies)
        .map(|(path, body)| {
            json!({"path": path.to_string_lossy(), "text": String::from_utf8_lossy(body)})
        })
        .collect();
    let set = json!({"files": set, "strict": strict});
    let applied = match api.post(&api.at("/policies")?, &set) {
        Ok(applied) => applied,
        Err(error) => return refused(error),
    };
    for warning in applied["warnings"].as_array().into_iter().flatten() {
        if let Ok(warning) = serde_json::from_value(warning.clone()) {
            print_finding(&warning);
        }
    }
    show(output, &applied, || {
        for policy in applied["applied"].as_array().into_iter().flatten() {
            let changed = policy["changed"] == Value::Bool(true);
            println!(
                "{} version {}{}",
                printable(&text(policy, "name")),
                text(policy, "version"),
                if changed { "" } else { " (unchanged)" }
            );
        }
        println!("live in revision {}", text(&applied, "revision"));
        Ok(())
    })
}

/// Prints what the control plane found wrong with policies; any other error goes on.
fn refused(error: anyhow::Error) -> anyhow::Result<ExitCode> {
    if !print_findings(&error) {
        return Err(error);
    }
    eprintln!("error: {error}");
    Ok(ExitCode::from(1))
}

/// Prints what the control plane found wrong, if `error` is its answer and says. Whether it does.
pub(crate) fn print_findings(error: &anyhow::Error) -> bool {
    let problem = error.downcast_ref::<Problem>();
    let findings = problem.map_or(&[][..], |problem| &problem.diagnostics);
    for finding in findings {
        print_finding(finding);
    }
    !findings.is_empty()
}

fn print_finding(finding: &Finding) {
    let file = finding.file.as_deref().unwrap_or("policy");
    let field = match finding.path.as_str() {
        "" => String::new(),
        path => format!(" {path}"),
    };
    eprintln!(
        "{}:{}:{}: {}[{}]{}: {}",
        printable(file),
        finding.line,
        finding.column,
        finding.severity,
        finding.code,
        printable(&field),
        printable(&finding.message)
    );
}

/// Versions with what each changed below it.
fn history(versions: &Value) -> String {
    let mut out = String::new();
    for version in versions.as_array().into_iter().flatten() {
        let what = match (&version["deleted"], &version["restores"]) {
            (Value::Bool(true), _) => "deleted".to_owned(),
            (_, Value::Null) => "applied".to_owned(),
            (_, restores) => format!("rolled back to {restores}"),
        };
        out += &format!(
            "version {}  {}  {what} by {}\n",
            text(version, "version"),
            when_ms(version, "applied_ms"),
            printable(&text(version, "author_name"))
        );
        match version["changes"].as_array() {
            None => out += "  one of the two is not read any more by this version of Tollgate\n",
            Some(none) if none.is_empty() => out += "  changes nothing that a gate decides\n",
            Some(changes) => {
                for change in changes {
                    let rule = text(change, "rule");
                    let colon = if rule.is_empty() { "" } else { ": " };
                    out += &format!(
                        "  {:7}  {}{colon}{}\n",
                        text(change, "effect"),
                        printable(&rule),
                        printable(&text(change, "message"))
                    );
                }
            }
        }
    }
    out
}
