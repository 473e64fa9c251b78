//! Every case on every host, and that a difference does not go unseen.

use anyhow::{Result, bail};
use tollgate_tests::corpus::{
    self, Host, Summary,
    case::{Case, Seen},
    native::Native,
    random,
};

fn cases(filter: &str) -> Vec<Case> {
    corpus::load(&xtask::root().join("tests/corpus"), filter).unwrap()
}

fn hosts() -> Vec<Box<dyn Host>> {
    let hosts = corpus::HOSTS.into_iter().map(corpus::host);
    hosts.collect::<Result<_>>().unwrap()
}

#[test]
fn all_hosts_agree_on_all_cases() {
    let summary = corpus::run(&cases(""), &hosts());
    // A gate that starts anew does not know that it once had a bundle: bundle/expired in workerd and on Spin. And workerd's fetch would
    // write some hosts otherwise, so they are denied before any policy: the two cases of network/denylist there.
    assert_eq!(
        (summary.hosts, summary.differences, summary.skipped),
        (5, 0, 4),
        "{summary}; see above"
    );
}

/// `cargo xtask corpus --random 10000` draws more of them.
#[test]
fn all_hosts_agree_on_what_dice_draw() {
    let summary = corpus::run(&random::cases(100, 1), &hosts());
    assert_eq!(
        (summary.cases, summary.hosts, summary.differences),
        (100, 5, 0),
        "{summary}; see above"
    );
}

/// A host that has one byte wrong, skips what it does not like, or falls over.
struct Liar;

impl Host for Liar {
    fn name(&self) -> &'static str {
        "liar"
    }

    fn skips(&self, case: &Case) -> Option<&'static str> {
        (case.name == "rate/of_zero").then_some("it is shy")
    }

    fn run(&self, case: &Case) -> Result<Vec<Seen>> {
        if case.name == "rate/smallest_wins" {
            bail!("it fell over");
        }
        let mut seen = Native.run(case)?;
        if let Some(last) = seen.last_mut() {
            last.content_type = Some("text/lies".to_owned());
        }
        Ok(seen)
    }
}

#[test]
fn a_host_that_disagrees_is_found_out() {
    let cases = cases("rate/");
    let summary = corpus::run(&cases, &[Box::new(Native), Box::new(Liar)]);
    // Each case but the skipped one differs once: by a byte, or altogether.
    assert_eq!(
        summary,
        Summary {
            cases: cases.len(),
            hosts: 2,
            differences: cases.len() - 1,
            skipped: 1
        }
    );
}
