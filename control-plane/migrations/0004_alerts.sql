-- Which part of which limit had been used: several limits, of which some only warn, may be on one account. What was warned of before this is
-- warned of once more.
DROP TABLE warnings;
CREATE TABLE warnings (
    workspace    TEXT    NOT NULL REFERENCES workspaces (id),
    account      TEXT    NOT NULL,
    window_start INTEGER NOT NULL,
    -- In the account's unit.
    amount       INTEGER NOT NULL,
    percent      INTEGER NOT NULL,
    window_end   INTEGER NOT NULL,
    PRIMARY KEY (workspace, account, window_start, amount, percent)
) STRICT;
CREATE INDEX warnings_by_age ON warnings (window_end);
