#!/usr/bin/env bash
# A slim CPU environment with torch 2.1.0 and numpy 1.26, the versions that Ascend's software is paired with.
#
#   tools/torch21_env.sh DIR [PYTHON]      creates the virtual environment DIR; PYTHON is 3.8 to 3.11 (default python3)
#   DIR/bin/python -m pytest               runs the suite there
#
# PyPI's torch 2.1.0 is a CUDA build that cannot be imported without NVIDIA's libraries (1.8 GB). Three small ones are
# installed; the other seven are called only with a card, so empty libraries with the same symbols are linked.
# Needs gcc and objdump (binutils); downloads 0.7 GB, takes 2.2 GB and about a minute.
set -euo pipefail

if [ $# -lt 1 ] || [ "$1" = -h ] || [ "$1" = --help ]; then
  sed -n '2,9p' "$0" | cut -c3-
  exit $(($# < 1 ? 2 : 0))
fi
dir=$1
python=${2:-python3}
root=$(cd "$(dirname "$0")/.." && pwd)
for tool in "$python" gcc objdump; do
  command -v "$tool" >/dev/null || { echo "torch21_env: $tool is not installed; on Debian: apt install gcc binutils python3-venv" >&2; exit 2; }
done

"$python" -m venv "$dir"
pip() { "$dir/bin/python" -m pip --disable-pip-version-check "$@"; }
pip install -q numpy==1.26.4 filelock typing-extensions sympy networkx jinja2 fsspec \
  opencv-python-headless==4.11.0.86 pyyaml numba simplejpeg rich safetensors matplotlib pytest pytest-xdist hypothesis shtab
pip install -q --no-deps torch==2.1.0 nvidia-cuda-runtime-cu12==12.1.105 nvidia-cuda-cupti-cu12==12.1.105 \
  nvidia-nvtx-cu12==12.1.105
pip install -q --no-deps -e "$root"

# Each empty library defines the symbols that torch's libraries need, under the version name they need (objdump's column).
lib=$("$dir/bin/python" -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0] + "/lib")')
symbols=$(mktemp)
trap 'rm -rf "$symbols"' EXIT
for object in "$lib"/libtorch_cuda.so "$lib"/libtorch_python.so "$lib"/libtorch_global_deps.so; do
  objdump -T "$object" | grep -F '*UND*' || true
done >"$symbols"
for name in libcublas.so.12 libcublasLt.so.12 libcudnn.so.8 libcufft.so.11 libcurand.so.10 libcusparse.so.12 libnccl.so.2; do
  stem=${name%%.*}
  prefix=${stem#lib}
  {
    awk '{print $NF}' "$symbols" | { grep -E "^${prefix}[A-Z]" || true; } | sort -u | sed 's/.*/int &(void) { return 1; }/'
  } | gcc -x c -shared -fPIC -Wl,-soname,"$name" -Wl,--version-script=<(printf '%s { global: *; };\n' "$name") \
    -o "$lib/$name" -
done
"$dir/bin/python" -c 'import torch, numpy; print("torch", torch.__version__, "numpy", numpy.__version__); torch.ones(2, 2) @ torch.ones(2, 2)'
