#!/usr/bin/env bash
# Measures minip2p on one NVIDIA GPU, within a time that is obeyed whatever happens, and without a network.
#
#   OUT=folder [SECONDS_LIMIT=200] [TESTS=0] [PEER=pipeline_prompt2prompt.py] [PYTHON=python3] tools/measure_on_gpu.sh
#
# The figures are in OUT/measure.json after each section of benchmarks/gpu.py, and the log is OUT/measure.log.
# TESTS is how many seconds the tests of the model may take on the GPU afterwards, with pytest; their log is OUT/tests.log.
# DRY=1 runs all sections on a CPU, at the size of the small model, and the tests on the fake device.
set -euo pipefail
begin=$(date +%s)
cd "$(dirname "$0")/.."

out=${OUT:?"say where the figures shall go: OUT=folder $0"}
limit=${SECONDS_LIMIT:-200}
options=(--until $((begin + limit - 3)) --out "$out")
[ -z "${PEER:-}" ] || options+=(--peer "$PEER")
[ -z "${DRY:-}" ] || options+=(--device cpu --small)
mkdir -p "$out"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
timeout -k 3 "$limit" "${PYTHON:-python3}" -u benchmarks/gpu.py "${options[@]}" 2>&1 | tee "$out/measure.log"
if [ "${TESTS:-0}" -gt 0 ]; then
  device=cuda
  [ -z "${DRY:-}" ] || device=fake
  timeout -k 3 "$TESTS" "${PYTHON:-python3}" -u -m pytest --device "$device" -p no:cacheprovider tests/p2p/test_editing.py \
      tests/test_pipeline.py tests/inversion tests/sampling tests/p2p 2>&1 | tee "$out/tests.log"
fi
