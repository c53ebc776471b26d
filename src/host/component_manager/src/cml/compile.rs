//! From documents to a declaration: names, references, defaults and the rules between sections.

use super::document::{Capability, Collection, Environment, OneOrMany, Registration};
use super::{Diagnostic, Diagnostics, Loaded, config, dependencies};
use crate::decl::*;
use crate::name::{Name, ParseError, RelativePath, Url};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

/// Where a value stands: the file and the path in it.
#[derive(Clone)]
pub(super) struct At<'a> {
    loaded: &'a Loaded,
    path: String,
}

impl<'a> At<'a> {
    fn new(loaded: &'a Loaded, path: impl Into<String>) -> Self {
        Self { loaded, path: path.into() }
    }

    /// The value below this one under `key`.
    pub(super) fn key(&self, key: impl Display) -> Self {
        Self { loaded: self.loaded, path: format!("{}.{key}", self.path) }
    }

    pub(super) fn item(&self, index: usize) -> Self {
        Self { loaded: self.loaded, path: format!("{}[{index}]", self.path) }
    }
}

/// What is declared, by whom it is referred to, and what is wrong so far.
#[derive(Default)]
pub(super) struct Compiler {
    pub(super) decl: ComponentDecl,
    pub(super) dependencies: dependencies::Dependencies,
    problems: Vec<Diagnostic>,
}

pub(super) fn compile(files: &[Loaded]) -> Result<ComponentDecl, Diagnostics> {
    let mut compiler = Compiler::default();
    // What others refer to comes first.
    for loaded in files {
        compiler.declarations(loaded);
    }
    for loaded in files {
        compiler.references(loaded);
    }
    if let Some(first) = files.first() {
        dependencies::check(&mut compiler, &At::new(first, ""));
    }
    if compiler.problems.is_empty() {
        Ok(compiler.decl)
    } else {
        Err(Diagnostics(compiler.problems))
    }
}

/// Which words a clause's source may be.
#[derive(Clone, Copy)]
pub(super) struct Sources {
    parent: bool,
    itself: bool,
    framework: bool,
    debug: bool,
    environment: bool,
    void: bool,
}

pub(super) const USE_SOURCES: Sources = Sources {
    parent: true,
    itself: true,
    framework: true,
    debug: true,
    environment: true,
    void: false,
};
pub(super) const OFFER_SOURCES: Sources = Sources {
    parent: true,
    itself: true,
    framework: true,
    debug: false,
    environment: false,
    void: true,
};
pub(super) const EXPOSE_SOURCES: Sources = Sources {
    parent: false,
    itself: true,
    framework: true,
    debug: false,
    environment: false,
    void: true,
};
const REGISTRATION_SOURCES: Sources = Sources {
    parent: true,
    itself: true,
    framework: false,
    debug: false,
    environment: false,
    void: false,
};
const STORAGE_SOURCES: Sources = Sources {
    parent: true,
    itself: true,
    framework: false,
    debug: false,
    environment: false,
    void: false,
};

impl Sources {
    fn words(self) -> String {
        let words = [
            (self.parent, "\"parent\""),
            (self.itself, "\"self\""),
            (self.framework, "\"framework\""),
            (self.debug, "\"debug\""),
            (self.environment, "\"environment\""),
            (self.void, "\"void\""),
        ];
        let mut list: Vec<_> =
            words.into_iter().filter_map(|(allowed, word)| allowed.then_some(word)).collect();
        list.push("\"#<child>\"");
        list.join(", ")
    }
}

impl Compiler {
    pub(super) fn problem(
        &mut self,
        at: &At<'_>,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.problems.push(Diagnostic {
            file: at.loaded.file.clone(),
            position: at.loaded.places.find(&at.path),
            message: message.into(),
            help: help.into(),
        });
    }

    pub(super) fn parse<T: FromStr<Err = ParseError>>(
        &mut self,
        at: &At<'_>,
        what: &str,
        text: &str,
    ) -> Option<T> {
        text.parse()
            .map_err(|error| {
                self.problem(at, format!("{text:?} is not a {what}"), format!("{error}"));
            })
            .ok()
    }

    /// One of `words`, or the first where there is none.
    pub(super) fn choice<T: Copy>(
        &mut self,
        at: &At<'_>,
        text: Option<&str>,
        words: &[(&str, T)],
    ) -> Option<T> {
        let Some(text) = text else { return words.first().map(|(_, value)| *value) };
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if found.is_none() {
            let list: Vec<_> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
            self.problem(
                at,
                format!("{text:?} is not one of the words that can stand here"),
                format!("Use one of {}", list.join(", ")),
            );
        }
        found
    }

    fn declarations(&mut self, loaded: &Loaded) {
        let document = &loaded.document;
        if let Some(program) = &document.program {
            self.program(&At::new(loaded, "program"), program);
        }
        for (index, child) in document.children.iter().enumerate() {
            self.child(&At::new(loaded, format!("children[{index}]")), child);
        }
        for (index, collection) in document.collections.iter().enumerate() {
            self.collection(&At::new(loaded, format!("collections[{index}]")), collection);
        }
        for (index, capability) in document.capabilities.iter().enumerate() {
            self.capability(&At::new(loaded, format!("capabilities[{index}]")), capability);
        }
        if let Some(fields) = &document.config {
            let at = At::new(loaded, "config");
            for (key, field) in &fields.0 {
                config::field(self, &at.key(key), key, field);
            }
        }
        for (key, value) in document.facets.iter().flatten() {
            if self.decl.facets.insert(key.clone(), value.clone()).is_some_and(|old| old != *value)
            {
                self.problem(
                    &At::new(loaded, format!("facets.{key}")),
                    format!("The facet {key:?} has another value in another file"),
                    "",
                );
            }
        }
    }

    fn references(&mut self, loaded: &Loaded) {
        let document = &loaded.document;
        if document.disable.is_some() {
            // It silences checks of Fuchsia's build; there is nothing of that kind here.
            tracing::debug!(file = %loaded.file, "\"disable\" has no effect");
        }
        for (index, environment) in document.environments.iter().enumerate() {
            self.environment(&At::new(loaded, format!("environments[{index}]")), environment);
        }
        for (index, clause) in document.r#use.iter().enumerate() {
            self.used(&At::new(loaded, format!("use[{index}]")), clause);
        }
        for (index, clause) in document.offer.iter().enumerate() {
            self.offer(&At::new(loaded, format!("offer[{index}]")), clause);
        }
        for (index, clause) in document.expose.iter().enumerate() {
            self.expose(&At::new(loaded, format!("expose[{index}]")), clause);
        }
        for (index, child) in document.children.iter().enumerate() {
            let at = At::new(loaded, format!("children[{index}].environment"));
            self.environment_reference(&at, child.environment.as_deref(), document);
        }
        for (index, collection) in document.collections.iter().enumerate() {
            let at = At::new(loaded, format!("collections[{index}].environment"));
            self.environment_reference(&at, collection.environment.as_deref(), document);
        }
    }

    /// A core shard refers to an environment of the manifest that includes it, so a missing one is an error only where the file has
    /// environments of its own.
    fn environment_reference(
        &mut self,
        at: &At<'_>,
        text: Option<&str>,
        document: &super::document::Document,
    ) {
        let Some(name) = text.and_then(|text| text.strip_prefix('#')) else { return };
        let declared = self.decl.environments.iter().any(|environment| environment.name == name);
        let is_shard = document.program.is_none() && document.environments.is_empty();
        if !declared && !is_shard {
            self.problem(
                at,
                format!("There is no environment {name:?}"),
                "Declare it under \"environments\"",
            );
        }
    }

    fn program(&mut self, at: &At<'_>, section: &Map<String, Value>) {
        let mut program = self.decl.program.take().unwrap_or_default();
        for (key, value) in section {
            if key == "runner" {
                match value.as_str() {
                    None => self.problem(
                        &at.key(key),
                        "The runner is not a string",
                        "Write the name of a runner, such as \"elf\"",
                    ),
                    Some(text) => {
                        let runner = self.parse(&at.key(key), "runner's name", text);
                        if program.runner.is_some() && program.runner != runner {
                            self.problem(
                                &at.key(key),
                                "Another file names another runner",
                                "Name the runner in one place",
                            );
                        }
                        program.runner = runner.or(program.runner.take());
                    }
                }
            } else {
                self.program_value(&at.key(key), key, value, &mut program.info);
            }
        }
        self.decl.program = Some(program);
    }

    fn program_value(
        &mut self,
        at: &At<'_>,
        key: &str,
        value: &Value,
        into: &mut BTreeMap<String, ProgramValue>,
    ) {
        let converted = match value {
            Value::String(text) => ProgramValue::Str(text.clone()),
            Value::Bool(flag) => ProgramValue::Str(flag.to_string()),
            Value::Number(number) => ProgramValue::Str(number.to_string()),
            Value::Object(section) => {
                for (inner, value) in section {
                    self.program_value(&at.key(inner), &format!("{key}.{inner}"), value, into);
                }
                return;
            }
            Value::Array(items) if items.iter().all(Value::is_object) && !items.is_empty() => {
                let mut sections = Vec::new();
                for (index, item) in items.iter().enumerate() {
                    let mut section = BTreeMap::new();
                    for (inner, value) in item.as_object().into_iter().flatten() {
                        self.program_value(&at.item(index).key(inner), inner, value, &mut section);
                    }
                    sections.push(section);
                }
                ProgramValue::ObjVec(sections)
            }
            Value::Array(items) => {
                let strings: Option<Vec<_>> =
                    items.iter().map(|item| item.as_str().map(str::to_owned)).collect();
                let Some(strings) = strings else {
                    return self.problem(
                        at,
                        "A list of the program section holds other things than strings",
                        "Quote its items",
                    );
                };
                ProgramValue::StrVec(strings)
            }
            Value::Null => return,
        };
        match (into.get_mut(key), converted) {
            (Some(ProgramValue::StrVec(old)), ProgramValue::StrVec(new)) => old.extend(new),
            (Some(old), new) if *old != new => {
                self.problem(
                    at,
                    format!("{key:?} has another value in another file"),
                    "Give it one value",
                );
            }
            (_, new) => {
                into.insert(key.to_owned(), new);
            }
        }
    }

    fn child(&mut self, at: &At<'_>, child: &super::document::Child) {
        let startup = self.choice(
            &at.key("startup"),
            child.startup.as_deref(),
            &[("lazy", Startup::Lazy), ("eager", Startup::Eager)],
        );
        self.choice(&at.key("on_terminate"), child.on_terminate.as_deref(), &[("none", ())]);
        let environment =
            self.environment_name(&at.key("environment"), child.environment.as_deref());
        let name: Option<Name> = self.parse(&at.key("name"), "child's name", &child.name);
        let url: Option<Url> = self.parse(&at.key("url"), "component URL", &child.url);
        let (Some(name), Some(url), Some(startup)) = (name, url, startup) else { return };
        if self.is_child_or_collection(&name) {
            return self.problem(
                &at.key("name"),
                format!("There is a child or collection {name:?} already"),
                "Names must differ",
            );
        }
        self.decl.children.push(ChildDecl { name, url, startup, environment });
    }

    fn environment_name(&mut self, at: &At<'_>, text: Option<&str>) -> Option<Name> {
        let text = text?;
        let Some(name) = text.strip_prefix('#') else {
            self.problem(
                at,
                format!("{text:?} does not refer to an environment"),
                "Write \"#<environment>\"",
            );
            return None;
        };
        self.parse(at, "environment's name", name)
    }

    fn is_child_or_collection(&self, name: &Name) -> bool {
        self.decl.child(name).is_some() || self.decl.collection(name).is_some()
    }

    fn collection(&mut self, at: &At<'_>, collection: &Collection) {
        let words = [("transient", Durability::Transient), ("single_run", Durability::SingleRun)];
        let durability = self.choice(&at.key("durability"), Some(&collection.durability), &words);
        let words = [("static_only", false), ("static_and_dynamic", true)];
        let dynamic =
            self.choice(&at.key("allowed_offers"), collection.allowed_offers.as_deref(), &words);
        let environment =
            self.environment_name(&at.key("environment"), collection.environment.as_deref());
        let name: Option<Name> = self.parse(&at.key("name"), "collection's name", &collection.name);
        let (Some(name), Some(durability), Some(allows_dynamic_offers)) =
            (name, durability, dynamic)
        else {
            return;
        };
        if self.is_child_or_collection(&name) {
            return self.problem(
                &at.key("name"),
                format!("There is a child or collection {name:?} already"),
                "Names must differ",
            );
        }
        let allow_long_names = collection.allow_long_names;
        self.decl.collections.push(CollectionDecl {
            name,
            durability,
            environment,
            allows_dynamic_offers,
            allow_long_names,
        });
    }

    /// The one kind of capability that a clause names, with its names and their places.
    pub(super) fn names<'a>(
        &mut self,
        at: &At<'a>,
        capabilities: &[(CapabilityType, &OneOrMany)],
    ) -> Option<(CapabilityType, Vec<(Name, At<'a>)>)> {
        let &[(kind, list)] = capabilities else {
            let found: Vec<_> =
                capabilities.iter().map(|(kind, _)| format!("\"{kind}\"")).collect();
            let message = if found.is_empty() {
                "The entry names no capability".to_owned()
            } else {
                format!("The entry names {} at once", found.join(" and "))
            };
            self.problem(at, message, "Write exactly one of \"protocol\", \"directory\", \"storage\", \"runner\", \"config\", ...");
            return None;
        };
        let at = at.key(kind);
        let mut names = Vec::new();
        for (index, text) in list.items.iter().enumerate() {
            let at = if list.is_list { at.item(index) } else { at.clone() };
            if let Some(name) = self.parse::<Name>(&at, "capability's name", text) {
                if names.iter().any(|(known, _)| *known == name) {
                    self.problem(&at, format!("{name:?} is in the list twice"), "Remove one");
                } else {
                    names.push((name, at));
                }
            }
        }
        if list.items.is_empty() {
            self.problem(&at, "The list is empty", "Name a capability or remove the entry");
        }
        Some((kind, names))
    }

    fn capability(&mut self, at: &At<'_>, clause: &Capability) {
        let Some((kind, names)) = self.names(at, &clause.capabilities()) else { return };
        if clause.path.is_some() && names.len() > 1 {
            return self.problem(
                &at.key("path"),
                "One path for several capabilities",
                "Give each an entry of its own",
            );
        }
        self.choice(
            &at.key("storage_id"),
            clause.storage_id.as_deref(),
            &[("static_instance_id_or_moniker", ()), ("static_instance_id", ())],
        );
        self.choice(
            &at.key("delivery"),
            clause.delivery.as_deref(),
            &[("immediate", ()), ("on_readable", ())],
        );
        for (name, place) in names {
            if self.decl.capability(kind, &name).is_some() {
                self.problem(
                    &place,
                    format!("The {kind} {name:?} is declared already"),
                    "Remove one of the two",
                );
            } else if let Some(capability) = self.one_capability(at, clause, kind, name) {
                self.decl.capabilities.push(capability);
            }
        }
    }

    fn one_capability(
        &mut self,
        at: &At<'_>,
        clause: &Capability,
        kind: CapabilityType,
        name: Name,
    ) -> Option<CapabilityDecl> {
        let default_path = match kind {
            CapabilityType::Runner => "/svc/fuchsia.component.runner.ComponentRunner".to_owned(),
            _ => format!("/svc/{name}"),
        };
        let path = clause.path.as_deref().unwrap_or(&default_path);
        Some(match kind {
            CapabilityType::Protocol => {
                CapabilityDecl::Protocol { path: self.parse(&at.key("path"), "path", path)?, name }
            }
            CapabilityType::Service => {
                CapabilityDecl::Service { path: self.parse(&at.key("path"), "path", path)?, name }
            }
            CapabilityType::Runner => {
                CapabilityDecl::Runner { path: self.parse(&at.key("path"), "path", path)?, name }
            }
            CapabilityType::Directory => {
                let (Some(path), Some(rights)) = (&clause.path, &clause.rights) else {
                    self.problem(
                        at,
                        format!("The directory {name:?} lacks \"path\" or \"rights\""),
                        "Add, for example, path: \"/data\", rights: [ \"r*\" ]",
                    );
                    return None;
                };
                let rights = self.rights(&at.key("rights"), rights)?;
                CapabilityDecl::Directory {
                    path: self.parse(&at.key("path"), "path", path)?,
                    rights,
                    name,
                }
            }
            CapabilityType::Storage => {
                let (Some(from), Some(backing)) = (&clause.from, &clause.backing_dir) else {
                    self.problem(
                        at,
                        format!("The storage {name:?} lacks \"from\" or \"backing_dir\""),
                        "Say which directory of whom it is made from",
                    );
                    return None;
                };
                let source = self.source(&at.key("from"), from, STORAGE_SOURCES)?;
                let backing_dir =
                    self.parse(&at.key("backing_dir"), "directory's name", backing)?;
                CapabilityDecl::Storage {
                    source,
                    backing_dir,
                    subdir: self.subdir(at, clause.subdir.as_deref())?,
                    name,
                }
            }
            CapabilityType::Config => {
                let value = config::declared_value(self, at, clause)?;
                CapabilityDecl::Config { name, value }
            }
            CapabilityType::Resolver | CapabilityType::Dictionary | CapabilityType::EventStream => {
                CapabilityDecl::Other { kind, name }
            }
        })
    }

    pub(super) fn subdir(&mut self, at: &At<'_>, text: Option<&str>) -> Option<RelativePath> {
        text.map_or_else(
            || Some(RelativePath::default()),
            |text| self.parse(&at.key("subdir"), "relative path", text),
        )
    }

    pub(super) fn rights(&mut self, at: &At<'_>, tokens: &OneOrMany) -> Option<Rights> {
        let mut rights = Rights::empty();
        for (index, token) in tokens.items.iter().enumerate() {
            match Rights::from_token(token) {
                Some(more) => rights |= more,
                None => {
                    let at = if tokens.is_list { at.item(index) } else { at.clone() };
                    self.problem(&at, format!("{token:?} is not a right"), "Use \"r*\", \"rw*\", \"rx*\", \"w*\", \"x*\" or the long names such as \"read_bytes\"");
                    return None;
                }
            }
        }
        if rights.is_empty() {
            self.problem(at, "No right is left", "Use at least one, such as \"r*\"");
            return None;
        }
        Some(rights)
    }

    pub(super) fn source(&mut self, at: &At<'_>, text: &str, allowed: Sources) -> Option<Source> {
        let source = match text {
            "parent" if allowed.parent => Source::Parent,
            "self" if allowed.itself => Source::Itself,
            "framework" if allowed.framework => Source::Framework,
            "debug" if allowed.debug => Source::Debug,
            "environment" if allowed.environment => Source::Environment,
            "void" if allowed.void => Source::Void,
            _ => {
                let Some(name) = text.strip_prefix('#').or_else(|| {
                    text.strip_prefix("self/").or_else(|| text.strip_prefix("parent/"))
                }) else {
                    self.problem(
                        at,
                        format!("{text:?} is not a source that can stand here"),
                        format!("Use one of {}", allowed.words()),
                    );
                    return None;
                };
                let name: Name = self.parse(at, "name", name)?;
                return Some(if self.decl.collection(&name).is_some() {
                    Source::Collection(name)
                } else {
                    Source::Child(ChildName { collection: None, name })
                });
            }
        };
        Some(source)
    }

    /// Whether what `source` refers to exists in this manifest.
    pub(super) fn exists(&self, source: &Source, kind: CapabilityType, name: &Name) -> bool {
        match source {
            Source::Child(child) => self.decl.child(&child.name).is_some(),
            Source::Itself => self.decl.capability(kind, name).is_some(),
            _ => true,
        }
    }

    pub(super) fn report_missing(
        &mut self,
        at: &At<'_>,
        source: &Source,
        kind: CapabilityType,
        name: &Name,
    ) {
        match source {
            Source::Child(child) => self.problem(
                &at.key("from"),
                format!("There is no child {:?}", child.name),
                "Declare it under \"children\", or set source_availability: \"unknown\"",
            ),
            _ => self.problem(
                at,
                format!("The {kind} {name:?} comes from self, but is not declared"),
                "Declare it under \"capabilities\"",
            ),
        }
    }

    pub(super) fn availability(&mut self, at: &At<'_>, text: Option<&str>) -> Option<Availability> {
        let words = [
            ("required", Availability::Required),
            ("optional", Availability::Optional),
            ("transitional", Availability::Transitional),
            ("same_as_target", Availability::SameAsTarget),
        ];
        self.choice(&at.key("availability"), text, &words)
    }

    fn environment(&mut self, at: &At<'_>, environment: &Environment) {
        let Some(name) =
            self.parse::<Name>(&at.key("name"), "environment's name", &environment.name)
        else {
            return;
        };
        if self.decl.environment(&name).is_some() {
            return self.problem(
                &at.key("name"),
                format!("The environment {name:?} is declared already"),
                "Names must differ",
            );
        }
        let extends = self.choice(
            &at.key("extends"),
            environment.extends.as_deref(),
            &[("none", false), ("realm", true)],
        );
        let Some(extends_realm) = extends else { return };
        if !extends_realm && environment.stop_timeout_ms.is_none() {
            self.problem(
                at,
                "An environment that extends nothing needs a stop time-out",
                "Add __stop_timeout_ms: <milliseconds>, or extends: \"realm\"",
            );
        }
        for (index, registration) in environment.resolvers.iter().enumerate() {
            if registration.resolver.is_none() || registration.from.is_none() {
                self.problem(
                    &at.key(format!("resolvers[{index}]")),
                    "The registration lacks \"resolver\" or \"from\"",
                    "",
                );
            }
        }
        for (index, registration) in environment.debug.iter().enumerate() {
            if registration.protocol.is_none() || registration.from.is_none() {
                self.problem(
                    &at.key(format!("debug[{index}]")),
                    "The registration lacks \"protocol\" or \"from\"",
                    "",
                );
            }
        }
        let mut runners = Vec::new();
        for (index, registration) in environment.runners.iter().enumerate() {
            runners.extend(
                self.runner_registration(&at.key(format!("runners[{index}]")), registration),
            );
        }
        let stop_timeout_ms = environment.stop_timeout_ms;
        dependencies::note_environment(self, &name, &runners);
        self.decl.environments.push(EnvironmentDecl {
            name,
            extends_realm,
            runners,
            stop_timeout_ms,
        });
    }

    fn runner_registration(
        &mut self,
        at: &At<'_>,
        registration: &Registration,
    ) -> Option<RunnerRegistration> {
        let (Some(runner), Some(from)) = (&registration.runner, &registration.from) else {
            self.problem(
                at,
                "The registration lacks \"runner\" or \"from\"",
                "Write { runner: \"<name>\", from: \"self\" }",
            );
            return None;
        };
        let source_name: Name = self.parse(&at.key("runner"), "runner's name", runner)?;
        let source = self.source(&at.key("from"), from, REGISTRATION_SOURCES)?;
        if !self.exists(&source, CapabilityType::Runner, &source_name) {
            self.report_missing(at, &source, CapabilityType::Runner, &source_name);
            return None;
        }
        let target_name = match &registration.r#as {
            Some(text) => self.parse(&at.key("as"), "runner's name", text)?,
            None => source_name.clone(),
        };
        Some(RunnerRegistration { source_name, source, target_name })
    }
}
