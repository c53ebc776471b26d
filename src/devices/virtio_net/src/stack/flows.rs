//! The tables of connections and flows: how entries come, make room for others, and go.

use std::hash::BuildHasher as _;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use smoltcp::wire::TcpRepr;

use super::address::{GATEWAY, GUEST};
use super::frame::Frame;
use super::tcp::{self, Connection, Fate};
use super::udp::{self, Flow, Outlet};
use super::wire::UDP;
use super::{FlowId, FlowKey, MAX_CONNECTIONS, MAX_FLOWS, MAX_FRAME, Stack, arm, forward};

/// Connections accepted in a row before others get their turn.
const ACCEPTS: usize = 16;
/// How long a forward that cannot accept waits before it tries again.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// Ports for senders whose own is in use (RFC 6335 §6).
const FIRST_DYNAMIC_PORT: u16 = 49_152;

impl Stack {
    /// Opens a flow of datagrams to `peer`; the one used least recently makes room.
    pub(super) fn open_flow(&mut self, id: FlowId, peer: SocketAddr, now: Instant) -> Option<()> {
        self.make_room_for_flow();
        let is_echo = matches!(id, FlowId::Echo(_));
        let connected = if is_echo { udp::connect_echo(peer) } else { udp::connect(peer) };
        let mut socket = connected
            .inspect_err(|e| tracing::debug!(%peer, error = e as &dyn std::error::Error, "No flow"))
            .ok()?;
        let token = self.register(&mut socket, id).ok()?;
        self.flows.insert(id, Flow::new(Outlet::Own { socket, token }, is_echo, now));
        Some(())
    }

    fn make_room_for_flow(&mut self) {
        if self.flows.len() < MAX_FLOWS {
            return;
        }
        if let Some((&oldest, _)) = self.flows.iter().min_by_key(|(_, flow)| flow.last_use()) {
            self.close(oldest);
        }
    }

    /// Passes a datagram of the guest's on. It may be lost, as datagrams may.
    pub(super) fn send(&mut self, id: FlowId, payload: &[u8], now: Instant) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        flow.touch(now);
        let sent = match &flow.outlet {
            Outlet::Own { .. } => flow.send(payload),
            Outlet::Forward { index, peer } => {
                match self.listeners.get(*index).map(|l| &l.socket) {
                    Some(forward::Socket::Udp(socket)) => socket.send_to(payload, *peer).map(drop),
                    _ => Ok(()),
                }
            }
        };
        if let Err(e) = sent {
            tracing::debug!(error = &e as &dyn std::error::Error, "A datagram was lost");
        }
        arm(&mut self.deadline, Some(flow.expiry()));
        self.report_refusal(id);
    }

    /// Tells the guest when a flow's peer has refused a datagram.
    pub(super) fn report_refusal(&mut self, id: FlowId) {
        // An echo has no port that could be closed.
        let FlowId::Udp(key) = id else { return };
        if self.flows.get_mut(&id).is_some_and(Flow::take_refusal) {
            self.refuse_datagram(key);
        }
    }

    /// Opens a connection for the guest's `syn` to `peer`.
    pub(super) fn open_connection(
        &mut self,
        key: FlowKey,
        peer: SocketAddr,
        syn: &TcpRepr<'_>,
        now: Instant,
    ) -> Option<()> {
        self.make_room_for_connection();
        let mut stream = TcpStream::connect(peer).ok()?;
        let token = self.register(&mut stream, FlowId::Tcp(key)).ok()?;
        let (initial, others) = (self.initial(key, token), self.tcp.len());
        let connection = Connection::passive(stream, token, syn, initial, others, now);
        self.tcp.insert(key, connection);
        Some(())
    }

    fn make_room_for_connection(&mut self) {
        if self.tcp.len() < MAX_CONNECTIONS {
            return;
        }
        let least = self.tcp.iter().min_by_key(|(_, connection)| connection.usefulness());
        if let Some((&key, _)) = least {
            self.settle(key, Fate::Reset);
        }
    }

    fn initial(&self, key: FlowKey, token: usize) -> u32 {
        self.secret.hash_one((key, token)) as u32
    }

    /// Goes on with forward `index`: takes connections, or the next datagram; whether it delivered a frame.
    pub(super) fn next_from_host(
        &mut self,
        index: usize,
        now: Instant,
        deliver: &mut dyn FnMut(&Frame<'_>),
    ) -> bool {
        let Some(listener) = self.listeners.get_mut(index) else { return false };
        listener.is_pending = false;
        let guest_port = listener.guest_port;
        match &listener.socket {
            forward::Socket::Tcp(_) => {
                self.accept(index, guest_port, now);
                false
            }
            forward::Socket::Udp(socket) => {
                let most = MAX_FRAME - super::ETHERNET - super::wire::IPV4 - UDP;
                let Some(buffer) = self.datagram.get_mut(..=most) else { return false };
                let received =
                    udp::receive(buffer, &mut listener.readable, |to| socket.recv_from(to));
                let Some((len, peer)) = received else { return false };
                self.schedule(FlowId::Listener(index));
                let Some(key) = self.forwarded_flow(index, guest_port, peer, now) else {
                    return false;
                };
                self.deliver_datagram(key, len, deliver);
                true
            }
        }
    }

    fn accept(&mut self, index: usize, guest_port: u16, now: Instant) {
        for _ in 0..ACCEPTS {
            let Some(listener) = self.listeners.get_mut(index) else { return };
            if listener.retry.is_some() {
                return;
            }
            let forward::Socket::Tcp(socket) = &listener.socket else { return };
            match socket.accept() {
                Ok((stream, peer)) => {
                    listener.is_failing = false;
                    self.open_to_guest(stream, peer, guest_port, now);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    listener.readable = false;
                    return;
                }
                // It went away before it was accepted.
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // Out of descriptors or memory, most likely. Whoever connects waits in the host's queue until some are free.
                Err(e) => {
                    if !std::mem::replace(&mut listener.is_failing, true) {
                        let error = &e as &dyn std::error::Error;
                        tracing::warn!(
                            error,
                            guest_port,
                            "A forward cannot accept; it tries again"
                        );
                    }
                    listener.retry = Some(now + ACCEPT_PAUSE);
                    arm(&mut self.deadline, listener.retry);
                    return;
                }
            }
        }
        self.schedule(FlowId::Listener(index));
    }

    fn open_to_guest(
        &mut self,
        mut stream: TcpStream,
        peer: SocketAddr,
        guest_port: u16,
        now: Instant,
    ) {
        self.make_room_for_connection();
        let Some(key) =
            self.key_to_guest(guest_port, peer.port(), |stack, key| stack.tcp.contains_key(&key))
        else {
            return;
        };
        let Ok(token) = self.register(&mut stream, FlowId::Tcp(key)) else { return };
        let (initial, others) = (self.initial(key, token), self.tcp.len());
        self.tcp.insert(key, Connection::active(stream, token, initial, others, now));
        self.schedule(FlowId::Tcp(key));
    }

    /// The flow of what `peer` sends through forward `index`.
    fn forwarded_flow(
        &mut self,
        index: usize,
        guest_port: u16,
        peer: SocketAddr,
        now: Instant,
    ) -> Option<FlowKey> {
        if let Some(&key) = self.peers.get(&(index, peer)) {
            self.flows.get_mut(&FlowId::Udp(key))?.touch(now);
            return Some(key);
        }
        self.make_room_for_flow();
        let key = self.key_to_guest(guest_port, peer.port(), |stack, key| {
            stack.flows.contains_key(&FlowId::Udp(key))
        })?;
        let flow = Flow::new(Outlet::Forward { index, peer }, false, now);
        arm(&mut self.deadline, Some(flow.expiry()));
        self.flows.insert(FlowId::Udp(key), flow);
        self.peers.insert((index, peer), key);
        Some(key)
    }

    /// A key for what comes to the guest's port from the router's `wanted` port, or from another where that is taken.
    fn key_to_guest(
        &self,
        guest_port: u16,
        wanted: u16,
        is_taken: impl Fn(&Self, FlowKey) -> bool,
    ) -> Option<FlowKey> {
        let ip = IpAddr::V4(GATEWAY);
        let key = |port| FlowKey { guest: GUEST.into(), guest_port, ip, port };
        std::iter::once(wanted)
            .chain(FIRST_DYNAMIC_PORT..=u16::MAX)
            .map(key)
            .find(|key| !is_taken(self, *key))
    }

    /// Acts on what a call of a connection has led to.
    pub(super) fn settle(&mut self, key: FlowKey, fate: Fate) {
        match fate {
            Fate::Open => {
                self.schedule(FlowId::Tcp(key));
                let timer = self.tcp.get(&key).and_then(Connection::timer);
                arm(&mut self.deadline, timer);
            }
            Fate::Closed => self.close(FlowId::Tcp(key)),
            Fate::Reset => {
                let reset = self.tcp.get(&key).and_then(|c| c.reset(key.port, key.guest_port));
                if let Some(reset) = reset {
                    self.answer_tcp(key, &reset);
                }
                self.close(FlowId::Tcp(key));
            }
        }
    }

    /// Answers a segment of no connection (RFC 9293 §3.10.7.1).
    pub(super) fn refuse(&mut self, key: FlowKey, segment: &TcpRepr<'_>) {
        if let Some(reset) = tcp::refusal(segment) {
            self.answer_tcp(key, &reset);
        }
    }

    pub(super) fn schedule(&mut self, id: FlowId) {
        let is_pending = match id {
            FlowId::Tcp(key) => self.tcp.get_mut(&key).map(|flow| &mut flow.is_pending),
            FlowId::Udp(_) | FlowId::Echo(_) => {
                self.flows.get_mut(&id).map(|flow| &mut flow.is_pending)
            }
            FlowId::Listener(index) => {
                self.listeners.get_mut(index).map(|listener| &mut listener.is_pending)
            }
        };
        if let Some(is_pending) = is_pending
            && !std::mem::replace(is_pending, true)
        {
            self.pending.push_back(id);
        }
    }

    /// Removes a connection or flow, and its socket.
    pub(super) fn close(&mut self, id: FlowId) {
        let (token, was_pending) = match id {
            FlowId::Tcp(key) => {
                let Some(mut connection) = self.tcp.remove(&key) else { return };
                connection.abort();
                self.reactor.remove(&mut connection.stream);
                (Some(connection.token), connection.is_pending)
            }
            FlowId::Udp(_) | FlowId::Echo(_) => {
                let Some(mut flow) = self.flows.remove(&id) else { return };
                let token = match &mut flow.outlet {
                    Outlet::Own { socket, token } => {
                        self.reactor.remove(socket);
                        Some(*token)
                    }
                    Outlet::Forward { index, peer } => {
                        self.peers.remove(&(*index, *peer));
                        None
                    }
                };
                (token, flow.is_pending)
            }
            FlowId::Listener(_) => return,
        };
        if let Some(token) = token {
            self.tokens.remove(&token);
        }
        if was_pending {
            // So that a flow of the same name later is there once.
            self.pending.retain(|pending| *pending != id);
        }
    }

    pub(super) fn register(
        &mut self,
        socket: &mut impl mio::event::Source,
        id: FlowId,
    ) -> io::Result<usize> {
        let token = self.next_token;
        self.reactor.add(socket, token)?;
        self.next_token += 1;
        self.tokens.insert(token, id);
        Ok(token)
    }
}
