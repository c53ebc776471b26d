//! Bindings of the FIDL library guest.host.
