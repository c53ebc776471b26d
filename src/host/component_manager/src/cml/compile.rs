//! From documents to a declaration: names, references, defaults and the rules between sections.

use super::document::{
    Capability, Collection, Environment, Expose, Offer, OneOrMany, Registration, Use,
};
use super::{Diagnostic, Diagnostics, Loaded, config, dependencies};
use crate::decl::*;
use crate::name::{Name, ParseError, Path, RelativePath, Url};
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

    fn item(&self, index: usize) -> Self {
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
struct Sources {
    parent: bool,
    itself: bool,
    framework: bool,
    debug: bool,
    environment: bool,
    void: bool,
}

const USE_SOURCES: Sources = Sources {
    parent: true,
    itself: true,
    framework: true,
    debug: true,
    environment: true,
    void: false,
};
const OFFER_SOURCES: Sources = Sources {
    parent: true,
    itself: true,
    framework: true,
    debug: false,
    environment: false,
    void: true,
};
const EXPOSE_SOURCES: Sources = Sources {
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

    fn parse<T: FromStr<Err = ParseError>>(
        &mut self,
        at: &At<'_>,
        what: &str,
        text: &str,
    ) -> Option<T> {
        text.parse()
            .map_err(|error| {
                self.problem(at, format!("{text:?} is not a {what}"), format!("{error}"))
            })
            .ok()
    }

    /// One of `words`, or the first where there is none.
    fn choice<T: Copy>(
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
        if !declared && !(document.program.is_none() && document.environments.is_empty()) {
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
    fn names<'a>(
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

    fn subdir(&mut self, at: &At<'_>, text: Option<&str>) -> Option<RelativePath> {
        text.map_or_else(
            || Some(RelativePath::default()),
            |text| self.parse(&at.key("subdir"), "relative path", text),
        )
    }

    fn rights(&mut self, at: &At<'_>, tokens: &OneOrMany) -> Option<Rights> {
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

    fn source(&mut self, at: &At<'_>, text: &str, allowed: Sources) -> Option<Source> {
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
    fn exists(&self, source: &Source, kind: CapabilityType, name: &Name) -> bool {
        match source {
            Source::Child(child) => self.decl.child(&child.name).is_some(),
            Source::Itself => self.decl.capability(kind, name).is_some(),
            _ => true,
        }
    }

    fn report_missing(&mut self, at: &At<'_>, source: &Source, kind: CapabilityType, name: &Name) {
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

    fn availability(&mut self, at: &At<'_>, text: Option<&str>) -> Option<Availability> {
        let words = [
            ("required", Availability::Required),
            ("optional", Availability::Optional),
            ("transitional", Availability::Transitional),
            ("same_as_target", Availability::SameAsTarget),
        ];
        self.choice(&at.key("availability"), text, &words)
    }

    fn dependency(&mut self, at: &At<'_>, text: Option<&str>) -> bool {
        self.choice(&at.key("dependency"), text, &[("strong", true), ("weak", false)])
            .unwrap_or(true)
    }

    fn used(&mut self, at: &At<'_>, clause: &Use) {
        let Some((kind, names)) = self.names(at, &clause.capabilities()) else { return };
        let default = if kind == CapabilityType::Runner { "environment" } else { "parent" };
        let source =
            self.source(&at.key("from"), clause.from.as_deref().unwrap_or(default), USE_SOURCES);
        let availability = self.availability(at, clause.availability.as_deref());
        let strong = self.dependency(at, clause.dependency.as_deref());
        let rights = match &clause.rights {
            Some(tokens) => Some(self.rights(&at.key("rights"), tokens)),
            None if kind == CapabilityType::Directory
                && clause.from.as_deref() != Some("framework") =>
            {
                return self.problem(
                    at,
                    "A directory is used without \"rights\"",
                    "Say what for, such as rights: [ \"r*\" ]",
                );
            }
            None => None,
        };
        let subdir = self.subdir(at, clause.subdir.as_deref());
        let (Some(source), Some(availability), Some(subdir)) = (source, availability, subdir)
        else {
            return;
        };
        if clause.path.is_some() && names.len() > 1 {
            return self.problem(
                &at.key("path"),
                "One path for several capabilities",
                "Give each an entry of its own",
            );
        }
        if matches!(availability, Availability::SameAsTarget) {
            return self.problem(
                &at.key("availability"),
                "A use has no target",
                "Use \"required\", \"optional\" or \"transitional\"",
            );
        }
        for (name, place) in names {
            if !self.exists(&source, kind, &name) {
                self.report_missing(at, &source, kind, &name);
                continue;
            }
            let Some(target_path) = self.target_path(at, clause, kind, &name) else { continue };
            if let Some(path) = &target_path {
                self.check_overlap(&place, kind, path);
            }
            if strong {
                dependencies::note_use(self, &source);
            }
            let (config_key, config_default) = if kind == CapabilityType::Config {
                config::used(self, at, clause)
            } else {
                (None, None)
            };
            self.decl.uses.push(UseDecl {
                kind,
                source_name: name,
                source: source.clone(),
                target_path,
                rights: rights.flatten(),
                subdir: subdir.clone(),
                availability,
                config_key,
                config_default,
            });
        }
    }

    /// The place in the namespace; the outer `None` is an error that was reported.
    #[expect(
        clippy::option_option,
        reason = "the outer one is the error, the inner one a kind without a place"
    )]
    fn target_path(
        &mut self,
        at: &At<'_>,
        clause: &Use,
        kind: CapabilityType,
        name: &Name,
    ) -> Option<Option<Path>> {
        let default = match kind {
            CapabilityType::Runner | CapabilityType::Config => return Some(None),
            CapabilityType::Directory | CapabilityType::Storage if clause.path.is_none() => {
                self.problem(
                    at,
                    format!("The {kind} {name:?} is used without \"path\""),
                    "Say where it appears, such as path: \"/data\"",
                );
                return None;
            }
            CapabilityType::EventStream => "/svc/fuchsia.component.EventStream".to_owned(),
            CapabilityType::Dictionary => format!("/svc/{name}.dictionary"),
            _ => format!("/svc/{name}"),
        };
        self.parse(&at.key("path"), "path", clause.path.as_deref().unwrap_or(&default)).map(Some)
    }

    /// Directories own everything below their path; protocols may share a parent.
    fn check_overlap(&mut self, at: &At<'_>, kind: CapabilityType, path: &Path) {
        let is_tree = |kind| matches!(kind, CapabilityType::Directory | CapabilityType::Storage);
        let clash = self.decl.uses.iter().find_map(|other| {
            let theirs = other.target_path.as_ref()?;
            let inside = path.is_within(theirs) && (is_tree(other.kind) || path == theirs);
            let around = theirs.is_within(path) && is_tree(kind);
            // One protocol is often named by several shards; the same clause twice does no harm.
            let same = path == theirs
                && kind == other.kind
                && path.basename() == other.source_name.as_str();
            ((inside || around) && !(same && kind == CapabilityType::Protocol))
                .then(|| theirs.clone())
        });
        if let Some(theirs) = clash {
            self.problem(
                at,
                format!("{path} in the namespace clashes with {theirs}"),
                "Give one of the two another \"path\"",
            );
        }
        if path.as_str() == "/pkg" || path.as_str().starts_with("/pkg/") {
            self.problem(
                at,
                format!("{path} in the namespace is the component's package"),
                "Use another \"path\"",
            );
        }
    }

    fn offer(&mut self, at: &At<'_>, clause: &Offer) {
        let Some((kind, names)) = self.names(at, &clause.capabilities()) else { return };
        let (Some(from), Some(to)) = (&clause.from, &clause.to) else {
            return self.problem(
                at,
                "The offer lacks \"from\" or \"to\"",
                "Say whose capability goes to which child",
            );
        };
        if clause.r#as.is_some() && names.len() > 1 {
            return self.problem(
                &at.key("as"),
                "One new name for several capabilities",
                "Give each an entry of its own",
            );
        }
        let unknown_source = self.choice(
            &at.key("source_availability"),
            clause.source_availability.as_deref(),
            &[("required", false), ("unknown", true)],
        );
        let unknown_target = self.choice(
            &at.key("target_availability"),
            clause.target_availability.as_deref(),
            &[("required", false), ("unknown", true)],
        );
        let availability = self.availability(at, clause.availability.as_deref());
        let strong = self.dependency(at, clause.dependency.as_deref());
        let rights = clause.rights.as_ref().map(|tokens| self.rights(&at.key("rights"), tokens));
        let subdir = self.subdir(at, clause.subdir.as_deref());
        let (Some(unknown_source), Some(unknown_target), Some(mut availability), Some(subdir)) =
            (unknown_source, unknown_target, availability, subdir)
        else {
            return;
        };
        for text in &from.items {
            let Some(mut source) = self.source(&at.key("from"), text, OFFER_SOURCES) else {
                continue;
            };
            for (name, place) in &names {
                if !self.exists(&source, kind, name)
                    && !(text.starts_with("self/") || text.starts_with("parent/"))
                {
                    if unknown_source {
                        source = Source::Void;
                        availability = Availability::Optional;
                    } else {
                        self.report_missing(at, &source, kind, name);
                        continue;
                    }
                }
                for target in self.targets(at, to, unknown_target, text) {
                    let target_name = match &clause.r#as {
                        Some(text) => self.parse(&at.key("as"), "capability's name", text),
                        None => Some(name.clone()),
                    };
                    let Some(target_name) = target_name else { continue };
                    self.check_offer(place, kind, &target, &target_name, &source);
                    if strong {
                        dependencies::note_offer(self, &source, &target);
                    }
                    let (source, source_name, subdir) =
                        (source.clone(), name.clone(), subdir.clone());
                    self.decl.offers.push(OfferDecl {
                        kind,
                        source_name,
                        source,
                        target,
                        target_name,
                        rights: rights.flatten(),
                        subdir,
                        availability,
                    });
                }
            }
        }
    }

    fn targets(
        &mut self,
        at: &At<'_>,
        to: &OneOrMany,
        unknown: bool,
        from: &str,
    ) -> Vec<OfferTarget> {
        let at = at.key("to");
        let mut targets = Vec::new();
        for (index, text) in to.items.iter().enumerate() {
            let at = if to.is_list { at.item(index) } else { at.clone() };
            if text == "all" {
                targets.extend(
                    self.decl.children.iter().map(|child| OfferTarget::Child(child.name.clone())),
                );
                targets.extend(
                    self.decl
                        .collections
                        .iter()
                        .map(|collection| OfferTarget::Collection(collection.name.clone())),
                );
                // A child's own capability does not come back to it.
                targets.retain(|target| !matches!(target, OfferTarget::Child(name) if from.strip_prefix('#') == Some(name.as_str())));
                continue;
            }
            if let Some(dictionary) = text.strip_prefix("self/") {
                targets.extend(
                    self.parse(&at, "dictionary's name", dictionary).map(OfferTarget::Capability),
                );
                continue;
            }
            let Some(name) = text.strip_prefix('#') else {
                self.problem(
                    &at,
                    format!("{text:?} is no target of an offer"),
                    "Write \"#<child>\", \"#<collection>\" or \"all\"",
                );
                continue;
            };
            let Some(name) = self.parse::<Name>(&at, "name", name) else { continue };
            if self.decl.collection(&name).is_some() {
                targets.push(OfferTarget::Collection(name));
            } else if self.decl.child(&name).is_some() {
                targets.push(OfferTarget::Child(name));
            } else if !unknown {
                self.problem(
                    &at,
                    format!("There is no child or collection {name:?}"),
                    "Declare it under \"children\" or \"collections\"",
                );
            }
        }
        targets
    }

    fn check_offer(
        &mut self,
        at: &At<'_>,
        kind: CapabilityType,
        target: &OfferTarget,
        target_name: &Name,
        source: &Source,
    ) {
        let twice = self.decl.offers.iter().any(|offer| {
            offer.kind == kind
                && offer.target == *target
                && offer.target_name == *target_name
                && offer.source != *source
        });
        if twice {
            self.problem(
                at,
                format!("Two offers bring the {kind} {target_name:?} to the same target"),
                "Remove one, or rename one with \"as\"",
            );
        }
        if let (OfferTarget::Child(to), Source::Child(from)) = (target, source)
            && *to == from.name
        {
            self.problem(
                at,
                format!("The {kind} {target_name:?} is offered to the child that it comes from"),
                "Remove the offer; the child has it already",
            );
        }
    }

    fn expose(&mut self, at: &At<'_>, clause: &Expose) {
        let Some((kind, names)) = self.names(at, &clause.capabilities()) else { return };
        let Some(from) = &clause.from else {
            return self.problem(
                at,
                "The expose lacks \"from\"",
                "Say \"self\" or the child that has it",
            );
        };
        if clause.r#as.is_some() && names.len() > 1 {
            return self.problem(
                &at.key("as"),
                "One new name for several capabilities",
                "Give each an entry of its own",
            );
        }
        let unknown_source = self.choice(
            &at.key("source_availability"),
            clause.source_availability.as_deref(),
            &[("required", false), ("unknown", true)],
        );
        let to_parent = self.choice(
            &at.key("to"),
            clause.to.as_deref(),
            &[("parent", true), ("framework", false)],
        );
        let availability = self.availability(at, clause.availability.as_deref());
        let rights = clause.rights.as_ref().map(|tokens| self.rights(&at.key("rights"), tokens));
        let subdir = self.subdir(at, clause.subdir.as_deref());
        let (Some(unknown), Some(true), Some(mut availability), Some(subdir)) =
            (unknown_source, to_parent, availability, subdir)
        else {
            return;
        };
        for text in &from.items {
            let Some(mut source) = self.source(&at.key("from"), text, EXPOSE_SOURCES) else {
                continue;
            };
            for (name, place) in &names {
                if !self.exists(&source, kind, name) {
                    if unknown {
                        source = Source::Void;
                        availability = Availability::Optional;
                    } else {
                        self.report_missing(at, &source, kind, name);
                        continue;
                    }
                }
                let target_name = match &clause.r#as {
                    Some(text) => self.parse(&at.key("as"), "capability's name", text),
                    None => Some(name.clone()),
                };
                let Some(target_name) = target_name else { continue };
                if self
                    .decl
                    .exposes
                    .iter()
                    .any(|expose| expose.kind == kind && expose.target_name == target_name)
                {
                    self.problem(
                        place,
                        format!("The {kind} {target_name:?} is exposed already"),
                        "Remove one, or rename one with \"as\"",
                    );
                    continue;
                }
                let (source, source_name, subdir) = (source.clone(), name.clone(), subdir.clone());
                self.decl.exposes.push(ExposeDecl {
                    kind,
                    source_name,
                    source,
                    target_name,
                    rights: rights.flatten(),
                    subdir,
                    availability,
                });
            }
        }
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
