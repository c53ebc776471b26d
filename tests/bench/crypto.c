// What `openssl speed` measures, as equal work with a result: crypto sha256|aes-128-gcm MEBIBYTES, in blocks of 16 KiB.
// Prints the nanoseconds of the loop and the digest or tag.
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { BLOCK = 16384 };

static unsigned char input[BLOCK], output[BLOCK + 16], result[EVP_MAX_MD_SIZE];

static unsigned long long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static int sha256(long blocks) {
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    if (!context || !EVP_DigestInit_ex(context, EVP_sha256(), NULL)) return 0;
    while (blocks--)
        if (!EVP_DigestUpdate(context, input, BLOCK)) return 0;
    return EVP_DigestFinal_ex(context, result, NULL);
}

static int aes_gcm(long blocks) {
    static const unsigned char key[16] = "0123456789abcde", iv[12] = "0123456789a";
    EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();
    int length;
    if (!context || !EVP_EncryptInit_ex(context, EVP_aes_128_gcm(), NULL, key, iv)) return 0;
    while (blocks--)
        if (!EVP_EncryptUpdate(context, output, &length, input, BLOCK)) return 0;
    return EVP_EncryptFinal_ex(context, output, &length) && EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_GCM_GET_TAG, 16, result);
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    for (int i = 0; i < BLOCK; i++) input[i] = i * 7;
    long blocks = atol(argv[2]) * ((1 << 20) / BLOCK);
    int hash = !strcmp(argv[1], "sha256");
    // Finding the algorithm is not what is measured.
    if (!(hash ? sha256(1) : aes_gcm(1))) return 1;
    unsigned long long start = now();
    if (!(hash ? sha256(blocks) : aes_gcm(blocks))) return 1;
    printf("%llu ", now() - start);
    for (int i = 0; i < 16; i++) printf("%02x", result[i]);
    puts("");
    return 0;
}
