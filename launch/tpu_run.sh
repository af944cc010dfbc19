#!/usr/bin/env bash
# Runs maestro on Cloud TPU slices, from a machine with gcloud and this checkout: see docs/how_to/launch.md.
# The verbs are in launch/tpu; they need a Python of at least 3.9, as gcloud does, and none of its packages.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
for python in "$root/.venv/bin/python" "${CLOUDSDK_PYTHON:-}" python3; do
  if [[ -n $python ]] && command -v "$python" >/dev/null; then
    exec "$python" -B -S -s -E "$root/launch/tpu" "$@"
  fi
done
echo "error: there is no python3, which gcloud needs, too" >&2
exit 2
