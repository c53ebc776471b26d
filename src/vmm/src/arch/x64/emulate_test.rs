use super::super::instruction::{DecodeError, decode};
use super::*;
use crate::bus::BusDevice;
use crate::memory::BufferMemory;
use std::sync::{Arc, Mutex};

const DEVICE: u64 = 0x8000;

/// A page of storage that counts accesses.
struct Registers8 {
    bytes: Mutex<[u8; 4096]>,
    writes: Mutex<usize>,
}

impl BusDevice for Registers8 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let offset = offset as usize;
        data.copy_from_slice(&self.bytes.lock().unwrap()[offset..offset + data.len()]);
    }
    fn write(&self, offset: u64, data: &[u8]) {
        let offset = offset as usize;
        self.bytes.lock().unwrap()[offset..offset + data.len()].copy_from_slice(data);
        *self.writes.lock().unwrap() += 1;
    }
}

struct Fixture {
    bus: Bus,
    memory: BufferMemory,
    device: Arc<Registers8>,
    registers: Registers,
}

impl Fixture {
    fn new(value: u64) -> Self {
        let device = Arc::new(Registers8 { bytes: Mutex::new([0; 4096]), writes: Mutex::new(0) });
        device.bytes.lock().unwrap()[..8].copy_from_slice(&value.to_le_bytes());
        let mut bus = Bus::default();
        bus.insert(DEVICE..DEVICE + 4096, device.clone()).unwrap();
        let memory = BufferMemory::new(0x8000);
        page_table::write_identity_map(&memory, 0x10000).unwrap();
        Self { bus, memory, device, registers: Registers::default() }
    }

    fn run_at(&mut self, address: u64, bytes: &[u8]) -> Result<(), EmulateError> {
        let emulator = Emulator { bus: &self.bus, memory: &self.memory, cr3: 0, address };
        emulator.run(decode(bytes).unwrap(), &mut self.registers)
    }

    fn run(&mut self, bytes: &[u8]) {
        self.run_at(DEVICE, bytes).unwrap();
    }

    fn value(&self) -> u64 {
        u64::from_le_bytes(self.device.bytes.lock().unwrap()[..8].try_into().unwrap())
    }

    fn flags(&self) -> u64 {
        self.registers.rflags
    }
}

const VALUE: u64 = 0x8182_8384_8586_8788;

#[test]
fn loads_extend_as_the_architecture_says() {
    let cases: [(&[u8], u64); 9] = [
        (&[0x8a, 0x00], 0xffff_ffff_ffff_ff88),       // mov al, [rax]
        (&[0x8a, 0x20], 0xffff_ffff_ffff_88ff),       // mov ah, [rax]
        (&[0x66, 0x8b, 0x00], 0xffff_ffff_ffff_8788), // mov ax, [rax]
        (&[0x8b, 0x00], 0x8586_8788),                 // mov eax, [rax]
        (&[0x48, 0x8b, 0x00], VALUE),                 // mov rax, [rax]
        (&[0x0f, 0xb6, 0x00], 0x88),                  // movzx eax, byte [rax]
        (&[0x0f, 0xbe, 0x00], 0xffff_ff88),           // movsx eax, byte [rax]
        (&[0x48, 0x0f, 0xbf, 0x00], 0xffff_ffff_ffff_8788), // movsx rax, word [rax]
        (&[0x48, 0x63, 0x00], 0xffff_ffff_8586_8788), // movsxd rax, dword [rax]
    ];
    for (bytes, expected) in cases {
        let mut fixture = Fixture::new(VALUE);
        fixture.registers.gpr[RAX] = u64::MAX;
        fixture.run(bytes);
        assert_eq!(fixture.registers.gpr[RAX], expected, "{bytes:02x?}");
    }
}

#[test]
fn loads_reach_the_upper_registers() {
    let mut fixture = Fixture::new(VALUE);
    fixture.run(&[0x44, 0x8b, 0x38]); // mov r15d, [rax]
    assert_eq!(fixture.registers.gpr[15], 0x8586_8788);
    fixture.run(&[0x40, 0x8a, 0x30]); // mov sil, [rax]
    assert_eq!(fixture.registers.gpr[RSI], 0x88);
}

#[test]
fn accumulator_moves_with_absolute_addresses() {
    let mut fixture = Fixture::new(VALUE);
    fixture.run(&[0xa1, 0, 0x80, 0, 0, 0, 0, 0, 0]); // mov eax, [abs 0x8000]
    assert_eq!(fixture.registers.gpr[RAX], 0x8586_8788);
    fixture.registers.gpr[RAX] = 0x11;
    fixture.run(&[0xa2, 0, 0x80, 0, 0, 0, 0, 0, 0]); // mov [abs 0x8000], al
    assert_eq!(fixture.value(), 0x8182_8384_8586_8711);
}

#[test]
fn stores_write_only_their_width() {
    let cases: [(&[u8], u64); 8] = [
        (&[0x88, 0x0b], 0x8182_8384_8586_8711),       // mov [rbx], cl
        (&[0x88, 0x2b], 0x8182_8384_8586_8722),       // mov [rbx], ch
        (&[0x66, 0x89, 0x0b], 0x8182_8384_8586_2211), // mov [rbx], cx
        (&[0x89, 0x0b], 0x8182_8384_4433_2211),       // mov [rbx], ecx
        (&[0x48, 0x89, 0x0b], 0x8877_6655_4433_2211), // mov [rbx], rcx
        (&[0xc6, 0x03, 0x5a], 0x8182_8384_8586_875a), // mov byte [rbx], 0x5a
        (&[0xc7, 0x03, 0xfe, 0xff, 0xff, 0xff], 0x8182_8384_ffff_fffe), // mov dword [rbx], -2
        (&[0x48, 0xc7, 0x03, 0xfe, 0xff, 0xff, 0xff], 0xffff_ffff_ffff_fffe), // mov qword [rbx], -2
    ];
    for (bytes, expected) in cases {
        let mut fixture = Fixture::new(VALUE);
        fixture.registers.gpr[RCX] = 0x8877_6655_4433_2211;
        fixture.run(bytes);
        assert_eq!(fixture.value(), expected, "{bytes:02x?}");
        assert_eq!(*fixture.device.writes.lock().unwrap(), 1);
    }
}

#[test]
fn movbe_reverses_bytes() {
    let mut fixture = Fixture::new(VALUE);
    fixture.run(&[0x0f, 0x38, 0xf0, 0x00]); // movbe eax, [rax]
    assert_eq!(fixture.registers.gpr[RAX], 0x8887_8685);
    fixture.run(&[0x0f, 0x38, 0xf1, 0x00]); // movbe [rax], eax
    assert_eq!(fixture.value(), VALUE);
}

#[test]
fn test_and_compare_only_change_flags() {
    let mut fixture = Fixture::new(0x80);
    fixture.run(&[0xf6, 0x00, 0x80]); // test byte [rax], 0x80
    assert_eq!(fixture.flags() & ARITHMETIC_FLAGS, SF);
    fixture.run(&[0xf6, 0x00, 0x01]); // test byte [rax], 1
    assert_eq!(fixture.flags() & ARITHMETIC_FLAGS, ZF | PF);
    fixture.run(&[0x80, 0x38, 0x81]); // cmp byte [rax], 0x81
    assert_eq!(fixture.flags() & ARITHMETIC_FLAGS, CF | SF | AF | PF);
    fixture.registers.gpr[RCX] = 0x80;
    fixture.run(&[0x3a, 0x08]); // cmp cl, [rax]
    assert_eq!(fixture.flags() & ARITHMETIC_FLAGS, ZF | PF);
    assert_eq!(*fixture.device.writes.lock().unwrap(), 0);
}

#[test]
fn arithmetic_reads_modifies_and_writes() {
    let mut fixture = Fixture::new(0xf0);
    fixture.run(&[0x80, 0x08, 0x0f]); // or byte [rax], 0x0f
    assert_eq!(fixture.value(), 0xff);
    fixture.run(&[0x80, 0x00, 0x01]); // add byte [rax], 1
    assert_eq!((fixture.value(), fixture.flags() & ARITHMETIC_FLAGS), (0, CF | ZF | PF | AF));
    fixture.run(&[0x80, 0x10, 0x00]); // adc byte [rax], 0
    assert_eq!(fixture.value(), 1);
    fixture.run(&[0x80, 0x28, 0x02]); // sub byte [rax], 2
    assert_eq!((fixture.value(), fixture.flags() & (CF | SF)), (0xff, CF | SF));
    fixture.run(&[0x80, 0x18, 0x80]); // sbb byte [rax], 0x80
    assert_eq!((fixture.value(), fixture.flags() & (CF | OF)), (0x7e, 0));
    fixture.registers.gpr[RCX] = 0x0e;
    fixture.run(&[0x20, 0x08]); // and [rax], cl
    assert_eq!(fixture.value(), 0x0e);
    fixture.run(&[0x33, 0x08]); // xor ecx, [rax]
    assert_eq!(fixture.registers.gpr[RCX], 0);
}

#[test]
fn signed_overflow_sets_of() {
    let mut fixture = Fixture::new(0x7fff_ffff);
    fixture.run(&[0x83, 0x00, 0x01]); // add dword [rax], 1
    assert_eq!(fixture.flags() & (OF | SF | CF), OF | SF);
}

#[test]
fn unary_forms_keep_the_flags_they_must() {
    let mut fixture = Fixture::new(0xff);
    fixture.registers.rflags = CF;
    fixture.run(&[0xfe, 0x00]); // inc byte [rax]
    assert_eq!((fixture.value(), fixture.flags() & (CF | ZF)), (0, CF | ZF));
    fixture.run(&[0xfe, 0x08]); // dec byte [rax]
    assert_eq!((fixture.value(), fixture.flags() & (CF | SF)), (0xff, CF | SF));
    fixture.run(&[0xf6, 0x18]); // neg byte [rax]
    assert_eq!((fixture.value(), fixture.flags() & CF), (1, CF));
    let before = fixture.flags();
    fixture.run(&[0xf6, 0x10]); // not byte [rax]
    assert_eq!((fixture.value(), fixture.flags()), (0xfe, before));
}

#[test]
fn bit_forms_take_the_index_modulo_the_width() {
    let mut fixture = Fixture::new(0);
    fixture.run(&[0x0f, 0xba, 0x28, 0x25]); // bts dword [rax], 37
    assert_eq!((fixture.value(), fixture.flags() & CF), (1 << 5, 0));
    fixture.registers.gpr[RCX] = 5;
    fixture.run(&[0x0f, 0xb3, 0x08]); // btr [rax], ecx
    assert_eq!((fixture.value(), fixture.flags() & CF), (0, CF));
}

#[test]
fn exchanges() {
    let mut fixture = Fixture::new(7);
    fixture.registers.gpr[RCX] = 9;
    fixture.run(&[0x87, 0x08]); // xchg [rax], ecx
    assert_eq!((fixture.value(), fixture.registers.gpr[RCX]), (9, 7));
    fixture.run(&[0xf0, 0x0f, 0xc1, 0x08]); // lock xadd [rax], ecx
    assert_eq!((fixture.value(), fixture.registers.gpr[RCX]), (16, 9));
    fixture.registers.gpr[RAX] = 16;
    fixture.run(&[0xf0, 0x0f, 0xb1, 0x0b]); // lock cmpxchg [rbx], ecx
    assert_eq!((fixture.value(), fixture.flags() & ZF), (9, ZF));
    fixture.run(&[0xf0, 0x0f, 0xb1, 0x0b]);
    assert_eq!((fixture.registers.gpr[RAX], fixture.flags() & ZF), (9, 0));
}

#[test]
fn conditional_forms_follow_flags() {
    let mut fixture = Fixture::new(0x1_0000_0005);
    fixture.registers.gpr[RCX] = u64::MAX;
    fixture.run(&[0x0f, 0x44, 0x08]); // cmove ecx, [rax]
    assert_eq!(fixture.registers.gpr[RCX], 0xffff_ffff);
    fixture.registers.rflags = ZF;
    fixture.run(&[0x0f, 0x44, 0x08]);
    assert_eq!(fixture.registers.gpr[RCX], 5);
    fixture.run(&[0x0f, 0x94, 0x00]); // sete [rax]
    assert_eq!(fixture.value(), 0x1_0000_0001);
}

#[test]
fn repeated_stores_fill_the_device() {
    let mut fixture = Fixture::new(0);
    fixture.registers.gpr[RAX] = 0x5a;
    fixture.registers.gpr[RCX] = 6;
    fixture.registers.gpr[RDI] = 0x1234;
    fixture.run(&[0xf3, 0xaa]); // rep stosb
    assert_eq!(fixture.value(), 0x5a5a_5a5a_5a5a);
    assert_eq!((fixture.registers.gpr[RCX], fixture.registers.gpr[RDI]), (0, 0x123a));
    assert_eq!(*fixture.device.writes.lock().unwrap(), 6);
}

#[test]
fn backwards_stores_decrement() {
    let mut fixture = Fixture::new(0);
    fixture.registers.gpr[RAX] = 0x11;
    fixture.registers.gpr[RCX] = 2;
    fixture.registers.gpr[RDI] = 0x1234;
    fixture.registers.rflags = DF;
    fixture.run_at(DEVICE + 4, &[0xf3, 0xab]).unwrap(); // rep stosd
    assert_eq!(fixture.value(), 0x0000_0011_0000_0011);
    assert_eq!(fixture.registers.gpr[RDI], 0x122c);
}

#[test]
fn moves_find_which_operand_is_the_device() {
    let mut fixture = Fixture::new(VALUE);
    fixture.registers.gpr[RSI] = DEVICE;
    fixture.registers.gpr[RDI] = 0x5ffc;
    fixture.registers.gpr[RCX] = 2;
    fixture.run(&[0xf3, 0xa5]); // rep movsd
    assert_eq!(fixture.memory.read_u64(0x5ffc), Ok(VALUE));
    assert_eq!((fixture.registers.gpr[RSI], fixture.registers.gpr[RDI]), (DEVICE + 8, 0x6004));

    fixture.memory.write(0x5000, &[0x42]).unwrap();
    fixture.registers.gpr[RSI] = 0x5000;
    fixture.registers.gpr[RDI] = DEVICE;
    fixture.run(&[0xa4]); // movsb
    assert_eq!(fixture.value() & 0xff, 0x42);
}

#[test]
fn string_misuse_is_an_error() {
    let mut fixture = Fixture::new(0);
    fixture.registers.gpr[RCX] = u64::MAX;
    assert!(matches!(
        fixture.run_at(DEVICE, &[0xf3, 0xaa]),
        Err(EmulateError::StringTooLong { .. })
    ));
    fixture.registers.gpr[RCX] = 4097;
    assert!(matches!(
        fixture.run_at(DEVICE, &[0xf3, 0xaa]),
        Err(EmulateError::StringTooLong { .. })
    ));
    assert!(matches!(fixture.run_at(DEVICE, &[0xa4]), Err(EmulateError::StringOperand { .. })));
    fixture.registers.gpr[RDI] = DEVICE;
    fixture.registers.gpr[RSI] = 0xdead_0000;
    assert!(matches!(fixture.run_at(DEVICE, &[0xa4]), Err(EmulateError::Translate(_))));
    fixture.registers.gpr[RCX] = 0;
    fixture.run(&[0xf3, 0xaa]);
    assert_eq!(*fixture.device.writes.lock().unwrap(), 0);
}

#[test]
fn unsupported_and_invalid_instructions_are_errors() {
    assert!(matches!(decode(&[0x0f, 0x10, 0x00]), Err(DecodeError::Unsupported { .. }))); // movups xmm0, [rax]
    assert!(matches!(decode(&[0xf2, 0x0f, 0x10, 0x00]), Err(DecodeError::Unsupported { .. }))); // movsd xmm0, [rax]
    assert!(matches!(decode(&[0x90]), Err(DecodeError::Unsupported { .. })));
    assert!(matches!(decode(&[0x64, 0xa4]), Err(DecodeError::Unsupported { .. }))); // movsb with FS
    assert!(matches!(decode(&[]), Err(DecodeError::Invalid { .. })));
    assert!(matches!(decode(&[0xff, 0xff]), Err(DecodeError::Invalid { .. })));
}

/// Every two- and three-byte start either decodes to something that runs, or is an error.
#[test]
fn no_instruction_panics() {
    let fixture = Fixture::new(VALUE);
    let emulator =
        Emulator { bus: &fixture.bus, memory: &fixture.memory, cr3: 0, address: DEVICE + 0xff8 };
    for first in 0..=255u8 {
        for second in 0..=255u8 {
            for bytes in [
                [first, second, 0x00, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                [0x0f, first, second, 0x00, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                [0x48, first, second, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0],
                [0x66, 0xf3, first, second, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            ] {
                let Ok(decoded) = decode(&bytes) else { continue };
                let mut registers = Registers { gpr: [0x8000; 16], rflags: 0xfff };
                let _ = emulator.run(decoded, &mut registers);
            }
        }
    }
}
