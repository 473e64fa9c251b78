-- How many revisions the channel has skipped in all, up to this one, to get ahead of what gates say they run.
ALTER TABLE bundles ADD COLUMN skipped INTEGER NOT NULL DEFAULT 0;
