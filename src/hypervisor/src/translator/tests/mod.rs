//! Differential tests: the same instructions natively and translated. Further: code that changes, random bytes as code,
//! and counts of emitted instructions.

mod changes;
mod forms;
mod golden;
mod harness;
mod programs;
mod random;
