# Intel syntax. The headers of the boot image, the kernel's entry, and those of interrupts.

# ZBI headers: type, length, extra, flags (version), two reserved, magic, checksum (none).
.section .zbi, "a"
.ascii "BOOT"
.long zbi_container_length, 0x868cf7e6, 0x00010000, 0, 0, 0xb5781729, 0x4a87e8d6
.ascii "KRNL"
.long zbi_kernel_length, 0, 0x00010000, 0, 0, 0xb5781729, 0x4a87e8d6
# zbi_kernel_t: the entry point from the container's start, and the memory needed behind the image.
.quad zbi_entry, zbi_reserve

# Zircon's boot contract: 64-bit mode, interrupts off, memory mapped to itself, RSI has the data image's address.
.text
.global start
start:
    cld
    mov rbx, rsi
    lea rdi, [rip + bss_start]
    lea rcx, [rip + bss_end]
    sub rcx, rdi
    xor eax, eax
    rep stosb
    lea rsp, [rip + boot_stack_top]
    mov rax, cr0
    and eax, ~4                 # EM off, MP on: SSE without traps.
    or eax, 2
    mov cr0, rax
    mov rax, cr4
    or eax, 0x600               # OSFXSR, OSXMMEXCPT
    mov cr4, rax
    mov rdi, rbx
    xor ebp, ebp
    call kernel_main
    ud2

.section .bss, "aw", @nobits
.balign 16
    .skip 65536
boot_stack_top:

# One entry a vector, 16 bytes each: makes the frames alike, with error code and vector on the stack.
.text
.global interrupt_entries
.balign 16
interrupt_entries:
.set vector, 0
.rept 256
    .balign 16
    .if !((vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21))
    push 0
    .endif
    push vector
    jmp interrupt_common
    .set vector, vector + 1
.endr

interrupt_common:
    push rax
    push rcx
    push rdx
    push rbx
    push rbp
    push rsi
    push rdi
    push r8
    push r9
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
    # The interrupt stack began aligned to 16 and 22 words are on it.
    lea rdi, [rsp]
    sub rsp, 512
    fxsave64 [rsp]
    cld
    call interrupt_dispatch
    fxrstor64 [rsp]
    add rsp, 512
    pop r15
    pop r14
    pop r13
    pop r12
    pop r11
    pop r10
    pop r9
    pop r8
    pop rdi
    pop rsi
    pop rbp
    pop rbx
    pop rdx
    pop rcx
    pop rax
    add rsp, 16
    iretq
