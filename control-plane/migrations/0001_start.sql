-- Times are milliseconds since the Unix epoch (`_ms`), windows and hours seconds. Every row belongs to a workspace, and the
-- workspace leads every key, so that no query can cross it by leaving something out. Plain SQL: PostgreSQL reads it with few changes.

CREATE TABLE workspaces (
    id                TEXT    NOT NULL PRIMARY KEY,
    name              TEXT    NOT NULL UNIQUE,
    created_ms        INTEGER NOT NULL,
    -- This database was put back to an earlier state: nothing is leased before.
    learning_until_ms INTEGER NOT NULL DEFAULT 0
) STRICT;

-- API keys of people and their tools. `workspace` is null for the root key alone.
CREATE TABLE operators (
    id           TEXT    NOT NULL PRIMARY KEY,
    workspace    TEXT    REFERENCES workspaces (id),
    name         TEXT    NOT NULL,
    hash         BLOB    NOT NULL,
    created_ms   INTEGER NOT NULL,
    last_used_ms INTEGER,
    revoked_ms   INTEGER
) STRICT;
CREATE INDEX operators_of_workspace ON operators (workspace);

-- Enrolments: the key of a gate, and what its holders' seal keys are derived from.
CREATE TABLE gates (
    id           TEXT    NOT NULL PRIMARY KEY,
    workspace    TEXT    NOT NULL REFERENCES workspaces (id),
    name         TEXT    NOT NULL,
    hash         BLOB    NOT NULL,
    seal_root    BLOB    NOT NULL,
    created_ms   INTEGER NOT NULL,
    last_used_ms INTEGER,
    revoked_ms   INTEGER
) STRICT;
CREATE INDEX gates_of_workspace ON gates (workspace);

-- Running gates. The first that uses a holder's name owns it.
CREATE TABLE holders (
    workspace     TEXT    NOT NULL REFERENCES workspaces (id),
    holder        TEXT    NOT NULL,
    gate          TEXT    NOT NULL REFERENCES gates (id),
    epoch         INTEGER NOT NULL,
    revision      INTEGER NOT NULL,
    first_seen_ms INTEGER NOT NULL,
    last_seen_ms  INTEGER NOT NULL,
    PRIMARY KEY (workspace, holder)
) STRICT;

CREATE TABLE agents (
    workspace  TEXT    NOT NULL REFERENCES workspaces (id),
    id         TEXT    NOT NULL,
    name       TEXT    NOT NULL,
    org        TEXT,
    team       TEXT,
    level      TEXT    NOT NULL,
    created_ms INTEGER NOT NULL,
    revoked_ms INTEGER,
    PRIMARY KEY (workspace, id)
) STRICT;
CREATE UNIQUE INDEX agents_in_service ON agents (workspace, name) WHERE revoked_ms IS NULL;
CREATE INDEX agents_of_team ON agents (workspace, team, org);
CREATE INDEX agents_of_org ON agents (workspace, org, team);

-- Whose calls are stopped now: `scope` is `global`, `org:…`, `team:…` or `agent:…`.
CREATE TABLE halts (
    workspace TEXT    NOT NULL REFERENCES workspaces (id),
    scope     TEXT    NOT NULL,
    kind      TEXT    NOT NULL CHECK (kind IN ('paused', 'killed')),
    reason    TEXT    NOT NULL,
    by        TEXT    NOT NULL REFERENCES operators (id),
    at_ms     INTEGER NOT NULL,
    PRIMARY KEY (workspace, scope)
) STRICT;

-- What operators did about calls, and what was noticed about budgets.
CREATE TABLE events (
    id        INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    workspace TEXT    NOT NULL REFERENCES workspaces (id),
    at_ms     INTEGER NOT NULL,
    kind      TEXT    NOT NULL,
    subject   TEXT    NOT NULL,
    by        TEXT    REFERENCES operators (id),
    message   TEXT    NOT NULL
) STRICT;
CREATE INDEX events_in_order ON events (workspace, id);

-- Every version of every policy. The highest version counts; one without text is a deletion.
CREATE TABLE policies (
    workspace  TEXT    NOT NULL REFERENCES workspaces (id),
    name       TEXT    NOT NULL,
    version    INTEGER NOT NULL,
    text       TEXT,
    author     TEXT    NOT NULL REFERENCES operators (id),
    applied_ms INTEGER NOT NULL,
    PRIMARY KEY (workspace, name, version)
) STRICT;

CREATE TABLE bundles (
    workspace  TEXT    NOT NULL REFERENCES workspaces (id),
    channel    TEXT    NOT NULL,
    revision   INTEGER NOT NULL,
    etag       TEXT    NOT NULL,
    payload    BLOB    NOT NULL,
    envelope   BLOB    NOT NULL,
    issued_ms  INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    PRIMARY KEY (workspace, channel, revision)
) STRICT;

-- What each holder has of each account and window. Amounts count from the start of the window and only grow, except `reserved`.
-- A holder's earlier epoch keeps its row: what was granted under it stays gone until the window ends.
CREATE TABLE leases (
    workspace    TEXT    NOT NULL REFERENCES workspaces (id),
    account      TEXT    NOT NULL,
    window_start INTEGER NOT NULL,
    holder       TEXT    NOT NULL,
    epoch        INTEGER NOT NULL,
    window_end   INTEGER NOT NULL,
    seq          INTEGER NOT NULL,
    granted      INTEGER NOT NULL CHECK (granted >= 0),
    returned     INTEGER NOT NULL CHECK (returned >= 0),
    settled      INTEGER NOT NULL CHECK (settled >= 0),
    reserved     INTEGER NOT NULL CHECK (reserved >= 0),
    expires_ms   INTEGER NOT NULL,
    retry_ms     INTEGER NOT NULL,
    PRIMARY KEY (workspace, account, window_start, holder, epoch)
) STRICT;
CREATE INDEX leases_by_age ON leases (window_end);

-- Which part of a limit had been used, in percent, when that was put on record. Once per window.
CREATE TABLE warnings (
    workspace    TEXT    NOT NULL REFERENCES workspaces (id),
    account      TEXT    NOT NULL,
    window_start INTEGER NOT NULL,
    percent      INTEGER NOT NULL,
    window_end   INTEGER NOT NULL,
    PRIMARY KEY (workspace, account, window_start, percent)
) STRICT;
CREATE INDEX warnings_by_age ON warnings (window_end);

-- When an operator last let a suspended account be spent from again.
CREATE TABLE lifted (
    workspace TEXT    NOT NULL REFERENCES workspaces (id),
    account   TEXT    NOT NULL,
    at_ms     INTEGER NOT NULL,
    PRIMARY KEY (workspace, account)
) STRICT;

-- Audit: the sealed batches as they came, in order of acceptance.
CREATE TABLE batches (
    id          INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    workspace   TEXT    NOT NULL REFERENCES workspaces (id),
    holder      TEXT    NOT NULL,
    epoch       INTEGER NOT NULL,
    first_seq   INTEGER NOT NULL,
    count       INTEGER NOT NULL,
    dropped     INTEGER NOT NULL,
    head        BLOB    NOT NULL,
    received_ms INTEGER NOT NULL,
    bytes       BLOB    NOT NULL,
    UNIQUE (workspace, holder, epoch, head)
) STRICT;
CREATE INDEX batches_in_order ON batches (workspace, id);
CREATE INDEX batches_of_holder ON batches (workspace, holder, epoch, id);

-- An index over the records inside the batches; `start` and `length` say where in `batches.bytes` one lies.
CREATE TABLE records (
    id        INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    workspace TEXT    NOT NULL REFERENCES workspaces (id),
    batch     INTEGER NOT NULL REFERENCES batches (id),
    seq       INTEGER NOT NULL,
    start     INTEGER NOT NULL,
    length    INTEGER NOT NULL,
    at_ms     INTEGER NOT NULL,
    agent     TEXT,
    outcome   TEXT,
    -- The id that the caller was told (`x-tollgate-decision`).
    decision  TEXT
) STRICT;
CREATE INDEX records_in_order ON records (workspace, id);
CREATE INDEX records_of_agent ON records (workspace, agent, id);
CREATE INDEX records_by_outcome ON records (workspace, outcome, id);
CREATE INDEX records_by_decision ON records (workspace, decision);

-- What is wrong with a holder's journal: records missing, dropped by the gate itself, or told in two ways.
CREATE TABLE incidents (
    id        INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    workspace TEXT    NOT NULL REFERENCES workspaces (id),
    holder    TEXT    NOT NULL,
    epoch     INTEGER NOT NULL,
    kind      TEXT    NOT NULL CHECK (kind IN ('missing', 'dropped', 'fork')),
    from_seq  INTEGER NOT NULL,
    records   INTEGER NOT NULL,
    head      BLOB    NOT NULL,
    found_ms  INTEGER NOT NULL,
    UNIQUE (workspace, holder, epoch, kind, head)
) STRICT;

-- Counters per hour and per key of each dimension.
CREATE TABLE usage (
    workspace           TEXT    NOT NULL REFERENCES workspaces (id),
    dimension           TEXT    NOT NULL,
    hour                INTEGER NOT NULL,
    key                 TEXT    NOT NULL,
    calls               INTEGER NOT NULL,
    denied              INTEGER NOT NULL,
    estimated           INTEGER NOT NULL,
    input_tokens        INTEGER NOT NULL,
    output_tokens       INTEGER NOT NULL,
    cached_input_tokens INTEGER NOT NULL,
    cache_write_tokens  INTEGER NOT NULL,
    reasoning_tokens    INTEGER NOT NULL,
    cost_nano_usd       INTEGER NOT NULL,
    PRIMARY KEY (workspace, dimension, hour, key)
) STRICT;
