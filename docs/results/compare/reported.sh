#!/usr/bin/env bash
# The reported runs of ../plan.yaml. LAYERSYNC_DATA names the folder of data, OUT where runs go, SEEDS those of `second`, such as
# 110,111,112. Called again, with the same seeds or with more, it goes on: the compare.json below OUT are all that it needs.
set -euo pipefail
: "${LAYERSYNC_DATA:?}" "${OUT:?}" "${SEEDS:?}"
export LAYERSYNC_DATA; LAYERSYNC_DATA=$(realpath "$LAYERSYNC_DATA")
OUT=$(realpath --canonicalize-missing "$OUT")
cd "$(dirname "$0")"

run() {
    local resume=()
    if [[ -f $OUT/$1/compare.json ]]; then resume=(--resume); fi
    layersync compare "${@:2}" "${resume[@]}" --jobs 2 --out "$OUT/$1"
}
domains=(recipes/fashion.yaml recipes/spoken-digits.yaml recipes/motion-bvh.yaml)
calm=(--set optimizer.schedule=cosine --set optimizer.lr=2.0e-3 --set evaluate.num_samples=2000)
stratified=(--set evaluate.conditions=stratified)

run controls recipes/fashion.yaml --variants baseline,null --seeds 100,101,102,103,104 \
    --variant wider:regularizer.name=none,backbone.hidden_size=160,backbone.num_heads=5

# A run is a function of its recipe and its seed: Fashion-MNIST's baseline is trained once, but for the first seed.
if [[ ! -f $OUT/first/compare.json ]]; then
    run first recipes/fashion.yaml --seeds 100,
    for part in runs samples; do
        cp --recursive --no-clobber "$OUT/controls/$part/fashion/baseline" "$OUT/first/$part/fashion/"
    done
fi
run first "${domains[@]}" --seeds 100,101,102,103,104

run second "${domains[@]}" "${calm[@]}" "${stratified[@]}" --set evaluate.every=1000 --variants baseline,layersync \
    --variant screened:regularizer.weight=1.0 --seeds "$SEEDS"

run cifar10 recipes/cifar10.yaml "${calm[@]}" "${stratified[@]}" --seeds 100,101,102,103,104
run notes recipes/notes.yaml "${calm[@]}" "${stratified[@]}" --seeds 100,101,102,103,104
run satellite recipes/satellite.yaml "${calm[@]}" --seeds 100,101,102,103,104
