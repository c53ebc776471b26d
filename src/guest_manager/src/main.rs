//! The guest manager as a program of its own, as Fuchsia packages it.

#[fuchsia_async::run_singlethreaded]
async fn main() -> anyhow::Result<()> {
    guest_manager::run().await
}
