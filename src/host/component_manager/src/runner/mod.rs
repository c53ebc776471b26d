//! Runners: what turns a program section into something that runs. [`Elf`] makes processes; others are components, and are reached
//! over `fuchsia.component.runner.ComponentRunner`.

mod elf;

pub use elf::Elf;

use crate::decl::{ProgramDecl, ProgramValue};
use crate::log::{LogStore, Severity};
use crate::moniker::Moniker;
use crate::name::Name;
use crate::resolver::Resolved;
use fidl::endpoints::ServerEnd;
use fidl_fuchsia_component_runner as fcrunner;
use fidl_fuchsia_data as fdata;
use fidl_fuchsia_io as fio;
use fidl_fuchsia_process as fprocess;
use fuchsia_zircon::processargs::{HandleInfo, HandleType};
use fuchsia_zircon::{self as zx, HandleBased};
use std::collections::BTreeMap;

/// Why a runner was not asked to start a program, or could not be.
#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    /// The program names none.
    #[error("Its program names no runner")]
    NotNamed,
    /// There is none of that name.
    #[error("This system has no runner {0}")]
    NotBuiltin(Name),
    /// It ended before it could be asked.
    #[error("Its runner is gone: {0}")]
    Gone(String),
}

/// A runner that is part of the component manager.
pub trait Runner {
    /// Starts a program. Failures are told on `controller`, as every runner tells them.
    fn start(
        &self,
        moniker: &Moniker,
        resolved: &Resolved,
        info: fcrunner::ComponentStartInfo,
        controller: ServerEnd<fcrunner::ComponentControllerMarker>,
    );
}

/// What a runner is told.
pub(crate) fn start_info(
    resolved: &Resolved,
    ns: Vec<fcrunner::ComponentNamespaceEntry>,
    outgoing_dir: ServerEnd<fio::DirectoryMarker>,
    runtime_dir: ServerEnd<fio::DirectoryMarker>,
    mut numbered_handles: Vec<fprocess::HandleInfo>,
    moniker: &Moniker,
    logs: &LogStore,
) -> fcrunner::ComponentStartInfo {
    // Whoever started it may want its output for themselves.
    for (fd, severity) in [(1, Severity::Info), (2, Severity::Info)] {
        let id = HandleInfo::new(HandleType::FileDescriptor, fd).as_raw();
        if numbered_handles.iter().all(|handle| handle.id != id) {
            let (ours, theirs) = zx::Socket::create_stream();
            // The output outlives the run by what is still in the pipe.
            logs.capture(moniker, ours, severity).detach();
            numbered_handles.push(fprocess::HandleInfo { handle: theirs.into_handle(), id });
        }
    }
    fcrunner::ComponentStartInfo {
        resolved_url: Some(resolved.url.to_string()),
        program: Some(resolved.decl.program.as_ref().map(dictionary).unwrap_or_default()),
        ns: Some(ns),
        outgoing_dir: Some(outgoing_dir),
        runtime_dir: Some(runtime_dir),
        numbered_handles: Some(numbered_handles),
        component_instance: Some(zx::Event::create()),
        ..Default::default()
    }
}

fn dictionary(program: &ProgramDecl) -> fdata::Dictionary {
    entries(&program.info)
}

fn entries(values: &BTreeMap<String, ProgramValue>) -> fdata::Dictionary {
    let entry = |(key, value): (&String, &ProgramValue)| {
        let value = match value {
            ProgramValue::Str(text) => fdata::DictionaryValue::Str(text.clone()),
            ProgramValue::StrVec(list) => fdata::DictionaryValue::StrVec(list.clone()),
            ProgramValue::ObjVec(list) => {
                fdata::DictionaryValue::ObjVec(list.iter().map(entries).collect())
            }
        };
        fdata::DictionaryEntry { key: key.clone(), value: Some(Box::new(value)) }
    };
    fdata::Dictionary { entries: Some(values.iter().map(entry).collect()), ..Default::default() }
}

/// The strings of a program section, as a runner finds them in a start info.
pub(crate) fn strings(program: &fdata::Dictionary, key: &str) -> Vec<String> {
    let found = program
        .entries
        .iter()
        .flatten()
        .find(|entry| entry.key == key)
        .and_then(|entry| entry.value.as_deref());
    match found {
        Some(fdata::DictionaryValue::Str(text)) => vec![text.clone()],
        Some(fdata::DictionaryValue::StrVec(list)) => list.clone(),
        _ => Vec::new(),
    }
}
