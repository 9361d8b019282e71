# Shared by the scripts of this folder: where things are kept, and how packages are obtained.
# shellcheck shell=bash

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CACHE=${SB_GUEST_IMAGES:-${XDG_CACHE_HOME:-$HOME/.cache}/simuboost/guest-images}

say() { printf '%s\n' "$*" >&2; }
fail() {
    say "error: $*"
    exit 1
}

# The packages that PACKAGE depends on directly and whose name matches PATTERN.
dependency() {
    apt-cache depends "$1" 2>/dev/null | sed -n 's/^ *\(Pre\)\?Depends: //p' | grep -E -m1 "$2"
}

# Downloads each package once (no root needed) and prints the path of its file.
package_file() {
    local name=$1 files
    mkdir -p "$CACHE/packages"
    files=$(find "$CACHE/packages" -name "${name}_*.deb" | sort)
    if [ -z "$files" ]; then
        say "downloading $name"
        (cd "$CACHE/packages" && apt-get -qq download "$name" 2>/dev/null) ||
            fail "cannot download $name (try: apt-get update)"
        files=$(find "$CACHE/packages" -name "${name}_*.deb" | sort)
    fi
    printf '%s\n' "$files" | tail -n 1
}

# Unpacks packages into a folder.
unpack() {
    local into=$1 name file
    shift
    for name in "$@"; do
        file=$(package_file "$name") || exit 1
        dpkg-deb -x "$file" "$into"
    done
}
