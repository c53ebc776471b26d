// Moves bytes over TCP between guest and host, for tests/bench/net.py:
//   stream send ADDRESS PORT BLOCKS      sends so many blocks
//   stream receive ADDRESS PORT          receives to the end, then answers "BYTES SUM\n"
// A block is 1 MiB of a fixed pattern; SUM is of its 64-bit words, modulo 2^64.
#include <arpa/inet.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BLOCK = 1 << 20 };
static uint64_t words[BLOCK / 8];

static void die(const char *what) {
    perror(what);
    exit(1);
}

int main(int argc, char **argv) {
    if (argc < 4)
        return 2;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[3]))};
    inet_pton(AF_INET, argv[2], &address.sin_addr);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        die("connect");
    if (strcmp(argv[1], "send") == 0) {
        uint32_t *pattern = (uint32_t *)words, state = 1;
        for (int i = 0; i < BLOCK / 4; i++)
            pattern[i] = state = state * 1664525 + 1013904223;
        for (int block = argc > 4 ? atoi(argv[4]) : 1; block > 0; block--)
            for (ssize_t done = 0, n; done < BLOCK; done += n)
                if ((n = write(fd, (char *)words + done, BLOCK - done)) <= 0)
                    die("write");
        shutdown(fd, SHUT_WR);
        return read(fd, words, 1) != 0;
    }
    // A read may end within a word: what is over waits at the front for the next one.
    uint64_t sum = 0, bytes = 0;
    size_t have = 0;
    for (ssize_t n; (n = read(fd, (char *)words + have, BLOCK - have)) > 0;) {
        bytes += n;
        have += n;
        for (size_t i = 0; i < have / 8; i++)
            sum += words[i];
        memmove(words, (char *)words + have / 8 * 8, have % 8);
        have %= 8;
    }
    dprintf(fd, "%llu %llu\n", (unsigned long long)bytes, (unsigned long long)sum);
    return 0;
}
