//! Whole programs through the compiler: what it accepts, what it says, and what it computes.

use crate::ir::{DeclarationKind, MethodKind, Openness, Program, Type, Value};
use crate::layout::Layouts;
use crate::source::SourceMap;

const ZX: &str = "library zx;
alias Status = int32;
type ObjType = strict enum : uint32 { NONE = 0; VMO = 3; CHANNEL = 4; EVENT = 5; };
type Rights = strict bits : uint32 { DUPLICATE = 1; TRANSFER = 2; READ = 4; };
const RIGHTS_BASIC Rights = Rights.DUPLICATE | Rights.TRANSFER;
resource_definition Handle : uint32 { properties { subtype ObjType; rights Rights; }; };
";

/// Compiles `files` and `zx`; the name of a file that is not given otherwise is `t.fidl`.
fn compile(files: &[(&str, &str)]) -> Result<Program, String> {
    let mut sources = SourceMap::new();
    for (name, text) in files {
        sources.add(*name, *text);
    }
    sources.add("zx.fidl", ZX);
    crate::compile(&sources)
        .map_err(|list| list.iter().map(|diagnostic| diagnostic.render(&sources)).collect())
}

#[track_caller]
fn accept(body: &str) -> Program {
    match compile(&[("t.fidl", &format!("library t;\n{body}"))]) {
        Ok(program) => program,
        Err(text) => panic!("{text}"),
    }
}

/// The diagnostics of a library `t` with this body, which starts on line 2.
#[track_caller]
fn errors(body: &str) -> String {
    compile(&[("t.fidl", &format!("library t;\n{body}"))]).expect_err("the source is wrong")
}

/// Checks the first lines (`file:line:column: error: …`) of the diagnostics.
#[track_caller]
fn rejected(body: &str, expected: &[&str]) {
    let text = errors(body);
    let heads: Vec<&str> = text.lines().filter(|line| line.contains(": error: ")).collect();
    let expected: Vec<String> = expected.iter().map(|line| format!("t.fidl:{line}")).collect();
    assert_eq!(heads, expected, "{text}");
}

#[track_caller]
fn declared<'a>(program: &'a Program, name: &str) -> &'a DeclarationKind {
    let library = program.library("t").unwrap();
    &library
        .declarations
        .iter()
        .find(|d| d.name == name)
        .unwrap_or_else(|| panic!("no {name}"))
        .kind
}

#[test]
fn diagnostics_show_the_line_and_a_caret() {
    let text = errors("type S = struct {\n\tx uint33;\n    y vector<Missing>:3;\n};\n");
    assert_eq!(
        text,
        "t.fidl:3:4: error: unknown name `uint33`\n\
         \tx uint33;\n\
         \t  ^~~~~~\n\
         t.fidl:4:14: error: unknown name `Missing`\n    \
             y vector<Missing>:3;\n             \
                      ^~~~~~~\n"
    );
}

#[test]
fn notes_show_the_other_place() {
    let text = errors("type A = struct {};\ntype A = table {};\n");
    assert_eq!(
        text,
        "t.fidl:3:6: error: `A` is declared twice\ntype A = table {};\n     ^\n\
         t.fidl:2:6: note: first declared here\ntype A = struct {};\n     ^\n"
    );
}

#[test]
fn columns_count_characters() {
    rejected(
        "/* */ const A string = \"\";",
        &[
            "2:1: error: unexpected character `/`",
            "2:2: error: unexpected character `*`",
            "2:4: error: unexpected character `*`",
            "2:5: error: unexpected character `/`",
        ],
    );
    rejected(
        "const A string:2 = \"äöü\"; const B Missing = 1;",
        &[
            "2:20: error: `\"äöü\"` is not a value of `string:2`",
            "2:35: error: unknown name `Missing`",
        ],
    );
}

#[test]
fn the_parser_recovers_at_each_statement() {
    rejected(
        "type A = struct {\n  x uint8\n  y uint8;\n  z = 4;\n  good uint8;\n};\ntype = struct {};\nconst X uint8 5;\ntype B = wrong { };\nprotocol P { M() -> ; N(; strict O(); };",
        &[
            "3:9: error: expected `;`, found `y`",
            "5:5: error: expected an identifier, found `=`",
            "8:6: error: expected an identifier, found `=`",
            "9:15: error: expected `=`, found `5`",
            "10:10: error: expected a layout (for another name of a type, use `alias`), found `wrong`",
            "11:21: error: expected `(`, found `;`",
            "11:25: error: expected an identifier, found `;`",
        ],
    );
}

#[test]
fn a_file_must_name_its_library() {
    let text = compile(&[("t.fidl", "type A = struct {};")]).unwrap_err();
    assert!(text.starts_with("t.fidl:1:1: error: expected `library`, found `type`\n"), "{text}");
    let text = compile(&[("t.fidl", "library Bad.name;")]).unwrap_err();
    assert!(text.starts_with("t.fidl:1:9: error: `Bad` is not a part of a library name"), "{text}");
}

#[test]
fn names_clash_in_canonical_form() {
    rejected(
        "type FooBar = struct {};\nconst FOO_BAR uint8 = 1;\ntype S = struct { a_b uint8; aB uint8; };",
        &[
            "3:7: error: declaration `FOO_BAR` clashes with `FooBar`: both are `foo_bar` in canonical form",
            "4:30: error: member `aB` clashes with `a_b`: both are `a_b` in canonical form",
        ],
    );
}

#[test]
fn inline_layouts_are_named_after_their_place() {
    let program = accept(
        "type S = struct { first_field struct { x uint8; }; @generated_name_is_below second @generated_name(\"Chosen\") enum { A = 1; }; };\nprotocol P { strict Get(struct { a uint8; }) -> (struct { b uint8; }); strict Try() -> (struct { c uint8; }) error enum : uint32 { BAD = 1; }; strict -> OnIt(struct { d uint8; }); };",
    );
    let names: Vec<&str> =
        program.library("t").unwrap().declarations.iter().map(|d| d.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "S",
            "FirstField",
            "Chosen",
            "P",
            "PGetRequest",
            "PGetResponse",
            "P_Try_Response",
            "PTryError",
            "POnItRequest"
        ]
    );
    rejected(
        "type S = struct { a struct {}; };\ntype T = struct { a struct {}; };",
        &[
            "3:21: error: `A` is declared twice; give the inline layout another name with `@generated_name`",
        ],
    );
}

#[test]
fn constants_are_evaluated_and_bounded() {
    let program = accept(
        "const A uint8 = 0xff;\nconst B uint32 = A;\nconst C string = \"x\\u{e9}\\n\";\nconst D Bits = Bits.X | Bits.Y;\nconst E Enum = Enum.N;\nconst F float32 = -1.5e2;\nconst G bool = true;\nconst H uint8 = 0b101 | 2;\ntype Bits = bits { X = 1; Y = 2; };\ntype Enum = enum : int8 { N = -1; };\ntype V = struct { v vector<uint8>:B; a array<uint8, A>; };",
    );
    let value = |name: &str| match declared(&program, name) {
        DeclarationKind::Const(constant) => constant.value.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(value("B"), Value::Int(255));
    assert_eq!(value("C"), Value::String("xé\n".into()));
    assert_eq!(value("D"), Value::Int(3));
    assert_eq!(value("E"), Value::Int(-1));
    assert_eq!(value("F"), Value::Float(-150.0));
    assert_eq!(value("G"), Value::Bool(true));
    assert_eq!(value("H"), Value::Int(7));
    rejected(
        "const A uint8 = 256;\nconst B int8 = -129;\nconst C bool = 1;\nconst D string = 4;\nconst E uint8 = E;\nconst F vector<uint8> = 1;\nconst G uint32 = G2;\nconst G2 uint32 = G;\nconst H Bits = 1;\nconst I Bits = Other.Z;\nconst J int8 = 1 | 2;\nconst K uint8 = 12q;\ntype Bits = bits { X = 1; };\ntype Other = bits { Z = 1; };",
        &[
            "2:17: error: `256` is not a value of `uint8`",
            "3:16: error: `-129` is not a value of `int8`",
            "4:16: error: `1` is not a value of `bool`",
            "5:18: error: `4` is not a value of `string`",
            "6:7: error: constant `E` refers to itself",
            "7:9: error: a constant is a primitive, a string, an enum or bits, not a vector",
            "8:7: error: constant `G` refers to itself",
            "10:16: error: `1` is not a value of `t/Bits`",
            "11:16: error: `1` is not a value of `t/Bits`",
            "12:16: error: `|` combines bits and unsigned numbers only",
            "13:17: error: `12q` is not a whole number",
        ],
    );
}

#[test]
fn enums_and_bits_are_checked() {
    rejected(
        "type A = enum { X = 1; Y = 1; };\ntype B = bits { X = 3; };\ntype C = strict enum {};\ntype D = enum : string { X = 1; };\ntype E = bits : int8 { X = 1; };\ntype F = strict enum { @unknown X = 1; };\ntype G = strict flexible enum { X = 1; };\ntype H = enum : uint8 { X = 300; };\ntype I = strict struct {};\ntype J = resource enum { X = 1; };",
        &[
            "2:24: error: value 1 is used twice",
            "3:17: error: a member of bits is one bit, a power of two; 3 is not",
            "4:6: error: a strict layout needs at least one member",
            "5:17: error: the underlying type must be an integer",
            "6:17: error: the underlying type must be an unsigned integer",
            "7:33: error: a strict enum has no unknown value",
            "8:17: error: a layout is `strict` or `flexible`, once",
            "9:29: error: `300` is not a value of `uint8`",
            "10:10: error: `strict` is for bits, enums and unions",
            "11:10: error: `resource` is for structs, tables and unions",
        ],
    );
}

#[test]
fn ordinals_are_unique_and_members_present() {
    rejected(
        "type T = table { 1: a uint8; 1: b uint8; };\ntype V = table { 65: a uint8; };\ntype W = union { 1: a string:optional; };\ntype X = strict union {};\ntype Y = table { 1: b box<S>; 2: reserved; 2: c uint8; };\ntype S = struct {};",
        &[
            "2:30: error: ordinal 1 is used twice",
            "3:18: error: ordinals of a table are at most 64",
            "4:23: error: a member of a table or union cannot be optional itself",
            "5:6: error: a strict layout needs at least one member",
            "6:23: error: a member of a table or union cannot be optional itself",
            "6:44: error: ordinal 2 is used twice",
        ],
    );
    rejected(
        "type U = union { 0: a uint8; };",
        &["2:18: error: ordinal `0` is not a number from 1 up"],
    );
}

#[test]
fn optional_is_for_what_can_be_absent() {
    rejected(
        "type S = struct { a uint8:optional; b Inner:optional; c T:optional; d box<T>; e box<Inner>:optional; f string:<optional, optional>; g array<uint8, 2>:optional; };\ntype Inner = struct {};\ntype T = table {};",
        &[
            "2:27: error: `uint8` cannot be optional",
            "2:45: error: `t/Inner` cannot be optional; use `box<…>`",
            "2:59: error: `t/T` cannot be optional",
            "2:75: error: only a struct can be boxed; other types take `:optional`",
            "2:92: error: `t/Inner` cannot be optional",
            "2:122: error: `optional` is given twice",
            "2:151: error: an array cannot be optional",
        ],
    );
}

#[test]
fn bounds_are_given_once_and_are_not_zero() {
    rejected(
        "alias Short = string:3;\ntype S = struct { a Short:4; b string:0; c array<uint8, 0>; d vector:4; e array<uint8>; f vector<uint8>:-1; g uint8:3; h vector<uint8, 2>; i bool<uint8>; j string:MAX; };",
        &[
            "3:27: error: the bound is given twice",
            "3:39: error: a size or bound must be at least 1",
            "3:57: error: a size or bound must be at least 1",
            "3:63: error: `vector` takes one type: `vector<T>:N`",
            "3:75: error: `array` takes a type and a size: `array<T, N>`",
            "3:105: error: `-1` is not a value of `uint32`",
            "3:117: error: `uint8` cannot be constrained by this",
            "3:122: error: `vector` takes one type: `vector<T>:N`",
            "3:142: error: this type takes no parameters",
        ],
    );
}

#[test]
fn values_cannot_contain_themselves() {
    rejected(
        "type A = struct { b B; };\ntype B = struct { a array<A, 2>; };\ntype U = union { 1: u U; };",
        &[
            "3:19: error: `A` contains itself; put a `box`, an `:optional` or a vector in between",
            "4:21: error: `U` contains itself; put a `box`, an `:optional` or a vector in between",
        ],
    );
    accept(
        "type A = struct { next box<A>; all vector<A>; u U:optional; t T; };\ntype U = union { 1: u vector<U>; 2: a A; };\ntype T = table { 1: t T; };",
    );
    rejected("alias A = B;\nalias B = vector<A>;", &["2:7: error: alias `A` refers to itself"]);
}

#[test]
fn deep_sources_are_refused_and_do_not_overflow() {
    let nested =
        format!("type S = struct {{ x {}uint8{}; }};", "vector<".repeat(5000), ">".repeat(5000));
    assert!(errors(&nested).contains("at most 64 types inside each other"));
    let structs: String =
        (0..5000).map(|i| format!("type S{i} = struct {{ x S{}; }};\n", i + 1)).collect();
    assert!(
        errors(&format!("{structs}type S5000 = struct {{}};")).contains("types inside each other")
    );
    let constants: String =
        (0..5000).map(|i| format!("const C{i} uint8 = C{};\n", i + 1)).collect();
    assert!(errors(&format!("{constants}const C5000 uint8 = 1;")).contains("too deeply"));
    let aliases: String = (0..5000).map(|i| format!("alias A{i} = A{};\n", i + 1)).collect();
    assert!(errors(&format!("{aliases}alias A5000 = uint8;")).contains("too deeply"));
    let braces = "type A = struct { x struct { ".repeat(5000);
    assert!(compile(&[("t.fidl", &format!("library t; {braces}"))]).is_err());
    let or = format!("const A uint8 = 1{};", " | 1".repeat(100_000));
    accept(&or);
    let boxes: String =
        (0..3000).map(|i| format!("type S{i} = struct {{ x box<S{}>; }};\n", i + 1)).collect();
    let program = accept(&format!("{boxes}type S3000 = struct {{}};"));
    crate::json::library(&program, program.library("t").unwrap());
}

#[test]
fn handles_make_types_resources() {
    let text = compile(&[(
        "t.fidl",
        "library t;\nusing zx;\ntype A = struct { h zx.Handle; };\ntype B = table { 1: v vector<R>; };\ntype R = resource struct { h zx.Handle:VMO; };\ntype C = union { 1: p client_end:P; };\nprotocol P { strict M(struct { r R; }); };",
    )])
    .unwrap_err();
    let heads: Vec<&str> = text.lines().filter(|line| line.contains(": error: ")).collect();
    assert_eq!(
        heads,
        [
            "t.fidl:3:19: error: `A` may hold handles because of its member `h`, so it must be a `resource` type",
            "t.fidl:4:21: error: `B` may hold handles because of its member `v`, so it must be a `resource` type",
            "t.fidl:6:21: error: `C` may hold handles because of its member `p`, so it must be a `resource` type",
            "t.fidl:7:32: error: `PMRequest` may hold handles because of its member `r`, so it must be a `resource` type",
        ]
    );
}

#[test]
fn handle_types_have_subtype_and_rights() {
    let program = compile(&[(
        "t.fidl",
        "library t;\nusing zx;\ntype R = resource struct {\n  a zx.Handle;\n  b zx.Handle:<VMO, optional>;\n  c zx.Handle:<CHANNEL, zx.Rights.READ | zx.Rights.TRANSFER>;\n  d zx.Handle:<EVENT, zx.RIGHTS_BASIC, optional>;\n};",
    )])
    .unwrap();
    let DeclarationKind::Struct(s) = declared(&program, "R") else { panic!() };
    let parts: Vec<(u32, u32, bool)> = s
        .members
        .iter()
        .map(|member| match member.ty {
            Type::Handle { subtype, rights, optional, .. } => (subtype, rights, optional),
            _ => panic!(),
        })
        .collect();
    let same = crate::ir::SAME_RIGHTS;
    assert_eq!(parts, [(0, same, false), (3, same, true), (4, 6, false), (5, 3, true)]);
    let text = compile(&[(
        "t.fidl",
        "library t;\nusing zx;\ntype R = resource struct { a zx.Handle:NOTHING; b zx.Handle:<VMO, 1, 2>; };",
    )])
    .unwrap_err();
    assert!(text.contains("t.fidl:3:40: error: unknown name `NOTHING`"), "{text}");
    assert!(text.contains("t.fidl:3:70: error: a handle has a subtype and rights only"), "{text}");
}

#[test]
fn libraries_are_imported_used_and_acyclic() {
    let a = "library a;\nusing b;\ntype A = struct { x b.B; };";
    let b = "library b;\ntype B = struct { y uint8; };";
    let program = compile(&[("a.fidl", a), ("b.fidl", b)]).unwrap();
    let names: Vec<&str> = program.libraries.iter().map(|l| l.name.as_str()).collect();
    assert!(names.iter().position(|n| *n == "b") < names.iter().position(|n| *n == "a"));
    let text = compile(&[("t.fidl", "library t;\nusing zx;\nusing nothing;\n")]).unwrap_err();
    assert!(text.contains("t.fidl:3:7: error: library `nothing` was not found"), "{text}");
    assert!(text.contains("t.fidl:2:7: error: library `zx` is imported but not used"), "{text}");
    let text = compile(&[("t.fidl", "library t;\ntype A = struct { s zx.Status; };")]).unwrap_err();
    assert!(text.contains("unknown name `zx.Status`; is `using zx;` missing?"), "{text}");
    let text =
        compile(&[("a.fidl", "library a;\nusing b;\n"), ("b.fidl", "library b;\nusing a;\n")])
            .unwrap_err();
    assert!(text.contains("libraries import each other in a cycle"), "{text}");
    compile(&[(
        "t.fidl",
        "library t;\nusing zx as kernel;\ntype A = struct { s kernel.Status; };",
    )])
    .unwrap();
}

#[test]
fn openness_limits_methods_and_composition() {
    rejected(
        "closed protocol C { M(); -> E(); strict N() -> (); };\najar protocol A { flexible M() -> (); flexible N(); compose O; };\nopen protocol O { flexible P() -> (); };\nclosed protocol D { compose A; };",
        &[
            "2:21: error: a one-way method of a protocol that is closed must be strict (methods are flexible by default)",
            "2:29: error: an event of a protocol that is closed must be strict (methods are flexible by default)",
            "3:19: error: a two-way method of a protocol that is ajar must be strict",
            "3:61: error: a protocol that is ajar cannot compose `O`, which is open",
            "5:29: error: a protocol that is closed cannot compose `A`, which is ajar",
        ],
    );
    let program = accept("protocol P { M() -> (); };");
    let DeclarationKind::Protocol(p) = declared(&program, "P") else { panic!() };
    assert_eq!(p.openness, Openness::Open);
    assert!(!p.methods[0].strict);
    assert!(p.methods[0].has_result_union());
}

#[test]
fn composition_takes_the_methods_with_their_ordinals() {
    let program = accept(
        "closed protocol Base { strict M(); };\n@discoverable closed protocol Derived { compose Base; strict N() -> (); strict -> E(); };\n@discoverable(name=\"other.Name\") closed protocol Named {};",
    );
    let DeclarationKind::Protocol(base) = declared(&program, "Base") else { panic!() };
    let DeclarationKind::Protocol(derived) = declared(&program, "Derived") else { panic!() };
    let DeclarationKind::Protocol(named) = declared(&program, "Named") else { panic!() };
    let methods: Vec<_> = derived
        .methods
        .iter()
        .map(|m| (m.name.as_str(), m.kind, m.composed_from.is_some()))
        .collect();
    assert_eq!(
        methods,
        [
            ("N", MethodKind::TwoWay, false),
            ("E", MethodKind::Event, false),
            ("M", MethodKind::OneWay, true)
        ]
    );
    assert_eq!(derived.methods[2].ordinal, base.methods[0].ordinal);
    assert_eq!(derived.discoverable.as_deref(), Some("t.Derived"));
    assert_eq!(named.discoverable.as_deref(), Some("other.Name"));
    rejected(
        "closed protocol A { compose B; strict M(); };\nclosed protocol B { strict M(); compose A; };\nclosed protocol C { strict m(); strict M(); };\nclosed protocol D { @selector(\"t/C.m\") strict X(); @selector(\"t/C.m\") strict Y(); };\nclosed protocol E { compose S; };\ntype S = struct {};",
        &[
            "2:29: error: protocols compose each other in a cycle or too deeply",
            "3:41: error: protocols compose each other in a cycle or too deeply",
            "4:40: error: method `M` clashes with `m`: they are one name in canonical form",
            "5:78: error: methods `Y` and `X` have the same ordinal 0x2adf2f802309efe2; change one with `@selector`",
            "6:29: error: `S` is not a protocol",
        ],
    );
}

#[test]
fn ordinals_are_those_of_fuchsia() {
    // fuchsia.io/Directory.Open of the first version, and the two methods of fuchsia.unknown.
    for (selector, ordinal) in [
        ("fuchsia.io1/Directory.Open", 0x2c50_4456_1d68_5ec0),
        ("fuchsia.unknown/Cloneable.Clone", 0x20d8_a7ab_a216_8a79),
        ("fuchsia.unknown/Queryable.Query", 0x2658_edee_9dec_fc06),
        ("fuchsia.io/Node.Close", 0x5ac5_d459_ad7f_657e),
    ] {
        assert_eq!(crate::ordinal::method_ordinal(selector), ordinal, "{selector}");
    }
}

#[test]
fn payloads_and_errors_have_their_types() {
    rejected(
        "protocol P {\n  A(struct {});\n  B(uint8);\n  C() -> () error string;\n  D() -> () error Big;\n  -> E() error uint32;\n  F(E2);\n};\ntype Big = enum : uint64 { X = 1; };\ntype E2 = enum { X = 1; };",
        &[
            "3:5: error: an empty payload is written `()`",
            "4:5: error: a payload is a struct, a table or a union",
            "5:19: error: an error is an int32, a uint32 or an enum of these",
            "6:19: error: an error is an int32, a uint32 or an enum of these",
            "7:16: error: an event has no error",
            "8:5: error: a payload is a struct, a table or a union",
        ],
    );
}

#[test]
fn attributes_stand_where_they_mean_something() {
    accept(
        "@unknown_to_us(1, b=\"x\") type A = table { @available(added=3) 1: a uint8; };\n/// Doc.\n@doc(\"more\")\nprotocol P { @selector(\"Other\") strict M(); };",
    );
    rejected(
        "@discoverable type A = struct {};\n@transport(\"Driver\") protocol P {};\nprotocol Q { @selector(\"a b\") strict M(); @selector strict N(); };\n@available(wrong=1) type B = struct {};\n@available(added=soon) type C = struct {};\n@x @x type D = struct {};\ntype E = struct { @generated_name(\"X\") a uint8; };",
        &["7:5: error: attribute `@x` is given twice"],
    );
    rejected(
        "@discoverable type A = struct {};\n@transport(\"Driver\") protocol P {};\nprotocol Q { @selector(\"a b\") strict M(); @selector strict N(); };\n@available(wrong=1) type B = struct {};\n@available(added=soon) type C = struct {};\ntype E = struct { @generated_name(\"X\") a uint8; };",
        &[
            "2:2: error: `@discoverable` is not allowed on a type",
            "3:12: error: transport `Driver` is not supported; only `Channel` is",
            "4:24: error: `a b` is not a selector: `Method` or `library/Protocol.Method`",
            "4:44: error: `@selector` takes one string",
            "5:12: error: `@available` has no argument `wrong`",
            "6:18: error: a version is a number, `NEXT` or `HEAD`",
            "7:20: error: `@generated_name` is not allowed on a member",
        ],
    );
}

#[test]
fn what_is_removed_does_not_exist() {
    let program = accept(
        "@available(removed=5) type A = struct { a uint8; };\n@available(added=5) type A = table { 1: a uint8; @available(added=1, removed=NEXT) 2: b uint8; };\nclosed(removed=4) open(added=4) protocol P { @available(replaced=3) M(struct { a uint8; }); @available(added=3) M(table {}); };",
    );
    let DeclarationKind::Table(table) = declared(&program, "A") else { panic!() };
    assert_eq!(table.members.len(), 1);
    let DeclarationKind::Protocol(p) = declared(&program, "P") else { panic!() };
    assert_eq!((p.openness, p.methods.len()), (Openness::Open, 1));
}

#[test]
fn layouts_follow_the_wire_format() {
    let program = accept(
        "type S = struct { a uint8; b uint32; c uint8; };\ntype E = struct {};\ntype M = struct { s S; v vector<uint16>:3; e E; b box<S>; a array<S, 2>; };\ntype T = table { 1: a uint8; 4: s S; };\ntype U = union { 1: a uint32; 2: s string:9; };\ntype R = struct { next box<R>; };",
    );
    let layouts = Layouts::new(&program);
    let shape = |name: &str| {
        let library = program.libraries.iter().position(|l| l.name == "t").unwrap();
        let declarations = &program.libraries[library].declarations;
        let index = declarations.iter().position(|d| d.name == name).unwrap();
        let id = crate::ir::DeclId { library, index };
        let (inline, bounds) = (layouts.declared(id), layouts.declared_bounds(id));
        (inline.size, inline.align, bounds.out_of_line, bounds.depth)
    };
    assert_eq!(shape("S"), (12, 4, 0, 0));
    assert_eq!(shape("E"), (1, 1, 0, 0));
    assert_eq!(shape("M"), (72, 8, 8 + 16, 1));
    assert_eq!(shape("T"), (16, 8, 32 + 16, 2));
    assert_eq!(shape("U"), (16, 8, 16 + 16, 2));
    assert_eq!(shape("R"), (8, 8, u32::MAX, u32::MAX));
    let DeclarationKind::Struct(s) = declared(&program, "S") else { panic!() };
    assert_eq!(layouts.fields(s).members, [(0, 3), (4, 0), (8, 3)]);
    rejected(
        "type A = struct { a array<uint64, 9000>; };\ntype B = struct { a array<array<array<uint64, MAX>, MAX>, MAX>; };",
        &[
            "2:6: error: 72000 bytes are more than the 65535 a message can hold",
            "2:19: error: 72000 bytes are more than the 65535 a message can hold",
            "3:6: error: 18446744073709551615 bytes are more than the 65535 a message can hold",
            "3:19: error: 18446744073709551615 bytes are more than the 65535 a message can hold",
        ],
    );
}

#[test]
fn services_have_client_ends() {
    accept("service S { a client_end:P; };\nprotocol P {};");
    rejected(
        "service S { a server_end:P; b uint8; };\nprotocol P {};\ntype T = struct { p P; };",
        &[
            "2:15: error: a member of a service is a `client_end:P`",
            "2:31: error: a member of a service is a `client_end:P`",
            "4:21: error: `P` is a protocol; use `client_end:P` or `server_end:P`",
        ],
    );
}

#[test]
fn the_summary_has_types_sizes_and_ordinals() {
    let program = accept(
        "type S = struct { a uint8; b uint32; };\n@discoverable closed protocol P { strict M(S) -> (struct { v vector<S>:4; }) error uint32; };",
    );
    let json = crate::json::library(&program, program.library("t").unwrap());
    assert_eq!(json["name"], "t");
    assert_eq!(json["struct_declarations"][0]["name"], "t/S");
    assert_eq!(json["struct_declarations"][0]["type_shape_v2"]["inline_size"], 8);
    assert_eq!(json["struct_declarations"][0]["members"][1]["field_shape_v2"]["offset"], 4);
    let method = &json["protocol_declarations"][0]["methods"][0];
    assert_eq!(method["selector"], "t/P.M");
    assert_eq!(method["ordinal"], crate::ordinal::method_ordinal("t/P.M"));
    assert_eq!(method["has_result_union"], true);
    assert_eq!(method["maybe_response_err_type"]["subtype"], "uint32");
}
