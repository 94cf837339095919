-- What the holders of leases have set out to do (src/claim.rs).

CREATE TABLE bai_claim (
    name    varchar(96)  NOT NULL,
    lease   varchar(64)  NOT NULL,
    token   bigint       NOT NULL,
    CONSTRAINT pk_bai_claim PRIMARY KEY (name)
);
