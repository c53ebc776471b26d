//! Channels that can be awaited.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::on_signals::OnSignalsRef;
use crate::rwhandle::RWHandle;
use crate::zx::{self, AsHandleRef};

/// A channel that belongs to the executor on which it was made.
pub struct Channel(RWHandle<zx::Channel>);

impl Channel {
    /// Adopts a channel into the current executor.
    ///
    /// # Panics
    /// Without an executor on this thread.
    pub fn from_channel(channel: zx::Channel) -> Channel {
        Channel(RWHandle::new(channel))
    }

    /// The channel, given back.
    pub fn into_zx_channel(self) -> zx::Channel {
        self.0.into_inner()
    }

    /// Whether the other side has gone. There may still be messages from it.
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    /// Completes when the other side goes.
    pub fn on_closed(&self) -> OnSignalsRef<'_> {
        self.0.on_closed()
    }

    /// Has who waits for a message poll again, as when there is another reason for it to go on.
    pub fn wake_reader(&self) {
        self.0.wake_reader();
    }

    /// Reads a message into `buf`, which grows as needed.
    ///
    /// # Errors
    /// `PEER_CLOSED` when all has been read and no more will come.
    pub fn recv_from(
        &self,
        context: &mut Context<'_>,
        buf: &mut zx::MessageBuf,
    ) -> Poll<Result<(), zx::Status>> {
        self.poll_message(context, |channel| channel.read(buf))
    }

    /// As [`Channel::recv_from`], with the types and rights of the handles.
    ///
    /// # Errors
    /// As [`Channel::recv_from`].
    pub fn recv_etc_from(
        &self,
        context: &mut Context<'_>,
        buf: &mut zx::MessageBufEtc,
    ) -> Poll<Result<(), zx::Status>> {
        self.poll_message(context, |channel| channel.read_etc(buf))
    }

    /// As [`Channel::recv_from`], into two vectors.
    ///
    /// # Errors
    /// As [`Channel::recv_from`].
    pub fn read(
        &self,
        context: &mut Context<'_>,
        bytes: &mut Vec<u8>,
        handles: &mut Vec<zx::Handle>,
    ) -> Poll<Result<(), zx::Status>> {
        self.poll_message(context, |channel| channel.read_split(bytes, handles))
    }

    /// As [`Channel::recv_etc_from`], into two vectors.
    ///
    /// # Errors
    /// As [`Channel::recv_from`].
    pub fn read_etc(
        &self,
        context: &mut Context<'_>,
        bytes: &mut Vec<u8>,
        handles: &mut Vec<zx::HandleInfo>,
    ) -> Poll<Result<(), zx::Status>> {
        self.poll_message(context, |channel| channel.read_etc_split(bytes, handles))
    }

    /// Reads a message with `read`, which is called only when there may be one.
    ///
    /// # Errors
    /// Those of `read`, but for `SHOULD_WAIT`.
    #[inline]
    pub fn poll_message<R>(
        &self,
        context: &mut Context<'_>,
        read: impl FnOnce(&zx::Channel) -> Result<R, zx::Status>,
    ) -> Poll<Result<R, zx::Status>> {
        self.0.poll_message(context, read)
    }

    /// Waits for a message and reads it into `buf`.
    pub fn recv_msg<'a>(&'a self, buf: &'a mut zx::MessageBuf) -> RecvMsg<'a> {
        RecvMsg { channel: self, buf }
    }

    /// As [`Channel::recv_msg`], with the types and rights of the handles.
    pub fn recv_etc_msg<'a>(&'a self, buf: &'a mut zx::MessageBufEtc) -> RecvEtcMsg<'a> {
        RecvEtcMsg { channel: self, buf }
    }

    /// Writes a message. The handles are gone, whether it succeeds or not.
    ///
    /// # Errors
    /// Those of `zx_channel_write`.
    pub fn write(&self, bytes: &[u8], handles: &mut [zx::Handle]) -> Result<(), zx::Status> {
        self.0.get_ref().write(bytes, handles)
    }

    /// As [`Channel::write`], with the types and rights that the other side is to get.
    ///
    /// # Errors
    /// Those of `zx_channel_write_etc`.
    #[inline]
    pub fn write_etc(
        &self,
        bytes: &[u8],
        handles: &mut [zx::HandleDisposition<'_>],
    ) -> Result<(), zx::Status> {
        self.0.get_ref().write_etc(bytes, handles)
    }
}

impl AsRef<zx::Channel> for Channel {
    fn as_ref(&self) -> &zx::Channel {
        self.0.get_ref()
    }
}

impl AsHandleRef for Channel {
    fn as_handle_ref(&self) -> zx::HandleRef<'_> {
        self.0.get_ref().as_handle_ref()
    }
}

impl From<Channel> for zx::Channel {
    fn from(channel: Channel) -> zx::Channel {
        channel.into_zx_channel()
    }
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(formatter)
    }
}

/// See [`Channel::recv_msg`].
#[must_use = "futures do nothing unless polled"]
pub struct RecvMsg<'a> {
    channel: &'a Channel,
    buf: &'a mut zx::MessageBuf,
}

impl Future for RecvMsg<'_> {
    type Output = Result<(), zx::Status>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        this.channel.recv_from(context, this.buf)
    }
}

/// See [`Channel::recv_etc_msg`].
#[must_use = "futures do nothing unless polled"]
pub struct RecvEtcMsg<'a> {
    channel: &'a Channel,
    buf: &'a mut zx::MessageBufEtc,
}

impl Future for RecvEtcMsg<'_> {
    type Output = Result<(), zx::Status>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        this.channel.recv_etc_from(context, this.buf)
    }
}
