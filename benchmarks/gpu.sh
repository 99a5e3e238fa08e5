#!/usr/bin/env bash
# Everything that needs a GPU, in minutes: the GPU tests, then the throughput (4 minutes); or CIFAR-10 (7 minutes).
#
#   benchmarks/gpu.sh [--smoke]             benchmarks/gpu.sh record DATA [--epochs N]
#
# DATA is a folder or archive with train/CLASS/* and test/CLASS/*. Needs Python 3.12 with torch 2.11 or newer, timm and
# pandas, pyarrow, scikit-learn, safetensors, matplotlib, pytest, pytest-xdist, hypothesis, typer, psutil. A machine
# without network also needs the wheels of WHEELS in a folder of this name, .whl, here; they are installed beside.
set -euo pipefail
cd "$(dirname "$0")/.."
WHEELS="kornia==0.9.0 kornia-rs==0.2.0 pydantic==2.14.3 pydantic-core==2.50.4 annotated-types==0.8.0
  typing-inspection==0.4.5 charset-normalizer==3.5.3 lightly==1.6.0 lightly-utils==0.0.2 aenum==3.1.17 timm==1.0.31"
export PYTHONPATH=src PYTHONUNBUFFERED=1
if [ -d .whl ]; then
  python3 -m pip install --quiet --no-index --no-deps --find-links .whl --upgrade --target /tmp/simtrail-wheels $WHEELS
  PYTHONPATH=src:/tmp/simtrail-wheels
fi
if [ "${1:-}" = record ]; then
  shift
  exec python3 benchmarks/cifar10.py --minutes 6 "$@"
fi
python3 -m pytest -n 4 -m gpu tests/test_gpu.py tests/augment
python3 benchmarks/throughput.py "$@"
