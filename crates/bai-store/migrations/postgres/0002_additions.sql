-- Which of these files a database has had. The original ignores tables and indexes that are not its own. Our indexes are
-- in src/schema/indexes.rs, because they are made one by one beside running work.

CREATE TABLE bai_schema_version (
    version integer NOT NULL,
    CONSTRAINT pk_bai_schema_version PRIMARY KEY (version)
);
