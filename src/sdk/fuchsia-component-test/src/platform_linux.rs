//! A test on Linux: a test manager in its own process stands for Fuchsia's.

use crate::RealmBuilderParams;
use crate::error::Error;
use component_manager::realm_builder::TestManager;
use fidl::endpoints::{ClientEnd, create_endpoints};
use fidl_fuchsia_component as fcomponent;
use fidl_fuchsia_component_test as ftest;
use fidl_fuchsia_io as fio;

/// What the test has around it.
#[derive(Default)]
pub(crate) struct Params(TestManager);

impl RealmBuilderParams {
    /// Gives the realm what this test manager has. Without one, a realm has only local children and the log.
    #[must_use]
    pub fn test_manager(mut self, manager: TestManager) -> Self {
        self.platform = Params(manager);
        self
    }
}

pub(crate) struct Connections {
    pub(crate) factory: ftest::RealmBuilderFactoryProxy,
    pub(crate) realm: fcomponent::RealmProxy,
    pub(crate) package: ClientEnd<fio::DirectoryMarker>,
}

#[expect(clippy::unused_async, reason = "on Fuchsia it waits")]
pub(crate) async fn connect(Params(manager): Params) -> Result<Connections, Error> {
    // The test manager knows the test's package; nobody looks into this directory.
    let (package, _server) = create_endpoints::<fio::DirectoryMarker>();
    Ok(Connections { factory: manager.realm_builder_factory(), realm: manager.realm(), package })
}
