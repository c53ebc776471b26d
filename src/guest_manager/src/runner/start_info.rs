//! `ComponentStartInfo`, checked: what comes from another process is taken apart here, once.

use super::StartError;
use fidl::endpoints::{ClientEnd, ServerEnd};
use fidl_fuchsia_component_runner as frunner;
use fidl_fuchsia_data as fdata;
use fidl_fuchsia_io as fio;
use fidl_fuchsia_mem as fmem;
use fidl_fuchsia_process as fprocess;
use fuchsia_zircon as zx;

/// All that a component is started with.
#[derive(Debug)]
pub(crate) struct StartInfo {
    /// The component's URL.
    pub(crate) url: String,
    /// The program's path in the package, relative.
    pub(crate) binary: String,
    /// The program's arguments, without its name.
    pub(crate) args: Vec<String>,
    /// The program's environment, each `NAME=value`.
    pub(crate) environ: Vec<String>,
    /// Whether the program takes the lifecycle channel and ends by itself when told to stop.
    pub(crate) notify_on_stop: bool,
    /// The namespace: absolute paths, none below another.
    pub(crate) namespace: Vec<(String, ClientEnd<fio::DirectoryMarker>)>,
    /// Where the program serves what it offers.
    pub(crate) outgoing_dir: Option<ServerEnd<fio::DirectoryMarker>>,
    /// Where the runner serves what it knows of the program.
    pub(crate) runtime_dir: Option<ServerEnd<fio::DirectoryMarker>>,
    /// Handles for the program, by `PA_HND` number.
    pub(crate) numbered_handles: Vec<fprocess::HandleInfo>,
    /// The component's structured configuration.
    pub(crate) encoded_config: Option<fmem::Data>,
    /// The program starts when the other end of this closes.
    pub(crate) break_on_start: Option<zx::EventPair>,
}

impl TryFrom<frunner::ComponentStartInfo> for StartInfo {
    type Error = StartError;

    fn try_from(info: frunner::ComponentStartInfo) -> Result<Self, StartError> {
        let url = info
            .resolved_url
            .filter(|url| !url.is_empty())
            .ok_or_else(|| missing("resolved_url"))?;
        let program =
            Program(info.program.and_then(|p| p.entries).ok_or_else(|| missing("program"))?);
        let binary = program.text("binary")?.ok_or_else(|| missing("program.binary"))?;
        Ok(Self {
            url,
            binary: relative(binary)?,
            args: program.list("args")?,
            environ: environ(program.list("environ")?)?,
            notify_on_stop: notify_on_stop(program.text("lifecycle.stop_event")?)?,
            namespace: namespace(info.ns.ok_or_else(|| missing("ns"))?)?,
            outgoing_dir: info.outgoing_dir,
            runtime_dir: info.runtime_dir,
            numbered_handles: info.numbered_handles.unwrap_or_default(),
            encoded_config: info.encoded_config,
            break_on_start: info.break_on_start,
        })
    }
}

fn invalid(text: impl Into<String>) -> StartError {
    StartError::InvalidArguments(text.into())
}

fn missing(what: &str) -> StartError {
    invalid(format!("{what} is missing"))
}

/// The manifest's `program` section.
struct Program(Vec<fdata::DictionaryEntry>);

impl Program {
    fn value(&self, key: &str) -> Option<&fdata::DictionaryValue> {
        self.0.iter().find(|entry| entry.key == key)?.value.as_deref()
    }

    fn text(&self, key: &str) -> Result<Option<&str>, StartError> {
        match self.value(key) {
            None => Ok(None),
            Some(fdata::DictionaryValue::Str(text)) => Ok(Some(text)),
            Some(_) => Err(invalid(format!("program.{key} is not a string"))),
        }
    }

    fn list(&self, key: &str) -> Result<Vec<String>, StartError> {
        match self.value(key) {
            None => Ok(Vec::new()),
            Some(fdata::DictionaryValue::StrVec(words)) => Ok(words.clone()),
            Some(_) => Err(invalid(format!("program.{key} is not a list of strings"))),
        }
    }
}

/// A path in the package, and not beside it.
fn relative(path: &str) -> Result<String, StartError> {
    let fits = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\0');
    if path.split('/').all(fits) {
        Ok(path.to_owned())
    } else {
        Err(invalid(format!("program.binary is not a relative path: {path:?}")))
    }
}

fn environ(variables: Vec<String>) -> Result<Vec<String>, StartError> {
    match variables.iter().find(|variable| !variable.contains('=')) {
        None => Ok(variables),
        Some(variable) => {
            Err(invalid(format!("program.environ has {variable:?}, without a value")))
        }
    }
}

fn notify_on_stop(stop_event: Option<&str>) -> Result<bool, StartError> {
    match stop_event {
        None | Some("ignore") => Ok(false),
        Some("notify") => Ok(true),
        Some(other) => Err(invalid(format!("program.lifecycle.stop_event is {other:?}"))),
    }
}

fn namespace(
    entries: Vec<frunner::ComponentNamespaceEntry>,
) -> Result<Vec<(String, ClientEnd<fio::DirectoryMarker>)>, StartError> {
    let mut namespace: Vec<(String, ClientEnd<fio::DirectoryMarker>)> = Vec::new();
    for entry in entries {
        let path = entry.path.ok_or_else(|| missing("a namespace entry's path"))?;
        let directory = entry.directory.ok_or_else(|| missing("a namespace entry's directory"))?;
        let absolute = path.strip_prefix('/').is_some_and(|rest| relative(rest).is_ok());
        if !absolute {
            return Err(invalid(format!("the namespace path {path:?} is not absolute")));
        }
        if let Some((other, _)) = namespace.iter().find(|(other, _)| overlap(other, &path)) {
            return Err(invalid(format!("the namespace paths {other:?} and {path:?} overlap")));
        }
        namespace.push((path, directory));
    }
    Ok(namespace)
}

/// Whether one of two paths is the other or below it.
fn overlap(a: &str, b: &str) -> bool {
    let below = |path: &str, root: &str| {
        path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    below(a, b) || below(b, a)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fidl::endpoints::create_endpoints;

    fn entry(key: &str, value: fdata::DictionaryValue) -> fdata::DictionaryEntry {
        fdata::DictionaryEntry { key: key.to_owned(), value: Some(Box::new(value)) }
    }

    fn program(entries: Vec<fdata::DictionaryEntry>) -> Option<fdata::Dictionary> {
        Some(fdata::Dictionary { entries: Some(entries), ..Default::default() })
    }

    fn binary(path: &str) -> Option<fdata::Dictionary> {
        program(vec![entry("binary", fdata::DictionaryValue::Str(path.to_owned()))])
    }

    fn ns(paths: &[&str]) -> Option<Vec<frunner::ComponentNamespaceEntry>> {
        let entry = |path: &&str| frunner::ComponentNamespaceEntry {
            path: Some((*path).to_owned()),
            directory: Some(create_endpoints::<fio::DirectoryMarker>().0),
            ..Default::default()
        };
        Some(paths.iter().map(entry).collect())
    }

    fn valid() -> frunner::ComponentStartInfo {
        frunner::ComponentStartInfo {
            resolved_url: Some("fuchsia-pkg://fuchsia.com/x#meta/vmm.cm".to_owned()),
            program: binary("bin/vmm"),
            ns: ns(&["/pkg", "/svc"]),
            ..Default::default()
        }
    }

    fn problem(info: frunner::ComponentStartInfo) -> String {
        match StartInfo::try_from(info) {
            Err(StartError::InvalidArguments(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_complete_start_info_is_taken_apart() {
        let mut info = valid();
        info.program = program(vec![
            entry("binary", fdata::DictionaryValue::Str("bin/vmm".to_owned())),
            entry("args", fdata::DictionaryValue::StrVec(vec!["-v".to_owned()])),
            entry("lifecycle.stop_event", fdata::DictionaryValue::Str("notify".to_owned())),
        ]);
        let info = StartInfo::try_from(info).unwrap();
        assert_eq!((info.binary.as_str(), info.notify_on_stop), ("bin/vmm", true));
        assert_eq!(info.args, ["-v"]);
        assert_eq!(info.namespace.len(), 2);
    }

    #[test]
    fn what_is_missing_is_named() {
        type Change = fn(&mut frunner::ComponentStartInfo);
        let changes: [(Change, &str); 5] = [
            (|info| info.resolved_url = None, "resolved_url"),
            (|info| info.program = None, "program"),
            (|info| info.program = program(Vec::new()), "program.binary"),
            (|info| info.ns = None, "ns"),
            (
                |info| info.ns = Some(vec![frunner::ComponentNamespaceEntry::default()]),
                "a namespace entry's path",
            ),
        ];
        for (change, what) in changes {
            let mut info = valid();
            change(&mut info);
            assert_eq!(problem(info), format!("{what} is missing"));
        }
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        for path in ["/bin/vmm", "bin/../../vmm", "bin//vmm", "", "./vmm"] {
            let info = frunner::ComponentStartInfo { program: binary(path), ..valid() };
            assert!(problem(info).contains("relative path"), "{path}");
        }
        for path in ["pkg", "/", "/a/../b"] {
            let info = frunner::ComponentStartInfo { ns: ns(&[path]), ..valid() };
            assert!(problem(info).contains("not absolute"), "{path}");
        }
    }

    #[test]
    fn namespace_paths_do_not_overlap() {
        for paths in [["/svc", "/svc"], ["/data/a", "/data"]] {
            let info = frunner::ComponentStartInfo { ns: ns(&paths), ..valid() };
            assert!(problem(info).contains("overlap"), "{paths:?}");
        }
        let info = frunner::ComponentStartInfo { ns: ns(&["/data", "/data2"]), ..valid() };
        assert!(StartInfo::try_from(info).is_ok());
    }
}
