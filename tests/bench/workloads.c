// Workloads for comparing hypervisors: runs as the guest's init, prints "RESULT name nanoseconds checksum" to the kernel
// log, and ends the machine through port 0xf4. Static, no libc features beyond the basic ones.
#define _GNU_SOURCE
#include <fcntl.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int out;

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void line(const char *text) {
    if (write(out, text, strlen(text)) < 0) _exit(1);
}

static void report(const char *name, uint64_t ns, uint64_t sum) {
    char text[128];
    snprintf(text, sizeof text, "RESULT %s %llu %llx\n", name, (unsigned long long)ns, (unsigned long long)sum);
    line(text);
}

#define NOINLINE __attribute__((noinline))

static NOINLINE uint64_t integer_mix(void) {
    uint64_t a = 1, b = 2, c = 3, sum = 0;
    uint32_t table[256];
    for (int i = 0; i < 256; i++) table[i] = i * 2654435761u;
    for (int i = 0; i < 20000000; i++) {
        a = a * 6364136223846793005ull + 1442695040888963407ull;
        b ^= a >> 33;
        c += table[b & 255];
        if (c & 4) sum += b; else sum ^= c;
        table[a >> 56] += (uint32_t)c;
    }
    return sum;
}

static NOINLINE uint64_t sieve(void) {
    static uint8_t composite[4000000];
    uint64_t sum = 0;
    for (int round = 0; round < 3; round++) {
        memset(composite, 0, sizeof composite);
        for (unsigned i = 2; i < sizeof composite; i++) {
            if (composite[i]) continue;
            sum += i;
            for (uint64_t j = (uint64_t)i * i; j < sizeof composite; j += i) composite[j] = 1;
        }
    }
    return sum;
}

static NOINLINE uint64_t fib(uint64_t n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }

typedef uint64_t (*op)(uint64_t);
static NOINLINE uint64_t op0(uint64_t x) { return x + 1; }
static NOINLINE uint64_t op1(uint64_t x) { return x * 3; }
static NOINLINE uint64_t op2(uint64_t x) { return x ^ 0x55; }
static NOINLINE uint64_t op3(uint64_t x) { return x >> 1; }
static op volatile ops[4] = {op0, op1, op2, op3};

// Virtual calls over an array of objects of four kinds: a pattern that a processor's predictor learns.
static NOINLINE uint64_t indirect(void) {
    uint8_t kinds[24];
    uint64_t x = 1, r = 12345;
    for (unsigned i = 0; i < sizeof kinds; i++) r = r * 1103515245 + 12345, kinds[i] = r >> 16 & 3;
    for (int i = 0; i < 500000; i++)
        for (unsigned k = 0; k < sizeof kinds; k++) x = ops[kinds[k]](x);
    return x;
}

// The same with targets that nothing can predict: mostly the host's cost of a misprediction.
static NOINLINE uint64_t random_indirect(void) {
    uint64_t x = 1, r = 12345;
    for (int i = 0; i < 5000000; i++) {
        r = r * 1103515245 + 12345;
        x = ops[r >> 16 & 3](x);
    }
    return x;
}

// A byte-code interpreter: a switch compiled to an indirect jump.
static NOINLINE uint64_t interpreter(void) {
    static const uint8_t program[] = {0, 1, 2, 3, 4, 1, 5, 2, 0, 3, 1, 4, 2, 5, 0, 6};
    uint64_t a = 1, b = 2;
    for (int i = 0; i < 1500000; i++)
        for (int pc = 0;; pc++) {
            switch (program[pc]) {
            case 0: a += b; continue;
            case 1: b ^= a; continue;
            case 2: a = a << 3 | a >> 61; continue;
            case 3: b -= a; continue;
            case 4: a *= 5; continue;
            case 5: b += 77; continue;
            default: break;
            }
            break;
        }
    return a ^ b;
}

struct body { double x, y, z, vx, vy, vz, m; };
static NOINLINE uint64_t nbody(void) {
    struct body b[5];
    for (int i = 0; i < 5; i++) b[i] = (struct body){i * 1.1, i * 0.7 - 1, i * 0.3, 0.01 * i, 0.02, -0.01 * i, 1.0 / (i + 1)};
    for (int step = 0; step < 400000; step++) {
        for (int i = 0; i < 5; i++)
            for (int j = i + 1; j < 5; j++) {
                double dx = b[i].x - b[j].x, dy = b[i].y - b[j].y, dz = b[i].z - b[j].z;
                double d2 = dx * dx + dy * dy + dz * dz + 0.01, mag = 0.001 / (d2 * sqrt(d2));
                b[i].vx -= dx * b[j].m * mag, b[i].vy -= dy * b[j].m * mag, b[i].vz -= dz * b[j].m * mag;
                b[j].vx += dx * b[i].m * mag, b[j].vy += dy * b[i].m * mag, b[j].vz += dz * b[i].m * mag;
            }
        for (int i = 0; i < 5; i++) b[i].x += 0.001 * b[i].vx, b[i].y += 0.001 * b[i].vy, b[i].z += 0.001 * b[i].vz;
    }
    uint64_t bits;
    memcpy(&bits, &b[0].x, 8);
    return bits;
}

static NOINLINE uint64_t linked_list(void) {
    enum { N = 1 << 16 };
    static uint32_t next[N];
    for (uint32_t i = 0; i < N; i++) next[i] = (i * 40503u + 12345u) & (N - 1);
    uint32_t at = 0;
    for (int i = 0; i < 8000000; i++) at = next[at];
    return at;
}

static NOINLINE uint64_t copying(void) {
    static char a[1 << 20], b[1 << 20];
    uint64_t sum = 0;
    for (int i = 0; i < 500; i++) {
        memcpy(b, a, sizeof a);
        a[i] = i;
        sum += b[i / 2];
    }
    return sum;
}

static NOINLINE uint64_t getpid_loop(void) {
    uint64_t same = 0;
    pid_t self = getpid();
    for (int i = 0; i < 1000000; i++) same += syscall(SYS_getpid) == self;
    return same;
}

static NOINLINE uint64_t ping_pong(void) {
    int p[2], q[2];
    char byte = 1;
    if (pipe(p) || pipe(q)) return 0;
    pid_t child = fork();
    if (child == 0) {
        for (int i = 0; i < 50000; i++)
            if (read(p[0], &byte, 1) != 1 || write(q[1], &byte, 1) != 1) _exit(1);
        _exit(0);
    }
    for (int i = 0; i < 50000; i++)
        if (write(p[1], &byte, 1) != 1 || read(q[0], &byte, 1) != 1) return 0;
    waitpid(child, 0, 0);
    close(p[0]), close(p[1]), close(q[0]), close(q[1]);
    return 1;
}

static NOINLINE uint64_t fork_loop(void) {
    uint64_t sum = 0;
    for (int i = 0; i < 1000; i++) {
        pid_t child = fork();
        if (child == 0) _exit(3);
        int status = 0;
        waitpid(child, &status, 0);
        sum += WEXITSTATUS(status);
    }
    return sum;
}

static NOINLINE uint64_t exec_loop(void) {
    uint64_t sum = 0;
    for (int i = 0; i < 500; i++) {
        pid_t child = fork();
        if (child == 0) {
            execl("/proc/self/exe", "init", "exit", (char *)0);
            _exit(9);
        }
        int status = 0;
        waitpid(child, &status, 0);
        sum += WEXITSTATUS(status);
    }
    return sum;
}

static NOINLINE uint64_t page_faults(void) {
    uint64_t sum = 0;
    for (int round = 0; round < 50; round++) {
        char *p = mmap(0, 4 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        madvise(p, 4 << 20, MADV_NOHUGEPAGE);
        for (int i = 0; i < 4 << 20; i += 4096) p[i] = i >> 12, sum += p[i];
        munmap(p, 4 << 20);
    }
    return sum;
}

static uint64_t fib32(void) { return fib(32); }

static void fail(const char *name) {
    line("RESULT failed ");
    line(name);
    line("\n");
    _exit(1);
}

// Runs a program with its output in a file and gives the file's contents as a string.
static char *program(char *const *arguments, size_t *length) {
    static char text[8 << 20];
    const char *file = getpid() == 1 ? "/output" : "output";
    pid_t child = fork();
    if (child == 0) {
        int to = open(file, O_WRONLY | O_CREAT | O_TRUNC, 0600);
        char *const environment[] = {"LC_ALL=C.UTF-8", 0};
        if (to >= 0 && dup2(to, 1) == 1) execve(arguments[0], arguments, environment);
        _exit(127);
    }
    int status = 1;
    if (child < 0 || waitpid(child, &status, 0) != child || status != 0) fail(arguments[0]);
    int from = open(file, O_RDONLY);
    *length = 0;
    for (ssize_t got; (got = read(from, text + *length, sizeof text - 1 - *length)) > 0;) *length += got;
    close(from);
    text[*length] = 0;
    return text;
}

static uint64_t hash(const char *bytes, size_t length) {
    uint64_t hash = 14695981039346656037ull;
    for (size_t i = 0; i < length; i++) hash = (hash ^ (uint8_t)bytes[i]) * 1099511628211ull;
    return hash;
}

// A program whose running time is measured as a whole. The paths are relative to the root that run.sh makes.
static void timed_program(const char *name, char *const *arguments) {
    size_t length;
    uint64_t start = now();
    const char *text = program(arguments, &length);
    uint64_t ns = now() - start;
    report(name, ns, hash(text, length));
}

// A program that prints how long its work took, and the result.
static void timing_program(const char *name, char *const *arguments) {
    size_t length;
    char *end, *text = program(arguments, &length);
    uint64_t ns = strtoull(text, &end, 10);
    report(name, ns, hash(end, strlen(end)));
}

static const struct { const char *name; uint64_t (*run)(void); } functions[] = {
    {"integer", integer_mix}, {"sieve", sieve},       {"calls", fib32},        {"indirect", indirect},
    {"nbody", nbody},         {"getpid", getpid_loop}, {"pipe", ping_pong},    {"fork", fork_loop},
    {"exec", exec_loop},      {"fault", page_faults}, {"interpreter", interpreter},
    {"random_indirect", random_indirect}, {"list", linked_list}, {"copy", copying},
};

static const struct {
    const char *name;
    void (*run)(const char *, char *const *);
    char *arguments[8];
} programs[] = {
    {"python", timed_program, {"usr/bin/python3.11", "-I", "-S", "-B", "bench/nbody.py", "20000"}},
    {"gzip", timed_program, {"usr/bin/gzip", "-9", "-n", "-c", "bench/text"}},
    {"sha256", timing_program, {"bench/crypto", "sha256", "64"}},
    {"aes", timing_program, {"bench/crypto", "aes-128-gcm", "64"}},
};

// True if the command line names this workload as +NAME, or none at all. The kernel adds options of its own that it does not know.
static int wanted(const char *name, int argc, char **argv) {
    int named = 0;
    for (int i = 1; i < argc; i++) {
        if (argv[i][0] == '+' && !strcmp(argv[i] + 1, name)) return 1;
        named |= argv[i][0] == '+';
    }
    return !named;
}

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "exit")) return 5;
    out = 1;
    if (getpid() == 1) {
        mkdir("/dev", 0755);
        mount("devtmpfs", "/dev", "devtmpfs", 0, "");
        mkdir("/proc", 0755);
        mount("proc", "/proc", "proc", 0, "");
        out = open("/dev/kmsg", O_WRONLY);
    }
    for (unsigned i = 0; i < sizeof functions / sizeof *functions; i++) {
        if (!wanted(functions[i].name, argc, argv)) continue;
        uint64_t start = now(), sum = functions[i].run();
        report(functions[i].name, now() - start, sum);
    }
    for (unsigned i = 0; i < sizeof programs / sizeof *programs; i++)
        if (wanted(programs[i].name, argc, argv)) programs[i].run(programs[i].name, programs[i].arguments);
    line("RESULT end 0 0\n");
    if (getpid() != 1) return 0;
    ioperm(0xf4, 1, 1);
    outb(0, 0xf4);
    for (;;) pause();
}
