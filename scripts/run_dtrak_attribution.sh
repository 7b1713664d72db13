#!/usr/bin/env bash
# Which training tracks shaped the generated clips: features of both, then scores and ranked tables.
#
#   scripts/run_dtrak_attribution.sh                    # with the defaults below
#   CKPT_PATH=mine.ckpt OUTPUT_DIR=out scripts/run_dtrak_attribution.sh --proj-rank 32
#
# Variables set in the environment win over the defaults. Flags are passed on to both extractions, which must
# agree; flags for the scoring go into SCORE_FLAGS. A run that was killed goes on where it stopped.
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

# The clips first: they are few, and a clip without a prompt should show before the long part.
"$PYTHON" "$here/dtrak_extract_features.py" "${extraction[@]}" \
  --queries "$QUERIES" --output "$OUTPUT_DIR/query_features" "$@"

"$PYTHON" "$here/dtrak_extract_features.py" "${extraction[@]}" \
  --dataset-config "$TRAIN_DATASET_CONFIG" --output "$OUTPUT_DIR/train_features" "$@"

# SCORE_FLAGS is several words on purpose.
# shellcheck disable=SC2086
"$PYTHON" "$here/dtrak_score.py" \
  --train-features "$OUTPUT_DIR/train_features" --query-features "$OUTPUT_DIR/query_features" \
  --output-dir "$OUTPUT_DIR" $SCORE_FLAGS
