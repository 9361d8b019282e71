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
    files=$(find "$CACHE/packages" -name "${name}_*.deb" ! -name '*_i386.deb' | sort)
    if [ -z "$files" ]; then
        say "downloading $name"
        (cd "$CACHE/packages" && apt-get -qq download "$name" 2>/dev/null) ||
            fail "cannot download $name (try: apt-get update)"
        files=$(find "$CACHE/packages" -name "${name}_*.deb" ! -name '*_i386.deb' | sort)
    fi
    printf '%s\n' "$files" | tail -n 1
}

# As package_file, for a package of i386, with package lists of its own: the system's may know only
# its own architecture, and adding one needs root.
i386_package_file() {
    local name=$1 files apt=$CACHE/apt-i386
    files=$(find "$CACHE/packages" -name "${name}_*_i386.deb" 2>/dev/null | sort)
    if [ -z "$files" ]; then
        say "downloading $name for i386"
        mkdir -p "$CACHE/packages" "$apt/lists/partial" "$apt/cache/archives/partial"
        : >"$apt/status"
        local options=(-qq -o APT::Architecture=i386 -o APT::Architectures=i386
            -o Dir::State="$apt" -o Dir::State::lists="$apt/lists"
            -o Dir::State::status="$apt/status" -o Dir::Cache="$apt/cache"
            -o APT::Sandbox::User=)
        apt-get "${options[@]}" update >&2 || say "some package lists of i386 are missing"
        (cd "$CACHE/packages" && apt-get "${options[@]}" download "$name" >&2) ||
            fail "cannot download $name for i386"
        rm -rf "$apt"
        files=$(find "$CACHE/packages" -name "${name}_*_i386.deb" | sort)
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
