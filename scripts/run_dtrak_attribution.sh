#!/usr/bin/env bash
# Which training tracks shaped the generated clips: features of both, then scores and ranked tables.
#
#   scripts/run_dtrak_attribution.sh                    # with the defaults below
#   CKPT_PATH=mine.ckpt OUTPUT_DIR=out scripts/run_dtrak_attribution.sh --proj-rank 32
#
# Variables set in the environment win over the defaults. Flags are passed on to both extractions, which must
# agree; flags for the scoring go into SCORE_FLAGS. A run that was killed goes on where it stopped.
#
# NUM_GPUS=4 uses four GPUs of this machine. SHARD=2/8 does the third of eight parts of the work, as the tasks of
# a Slurm array do (run_dtrak_attribution.slurm); whoever finds all features there makes the tables.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

: "${PYTHON:=python}"
: "${MODEL_CONFIG:=model_config.json}"
: "${CKPT_PATH:=stable_audio_tools.ckpt}"
: "${TRAIN_DATASET_CONFIG:=stable_audio_tools/configs/dataset_configs/local_training_custom.json}"
: "${QUERIES:=stable_audio_tools/configs/dataset_configs/dtrak_generated_queries.json}"
: "${OUTPUT_DIR:=outputs/attribution}"
: "${LORA_CKPT_PATH:=}"
: "${PRETRANSFORM_CKPT_PATH:=}"
: "${BATCH_SIZE:=8}"
: "${NUM_WORKERS:=4}"
: "${DEVICE:=auto}"
: "${SCORE_FLAGS:=}"
: "${NUM_GPUS:=1}"
: "${SHARD:=}"
: "${TORCHRUN:=}"

if [[ " $* " == *" --help "* ]]; then
  sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
  exec "$PYTHON" "$here/dtrak_extract_features.py" --help
fi

extraction=(
  --model-config "$MODEL_CONFIG"
  --ckpt-path "$CKPT_PATH"
  --batch-size "$BATCH_SIZE"
  --num-workers "$NUM_WORKERS"
  --device "$DEVICE"
)
if [[ -n "$LORA_CKPT_PATH" ]]; then extraction+=(--lora-ckpt-path "$LORA_CKPT_PATH"); fi
if [[ -n "$PRETRANSFORM_CKPT_PATH" ]]; then
  extraction+=(--pretransform-ckpt-path "$PRETRANSFORM_CKPT_PATH")
fi

if [[ -n "$SHARD" ]]; then extraction+=(--shard "$SHARD"); fi
if [[ -z "$TORCHRUN" && "$NUM_GPUS" -gt 1 ]]; then
  TORCHRUN="$PYTHON -m torch.distributed.run --standalone --nproc-per-node $NUM_GPUS"
fi

extract() {
  # TORCHRUN is several words on purpose.
  # shellcheck disable=SC2086
  ${TORCHRUN:-"$PYTHON"} "$here/dtrak_extract_features.py" "${extraction[@]}" "$@"
}

# The clips first: they are few, and a clip without a prompt should show before the long part.
extract --queries "$QUERIES" --output "$OUTPUT_DIR/query_features" "$@"

extract --dataset-config "$TRAIN_DATASET_CONFIG" --output "$OUTPUT_DIR/train_features" "$@"

# SCORE_FLAGS is several words on purpose.
# shellcheck disable=SC2086
"$PYTHON" "$here/dtrak_score.py" \
  --train-features "$OUTPUT_DIR/train_features" --query-features "$OUTPUT_DIR/query_features" \
  --output-dir "$OUTPUT_DIR" --if-whole $SCORE_FLAGS
