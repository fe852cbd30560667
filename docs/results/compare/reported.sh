#!/usr/bin/env bash
# The reported runs of ../plan.yaml. LAYERSYNC_DATA names the folder of data, OUT where runs go, SEEDS which ones, such as
# 100,101,102. Called again, with the same seeds or with more, it goes on: the compare.json below OUT are all that it needs.
set -euo pipefail
cd "$(dirname "$0")"
: "${LAYERSYNC_DATA:?}" "${OUT:?}" "${SEEDS:?}"

run() {
    local resume=()
    if [[ -f $OUT/$1/compare.json ]]; then resume=(--resume); fi
    layersync compare "${@:2}" "${resume[@]}" --jobs 2 --out "$OUT/$1"
}
fashion=recipes/fashion.yaml

run controls $fashion --variants baseline,null --seeds 100,101,102,103,104 \
    --variant wider:regularizer.name=none,backbone.hidden_size=160,backbone.num_heads=5

# A run is a function of its recipe and its seed: Fashion-MNIST's baseline is trained once, but for the first seed.
[[ -f $OUT/main/compare.json ]] || run main $fashion --seeds 100,
for part in runs samples; do
    mkdir -p "$OUT/main/$part/fashion"
    cp --recursive --no-clobber "$OUT/controls/$part/fashion/baseline" "$OUT/main/$part/fashion/"
done
run main $fashion recipes/spoken-digits.yaml recipes/motion-bvh.yaml --seeds "$SEEDS"
