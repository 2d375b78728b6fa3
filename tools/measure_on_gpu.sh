#!/usr/bin/env bash
# Measures minip2p on one NVIDIA GPU, within a time that is obeyed whatever happens, and without a network.
#
#   OUT=folder [SECONDS_LIMIT=200] [TESTS=0] [PEER=pipeline_prompt2prompt.py] [PYTHON=python3] tools/measure_on_gpu.sh
#
# The figures are in OUT/measure.json after each section of benchmarks/gpu.py, and the log is OUT/measure.log.
# TESTS is how many seconds the tests of the model may take on the GPU afterwards, with pytest; their log is OUT/tests.log.
# DRY=1 runs the sections on a CPU, at the size of the small model, and the tests on the fake device. On two quiet cores
# all sections take half a minute. The exit status is that of the measurement, or else of the tests: 124 where one reached
# its limit, and then the figures are those of the sections that it has finished.
set -uo pipefail
begin=$(date +%s)
cd "$(dirname "$0")/.."

out=${OUT:-} limit=${SECONDS_LIMIT:-200} tests=${TESTS:-0}
fail() { echo "$0: $1" >&2; exit 2; }
[ -n "$out" ] || fail "say where the figures go: OUT=folder $0"
[[ "$limit" =~ ^[0-9]+$ && "$tests" =~ ^[0-9]+$ ]] || fail "SECONDS_LIMIT and TESTS are whole numbers of seconds"
command -v "${PYTHON:-python3}" > /dev/null || fail "PYTHON=${PYTHON:-python3}: no such command"
[ -n "${DRY:-}" ] || "${PYTHON:-python3}" -c "import sys, torch; sys.exit(not torch.cuda.is_available())" 2> /dev/null \
    || fail "torch finds no GPU of CUDA here; DRY=1 runs the sections on the CPU"
options=(--until $((begin + limit - 3)) --out "$out")
[ -z "${PEER:-}" ] || options+=(--peer "$PEER")
[ -z "${DRY:-}" ] || options+=(--device cpu --small)
mkdir -p "$out" || exit 2
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
timeout -k 3 "$limit" "${PYTHON:-python3}" -u benchmarks/gpu.py "${options[@]}" 2>&1 | tee "$out/measure.log"
status=$?
if [ "$tests" -gt 0 ]; then
  device=cuda
  [ -z "${DRY:-}" ] || device=fake
  timeout -k 3 "$tests" "${PYTHON:-python3}" -u -m pytest --device "$device" -p no:cacheprovider tests/p2p/test_editing.py \
      tests/test_pipeline.py tests/inversion tests/sampling tests/p2p 2>&1 | tee "$out/tests.log"
  tested=$?
  [ "$status" -ne 0 ] || status=$tested
fi
exit "$status"
