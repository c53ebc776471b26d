//! A component that leaves everything to its next run, and in that serves as echo does: it takes back the outgoing directory
//! with the requests in it, and the dictionary, which it knows by a signal.

use crate::echo;
use fidl::endpoints::{ControlHandle as _, RequestStream as _, ServerEnd};
use fidl_fuchsia_process_lifecycle as flifecycle;
use fuchsia_zircon::processargs::{HandleType, take_startup_handle};
use fuchsia_zircon::{self as zx, AsHandleRef as _, Peered as _};

const MARK: zx::Signals = zx::Signals::USER_3;

pub(crate) async fn run() -> anyhow::Result<()> {
    if let Some(dictionary) = take_startup_handle(HandleType::EscrowedDictionary.into()) {
        let dictionary = zx::EventPair::from(dictionary);
        dictionary.wait_handle(MARK, zx::Time::INFINITE_PAST)?;
        return echo::run().await;
    }
    let handle = |handle: HandleType| {
        take_startup_handle(handle.into()).ok_or_else(|| anyhow::anyhow!("no {handle:?}"))
    };
    let lifecycle =
        ServerEnd::<flifecycle::LifecycleMarker>::new(handle(HandleType::Lifecycle)?.into());
    let (ours, dictionary) = zx::EventPair::create();
    ours.signal_peer(zx::Signals::NONE, MARK)?;
    let control = lifecycle.into_stream().control_handle();
    control.send_on_escrow(flifecycle::LifecycleOnEscrowRequest {
        outgoing_dir: Some(ServerEnd::new(handle(HandleType::DirectoryRequest)?.into())),
        escrowed_dictionary_handle: Some(dictionary),
        ..Default::default()
    })?;
    control.shutdown();
    Ok(())
}
