#!/usr/bin/env bash
# Trains the tiny model on one NVIDIA GPU, within a time that is obeyed whatever happens, and without a network.
#
#   OUT=folder [MINUTES=9.5] [PYTHON=python3] tools/train_on_gpu.sh [--dry-run] [options of minip2p.tiny.train]
#
# It needs the sprites' package in .train/sprites, where `python -m minip2p.tiny.train` fetches it. It goes on from
# weights/tiny: the VAE takes a quarter of the time, the distillation of a model for few steps a fifth, the judge less
# than a tenth, the UNet and the text encoder the rest.
# From the first minute on, the newest weights are in OUT, in files of at most 15 MB, with sample pictures and the log:
# tools/join_weights.sh puts them together. --dry-run does all of it on a CPU, at about a hundredth of the size.
set -euo pipefail
cd "$(dirname "$0")/.."

out=${OUT:?"say where the weights shall go: OUT=folder $0"}
python=${PYTHON:-python3}
begin=$(date +%s)
limit=$(awk -v minutes="${MINUTES:-9.5}" 'BEGIN { printf "%d", 60 * minutes }')
scale=(--device cuda --batch 1024 --scenes 120000 --workers 13)
if [ "${1:-}" = --dry-run ]; then
  shift
  scale=(--device cpu --workers 2 --scenes 640 --batch 4,8)
fi
work=$(mktemp -d)
mkdir -p "$out" "$work/sprites"
cp .train/sprites/*.tgz "$work/sprites/" || { echo "the sprites are missing: see $0" >&2; exit 2; }

# Puts the newest complete weights and what there is to see of them into OUT.
pack() {
  local tiny=$work/preview stage=$work/pack file
  rm -rf "$stage"
  [ -f "$work/out/tiny/minip2p.json" ] && tiny=$work/out/tiny
  if [ -f "$tiny/minip2p.json" ]; then  # it is written last
    mkdir -p "$stage/weights"
    cp -r "$tiny" "$stage/weights/tiny" || return 0  # it is being replaced
    [ -f "$work/out/judge/config.json" ] && cp -r "$work/out/judge" "$stage/weights/judge"
    if [ -f "$work/out/tiny-fast/minip2p.json" ]; then  # the other parts are those of weights/tiny
      mkdir -p "$stage/weights/tiny-fast"
      cp -r "$work/out/tiny-fast/unet" "$work/out/tiny-fast/minip2p.json" "$stage/weights/tiny-fast"
    fi
    if [ -f "$tiny/minip2p.json" ]; then  # nor has it been replaced in the meantime
      tar -C "$stage/weights" -c . | gzip -1 > "$stage/weights.tgz"
      (cd "$stage" && sha256sum weights.tgz > weights.sha256 && split -b 15000000 -d weights.tgz weights.tgz.)
      rm "$stage/weights.tgz"
      mv "$stage"/weights.tgz.* "$stage/weights.sha256" "$out/"
    fi
  fi
  file=$(ls -t "$work"/unet/samples-*.png 2>/dev/null | head -n 1) || true
  [ -z "$file" ] || cp "$file" "$out/samples.png"
  cp "$work/log.txt" "$out/log.txt"
}

share() { awk -v s="$limit" -v part="$1" 'BEGIN { printf "%.3f", s * part / 60 }'; }  # of the time, in minutes

touch "$work/log.txt"
(while [ ! -e "$work/end" ]; do
  pack
  for _ in $(seq 30); do [ -e "$work/end" ] || sleep 1; done
done) > /dev/null 2>&1 &
packer=$!
status=0
timeout -k 5 $((limit > 60 ? limit - 15 : limit)) \
  "$python" -u -m minip2p.tiny.train --work "$work" --out "$work/out/tiny" --judge-out "$work/out/judge" --distil-out "$work/out/tiny-fast" \
  --warm weights/tiny --until $((begin + limit - (limit > 60 ? 35 : 0))) --steps 1000000 --decay \
  --decoder "$(share 0.23)" --encoder --adversarial 0.1 --distil "$(share 0.22)" --judge "$(share 0.07)" \
  "${scale[@]}" "$@" 2>&1 | tee "$work/log.txt" || status=$?
touch "$work/end"
wait "$packer" || true  # it may be packing
pack
rm -rf "$work"
ls -l "$out"
exit "$status"
