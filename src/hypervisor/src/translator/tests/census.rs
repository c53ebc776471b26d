//! What the differential tests leave out: every instruction form that user mode may execute under the CPU policy and that
//! no differential test runs is listed in `tests/golden/untested_forms.txt` with the reason. Set `UPDATE_GOLDEN` to write
//! the file anew.

use std::collections::BTreeMap;

use iced_x86::{Code, EncodingKind, FlowControl, Mnemonic};

use super::forms::{build, excluded};
use super::harness::Random;
use crate::translator::classify::{Class, features_allowed, form};

/// Why a form that user mode may execute is not run natively and translated; `None` if it is, or if there is no such form.
fn reason(code: Code) -> Option<&'static str> {
    use Mnemonic as M;
    let info = code.op_code();
    if !info.mode64() || !info.is_instruction() || code.is_privileged() || !features_allowed(code) {
        return None;
    }
    if matches!(
        info.encoding(),
        EncodingKind::EVEX | EncodingKind::XOP | EncodingKind::D3NOW | EncodingKind::MVEX
    ) {
        return None;
    }
    let class = form(code).class;
    if matches!(class, Class::Copy | Class::Lea | Class::BitString | Class::Element) {
        return match code.mnemonic() {
            M::Rdrand | M::Rdseed => Some("the result differs from run to run"),
            M::Pause | M::Clflush | M::Clflushopt | M::Clwb => {
                Some("no architectural result to compare")
            }
            M::Fldenv | M::Frstor | M::Fldcw => {
                Some("random bytes unmask x87 exceptions, which arrive at another instruction")
            }
            M::Fstenv | M::Fsave => Some("WAIT and another instruction"),
            M::Ldmxcsr => Some("random bytes unmask exceptions; the vCPU tests load it"),
            _ if excluded(code) => Some("excluded without a reason"),
            _ if build(code, &mut Random(1)).is_none() => {
                Some("operands that the generator does not make")
            }
            _ => None,
        };
    }
    match code.mnemonic() {
        M::Fnstenv | M::Fnsave | M::Fstenv | M::Fsave => Some(
            "the image holds the host's instruction and data pointers; tests/modes.rs and guests run it",
        ),
        M::Fxsave
        | M::Fxsave64
        | M::Fxrstor
        | M::Fxrstor64
        | M::Xsave
        | M::Xsave64
        | M::Xsaveopt
        | M::Xsaveopt64
        | M::Xrstor
        | M::Xrstor64 => Some("the image holds the host's pointers and components"),
        M::Cpuid
        | M::Rdpid
        | M::Rdtsc
        | M::Rdtscp
        | M::Xgetbv
        | M::Sgdt
        | M::Sidt
        | M::Sldt
        | M::Str
        | M::Smsw
        | M::Rdfsbase
        | M::Rdgsbase
        | M::Wrfsbase
        | M::Wrgsbase
        | M::Rdpmc
        | M::Lar
        | M::Lsl
        | M::Verr
        | M::Verw => Some("the guest's own value, not the host's"),
        M::Syscall
        | M::Sysenter
        | M::Int
        | M::Int3
        | M::Into
        | M::Int1
        | M::Ud0
        | M::Ud1
        | M::Ud2
        | M::Hlt => Some("enters the kernel: tests/exceptions.rs"),
        M::In | M::Out | M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd => {
            Some("port access: tests/vcpu.rs")
        }
        M::Lss | M::Lfs | M::Lgs | M::Retf | M::Iret | M::Iretd | M::Iretq => {
            Some("loads segments of the guest's tables: tests/exceptions.rs, tests/modes.rs")
        }
        M::Mov | M::Pop | M::Push if uses_segment(code) => {
            Some("loads segments of the guest's tables: tests/exceptions.rs, tests/modes.rs")
        }
        M::Cli | M::Sti => Some("depends on IOPL: tests/exceptions.rs"),
        _ if code.flow_control() != FlowControl::Next => None,
        _ => None,
    }
}

fn uses_segment(code: Code) -> bool {
    use iced_x86::OpCodeOperandKind as K;
    (0..code.op_code().op_count()).any(|n| matches!(code.op_code().op_kind(n), K::seg_reg))
}

#[test]
fn what_is_not_tested_is_listed() {
    let mut lists: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut tested = 0;
    for code in Code::values() {
        match reason(code) {
            Some(reason) => lists.entry(reason).or_default().push(format!("{code:?}")),
            None => {
                let class = form(code).class;
                tested += usize::from(matches!(
                    class,
                    Class::Copy | Class::Lea | Class::BitString | Class::Element
                ));
            }
        }
    }
    let mut text = format!(
        "# Instruction forms of user mode that no differential test runs, by reason. {tested} forms are run by forms.rs; \
         stack, string\n# and flag instructions by implicit.rs, transfers by programs.rs.\n"
    );
    for (reason, codes) in lists {
        text.push_str(&format!("\n{reason}:\n"));
        for code in codes {
            text.push_str(&format!("  {code}\n"));
        }
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/untested_forms.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &text).expect("golden file");
    }
    let golden = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(text, golden, "what is tested changed; if that is meant, run with UPDATE_GOLDEN=1");
}
