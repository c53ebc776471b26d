//! The component's process on Fuchsia.

fn main() -> anyhow::Result<()> {
    fuchsia_async::LocalExecutor::new().run_singlethreaded(virtio_net::run())
}
