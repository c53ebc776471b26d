//! Safe wrappers of the Zircon system calls.
