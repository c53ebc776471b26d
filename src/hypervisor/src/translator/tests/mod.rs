//! Differential tests: the same instructions natively and translated. Further: code that changes, random bytes as code,
//! and counts of emitted instructions.

mod census;
mod changes;
mod forms;
mod golden;
mod harness;
mod implicit;
mod places;
mod programs;
mod random;
