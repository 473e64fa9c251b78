//! Checks an export, offline.
//!
//! The signed checkpoint fixes every byte before it; the batches fix their own order and completeness. Both are checked, so that a
//! control plane that would leave something out has to forge the gates' chains too.

use super::{
    Gap,
    export::{Checkpoint, ExportHeader, FORMAT, HolderHead},
};
use std::{collections::BTreeMap, fmt};
use tollgate_engine::{
    bytes::Digest,
    envelope::{self, CHECKPOINT_TYPE, PublicKey},
    journal::{Batch, BatchFault, Position},
    time::Time,
};

/// What a whole export holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whole {
    /// The tenant.
    pub workspace: String,
    /// Batches.
    pub batches: u64,
    /// Records.
    pub records: u64,
    /// Journals.
    pub journals: usize,
    /// Records before these that the control plane says it has deleted, because no policy wanted them kept any longer.
    pub forgotten: u64,
    /// When the control plane signed it.
    pub issued: Time,
    /// Whether the key was given by the caller; if not, it came from the export itself and proves only that the file is one piece.
    pub pinned: bool,
}

impl fmt::Display for Whole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "whole: {} records in {} batches of {} journals, workspace {}, signed {}",
            self.records, self.batches, self.journals, self.workspace, self.issued
        )?;
        if self.forgotten > 0 {
            write!(
                f,
                "; before them {} records were deleted, as policies say",
                self.forgotten
            )?;
        }
        if !self.pinned {
            f.write_str(
                "; not pinned: the key came from the export itself, give --public-key to prove who signed it",
            )?;
        }
        Ok(())
    }
}

/// The first thing that is wrong with an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

fn fault(line: usize, what: impl Into<String>) -> Fault {
    Fault {
        line,
        what: what.into(),
    }
}

/// Checks `export` against `pinned`, or against the key it names itself.
///
/// # Errors
/// The first fault in the order of the file. Records that the control plane itself reports as missing or dropped are faults too, told
/// only when nothing else is wrong: such an export is genuine but not whole.
pub fn verify(export: &[u8], pinned: Option<&PublicKey>) -> Result<Whole, Fault> {
    let (first, mut rest) = line(export).ok_or_else(|| fault(1, "there is no first line"))?;
    let header: ExportHeader = serde_json::from_slice(first)
        .map_err(|error| fault(1, format!("not the first line of an export: {error}")))?;
    if header.tollgate_export != FORMAT {
        return Err(fault(
            1,
            format!("export format {} is not known here", header.tollgate_export),
        ));
    }
    let mut number = 2;
    let mut walk = Walk::default();
    for begin in &header.begins {
        let position = Position {
            next_seq: begin.next_seq,
            head: begin.head,
        };
        walk.journals
            .insert((begin.holder.clone(), begin.epoch), position);
    }
    let forgotten = header.begins.iter().fold(0_u64, |sum, begin| {
        sum.saturating_add(begin.next_seq.saturating_sub(1))
    });
    // A batch starts with its header, the last line is an envelope; neither reads as the other.
    while let Some((next, _)) = line(rest)
        && !is_envelope(next)
    {
        let batch = Batch::read(rest).map_err(|error| batch_fault(number, error))?;
        walk.step(&header.workspace, &batch, number)?;
        let lines = batch.records.len().saturating_add(2);
        rest = rest.get(batch.len..).unwrap_or_default();
        number = number.saturating_add(lines);
    }
    let Some((last, behind)) = line(rest) else {
        return Err(fault(
            number,
            "the export ends without its signed checkpoint: it was cut short",
        ));
    };
    let key = pinned.unwrap_or(&header.key);
    let checkpoint = envelope::open(last, CHECKPOINT_TYPE, std::slice::from_ref(key))
        .map_err(|error| fault(number, format!("the checkpoint: {error}")))?;
    let checkpoint: Checkpoint = serde_json::from_slice(&checkpoint)
        .map_err(|error| fault(number, format!("the checkpoint: {error}")))?;
    if !behind.is_empty() {
        return Err(fault(
            number.saturating_add(1),
            "there is something behind the checkpoint",
        ));
    }
    if checkpoint.workspace != header.workspace {
        return Err(fault(number, "the checkpoint is of another workspace"));
    }
    let before = export.len().saturating_sub(rest.len());
    if Digest::of(export.get(..before).unwrap_or_default()) != checkpoint.lines_sha256 {
        return Err(fault(
            number,
            "the lines before the checkpoint are not those it was signed for",
        ));
    }
    let heads = walk.heads();
    if (checkpoint.batches, checkpoint.records, &checkpoint.holders)
        != (walk.batches, walk.records, &heads)
    {
        return Err(fault(
            number,
            "the checkpoint's counts and heads are not those of the batches before it",
        ));
    }
    let reported = checkpoint.gaps.iter();
    let mut reported = reported.filter_map(|gap| reported_fault(gap, &header, number));
    if let Some(disclosed) = walk.disclosed.or_else(|| reported.next()) {
        return Err(disclosed);
    }
    Ok(Whole {
        workspace: header.workspace,
        batches: walk.batches,
        records: walk.records,
        journals: heads.len(),
        forgotten,
        issued: Time::from_millis(checkpoint.issued_ms),
        pinned: pinned.is_some(),
    })
}

/// What the control plane reports of journals and the batches do not show: a fork, of which it keeps one side, or records that are missing. What is
/// missing among those that were deleted is no fault of what is left.
fn reported_fault(gap: &Gap, header: &ExportHeader, line: usize) -> Option<Fault> {
    let Gap {
        holder,
        epoch,
        kind,
        from_seq,
        records,
        ..
    } = gap;
    let journal = format!("journal of {holder} epoch {epoch}");
    if kind == "fork" {
        let what = format!(
            "{journal}: a fork at record {from_seq}: other {records} records came that do not follow what is here"
        );
        return Some(fault(line, what));
    }
    let is_deleted = header.begins.iter().any(|begin| {
        begin.holder == *holder
            && i64::try_from(begin.epoch) == Ok(*epoch)
            && i64::try_from(begin.next_seq).is_ok_and(|begins| *from_seq <= begins)
    });
    (!is_deleted).then(|| {
        let what = format!("{journal}: {records} records are {kind} from record {from_seq} on");
        fault(line, what)
    })
}

/// The first line without its newline, and what follows.
fn line(input: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = input.iter().position(|byte| *byte == b'\n')?;
    Some((input.get(..end)?, input.get(end.checked_add(1)?..)?))
}

fn is_envelope(line: &[u8]) -> bool {
    serde_json::from_slice::<envelope::Envelope>(line).is_ok()
}

fn batch_fault(first_line: usize, fault: BatchFault) -> Fault {
    let (line, what) = match fault {
        BatchFault::Malformed(line) => (
            first_line.saturating_add(line),
            "not what belongs here in a batch".to_owned(),
        ),
        BatchFault::Truncated | BatchFault::Head | BatchFault::Seal => {
            (first_line, format!("the batch that begins here: {fault}"))
        }
    };
    Fault { line, what }
}

/// The journals as far as they have been read.
#[derive(Default)]
struct Walk {
    journals: BTreeMap<(String, u64), Position>,
    batches: u64,
    records: u64,
    /// The first loss that the export itself tells of.
    disclosed: Option<Fault>,
}

impl Walk {
    fn step(&mut self, workspace: &str, batch: &Batch<'_>, line: usize) -> Result<(), Fault> {
        let header = &batch.header;
        if header.workspace != workspace {
            return Err(fault(line, "a batch of another workspace"));
        }
        let journal = format!("journal of {} epoch {}", header.holder, header.epoch);
        let position = self
            .journals
            .entry((header.holder.clone(), header.epoch))
            .or_insert_with(|| Position::start(workspace, &header.holder, header.epoch));
        if header.first_seq < position.next_seq {
            return Err(fault(
                line,
                format!(
                    "{journal}: a fork: goes back to record {} where {} should follow",
                    header.first_seq, position.next_seq
                ),
            ));
        }
        if header.first_seq > position.next_seq {
            self.disclosed.get_or_insert_with(|| {
                fault(
                    line,
                    format!(
                        "{journal}: records {} to {} are missing",
                        position.next_seq,
                        header.first_seq.saturating_sub(1)
                    ),
                )
            });
        } else if header.previous != position.head {
            return Err(fault(
                line,
                format!(
                    "{journal}: a fork: record {} does not follow the batch before it",
                    header.first_seq
                ),
            ));
        }
        if header.dropped > 0 {
            self.disclosed.get_or_insert_with(|| {
                fault(
                    line,
                    format!(
                        "{journal}: the gate dropped {} records before record {}",
                        header.dropped, header.first_seq
                    ),
                )
            });
        }
        *position = batch.position_after();
        self.batches = self.batches.saturating_add(1);
        self.records = self.records.saturating_add(header.count);
        Ok(())
    }

    fn heads(&self) -> Vec<HolderHead> {
        self.journals
            .iter()
            .map(|((holder, epoch), position)| HolderHead {
                holder: holder.clone(),
                epoch: *epoch,
                next_seq: position.next_seq,
                head: position.head,
            })
            .collect()
    }
}
