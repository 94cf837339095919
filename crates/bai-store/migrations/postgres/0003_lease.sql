-- Who does the work that only one process may do (src/lease.rs).

CREATE TABLE bai_lease (
    name        varchar(64)  NOT NULL,
    holder      varchar(256) NOT NULL,
    token       bigint       NOT NULL,
    expires_at  timestamptz  NOT NULL,
    CONSTRAINT pk_bai_lease PRIMARY KEY (name)
);
