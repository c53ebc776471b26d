//! Timers that interrupt a vCPU.
