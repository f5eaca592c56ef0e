#!/usr/bin/env bash
# Unpacks the picture sets that travel as one archive each, fixtures/images/<set>.tar.gz, into a folder beside it; does
# nothing when the folder is of this archive.
set -euo pipefail
cd "$(dirname "$0")/../fixtures/images"

for archive in *.tar.gz; do
    folder=${archive%.tar.gz}
    sum=$(cksum <"$archive")
    stamp=.$folder.unpacked
    [ ! -d "$folder" ] || [ "$(cat "$stamp" 2>/dev/null)" != "$sum" ] || continue
    # Unpacked beside and put in place whole, so that two at a time, or one cut short, do no harm.
    fresh=$(mktemp -d "./.$folder.XXXXXX")
    trap 'rm -rf "$fresh"' EXIT
    tar -xzf "$archive" -C "$fresh"
    rm -rf "$stamp" "$folder"
    mv "$fresh/$folder" "$folder"
    printf '%s\n' "$sum" >"$stamp"
    rm -rf "$fresh"
done
