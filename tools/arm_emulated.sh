#!/usr/bin/env bash
# Test the package on an emulated Arm processor (aarch64): install a Debian, PyTorch and the dependencies of PyPI, run a
# list of commands there, and print a table of what passed and how long it took.
#
#   tools/arm_emulated.sh DIR           everything; makes DIR/root first where it is missing
#   tools/arm_emulated.sh DIR NAME...   only these, of: import order doctor decoders oracle kernels synth reference train
#                                       predict selfcheck; those after synth need its data
#
# Run it as root on a Debian of another processor: apt install qemu-user-static binfmt-support debootstrap python3-pip
# TORCH names the PyTorch to install (default torch==2.9.1, PyPI's CPU build), QEMU_CPU the processor (default max).
# Downloads 0.4 GB, takes 1.6 GB in DIR. Times are the emulator's, not those of an Arm machine. The root is kept for
# the next run; remove DIR to delete it.
set -euo pipefail

all=(import order doctor decoders oracle kernels synth reference train predict selfcheck)
if [ $# -lt 1 ] || [ "$1" = -h ] || [ "$1" = --help ]; then
  sed -n '2,12p' "$0" | cut -c3-
  exit $(($# < 1 ? 2 : 0))
fi
refuse() { echo "arm_emulated: $1" >&2; exit 2; }
dir=$1
shift
items=("${@:-${all[@]}}")
for item in "${items[@]}"; do
  [[ " ${all[*]} " == *" $item "* ]] || refuse "$item is not in the list; expected some of: ${all[*]}"
done
source=$(cd "$(dirname "$0")/.." && pwd)
[ "$(id -u)" = 0 ] || refuse "it makes a root file system and enters it, which needs root; run it with sudo"
for tool in qemu-aarch64-static debootstrap unshare git; do
  command -v "$tool" >/dev/null || refuse "$tool is not installed; apt install qemu-user-static binfmt-support debootstrap util-linux git"
done
# Python 3.11 here writes the byte code that Python 3.11 there reads, much faster than in the emulator
compile() {
  [ "$(python3 -c 'import sys; print(*sys.version_info[:2])')" != "3 11" ] ||
    python3 -m compileall -q -s "$root" "$@" >/dev/null || true # some packages carry files of other Pythons
}
handler=/proc/sys/fs/binfmt_misc/qemu-aarch64
[ -e "${handler%/*}/register" ] || mount -t binfmt_misc binfmt_misc "${handler%/*}" 2>/dev/null || true
[ -e "$handler" ] || update-binfmts --enable qemu-aarch64 2>/dev/null || true
grep -qs '^flags:.*F' "$handler" ||
  refuse "this kernel does not start Arm programs by qemu; apt install binfmt-support, then update-binfmts --enable qemu-aarch64"
python3 -m pip --version >/dev/null 2>&1 || refuse "python3 has no pip; apt install python3-pip"

mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
root=$dir/root
site=$root/usr/local/lib/python3.11/dist-packages # where Debian 12's python3 looks
if [ ! -e "$dir/installed" ]; then
  echo "== $root: Debian 12 for arm64"
  [ -e "$root/usr/bin/python3.11" ] ||
    debootstrap --arch=arm64 --variant=minbase --include=python3,libgomp1 bookworm "$root" >"$dir/debootstrap.log" 2>&1 ||
    refuse "debootstrap failed: see $dir/debootstrap.log"
  umount "$root/proc" 2>/dev/null || true # debootstrap leaves it
  echo "== $site: ${TORCH:-torch==2.9.1} and the dependencies"
  # By this machine's pip, which is quicker. It would take markers such as platform_machine for this machine's, so
  # every package is named.
  python3 -m pip --disable-pip-version-check install -q --no-deps --upgrade --root-user-action=ignore --target "$site" \
    --python-version 3.11 --only-binary=:all: --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
    --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 \
    "${TORCH:-torch==2.9.1}" numpy opencv-python-headless pyyaml numba llvmlite simplejpeg rich safetensors \
    filelock typing-extensions sympy mpmath networkx jinja2 markupsafe fsspec markdown-it-py mdurl pygments \
    pytest iniconfig packaging pluggy
  compile "$site"
  touch "$dir/installed"
fi
mkdir -p "$root/src" "$root/trial"
find "$root/src" -type f ! -path "*/__pycache__/*" -delete # kernels that were compiled before stay
(cd "$source" && git ls-files -z --cached --others --exclude-standard | tar --null --ignore-failed-read -T - -cf -) | tar -xf - -C "$root/src"
compile "$root/src/tpvformer" "$root/src/tests"

# Run a command within the root; its mounts are private and end with it.
within() {
  ROOT=$root unshare --mount bash -c '
    mount --rbind /dev "$ROOT/dev" && mount --rbind /proc "$ROOT/proc" && mount --rbind /sys "$ROOT/sys" &&
    exec chroot "$ROOT" /usr/bin/env -i PATH=/usr/bin:/bin HOME=/root LANG=C.UTF-8 PYTHONPATH=/src \
      QEMU_CPU="$1" OMP_NUM_THREADS="$2" sh -c "cd /src && $3"' bash "${QEMU_CPU:-max}" "${OMP_NUM_THREADS:-2}" "$1"
}
rows=()
failed=0
check() { # NAME WHAT COMMAND: runs it if its name was asked for
  [[ " ${items[*]} " == *" $1 "* ]] || return 0
  echo "== $1: $2"
  local began=$SECONDS outcome=PASS
  within "$3" </dev/null >"$dir/$1.log" 2>&1 || { outcome=FAIL; failed=1; tail -n 20 "$dir/$1.log"; }
  rows+=("$(printf '%-4s  %6d s  %-10s  %s' "$outcome" $((SECONDS - began)) "$1" "$2")")
  echo "${rows[-1]}"
}

cat >"$root/trial/import.py" <<'END'
import importlib, platform, pkgutil, tpvformer

assert platform.machine() == "aarch64"
absent = ("torch_npu", "mx_driving", "triton", "mmcv", "mmseg")  # optional packages
names = [m.name for m in pkgutil.walk_packages(tpvformer.__path__, "tpvformer.") if not m.name.endswith("__main__")]
for name in names:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as err:
        if err.name not in absent:
            raise
print(len(names), "modules")
END
# "cannot allocate memory in static TLS block" depends on which library is loaded first
cat >"$root/trial/order.py" <<'END'
import subprocess, sys

names = ["torch", "cv2", "simplejpeg", "numba.np.ufunc.omppool"]
for order in (names[i:] + names[:i] for i in range(len(names))):
    code = "import tpvformer.cli; tpvformer.cli.prepare_torch(); import " + ", ".join(order)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    print(done.returncode, *order, done.stderr.strip().splitlines()[-1:], flush=True)
    assert done.returncode == 0
END
data="--set data.root=/trial/data --set data.train_infos=/trial/data/nuscenes_infos_train.pkl --set data.val_infos=/trial/data/nuscenes_infos_val.pkl"
pytest="python3 -m pytest -q -p no:cacheprovider -o addopts="
run="python3 -m tpvformer"

echo "== $(qemu-aarch64-static --version | head -n 1), processor ${QEMU_CPU:-max}, on $(uname -m)"
check import "every module is imported" "python3 /trial/import.py"
check order "PyTorch, OpenCV, simplejpeg, Numba's OpenMP: each first once" "python3 /trial/order.py"
check doctor "tpvformer doctor" "$run doctor --device cpu"
check decoders "both JPEG decoders give the same bytes" "$pytest tests/data/test_images.py"
check oracle "plain PyTorch operations give the recorded results" "$pytest tests/ops/test_ops.py -k 'recorded_convolution or integer or groups'"
check kernels "Numba's kernels against the oracle, forward and backward" "$pytest tests/ops/test_ops.py -k 'deform_attn and case1 or attention and case0 or deform_conv and 32-16'"
check synth "tpvformer synth, two scenes of two frames" \
  "rm -rf /trial/data && $run synth --out /trial/data --scenes 2 --frames 2 --size 152x90 --seed 25 --workers 1"
check reference "two training steps of config/debug.py with plain PyTorch" \
  "rm -rf /trial/reference && TPVFORMER_OPS=reference $run train --py-config config/debug.py --device cpu $data --work-dir /trial/reference"
check train "two training steps of config/debug.py with the kernels" \
  "rm -rf /trial/run && $run train --py-config config/debug.py --device cpu $data --work-dir /trial/run"
check predict "tpvformer predict of two frames" \
  "rm -rf /trial/out && $run predict --ckpt-path /trial/run --device cpu --root /trial/data --out /trial/out"
check selfcheck "tpvformer selfcheck" "$run selfcheck --device cpu --py-config config/debug.py --size 152x90"
echo
printf '%s\n' "${rows[@]}"
exit $failed
