#!/usr/bin/env bash
# Publish one image with the nats command line (0.2.4 or newer) and print its final answer as JSON.
#
#   ./publish-and-read.sh IMAGE [SITE] [CAMERA]
#
# NATS_URL names the site's server; it is nats://127.0.0.1:4222 by default. The site must publish answers in JSON:
# `tributary up --set up.answers_json=true`.
set -euo pipefail

answer_timeout_s=30

[ $# -ge 1 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
image=$1 site=${2:-site-1} camera=${3:-cam-1}
export NATS_URL=${NATS_URL:-nats://127.0.0.1:4222}

# A message id that is a UUID becomes the id of the task.
if [ -r /proc/sys/kernel/random/uuid ]; then
    task=$(cat /proc/sys/kernel/random/uuid)
else
    task=$(uuidgen | tr '[:upper:]' '[:lower:]')
fi

# Subscribe first: the answer may arrive before the acknowledgement. The command does not say when it has subscribed, hence
# the pause. It prints every answer of the camera, one JSON object per line.
exec 3< <(exec nats sub "answer-json.$site.$camera" --raw)
trap 'kill $! 2>/dev/null' EXIT
sleep 1

# --jetstream waits for the acknowledgement: the image is stored and will be answered. --no-templates, because an image's
# bytes may happen to look like a template.
nats pub "image.$site.$camera" --jetstream --no-templates --force-stdin \
    --header "Nats-Msg-Id:$task" --header "Tributary-File:${image##*/}" <"$image"

timeout "$answer_timeout_s" grep --max-count 1 --fixed-strings "$task" <&3 ||
    { printf 'no answer within %s s; later, tributary answers %s shows it\n' "$answer_timeout_s" "$task" >&2; exit 1; }
