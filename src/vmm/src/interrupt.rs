//! Interrupts between devices, the interrupt controller and vCPUs: the traits that keep each ignorant of the others.

/// Where an interrupt controller delivers: the guest's vCPUs.
pub trait InterruptSink: Send + Sync {
    /// Queues interrupt `vector` on vCPU `cpu`. A vCPU that does not run yet, or does not exist, drops it.
    fn interrupt(&self, cpu: u32, vector: u8);

    /// How many vCPUs the machine has.
    fn cpu_count(&self) -> u32;
}

/// The platform's interrupt controller as devices see it.
pub trait InterruptController: Send + Sync {
    /// Drives interrupt input `irq` (x64: the IO-APIC pin) high or low.
    fn set_irq(&self, irq: u32, asserted: bool);

    /// Delivers a message-signalled interrupt: a write of `data` to `address`.
    fn signal_msi(&self, address: u64, data: u32);
}

/// A request of the guest about its own power, made through a platform device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerRequest {
    /// Turn the machine off (ACPI S5).
    Off,
    /// Reset the machine.
    Reset,
}

/// Takes the guest's power requests.
pub trait PowerControl: Send + Sync {
    /// Records `request`; the machine stops at the requesting vCPU's next exit.
    fn request(&self, request: PowerRequest);
}
