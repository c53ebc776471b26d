//! A guest that runs, as the commands that need one reach it, and what a person is told where it does not.

use crate::args::GuestType;
use fidl::endpoints::{ProtocolMarker, ServerEnd, create_proxy};
use fidl_fuchsia_virtualization as fvirt;
use serde::{Serialize, Serializer};
use std::fmt;

/// The guest does not run. As JSON it is its own name, whichever guest it is.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(crate) struct NotRunning(pub(crate) GuestType);

impl fmt::Display for NotRunning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "The guest {0} is not running; `guest launch {0}` starts it", self.0)
    }
}

impl Serialize for NotRunning {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("NotRunning")
    }
}

/// Why something of a guest's cannot be reached.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unreachable {
    /// The guest does not run.
    NotRunning(NotRunning),
    /// It runs without the device.
    NoDevice,
    /// The manager or the VMM broke down.
    Broken(String),
}

impl From<fidl::Error> for Unreachable {
    fn from(error: fidl::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

/// Connects to the guest and to the controller of one of its devices, which `get` asks it for.
pub(crate) async fn connect<P: ProtocolMarker>(
    guest_type: GuestType,
    manager: &fvirt::GuestManagerProxy,
    get: impl AsyncFnOnce(
        &fvirt::GuestProxy,
        ServerEnd<P>,
    ) -> Result<Result<(), fvirt::GuestError>, fidl::Error>,
) -> Result<(fvirt::GuestProxy, P::Proxy), Unreachable> {
    let (guest, server) = create_proxy::<fvirt::GuestMarker>();
    let connected = manager.connect(server).await?;
    connected.map_err(|_| Unreachable::NotRunning(NotRunning(guest_type)))?;
    let (controller, server) = create_proxy::<P>();
    match get(&guest, server).await? {
        Ok(()) => Ok((guest, controller)),
        Err(fvirt::GuestError::DeviceNotPresent) => Err(Unreachable::NoDevice),
        Err(error) => Err(Unreachable::Broken(format!("{error:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fidl::endpoints::create_proxy_and_stream;
    use fuchsia_async as fasync;
    use futures::StreamExt as _;

    #[test]
    fn it_is_named_for_a_person_and_not_for_a_program() {
        let outcome = NotRunning(GuestType::Zircon);
        assert_eq!(
            outcome.to_string(),
            "The guest zircon is not running; `guest launch zircon` starts it"
        );
        assert_eq!(serde_json::to_string(&outcome).unwrap(), r#""NotRunning""#);
    }

    /// What connecting to the balloon comes to, with a guest that answers so, or none.
    async fn connecting(answer: Option<Result<(), fvirt::GuestError>>) -> Option<Unreachable> {
        let (manager, mut requests) = create_proxy_and_stream::<fvirt::GuestManagerMarker>();
        let serve = async {
            let Some(Ok(fvirt::GuestManagerRequest::Connect { controller, responder })) =
                requests.next().await
            else {
                panic!("no connection");
            };
            let Some(answer) = answer else {
                responder.send(Err(fvirt::GuestManagerError::NotRunning)).unwrap();
                return;
            };
            responder.send(Ok(())).unwrap();
            let mut requests = controller.into_stream();
            let Some(Ok(fvirt::GuestRequest::GetBalloonController { responder, .. })) =
                requests.next().await
            else {
                panic!("not asked for its balloon");
            };
            responder.send(answer).unwrap();
        };
        let connect = connect::<fvirt::BalloonControllerMarker>(
            GuestType::Debian,
            &manager,
            async |guest, server| guest.get_balloon_controller(server).await,
        );
        futures::join!(connect, serve).0.err()
    }

    #[fasync::run_singlethreaded(test)]
    async fn each_way_to_miss_a_device_is_told_apart() {
        assert_eq!(connecting(Some(Ok(()))).await, None);
        let debian = NotRunning(GuestType::Debian);
        assert_eq!(connecting(None).await, Some(Unreachable::NotRunning(debian)));
        let absent = Err(fvirt::GuestError::DeviceNotPresent);
        assert_eq!(connecting(Some(absent)).await, Some(Unreachable::NoDevice));
        let failed = Err(fvirt::GuestError::InternalError);
        let broken = connecting(Some(failed)).await;
        assert_eq!(broken, Some(Unreachable::Broken("InternalError".to_owned())));
    }
}
