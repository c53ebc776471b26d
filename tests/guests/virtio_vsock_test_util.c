// The guest's side of `guest vsock-perf`, under the name that it has on Fuchsia's test guests.
//
//   virtio_vsock_test_util micro_benchmark [BYTES]
//
// Connects from its ports 8501 to 8509 to port 8500 of the host. Sends messages back on the first data stream, then moves bulk data,
// BYTES (128 MiB if not given) a transfer. Before a bulk stream is measured its number is sent on the control stream.
#define _GNU_SOURCE
#include <errno.h>
#include <linux/vm_sockets.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { HOST_PORT = 8500, CONTROL = 8501, LATENCY = 8502, SINGLE = 8503, MULTIPLE = 8504, STREAMS = 5, BIDIRECTIONAL = 8509 };
// What is sent when the stream of a port is ready.
#define READY(port) ((unsigned char)(123 + (port) - SINGLE))

static long transfer = 128L << 20;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static int connect_from(unsigned port) {
    struct sockaddr_vm from = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = port};
    struct sockaddr_vm to = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = HOST_PORT};
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&from, sizeof from) || connect(fd, (struct sockaddr *)&to, sizeof to))
        fail("connect");
    return fd;
}

// Both end with 0 when the host has closed the stream.
static int receive(int fd, char *buffer, size_t chunk, long bytes) {
    while (bytes > 0) {
        ssize_t count = read(fd, buffer, bytes < (long)chunk ? (size_t)bytes : chunk);
        if (count <= 0)
            return 0;
        bytes -= count;
    }
    return 1;
}

static int send_all(int fd, const char *buffer, size_t chunk, long bytes) {
    while (bytes > 0) {
        ssize_t count = send(fd, buffer, bytes < (long)chunk ? (size_t)bytes : chunk, MSG_NOSIGNAL);
        if (count <= 0)
            return 0;
        bytes -= count;
    }
    return 1;
}

static void *there_and_back(void *stream) {
    static __thread char buffer[1 << 18];
    int fd = *(int *)stream;
    while (receive(fd, buffer, sizeof buffer, transfer) && send_all(fd, buffer, sizeof buffer, transfer)) {
    }
    return 0;
}

static void *send_on(void *stream) {
    static char buffer[1 << 18];
    while (send_all(*(int *)stream, buffer, sizeof buffer, transfer)) {
    }
    return 0;
}

static void start(pthread_t *thread, void *(*run)(void *), int *stream) {
    if (pthread_create(thread, 0, run, stream))
        fail("pthread_create");
}

static void ready(int control, unsigned port) {
    unsigned char number = READY(port);
    if (write(control, &number, 1) != 1)
        fail("control");
}

int main(int argc, char **argv) {
    static char buffer[1 << 18];
    int multiple[STREAMS];
    pthread_t threads[STREAMS];
    if (argc < 2 || strcmp(argv[1], "micro_benchmark")) {
        fprintf(stderr, "usage: virtio_vsock_test_util micro_benchmark [BYTES]\n");
        return 2;
    }
    if (argc > 2 && (transfer = atol(argv[2])) <= 0)
        return 2;
    int control = connect_from(CONTROL), latency = connect_from(LATENCY), single = connect_from(SINGLE);
    for (int i = 0; i < STREAMS; i++)
        multiple[i] = connect_from(MULTIPLE + i);
    int bidirectional = connect_from(BIDIRECTIONAL);

    // Until the host has measured enough.
    ssize_t count;
    while ((count = read(latency, buffer, sizeof buffer)) > 0 && send_all(latency, buffer, count, count)) {
    }
    close(latency);

    ready(control, BIDIRECTIONAL);
    start(&threads[0], send_on, &bidirectional);
    while (receive(bidirectional, buffer, sizeof buffer, transfer)) {
    }
    shutdown(bidirectional, SHUT_RDWR);
    pthread_join(threads[0], 0);

    ready(control, SINGLE);
    there_and_back(&single);

    for (int i = 0; i < STREAMS; i++)
        start(&threads[i], there_and_back, &multiple[i]);
    for (int i = 0; i < STREAMS; i++)
        ready(control, MULTIPLE + i);
    for (int i = 0; i < STREAMS; i++)
        pthread_join(threads[i], 0);
    return 0;
}
