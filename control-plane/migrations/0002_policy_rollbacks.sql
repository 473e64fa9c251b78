-- A version that puts an earlier one back into service names it.
ALTER TABLE policies ADD COLUMN restores INTEGER;
