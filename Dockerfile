# Extraction and training on a GPU node: the wheels of torch bring CUDA, the machine its driver and NVIDIA's container toolkit.
#
#   docker build -t triptych .
#   docker run --rm --gpus all -v "$PWD/data:/data" triptych extract grid --images /data/photos --out /data/features/grid
FROM python:3.11-slim

# libgomp: torch's threads. A C compiler: Triton builds the launchers of kernels with it, on the node.
RUN apt-get update && apt-get install --no-install-recommends -y gcc libc6-dev libgomp1 && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/triptych
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY storage storage
COPY extractors extractors
COPY trainers trainers
COPY pipeline pipeline
COPY workflows workflows
RUN pip install --no-cache-dir -c constraints.txt ".[captions,detection,gpu,ray,s3,tensorboard]"

RUN useradd --create-home triptych
USER triptych
WORKDIR /data
ENTRYPOINT ["triptych"]
CMD ["--help"]
