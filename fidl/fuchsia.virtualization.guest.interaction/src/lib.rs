//! Bindings of the FIDL library fuchsia.virtualization.guest.interaction.
