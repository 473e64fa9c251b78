-- Where a journal begins that policies let be forgotten (`agent.audit.retention_days`): behind the last batch that is gone. An export says so.
CREATE TABLE forgotten (
    workspace TEXT    NOT NULL REFERENCES workspaces (id),
    holder    TEXT    NOT NULL,
    epoch     INTEGER NOT NULL,
    next_seq  INTEGER NOT NULL,
    head      BLOB    NOT NULL,
    at_ms     INTEGER NOT NULL,
    PRIMARY KEY (workspace, holder, epoch)
) STRICT;
CREATE INDEX records_of_batch ON records (batch);

-- When an agent's calls were last held without anybody being asked, because so many of them wait already.
CREATE INDEX events_unasked ON events (workspace, subject, at_ms) WHERE kind = 'approval_unasked';
