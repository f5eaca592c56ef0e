#!/usr/bin/env bash
# Makes the passwords of one cloud and one site, as files, for deploy/compose.yaml and deploy/k8s:
#   deploy/make-secrets.sh [FOLDER [SITE [HUB]]]     deploy/secrets, reef, cloud-nats:7422 if not named
#   cloud, worker, link, camera                      what our programs and the camera cam1 say who they are by
#   cloud-passwords.conf, site-passwords.conf        what each nats-server knows, included by its configuration
# A folder that is there is left as it is: to change passwords, move it away, run this again and start everything anew.
set -euo pipefail

folder=${1:-$(cd "$(dirname "$0")" && pwd)/secrets} site=${2:-reef} hub=${3:-cloud-nats:7422}

fail() { printf 'make-secrets: %s\n' "$*" >&2; exit 1; }
secret() { od -An -N16 -tx1 /dev/urandom | tr -d ' \n'; }

[[ $site =~ ^[a-z0-9-]+$ ]] || fail "$site is no name of a site: lower-case letters, digits and dashes"
[ ! -e "$folder" ] || fail "$folder is there: move it away first, or use what is in it"
# Containers run as another user than whoever starts them, so the files are readable by all; the folder is not, and nobody
# else on this machine reaches them through it.
umask 077
mkdir -p "$folder"
umask 022

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
CLOUD_LEAF_URL: "nats-leaf://$site:$of_site@$hub"
WORKER_PASSWORD: "$worker"
LINK_PASSWORD: "$link"
CAMERA_PASSWORD: "$camera"
SYS_PASSWORD: "$(secret)"
CONF
chmod 444 "$folder"/*
printf 'passwords are in %s\n' "$folder"
