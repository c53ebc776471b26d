//! The CPUID policy.
