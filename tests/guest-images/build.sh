#!/usr/bin/env bash
# Makes the Linux guests of the tests and benchmarks: Debian's packaged kernels, unmodified, and two
# initramfs images. Needs apt-get, dpkg-deb and gcc with a static C library; no root.
#
#   build.sh [minimal|work]...      default: both
#
# Results, in $SB_GUEST_IMAGES or $XDG_CACHE_HOME/simuboost/guest-images:
#   vmlinuz-cloud, vmlinuz-generic  kernels (where packages have none: the newest under /boot)
#   minimal.cpio                    static busybox; says that it is up, runs a few phases, powers off
#   work.cpio                       all phases (see guest/phases.sh)
#   VERSIONS                        the packages and their versions
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

kernels() {
    local flavour package
    for flavour in cloud generic; do
        [ ! -e "$CACHE/vmlinuz-$flavour" ] || continue
        case $flavour in
        cloud) package=$(dependency linux-image-cloud-amd64 '^linux-image-[0-9]') || package= ;;
        generic) package=$(dependency linux-image-amd64 '^linux-image-[0-9]') || package= ;;
        esac
        if [ -n "$package" ]; then
            rm -rf "$CACHE/kernel-$flavour"
            unpack "$CACHE/kernel-$flavour" "$package"
            cp "$CACHE/kernel-$flavour"/boot/vmlinuz-* "$CACHE/vmlinuz-$flavour"
            rm -rf "$CACHE/kernel-$flavour"
        else
            package=$(find /boot -name 'vmlinuz-*' | sort -V | tail -n 1)
            [ -n "$package" ] || fail "no kernel package and no kernel under /boot"
            say "no package for the $flavour kernel, taking $package"
            cp "$package" "$CACHE/vmlinuz-$flavour"
        fi
    done
}

programs() {
    local source program
    mkdir -p "$CACHE/bin"
    for source in "$HERE"/src/*.c; do
        program=$CACHE/bin/$(basename "$source" .c)
        if [ ! -e "$program" ] || [ -n "$(find "$HERE/src" -newer "$program" -name '*.[ch]')" ]; then
            gcc -O2 -march=x86-64 -static -Wall -Wextra -o "$program" "$source" -lpthread -lm
        fi
    done
    # Freestanding: no 32-bit C library is needed.
    for source in "$HERE"/src32/*.c; do
        program=$CACHE/bin/$(basename "$source" .c)
        if [ ! -e "$program" ] || [ "$source" -nt "$program" ]; then
            gcc -m32 -O2 -march=i686 -static -nostdlib -ffreestanding -fno-pie -no-pie \
                -fno-stack-protector -Wall -Wextra -o "$program" "$source"
        fi
    done
}

# The part that both images have: busybox with its links, init and the phases.
base() {
    local root=$1 applet
    rm -rf "$root"
    mkdir -p "$root"/{bin,dev,etc,proc,sys,tmp}
    unpack "$root/.busybox" busybox-static
    find "$root/.busybox" -path "*bin/busybox" -exec install -m 755 {} "$root/bin/busybox" \;
    rm -rf "$root/.busybox"
    for applet in $("$root/bin/busybox" --list); do
        [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
    done
    cp --remove-destination "$CACHE"/bin/* "$root/bin/"
    cp "$HERE"/guest/phases.sh "$root/etc/"
    install -m 755 "$HERE/guest/init" "$root/init"
}

# The i386 twin of busybox, in a folder of its own.
add_twin() {
    local root=$1 file applet
    file=$(i386_package_file busybox-static) || exit 1
    dpkg-deb -x "$file" "$root/.twin"
    mkdir -p "$root/bin32"
    find "$root/.twin" -path "*bin/busybox" -exec install -m 755 {} "$root/bin32/busybox" \;
    rm -rf "$root/.twin"
    for applet in $("$root/bin/busybox" --list); do
        [ "$applet" = busybox ] || ln -s busybox "$root/bin32/$applet"
    done
}

# Interpreters, libraries and tools from packages, without what no phase uses.
add_packages() {
    local root=$1 python
    python=$(dependency python3-minimal '^python3\.[0-9]+-minimal$') || fail "no package of python3"
    python=${python%-minimal}
    unpack "$root" libc6 zlib1g libgcc-s1 perl-base libcrypt1 \
        "$python-minimal" "lib$python-minimal" "lib$python-stdlib" libexpat1 \
        sqlite3 libsqlite3-0 libreadline8 libtinfo6 openssl libssl3 xz-utils liblzma5 \
        tcc libc6-dev linux-libc-dev
    ln -sf "$python" "$root/usr/bin/python3"
    rm -rf "$root"/usr/share "$root"/var "$root"/usr/lib/systemd \
        "$root"/usr/lib/x86_64-linux-gnu/{gconv,audit,security} \
        "$root"/usr/lib/"$python"/{lib2to3,pydoc_data,test,distutils,ensurepip,idlelib,unittest} \
        "$root"/usr/include/{drm,sound,rdma,scsi,video,xen,mtd,misc}
    find "$root" -name '*.a' ! -name 'libc_nonshared.a' ! -name 'libtcc1.a' -delete
    cp "$HERE"/guest/work.{py,pl,sql} "$root/etc/"
    mkdir -p "$root/src"
    cp "$HERE"/src/*.[ch] "$root/src/"
}

# Packs a folder. Names in order, times and owners fixed: the same input gives the same bytes.
pack() {
    local root=$1 image=$2
    [ -x "$CACHE/cpio/bin/cpio" ] || unpack "$CACHE/cpio" cpio
    find "$root" -exec touch -h -d @0 {} +
    (cd "$root" && find . -print0 | LC_ALL=C sort -z |
        "$CACHE/cpio/bin/cpio" --quiet --null -o -H newc --reproducible -R 0:0) >"$image.new"
    mv "$image.new" "$image"
    say "$image: $(stat -c %s "$image") bytes"
}

main() {
    [ $# -gt 0 ] || set -- minimal work
    mkdir -p "$CACHE"
    kernels
    programs
    local kind
    for kind in "$@"; do
        base "$CACHE/root-$kind"
        case $kind in
        minimal) ;;
        work)
            add_packages "$CACHE/root-$kind"
            add_twin "$CACHE/root-$kind"
            ;;
        *) fail "unknown image $kind" ;;
        esac
        pack "$CACHE/root-$kind" "$CACHE/$kind.cpio"
    done
    find "$CACHE/packages" -name '*.deb' -printf '%f\n' | sort >"$CACHE/VERSIONS"
    printf '%s\n' "$CACHE"
}

main "$@"
