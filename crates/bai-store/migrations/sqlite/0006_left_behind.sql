-- Kernels that were given up with their agent are looked for when it is back.
CREATE INDEX bai_ix_kernels_left_behind ON kernels (agent, terminated_at DESC)
    WHERE status = 'TERMINATED' AND status_info = 'agent-lost';
