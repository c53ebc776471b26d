//! A host that has run out of what a machine takes: the lifecycle client is told what there was no room for, and once
//! there is room again the same VMM makes and runs machines.
//!
//! Limits are the process's, so there is one test here.
#![cfg(target_os = "linux")]

mod fixture;

use fidl_fuchsia_virtualization::GuestError;
use fixture::{Fixture, POWER_OFF, SPIN, config};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Less than the stack of a thread, and far more than what telling of it takes.
const SLACK: u64 = 1 << 20;

/// A limit of this process until it is dropped.
struct Limit {
    resource: Resource,
    before: Rlimit,
}

impl Limit {
    fn set(resource: Resource, limit: u64) -> Self {
        let before = getrlimit(resource);
        setrlimit(resource, Rlimit { current: Some(limit), ..before }).unwrap();
        Self { resource, before }
    }

    /// No room for another thread.
    fn memory() -> Self {
        let sizes = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages: u64 = sizes.split(' ').next().unwrap().parse().unwrap();
        Self::set(Resource::As, pages * rustix::param::page_size() as u64 + SLACK)
    }

    /// No room for another file, such as memory that two mappings share.
    fn files() -> Self {
        Self::set(Resource::Nofile, 0)
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        setrlimit(self.resource, self.before).expect("what was allowed before");
    }
}

#[fuchsia_async::run_singlethreaded(test)]
async fn a_host_without_room_says_for_what() {
    let fixture = Fixture::new();

    // The thread that hears of devices' signals.
    let spin = config(SPIN);
    let limit = Limit::memory();
    assert_eq!(fixture.lifecycle.create(spin).await.unwrap(), Err(GuestError::InternalError));
    drop(limit);

    // The first vCPU and its code memory.
    fixture.create(SPIN).await;
    let limit = Limit::files();
    assert_eq!(fixture.run().await, Err(GuestError::VcpuStartFailure));
    drop(limit);
    assert_eq!(fixture.run().await, Err(GuestError::NotCreated));

    fixture.create(POWER_OFF).await;
    assert_eq!(fixture.run().await, Ok(()));
}
