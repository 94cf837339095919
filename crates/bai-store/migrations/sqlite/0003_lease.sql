-- Who does the work that only one process may do (src/lease.rs).

CREATE TABLE bai_lease (
    name TEXT NOT NULL,
    holder TEXT NOT NULL,
    token INTEGER NOT NULL,
    expires_at TEXT NOT NULL,
    CONSTRAINT pk_bai_lease PRIMARY KEY (name)
) STRICT;
