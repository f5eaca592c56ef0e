#!/usr/bin/env bash
# The fast checks: what must be right before the long tests are worth their time. Stops at the first that fails.
#   deploy/check.sh [STEP…]         steps: formatting scripts alerts spelling unused dependencies clippy rustdoc tests
# Tools of pinned versions are put into the cache (deploy/fetch-runtime.sh says where): shellcheck and typos as prebuilt
# programs, cargo-machete and cargo-deny compiled once, which takes some minutes.
set -euo pipefail

machete_version=0.9.2

here=$(cd "$(dirname "$0")" && pwd)
cd "$here/.."
cache=${TRIBUTARY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tributary}
# As in deploy/supply.sh, which needs the same cargo-deny.
tools=${TRIBUTARY_SUPPLY_TOOLS:-$cache/supply-tools}
deny_version=$(sed -n 's/^deny_version=//p' "$here/supply.sh")

fail() { printf 'check: %s\n' "$*" >&2; exit 1; }

# cargo_tool NAME VERSION: the program, compiled if this version of it is not there.
cargo_tool() {
    local program=$tools/bin/$1
    if ! grep -qs "^\"$1 $2 " "$tools/.crates.toml"; then
        printf '%s %s is missing: compiling it into %s, once\n' "$1" "$2" "$tools" >&2
        # Compiled quickly: they run for seconds.
        CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
            cargo install --quiet --locked --root "$tools" "$1@$2" >&2 ||
            fail "$1 $2 cannot be compiled, see the lines above: check the network, or install it yourself with" \
                "cargo install --locked --root $tools $1@$2"
    fi
    printf '%s\n' "$program"
}

formatting() { cargo fmt --check; }

scripts() { "$shellcheck" deploy/*.sh examples/*/*.sh .ci/run; }

# Prometheus itself judges its rules, where it is installed or Debian's package can be had: no wheel carries promtool. What
# the rules ask for is compared with what a site tells by a test (tests/e2e/deploy.rs) everywhere.
alerts() {
    local promtool
    if ! promtool=$(command -v promtool); then
        promtool=$cache/promtool/usr/bin/promtool
        [ -x "$promtool" ] || debian_promtool || { printf 'check: promtool is missing, so the alerts are not tried: install prometheus\n'; return 0; }
    fi
    (cd "$here/prometheus" && "$promtool" check rules alerts.yml && "$promtool" test rules alerts.test.yml) >&2
}

debian_promtool() (
    command -v apt-get dpkg-deb >/dev/null && mkdir -p "$cache/promtool" && cd "$cache/promtool" &&
        apt-get download -qq prometheus >/dev/null 2>&1 && dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x ./usr/bin/promtool &&
        rm -f prometheus_*.deb
)

spelling() { "$typos" --format brief; }

# vendor/ is somebody else's.
unused() {
    local machete
    machete=$(cargo_tool cargo-machete "$machete_version") || return 1
    "$machete" schemas streams workers tests examples
}

# Known vulnerabilities need the network: `make supply`.
dependencies() {
    local deny
    deny=$(cargo_tool cargo-deny "$deny_version") || return 1
    "$deny" --log-level error --locked check --hide-inclusion-graph licenses bans sources
}

clippy() { cargo clippy --quiet --workspace --all-targets --locked -- -D warnings; }

rustdoc() { RUSTDOCFLAGS='-D warnings' cargo doc --quiet --workspace --no-deps --document-private-items --locked; }

tests() { cargo test --quiet --workspace --locked --lib --bins; }

all=(formatting scripts alerts spelling unused dependencies clippy rustdoc tests)
[ $# -gt 0 ] || set -- "${all[@]}"
for step; do
    case " ${all[*]} " in
    *" $step "*) ;;
    *) fail "$step is no step: choose among ${all[*]}" ;;
    esac
done

found=$("$here/fetch-runtime.sh" --check) || exit 1
{ read -r typos && read -r shellcheck; } <<<"$found"
for step; do
    begun=$SECONDS
    "$step" || fail "$step failed; after mending it, deploy/check.sh $step repeats it alone"
    printf 'check: %-12s ok, %d s\n' "$step" "$((SECONDS - begun))"
done
printf 'check: all in %d s\n' "$SECONDS"
