//! The `guest` command line.
