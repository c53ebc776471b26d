//! Counters of a vCPU.
