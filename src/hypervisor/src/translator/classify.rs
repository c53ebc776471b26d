//! What the translator does with each instruction form, decided once per iced-x86 `Code`.

use std::sync::OnceLock;

use iced_x86::{Code, CpuidFeature, EncodingKind, FlowControl, Instruction, Mnemonic, OpKind};

/// How an instruction is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Class {
    /// Re-encoded with mapped registers and a host memory operand.
    Copy,
    /// Has no architectural effect.
    Skip,
    Lea,
    Push,
    Pop,
    Leave,
    Pushf,
    Jcc,
    /// LOOPcc and JRCXZ.
    Loop,
    Jmp,
    JmpIndirect,
    Call,
    CallIndirect,
    Ret,
    /// BT, BTS, BTR, BTC with a memory operand and a register bit offset.
    BitString,
    Cld,
    Std,
    Cli,
    Sti,
    Swapgs,
    Stac,
    Clac,
    Syscall,
    Sysret,
    /// IRETQ.
    Iret,
    /// RDFSBASE and RDGSBASE.
    ReadBase,
    /// WRFSBASE and WRGSBASE.
    WriteBase,
    /// MOV from CR0, CR2, CR3, CR4.
    ReadControl,
    /// RDTSC and RDTSCP.
    Rdtsc,
    /// MOV from a segment register.
    StoreSegment,
    /// MOVS and STOS: inside one page natively, else interpreted.
    RepString,
    /// FXSAVE, XSAVE and their inverses; FNSTENV and FNSAVE.
    FpState,
    /// VMASKMOV, MASKMOVDQU, gathers: memory elements one at a time, in Rust.
    Element,
    /// Interpreted; the next instruction follows in the same mode.
    Interpret,
    /// Interpreted; ends the block.
    InterpretEnd,
}

/// Which enable bits an instruction depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Unit {
    Integer,
    X87,
    Mmx,
    Sse,
    Avx,
}

/// Everything decided per `Code`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    pub(super) class: Class,
    pub(super) unit: Unit,
}

/// The form of `code`.
pub(super) fn form(code: Code) -> Form {
    static FORMS: OnceLock<Vec<Form>> = OnceLock::new();
    let forms = FORMS.get_or_init(|| {
        Code::values().map(|code| Form { class: classify(code), unit: unit(code) }).collect()
    });
    forms[code as usize]
}

pub(super) fn features_allowed(code: Code) -> bool {
    use CpuidFeature as F;
    code.cpuid_features().iter().all(|feature| {
        matches!(
            feature,
            F::INTEL8086
                | F::INTEL8086_ONLY
                | F::INTEL186
                | F::INTEL286
                | F::INTEL386
                | F::INTEL486
                | F::X64
                | F::FPU
                | F::FPU287
                | F::FPU387
                | F::CMOV
                | F::MMX
                | F::SSE
                | F::SSE2
                | F::SSE3
                | F::SSSE3
                | F::SSE4_1
                | F::SSE4_2
                | F::AVX
                | F::AVX2
                | F::BMI1
                | F::BMI2
                | F::FMA
                | F::F16C
                | F::AES
                | F::VAES
                | F::SHA
                | F::PCLMULQDQ
                | F::VPCLMULQDQ
                | F::GFNI
                | F::ADX
                | F::MOVBE
                | F::POPCNT
                | F::LZCNT
                | F::CX8
                | F::CMPXCHG16B
                | F::RDRAND
                | F::RDSEED
                | F::CLFSH
                | F::CLFLUSHOPT
                | F::CLWB
                | F::FXSR
                | F::XSAVE
                | F::XSAVEOPT
                | F::TSC
                | F::RDTSCP
                | F::RDPID
                | F::PREFETCHW
                | F::PAUSE
                | F::MULTIBYTENOP
                | F::CET_IBT
        )
    })
}

fn classify(code: Code) -> Class {
    use Mnemonic as M;
    if code == Code::INVALID || !code.op_code().mode64() {
        return Class::InterpretEnd;
    }
    if let Some(class) = classify_control(code) {
        return class;
    }
    let mnemonic = code.mnemonic();
    match mnemonic {
        M::Nop
        | M::Prefetchnta
        | M::Prefetcht0
        | M::Prefetcht1
        | M::Prefetcht2
        | M::Prefetch
        | M::Prefetchw
        | M::Prefetchwt1
        | M::Endbr64
        | M::Endbr32
        | M::Fnop
        | M::Reservednop => Class::Skip,
        M::Lea => Class::Lea,
        M::Leave => match code {
            Code::Leaveq => Class::Leave,
            _ => Class::Interpret,
        },
        M::Push => match code {
            Code::Push_r64 | Code::Push_rm64 | Code::Pushq_imm8 | Code::Pushq_imm32 => Class::Push,
            _ => Class::Interpret,
        },
        M::Pop => match code {
            Code::Pop_r64 => Class::Pop,
            Code::Pop_rm64 | Code::Pop_rm16 | Code::Pop_r16 => Class::Interpret,
            _ => Class::InterpretEnd,
        },
        M::Pushfq => Class::Pushf,
        M::Sti => Class::Sti,
        M::Stac => Class::Stac,
        M::Clac => Class::Clac,
        M::Swapgs => Class::Swapgs,
        M::Popfq | M::Popf => Class::InterpretEnd,
        M::Rdfsbase | M::Rdgsbase => Class::ReadBase,
        M::Wrfsbase | M::Wrgsbase => Class::WriteBase,
        M::Mov if code == Code::Mov_r64_cr => Class::ReadControl,
        M::Cli => Class::Cli,
        M::Cld => Class::Cld,
        M::Std => Class::Std,
        M::Rdtsc | M::Rdtscp => Class::Rdtsc,
        M::Pushf
        | M::Enter
        | M::Xlatb
        | M::Cpuid
        | M::Rdpid
        | M::Sgdt
        | M::Sidt
        | M::Sldt
        | M::Str
        | M::Smsw
        | M::Lar
        | M::Lsl
        | M::Verr
        | M::Verw
        | M::Xgetbv => Class::Interpret,
        M::Rdmsr
        | M::In
        | M::Insb
        | M::Insw
        | M::Insd
        | M::Out
        | M::Outsb
        | M::Outsw
        | M::Outsd => Class::InterpretEnd,
        M::Movsb | M::Movsw | M::Movsq | M::Stosb | M::Stosw | M::Stosd | M::Stosq => {
            Class::RepString
        }
        M::Movsd if code.op_code().encoding() == EncodingKind::Legacy && is_string_movsd(code) => {
            Class::RepString
        }
        M::Lodsb
        | M::Lodsw
        | M::Lodsd
        | M::Lodsq
        | M::Scasb
        | M::Scasw
        | M::Scasd
        | M::Scasq
        | M::Cmpsb
        | M::Cmpsw
        | M::Cmpsq => Class::Interpret,
        M::Cmpsd if code == Code::Cmpsd_m32_m32 => Class::Interpret,
        M::Fnstenv
        | M::Fnsave
        | M::Fxsave
        | M::Fxsave64
        | M::Fxrstor
        | M::Fxrstor64
        | M::Xsave
        | M::Xsave64
        | M::Xsaveopt
        | M::Xsaveopt64
        | M::Xrstor
        | M::Xrstor64 => Class::FpState,
        M::Maskmovq
        | M::Maskmovdqu
        | M::Vmaskmovdqu
        | M::Vmaskmovps
        | M::Vmaskmovpd
        | M::Vpmaskmovd
        | M::Vpmaskmovq => Class::Element,
        _ if uses_vector_index(code) && features_allowed(code) => Class::Element,
        M::Mov
            if matches!(
                code,
                Code::Mov_rm16_Sreg | Code::Mov_r32m16_Sreg | Code::Mov_r64m16_Sreg
            ) =>
        {
            Class::StoreSegment
        }
        M::Mov if uses_special_register(code) => Class::InterpretEnd,
        M::Lss | M::Lfs | M::Lgs => Class::InterpretEnd,
        _ if code.is_privileged() => Class::InterpretEnd,
        _ if !features_allowed(code) => Class::InterpretEnd,
        _ if code.op_code().encoding() == EncodingKind::EVEX => Class::InterpretEnd,
        _ if is_bit_string(code) => Class::BitString,
        _ => Class::Copy,
    }
}

fn classify_control(code: Code) -> Option<Class> {
    let class = match code.flow_control() {
        _ if code == Code::Syscall => Class::Syscall,
        _ if code == Code::Sysretq => Class::Sysret,
        _ if code == Code::Iretq => Class::Iret,
        FlowControl::Next => return None,
        FlowControl::ConditionalBranch => match code.mnemonic() {
            Mnemonic::Loop
            | Mnemonic::Loope
            | Mnemonic::Loopne
            | Mnemonic::Jrcxz
            | Mnemonic::Jecxz => Class::Loop,
            _ if code.is_jcc_short_or_near() => Class::Jcc,
            _ => Class::InterpretEnd,
        },
        FlowControl::UnconditionalBranch => match code {
            Code::Jmp_rel8_64 | Code::Jmp_rel32_64 => Class::Jmp,
            _ => Class::InterpretEnd,
        },
        FlowControl::IndirectBranch if code == Code::Jmp_rm64 => Class::JmpIndirect,
        FlowControl::Call if code == Code::Call_rel32_64 => Class::Call,
        FlowControl::IndirectCall if code == Code::Call_rm64 => Class::CallIndirect,
        FlowControl::Return if matches!(code, Code::Retnq | Code::Retnq_imm16) => Class::Ret,
        _ => Class::InterpretEnd,
    };
    Some(class)
}

/// The string MOVSD, not the SSE2 one.
fn is_string_movsd(code: Code) -> bool {
    code == Code::Movsd_m32_m32
}

fn uses_special_register(code: Code) -> bool {
    use iced_x86::OpCodeOperandKind as K;
    let info = code.op_code();
    (0..info.op_count())
        .any(|i| matches!(info.op_kind(i), K::seg_reg | K::cr_reg | K::dr_reg | K::tr_reg))
}

fn uses_vector_index(code: Code) -> bool {
    use iced_x86::OpCodeOperandKind as K;
    let info = code.op_code();
    (0..info.op_count()).any(|i| {
        matches!(info.op_kind(i), K::mem_vsib32x | K::mem_vsib64x | K::mem_vsib32y | K::mem_vsib64y)
    })
}

/// BT, BTS, BTR, BTC whose bit offset is a register; only those with a memory operand need the special treatment.
fn is_bit_string(code: Code) -> bool {
    matches!(
        code,
        Code::Bt_rm16_r16
            | Code::Bt_rm32_r32
            | Code::Bt_rm64_r64
            | Code::Bts_rm16_r16
            | Code::Bts_rm32_r32
            | Code::Bts_rm64_r64
            | Code::Btr_rm16_r16
            | Code::Btr_rm32_r32
            | Code::Btr_rm64_r64
            | Code::Btc_rm16_r16
            | Code::Btc_rm32_r32
            | Code::Btc_rm64_r64
    )
}

fn unit(code: Code) -> Unit {
    use CpuidFeature as F;
    let features = code.cpuid_features();
    let has = |f: &[CpuidFeature]| features.iter().any(|x| f.contains(x));
    match code.op_code().encoding() {
        EncodingKind::VEX if !touches_vector(code) => return Unit::Integer,
        EncodingKind::VEX | EncodingKind::EVEX | EncodingKind::XOP => return Unit::Avx,
        _ => {}
    }
    if has(&[F::FPU, F::FPU287, F::FPU387]) {
        Unit::X87
    } else if touches_mmx(code) {
        Unit::Mmx
    } else if touches_vector(code)
        || matches!(code.mnemonic(), Mnemonic::Ldmxcsr | Mnemonic::Stmxcsr)
    {
        Unit::Sse
    } else {
        Unit::Integer
    }
}

fn touches_mmx(code: Code) -> bool {
    use iced_x86::OpCodeOperandKind as K;
    let info = code.op_code();
    code.mnemonic() == Mnemonic::Emms
        || (0..info.op_count())
            .any(|i| matches!(info.op_kind(i), K::mm_reg | K::mm_rm | K::mm_or_mem))
}

fn touches_vector(code: Code) -> bool {
    use iced_x86::OpCodeOperandKind as K;
    let info = code.op_code();
    matches!(code.mnemonic(), Mnemonic::Vzeroall | Mnemonic::Vzeroupper)
        || (0..info.op_count()).any(|i| {
            matches!(
                info.op_kind(i),
                K::xmm_or_mem
                    | K::xmm_reg
                    | K::xmm_rm
                    | K::xmm_vvvv
                    | K::xmm_is4
                    | K::xmm_is5
                    | K::ymm_or_mem
                    | K::ymm_reg
                    | K::ymm_rm
                    | K::ymm_vvvv
                    | K::ymm_is4
                    | K::ymm_is5
                    | K::mem_vsib32x
                    | K::mem_vsib64x
                    | K::mem_vsib32y
                    | K::mem_vsib64y
            )
        })
}

/// True if the instruction has a memory operand in the usual place (not implicit string or stack memory).
pub(super) fn memory_operand(instruction: &Instruction) -> Option<u32> {
    (0..instruction.op_count()).find(|&i| instruction.op_kind(i) == OpKind::Memory)
}
