//! Who makes a call that is decided offline.

use crate::offline::WORKSPACE;
use anyhow::{Result, anyhow, bail};
use serde::Deserialize;
use std::collections::BTreeSet;
use tollgate_engine::{
    bundle::Scope,
    condition::{Fact, Instruction},
    decide::{Met, Verdict},
    identity::{Caller, GovernanceLevel},
};
use tollgate_policy::Document;

/// An agent that no document names.
const NO_AGENT: &str = "00000000-0000-0000-0000-000000000000";

/// The team and the organisation of a caller of whom neither is said, nor asked.
const SOME: &str = "any";

/// Names of a list that a message shows.
const SHOWN_NAMES: usize = 5;

/// Who calls. Without agent, team and organisation it is somebody whom every document covers.
#[derive(Clone, Debug, Default, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub(crate) struct Who {
    /// The calling agent's UUID.
    #[arg(long)]
    #[serde(default, rename = "id")]
    agent: Option<String>,
    /// The agent's team.
    #[arg(long)]
    #[serde(default)]
    team: Option<String>,
    /// The agent's organisation.
    #[arg(long)]
    #[serde(default)]
    org: Option<String>,
    /// The agent's governance level, L0 to L3.
    #[arg(long, default_value = "L0")]
    #[serde(default = "lowest")]
    level: String,
    /// For whom it acts: first the one that began it.
    #[arg(skip)]
    #[serde(default)]
    acts_for: Vec<Who>,
}

fn lowest() -> String {
    "L0".to_string()
}

/// The caller of one decision.
pub(crate) struct Meant {
    pub(crate) caller: Caller,
    /// Whom the policies made of it, where nobody said who calls and they name somebody.
    pub(crate) note: Option<String>,
    /// What neither the user nor the policies say of it, though it matters to a condition that asks.
    unsaid: Vec<Kind>,
}

/// What a scope can name of a caller.
#[derive(Clone, Copy)]
enum Kind {
    Agent,
    Team,
    Org,
}

impl Kind {
    const ALL: [Kind; 3] = [Kind::Agent, Kind::Team, Kind::Org];

    fn named_by(self, scope: &Scope) -> Option<&str> {
        match (self, scope) {
            (Kind::Agent, Scope::Agent(id))
            | (Kind::Team, Scope::Team(id))
            | (Kind::Org, Scope::Org(id)) => Some(id),
            _ => None,
        }
    }

    fn fact(self) -> Fact {
        match self {
            Kind::Agent => Fact::Agent,
            Kind::Team => Fact::Team,
            Kind::Org => Fact::Org,
        }
    }

    /// One, several, and how to say which.
    fn in_words(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Kind::Agent => (
                "agent",
                "agents",
                "`--agent`, or `agent: {id: …}` in a test file",
            ),
            Kind::Team => (
                "team",
                "teams",
                "`--team`, or `agent: {team: …}` in a test file",
            ),
            Kind::Org => (
                "organisation",
                "organisations",
                "`--org`, or `agent: {org: …}` in a test file",
            ),
        }
    }
}

impl Who {
    /// Somebody whom every document covers.
    pub(crate) fn nobody_in_particular() -> Who {
        Who {
            level: lowest(),
            ..Who::default()
        }
    }

    fn is_unnamed(&self) -> bool {
        self.agent.is_none() && self.team.is_none() && self.org.is_none()
    }

    /// Who that is before these policies.
    pub(crate) fn meant(&self, documents: &[Document]) -> Result<Meant> {
        if !self.is_unnamed() {
            return Ok(Meant {
                caller: self.caller()?,
                note: None,
                unsaid: Vec::new(),
            });
        }
        if !self.acts_for.is_empty() {
            bail!("who acts for others has an id, a team or an organisation; say which");
        }
        let (mut who, mut named, mut unsaid) = (self.clone(), Vec::new(), Vec::new());
        for kind in Kind::ALL {
            let names = documents.iter();
            let names: BTreeSet<&str> = names
                .filter_map(|document| kind.named_by(&document.scope))
                .collect();
            let (one, several, say) = kind.in_words();
            let mut names_left = names.iter();
            let name = match (names_left.next(), names_left.next()) {
                (None, _) => {
                    unsaid.push(kind);
                    continue;
                }
                (Some(name), None) => (*name).to_string(),
                (Some(_), Some(_)) => bail!(
                    "these policies are about several {several}, {}: say which one calls, with {say}",
                    listed(&names)
                ),
            };
            named.push(format!("{one} `{name}`"));
            match kind {
                Kind::Agent => who.agent = Some(name),
                Kind::Team => who.team = Some(name),
                Kind::Org => who.org = Some(name),
            }
        }
        // A limit per team asks for one, whatever its name.
        who.team.get_or_insert_with(|| SOME.to_string());
        who.org.get_or_insert_with(|| SOME.to_string());
        Ok(Meant {
            caller: who.caller()?,
            note: (!named.is_empty()).then(|| named.join(", ")),
            unsaid,
        })
    }

    fn caller(&self) -> Result<Caller> {
        if self.acts_for.iter().any(|who| !who.acts_for.is_empty()) {
            bail!("`acts_for` is one list: those for whom the caller acts have none of their own");
        }
        if self.acts_for.iter().any(Who::is_unnamed) {
            bail!("each of `acts_for` has an id, a team or an organisation; say which");
        }
        let names = [&self.team, &self.org];
        if names.into_iter().flatten().any(String::is_empty) {
            bail!("a team or an organisation has a name; leave it out where there is none");
        }
        let agent = self.agent.as_deref().unwrap_or(NO_AGENT);
        if !is_uuid(agent) {
            bail!(
                "`{agent}` is not the UUID of an agent, such as 01234567-89ab-cdef-0123-456789abcdef"
            );
        }
        Ok(Caller {
            workspace: WORKSPACE.to_string(),
            // As scopes have it.
            agent: agent.to_ascii_lowercase(),
            org: self.org.clone(),
            team: self.team.clone(),
            level: GovernanceLevel::parse(&self.level)
                .ok_or_else(|| anyhow!("a governance level is L0, L1, L2 or L3"))?,
            acts_for: self
                .acts_for
                .iter()
                .map(Who::caller)
                .collect::<Result<_>>()?,
        })
    }
}

impl Meant {
    /// Refuses what a condition, asked about a call, made of something that nobody said.
    pub(crate) fn check(&self, documents: &[Document], met: &[Met]) -> Result<()> {
        let asked = |document: &Document, rule: &str| {
            met.iter().any(|met| {
                let mut rules = met.rules.iter();
                met.document == document.name
                    && rules.any(|met| met.rule == rule && met.verdict != Verdict::Silent)
            })
        };
        for document in documents {
            for tool in &document.tools {
                let Some(condition) = &tool.requires_approval_if else {
                    continue;
                };
                let asks = |kind: &&Kind| {
                    let fact = Instruction::Fact(kind.fact());
                    condition.program.0.contains(&fact)
                };
                let Some(kind) = self.unsaid.iter().find(asks) else {
                    continue;
                };
                let rule = format!("tools.{}.requires_approval_if", tool.name);
                if asked(document, &rule) {
                    let (one, _, say) = kind.in_words();
                    bail!(
                        "`{rule}` of `{}` asks for the caller's {one}, which nothing says: give {say}",
                        document.name
                    );
                }
            }
        }
        Ok(())
    }
}

/// Names in words; where there are many, not all of them.
fn listed(names: &BTreeSet<&str>) -> String {
    let mut shown: Vec<String> = names
        .iter()
        .take(SHOWN_NAMES)
        .map(|name| format!("`{name}`"))
        .collect();
    let more = names.len().saturating_sub(shown.len());
    let last = match more {
        0 => shown.pop().unwrap_or_default(),
        more => format!("{more} more"),
    };
    format!("{} and {last}", shown.join(", "))
}

/// Whether `text` is a UUID with hyphens, in any case.
fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_names_are_not_all_shown() {
        let names = |count: usize| -> String {
            let all = ["a", "b", "c", "d", "e", "f", "g"];
            listed(&all.into_iter().take(count).collect())
        };
        assert_eq!(names(2), "`a` and `b`");
        assert_eq!(names(5), "`a`, `b`, `c`, `d` and `e`");
        assert_eq!(names(7), "`a`, `b`, `c`, `d`, `e` and 2 more");
    }

    #[test]
    fn who_calls_and_for_whom_has_a_name() {
        let who = |value: serde_json::Value| -> Who { serde_json::from_value(value).unwrap() };
        for bad in [
            serde_json::json!({"acts_for": [{"team": "a"}]}),
            serde_json::json!({"team": ""}),
            serde_json::json!({"team": "a", "acts_for": [{"level": "L1"}]}),
            serde_json::json!({"team": "a", "acts_for": [{"id": "nobody"}]}),
        ] {
            assert!(who(bad.clone()).meant(&[]).is_err(), "{bad}");
        }
        let good = who(serde_json::json!({"team": "a", "acts_for": [{"team": "b"}]}));
        assert!(good.meant(&[]).is_ok());
    }
}
