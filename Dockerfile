# nemo_desta on NVIDIA's NeMo container. The image's torch, NeMo and Megatron stay as they are: what is missing is
# added under a constraint file made from the image itself, and the build fails where any of its versions has changed.
#
#   docker build -t nemo_desta .
#   docker run --gpus all --ipc=host -v $DATA:/data nemo_desta \
#       python examples/speechlm_desta.py --config-name desta25 check=true data.audio_roots.default=/data
ARG BASE_IMAGE=nvcr.io/nvidia/nemo:26.02

FROM ${BASE_IMAGE} AS dependencies
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
WORKDIR /opt/nemo_desta
# Only what names the requirements: a change of code leaves this layer, the slow one, as it is.
COPY constraints/image.py constraints/image.py
COPY nemo_desta/__init__.py nemo_desta/package_info.py nemo_desta/doctor.py nemo_desta/
# `python -m pip`, not `pip`: in this image the two belong to different environments.
RUN python constraints/image.py record constraints/image.txt \
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
# Smoke check: the doctor finds everything, and the model's own imports work (no GPU is needed for that).
RUN python -m nemo_desta doctor \
    && python -c "import nemo_desta.models, nemo_desta.data, nemo_desta.training"
CMD ["python", "-m", "nemo_desta", "doctor"]
