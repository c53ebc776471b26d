use super::*;
use crate::decl::*;
use std::collections::HashMap;

struct Shards(HashMap<&'static str, &'static str>);

impl Includes for Shards {
    fn load(&self, path: &str, _from: &str) -> Option<(String, String)> {
        self.0.get(path).map(|text| (path.to_owned(), (*text).to_owned()))
    }
}

fn errors(text: &str) -> Vec<String> {
    match compile("t.cml", text, &NoIncludes) {
        Ok(_) => Vec::new(),
        Err(Diagnostics(list)) => list.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn a_manifest_in_full_becomes_a_declaration() {
    let text = r##"{
        include: [ "a/client.shard.cml" ],
        program: { runner: "elf", binary: "bin/x", args: [ "one", "two" ], lifecycle: { stop_event: "notify" } },
        children: [ { name: "kid", url: "#meta/kid.cm", startup: "eager", environment: "#env" } ],
        collections: [ { name: "kids", durability: "single_run" } ],
        environments: [ { name: "env", extends: "realm", runners: [ { runner: "mine", from: "self", as: "vmm" } ] } ],
        capabilities: [
            { protocol: [ "p.A", "p.B" ] },
            { directory: "d", path: "/d", rights: [ "rw*" ] },
            { runner: "mine" },
            { storage: "s", from: "self", backing_dir: "d", subdir: "x/y" },
        ],
        use: [
            { protocol: "q", from: "#kid", dependency: "weak" },
            { directory: "dd", rights: [ "r*" ], path: "/dd", availability: "optional" },
            { config: "c", key: "size", type: "uint64", default: 7 },
        ],
        offer: [ { protocol: "p.A", from: "self", to: [ "#kid", "#kids" ], as: "p.C" } ],
        expose: [ { protocol: [ "p.A", "p.B" ], from: "self" } ],
        config: { size: { type: "uint64" } },
        facets: { x: 1 },
    }"##;
    let shards =
        Shards(HashMap::from([("a/client.shard.cml", "{ use: [ { protocol: 'shared' } ] }")]));
    let decl = compile("t.cml", text, &shards).unwrap();
    let program = decl.program.unwrap();
    assert_eq!(program.runner.unwrap(), "elf");
    assert_eq!(program.info["lifecycle.stop_event"], ProgramValue::Str("notify".to_owned()));
    assert_eq!(
        program.info["args"],
        ProgramValue::StrVec(vec!["one".to_owned(), "two".to_owned()])
    );
    assert_eq!(decl.children[0].startup, Startup::Eager);
    assert_eq!(decl.capabilities.len(), 5);
    assert_eq!(decl.offers.len(), 2);
    assert_eq!(decl.offers[1].target, OfferTarget::Collection("kids".parse().unwrap()));
    assert_eq!(decl.offers[1].target_name, "p.C");
    assert_eq!(decl.exposes.len(), 2);
    let paths: Vec<_> = decl
        .uses
        .iter()
        .map(|u| u.target_path.as_ref().map(|path| path.as_str().to_owned()))
        .collect();
    assert_eq!(
        paths,
        [Some("/svc/q".to_owned()), Some("/dd".to_owned()), None, Some("/svc/shared".to_owned())]
    );
    assert_eq!(decl.uses[2].config_default, Some(ConfigValue::Integer(7)));
    assert_eq!(decl.environments[0].runners[0].target_name, "vmm");
}

#[test]
fn each_mistake_is_reported_where_it_stands() {
    let text = "{\n  children: [ { name: 'a', url: 'nonsense' } ],\n  use: [ { protocol: 'p', from: '#nobody' } ],\n  offer: [ { protocol: 'p', from: 'self', to: '#b' } ],\n}";
    let list = errors(text);
    assert_eq!(list.len(), 3, "{list:#?}");
    assert!(
        list[0].starts_with("t.cml:2:33: error: \"nonsense\" is not a component URL"),
        "{}",
        list[0]
    );
    assert!(list[1].starts_with("t.cml:3:33: error: There is no child \"nobody\""), "{}", list[1]);
    assert!(
        list[2].starts_with("t.cml:4:12: error: The protocol \"p\" comes from self"),
        "{}",
        list[2]
    );
}

#[test]
fn syntax_errors_and_unknown_keys_have_a_place() {
    assert!(
        errors("{\n  use: [ }\n}")[0].starts_with("t.cml:2:"),
        "{:?}",
        errors("{\n  use: [ }\n}")
    );
    let unknown = &errors("{\n  uses: [],\n}")[0];
    assert!(unknown.contains("nknown field `uses`"), "{unknown}");
    assert!(unknown.starts_with("t.cml:"), "{unknown}");
    assert!(errors(&"[".repeat(100_000))[0].contains("levels of brackets"));
}

#[test]
fn rules_between_sections_are_checked() {
    let cases = [
        ("{ use: [ { directory: 'd', path: '/d' } ] }", "without \"rights\""),
        (
            "{ use: [ { directory: 'd', path: '/svc', rights: ['r*'] }, { protocol: 'p' } ] }",
            "clashes",
        ),
        (
            "{ use: [ { directory: 'd', path: '/pkg/x', rights: ['r*'] } ] }",
            "the component's package",
        ),
        ("{ use: [ { directory: 'd', path: '/d', rights: ['q*'] } ] }", "is not a right"),
        ("{ use: [ { protocol: 'p', directory: 'd' } ] }", "at once"),
        ("{ use: [ { protocol: 'p', availability: 'maybe' } ] }", "is not one of the words"),
        ("{ use: [ { path: '/x' } ] }", "names no capability"),
        ("{ use: [ { protocol: ['p', 'p'] } ] }", "twice"),
        ("{ capabilities: [ { protocol: 'p' }, { protocol: 'p' } ] }", "declared already"),
        ("{ expose: [ { protocol: 'p', from: 'parent' } ] }", "is not a source"),
        (
            "{ children: [ { name: 'a', url: '#meta/a.cm' }, { name: 'a', url: '#meta/a.cm' } ] }",
            "already",
        ),
        ("{ collections: [ { name: 'a', durability: 'eternal' } ] }", "is not one of the words"),
        ("{ environments: [ { name: 'e' } ] }", "stop time-out"),
        (
            "{ environments: [ { name: 'e', extends: 'realm', runners: [ { runner: 'r', from: 'self' } ] } ] }",
            "not declared",
        ),
        (
            "{ children: [ { name: 'a', url: '#meta/a.cm', environment: '#e' } ], program: { runner: 'elf' } }",
            "no environment",
        ),
        (
            "{ children: [ { name: 'a', url: '#meta/a.cm' } ], offer: [ { protocol: 'p', from: '#a', to: '#a' } ] }",
            "comes from",
        ),
        ("{ config: { Big: { type: 'bool' } } }", "not a configuration key"),
        ("{ config: { s: { type: 'string' } } }", "needs a bound"),
        ("{ config: { s: { type: 'uint8', default: 256 } } }", "between 0 and 255"),
        ("{ include: [ 'nowhere.shard.cml' ] }", "does not exist"),
    ];
    for (text, expected) in cases {
        let list = errors(text);
        assert!(
            list.iter().any(|error| error.contains(expected)),
            "{text}: expected {expected:?}, got {list:?}"
        );
    }
}

#[test]
fn circles_of_strong_dependencies_are_found() {
    let manifest = |dependency: &str| {
        format!(
            "{{ capabilities: [ {{ runner: 'vmm' }} ],
               environments: [ {{ name: 'e', extends: 'realm', runners: [ {{ runner: 'vmm', from: 'self' }} ] }} ],
               children: [ {{ name: 'vmm', url: '#meta/vmm.cm', environment: '#e' }} ],
               use: [ {{ protocol: 'p', from: '#vmm', dependency: '{dependency}' }} ] }}"
        )
    };
    let list = errors(&manifest("strong"));
    assert!(list.len() == 1 && list[0].contains("in a circle"), "{list:?}");
    assert_eq!(errors(&manifest("weak")), Vec::<String>::new());
}

#[test]
fn an_unknown_source_becomes_void() {
    let decl = compile(
        "t.cml",
        "{ children: [ { name: 'a', url: '#meta/a.cm' } ],
           offer: [ { protocol: 'p', from: '#ghost', to: '#a', source_availability: 'unknown' } ] }",
        &NoIncludes,
    )
    .unwrap();
    assert_eq!(decl.offers[0].source, Source::Void);
    assert_eq!(decl.offers[0].availability, Availability::Optional);
}

#[test]
fn include_cycles_end() {
    let shards = Shards(HashMap::from([
        ("a", "{ include: ['b'] }"),
        ("b", "{ include: ['a'], use: [ { protocol: 'p' } ] }"),
    ]));
    let decl = compile("t.cml", "{ include: ['a'] }", &shards).unwrap();
    assert_eq!(decl.uses.len(), 1);
}
