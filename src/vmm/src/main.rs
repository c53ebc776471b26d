//! The VMM component as a program of its own.

#[fuchsia_async::run_singlethreaded]
async fn main() -> anyhow::Result<()> {
    vmm::run().await
}
