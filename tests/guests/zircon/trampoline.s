# AT&T syntax, since the other cannot say the difference of two symbols.

# What a start-up message makes another CPU run, copied to a page below 1 MiB: from real mode to the kernel. The values
# at its end are filled in for each CPU.
.section .rodata
.global trampoline_start, trampoline_end, trampoline_values
.balign 16
trampoline_start:
.code16
    cli
    movw %cs, %ax
    movw %ax, %ds
    movl trampoline_cr3 - trampoline_start, %eax
    movl %eax, %cr3
    movl %cr4, %eax
    orl $0x620, %eax            # PAE, OSFXSR, OSXMMEXCPT
    movl %eax, %cr4
    movl $0xc0000080, %ecx      # EFER
    rdmsr
    orl $0x100, %eax            # LME
    wrmsr
    lgdtw trampoline_gdtr - trampoline_start
    movl %cr0, %eax
    andl $~0x60000004, %eax     # NW, CD, EM off
    orl $0x80000003, %eax       # PG, MP, PE
    movl %eax, %cr0
    ljmpl *(trampoline_far - trampoline_start)
.code64
trampoline_64:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movq trampoline_stack(%rip), %rsp
    movq trampoline_argument(%rip), %rdi
    xorl %ebp, %ebp
    cld
    callq *trampoline_entry(%rip)
    ud2
.balign 8
trampoline_gdt:
    .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
# Filled in: GDT pointer, far pointer to 64-bit code, page tables, stack, argument, entry.
.balign 8
trampoline_values:
trampoline_gdtr:
    .word 23
    .long trampoline_gdt - trampoline_start
    .word 0
trampoline_far:
    .long trampoline_64 - trampoline_start
    .word 8
    .word 0
trampoline_cr3:
    .quad 0
trampoline_stack:
    .quad 0
trampoline_argument:
    .quad 0
trampoline_entry:
    .quad 0
trampoline_end:
