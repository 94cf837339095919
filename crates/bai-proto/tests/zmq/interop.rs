//! aiozmq and pyzmq on the other side.
