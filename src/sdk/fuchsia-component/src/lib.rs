//! Connecting to capabilities and serving an outgoing directory.
