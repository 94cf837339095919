-- Counts of what has happened to the site as a whole (src/counter.rs).

CREATE TABLE bai_counter (
    name    varchar(64)  NOT NULL,
    value   bigint       NOT NULL,
    CONSTRAINT pk_bai_counter PRIMARY KEY (name)
);
