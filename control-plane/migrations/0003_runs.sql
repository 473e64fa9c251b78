-- When runs of agents began: with the first call that a gate asked for. Their rows in `leases` have a window of their own for every cell that
-- a gate has had for them; all of them count.
CREATE TABLE runs (
    workspace TEXT    NOT NULL REFERENCES workspaces (id),
    agent     TEXT    NOT NULL,
    run       TEXT    NOT NULL,
    began_ms  INTEGER NOT NULL,
    PRIMARY KEY (workspace, agent, run)
) STRICT;
CREATE INDEX runs_in_order ON runs (workspace, agent, began_ms);
CREATE INDEX runs_by_age ON runs (began_ms);
