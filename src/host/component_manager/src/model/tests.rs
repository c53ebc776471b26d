use super::*;
use crate::cml::{self, NoIncludes};
use crate::decl::*;
use crate::moniker::Moniker;
use crate::name::{Name, Url};
use crate::resolver::{Package, ResolveError, Resolved, Resolver};
use std::rc::Rc;

struct Manifests(Vec<(&'static str, &'static str)>);

impl Resolver for Manifests {
    fn resolve(&self, url: &Url) -> Result<Rc<Resolved>, ResolveError> {
        let name = url.resource().as_str();
        let found = self.0.iter().find(|(known, _)| *known == name);
        let (_, text) = found.ok_or_else(|| ResolveError::PackageNotFound(name.to_owned()))?;
        let decl = cml::compile(name, text, &NoIncludes)
            .map_err(|problems| ResolveError::InvalidManifest(Rc::new(problems)))?;
        Ok(Rc::new(Resolved {
            url: url.clone(),
            decl,
            package: Package::Directory("/nowhere".into()),
        }))
    }
}

fn tree(manifests: &[(&'static str, &'static str)]) -> Tree {
    Tree::new(
        "fuchsia-pkg://fuchsia.com/test#root".parse().unwrap(),
        Rc::new(Manifests(manifests.to_vec())),
    )
}

fn find(tree: &mut Tree, moniker: &str) -> InstanceId {
    tree.find(&moniker.parse().unwrap()).unwrap()
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn use_of(tree: &mut Tree, id: InstanceId, index: usize) -> UseDecl {
    tree.resolve(id).unwrap().decl.uses[index].clone()
}

const ROOT: (&str, &str) = (
    "root",
    "{ children: [ { name: 'a', url: '#a' }, { name: 'b', url: '#b', environment: '#e' } ],
       environments: [ { name: 'e', extends: 'realm', runners: [ { runner: 'mine', from: '#a', as: 'special' } ], __stop_timeout_ms: 70 } ],
       offer: [
           { protocol: 'p', from: '#a', to: '#b', as: 'q' },
           { protocol: 'system', from: 'parent', to: '#b' },
           { protocol: 'gone', from: 'void', to: '#b' },
           { directory: 'data', from: '#a', to: '#b', rights: [ 'r*' ], subdir: 'x' },
           { storage: 'tmp', from: 'self', to: '#b' },
       ],
       capabilities: [ { storage: 'tmp', from: 'parent', backing_dir: 'host_tmp', subdir: 's' } ],
       expose: [ { protocol: 'p', from: '#a' } ] }",
);
const A: (&str, &str) = (
    "a",
    "{ program: { runner: 'elf', binary: 'bin/a' },
       capabilities: [ { protocol: 'p' }, { directory: 'data', path: '/d', rights: [ 'rw*' ] }, { runner: 'mine' } ],
       expose: [ { protocol: 'p', from: 'self' }, { directory: 'data', from: 'self', subdir: 'y' }, { runner: 'mine', from: 'self' },
                 { directory: 'pkg', from: 'framework' } ] }",
);
const B: (&str, &str) = (
    "b",
    "{ program: { runner: 'special' },
       use: [ { protocol: 'q' }, { protocol: 'system' }, { protocol: 'gone', availability: 'optional' },
              { directory: 'data', path: '/data', rights: [ 'r*' ], subdir: 'z' },
              { directory: 'data', path: '/writable', rights: [ 'rw*' ] },
              { storage: 'tmp', path: '/tmp' }, { protocol: 'nowhere' },
              { protocol: 'fuchsia.component.Realm', from: 'framework' } ],
       collections: [ { name: 'c', durability: 'single_run', allowed_offers: 'static_and_dynamic' }, { name: 'plain', durability: 'transient' } ],
       offer: [ { protocol: 'q', from: 'parent', to: '#c' } ] }",
);
const LEAF: (&str, &str) =
    ("leaf", "{ program: { runner: 'special' }, use: [ { protocol: 'q' }, { protocol: 'dyn' } ] }");

fn outgoing(id: InstanceId, path: &str) -> RouteSource {
    RouteSource::Outgoing { id, path: path.parse().unwrap() }
}

#[test]
fn a_protocol_is_found_through_offer_and_expose_and_renamed_on_the_way() {
    let mut tree = tree(&[ROOT, A, B]);
    let (a, b) = (find(&mut tree, "a"), find(&mut tree, "b"));
    let used = use_of(&mut tree, b, 0);
    assert_eq!(tree.route_use(b, &used).unwrap().source, outgoing(a, "/svc/p"));
    let root = tree.root();
    assert_eq!(
        tree.route_expose(root, CapabilityType::Protocol, &name("p")).unwrap().source,
        outgoing(a, "/svc/p")
    );
}

#[test]
fn the_root_gets_what_the_system_has_and_void_is_void() {
    let mut tree = tree(&[ROOT, A, B]);
    let b = find(&mut tree, "b");
    let used = use_of(&mut tree, b, 1);
    assert_eq!(
        tree.route_use(b, &used).unwrap().source,
        RouteSource::Builtin { name: name("system") }
    );
    let used = use_of(&mut tree, b, 2);
    assert!(matches!(tree.route_use(b, &used), Err(RouteError::Void { .. })));
    let used = use_of(&mut tree, b, 6);
    let error = tree.route_use(b, &used).unwrap_err();
    assert_eq!(
        error.to_string(),
        ". does not offer the protocol nowhere to its child b; add an \"offer\" to its manifest"
    );
    let used = use_of(&mut tree, b, 7);
    assert_eq!(
        tree.route_use(b, &used).unwrap().source,
        RouteSource::Framework { scope: b, name: name("fuchsia.component.Realm") }
    );
}

#[test]
fn directories_keep_the_narrowest_rights_and_join_their_parts() {
    let mut tree = tree(&[ROOT, A, B]);
    let (a, b) = (find(&mut tree, "a"), find(&mut tree, "b"));
    let used = use_of(&mut tree, b, 3);
    let route = tree.route_use(b, &used).unwrap();
    assert_eq!(route.source, outgoing(a, "/d"));
    assert_eq!(route.subdir.as_str(), "y/x/z");
    assert_eq!(route.rights, Some(Rights::READ));
    let used = use_of(&mut tree, b, 4);
    let lacking = Rights::WRITE_BYTES | Rights::MODIFY_DIRECTORY | Rights::UPDATE_ATTRIBUTES;
    assert!(
        matches!(tree.route_use(b, &used), Err(RouteError::Rights { lacking: l, .. }) if l == lacking)
    );
    let package = tree.route_expose(a, CapabilityType::Directory, &name("pkg")).unwrap();
    assert_eq!(package.source, RouteSource::Framework { scope: a, name: name("pkg") });
    assert_eq!(package.rights, Some(Rights::READ | Rights::WRITE | Rights::EXEC));
}

#[test]
fn storage_leads_to_its_backing_directory() {
    let mut tree = tree(&[ROOT, A, B]);
    let b = find(&mut tree, "b");
    let used = use_of(&mut tree, b, 5);
    let route = tree.route_storage(b, &used).unwrap();
    assert_eq!(route.declared_by, tree.root());
    assert_eq!(route.backing.source, RouteSource::Builtin { name: name("host_tmp") });
    assert_eq!(route.backing.subdir.as_str(), "s");
}

#[test]
fn runners_come_from_the_environment_and_are_inherited() {
    let mut tree = tree(&[ROOT, A, B, LEAF]);
    let (a, b) = (find(&mut tree, "a"), find(&mut tree, "b"));
    let runner = "/svc/fuchsia.component.runner.ComponentRunner";
    assert_eq!(tree.route_runner(b, &name("special")).unwrap().source, outgoing(a, runner));
    let url = "#leaf".parse().unwrap();
    let leaf = tree.create_child(b, &name("c"), name("l"), url, Startup::Lazy, Vec::new()).unwrap();
    assert_eq!(tree.route_runner(leaf, &name("special")).unwrap().source, outgoing(a, runner));
    assert_eq!(
        tree.route_runner(a, &name("elf")).unwrap().source,
        RouteSource::Builtin { name: name("elf") }
    );
    assert_eq!(tree.stop_timeout_ms(leaf).unwrap(), Some(70));
    assert_eq!(tree.stop_timeout_ms(a).unwrap(), None);
}

#[test]
fn dynamic_children_get_static_and_dynamic_offers() {
    let mut tree = tree(&[ROOT, A, B, LEAF]);
    let (a, b) = (find(&mut tree, "a"), find(&mut tree, "b"));
    let offer = OfferDecl {
        kind: CapabilityType::Protocol,
        source_name: name("q"),
        source: Source::Parent,
        target: OfferTarget::Collection(name("c")),
        target_name: name("dyn"),
        rights: None,
        subdir: Default::default(),
        availability: Availability::Required,
    };
    let url: Url = "#leaf".parse().unwrap();
    let leaf = tree
        .create_child(b, &name("c"), name("l"), url.clone(), Startup::Lazy, vec![offer.clone()])
        .unwrap();
    for index in [0, 1] {
        let used = use_of(&mut tree, leaf, index);
        assert_eq!(tree.route_use(leaf, &used).unwrap().source, outgoing(a, "/svc/p"));
    }
    assert_eq!(tree.moniker(leaf).to_string(), "b/c:l");
    let again = tree.create_child(b, &name("c"), name("l"), url.clone(), Startup::Lazy, Vec::new());
    assert!(matches!(again, Err(TreeError::ChildExists { .. })));
    let refused =
        tree.create_child(b, &name("plain"), name("l"), url.clone(), Startup::Lazy, vec![offer]);
    assert!(matches!(refused, Err(TreeError::NoDynamicOffers(_))));
    let nowhere = tree.create_child(b, &name("none"), name("l"), url, Startup::Lazy, Vec::new());
    assert!(matches!(nowhere, Err(TreeError::CollectionNotFound { .. })));
}

#[test]
fn what_is_removed_is_gone_with_all_below_it() {
    let mut tree = tree(&[ROOT, A, B, LEAF]);
    let b = find(&mut tree, "b");
    let leaf = tree
        .create_child(b, &name("c"), name("l"), "#leaf".parse().unwrap(), Startup::Lazy, Vec::new())
        .unwrap();
    assert_eq!(tree.subtree(b), [b, leaf]);
    tree.remove(leaf);
    assert!(matches!(tree.get(leaf), Err(TreeError::Destroyed)));
    assert!(tree.find(&"b/c:l".parse::<Moniker>().unwrap()).is_err());
    assert_eq!(tree.children(b), []);
    let fresh = tree
        .create_child(b, &name("c"), name("l"), "#leaf".parse().unwrap(), Startup::Lazy, Vec::new())
        .unwrap();
    assert_ne!(fresh, leaf);
}

#[test]
fn an_unresolvable_child_says_which_and_why() {
    let mut tree = tree(&[(
        "root",
        "{ children: [ { name: 'x', url: '#missing' } ], expose: [ { protocol: 'p', from: '#x' } ] }",
    )]);
    let root = tree.root();
    let error = tree.route_expose(root, CapabilityType::Protocol, &name("p")).unwrap_err();
    assert!(error.to_string().starts_with("x (fuchsia-pkg://fuchsia.com/test#missing)"), "{error}");
}

#[test]
fn what_is_not_routed_at_all_says_so() {
    for (text, kind) in [
        ("service: 's'", CapabilityType::Service),
        ("dictionary: 'd'", CapabilityType::Dictionary),
        ("event_stream: 'started', from: 'parent'", CapabilityType::EventStream),
    ] {
        let user: &'static str = format!("{{ use: [ {{ {text} }} ] }}").leak();
        let mut tree =
            tree(&[("root", "{ children: [ { name: 'user', url: '#user' } ] }"), ("user", user)]);
        let id = find(&mut tree, "user");
        let used = use_of(&mut tree, id, 0);
        let error = tree.route_use(id, &used).unwrap_err();
        assert!(matches!(error, RouteError::Unsupported(found) if found == kind), "{error}");
        assert!(error.to_string().starts_with(&format!("A {kind} cannot be routed")), "{error}");
    }
}
