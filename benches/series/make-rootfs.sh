#!/bin/sh
# Builds the guest of the checkpoint series: a Debian root file system with the four workloads,
# its kernel and its initrd, from the package mirror that this host already uses.
#
#   make-rootfs.sh OUT_DIR
#
# Needs root, debootstrap and mke2fs. Leaves OUT_DIR/{vmlinuz,initrd,root.img}.
set -eu
out=$1
here=$(cd "$(dirname "$0")" && pwd)
suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
mirror=$(apt-get indextargets --format '$(SITE)' 2>/dev/null | grep -v security | head -n 1)
mkdir -p "$out"
root=$out/rootfs
packages=linux-image-cloud-amd64,busybox-static,redis-server,redis-tools,sqlite3,gcc,libc6-dev,nodejs
debootstrap --variant=minbase --include="$packages" "$suite" "$root" "$mirror"
cp "$here/workload.sh" "$root/workload.sh"
chmod 755 "$root/workload.sh"
cp "$root"/boot/vmlinuz-* "$out/vmlinuz"
cp "$root"/boot/initrd.img-* "$out/initrd"
rm -rf "$root/var/cache/apt" "$root/usr/share/doc" "$root/usr/share/man"
mke2fs -q -F -t ext4 -d "$root" "$out/root.img" 2G
rm -rf "$root"
