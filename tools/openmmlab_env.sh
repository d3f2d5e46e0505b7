#!/usr/bin/env bash
# An environment with mmcv 1.7.2, mmdet 2.28.2 and mmsegmentation 0.30.0, for projects that grew out of the reference
# (docs/fork.md), and for the tests of mmcv_need, mmdet_need and tpvformer.compat.openmmlab.
#
#   tools/openmmlab_env.sh DIR [PYTHON]    creates the virtual environment DIR (or adds to one that has torch already,
#                                          such as one of tools/torch21_env.sh); PYTHON defaults to python3
#   TPVFORMER_OPENMMLAB_PYTHON=DIR/bin/python python -m pytest tests/compat/test_openmmlab.py
#
# TORCH names the torch to install (default torch==2.13.0). mmcv is installed without its compiled operations, so nothing
# is compiled; "tpvformer run" or "tpvformer overlay apply" put tpvformer's in their place. An empty torchvision satisfies
# mmcv's import.
set -euo pipefail

if [ $# -lt 1 ] || [ "$1" = -h ] || [ "$1" = --help ]; then
  sed -n '2,12p' "$0" | cut -c3-
  exit $(($# < 1 ? 2 : 0))
fi
dir=$1
python=${2:-python3}
root=$(cd "$(dirname "$0")/.." && pwd)
command -v "$python" >/dev/null || { echo "openmmlab_env: $python is not installed" >&2; exit 2; }

[ -x "$dir/bin/python" ] || "$python" -m venv "$dir"
pip() { "$dir/bin/python" -m pip --disable-pip-version-check "$@"; }
has() { "$dir/bin/python" -c "import importlib.util as u, sys; sys.exit(u.find_spec('$1') is None)"; }
has torch || pip install -q "${TORCH:-torch==2.13.0}"
# the packages that tpvformer, mmcv, mmdet and mmseg import in the tests; OpenMMLab 1.x was written for numpy 1.26
pip install -q numpy==1.26.4 opencv-python-headless==4.11.0.86 pyyaml numba simplejpeg rich safetensors pytest \
  addict yapf packaging matplotlib pillow scipy six terminaltables prettytable pycocotools setuptools==80.10.2 wheel
pip install -q --no-deps --no-build-isolation mmcv==1.7.2
pip install -q --no-deps mmdet==2.28.2 mmsegmentation==0.30.0
pip install -q --no-deps --no-build-isolation -e "$root"

site=$("$dir/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
if ! has torchvision; then
  mkdir -p "$site/torchvision"
  cat >"$site/torchvision/__init__.py" <<'END'
"""Stands in for torchvision, of which mmcv only wants to know that it is there."""

__version__ = "0.0.0"
END
fi
"$dir/bin/python" -W ignore -c '
import tpvformer.compat.mmcv_ext
import mmcv, mmdet, mmdet.models, mmseg, mmseg.models, torch
print("torch", torch.__version__, "mmcv", mmcv.__version__, "mmdet", mmdet.__version__, "mmseg", mmseg.__version__)'
