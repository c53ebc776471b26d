//! The local APIC in x2APIC mode.
