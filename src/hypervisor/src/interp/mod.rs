//! The interpreter: one instruction in Rust, for what the translator does not copy.
