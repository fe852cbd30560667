#!/usr/bin/env bash
# The screen: where does the paper's effect begin? Two seeds a cell, Fashion-MNIST; every cell is in a compare.json.
# LAYERSYNC_DATA names the folder of data; OUT is where runs go. Called again, it goes on.
set -euo pipefail
: "${LAYERSYNC_DATA:?}" "${OUT:?}"
export LAYERSYNC_DATA; LAYERSYNC_DATA=$(realpath "$LAYERSYNC_DATA")
OUT=$(realpath --canonicalize-missing "$OUT")
cd "$(dirname "$0")"

run() {
    local resume=()
    if [[ -f $OUT/$1/compare.json ]]; then resume=(--resume); fi
    layersync compare recipes/fashion.yaml "${@:2}" "${resume[@]}" --seeds 0,1 --jobs 2 --out "$OUT/$1"
}

run method --variants baseline,layersync \
    --variant weight-0.1:regularizer.weight=0.1 --variant weight-1:regularizer.weight=1.0 \
    --variant weight-3:regularizer.weight=3.0 --variant 'pair-2-9-weight-1:regularizer.pairs=[[2,9]],regularizer.weight=1.0' \
    --variant 'pair-2-5:regularizer.pairs=[[2,5]]' --variant 'pair-2-9:regularizer.pairs=[[2,9]]' \
    --variant 'pair-6-9:regularizer.pairs=[[6,9]]' --variant 'teacher-11:regularizer.pairs=[[4,11]]' \
    --variant delayed:regularizer.schedule.delay=400,regularizer.schedule.warmup=400 \
    --variant centred:regularizer.similarity=centred --variant no-stopgrad:regularizer.stop_gradient=false
run unlabelled --set condition.labels=ignored --set 'evaluate.metrics=[fd-classifier]'
run steps-8000 --set train.steps=8000 --set evaluate.every=2000
run width-64 --set evaluate.every=1000 --set backbone.hidden_size=64 --set backbone.num_heads=2
run tokens-49 --set evaluate.every=1000 --set backbone.patch_size=4
run width-160 --set evaluate.every=1000 --set backbone.hidden_size=160 --set backbone.num_heads=5
run depth-24 --set evaluate.every=1000 --set backbone.depth=24
