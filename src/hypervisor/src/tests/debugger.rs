//! The GDB stub, through the bytes of the remote protocol.

use super::machine::*;
use crate::{Error, Vcpu, gdb};
use iced_x86::code_asm::*;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

/// The client's end of a connection.
struct Client {
    stream: UnixStream,
    server: Option<JoinHandle<Result<(), Error>>>,
}

impl Client {
    fn connect(guest: &Arc<crate::Guest>) -> Client {
        let (stream, other) = UnixStream::pair().unwrap();
        let guest = Arc::clone(guest);
        let server = thread::spawn(move || gdb::serve_unix(&guest, other));
        Client { stream, server: Some(server) }
    }

    fn send(&mut self, body: &str) {
        let sum = body.bytes().fold(0_u8, u8::wrapping_add);
        self.stream.write_all(format!("${body}#{sum:02x}").as_bytes()).unwrap();
    }

    fn byte(&mut self) -> u8 {
        let mut byte = [0];
        self.stream.read_exact(&mut byte).unwrap();
        byte[0]
    }

    /// The next packet's body, acknowledged.
    fn receive(&mut self) -> String {
        while self.byte() != b'$' {}
        let mut body = String::new();
        loop {
            match self.byte() {
                b'#' => break,
                // Run-length encoding: the last character, again and again.
                b'*' => {
                    let last = body.chars().next_back().unwrap();
                    let count = usize::from(self.byte()) - 29;
                    body.extend(std::iter::repeat_n(last, count));
                }
                byte => body.push(byte.into()),
            }
        }
        self.byte();
        self.byte();
        // The server may be gone after its answer to a detach.
        let _ = self.stream.write_all(b"+");
        body
    }

    fn ask(&mut self, body: &str) -> String {
        self.send(body);
        self.receive()
    }

    /// RIP of the selected thread.
    fn rip(&mut self) -> u64 {
        let registers = self.ask("g");
        let bytes: Vec<u8> = (0..8)
            .map(|index| {
                u8::from_str_radix(&registers[256 + index * 2..258 + index * 2], 16).unwrap()
            })
            .collect();
        u64::from_le_bytes(bytes.try_into().unwrap())
    }

    fn detach(mut self) {
        assert_eq!(self.ask("D"), "OK");
        self.server.take().unwrap().join().unwrap().unwrap();
    }
}

/// Runs a vCPU on a thread of its own until it writes to a port, or is kicked.
fn spawn(guest: &Arc<crate::Guest>) -> (Arc<crate::VcpuRemote>, JoinHandle<Option<(u16, u32)>>) {
    let (sender, receiver) = std::sync::mpsc::channel();
    let guest = Arc::clone(guest);
    let thread = thread::spawn(move || {
        let mut vcpu: Vcpu = boot(&guest);
        sender.send(vcpu.remote()).unwrap();
        match vcpu.enter() {
            Ok(crate::Exit::Io { port, data, .. }) => Some((port, u32::from_le_bytes(data))),
            Err(Error::Canceled) => None,
            other => panic!("unexpected {other:?}"),
        }
    });
    (receiver.recv().unwrap(), thread)
}

/// Counts in RBX until the word at [`DATA`] is set, then reports.
fn counting_guest() -> Arc<crate::Guest> {
    program(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top).unwrap();
        a.inc(rbx).unwrap();
        a.mov(ecx, dword_ptr(DATA)).unwrap();
        a.test(ecx, ecx).unwrap();
        a.jz(top).unwrap();
        a.mov(eax, ecx).unwrap();
        a.out(0x10, eax).unwrap();
    })
}

#[test]
fn breaks_in_reads_and_writes_memory_and_detaches() {
    let guest = counting_guest();
    let (_, thread) = spawn(&guest);
    let mut client = Client::connect(&guest);
    assert!(client.ask("?").starts_with('T') || client.ask("?").starts_with('S'));
    let at = client.rip();
    assert!((CODE..CODE + 32).contains(&at), "{at:x}");
    assert_eq!(client.ask(&format!("m{CODE:x},3")), "48ffc3");
    assert!(client.ask("m7000000000,4").starts_with('E'));
    assert_eq!(client.ask(&format!("M{DATA:x},4:2a000000")), "OK");
    client.detach();
    assert_eq!(thread.join().unwrap(), Some((0x10, 42)));
}

#[test]
fn stops_at_breakpoints_and_steps() {
    let guest = counting_guest();
    let (_, thread) = spawn(&guest);
    let mut client = Client::connect(&guest);
    client.ask("?");
    let test = CODE + 3 + 7;
    assert_eq!(client.ask(&format!("Z0,{test:x},1")), "OK");
    for _ in 0..3 {
        let stop = client.ask("vCont;c");
        assert!(stop.contains("swbreak"), "{stop}");
        assert_eq!(client.rip(), test);
        assert_eq!(client.ask(&format!("m{test:x},2")), "85c9", "GDB does not see the breakpoint");
        assert_eq!(client.ask(&format!("z0,{test:x},1")), "OK");
        let stop = client.ask("vCont;s:1");
        assert!(stop.starts_with("T05"), "{stop}");
        assert_eq!(client.rip(), test + 2);
        assert_eq!(client.ask(&format!("Z0,{test:x},1")), "OK");
    }
    client.ask(&format!("M{DATA:x},4:01000000"));
    // Detaching with a breakpoint in place takes it out.
    client.detach();
    assert_eq!(thread.join().unwrap(), Some((0x10, 1)));
}

#[test]
fn a_lost_connection_lets_the_guest_run() {
    let guest = counting_guest();
    let (remote, thread) = spawn(&guest);
    let mut client = Client::connect(&guest);
    client.ask("?");
    assert_eq!(client.ask(&format!("Z0,{CODE:x},1")), "OK");
    let server = client.server.take().unwrap();
    drop(client);
    assert!(server.join().unwrap().is_err());
    let mut byte = [0];
    guest.read_memory(CODE, &mut byte).unwrap();
    assert_eq!(byte, [0x48], "the breakpoint is gone");
    remote.kick();
    assert_eq!(thread.join().unwrap(), None);
}

#[test]
fn a_kick_reaches_a_vcpu_that_the_debugger_holds() {
    let guest = counting_guest();
    let (remote, thread) = spawn(&guest);
    let mut client = Client::connect(&guest);
    client.ask("?");
    client.rip();
    remote.kick();
    assert_eq!(thread.join().unwrap(), None);
    drop(client);
}

#[test]
fn only_one_debugger_at_a_time() {
    let guest = counting_guest();
    let (remote, thread) = spawn(&guest);
    let mut client = Client::connect(&guest);
    client.ask("?");
    let (_stream, other) = UnixStream::pair().unwrap();
    assert!(matches!(gdb::serve_unix(&guest, other), Err(Error::BadState(_))));
    client.detach();
    remote.kick();
    thread.join().unwrap();
}
