-- One index over live kernels instead of four (src/kernel.rs, is_live).
DROP INDEX IF EXISTS bai_ix_kernels_live_access_key;
DROP INDEX IF EXISTS bai_ix_kernels_live_group_id;
DROP INDEX IF EXISTS bai_ix_kernels_live_domain_name;
DROP INDEX IF EXISTS bai_ix_kernels_live_agent;
