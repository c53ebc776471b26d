//! A guest and the person at its console.

use crate::image::Image;
use fuchsia_async::{self as fasync, TimeoutExt as _};
use fuchsia_zircon::{self as zx, HandleBased as _};
use futures::channel::oneshot;
use futures::future::{Either, poll_fn, select};
use std::sync::Arc;
use vmm::arch::Kernel;
use vmm::serial::SerialPort;
use vmm::vcpu::Outcome;
use vmm::vm::{Vm, VmBuilder, VmConfig};

/// Far beyond what any step takes: only a guest that hangs meets it.
const PATIENCE_SECONDS: i64 = 240;
const PROMPT: &str = "guest# ";

/// A running guest and what its console said.
pub(crate) struct Session {
    pub(crate) vm: Vm,
    /// For a debugger to attach to.
    pub(crate) guest: zx::Guest,
    serial: Arc<dyn SerialPort>,
    outcome: Option<oneshot::Receiver<Outcome>>,
    transcript: String,
    /// End of what was looked at.
    seen: usize,
}

impl Session {
    /// Boots `image` with `parameters` added to the kernel's command line.
    pub(crate) fn boot(image: &Image, cpus: u8, parameters: &str) -> Session {
        use zx::sys::{ZX_RSRC_SYSTEM_HYPERVISOR_BASE, ZX_RSRC_SYSTEM_VMEX_BASE};
        let resource = |base| zx::linux::system_resource(base).unwrap();
        let (hypervisor, vmex) =
            (resource(ZX_RSRC_SYSTEM_HYPERVISOR_BASE), resource(ZX_RSRC_SYSTEM_VMEX_BASE));
        let config = VmConfig { cpus, memory: 512 << 20 };
        let builder = VmBuilder::new(&hypervisor, &vmex, config).unwrap();
        builder.install_traps().unwrap();
        let guest = builder.guest().duplicate_handle(zx::Rights::SAME_RIGHTS).unwrap();
        let command_line = format!("console=ttyS0 quiet panic=-1 guest.modules=off {parameters}");
        let entry = builder
            .load(Kernel::Linux {
                image: &image.kernel,
                ramdisk: Some(&image.ramdisk),
                device_tree: None,
                command_line: &command_line,
            })
            .unwrap();
        let mut vm = builder.build(entry);
        let outcome = Some(vm.start());
        let serial = vm.serial().clone();
        Session { vm, guest, serial, outcome, transcript: String::new(), seen: 0 }
    }

    fn tail(&self) -> &str {
        let start = self.transcript.len().saturating_sub(4000);
        self.transcript.get(start..).unwrap_or(&self.transcript)
    }

    /// Waits for `text` on the console; gives what came before it.
    pub(crate) async fn expect(&mut self, text: &str) -> String {
        loop {
            if let Some(at) = self.transcript[self.seen..].find(text) {
                let before = self.transcript[self.seen..self.seen + at].to_owned();
                self.seen += at + text.len();
                return before;
            }
            let serial = self.serial.clone();
            let output = poll_fn(move |cx| serial.poll_output(cx));
            let deadline = fasync::Time::after(zx::Duration::from_seconds(PATIENCE_SECONDS));
            let output = output.on_timeout(deadline, Vec::new);
            let outcome = self.outcome.as_mut().expect("the guest runs");
            let bytes = match select(Box::pin(output), outcome).await {
                Either::Left((bytes, _)) => bytes,
                Either::Right((outcome, _)) => {
                    panic!("{outcome:?} before {text:?}:\n{}", self.tail())
                }
            };
            assert!(!bytes.is_empty(), "no {text:?} from the guest:\n{}", self.tail());
            // The guest's output is ASCII; what is not shows as a replacement character.
            self.transcript.push_str(&String::from_utf8_lossy(&bytes));
        }
    }

    /// Types a line at the prompt.
    pub(crate) async fn type_line(&mut self, line: &str) {
        self.expect(PROMPT).await;
        let line = format!("{line}\n");
        let mut rest = line.as_bytes();
        while !rest.is_empty() {
            let taken = poll_fn(|cx| self.serial.poll_input(cx, rest)).await;
            rest = &rest[taken..];
        }
    }

    /// Runs a script of /data and compares its lines of output.
    pub(crate) async fn check(&mut self, script: &str, expected: &str) {
        self.type_line(&format!("sh /data/{script}")).await;
        self.expect(&format!("/data/{script}\r\n")).await;
        for line in expected.lines() {
            let found = self.expect("\r\n").await;
            assert_eq!(found, line, "{script}:\n{}", self.tail());
        }
    }

    pub(crate) async fn power_off(mut self) {
        self.type_line("exit").await;
        let outcome = self.outcome.take().expect("the guest runs");
        let deadline = fasync::Time::after(zx::Duration::from_seconds(PATIENCE_SECONDS));
        let outcome =
            outcome.on_timeout(deadline, || panic!("no power-off:\n{}", self.tail())).await;
        assert_eq!(outcome, Ok(Outcome::PowerOff));
        drop(self.vm);
    }
}
