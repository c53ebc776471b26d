//! Tests of whole guests: small programs that run on a vCPU and report through ports.

mod debugger;
mod exceptions;
mod kick;
mod litmus;
mod machine;
mod modes;
mod paging;
mod policy;
mod random;
mod smp;
mod vcpu;
