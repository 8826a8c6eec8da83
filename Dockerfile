# trimtab with its compiled kernels, for CPUs. Models and results live outside, in a mounted folder:
#
#   docker build -t trimtab .
#   docker run --rm -v "$PWD:/work" -v trimtab-cache:/cache trimtab compress asset:smollm2-135m -o smaller --size 45%
#
# TORCH_ARGS: what pip is given to find torch, e.g. "torch --index-url URL" with the index of the builds for CPUs, which are smaller.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
ARG TORCH_ARGS=torch
RUN apt-get update && apt-get install --yes --no-install-recommends g++ cmake ninja-build && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/trimtab
ENV PATH=/opt/trimtab/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN pip install ${TORCH_ARGS}
WORKDIR /src
COPY native native
RUN pip install ./native
COPY pyproject.toml README.md LICENSE ./
COPY trimtab trimtab
RUN pip install .

FROM python:${PYTHON}-slim
COPY --from=build /opt/trimtab /opt/trimtab
ENV PATH=/opt/trimtab/bin:$PATH TRIMTAB_CACHE=/cache/trimtab HF_HOME=/cache/huggingface
RUN useradd --create-home trimtab && mkdir /work /cache && chown trimtab /work /cache
USER trimtab
WORKDIR /work
VOLUME ["/cache"]
ENTRYPOINT ["trimtab"]
CMD ["--help"]
