#!/usr/bin/env bash
# Checks the Kubernetes files without a cluster: renders both overlays, and holds every document against a schema.
#   deploy/check-manifests.sh FOLDER_FOR_VENV [FOLDER_FOR_RENDERED]
# The first folder gets a Python environment with the schemas, made once. The second, if named, gets cloud.yaml and
# edge.yaml as they would be applied. One line a document; exit status 1, and the reason, when one is wrong.
# kubectl comes from `deploy/fetch-runtime.sh --tests`, or is named in KUBECTL.
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

rendered=${2:-}
if [ -z "$rendered" ]; then
    rendered=$(mktemp -d)
    trap 'rm -rf "$rendered"' EXIT
fi
mkdir -p "$rendered"
for overlay in cloud edge; do
    "$kubectl" kustomize "$here/k8s/overlays/$overlay" >"$rendered/$overlay.yaml" || fail "overlays/$overlay cannot be rendered; see the lines above"
done
"$venv/bin/python" "$here/check_manifests.py" "$here" "$rendered"
