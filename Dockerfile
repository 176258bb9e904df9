# The package apexvl with its command. docker build -t apexvl . ; docs/CLUSTER.md has the lines to run it.
# DEVICE is cuda or cpu. PyTorch's build is that of the default index, which has CUDA; for cpu its libraries are left out
# if TORCH_INDEX is the address of PyTorch's own index of CPU builds.
ARG PYTHON_VERSION=3.12
FROM python:${PYTHON_VERSION}-slim

ARG DEVICE=cuda
ARG TORCH_INDEX=
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1

WORKDIR /src
COPY requirements.txt ./
RUN grep -E '^torch(vision)?==' requirements.txt > torch.txt \
    && python -m pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} -r torch.txt \
    && grep -vE '^torch(vision)?==' requirements.txt > others.txt \
    && python -m pip install -r others.txt

COPY . .
RUN python -m pip install --no-deps . && apexvl --version \
    && python -c "import sys, torch; sys.exit(sys.argv[1] == 'cuda' and torch.version.cuda is None)" "$DEVICE"

RUN useradd --create-home user && mkdir -p /data /output /cache && chown user /data /output /cache
USER user
ENV DATA=/data CLIP_CACHE=/cache/clip FEATURE_CACHE=/cache/image_features FILE_HASHES=/cache/file_hashes.sqlite
VOLUME ["/data", "/output", "/cache"]
WORKDIR /output
ENTRYPOINT ["apexvl"]
CMD ["--help"]
