//! A test on Fuchsia: its manifest's shard gives it the realm builder server as a child, and the collection.

use crate::error::Error;
use fidl::endpoints::{ClientEnd, Proxy as _};
use fidl_fuchsia_component as fcomponent;
use fidl_fuchsia_component_test as ftest;
use fidl_fuchsia_io as fio;
use fuchsia_component::client;
use fuchsia_zircon as zx;

/// The child that serves `fuchsia.component.test.RealmBuilderFactory`.
const SERVER: &str = "realm_builder_server";

/// The namespace has it all.
#[derive(Default)]
pub(crate) struct Params;

pub(crate) struct Connections {
    pub(crate) factory: ftest::RealmBuilderFactoryProxy,
    pub(crate) realm: fcomponent::RealmProxy,
    pub(crate) package: ClientEnd<fio::DirectoryMarker>,
}

pub(crate) async fn connect(Params: Params) -> Result<Connections, Error> {
    let realm = client::realm().map_err(Error::ConnectToServer)?;
    let factory =
        client::connect_to_childs_protocol::<ftest::RealmBuilderFactoryMarker>(SERVER, None)
            .await
            .map_err(Error::ConnectToServer)?;
    let rights = fio::PERM_READABLE | fio::PERM_EXECUTABLE;
    let package = fuchsia_fs::directory::open_in_namespace("/pkg", rights)
        .map_err(|error| Error::ConnectToServer(error.into()))?;
    let package =
        package.into_channel().map_err(|_| Error::ConnectToServer(zx::Status::BAD_STATE.into()))?;
    Ok(Connections { factory, realm, package: ClientEnd::new(package.into_zx_channel()) })
}
