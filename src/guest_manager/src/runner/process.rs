//! Making the process: where the system has `fuchsia.process.Launcher`, as Fuchsia does, through that; where processes
//! are made by a system call, as on Linux, by that.

use super::loader;
use fidl::endpoints::ClientEnd;
use fidl_fuchsia_io as fio;
use fidl_fuchsia_process as fprocess;
use fuchsia_component::client::connect_to_protocol;
use fuchsia_zircon::{self as zx, HandleBased as _, ProcessBuilder};
use tracing::error;

/// `PA_LDSVC_LOADER` (zircon/processargs.h): where the dynamic linker gets libraries from.
const LOADER: u32 = 0x10;
/// `PA_JOB_DEFAULT`: the job in which the process may make others.
const DEFAULT_JOB: u32 = 0x03;
/// How many handles go into one message, of the 64 that a channel takes.
const HANDLES_PER_MESSAGE: usize = 60;

/// All that a process is made of.
pub(super) struct NewProcess {
    /// The program's path in the package; the process is named after it.
    pub(super) binary: String,
    /// The program in memory.
    pub(super) executable: zx::Vmo,
    /// The package, for libraries.
    pub(super) package: fio::DirectoryProxy,
    /// The arguments without the program's name.
    pub(super) arguments: Vec<String>,
    /// The environment, each `NAME=value`.
    pub(super) environment: Vec<String>,
    /// The namespace, by path.
    pub(super) namespace: Vec<(String, ClientEnd<fio::DirectoryMarker>)>,
    /// Startup handles, by `PA_HND` number.
    pub(super) handles: Vec<(u32, zx::Handle)>,
}

/// The system's service that makes processes, where it has one.
pub(super) fn system_launcher() -> Option<fprocess::LauncherProxy> {
    if !cfg!(target_os = "fuchsia") {
        return None;
    }
    let launcher = connect_to_protocol::<fprocess::LauncherMarker>();
    launcher.inspect_err(|e| error!("There is no service that makes processes: {e:#}")).ok()
}

impl NewProcess {
    /// Makes the process and starts it in `job`, through `launcher` if there is one.
    pub(super) async fn start(
        self,
        job: &zx::Job,
        launcher: Option<&fprocess::LauncherProxy>,
    ) -> Result<zx::Process, zx::Status> {
        match launcher {
            Some(launcher) => self.launch(job, launcher).await,
            None => self.spawn(job),
        }
    }

    /// The kernel keeps the first 31 bytes of a name.
    fn name(&self) -> &str {
        let name = self.binary.rsplit('/').next().unwrap_or_default();
        &name[..name.floor_char_boundary(fprocess::MAX_PROCESS_NAME as usize - 1)]
    }

    fn spawn(self, job: &zx::Job) -> Result<zx::Process, zx::Status> {
        let name = self.name().to_owned();
        let mut builder = ProcessBuilder::new(&name, job, self.executable);
        builder.add_argument(&self.binary);
        for argument in &self.arguments {
            builder.add_argument(argument);
        }
        for variable in &self.environment {
            builder.add_environment_variable(variable);
        }
        for (path, directory) in self.namespace {
            builder.add_namespace_entry(&path, directory.into_channel());
        }
        for (id, handle) in self.handles {
            builder.add_raw_handle(id, handle);
        }
        builder.spawn()
    }

    async fn launch(
        mut self,
        job: &zx::Job,
        launcher: &fprocess::LauncherProxy,
    ) -> Result<zx::Process, zx::Status> {
        let loader = loader::start(Clone::clone(&self.package));
        self.handles.push((LOADER, loader.into_channel().into_handle()));
        let own_job = job.duplicate_handle(zx::Rights::SAME_RIGHTS)?;
        self.handles.push((DEFAULT_JOB, own_job.into_handle()));
        let name = self.name().to_owned();
        let executable = self.add_to(launcher).map_err(|error| unreachable_service(&error))?;
        let job = job.duplicate_handle(zx::Rights::SAME_RIGHTS)?;
        let info = fprocess::LaunchInfo { executable, job, name };
        let (status, process) =
            launcher.launch(info).await.map_err(|error| unreachable_service(&error))?;
        zx::Status::ok(status)?;
        process.ok_or(zx::Status::INTERNAL)
    }

    /// Sends everything but the program itself, which it returns.
    fn add_to(self, launcher: &fprocess::LauncherProxy) -> Result<zx::Vmo, fidl::Error> {
        let words = |words: Vec<String>| -> Vec<Vec<u8>> {
            words.into_iter().map(String::into_bytes).collect()
        };
        let mut arguments = vec![self.binary];
        arguments.extend(self.arguments);
        launcher.add_args(&words(arguments))?;
        launcher.add_environs(&words(self.environment))?;
        let mut names = self.namespace.into_iter().peekable();
        while names.peek().is_some() {
            let some = names.by_ref().take(HANDLES_PER_MESSAGE);
            let some = some.map(|(path, directory)| fprocess::NameInfo { path, directory });
            launcher.add_names(some.collect())?;
        }
        let mut handles = self.handles.into_iter().peekable();
        while handles.peek().is_some() {
            let some = handles.by_ref().take(HANDLES_PER_MESSAGE);
            let some = some.map(|(id, handle)| fprocess::HandleInfo { handle, id });
            launcher.add_handles(some.collect())?;
        }
        Ok(self.executable)
    }
}

/// A launcher that is gone is a system that can make no processes.
fn unreachable_service(error: &fidl::Error) -> zx::Status {
    error!("The service that makes processes does not answer: {error}");
    zx::Status::UNAVAILABLE
}

#[cfg(test)]
mod tests {
    use super::*;
    use fidl::endpoints::{create_endpoints, create_proxy, create_proxy_and_stream};
    use fuchsia_async as fasync;
    use futures::StreamExt as _;

    fn new_process(binary: &str, handles: u32) -> NewProcess {
        NewProcess {
            binary: binary.to_owned(),
            executable: zx::Vmo::create(4096).unwrap(),
            package: create_proxy::<fio::DirectoryMarker>().0,
            arguments: vec!["-v".to_owned()],
            environment: vec!["A=b".to_owned()],
            namespace: vec![("/svc".to_owned(), create_endpoints::<fio::DirectoryMarker>().0)],
            handles: (0..handles).map(|n| (n << 16 | 0xf0, zx::Event::create().into())).collect(),
        }
    }

    /// A launcher that gathers what it is given and answers with this status.
    async fn gather(
        mut stream: fprocess::LauncherRequestStream,
        status: zx::Status,
    ) -> (Vec<String>, Vec<u32>, String) {
        let (mut words, mut handles) = (Vec::new(), Vec::new());
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        loop {
            match stream.next().await.unwrap().unwrap() {
                fprocess::LauncherRequest::AddArgs { args, .. } => {
                    words.extend(args.into_iter().map(text));
                }
                fprocess::LauncherRequest::AddEnvirons { environ, .. } => {
                    words.extend(environ.into_iter().map(text));
                }
                fprocess::LauncherRequest::AddNames { names, .. } => {
                    words.extend(names.into_iter().map(|name| name.path));
                }
                fprocess::LauncherRequest::AddHandles { handles: some, .. } => {
                    handles.extend(some.into_iter().map(|info| info.id));
                }
                fprocess::LauncherRequest::Launch { info, responder } => {
                    responder.send(status.into_raw(), None).unwrap();
                    return (words, handles, info.name);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[fasync::run_singlethreaded(test)]
    async fn a_launcher_gets_everything_before_it_launches() {
        let (launcher, stream) = create_proxy_and_stream::<fprocess::LauncherMarker>();
        let job = zx::Job::default_job().create_child_job().unwrap();
        // More handles than one message takes.
        let started = new_process("bin/vmm", 100).start(&job, Some(&launcher));
        let gathered = gather(stream, zx::Status::NO_MEMORY);
        let (started, (words, handles, name)) = futures::join!(started, gathered);
        assert_eq!(started.err(), Some(zx::Status::NO_MEMORY));
        assert_eq!(words, ["bin/vmm", "-v", "A=b", "/svc"]);
        assert_eq!(handles.len(), 102);
        assert!(handles.contains(&LOADER) && handles.contains(&DEFAULT_JOB));
        assert_eq!(name, "vmm");
    }

    #[fasync::run_singlethreaded(test)]
    async fn a_launcher_that_is_gone_makes_no_process() {
        let (launcher, stream) = create_proxy_and_stream::<fprocess::LauncherMarker>();
        drop(stream);
        let job = zx::Job::default_job().create_child_job().unwrap();
        let started = new_process("bin/vmm", 1).start(&job, Some(&launcher)).await;
        assert_eq!(started.err(), Some(zx::Status::UNAVAILABLE));
    }

    #[fasync::run_singlethreaded(test)]
    async fn names_are_what_the_kernel_keeps() {
        let long = format!("bin/{}ä", "x".repeat(30));
        assert_eq!(new_process(&long, 0).name(), "x".repeat(30));
    }
}
