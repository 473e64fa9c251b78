-- The id that a caller was told (`x-tollgate-decision`), to find its record by.
ALTER TABLE records ADD COLUMN decision TEXT;
CREATE INDEX records_by_decision ON records (workspace, decision);
