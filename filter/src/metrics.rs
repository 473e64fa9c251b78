//! What Envoy's Prometheus endpoint shows of a gate. Labels travel in the names, as `.label.value`; `envoy/gate.yaml` takes them out.

use crate::host;
use proxy_wasm::types::MetricType;
use std::cell::RefCell;
use tollgate_engine::{
    decide::{Cause, Outcome},
    exchange::Observed,
    upkeep::Kind,
};

/// A metric, one for all workers. When Envoy has not defined it, counting it does nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Metric(Option<u32>);

impl Metric {
    fn new(kind: MetricType, name: &str) -> Metric {
        Metric(host::metric(kind, name).ok())
    }

    /// Adds to a counter or a gauge.
    pub(crate) fn add(self, by: i64) {
        if by != 0 {
            let _ = self.0.map(|metric| host::add(metric, by));
        }
    }

    /// Sets a gauge, or adds to a histogram; below zero is zero.
    pub(crate) fn record(self, value: i64) {
        let value = u64::try_from(value).unwrap_or(0);
        let _ = self.0.map(|metric| host::record(metric, value));
    }

    /// What it shows.
    pub(crate) fn value(self) -> u64 {
        self.0
            .and_then(|metric| host::value_of(metric).ok())
            .unwrap_or(0)
    }
}

#[derive(Debug)]
pub(crate) struct Metrics {
    decisions: RefCell<Vec<(Outcome, Option<Cause>, Metric)>>,
    decide_us: Metric,
    uninspected: Metric,
    estimated: Metric,
    pub(crate) host_errors: Metric,
    /// Of the bundle in the store: a look at it costs a tenth of one into the store.
    pub(crate) bundle_revision: Metric,
    pub(crate) bundle_age_seconds: Metric,
    /// What the last one took to verify and make ready.
    pub(crate) bundle_install_us: Metric,
    pub(crate) lease_accounts: Metric,
    pub(crate) leases_live: Metric,
    pub(crate) journal_enqueued: Metric,
    pub(crate) journal_delivered: Metric,
    pub(crate) journal_dropped: Metric,
    pub(crate) journal_backlog: Metric,
    pub(crate) journal_backlog_bytes: Metric,
    /// Dropped and not yet told to the control plane.
    pub(crate) journal_unreported: Metric,
    pub(crate) leader_changes: Metric,
    pub(crate) workers_lost: Metric,
}

impl Metrics {
    /// The gauges are those of one gate, and steer it: an Envoy may have several.
    pub(crate) fn new(workspace: &str, channel: &str) -> Metrics {
        let counter = |name| Metric::new(MetricType::Counter, name);
        let gauge = |name| {
            let name = format!("{name}.workspace.{workspace}.channel.{channel}");
            Metric::new(MetricType::Gauge, &name)
        };
        Metrics {
            decisions: RefCell::default(),
            decide_us: Metric::new(MetricType::Histogram, "tollgate_decide_us"),
            uninspected: counter("tollgate_uninspected"),
            estimated: counter("tollgate_estimated"),
            host_errors: counter("tollgate_host_errors"),
            bundle_revision: gauge("tollgate_bundle_revision"),
            bundle_age_seconds: gauge("tollgate_bundle_age_seconds"),
            bundle_install_us: gauge("tollgate_bundle_install_us"),
            lease_accounts: gauge("tollgate_lease_accounts"),
            leases_live: gauge("tollgate_leases_live"),
            journal_enqueued: counter("tollgate_journal_enqueued"),
            journal_delivered: counter("tollgate_journal_delivered"),
            journal_dropped: counter("tollgate_journal_dropped"),
            journal_backlog: gauge("tollgate_journal_backlog"),
            journal_backlog_bytes: gauge("tollgate_journal_backlog_bytes"),
            journal_unreported: gauge("tollgate_journal_unreported_drops"),
            leader_changes: counter("tollgate_leader_changes"),
            workers_lost: counter("tollgate_workers_lost"),
        }
    }

    /// Counts an exchange that is over.
    pub(crate) fn observe(&self, observed: &Observed) {
        self.decision(observed.outcome, observed.cause).add(1);
        self.decide_us.record(observed.decide_us);
        self.uninspected.add(i64::from(observed.uninspected));
        self.estimated.add(i64::from(observed.estimated));
    }

    /// Counts a piece of the backlog that comes, or goes (`count` is negative then).
    pub(crate) fn count_backlog(&self, piece: &[u8], count: i64) {
        let bytes = i64::try_from(piece.len()).unwrap_or(i64::MAX);
        self.journal_backlog.add(count);
        self.journal_backlog_bytes.add(bytes * count.signum());
    }

    /// Defined when first counted, then remembered; there are as many as outcomes and causes.
    fn decision(&self, outcome: Outcome, cause: Option<Cause>) -> Metric {
        let mut known = self.decisions.borrow_mut();
        if let Some((_, _, metric)) = known.iter().find(|(o, c, _)| *o == outcome && *c == cause) {
            return *metric;
        }
        let metric = Metric::new(
            MetricType::Counter,
            &format!(
                "tollgate_decisions.outcome.{}.cause.{}",
                outcome.name(),
                cause.map_or("none", Cause::name)
            ),
        );
        known.push((outcome, cause, metric));
        metric
    }

    /// Counts a bundle that was not installed.
    pub(crate) fn bundle_refused(&self, reason: &str) {
        let name = format!("tollgate_bundle_refused.reason.{reason}");
        Metric::new(MetricType::Counter, &name).add(1);
    }

    /// Counts an errand that failed.
    pub(crate) fn control_plane_error(&self, errand: Kind) {
        let name = format!(
            "tollgate_control_plane_errors.errand.{}",
            errand_name(errand)
        );
        Metric::new(MetricType::Counter, &name).add(1);
    }
}

pub(crate) const fn errand_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Bundle => "bundle",
        Kind::Leases => "leases",
        Kind::Journal => "journal",
    }
}
