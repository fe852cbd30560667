#!/usr/bin/env bash
# The reported runs of ../plan.yaml. LAYERSYNC_DATA names the folder of data, OUT where runs go. Called again, it goes on: the
# compare.json and classifiers below OUT are all that it needs, and the folders of a comparison whose runs another one shares when that one is begun.
set -euo pipefail
: "${LAYERSYNC_DATA:?}" "${OUT:?}"
export LAYERSYNC_DATA; LAYERSYNC_DATA=$(realpath "$LAYERSYNC_DATA")
OUT=$(realpath --canonicalize-missing "$OUT")
cd "$(dirname "$0")"

run() {
    local resume=()
    if [[ -f $OUT/$1/compare.json ]]; then resume=(--resume); fi
    layersync compare "${@:2}" "${resume[@]}" --jobs 2 --out "$OUT/$1"
}
# A run is a function of its recipe and its seed: `share FROM TO DOMAIN VARIANT` gives a comparison those that another has made.
share() {
    for part in runs samples; do
        cp --recursive --no-clobber "$OUT/$1/$part/$3/$4" "$OUT/$2/$part/$3/"
    done
}
domains=(recipes/fashion.yaml recipes/spoken-digits.yaml recipes/motion-bvh.yaml)
calm=(--set optimizer.schedule=cosine --set optimizer.lr=2.0e-3 --set evaluate.num_samples=2000)
stratified=(--set evaluate.conditions=stratified)

run controls recipes/fashion.yaml --variants baseline,null --seeds 100,101,102,103,104 \
    --variant wider:regularizer.name=none,backbone.hidden_size=160,backbone.num_heads=5

if [[ ! -f $OUT/first/compare.json ]]; then
    run first recipes/fashion.yaml --seeds 100,
    share controls first fashion baseline
fi
run first "${domains[@]}" --seeds 100,101,102,103,104

run second "${domains[@]}" "${calm[@]}" "${stratified[@]}" --set evaluate.every=1000 --variants baseline,layersync \
    --variant screened:regularizer.weight=1.0 --seeds 110,111,112

third=("${domains[@]:0:2}" "${calm[@]}" "${stratified[@]}" --set evaluate.every=1000)
if [[ ! -f $OUT/third/compare.json ]]; then
    run third "${third[@]}" --seeds 110,
    for domain in fashion spoken-digits; do
        for variant in baseline layersync; do share second third "$domain" "$variant"; done
    done
fi
run third "${third[@]}" --seeds 110,111,112,113,114,115,116,117,118,119

screened=("${calm[@]}" "${stratified[@]}" --set evaluate.every=2000 --variants baseline --variant screened:regularizer.weight=1.0)
run screened recipes/fashion.yaml "${screened[@]}" --seeds 140,141,142,143,144,145,146,147,148,149
run screened "${domains[@]:0:2}" "${screened[@]}" --seeds 140,141,142,143,144,145,146,147,148,149

motion=("${calm[@]}" "${stratified[@]}" --set evaluate.num_samples=4000 --set evaluate.every=2000
    --set 'evaluate.metrics=[fd-geometric,fd-kinetic,fd-classifier,label-agreement]')
run motion recipes/motion-bvh.yaml "${motion[@]}" --seeds 120,121,122,123,124,125,126,127,128,129
run screened-motion recipes/motion-bvh.yaml "${motion[@]}" --variants baseline --variant screened:regularizer.weight=1.0 \
    --seeds 150,151,152,153,154,155,156,157,158,159

run longer recipes/fashion.yaml --set train.steps=8000 --set evaluate.every=2000 --seeds 130,131,132,133,134
run longer-calm recipes/fashion.yaml "${calm[@]}" "${stratified[@]}" --set train.steps=8000 --set evaluate.every=8000 \
    --seeds 160,161,162,163,164
run longer-speech recipes/spoken-digits.yaml --set train.steps=8000 --set evaluate.every=2000 --seeds 170,171,172,173,174

run cifar10 recipes/cifar10.yaml "${calm[@]}" "${stratified[@]}" --set evaluate.every=500 --seeds 100,101,102,103,104
run notes recipes/notes.yaml "${calm[@]}" "${stratified[@]}" --seeds 100,101,102,103,104
run satellite recipes/satellite.yaml "${calm[@]}" --set evaluate.every=1000 --seeds 100,101,102,103,104
