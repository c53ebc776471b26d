//! The loader service of a component (`fuchsia.ldsvc.Loader`): its dynamic linker gets shared libraries from the
//! component's own package.

use fidl::endpoints::{ClientEnd, create_proxy, create_request_stream};
use fidl_fuchsia_io as fio;
use fidl_fuchsia_ldsvc as fldsvc;
use fuchsia_async as fasync;
use fuchsia_zircon as zx;
use futures::TryStreamExt as _;
use tracing::warn;

/// Where libraries are in a package.
const LIBRARIES: &str = "lib";

/// Which variant of the libraries is asked for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Variant {
    directory: Option<String>,
    /// The common libraries will not do.
    only: bool,
}

impl Variant {
    /// The variant that a configuration names, such as `asan` or `asan!`.
    fn new(config: &str) -> Result<Self, zx::Status> {
        let (directory, only) = match config.strip_suffix('!') {
            Some(directory) => (directory, true),
            None => (config, false),
        };
        if is_name(directory) {
            Ok(Self { directory: Some(directory.to_owned()), only })
        } else {
            Err(zx::Status::INVALID_ARGS)
        }
    }

    /// The paths at which a library may be, best first.
    fn paths(&self, name: &str) -> Vec<String> {
        let variant =
            self.directory.iter().map(|directory| format!("{LIBRARIES}/{directory}/{name}"));
        let common = (!self.only).then(|| format!("{LIBRARIES}/{name}"));
        variant.chain(common).collect()
    }
}

/// One component of a path.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text != "." && text != ".." && !text.contains(['/', '\0'])
}

/// Serves the libraries of `package` for as long as somebody asks.
pub(super) fn start(package: fio::DirectoryProxy) -> ClientEnd<fldsvc::LoaderMarker> {
    let (client, requests) = create_request_stream::<fldsvc::LoaderMarker>();
    fasync::Task::local(serve(package, requests)).detach();
    client
}

async fn serve(package: fio::DirectoryProxy, mut requests: fldsvc::LoaderRequestStream) {
    let mut variant = Variant::default();
    loop {
        let answered = match requests.try_next().await {
            Ok(Some(fldsvc::LoaderRequest::LoadObject { object_name, responder })) => {
                match load(&package, &variant, &object_name).await {
                    Ok(vmo) => responder.send(zx::Status::OK.into_raw(), Some(vmo)),
                    Err(status) => responder.send(status.into_raw(), None),
                }
            }
            Ok(Some(fldsvc::LoaderRequest::Config { config, responder })) => {
                let status = match Variant::new(&config) {
                    Ok(new) => {
                        variant = new;
                        zx::Status::OK
                    }
                    Err(status) => status,
                };
                responder.send(status.into_raw())
            }
            Ok(Some(fldsvc::LoaderRequest::Clone { loader, responder })) => {
                let another = serve(Clone::clone(&package), loader.into_stream());
                fasync::Task::local(another).detach();
                responder.send(zx::Status::OK.into_raw())
            }
            Ok(Some(fldsvc::LoaderRequest::Done { .. }) | None) => return,
            Err(e) => Err(e),
        };
        if let Err(e) = answered {
            warn!("A process broke the loader's protocol: {e}");
            return;
        }
    }
}

async fn load(
    package: &fio::DirectoryProxy,
    variant: &Variant,
    name: &str,
) -> Result<zx::Vmo, zx::Status> {
    if !is_name(name) {
        return Err(zx::Status::INVALID_ARGS);
    }
    let mut result = Err(zx::Status::NOT_FOUND);
    for path in variant.paths(name) {
        result = load_executable(package, &path).await;
        if result.is_ok() {
            break;
        }
    }
    result
}

/// A file as memory that can be executed.
pub(super) async fn load_executable(
    package: &fio::DirectoryProxy,
    path: &str,
) -> Result<zx::Vmo, zx::Status> {
    let closed = |e| match e {
        fidl::Error::ClientChannelClosed { status, .. } => status,
        e => {
            warn!("{path} in the package cannot be read: {e}");
            zx::Status::IO
        }
    };
    let (file, server) = create_proxy::<fio::FileMarker>();
    let flags = fio::PERM_READABLE | fio::PERM_EXECUTABLE | fio::Flags::PROTOCOL_FILE;
    package.open(path, flags, &fio::Options::default(), server.into_channel()).map_err(closed)?;
    let memory = fio::VmoFlags::READ | fio::VmoFlags::EXECUTE | fio::VmoFlags::PRIVATE_CLONE;
    file.get_backing_memory(memory).await.map_err(closed)?.map_err(zx::Status::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fidl::endpoints::create_proxy;
    use vfs::directory::simple;
    use vfs::execution_scope::ExecutionScope;

    #[test]
    fn variants_are_directories_before_or_instead_of_the_common_one() {
        assert_eq!(Variant::default().paths("libc.so"), ["lib/libc.so"]);
        let asan = Variant::new("asan").unwrap();
        assert_eq!(asan.paths("libc.so"), ["lib/asan/libc.so", "lib/libc.so"]);
        assert_eq!(Variant::new("asan!").unwrap().paths("libc.so"), ["lib/asan/libc.so"]);
        for config in ["", "!", "..", "a/b"] {
            assert_eq!(Variant::new(config), Err(zx::Status::INVALID_ARGS), "{config:?}");
        }
    }

    #[fasync::run_singlethreaded(test)]
    async fn the_linker_is_answered_and_may_clone_its_connection() {
        let (package, server) = create_proxy::<fio::DirectoryMarker>();
        vfs::directory::serve(simple(), &ExecutionScope::new(), fio::RX_STAR_DIR, server);
        let loader = start(package).into_proxy();
        let (second, server) = create_proxy::<fldsvc::LoaderMarker>();
        assert_eq!(loader.clone(server).await.unwrap(), zx::Status::OK.into_raw());
        loader.done().unwrap();
        for (name, status) in
            [("libmissing.so", zx::Status::NOT_FOUND), ("../bin/vmm", zx::Status::INVALID_ARGS)]
        {
            let (answer, library) = second.load_object(name).await.unwrap();
            assert_eq!((answer, library.is_none()), (status.into_raw(), true), "{name}");
        }
        assert_eq!(second.config("asan!").await.unwrap(), zx::Status::OK.into_raw());
        assert_eq!(second.config("..").await.unwrap(), zx::Status::INVALID_ARGS.into_raw());
    }
}
