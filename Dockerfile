# nemo_desta on one of NVIDIA's containers. The image's torch, NeMo, TransformerEngine and Megatron are not changed: missing
# packages are installed under a constraint file made from the image itself, and the build fails if any of its versions
# has changed. docs/stacks.md lists the images that fit. Those for Megatron have no NeMo: it is added without a change.
#
#   docker build -t nemo_desta .
#   docker build -t nemo_desta --build-arg BASE_IMAGE=nvcr.io/nvidia/nemo:26.02 .
#   docker run --gpus all --ipc=host -v $DATA:/data nemo_desta \
#       desta check --config-name desta25 data.audio_roots.default=/data
ARG BASE_IMAGE=nvcr.io/nvidia/nemo-speech:26.07.00

FROM ${BASE_IMAGE} AS dependencies
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
WORKDIR /opt/nemo_desta
# Copy only the files that define the requirements: a change of other code does not rebuild this slow layer.
COPY constraints/image.py constraints/image.py
COPY nemo_desta/__init__.py nemo_desta/package_info.py nemo_desta/doctor.py nemo_desta/
# `python -m pip`, not `pip`: in some images the two use different environments.
RUN python constraints/image.py record constraints/image.txt \
    && python constraints/image.py alone train megatron recipes eval > constraints/alone.txt \
    && python -m pip install --no-cache-dir --no-deps -r constraints/alone.txt \
    && python constraints/image.py missing train megatron recipes eval > constraints/missing.txt \
    && cat constraints/missing.txt \
    && python -m pip install --no-cache-dir -c constraints/image.txt -r constraints/missing.txt \
    && python constraints/image.py verify constraints/image.txt

FROM dependencies AS runtime
LABEL org.opencontainers.image.title="nemo_desta" \
      org.opencontainers.image.description="A NeMo plugin that gives a frozen text LLM ears" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY setup.py pyproject.toml README.md LICENSE ./
COPY nemo_desta nemo_desta
COPY conf conf
COPY examples examples
RUN python -m pip install --no-cache-dir --no-deps --no-build-isolation -e . \
    && python constraints/image.py verify constraints/image.txt
# Smoke test: the doctor finds every package, and the model's imports work. This needs no GPU.
RUN python -m nemo_desta doctor \
    && python -c "import nemo_desta.models, nemo_desta.data, nemo_desta.training"
CMD ["python", "-m", "nemo_desta", "doctor"]
