//! `use`, `offer` and `expose`: what comes in, what goes down, what goes up.

use super::compile::{At, Compiler, EXPOSE_SOURCES, OFFER_SOURCES, USE_SOURCES};
use super::document::{Expose, Offer, OneOrMany, Use};
use super::{config, dependencies};
use crate::decl::*;
use crate::name::{Name, Path};

impl Compiler {
    fn dependency(&mut self, at: &At<'_>, text: Option<&str>) -> bool {
        self.choice(&at.key("dependency"), text, &[("strong", true), ("weak", false)])
            .unwrap_or(true)
    }

    /// Whether an offer or expose stands although its source or target does not exist.
    fn may_be_missing(&mut self, at: &At<'_>, end: &str, text: Option<&str>) -> Option<bool> {
        let key = format!("{end}_availability");
        self.choice(&at.key(&key), text, &[("required", false), ("unknown", true)])
    }

    /// Whether what is offered or exposed under a new name is a single capability.
    fn one_new_name(&mut self, at: &At<'_>, new_name: Option<&str>, count: usize) -> bool {
        let one = new_name.is_none() || count == 1;
        if !one {
            self.problem(
                &at.key("as"),
                "One new name for several capabilities",
                "Give each an entry of its own",
            );
        }
        one
    }

    /// The name at the other end of an offer or expose.
    fn target_name(&mut self, at: &At<'_>, new_name: Option<&str>, name: &Name) -> Option<Name> {
        match new_name {
            Some(text) => self.parse(&at.key("as"), "capability's name", text),
            None => Some(name.clone()),
        }
    }

    pub(super) fn used(&mut self, at: &At<'_>, clause: &Use) {
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

    pub(super) fn offer(&mut self, at: &At<'_>, clause: &Offer) {
        let Some((kind, names)) = self.names(at, &clause.capabilities()) else { return };
        let (Some(from), Some(to)) = (&clause.from, &clause.to) else {
            return self.problem(
                at,
                "The offer lacks \"from\" or \"to\"",
                "Say whose capability goes to which child",
            );
        };
        if !self.one_new_name(at, clause.r#as.as_deref(), names.len()) {
            return;
        }
        let unknown_source =
            self.may_be_missing(at, "source", clause.source_availability.as_deref());
        let unknown_target =
            self.may_be_missing(at, "target", clause.target_availability.as_deref());
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
                let in_dictionary = text.starts_with("self/") || text.starts_with("parent/");
                if !in_dictionary && !self.exists(&source, kind, name) {
                    if !unknown_source {
                        self.report_missing(at, &source, kind, name);
                        continue;
                    }
                    (source, availability) = (Source::Void, Availability::Optional);
                }
                for target in self.targets(at, to, unknown_target, text) {
                    let Some(target_name) = self.target_name(at, clause.r#as.as_deref(), name)
                    else {
                        continue;
                    };
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

    pub(super) fn expose(&mut self, at: &At<'_>, clause: &Expose) {
        let Some((kind, names)) = self.names(at, &clause.capabilities()) else { return };
        let Some(from) = &clause.from else {
            return self.problem(
                at,
                "The expose lacks \"from\"",
                "Say \"self\" or the child that has it",
            );
        };
        if !self.one_new_name(at, clause.r#as.as_deref(), names.len()) {
            return;
        }
        let unknown_source =
            self.may_be_missing(at, "source", clause.source_availability.as_deref());
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
                    if !unknown {
                        self.report_missing(at, &source, kind, name);
                        continue;
                    }
                    (source, availability) = (Source::Void, Availability::Optional);
                }
                let Some(target_name) = self.target_name(at, clause.r#as.as_deref(), name) else {
                    continue;
                };
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
}
