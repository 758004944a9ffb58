#!/usr/bin/env bash
# Install the pinned packages into a virtual environment. Usage: install.sh cpu|gpu VENV
set -euo pipefail
kind=$1 venv=$2
here=$(cd "$(dirname "$0")" && pwd)
python=${BASE_PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "Python 3.11 or newer is needed; '$python' is $("$python" --version). Name another with: BASE_PYTHON=python3.12 make setup" >&2
  exit 1
}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps)
if [ "$kind" = cpu ]; then
  torch=$(grep '^torch==' "$here/cpu.txt")
  # Where pip is configured to find the CPU build first; PyTorch's own index for CPU wheels otherwise.
  "${pip[@]}" "$torch" 2>/dev/null || "${pip[@]}" --index-url https://download.pytorch.org/whl/cpu "$torch" || {
    echo "No wheel of $torch was found. vLLM's CPU build pins exactly this one. Either give pip a folder that holds it" \
      "(PIP_FIND_LINKS=/folder make setup), or let this machine reach https://download.pytorch.org/whl/cpu" >&2
    exit 1
  }
fi
# --no-deps: the lock is complete. A resolver would add torchvision, which breaks transformers beside this torch.
"${pip[@]}" -r "$here/$kind.txt" -r "$here/dev.txt"
PYTHONWARNINGS=ignore "${pip[@]}" --no-build-isolation --editable "$here/.."
"$venv/bin/python" - <<'PYTHON'
import faiss, peft, ray, torch, transformers, vllm  # noqa: E401, F401: one import test of what set-up is for
print(f"set-up complete: torch {torch.__version__}, vLLM {vllm.__version__}, Ray {ray.__version__}")
PYTHON
