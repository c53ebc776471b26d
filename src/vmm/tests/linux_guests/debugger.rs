//! The stock gdb on the kernel of a running guest: a breakpoint at a symbol, registers, memory through the guest's page
//! tables, single steps, break-in and the vCPU's counters.

use crate::image::{CLOUD, run, work_directory};
use crate::session::Session;
use fuchsia_async as fasync;
use fuchsia_zircon as zx;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

/// A function that opening a file calls, and a text.
const SYMBOLS: [&str; 2] = ["do_filp_open", "linux_banner"];

/// An object file with the kernel's symbols at their addresses, which Debian's kernel image comes without.
fn write_symbols(addresses: &[u64], output: &Path) {
    let (mut source, mut linker) = (String::new(), Command::new("ld"));
    for (name, address) in SYMBOLS.into_iter().zip(addresses) {
        writeln!(source, ".section .symbol.{name}, \"ax\"\n.globl {name}\n.type {name}, @function\n{name}: .skip 64")
            .unwrap();
        linker.arg(format!("--section-start=.symbol.{name}={address:#x}"));
    }
    let (assembly, object) = (output.with_extension("s"), output.with_extension("o"));
    fs::write(&assembly, source).unwrap();
    run(Command::new("as").arg("-o").arg(&object).arg(&assembly));
    run(linker.args(["-e", "0", "-o"]).arg(output).arg(&object));
}

/// Breaks in half a second after the last `continue`.
const SCRIPT: &str = r#"
set pagination off
set confirm off
set architecture i386:x86-64
set remotetimeout 120
target remote SOCKET
break *do_filp_open
continue
printf "at the symbol: %d\n", $rip == (unsigned long) &do_filp_open
info symbol $rip
printf "banner: %.13s\n", (char *) &linux_banner
printf "kernel stack: %d\n", *(unsigned long *) $rsp > 0xffffffff80000000
set $before = $rip
stepi
# An interrupt that waited comes in between, so where a step leads is not said.
printf "stepped: %d\n", $rip != $before
stepi
delete
python
import os, signal, threading
def interrupt(event):
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
gdb.events.cont.connect(interrupt)
end
continue
printf "broke in: %d\n", $cs != 0
monitor stats
detach
"#;

#[test]
fn gdb_debugs_the_kernel() {
    let directory = work_directory("gdb");
    let socket = directory.join("socket");
    // Of an earlier run.
    let _ = fs::remove_file(&socket);
    fasync::LocalExecutor::new().run_singlethreaded(async {
        let mut session = Session::boot(&CLOUD, 1, "nokaslr");
        session.expect("on 1 CPUs\r\n").await;
        let mut addresses = Vec::new();
        for name in SYMBOLS {
            session.type_line(&format!("grep -w {name} /proc/kallsyms | head -n 1")).await;
            session.expect("-n 1\r\n").await;
            let line = session.expect("\r\n").await;
            let address = line.split(' ').next().unwrap();
            addresses.push(u64::from_str_radix(address, 16).unwrap());
        }
        session.type_line("while :; do cat /proc/version > /dev/null; done &").await;
        let symbols = directory.join("symbols");
        write_symbols(&addresses, &symbols);
        let script = directory.join("script");
        fs::write(&script, SCRIPT.replace("SOCKET", socket.to_str().unwrap())).unwrap();
        let listener = UnixListener::bind(&socket).unwrap();
        std::thread::scope(|scope| {
            let guest = &session.guest;
            let server = scope.spawn(move || {
                let (connection, _) = listener.accept().unwrap();
                zx::linux::debug_guest(guest, connection)
            });
            let output = Command::new("gdb")
                .args(["-nx", "-batch", "-x"])
                .arg(&script)
                .arg(&symbols)
                .output()
                .expect("gdb is installed");
            assert_eq!(server.join().unwrap(), Ok(()), "{output:?}");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let errors = String::from_utf8_lossy(&output.stderr);
            for line in [
                "at the symbol: 1",
                "do_filp_open in section",
                "banner: Linux version",
                "kernel stack: 1",
                "stepped: 1",
                "received signal SIGINT",
                "broke in: 1",
                "blocks:",
            ] {
                assert!(
                    text.contains(line) || errors.contains(line),
                    "no {line:?} in\n{text}\n{errors}"
                );
            }
        });
        // The guest runs on without its debugger.
        session.type_line("kill $!").await;
        session.check("forks", "forks: 1000 ran, 1 counted").await;
        session.power_off().await;
    });
}
