#!/bin/bash
# Makes the guest's root directories out of Debian's packages as installed here: root.sh WORK
#
# WORK/root: the workloads as /init, Python, gzip and a program on OpenSSL's library; WORK/shell: a shell and nothing else.
set -euo pipefail
work=$1
here=$(cd "$(dirname "$0")" && pwd)
root=$work/root

# Copies a program into a root, with the libraries it is linked to at the paths where its loader looks for them.
install_program() {
    local root=$1 program=$2 to=$3 library
    install -D "$program" "$root/$to"
    for library in $(ldd "$program" | grep -o '/[^ ]*'); do
        [ -e "$root/$library" ] || install -D "$library" "$root/$library"
    done
}

mkdir -p "$root/bench" "$work/shell"
gcc -O2 -static -o "$root/init" "$here/workloads.c" -lm
gcc -O2 -o "$work/crypto" "$here/crypto.c" -lcrypto
install_program "$root" "$work/crypto" bench/crypto
install_program "$root" /usr/bin/gzip usr/bin/gzip
python=$(readlink -f /usr/bin/python3)
install_program "$root" "$python" usr/bin/python3.11
library=/usr/lib/$(basename "$python")
for module in os.py encodings/{__init__,aliases,ascii,latin_1,utf_8}.py; do
    install -D -m 644 "$library/$module" "$root/$library/$module"
done
cp "$here/nbody.py" "$root/bench/"
# Text for gzip: the standard library's, which is the same for every run of one comparison.
cat "$library"/[a-m]*.py | head -c 2500000 >"$root/bench/text"
install_program "$work/shell" /bin/dash bin/sh
python3 "$here/initramfs.py" "$root" "$work/initramfs"
python3 "$here/initramfs.py" "$work/shell" "$work/shell.initramfs"
