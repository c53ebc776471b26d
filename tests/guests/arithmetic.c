// Floating-point, vector and integer arithmetic of a program without a C library. Prints one line a unit. Built for
// i386 it runs in compatibility mode under a 64-bit kernel; built for x86-64 it gives the lines to compare with.
//
//   gcc -m32 -O1 -msse2 -mfpmath=sse -ffreestanding -fno-math-errno -fno-stack-protector -fno-pie -no-pie -nostdlib -static arithmetic.c

typedef unsigned int u32;
typedef unsigned long long u64;
typedef float f32x4 __attribute__((vector_size(16)));
typedef double f64x4 __attribute__((vector_size(32)));
typedef float f32x8 __attribute__((vector_size(32)));
typedef int i32x4 __attribute__((vector_size(16)));
typedef int i32x8 __attribute__((vector_size(32)));
typedef short i16x4 __attribute__((vector_size(8)));

#ifdef __x86_64__
static long call(long number, long a, long b, long c) {
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return result;
}
enum { WRITE = 1, EXIT = 60 };
#else
// The vDSO's entry: SYSENTER or SYSCALL, whichever the processor has in compatibility mode.
static void *fast_entry;
static long call(long number, long a, long b, long c) {
    long result;
    if (fast_entry)
        __asm__ volatile("call *%1" : "=a"(result) : "m"(fast_entry), "0"(number), "b"(a), "c"(b), "d"(c) : "memory");
    else
        __asm__ volatile("int $0x80" : "=a"(result) : "0"(number), "b"(a), "c"(b), "d"(c) : "memory");
    return result;
}
enum { WRITE = 4, EXIT = 1 };
#endif

static char line[128];
static unsigned length;

static void put(const char *text) {
    while (*text)
        line[length++] = *text++;
}

static void show(const void *data, unsigned size) {
    static const char digits[] = "0123456789abcdef";
    const unsigned char *bytes = data;
    line[length++] = ' ';
    for (unsigned n = size; n-- > 0;) {
        line[length++] = digits[bytes[n] >> 4];
        line[length++] = digits[bytes[n] & 15];
    }
}

static void end_line(void) {
    line[length++] = '\n';
    call(WRITE, 1, (long)line, length);
    length = 0;
}

static void doubles(void) {
    volatile double x = 0.5, sum = 0;
    for (int n = 1; n < 400; n++) {
        x = x * 3.7 * (1 - x);
        sum += __builtin_sqrt(x) / n;
    }
    volatile float narrow = (float)sum;
    int whole = (int)(sum * 1e6);
    put("sse2");
    show((const void *)&sum, 8);
    show((const void *)&narrow, 4);
    show(&whole, 4);
    end_line();
}

static void extended(void) {
    volatile long double x = 0.5L, sum = 0;
    for (int n = 1; n < 400; n++) {
        x = x * 3.7L * (1 - x);
        long double root, sine;
        __asm__("fsqrt" : "=t"(root) : "0"((long double)x));
        __asm__("fsin" : "=t"(sine) : "0"(root));
        sum += root / n + sine;
    }
    long long whole = (long long)(sum * 1000000);
    put("x87");
    show((const void *)&sum, 10);
    show(&whole, 8);
    end_line();
}

static void vectors(void) {
    static f32x4 table[64];
    f32x4 sum = {0, 0, 0, 0};
    i32x4 mixed = {1, 2, 3, 4};
    for (int n = 0; n < 64; n++)
        table[n] = (f32x4){n * 0.25f, 1.0f / (n + 1), n * n * 0.125f, -n};
    for (int n = 0; n < 64; n++) {
        sum += table[n] * table[63 - n];
        mixed = mixed * (i32x4){3, 5, 7, 11} + (i32x4)table[n];
    }
    put("sse");
    show(&sum, 16);
    show(&mixed, 16);
    end_line();
}

__attribute__((target("avx2"))) static void wide_vectors(void) {
    static f64x4 table[32];
    f64x4 sum = {0, 0, 0, 0};
    f32x8 narrow = {1, 2, 3, 4, 5, 6, 7, 8};
    i32x8 mixed = {1, 2, 3, 4, 5, 6, 7, 8};
    for (int n = 0; n < 32; n++)
        table[n] = (f64x4){n * 0.25, 1.0 / (n + 1), n * n * 0.125, -n};
    for (int n = 0; n < 32; n++) {
        sum += table[n] / (table[31 - n] + 0.75);
        narrow = narrow * 1.0625f + (f32x8)mixed * 0;
        mixed = mixed * 3 + (i32x8)table[n];
    }
    put("avx2");
    show(&sum, 32);
    end_line();
    put("avx2");
    show(&mixed, 32);
    end_line();
}

static void mmx(void) {
    static const i16x4 a = {1, -2, 300, 32000}, b = {7, 9, -11, 13};
    u64 result;
    __asm__("movq %1, %%mm0\n pmullw %2, %%mm0\n paddsw %1, %%mm0\n movq %%mm0, %0\n emms"
            : "=m"(result) : "m"(a), "m"(b) : "mm0");
    put("mmx");
    show(&result, 8);
    end_line();
}

// An environment with a rounding mode, and a state that is saved and restored.
static void state(void) {
    struct { u32 control, status, tags, rest[4]; } environment;
    static char image[512] __attribute__((aligned(16)));
    unsigned short control = 0xf7f;
    volatile double third = 1.0;
    long double value = 3.0L;
    __asm__ volatile("fldcw %0" : : "m"(control));
    __asm__ volatile("fnstenv %0\n fldenv %0" : "=m"(environment));
    __asm__ volatile("fldl %1\n fdivp" : "=t"(value) : "m"(third), "0"(value) : "memory");
    __asm__ volatile("fxsave %0\n fninit\n fxrstor %0" : "=m"(image));
    __asm__ volatile("fnstcw %0" : "=m"(control));
    put("state");
    show(&environment.control, 2);
    show(&environment.tags, 2);
    show(&control, 2);
    show(&value, 10);
    end_line();
}

static int has_avx2(void) {
    u32 a = 7, b, c = 0, d;
    __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    return b >> 5 & 1;
}

__attribute__((used)) static void run(long *stack) {
#ifndef __x86_64__
    long *auxiliary = stack + 1 + stack[0] + 1;
    while (*auxiliary)
        auxiliary++;
    for (auxiliary++; auxiliary[0]; auxiliary += 2)
        if (auxiliary[0] == 32)
            fast_entry = (void *)auxiliary[1];
#else
    (void)stack;
#endif
    doubles();
    extended();
    vectors();
    if (has_avx2())
        wide_vectors();
    mmx();
    state();
    call(EXIT, 0, 0, 0);
    for (;;)
        ;
}

#ifdef __x86_64__
__asm__(".globl _start\n_start: mov %rsp, %rdi\n and $-16, %rsp\n call run\n");
#else
__asm__(".globl _start\n_start: mov %esp, %eax\n and $-16, %esp\n sub $12, %esp\n push %eax\n call run\n");
#endif
