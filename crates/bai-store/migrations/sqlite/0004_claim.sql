-- What the holders of leases have set out to do (src/claim.rs).

CREATE TABLE bai_claim (
    name TEXT NOT NULL,
    lease TEXT NOT NULL,
    token INTEGER NOT NULL,
    CONSTRAINT pk_bai_claim PRIMARY KEY (name)
) STRICT;
