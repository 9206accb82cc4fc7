#!/usr/bin/env bash
# Trains on a folder of images, makes a model of the run, measures it, and draws with it.
#
#   bash examples/train_on_folder.sh                                  # a rehearsal on Scenes: some minutes on a CPU
#   bash examples/train_on_folder.sh photos configs/folder64.yaml     # yours; see the head of that file
#
# FOLDER/train holds the images, FOLDER/val some others to measure with. What stands behind OUT goes to `fit`, such as
# --trainer.max_steps 100. Run again, it continues where it stopped.
set -euo pipefail

folder=${1:-data/rehearsal}
config=${2:-configs/tiny.yaml}
out=${3:-out/train_on_folder}
shift $(($# < 3 ? $# : 3))
python=${PYTHON:-python}

if [ "$folder" = data/rehearsal ]; then # Scenes stand in for your images; kept if they are there
  $python -m composer scenes --split train --count 256 --size 32 --out "$folder/train"
  $python -m composer scenes --split val --count 16 --size 32 --out "$folder/val"
fi

size=$(sed -n 's/^let: {size: \([0-9]*\).*/\1/p' "$config") # of the images, which other data has to keep to
$python -m composer fit -c "$config" --trainer.default_root_dir "$out/run" --ckpt_path last \
  --data.train ImageFolder --data.train.path "$folder/train" \
  --data.train.size "$size" --data.train.captions empty \
  --data.validation ImageFolder --data.validation.path "$folder/val" \
  --data.validation.size "$size" --data.validation.captions empty "$@"

images() { find "$folder/val" -type f \( -iname '*.png' -o -iname '*.jpg' -o -iname '*.jpeg' -o -iname '*.webp' \) | sort; }
count=$(images | wc -l)
$python -m composer export "$out/run" "$out/model"
$python -m composer evaluate "$out/model" --data "$folder/val" --count $((count < 64 ? count : 64)) --json "$out/adherence.json"
$python -m composer compose --model "$out/model" --out "$out/recombined" --seeds 0,1,2 \
  --sketch "$(images | sed -n 1p)" --palette "$(images | sed -n 2p)"
echo "run in $out/run, model in $out/model, table in $out/adherence.json, pictures in $out/recombined"
