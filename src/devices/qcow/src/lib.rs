//! The qcow2 disk image format: reading, writing, backing files.
