-- Counts of what has happened to the site as a whole (src/counter.rs).

CREATE TABLE bai_counter (
    name TEXT NOT NULL,
    value INTEGER NOT NULL,
    CONSTRAINT pk_bai_counter PRIMARY KEY (name)
) STRICT;
