//! Epitaphs: the status a server sends before it closes a channel.

use crate::encoding::{
    DynamicFlags, EPITAPH_ORDINAL, Encoder, TransactionHeader, ValueType, with_buffers,
};
use crate::{AsyncChannel, Error, Result};
use fuchsia_zircon::{Channel, Status};

/// Closing a channel with an epitaph.
pub trait ChannelEpitaphExt: Sized {
    /// Sends the epitaph and closes the channel.
    ///
    /// # Errors
    ///
    /// [`Error::ServerEpitaphWrite`]; the channel is closed all the same.
    fn close_with_epitaph(self, status: Status) -> Result<()>;
}

impl ChannelEpitaphExt for Channel {
    fn close_with_epitaph(self, status: Status) -> Result<()> {
        write_epitaph(&self, status)
    }
}

impl ChannelEpitaphExt for AsyncChannel {
    fn close_with_epitaph(self, status: Status) -> Result<()> {
        write_epitaph(self.as_ref(), status)
    }
}

pub(crate) fn write_epitaph(channel: &Channel, status: Status) -> Result<()> {
    with_buffers(|bytes, handles| {
        let header = TransactionHeader::new(0, EPITAPH_ORDINAL, DynamicFlags::empty());
        bytes.extend_from_slice(&header.to_bytes());
        Encoder::new(bytes, handles).body(4, |encoder, offset, depth| {
            <i32 as ValueType>::encode(status.into_raw(), encoder, offset, depth)
        })?;
        channel.write_etc(bytes, handles).map_err(Error::ServerEpitaphWrite)
    })
}
