// The test guests' tool for what busybox cannot do: vsock, datagrams, and requests to disks.
//
//   probe vsock connect CID PORT     standard input to the peer and the peer to standard output, until the peer ends
//   probe vsock listen PORT          the same with the first peer that connects
//   probe vsock echo PORT            sends the first peer what it sends, until it ends
//   probe vsock take PORT COUNT      reads COUNT bytes of the first peer, and closes
//   probe fill FILE COUNT            writes COUNT bytes to a file or terminal, and prints bytes a second
//   probe vsock fill PORT COUNT      the same to the host
//   probe udp echo PORT              sends one datagram back to its sender
//   probe udp ask ADDRESS PORT TEXT  sends a datagram, and prints its answer
//   probe discard|zero DISK OFFSET LENGTH
//   probe read|write DISK BLOCK COUNT SPAN
//       COUNT blocks of BLOCK bytes, past the page cache: in order if SPAN is 0, otherwise at random places in the first
//       SPAN bytes, the same each time. Prints bytes a second and a checksum of all bytes.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <arpa/inet.h>
#include <linux/fs.h>
#include <linux/vm_sockets.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define CHECK(call)                                                  \
    ({                                                               \
        __typeof__(call) result = (call);                            \
        if (result < 0) {                                            \
            fprintf(stderr, "probe: %s: %s\n", #call, strerror(errno)); \
            exit(errno);                                             \
        }                                                            \
        result;                                                      \
    })

static char buffer[1 << 18];

static void write_all(int fd, const char *from, size_t len) {
    while (len > 0) {
        ssize_t count = CHECK(write(fd, from, len));
        from += count;
        len -= count;
    }
}

static int vsock(unsigned cid, unsigned port, int listens) {
    struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = cid, .svm_port = port};
    int fd = CHECK(socket(AF_VSOCK, SOCK_STREAM, 0));
    if (!listens) {
        CHECK(connect(fd, (struct sockaddr *)&address, sizeof address));
        return fd;
    }
    CHECK(bind(fd, (struct sockaddr *)&address, sizeof address));
    CHECK(listen(fd, 8));
    socklen_t len = sizeof address;
    int peer = CHECK(accept(fd, (struct sockaddr *)&address, &len));
    fprintf(stderr, "probe: peer %u:%u\n", address.svm_cid, address.svm_port);
    close(fd);
    return peer;
}

static void copy(int peer) {
    struct pollfd fds[] = {{.fd = 0, .events = POLLIN}, {.fd = peer, .events = POLLIN}};
    for (;;) {
        CHECK(poll(fds, 2, -1));
        if (fds[0].revents) {
            ssize_t count = CHECK(read(0, buffer, sizeof buffer));
            if (count == 0) {
                fds[0].fd = -1;
                CHECK(shutdown(peer, SHUT_WR));
            }
            write_all(peer, buffer, count);
        }
        if (fds[1].revents) {
            ssize_t count = CHECK(read(peer, buffer, sizeof buffer));
            if (count == 0)
                return;
            write_all(1, buffer, count);
        }
    }
}

static void echo(int peer) {
    ssize_t count;
    while ((count = CHECK(read(peer, buffer, sizeof buffer))) > 0)
        write_all(peer, buffer, count);
}

static void take(int peer, long left) {
    while (left > 0) {
        ssize_t count = CHECK(read(peer, buffer, left < (long)sizeof buffer ? left : (long)sizeof buffer));
        if (count == 0)
            return;
        write_all(1, buffer, count);
        left -= count;
    }
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void fill(int fd, long count) {
    memset(buffer, 'x', 1 << 16);
    double begin = now();
    for (long left = count; left > 0; left -= 1 << 16)
        write_all(fd, buffer, left < 1 << 16 ? left : 1 << 16);
    if (isatty(fd))
        CHECK(tcdrain(fd));
    // A peer that has everything ends the connection; files and ports are no sockets.
    if (shutdown(fd, SHUT_WR) == 0)
        CHECK(read(fd, buffer, 1));
    printf("%.0f %ld\n", count / (now() - begin), count);
}

static uint64_t checksum(uint64_t sum, const char *bytes, size_t len) {
    for (size_t i = 0; i + 8 <= len; i += 8) {
        uint64_t word;
        memcpy(&word, bytes + i, 8);
        sum = (sum ^ word) * 0x100000001b3;
    }
    return sum;
}

static void move(int reads, const char *disk, size_t block, long count, uint64_t span) {
    int fd = CHECK(open(disk, (reads ? O_RDONLY : O_WRONLY) | O_DIRECT));
    char *data = aligned_alloc(4096, block);
    for (size_t i = 0; i < block; i++)
        data[i] = i * 7 + i / 256;
    uint64_t sum = 0xcbf29ce484222325, random = 88172645463325252;
    double begin = now();
    for (long i = 0; i < count; i++) {
        random ^= random << 13, random ^= random >> 7, random ^= random << 17;
        uint64_t offset = span ? random % (span / block) * block : i * block;
        memcpy(data, reads ? data : (char *)&i, reads ? 0 : sizeof i);
        ssize_t moved = CHECK(reads ? pread(fd, data, block, offset) : pwrite(fd, data, block, offset));
        if ((size_t)moved != block) {
            fprintf(stderr, "probe: %zd of %zu bytes\n", moved, block);
            exit(1);
        }
        // A sample of each block, so that the sum costs nothing against the transfer.
        sum = checksum(sum, data, block < 64 ? block : 64);
    }
    if (!reads)
        CHECK(fsync(fd));
    printf("%.0f %016llx\n", block * count / (now() - begin), (unsigned long long)sum);
}

static void udp_echo(unsigned short port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    int fd = CHECK(socket(AF_INET, SOCK_DGRAM, 0));
    CHECK(bind(fd, (struct sockaddr *)&address, sizeof address));
    printf("bound\n");
    fflush(stdout);
    socklen_t len = sizeof address;
    ssize_t count = CHECK(recvfrom(fd, buffer, sizeof buffer, 0, (struct sockaddr *)&address, &len));
    CHECK(sendto(fd, buffer, count, 0, (struct sockaddr *)&address, len));
}

static void udp_ask(const char *to, unsigned short port, const char *text) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    inet_pton(AF_INET, to, &address.sin_addr);
    int fd = CHECK(socket(AF_INET, SOCK_DGRAM, 0));
    CHECK(connect(fd, (struct sockaddr *)&address, sizeof address));
    CHECK(send(fd, text, strlen(text), 0));
    ssize_t count = CHECK(recv(fd, buffer, sizeof buffer, 0));
    printf("%.*s\n", (int)count, buffer);
}

int main(int argc, char **argv) {
    const char *what = argc > 2 ? argv[1] : "";
    if (!strcmp(what, "vsock")) {
        if (!strcmp(argv[2], "connect") && argc == 5)
            return copy(vsock(atoi(argv[3]), atoi(argv[4]), 0)), 0;
        if (!strcmp(argv[2], "listen") && argc == 4)
            return copy(vsock(VMADDR_CID_ANY, atoi(argv[3]), 1)), 0;
        if (!strcmp(argv[2], "echo") && argc == 4)
            return echo(vsock(VMADDR_CID_ANY, atoi(argv[3]), 1)), 0;
        if (!strcmp(argv[2], "take") && argc == 5)
            return take(vsock(VMADDR_CID_ANY, atoi(argv[3]), 1), atol(argv[4])), 0;
        if (!strcmp(argv[2], "fill") && argc == 5)
            return fill(vsock(VMADDR_CID_HOST, atoi(argv[3]), 0), atol(argv[4])), 0;
    } else if (!strcmp(what, "udp")) {
        if (!strcmp(argv[2], "echo") && argc == 4)
            return udp_echo(atoi(argv[3])), 0;
        if (!strcmp(argv[2], "ask") && argc == 6)
            return udp_ask(argv[3], atoi(argv[4]), argv[5]), 0;
    } else if (!strcmp(what, "fill") && argc == 4) {
        return fill(CHECK(open(argv[2], O_WRONLY | O_CREAT | O_NOCTTY, 0600)), atol(argv[3])), 0;
    } else if ((!strcmp(what, "discard") || !strcmp(what, "zero")) && argc == 5) {
        uint64_t range[2] = {strtoull(argv[3], 0, 0), strtoull(argv[4], 0, 0)};
        int fd = CHECK(open(argv[2], O_WRONLY));
        CHECK(ioctl(fd, what[0] == 'd' ? BLKDISCARD : BLKZEROOUT, range));
        return 0;
    } else if ((!strcmp(what, "read") || !strcmp(what, "write")) && argc == 6) {
        move(what[0] == 'r', argv[2], strtoul(argv[3], 0, 0), atol(argv[4]), strtoull(argv[5], 0, 0));
        return 0;
    }
    fprintf(stderr, "probe: not understood\n");
    return 2;
}
