//! Differential tests: the same instructions natively and translated.

mod forms;
mod harness;
mod programs;
