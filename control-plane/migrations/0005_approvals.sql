-- Calls that gates hold, and what operators said. One row for each time that somebody was asked about a call.
CREATE TABLE approvals (
    id            INTEGER NOT NULL PRIMARY KEY,
    workspace     TEXT    NOT NULL REFERENCES workspaces (id),
    -- The call, `apr-…`; the same call again has the same name.
    name          TEXT    NOT NULL,
    -- From 1: how often somebody has been asked about it.
    number        INTEGER NOT NULL,
    agent         TEXT    NOT NULL,
    -- When it was held, by the gate's clock.
    asked_ms      INTEGER NOT NULL,
    -- Null: it waits until somebody has decided.
    expires_ms    INTEGER,
    -- How long a decision holds.
    holds_secs    INTEGER NOT NULL,
    -- Lists of JSON: what an operator must be to grant it, and who is told of it.
    roles         TEXT    NOT NULL,
    channels      TEXT    NOT NULL,
    -- What the gate has put on record when it held the call.
    record        TEXT    NOT NULL,
    -- `granted` or `denied`.
    verdict       TEXT,
    decided_ms    INTEGER,
    by            TEXT    REFERENCES operators (id),
    reason        TEXT,
    until_ms      INTEGER,
    -- Who has been leased the one call that was granted.
    holder        TEXT,
    epoch         INTEGER,
    -- The decision that let the call through, and when.
    used_by       TEXT,
    used_ms       INTEGER,
    UNIQUE (workspace, name, number)
) STRICT;
CREATE INDEX approvals_in_order ON approvals (workspace, id);
CREATE INDEX approvals_undecided ON approvals (workspace, agent) WHERE verdict IS NULL;

-- Who is still to be told of a request.
CREATE TABLE notifications (
    id        INTEGER NOT NULL PRIMARY KEY,
    workspace TEXT    NOT NULL REFERENCES workspaces (id),
    approval  INTEGER NOT NULL REFERENCES approvals (id),
    channel   TEXT    NOT NULL,
    attempts  INTEGER NOT NULL DEFAULT 0,
    due_ms    INTEGER NOT NULL
) STRICT;
CREATE INDEX notifications_due ON notifications (due_ms);

-- What an operator is beside being one: policies name these roles in `approval.escalation_role`. A list of JSON.
ALTER TABLE operators ADD COLUMN roles TEXT NOT NULL DEFAULT '[]';
