//! The virtual machine monitor component.
