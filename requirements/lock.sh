#!/usr/bin/env bash
# Resolve the locks again. uv ignores pip's settings: where the CPU wheel of torch lies comes from UV_FIND_LINKS, or from
# PyTorch's own index for CPU wheels.
set -euo pipefail
export UV_FIND_LINKS=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-https://download.pytorch.org/whl/cpu/torch/}}
compile=(uv pip compile --quiet --python-version 3.11 --no-header --no-annotate --no-emit-find-links --no-emit-index-url)
"${compile[@]}" cpu.in --override overrides-cpu.txt -o cpu.txt
"${compile[@]}" dev.in -o dev.txt
"${compile[@]}" bench.in --override overrides-bench.txt -o bench.txt
UV_FIND_LINKS= "${compile[@]}" gpu.in --override overrides-gpu.txt -o gpu.txt
