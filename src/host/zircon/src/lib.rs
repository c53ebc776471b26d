//! Zircon on Linux: the zx_* system calls over Linux kernel objects.
