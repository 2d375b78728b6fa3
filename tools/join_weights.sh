#!/usr/bin/env bash
# Puts the weights that tools/train_on_gpu.sh left in a folder together: tools/join_weights.sh FOLDER DESTINATION
# writes DESTINATION/tiny and, if it was trained, DESTINATION/judge.
set -euo pipefail
[ $# -eq 2 ] || { echo "usage: $0 FOLDER DESTINATION" >&2; exit 2; }
expected=$(cut -d' ' -f1 "$1/weights.sha256")
[ "$(cat "$1"/weights.tgz.* | sha256sum | cut -d' ' -f1)" = "$expected" ] ||
  { echo "the parts in $1 do not fit together: one is missing or damaged" >&2; exit 2; }
mkdir -p "$2"
cat "$1"/weights.tgz.* | tar -C "$2" -xzf -
