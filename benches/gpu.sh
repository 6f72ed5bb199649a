#!/usr/bin/env bash
# Parity with the CPU, step time, images per second and memory of a device, from a built program. Needs no network and
# no compiler. With `smallest`, only the tiny examples run, so that the script also ends on a software device.
#
#   benches/gpu.sh target/release/unguided cuda:0
#   benches/gpu.sh target/release/unguided wgpu:0 smallest
set -euo pipefail
if [ $# -lt 2 ]; then sed -n 2,7p "$0"; exit 2; fi
unguided="$(realpath "$1")"; device="$2"; size="${3:-all}"
examples="$(realpath "$(dirname "$0")/../examples/pipelines")"
work="$(mktemp -d)"; trap 'rm -rf "$work"' EXIT
cd "$work"

printf '== Devices\n'
"$unguided" devices
command -v nvidia-smi > /dev/null && nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true

# Value of a field in the last line of a run's metrics.
last() { tail -n 1 "$1/metrics.jsonl" | tr ',{}' '\n\n\n' | sed -n "s/^\"$2\": *//p" | cut -c 1-12; }

printf '\n== Parity: one SGD step on the CPU and on %s, from weights that were trained for 20 steps on the CPU\n' "$device"
printf '%-24s %-14s %-14s %-14s %-14s %s\n' document 'loss cpu' 'loss device' 'norm cpu' 'norm device' 'worst parameter, relative'
# The difference of the weights before and after the step is the gradient, for each parameter.
cat > compare.py << 'PYTHON'
import array, json, math, sys

def weights(path):
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        start = file.tell()
        found = {}
        for name, tensor in header.items():
            if name.startswith("model/"):
                first, end = tensor["data_offsets"]
                file.seek(start + first)
                values = array.array("f")
                values.frombytes(file.read(end - first))
                found[name[6:]] = values
        return found

before, cpu, device = map(weights, sys.argv[1:])
def norm(values): return math.sqrt(sum(value * value for value in values))
gradients = {name: norm(a - b for a, b in zip(cpu[name], before[name])) for name in before}
largest = max(gradients.values())
# Parameters with nearly no gradient are left out: their difference is rounding.
errors = {name: norm(a - b for a, b in zip(cpu[name], device[name])) / gradient
          for name, gradient in gradients.items() if gradient > 1e-4 * largest}
name = max(errors, key=errors.get)
print(f"{errors[name]:.1e} ({name})")
PYTHON
for name in digits-dit-cfg digits-sit-cfg digits-llamagen-cfg digits-var-cfg digits-mar-cfg shapes-sd15-cfg; do
  document="$examples/$name-tiny.json"
  common=(--set '/metrics=[]' --set /train/sample_columns=1 --set /train/log_every=1)
  "$unguided" train "$document" --device cpu --run "$name-start" "${common[@]}" > /dev/null 2>&1
  step() { # device run learning-rate
    "$unguided" train "$document" --device "$1" --run "$2" "${common[@]}" \
      --set "/train/from={\"checkpoint\": \"$name-start\"}" --set /train/steps=1 --set /train/warmup_steps=0 \
      --set '/train/optimizer={"type": "sgd"}' --set "/train/learning_rate=$3" --set /train/clip_norm=null \
      --set /train/ema=null > "$name.log" 2>&1 || { printf '%s on %s failed:\n' "$name" "$1"; cat "$name.log"; return 1; }
  }
  step cpu "$name-cpu" 1 && step "$device" "$name-device" 1 || continue
  worst='SKIPPED: no python3'
  newest() { find "$1/checkpoints" -name 'step-*.safetensors' | sort | tail -n 1; }
  if command -v python3 > /dev/null; then
    # This step is too small to change a weight visibly: its checkpoint holds the weights at the start.
    step cpu "$name-before" 1e-12
    worst="$(python3 compare.py "$(newest "$name-before")" "$(newest "$name-cpu")" "$(newest "$name-device")")"
  fi
  printf '%-24s %-14s %-14s %-14s %-14s %s\n' "$name-tiny" "$(last "$name-cpu" loss)" "$(last "$name-device" loss)" \
    "$(last "$name-cpu" grad_norm)" "$(last "$name-device" grad_norm)" "$worst"
done

printf '\n== Speed on %s: median over the steps after the first three\n' "$device"
# Random pictures of 32 x 32 pixels in ten classes, as BMP files: 54 bytes of header, then the pixels.
bmp() {
  printf 'BM\x36\x0c\x00\x00\x00\x00\x00\x00\x36\x00\x00\x00\x28\x00\x00\x00\x20\x00\x00\x00\x20\x00\x00\x00'
  printf '\x01\x00\x18\x00\x00\x00\x00\x00\x00\x0c\x00\x00\x13\x0b\x00\x00\x13\x0b\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00'
  head -c 3072 /dev/urandom
}
for class in $(seq 0 9); do mkdir -p "images/$class"; for i in $(seq 0 12); do bmp > "images/$class/$i.bmp"; done; done
document() { # type hidden depth heads batch precision process
  cat << JSON
{ "version": 1,
  "data": { "type": "image_folder", "path": "images", "image_size": 32 },
  "tokenizer": { "type": "pixels" },
  "backbone": { "type": "$1", "hidden_size": $2, "depth": $3, "num_heads": $4, "patch_size": 2, "input_size": 32,
                "in_channels": 3, "num_classes": 10 },
  "objective": { "type": "cfg" },
  "train": { "steps": 20, "batch_size": $5, "learning_rate": 1e-4, "precision": "$6", "log_every": 1, "sample_columns": 1 },
  "sampler": { "type": "$7", "steps": 4 },
  "guidance": { "type": "cfg", "scale": 1.5 }, "metrics": [] }
JSON
}
memory() { nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits 2> /dev/null | sort -n | tail -n 1; }
printf '%-28s %-10s %-12s %s\n' network precision images/s 'peak memory, MiB'
measure() { # label type hidden depth heads batch process
  for precision in f32 bf16; do
    document "$2" "$3" "$4" "$5" "$6" "$precision" "$7" > speed.json
    rm -rf speed; echo 0 > peak
    "$unguided" train speed.json --device "$device" --run speed > speed.log 2>&1 & training=$!
    while kill -0 "$training" 2> /dev/null; do
      now="$(memory || true)"
      if [ "${now:-0}" -gt "$(cat peak)" ]; then echo "$now" > peak; fi
      sleep 0.2
    done
    if ! wait "$training"; then printf '%-28s %-10s failed: %s\n' "$1" "$precision" "$(tail -n 1 speed.log)"; continue; fi
    speed="$(sed -n 's/.*"images_per_second":\([0-9.]*\).*/\1/p' speed/metrics.jsonl | tail -n +4 | sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }')"
    printf '%-28s %-10s %-12.1f %s\n' "$1" "$precision" "$speed" "$([ "$(cat peak)" -gt 0 ] && cat peak || echo unknown)"
  done
}
if [ "$size" = smallest ]; then
  measure 'dit, width 32, batch 4' dit 32 2 4 4 ddim
else
  measure 'DiT-B/2, batch 32' dit 768 12 12 32 ddim
  measure 'DiT-XL/2, batch 32' dit 1152 28 16 32 ddim
  measure 'SiT-XL/2, batch 32' sit 1152 28 16 32 euler
fi
