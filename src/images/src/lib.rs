//! Building guest packages.
