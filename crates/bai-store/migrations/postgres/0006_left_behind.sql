-- SQLite has an index with this version; here indexes are made beside running work (src/schema/indexes.rs).
SELECT 1;
