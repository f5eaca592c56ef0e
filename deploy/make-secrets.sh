#!/usr/bin/env bash
# Makes the passwords and certificates of one cloud and one site, as files, for deploy/compose.yaml and deploy/k8s:
#   deploy/make-secrets.sh [FOLDER [SITE [HUB [NAME…]]]]     deploy/secrets, reef, cloud-nats:7422 if not named
#   cloud, worker, link, camera                      what our programs and the camera cam1 say who they are by
#   cloud-passwords.conf, site-passwords.conf        what each nats-server knows, included by its configuration
#   cloud-nats.pem, .key, site-nats.pem, .key        the certificate of each nats-server and its key, for 825 days
#   ca.pem                                           by which workers, cameras and the site's server know both, for ten years
#   ca.key                                           makes the next certificates; keep it elsewhere, no server needs it
# HUB is where sites reach the cloud; each NAME is a name or an address by which workers and cameras reach the site's server,
# in Kubernetes the node's address. A folder that is there is left as it is: to change passwords, move it away, run this
# again and start everything anew. AUTHORITY=OLD, with OLD/ca.pem and OLD/ca.key, has certificates made by that authority:
# for a second site, and for new certificates, which are taken from the new folder while the passwords stay as they are.
# Needs openssl, which nothing else here does.
set -euo pipefail

folder=${1:-$(cd "$(dirname "$0")" && pwd)/secrets} site=${2:-reef} hub=${3:-cloud-nats:7422}
names=("${@:4}")

fail() { printf 'make-secrets: %s\n' "$*" >&2; exit 1; }
secret() { od -An -N16 -tx1 /dev/urandom | tr -d ' \n'; }

[[ $site =~ ^[a-z0-9-]+$ ]] || fail "$site is no name of a site: lower-case letters, digits and dashes"
address='^(\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9.-]+))(:[0-9]+)?$'
[[ $hub =~ $address ]] || fail "$hub is no address of the hub: HOST:PORT, for example cloud.example:7422"
hub_host=${BASH_REMATCH[2]}${BASH_REMATCH[3]}
for name in ${names[@]+"${names[@]}"}; do
    [[ $name =~ ^[A-Za-z0-9.:-]+$ ]] || fail "$name is neither a host's name nor an address"
done
[ ! -e "$folder" ] || fail "$folder is there: move it away first, or use what is in it"
command -v openssl >/dev/null || fail "openssl is needed to make certificates: install it and run this again"
for file in ${AUTHORITY:+ca.pem ca.key}; do
    [ -r "$AUTHORITY/$file" ] || fail "$AUTHORITY/$file cannot be read: AUTHORITY is a folder with ca.pem and ca.key"
done

# Whole or not at all.
trap 'rm -rf "$folder"' EXIT
# Containers run as another user than whoever starts them, so the files are readable by all; the folder is not, and nobody
# else on this machine reaches them through it.
umask 077
mkdir -p "$folder"

# ssl ARGUMENTS: openssl, which is heard only where it fails.
ssl() { openssl "$@" 2>"$folder/said" || fail "openssl $1 failed: $(cat "$folder/said")"; }
key() { ssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1"; }

# server NAME HOST…: a certificate for a server that is reached by these names and addresses.
server() {
    local name=$1 host hosts=''
    for host in "$@" localhost 127.0.0.1; do
        case "$host" in
        *:* ) host=IP:$host ;;
        *[!0-9.]* ) host=DNS:$host ;;
        * ) host=IP:$host ;;
        esac
        [[ ",$hosts," == *",$host,"* ]] || hosts=${hosts:+$hosts,}$host
    done
    cat >"$folder/extensions" <<CONF
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = $hosts
CONF
    key "$folder/$name.key"
    ssl req -new -config "$folder/request" -key "$folder/$name.key" -subj "/CN=$name" -out "$folder/asked"
    ssl x509 -req -in "$folder/asked" -CA "$folder/ca.pem" -CAkey "$folder/ca.key" -set_serial "0x$(secret)" -sha256 \
        -days 825 -extfile "$folder/extensions" -out "$folder/$name.pem"
}

cat >"$folder/request" <<CONF
[req]
distinguished_name = none
x509_extensions = authority
[none]
[authority]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
CONF
if [ -n "${AUTHORITY:-}" ]; then
    cp "$AUTHORITY/ca.pem" "$AUTHORITY/ca.key" "$folder/"
else
    key "$folder/ca.key"
    ssl req -new -x509 -config "$folder/request" -key "$folder/ca.key" -subj "/CN=Tributary $(secret | cut -c1-8)" \
        -set_serial "0x$(secret)" -sha256 -days 3650 -out "$folder/ca.pem"
fi
server cloud-nats "$hub_host"
server site-nats ${names[@]+"${names[@]}"}
rm -f "$folder/request" "$folder/extensions" "$folder/asked" "$folder/said"

cloud=$(secret) worker=$(secret) link=$(secret) camera=$(secret) of_site=$(secret) of_system=$(secret)
printf '%s\n' "$cloud" >"$folder/cloud"
printf '%s\n' "$worker" >"$folder/worker"
printf '%s\n' "$link" >"$folder/link"
printf '%s\n' "$camera" >"$folder/camera"
cat >"$folder/cloud-passwords.conf" <<CONF
CLOUD_PASSWORD: "$cloud"
SITE_PASSWORD: "$of_site"
SYS_PASSWORD: "$of_system"
CONF
cat >"$folder/site-passwords.conf" <<CONF
CLOUD_LEAF_URL: "tls://$site:$of_site@$hub"
WORKER_PASSWORD: "$worker"
LINK_PASSWORD: "$link"
CAMERA_PASSWORD: "$camera"
SYS_PASSWORD: "$(secret)"
CONF
chmod 444 "$folder"/*
# No container is given this one.
chmod 400 "$folder/ca.key"
trap - EXIT
printf 'passwords and certificates are in %s\n' "$folder"
printf 'move %s to where no server and no site reaches it: whoever has it can stand in for each server\n' "$folder/ca.key"
