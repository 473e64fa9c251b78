//! Documents are found by scope, and exactly those that a walk over all of them finds.

mod issuer;
mod random;

use random::Random;
use tollgate_engine::{
    bundle::{Document, Documents, Scope},
    identity::{Caller, GovernanceLevel},
};

fn caller(org: Option<&str>, team: Option<&str>, agent: &str) -> Caller {
    Caller {
        workspace: issuer::WORKSPACE.to_string(),
        agent: agent.to_string(),
        org: org.map(String::from),
        team: team.map(String::from),
        level: GovernanceLevel::L1,
        acts_for: Vec::new(),
    }
}

fn named(scopes: &[(&str, &str)]) -> Documents {
    scopes
        .iter()
        .map(|(name, scope)| Document {
            scope: Scope::parse(scope).unwrap(),
            ..issuer::document(name)
        })
        .collect()
}

fn names<'d>(documents: impl IntoIterator<Item = &'d Document>) -> Vec<&'d str> {
    documents
        .into_iter()
        .map(|document| document.name.as_str())
        .collect()
}

#[test]
fn a_caller_meets_the_documents_of_its_scopes_broadest_first() {
    let documents = named(&[
        ("g1", "global"),
        ("g2", "global"),
        ("o", "org:x"),
        ("t1", "team:x"),
        ("other", "team:y"),
        ("t2", "team:x"),
        ("case", "team:X"),
        ("a", "agent:x"),
        ("tool", "tool:x"),
    ]);
    let met = |org, team, agent| names(documents.covering(&caller(org, team, agent)));
    assert_eq!(
        met(Some("x"), Some("x"), "x"),
        ["g1", "g2", "o", "t1", "t2", "a"]
    );
    assert_eq!(met(None, Some("y"), "z"), ["g1", "g2", "other"]);
    assert_eq!(met(None, None, ""), ["g1", "g2"]);
}

#[test]
fn of_those_for_whom_a_caller_acts_it_meets_what_it_has_not_met() {
    let documents = named(&[
        ("g", "global"),
        ("o", "org:x"),
        ("tx", "team:x"),
        ("ty", "team:y"),
        ("a", "agent:a"),
        ("b", "agent:b"),
        ("c", "agent:c"),
    ]);
    let child = Caller {
        acts_for: vec![
            caller(Some("x"), Some("y"), "b"),
            caller(None, Some("y"), "c"),
            caller(Some("x"), Some("x"), "a"),
        ],
        ..caller(Some("x"), Some("x"), "a")
    };
    assert_eq!(
        names(documents.covering(&child)),
        ["g", "o", "tx", "a", "ty", "b", "c"]
    );
    // Of the others alone: an organisation that only one of them has.
    let child = Caller {
        acts_for: vec![caller(None, None, "b"), caller(Some("x"), None, "c")],
        ..caller(None, None, "a")
    };
    assert_eq!(names(documents.covering(&child)), ["g", "a", "b", "o", "c"]);
}

#[test]
fn tools_are_the_same_in_any_case_and_their_documents_come_once() {
    let documents = named(&[("b", "tool:Bash"), ("g", "tool:git"), ("c", "tool:BASH")]);
    let about = |tools: &[&str]| names(documents.about(tools.iter().copied()));
    assert_eq!(about(&["bash"]), ["b", "c"]);
    assert_eq!(about(&["git", "bAsH", "bash"]), ["b", "g", "c"]);
    assert_eq!(about(&["bas", "bash "]), [""; 0]);
}

#[test]
fn no_document_covers_anybody_where_there_is_none() {
    let documents = Documents::from(Vec::new());
    assert_eq!(names(documents.covering(&caller(None, None, "a"))), [""; 0]);
    assert_eq!(names(documents.about(["a"].into_iter())), [""; 0]);
}

#[test]
fn a_document_whose_scope_changes_is_found_by_the_new_one() {
    let mut documents = named(&[("d", "team:x"), ("e", "team:y")]);
    documents.change(|all| all[0].scope = Scope::Global);
    assert_eq!(
        names(documents.covering(&caller(None, Some("y"), "a"))),
        ["d", "e"]
    );
}

/// Few names of many shapes, so that scopes repeat, fill eight bytes and more, and share slots.
#[test]
fn whatever_the_scopes_a_walk_over_all_documents_finds_the_same() {
    let mut random = Random::new(5);
    let ids = ["a", "A", "b", "12345678", "123456789", "é", "x:y"];
    let kinds = ["global", "org", "team", "agent", "tool"];
    let mut met = 0;
    for _ in 0..2_000 {
        let pick = |random: &mut Random, from: &[&'static str]| from[random.below(from.len())];
        let count = random.below(40);
        let mut documents: Vec<Document> = (0..count)
            .map(|number| {
                let (kind, id) = (pick(&mut random, &kinds), pick(&mut random, &ids));
                let scope = match kind {
                    "global" => kind.to_string(),
                    _ => format!("{kind}:{id}"),
                };
                Document {
                    scope: Scope::parse(&scope).unwrap(),
                    ..issuer::document(&number.to_string())
                }
            })
            .collect();
        documents.sort_by_key(|document| match document.scope {
            Scope::Global => 0,
            Scope::Org(_) => 1,
            Scope::Team(_) => 2,
            Scope::Agent(_) => 3,
            Scope::Tool(_) => 4,
        });
        let who = caller(
            Some(pick(&mut random, &ids)),
            Some(pick(&mut random, &ids)),
            pick(&mut random, &ids),
        );
        let used = pick(&mut random, &ids);
        let walked = documents.iter().filter(|document| match &document.scope {
            Scope::Global => true,
            Scope::Org(id) => Some(&**id) == who.org.as_deref(),
            Scope::Team(id) => Some(&**id) == who.team.as_deref(),
            Scope::Agent(id) => **id == *who.agent,
            Scope::Tool(id) => id.eq_ignore_ascii_case(used),
        });
        let walked: Vec<String> = walked.map(|document| document.name.clone()).collect();
        let documents = Documents::from(documents);
        let found = documents.met(&who, [used].into_iter());
        assert_eq!(names(found), walked);
        met += walked.len();
    }
    assert!(met > 10_000, "{met} documents met");
}
