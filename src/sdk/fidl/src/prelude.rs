//! The traits whose methods code that speaks FIDL calls: `use fidl::prelude::*;`.

pub use crate::endpoints::{
    ControlHandle as _, DiscoverableProtocolMarker as _, ProtocolMarker as _, Proxy as _,
    RequestStream as _, Responder as _, SynchronousProxy as _,
};
pub use crate::epitaph::ChannelEpitaphExt as _;
pub use crate::{AsHandleRef as _, HandleBased as _, Peered as _};
