//! What can go wrong with a realm.

use fidl_fuchsia_component as fcomponent;
use fidl_fuchsia_component_test as ftest;
use fuchsia_zircon as zx;

/// Why a realm cannot be built or destroyed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A request or its answer did not get through.
    #[error("the realm builder cannot be asked: {0}")]
    FidlError(#[from] fidl::Error),
    /// The realm builder server refuses.
    #[error("the realm builder refuses: {0:?}")]
    ServerError(ftest::RealmBuilderError),
    /// The test has no realm builder server, or no package: its manifest lacks the shard.
    #[error("the realm builder server cannot be reached")]
    ConnectToServer(#[source] anyhow::Error),
    /// There is no name for the realm.
    #[error("no name for the realm: {0}")]
    Name(zx::Status),
    /// A route without [`Route::from`](crate::Route::from).
    #[error("the route begins nowhere")]
    MissingSource,
    /// The realm's root was not made.
    #[error("the realm cannot be made: {0:?}")]
    FailedToCreateChild(fcomponent::Error),
    /// What the realm's root exposes cannot be reached.
    #[error("what the realm exposes cannot be opened: {0:?}")]
    FailedToOpenExposedDir(fcomponent::Error),
    /// The realm's root was not destroyed.
    #[error("the realm cannot be destroyed: {0:?}")]
    FailedToDestroyChild(fcomponent::Error),
}

impl From<ftest::RealmBuilderError> for Error {
    fn from(error: ftest::RealmBuilderError) -> Self {
        Self::ServerError(error)
    }
}
