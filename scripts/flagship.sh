#!/usr/bin/env bash
# Makes the two published models, of many steps and of few, with their figures, cards and galleries.
#
#     bash scripts/flagship.sh                       # everything, for one large GPU
#     bash scripts/flagship.sh figures cards         # these steps alone
#     MINUTES=600 FEW_MINUTES=300 TRAIN_FLAGS='--compile false' FIGURES='--preset smoke' \
#         bash scripts/flagship.sh                   # on a CPU, over night
#
# The steps, in this order, are: classifiers train few_steps matching figures cards gallery. A step
# that was interrupted goes on when it is called again, and one that is done costs seconds. The
# variables below may be set in the environment. The models are in $OUT/mtl-cifar10 and
# $OUT/mtl-cifar10-fewstep.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-python}
OUT=${OUT:-runs/flagship}
DATA=${DATA:---dataset_name uoft-cs/cifar10 --image_column img --label_column label}
RESOLUTION=${RESOLUTION:-32}
CONFIG=${CONFIG:-configs/cifar10_15min.yaml}
MINUTES=${MINUTES:-9} # of training
TRAIN_FLAGS=${TRAIN_FLAGS:-}
FEW_CONFIG=${FEW_CONFIG:-configs/cifar10_few_steps.yaml}
FEW_MINUTES=${FEW_MINUTES:-8} # of training, after the pairs of edits were drawn
FEW_FLAGS=${FEW_FLAGS:-}
MATCH_CONFIG=${MATCH_CONFIG:-configs/cifar10_matching.yaml}
MATCH_MINUTES=${MATCH_MINUTES:-3} # of the third stage
MATCH_FLAGS=${MATCH_FLAGS:-}
FIGURES=${FIGURES:---preset standard --batch_size 500 --dtype bfloat16 --compile true}
EPOCHS=${EPOCHS:-8}                                     # of a classifier that is not there yet
CLASSIFIER=${CLASSIFIER:-pretrained/cifar10-classifier} # it measures, and never trains a model

classifier() { # FOLDER FLAGS...
    [ -f "$1/metrics.json" ] || $PYTHON scripts/train_classifier.py $DATA --resolution "$RESOLUTION" \
        --output_dir "$@"
}

classifiers() {
    classifier "$OUT/alignment" --architecture regnet --depth 2 --epochs "$EPOCHS"
    classifier "$OUT/features" --architecture resnet9 --width 16 --noise 0.25 --seed 11 --epochs "$EPOCHS"
    classifier "$CLASSIFIER" --architecture resnet9 --seed 7 --epochs "$EPOCHS"
}

run() { # NAME MINUTES FLAGS...
    $PYTHON scripts/train.py --output_dir "$OUT/runs/$1" --max_train_steps null --max_train_minutes "$2" \
        $DATA --resolution "$RESOLUTION" "${@:3}"
}

train() {
    run mtl-cifar10 "$MINUTES" --config "$CONFIG" --alignment_classifier "$OUT/alignment" $TRAIN_FLAGS
    export_model mtl-cifar10 --no_pictures
}

few_steps() {
    run distilled "$FEW_MINUTES" --config "$FEW_CONFIG" --feature_classifier "$OUT/features" \
        --pretrained_model_name_or_path "$OUT/mtl-cifar10" $FEW_FLAGS
    export_model distilled --no_pictures
}

matching() {
    run mtl-cifar10-fewstep "$MATCH_MINUTES" --config "$MATCH_CONFIG" --feature_classifier "$OUT/features" \
        --pretrained_model_name_or_path "$OUT/distilled" $MATCH_FLAGS
    export_model mtl-cifar10-fewstep --no_pictures
}

export_model() { # NAME FLAGS...
    local metrics=$OUT/scores/$1/metrics.json
    [ ! -f "$metrics" ] || set -- "$@" --metrics "$metrics"
    $PYTHON scripts/publish.py --checkpoint "$OUT/runs/$1" --half --output_dir "$OUT/$1" "${@:2}"
}

both() { for name in mtl-cifar10 mtl-cifar10-fewstep; do "$1" "$name" "${@:2}"; done; }

score() {
    $PYTHON scripts/evaluate.py --pipeline "$OUT/$1" --classifier "$CLASSIFIER" $DATA $FIGURES \
        --output_dir "$OUT/scores/$1"
}

draw() { # in place of the card's picture; a classifier chooses the sources, by the rule of gallery.py
    $PYTHON scripts/gallery.py --pipeline "$OUT/$1" --classifier "$CLASSIFIER" --output_dir "$OUT/gallery/$1"
    cp "$OUT/gallery/$1/gallery.png" "$OUT/$1/gallery.png"
}

figures() { both score; }
cards() { both export_model; }
gallery() { both draw; }

steps=(classifiers train few_steps matching figures cards gallery)
[ $# -gt 0 ] || set -- "${steps[@]}"
for step; do
    [[ " ${steps[*]} " == *" $step "* ]] || {
        echo "flagship.sh: there is no step '$step'; the steps are: ${steps[*]}" >&2
        exit 2
    }
done
for step; do "$step"; done
