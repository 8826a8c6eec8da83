#!/usr/bin/env bash
# From an empty machine to the first sentence of a compressed model, timed: examples/first_run.sh [SOURCE] [FOLDER]
#
# SOURCE is what `git clone` is given (this checkout if left out), FOLDER is new and is left there. Nothing that is on the machine
# already is used but git, Python, a C++ compiler if there is one, and the network: no cache, no environment.
set -euo pipefail

source=${1:-$(cd "$(dirname "$0")/.." && pwd)}
folder=${2:-$(mktemp -d)/first-run}
python=${PYTHON:-python3}
torch=${TORCH:-torch}
prompt=${PROMPT:-The capital of France is}

steps=() seconds=()
timed() { # timed NAME COMMAND...
    local name=$1 begun
    shift
    begun=$(date +%s.%N)
    "$@"
    steps+=("$name")
    seconds+=("$(echo "$begun $(date +%s.%N)" | awk '{printf "%.1f", $2 - $1}')")
}
install_kernels() {
    if command -v "${CXX:-c++}" > /dev/null; then .venv/bin/python -m pip install --quiet --no-cache-dir ./native; fi
}

mkdir -p "$folder"
export TRIMTAB_CACHE=$folder/cache
timed "clone" git clone --quiet "$source" "$folder/trimtab"
cd "$folder/trimtab"
timed "environment" "$python" -m venv .venv
timed "torch" .venv/bin/python -m pip install --quiet --no-cache-dir "$torch"
timed "trimtab" .venv/bin/python -m pip install --quiet --no-cache-dir --editable .
timed "kernels" install_kernels
timed "fetch the model" .venv/bin/trimtab plan asset:smollm2-135m --size 45% --quiet
timed "compress" .venv/bin/trimtab compress asset:smollm2-135m -o "$folder/smaller" --method gptq --bits 3 --clip --tokens 8192 --quiet
timed "first sentence" .venv/bin/trimtab generate "$folder/smaller" "$prompt" --new-tokens 24 --quiet

printf '\n| step | seconds |\n|---|---|\n'
for number in "${!steps[@]}"; do printf '| %s | %s |\n' "${steps[$number]}" "${seconds[$number]}"; done
printf '%s\n' "${seconds[@]}" | awk '{sum += $1} END {printf "| in all | %.0f |\n", sum}'
echo
echo "$(nproc 2> /dev/null || sysctl -n hw.ncpu) processors, $(uname -sm), commit $(git rev-parse --short HEAD); everything is in $folder"
