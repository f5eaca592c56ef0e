#!/usr/bin/env bash
# Checks the Kubernetes files without a cluster: renders both overlays, and holds every document against a schema; what
# nats-server is given, against nats-server.
#   deploy/check-manifests.sh [--pinned] FOLDER_FOR_VENV [FOLDER_FOR_RENDERED]
# The first folder gets a Python environment with the schemas, made once. The second, if named, gets cloud.yaml and
# edge.yaml as they would be applied. One line a document; exit status 1, and the reason, when one is wrong.
# --pinned is for the overlays as they are deployed, not as they lie here: images have digests, and Secrets may come from
# elsewhere.
# kubectl comes from `deploy/fetch-runtime.sh --tests`, or is named in KUBECTL; certificates to try are made with openssl.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cache=${TRIBUTARY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tributary}
kubectl=${KUBECTL:-$cache/kubectl-1.37.1/kubectl}
packages=(
    kubernetes-validate==1.37.0
    cloudcoil-models-keda==2.16.1.0
    # What the schemas of KEDA are written with: another release could read them otherwise.
    cloudcoil==0.6.0
    pydantic==2.14.4
    PyYAML==6.0.4
    'tomli==2.4.0;python_version<"3.11"'
)

fail() { printf 'check-manifests: %s\n' "$*" >&2; exit 1; }

pinned=()
if [ "${1:-}" = --pinned ]; then
    pinned=(--pinned)
    shift
fi
[ $# -eq 1 ] || [ $# -eq 2 ] || fail "call it with a folder for the Python environment and, if wanted, one for what is rendered"
[ -x "$kubectl" ] || fail "$kubectl is not there: run deploy/fetch-runtime.sh --tests, or name a kubectl in KUBECTL"
venv=$1

# A half-made environment, or one of other versions, is made anew.
wanted="$(python3 --version) ${packages[*]}"
if [ "$(cat "$venv/made-of" 2>/dev/null)" != "$wanted" ]; then
    printf 'making a Python environment in %s\n' "$venv" >&2
    python3 -m venv --clear "$venv" || fail "no Python environment can be made: install python3-venv and run this again"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "${packages[@]}" >&2 ||
        fail "the schemas cannot be installed; see the lines above, check the network, and run this again"
    printf '%s\n' "$wanted" >"$venv/made-of"
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
rendered=${2:-$work/rendered}
mkdir -p "$rendered" "$work/with-object-store"
for overlay in cloud edge; do
    "$kubectl" kustomize "$here/k8s/overlays/$overlay" >"$rendered/$overlay.yaml" || fail "overlays/$overlay cannot be rendered; see the lines above"
done
# As it is with what is only added where it is asked for.
to=$(python3 -c 'import os, sys; print(os.path.relpath(*map(os.path.realpath, sys.argv[1:])))' "$here/k8s" "$work/with-object-store")
printf 'resources: ["%s/overlays/cloud"]\ncomponents: ["%s/components/object-store"]\nnamespace: tributary\n' "$to" "$to" \
    >"$work/with-object-store/kustomization.yaml"
"$kubectl" kustomize "$work/with-object-store" >"$rendered/cloud-with-object-store.yaml" ||
    fail "components/object-store cannot be rendered; see the lines above"
"$venv/bin/python" -B "$here/check_manifests.py" "$here" "$rendered" ${pinned[@]+"${pinned[@]}"}

# nats-server reads each of its configurations together with the passwords and certificates that lie beside it.
server=${TRIBUTARY_NATS_SERVER:-$("$here/fetch-runtime.sh" --list | awk -F '\t' '$1 == "nats-server" { print $5 }')}
[ -x "$server" ] || fail "$server is not there: run deploy/fetch-runtime.sh, or name a nats-server in TRIBUTARY_NATS_SERVER"
"$here/make-secrets.sh" "$work/secrets" >/dev/null
for place in cloud site; do
    overlay=${place/site/edge}
    mkdir -p "$work/nats/$place" "$work/nats/$overlay-in-kubernetes"
    cp "$here/nats/$place.conf" "$work/nats/$place/server.conf"
    cp "$work/secrets/$place-passwords.conf" "$work/nats/$place/passwords.conf"
    "$venv/bin/python" -B "$here/check_manifests.py" --server-files "$rendered/$overlay.yaml" "$work/nats/$overlay-in-kubernetes"
    [ -f "$work/nats/$overlay-in-kubernetes/passwords.conf" ] ||
        cp "$work/secrets/$place-passwords.conf" "$work/nats/$overlay-in-kubernetes/passwords.conf"
    for folder in "$work/nats/$place" "$work/nats/$overlay-in-kubernetes"; do
        for file in "$place-nats.pem server.pem" "$place-nats.key server.key" "ca.pem ca.pem"; do
            [ -f "$folder/${file#* }" ] || cp "$work/secrets/${file% *}" "$folder/${file#* }"
        done
        sed "s|/etc/nats/|$folder/|g" "$folder/server.conf" >"$folder/moved.conf"
        mv "$folder/moved.conf" "$folder/server.conf"
    done
done
for folder in "$work"/nats/*; do
    SITE=reef CAMERA_SUBJECT=image.reef.cam1 CAMERAS_SUBJECT='image.reef.*' "$server" -t -c "$folder/server.conf" >"$folder/said" 2>&1 ||
        fail "nats-server refuses $folder/server.conf: $(cat "$folder/said")"
    printf 'ok  nats   %s\n' "${folder##*/}"
done
