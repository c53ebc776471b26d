use crate::processargs::{HandleInfo, HandleType};
use crate::{AsHandleRef, Channel, Handle, HandleBased, Job, Process, Status, Vmo, sys};

/// Makes a process: a program in memory, its arguments, and the handles that it starts with.
///
/// Shaped like Fuchsia's crate `process_builder`, as far as runners here need it.
#[derive(Debug)]
pub struct ProcessBuilder<'a> {
    name: String,
    job: &'a Job,
    executable: Vmo,
    arguments: Vec<String>,
    environment: Vec<String>,
    handles: Vec<(u32, Handle)>,
    namespace: Vec<(String, Channel)>,
}

impl<'a> ProcessBuilder<'a> {
    /// A process to be made in `job`, from an ELF file that may be executed.
    #[must_use]
    pub fn new(name: &str, job: &'a Job, executable: Vmo) -> Self {
        Self {
            name: name.to_owned(),
            job,
            executable,
            arguments: Vec::new(),
            environment: Vec::new(),
            handles: Vec::new(),
            namespace: Vec::new(),
        }
    }

    /// Adds an argument; the first is the program's own name.
    pub fn add_argument(&mut self, argument: &str) {
        self.arguments.push(argument.to_owned());
    }

    /// Adds `NAME=value` to the environment, which is otherwise empty.
    pub fn add_environment_variable(&mut self, variable: &str) {
        self.environment.push(variable.to_owned());
    }

    /// Adds a startup handle.
    pub fn add_handle(&mut self, info: HandleInfo, handle: Handle) {
        self.add_raw_handle(info.as_raw(), handle);
    }

    /// Adds a startup handle by its `PA_HND` number, which may be one that this crate has no name for.
    pub fn add_raw_handle(&mut self, id: u32, handle: Handle) {
        self.handles.push((id, handle));
    }

    /// Adds a directory to the namespace.
    pub fn add_namespace_entry(&mut self, path: &str, directory: Channel) {
        self.namespace.push((path.to_owned(), directory));
    }

    /// Makes the process and starts it.
    ///
    /// # Errors
    /// `INVALID_ARGS` for a word with a NUL in it, `BAD_STATE` for a job that has ended, `NO_RESOURCES`, and those of
    /// loading the program.
    pub fn spawn(self) -> Result<Process, Status> {
        let words = self.arguments.iter().chain(&self.environment);
        if words.chain(self.namespace.iter().map(|(path, _)| path)).any(|w| w.contains('\0')) {
            return Err(Status::INVALID_ARGS);
        }
        let mut handles: Vec<_> =
            self.handles.into_iter().map(|(id, handle)| (id, handle.into_raw())).collect();
        let mut names = Vec::with_capacity(self.namespace.len());
        for (index, (path, directory)) in (0..).zip(self.namespace) {
            let info = HandleInfo::new(HandleType::NamespaceDirectory, index);
            handles.push((info.as_raw(), directory.into_raw()));
            names.push(path);
        }
        let program = sys::ProcessStart {
            name: self.name,
            job: self.job.raw_handle(),
            executable: self.executable.raw_handle(),
            arguments: self.arguments,
            environment: self.environment,
            handles,
            names,
        };
        let raw = sys::start_process(program).map_err(Status::from_raw)?;
        // SAFETY: the call gave us the handle.
        Ok(Process::from(unsafe { Handle::from_raw(raw) }))
    }
}
