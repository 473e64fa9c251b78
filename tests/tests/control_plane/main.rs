//! The control plane from outside: its HTTP API without a socket, with a clock that the test holds; and, in `process`, the real program.

mod access;
mod agents;
mod approvals;
mod audit;
mod budgets;
mod bundles;
mod data_directory;
mod halts;
mod harness;
mod leases;
mod policies;
mod process;
mod runs;
mod usage;
