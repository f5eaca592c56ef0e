#!/usr/bin/env bash
# What the program is made of: checks it, and writes it down.
#   deploy/supply.sh [--offline] [BINARY]
# 1. cargo-deny holds every dependency against deny.toml: licence, origin, known weaknesses. The weaknesses come from the
#    RustSec database, over the network; --offline leaves them out, and says so.
# 2. vendor/ is the published crate with its patches, and nothing else.
# 3. target/supply/tributary.cdx.json is a bill of materials (CycloneDX): every crate in the program with licence and
#    SHA-256, nats-server and ONNX Runtime as deploy/fetch-runtime.sh fetches them, and the BINARY if one is named.
# Both tools are compiled once, into the cache (some minutes). Needs python3 with venv, and patch.
set -euo pipefail

deny_version=0.20.2
cyclonedx_version=0.5.9
validator='cyclonedx-python-lib[json-validation]==11.12.0'

here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
cache=${TRIBUTARY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tributary}
tools=${TRIBUTARY_SUPPLY_TOOLS:-$cache/supply-tools}
out=$root/target/supply

fail() { printf 'supply: %s\n' "$*" >&2; exit 1; }

checks=(licenses sources bans advisories)
if [ "${1:-}" = --offline ]; then
    checks=(licenses sources bans)
    shift
fi
[ $# -le 1 ] || fail "call it with --offline, if wanted, and the path of a binary, if there is one"
[ $# -eq 0 ] || [ -f "$1" ] || fail "$1 is no file"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"
cd "$root"

# Does nothing where this very version is there.
cargo install --quiet --locked --root "$tools" "cargo-deny@$deny_version" "cargo-cyclonedx@$cyclonedx_version" 2>"$work/said" ||
    fail "the tools cannot be installed: $(cat "$work/said")"

"$tools/bin/cargo-deny" --locked check --hide-inclusion-graph "${checks[@]}" || fail "something is not as deny.toml wants it, or could not be looked up; see the lines above (--offline does without the network)"
[ "${#checks[@]}" -eq 4 ] || printf 'known weaknesses were not looked for (--offline)\n'

for folder in vendor/*/; do
    crate=$(basename "$folder")
    version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$folder/Cargo.toml" | head -n 1)
    # Downloads it, checked against the registry's own SHA-256.
    (cd "$work" && cargo info --quiet "$crate@$version" >/dev/null) || fail "$crate $version cannot be downloaded"
    tar -xzf "${CARGO_HOME:-$HOME/.cargo}"/registry/cache/*/"$crate-$version.crate" -C "$work"
    for change in "$folder"*.patch; do
        patch --quiet --strip 1 --directory "$work/$crate-$version" <"$change" || fail "$change does not fit $crate $version"
    done
    diff -r "$work/$crate-$version/src" "${folder}src" || fail "${folder}src is more than $crate $version and its patches"
    printf '%s is %s %s and its patches\n' "$folder" "$crate" "$version"
done

if [ ! -x "$out/venv/bin/python" ] || [ "$(cat "$out/venv/made-of" 2>/dev/null)" != "$validator" ]; then
    python3 -m venv --clear "$out/venv" || fail "no Python environment can be made: install python3-venv and run this again"
    "$out/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$validator" >&2 || fail "$validator cannot be installed"
    printf '%s\n' "$validator" >"$out/venv/made-of"
fi

# The same source gives the same list: its date is that of the last commit.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) "$tools/bin/cargo-cyclonedx" cyclonedx --quiet --format json --spec-version 1.5 \
    --describe binaries --manifest-path workers/tools/tributary/Cargo.toml
mv workers/tools/tributary/tributary_bin.cdx.json "$work/crates.json"
"$here/fetch-runtime.sh" --list >"$work/parts"
"$out/venv/bin/python" "$here/sbom.py" "$root" "$work/crates.json" "$work/parts" "$out/tributary.cdx.json" "$@"
